"""Installing localckpt into an existing environment, and the errors that prevent it."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import petsc4py
import petsctools
import pytest
from petsc4py import PETSc

ROOT = Path(__file__).parents[2]
BELOW = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), str(Path(petsc4py.__path__[0]).parent)}
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
    # os.environ has the variables that this process was started with, without those that MPI has set since. What is
    # installed must be found where it was installed, not where this process found it (PYTHONPATH).
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**env, **variables},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
    )


def pip(verb, tree, *, python=sys.executable, timeout=60, **variables):
    return run(
        python,
        "-m",
        "pip",
        verb,
        "--no-index",
        "--no-build-isolation",
        ".",
        cwd=tree,
        timeout=timeout,
        PIP_DISABLE_PIP_VERSION_CHECK="1",
        CFLAGS="-O0",
        **variables,
    )


def test_into_an_existing_environment(tree, tmp_path):
    """Only localckpt is added, to a PETSc that somebody else maintains."""
    overlay = tmp_path / "overlay"
    run(sys.executable, "-m", "venv", "--without-pip", overlay, cwd=tmp_path)
    site = next(overlay.glob("lib/python*/site-packages"))
    (site / "below.pth").write_text("".join(f"{path}\n" for path in BELOW))
    python = overlay / "bin" / "python"

    installed = pip("install", tree, python=python, timeout=200)
    assert installed.returncode == 0, installed.stdout
    assert installed.stdout.splitlines()[-1] == "Successfully installed localckpt-0.1.0"
    assert {path.name.split("-")[0] for path in site.glob("*.dist-info")} == {"localckpt"}
    for shipped in [*tree.glob("localckpt/**/*.p[yx]*"), *tree.glob("localckpt/py.typed")]:
        assert (site / shipped.relative_to(tree)).exists()

    asked = run(overlay / "bin" / "localckpt", "clean", tmp_path / "a clone", cwd=tmp_path)
    assert (asked.returncode, asked.stdout) == (0, f"nothing in {tmp_path / 'a clone'}\n")

    inside = run(python, "-m", "localckpt", "doctor", cwd=tree)
    assert inside.returncode == 1 and "Traceback" not in inside.stdout
    assert f"localckpt in {tree}/localckpt is not compiled: " in inside.stdout
    assert run(python, "-m", "localckpt", "--version", cwd=tmp_path).stdout == "localckpt 0.1.0\n"

    used = run(
        python,
        "-c",
        """if True:
        import localckpt, sys
        from mpi4py import MPI
        from petsc4py import PETSc
        vec = PETSc.Vec().createSeq(5)
        with localckpt.VecFile(MPI.COMM_SELF, 'vec.h5', 'w') as file:
            file.write('vec', vec)
        print(localckpt._vecfile.__file__)""",
        cwd=tmp_path,
    )
    assert used.stdout.strip().startswith(str(site)), used.stdout


@pytest.fixture
def petsc(tmp_path):
    """The directory of a PETSc that the test may change, and a petsc4py that uses it."""
    directory = tmp_path / "petsc"
    directories = [
        Path(petsctools.get_petsc_dir(), petsctools.get_petsc_arch() or ""),
        Path(petsctools.get_petsc_dir()),
    ]
    for name in ("include/petscconf.h", "include/petscversion.h", "lib/petsc/conf/petscvariables"):
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(next(path / name for path in directories if (path / name).exists()), directory / name)
    for pattern in ("include/*", "lib/libpetsc*"):
        for original in [file for path in directories for file in path.glob(pattern)]:
            link = directory / original.parent.name / original.name
            if not link.exists():
                link.symlink_to(original)
    package, theirs = tmp_path / "path" / "petsc4py", Path(petsc4py.__path__[0])
    (package / "lib").mkdir(parents=True)
    for path in [*theirs.iterdir(), *(theirs / "lib").iterdir()]:
        if path.name not in ("lib", "petsc.cfg"):
            (package / path.relative_to(theirs)).symlink_to(path)
    (package / "lib" / "petsc.cfg").write_text(f"PETSC_DIR = {directory}\nPETSC_ARCH =\n")
    return directory


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def no_petsc(petsc):
    shutil.rmtree(petsc)
    petsc.mkdir()  # if the directory is missing, petsc4py looks for another PETSc


def no_hdf5(petsc):
    edit(petsc / "include/petscconf.h", "#define PETSC_HAVE_HDF5 1\n", "")


def serial_hdf5(petsc):
    (petsc / "include/hdf5.h").write_text("#undef H5_HAVE_PARALLEL\n")
    edit(petsc / "lib/petsc/conf/petscvariables", "HDF5_INCLUDE = ", f"HDF5_INCLUDE = -I{petsc}/include ")


def no_petsc4py(petsc):
    shutil.rmtree(petsc.parent / "path" / "petsc4py")
    (petsc.parent / "path" / "petsc4py.py").write_text("raise ModuleNotFoundError(name=__name__)\n")


@pytest.mark.parametrize(
    "fault, sentence",
    [
        (no_petsc, "no PETSc in {petsc} (No such file or directory"),
        (no_hdf5, "the PETSc in {petsc} has no HDF5; configure PETSc with --download-hdf5"),
        (serial_hdf5, "PETSc's HDF5 was built without MPI; build HDF5 with --enable-parallel"),
        (no_petsc4py, "petsc4py is missing, or pip hides it from this build; install it"),
    ],
)
def test_says_what_is_missing(tree, petsc, fault, sentence):
    fault(petsc)
    refused = pip("wheel", tree, PYTHONPATH=str(petsc.parent / "path"))  # asks setup.py what install does
    said = [line for line in refused.stdout.splitlines() if "localckpt: " in line]
    assert refused.returncode != 0
    assert len(said) == 1, refused.stdout
    assert sentence.format(petsc=petsc) in said[0]
    assert "Traceback" not in refused.stdout and "Downloading" not in refused.stdout


@pytest.mark.parametrize(
    "header, name, value, said",
    [
        ("petscversion.h", "PETSC_VERSION_MINOR", "10", r"PETSC \d+\.10 with"),
        ("petscconf.h", "PETSC_USE_COMPLEX", "1", "with complex128 scalars"),
        ("petscconf.h", "PETSC_USE_64BIT_INDICES", "1", "and 64-bit indices"),
    ],
)
def test_another_petsc_than_compiled_for_is_one_sentence(tree, petsc, tmp_path, header, name, value, said):
    """Whatever is imported first, before any module that needs that PETSc is loaded."""
    path = petsc / "include" / header
    text, there = re.subn(rf"(?m)^#define {name} .*$", f"#define {name} {value}", path.read_text())
    path.write_text(text if there else f"#define {name} {value}\n{text}")
    for source in tree.glob("src/*.pyx"):
        if source.name != "_petsc.pyx":
            source.unlink()  # _petsc is asked before the others, and compiles in seconds
    built = run(
        sys.executable,
        "setup.py",
        "-q",
        "build_ext",
        "--inplace",
        cwd=tree,
        PYTHONPATH=str(petsc.parent / "path"),
        CFLAGS="-O0",
    )
    assert built.returncode == 0, built.stdout
    found = os.pathsep.join([str(tree), *BELOW])  # with -S, no .pth file there adds another localckpt
    for statement in (
        "from localckpt import VecFile",
        "from localckpt import LostCheckpointError",
        "import localckpt.storage.store",
    ):
        refused = run(sys.executable, "-S", "-c", statement, cwd=tmp_path, PYTHONPATH=found)
        *_, sentence = refused.stdout.splitlines()
        assert re.match(r"ImportError: localckpt was compiled for .*, but petsc4py uses ", sentence), refused.stdout
        compiled, _, used = sentence.partition(", but petsc4py uses ")
        assert re.search(said, compiled, re.I) and not re.search(said, used, re.I)
        assert f"PETSc {'.'.join(map(str, PETSc.Sys.getVersion()[:2]))} with" in used


def test_source_distribution_and_wheel(tree, tmp_path):
    """Both by the standard tool, the wheel from the sdist, which holds all that compiling, typing and testing need."""
    results = tree / "benchmarks" / "results"
    results.mkdir(parents=True)
    for name in ("report.md", "throughput.svg", "counts.json", "tape-1.json"):
        (results / name).touch()
    made = run(
        sys.executable, "-m", "build", "--no-isolation", "--outdir", tmp_path, cwd=tree, timeout=200, CFLAGS="-O0"
    )
    assert made.returncode == 0, made.stdout
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {
        str(path.relative_to(tree))
        for name in ("src", "localckpt", "tests")
        for path in (tree / name).rglob("*")
        if path.is_file()
    }
    assert wanted | {"LICENSE", "README.md", "pyproject.toml", "setup.py"} <= held
    assert not [name for name in held if name.endswith((".so", ".pyc"))]
    shown = {name for name in held if name.startswith("benchmarks/results/")}
    assert {Path(name).name for name in shown if "." in name} == {"report.md", "throughput.svg", "counts.json"}
    with zipfile.ZipFile(next(tmp_path.glob("localckpt-0.1.0-cp*-linux_*.whl"))) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    compiled = {f"localckpt/{path.stem}{sysconfig.get_config_var('EXT_SUFFIX')}" for path in tree.glob("src/*.pyx")}
    compiled |= {f"localckpt/{path.stem}.so" for path in tree.glob("src/*.c")}
    written = {str(path.relative_to(tree)) for path in (tree / "localckpt").rglob("*") if path.is_file()}
    assert held == compiled | written


def test_source_distribution_needs_no_petsc(tree, tmp_path, petsc):
    no_petsc4py(petsc)
    made = run(
        sys.executable, "setup.py", "-q", "sdist", "-d", tmp_path, cwd=tree, PYTHONPATH=str(petsc.parent / "path")
    )
    assert made.returncode == 0 and next(tmp_path.glob("*.tar.gz")), made.stdout


def test_a_compiled_clone_that_is_not_installed_has_an_unknown_version(tree, tmp_path):
    for module in (ROOT / "localckpt").glob("*.so"):
        shutil.copy(module, tree / "localckpt")
    asked = run(
        sys.executable, "-S", "-c", "import localckpt; print(localckpt.__version__)", cwd=tmp_path, PYTHONPATH=str(tree)
    )
    assert asked.stdout == "0+unknown\n"
