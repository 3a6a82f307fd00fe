"""Programs with TSAdjoint, in C and, where this PETSc has its Fortran modules, in Fortran, compiled once and run."""

import os
import shlex
import subprocess
from glob import glob
from pathlib import Path

import petsctools
import pytest

HERE = Path(__file__).parent
INCLUDES = petsctools.get_petsc_dirs(subdir="include")
MODULES = [directory for directory in INCLUDES if glob(os.path.join(directory, "petscts*.mod"))]


def compiled(source, program):
    variables = petsctools.get_petscvariables()
    libraries = [directory for directory in petsctools.get_petsc_dirs(subdir="lib") if os.path.isdir(directory)]
    compiler = "FC" if source.suffix == ".F90" else "CC"
    command = shlex.split(variables[compiler]) + [str(source), "-o", str(program)]
    command += [f"-I{directory}" for directory in INCLUDES] + shlex.split(variables.get("HDF5_INCLUDE", ""))
    command += [f"-{option}{directory}" for directory in libraries for option in ("L", "Wl,-rpath,")]
    subprocess.run([*command, *shlex.split(variables.get("PETSC_LIB_BASIC", "-lpetsc"))], check=True, timeout=120)
    return program


@pytest.fixture(scope="session")
def decay(tmp_path_factory):
    """The program in C."""
    return compiled(HERE / "decay.c", tmp_path_factory.mktemp("c") / "decay")


@pytest.fixture(scope="session")
def cubic(tmp_path_factory):
    """The program in Fortran."""
    return compiled(HERE / "cubic.F90", tmp_path_factory.mktemp("fortran") / "cubic")
