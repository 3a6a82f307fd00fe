"""Installing localckpt into an environment that is there, and what stops it."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

import petsc4py
import petsctools
import pytest

ROOT = Path(__file__).parents[2]
OURS = ["LICENSE", "MANIFEST.in", "README.md", "localckpt", "pyproject.toml", "setup.py", "src", "tests"]


@pytest.fixture
def tree(tmp_path):
    """The sources, as a clone has them, under a path with a space."""
    tree = tmp_path / "a clone"
    tree.mkdir()
    for name in OURS:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        else:
            shutil.copy(ROOT / name, tree)
    return tree


def run(*command, cwd, timeout=60, **variables):
    # An environment of its own: MPI leaves traces in this process's real one.
    return subprocess.run([str(word) for word in command], cwd=cwd, env={**os.environ, **variables},
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True, timeout=timeout)


def pip(verb, tree, *, python=sys.executable, timeout=60, **variables):
    return run(python, "-m", "pip", verb, "--no-index", "--no-build-isolation", ".", cwd=tree,
               timeout=timeout, PIP_DISABLE_PIP_VERSION_CHECK="1", CFLAGS="-O0", **variables)


def test_into_an_environment_that_is_there(tree, tmp_path):
    """Only localckpt is added: on top of a PETSc that somebody else takes care of."""
    overlay = tmp_path / "overlay"
    run(sys.executable, "-m", "venv", "--without-pip", overlay, cwd=tmp_path)
    site = next(overlay.glob("lib/python*/site-packages"))
    below = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), Path(petsc4py.__path__[0]).parent}
    (site / "below.pth").write_text("".join(f"{path}\n" for path in below))
    python = overlay / "bin" / "python"

    installed = pip("install", tree, python=python, timeout=200)
    assert installed.returncode == 0, installed.stdout
    assert installed.stdout.splitlines()[-1] == "Successfully installed localckpt-0.1.0"
    assert {path.name.split("-")[0] for path in site.glob("*.dist-info")} == {"localckpt"}
    for shipped in [*tree.glob("localckpt/*.p[yx]*"), *tree.glob("localckpt/py.typed")]:
        assert (site / "localckpt" / shipped.name).exists()

    asked = run(overlay / "bin" / "localckpt", "clean", tmp_path / "a clone", cwd=tmp_path)
    assert (asked.returncode, asked.stdout) == (0, f"nothing in {tmp_path / 'a clone'}\n")

    used = run(python, "-c", """if True:
        import localckpt, sys
        from mpi4py import MPI
        from petsc4py import PETSc
        vec = PETSc.Vec().createSeq(5)
        with localckpt.VecFile(MPI.COMM_SELF, 'vec.h5', 'w') as file:
            file.write('vec', vec)
        print(localckpt._vecfile.__file__)""", cwd=tmp_path)
    assert used.stdout.strip().startswith(str(site)), used.stdout


@pytest.fixture
def petsc(tmp_path):
    """A petsc4py that names a PETSc of which the test decides what it is."""
    folder = tmp_path / "petsc"
    original = Path(petsctools.get_petsc_dir(), petsctools.get_petsc_arch() or "")
    for name in ("include/petscconf.h", "lib/petsc/conf/petscvariables"):
        (folder / name).parent.mkdir(parents=True)
        shutil.copy(original / name, folder / name)
    package, theirs = tmp_path / "path" / "petsc4py", Path(petsc4py.__path__[0])
    (package / "lib").mkdir(parents=True)
    for path in [*theirs.iterdir(), *(theirs / "lib").iterdir()]:
        if path.name not in ("lib", "petsc.cfg"):
            (package / path.relative_to(theirs)).symlink_to(path)
    (package / "lib" / "petsc.cfg").write_text(f"PETSC_DIR = {folder}\nPETSC_ARCH =\n")
    return folder


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def no_petsc(petsc):
    shutil.rmtree(petsc)
    petsc.mkdir()  # petsc4py looks for another one where the folder is gone, too


def no_hdf5(petsc):
    edit(petsc / "include/petscconf.h", "#define PETSC_HAVE_HDF5 1\n", "")


def serial_hdf5(petsc):
    (petsc / "include/hdf5.h").write_text("#undef H5_HAVE_PARALLEL\n")
    edit(petsc / "lib/petsc/conf/petscvariables", "HDF5_INCLUDE = ", f"HDF5_INCLUDE = -I{petsc}/include ")


def no_petsc4py(petsc):
    shutil.rmtree(petsc.parent / "path" / "petsc4py")
    (petsc.parent / "path" / "petsc4py.py").write_text("raise ModuleNotFoundError(name=__name__)\n")


@pytest.mark.parametrize("fault, sentence", [
    (no_petsc, "no PETSc in {petsc} (No such file or directory"),
    (no_hdf5, "the PETSc in {petsc} has no HDF5; configure PETSc with --download-hdf5"),
    (serial_hdf5, "PETSc's HDF5 was built without MPI; build HDF5 with --enable-parallel"),
    (no_petsc4py, "petsc4py is missing, or pip hides it from this build; install it"),
])
def test_says_what_is_missing(tree, petsc, fault, sentence):
    fault(petsc)
    refused = pip("wheel", tree, PYTHONPATH=str(petsc.parent / "path"))  # asks setup.py what install does
    said = [line for line in refused.stdout.splitlines() if "localckpt: " in line]
    assert refused.returncode != 0
    assert len(said) == 1, refused.stdout
    assert sentence.format(petsc=petsc) in said[0]
    assert "Traceback" not in refused.stdout and "Downloading" not in refused.stdout


def test_source_distribution(tree, tmp_path):
    """Holds whatever compiling, typing and testing need; and needs no PETSc itself."""
    made = run(sys.executable, "setup.py", "-q", "sdist", "-d", tmp_path, cwd=tree)
    assert made.returncode == 0, made.stdout
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {str(path.relative_to(tree)) for name in ("src", "localckpt", "tests")
              for path in (tree / name).rglob("*") if path.is_file()}
    assert wanted | {"LICENSE", "README.md", "pyproject.toml", "setup.py"} <= held
    assert not [name for name in held if name.endswith((".so", ".pyc"))]
