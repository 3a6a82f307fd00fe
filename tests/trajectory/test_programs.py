"""Unmodified programs with TSAdjoint, with the options that ``localckpt trajectory`` prints."""

import os
import re
import shlex
import subprocess
import sys
from glob import glob
from pathlib import Path

import petsctools
import pytest

from localckpt.commands.trajectory import environment

HERE = Path(__file__).parent
INCLUDES = petsctools.get_petsc_dirs(subdir="include")
MODULES = [directory for directory in INCLUDES if glob(os.path.join(directory, "petscts*.mod"))]
PROGRAMS = ["decay", "cubic"] if MODULES else ["decay"]
METHODS = {
    "runge-kutta": "-ts_type rk -ts_rk_type 4 -ts_adapt_type none",
    "adaptive": "-ts_type rk -ts_rk_type 5dp -ts_adapt_type basic -ts_rtol 1e-7 -ts_atol 1e-7",
    "crank-nicolson": "-ts_type cn -ts_adapt_type none -ksp_rtol 1e-12 -snes_rtol 1e-12",
    "backward euler": "-ts_type beuler -ts_adapt_type none -ksp_rtol 1e-12 -snes_rtol 1e-12",
}


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


@pytest.fixture
def run(tmp_path, request):
    """run(program, options, ranks=1, kind="localckpt", others=0): the CompletedProcess.

    Checkpoints go to tmp_path. Ranks beyond the first ones, so many others, get no limit.
    """
    printed = subprocess.run(
        [sys.executable, "-m", "localckpt", "trajectory"], capture_output=True, text=True, check=True, timeout=60
    ).stdout

    def run(program, options="", ranks=1, kind="localckpt", others=0):
        kind = shlex.split(printed) if kind == "localckpt" else ["-ts_trajectory_type", kind]
        command = [request.getfixturevalue(program), *kind, *shlex.split(options)]
        command = ["-n", str(ranks), *command] + (
            [":", "-n", str(others), *command, "-localckpt_dir_limit", "1e9"] if others else []
        )
        return subprocess.run(
            ["mpiexec", *command],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            timeout=90,
            env={**os.environ, **environment(), "TMPDIR": str(tmp_path), "MPIEXEC_TIMEOUT": "80"},
        )

    return run


@pytest.mark.parallel(1)
@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("method", METHODS)
def test_gradient_is_that_of_basic(method, program, ranks, run, tmp_path):
    expected = run(program, METHODS[method], ranks, kind="basic")
    found = run(program, METHODS[method], ranks)
    assert found.returncode == 0, found.stderr
    assert "gradient" in found.stdout and found.stdout == expected.stdout
    assert os.listdir(tmp_path) == []


@pytest.mark.parallel(1)
@pytest.mark.parametrize("options", ["-solves 3", "-halfway", "-halfway -solves 2"])
def test_gradients_of_several_solves_are_those_of_basic(options, run):
    options += f" {METHODS['adaptive']}"
    found = run("decay", options, 2)
    assert "gradient" in found.stdout and found.stdout == run("decay", options, 2, kind="basic").stdout


@pytest.mark.parallel(1)
@pytest.mark.parametrize("ranks", [1, 2])
def test_sensitivities_are_those_of_basic(ranks, run):
    options = f"-tangents 3 {METHODS['runge-kutta']}"
    found = run("decay", options, ranks)
    assert "at the beginning" in found.stdout and found.stdout == run("decay", options, ranks, kind="basic").stdout


@pytest.mark.parallel(1)
def test_view_says_what_was_stored(run):
    found = run("decay", f"-ts_trajectory_view {METHODS['crank-nicolson']}", 2)
    assert "disk checkpoint writes = 21" in found.stdout and "checkpoints of all 2 ranks" in found.stdout
    assert re.search("repeats +40 ", found.stdout)  # each of 20 steps begins with the solution before it


@pytest.mark.parallel(1)
@pytest.mark.parametrize("ranks", [1, 2])
def test_full_last_disk_ends_with_file_and_cause(ranks, run, tmp_path):
    found = run("decay", f"-n 1000 -localckpt_dir_limit 100e3 {METHODS['runge-kutta']}", ranks)
    assert found.returncode != 0 and "gradient" not in found.stdout
    assert f"file '{tmp_path}/localckpt_" in found.stderr and "bytes left of the limit" in found.stderr
    assert os.listdir(tmp_path) == []


@pytest.mark.parallel(1)
def test_full_last_disk_of_one_rank_ends_all(run):
    found = run("decay", f"-n 1000 -localckpt_dir_limit 100e3 {METHODS['runge-kutta']}", 1, others=2)
    assert found.returncode != 0 and "gradient" not in found.stdout
    assert found.stderr.count("bytes left of the limit") == 1 and "rank 0]" in found.stderr


@pytest.mark.parallel(1)
def test_missing_directory_is_refused_on_all_ranks(run):
    found = run("decay", f"-localckpt_dir /nowhere,/nowhere {METHODS['runge-kutta']}", 2)
    assert found.returncode != 0 and "cannot make a directory in -localckpt_dir /nowhere" in found.stderr


@pytest.mark.parallel(1)
def test_solution_only_with_an_adjoint_is_refused(run):
    found = run("decay", f"-ts_trajectory_solution_only {METHODS['runge-kutta']}")
    assert found.returncode != 0 and "leaves out the stages, which TSAdjoint needs" in found.stderr


@pytest.mark.parallel(1)
@pytest.mark.parametrize("options", ["", "-no_solve"])
def test_directory_of_the_user_is_never_removed(options, run, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis").write_text("years")
    found = run("decay", f"-ts_trajectory_dirname mine {options} {METHODS['runge-kutta']}")
    if not options:
        assert found.returncode != 0 and "-ts_trajectory_dirname mine is not for the trajectory type" in found.stderr
    assert (tmp_path / "mine" / "thesis").read_text() == "years"
