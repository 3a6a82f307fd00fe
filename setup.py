"""Compile localckpt's core against the PETSc that petsc4py uses."""

import glob
import os
import shlex
import subprocess
import sys
import tempfile

import setuptools
from setuptools.command.build_ext import build_ext

SETUPTOOLS = tuple(map(int, setuptools.__version__.split(".")[:2]))
LIBRARY = "localckpt.liblocalckpt"  # what PETSc loads with -dll_append, in a program without Python


class BuildExtensions(build_ext):
    """Leaves Python's version out of the name of that library: PETSc looks in it for a symbol of this name."""

    def get_ext_filename(self, fullname):
        if fullname.endswith("liblocalckpt"):
            return os.path.join(*fullname.split(".")) + ".so"
        return super().get_ext_filename(fullname)


def stop(sentence):
    sys.exit(f"localckpt: {sentence}")


def petsc_configuration():
    """What to compile with: include directories, flags, library directories, link arguments."""
    try:
        import Cython
        import mpi4py
        import petsc4py
        import petsctools

        if SETUPTOOLS < (70, 1):
            import wheel  # noqa: F401  (pip asks for its bdist_wheel)
    except ImportError as exc:
        if exc.name in ("Cython", "petsctools", "wheel"):
            stop(
                f"{exc.name} is missing; 'pip install {exc.name.lower()}' and build localckpt with "
                "'pip install --no-build-isolation'"
            )
        if exc.name in ("mpi4py", "petsc4py"):
            stop(
                f"{exc.name} is missing, or pip hides it from this build; install it, compiled against the "
                "PETSc and MPI that you use, and build localckpt with 'pip install --no-build-isolation'"
            )
        stop(
            f"petsc4py does not find its PETSc ({exc}); install that PETSc again, or petsc4py for the one that you have"
        )
    if int(Cython.__version__.split(".")[0]) < 3:
        stop(f"Cython {Cython.__version__} is too old; 'pip install \"cython>=3.0\"'")
    try:
        variables = petsctools.get_petscvariables()
        conf = petsctools.get_petscconf_h()
    except OSError as exc:
        stop(
            f"no PETSc in {petsctools.get_petsc_dir()} ({exc.strerror}: {exc.filename}); "
            "install petsc4py for the PETSc that you have, with PETSC_DIR and PETSC_ARCH naming it"
        )
    if "HAVE_HDF5" not in conf:
        stop(
            f"the PETSc in {petsctools.get_petsc_dir()} has no HDF5; "
            "configure PETSc with --download-hdf5 or --with-hdf5-dir=..."
        )
    compiler = variables.get("CC", "mpicc")
    flags = shlex.split(variables.get("HDF5_INCLUDE", "")) + shlex.split(variables.get("MPI_INCLUDE", ""))
    with tempfile.NamedTemporaryFile("w", suffix=".c") as probe:  # compiler wrappers want a real file
        probe.write("#include <hdf5.h>\n#ifdef H5_HAVE_PARALLEL\nparallel\n#endif\n")
        probe.flush()
        found = subprocess.run(
            [*shlex.split(compiler), "-E", *flags, probe.name], capture_output=True, text=True, check=False
        )
    if found.returncode:
        stop(f"cannot compile against PETSc's HDF5: {found.stderr.strip()}")
    if "\nparallel" not in found.stdout:
        stop("PETSc's HDF5 was built without MPI; build HDF5 with --enable-parallel, and PETSc with that one")
    includes = [*petsctools.get_petsc_dirs(subdir="include"), petsc4py.get_include(), mpi4py.get_include()]
    libraries = [directory for directory in petsctools.get_petsc_dirs(subdir="lib") if os.path.isdir(directory)]
    link = ["-Wl,--as-needed"]  # _petsc needs none, and can say so where there is another PETSc
    link += shlex.split(variables.get("PETSC_LIB_BASIC", "-lpetsc"))  # Debian's is called -lpetsc_real
    link += shlex.split(variables.get("HDF5_LIB", "-lhdf5"))
    os.environ.setdefault("CC", compiler)
    return includes, flags, list(dict.fromkeys(libraries)), link


def extensions():
    commands = {"build", "build_ext", "bdist_wheel", "editable_wheel", "install", "develop"}
    if "dist_info" in sys.argv:  # pip's first question: stop here, before it looks for what is missing
        petsc_configuration()
    if not commands & set(sys.argv):
        return []  # an sdist needs no PETSc
    includes, flags, libraries, link = petsc_configuration()
    from Cython.Build import cythonize

    def extension(name, source):
        return setuptools.Extension(
            name,
            [source],
            include_dirs=["src", *includes],
            extra_compile_args=flags,
            library_dirs=libraries,
            runtime_library_dirs=libraries,
            extra_link_args=link,
            define_macros=[("MPICH_SKIP_MPICXX", 1), ("OMPI_SKIP_MPICXX", 1)],
        )

    modules = [
        extension(f"localckpt.{os.path.basename(source)[:-4]}", source) for source in sorted(glob.glob("src/*.pyx"))
    ]
    return [extension(LIBRARY, "src/liblocalckpt.c")] + cythonize(
        modules,
        include_path=[".", "src"],
        build_dir="build",
        force=True,
        compiler_directives={"language_level": 3, "freethreading_compatible": False},
    )


setuptools.setup(
    # One word for it in pyproject.toml would be refused by setuptools below 77 or after 2027.
    **{"license_expression" if SETUPTOOLS >= (77,) else "license": "LGPL-3.0-or-later"},
    ext_modules=extensions(),
    cmdclass={"build_ext": BuildExtensions},
    options={"build_ext": {"force": True}},  # what was compiled for another PETSc may lie in build/
)
