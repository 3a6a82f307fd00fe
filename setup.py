"""Compile localckpt's core against the PETSc that petsc4py uses."""

import os
import shlex
import subprocess
import sys
import tempfile

import numpy
from setuptools import Extension, setup


def stop(sentence):
    sys.exit(f"localckpt: {sentence}")


def petsc_configuration():
    """Compiler, include folders and link arguments of the PETSc in use."""
    try:
        import mpi4py
        import petsc4py
        import petsctools
    except ImportError as exc:
        stop(f"{exc.name} is missing; install it (with PETSc's MPI) and build localckpt with "
             "'pip install --no-build-isolation'")
    try:
        variables = petsctools.get_petscvariables()
        conf = petsctools.get_petscconf_h()
    except OSError as exc:
        stop(f"no PETSc in {petsctools.get_petsc_dir()} ({exc.strerror}: {exc.filename}); "
             "set PETSC_DIR and PETSC_ARCH to the PETSc that petsc4py was built with")
    if "HAVE_HDF5" not in conf:
        stop(f"the PETSc in {petsctools.get_petsc_dir()} has no HDF5; "
             "configure PETSc with --download-hdf5 or --with-hdf5-dir=...")
    compiler = variables.get("CC", "mpicc")
    includes = [*petsctools.get_petsc_dirs(subdir="include"), petsc4py.get_include(),
                mpi4py.get_include(), numpy.get_include()]
    flags = shlex.split(variables.get("HDF5_INCLUDE", "")) + shlex.split(variables.get("MPI_INCLUDE", ""))
    with tempfile.NamedTemporaryFile("w", suffix=".c") as probe:  # compiler wrappers want a real file
        probe.write("#include <hdf5.h>\n#ifdef H5_HAVE_PARALLEL\nparallel\n#endif\n")
        probe.flush()
        found = subprocess.run([*shlex.split(compiler), "-E", *flags, probe.name],
                               capture_output=True, text=True, check=False)
    if "\nparallel" not in found.stdout:
        stop("PETSc's HDF5 was built without MPI; build HDF5 with --enable-parallel and PETSc with that one"
             if found.returncode == 0 else f"cannot compile against PETSc's HDF5: {found.stderr.strip()}")
    libraries = petsctools.get_petsc_dirs(subdir="lib")
    link = shlex.split(variables.get("HDF5_LIB", "-lhdf5"))
    os.environ.setdefault("CC", compiler)
    return includes, flags, [p for p in dict.fromkeys(libraries) if os.path.isdir(p)], link


def extensions():
    if not {"build_ext", "bdist_wheel", "editable_wheel", "install", "develop", "build"} & set(sys.argv):
        return []  # an sdist, or metadata alone: no PETSc needed
    from Cython.Build import cythonize
    includes, flags, libraries, link = petsc_configuration()
    modules = [
        Extension(
            f"localckpt.{name}", [f"src/{name}.pyx"],
            include_dirs=includes, extra_compile_args=flags,
            library_dirs=libraries, runtime_library_dirs=libraries,
            libraries=["petsc"], extra_link_args=link,
            define_macros=[("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION"), ("MPICH_SKIP_MPICXX", 1),
                           ("OMPI_SKIP_MPICXX", 1)],
        )
        for name in ("_errors", "_vecfile")
    ]
    return cythonize(modules, include_path=[".", "src"], build_dir="build",
                     compiler_directives={"language_level": 3, "freethreading_compatible": False})


setup(ext_modules=extensions())
