"""Files that cannot be opened: one exception, the same on all ranks, that says why."""

import os
import pickle

import numpy as np
import pytest
from mpi4py import MPI
from petsc4py import PETSc

from localckpt import (
    ClosedFileError,
    ExistingFileError,
    FileAccessError,
    LayoutError,
    MissingDatasetError,
    MissingFileError,
    NotHDF5Error,
    StorageError,
    TransferError,
    VecFile,
)

WORLD = MPI.COMM_WORLD

KINDS = {
    MissingFileError: FileNotFoundError,
    ExistingFileError: FileExistsError,
    FileAccessError: PermissionError,
    NotHDF5Error: OSError,
    MissingDatasetError: KeyError,
    LayoutError: ValueError,
    ClosedFileError: ValueError,
    TransferError: OSError,
}


@pytest.fixture
def path(shared_tmp, make_vec):
    """A file with a Vec in it."""
    with VecFile(WORLD, shared_tmp / "w.h5", "w") as file:
        file.write("u", make_vec(WORLD, 6))
    return shared_tmp / "w.h5"


def on_rank_0(make):
    """Let rank 0 prepare a file while the others wait."""
    if WORLD.rank == 0:
        make()
    WORLD.barrier()


# -----------------------------------------------------------------------------
# The exceptions themselves
# -----------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "builtin"), KINDS.items())
def test_exceptions_are_the_documented_builtins(kind, builtin):
    assert issubclass(kind, StorageError) and issubclass(kind, builtin)


@pytest.mark.parametrize("kind", [StorageError, *KINDS])
def test_exceptions_pickle(kind):
    error = kind("cause", "w.h5", "u", 1, 5)
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is kind and str(back) == str(error) and vars(back) == vars(error)
    assert str(back) == "cause [file 'w.h5', dataset 'u', rank 1]"


# -----------------------------------------------------------------------------
# Opening
# -----------------------------------------------------------------------------


@pytest.mark.parallel([1, 2, 3])
@pytest.mark.parametrize("mode", ["r", "w", "x", "a"])
def test_missing_folder(shared_tmp, raises_everywhere, mode):
    path = shared_tmp / "missing" / "w.h5"
    with raises_everywhere(MissingFileError, FileNotFoundError, file=path, match="No such file"):
        VecFile(WORLD, path, mode)


@pytest.mark.parallel([1, 2, 3])
@pytest.mark.parametrize("leaf", ["missing.h5", "missing/../w.h5", ""])
def test_missing_file(shared_tmp, raises_everywhere, leaf):
    path = f"{shared_tmp}/{leaf}" if leaf else ""
    with raises_everywhere(MissingFileError, FileNotFoundError, file=path):
        VecFile(WORLD, path)


@pytest.mark.parallel([1, 2, 3])
@pytest.mark.parametrize("mode", ["r", "w", "x", "a"])
def test_file_as_folder(path, raises_everywhere, mode):
    with raises_everywhere(MissingFileError, FileNotFoundError, file=path / "w.h5", match="Not a directory"):
        VecFile(WORLD, path / "w.h5", mode)


@pytest.mark.parallel([1, 2, 3])
@pytest.mark.parametrize("mode", ["r", "w", "a"])
def test_folder_as_file(shared_tmp, raises_everywhere, mode):
    with raises_everywhere(TransferError, OSError, file=shared_tmp, match="Is a directory"):
        VecFile(WORLD, shared_tmp, mode)


@pytest.mark.parallel([1, 2, 3])
@pytest.mark.parametrize("kind", ["file", "folder", "link", "dangling link", "fifo"])
def test_exclusive_creation_of_what_exists(shared_tmp, raises_everywhere, kind):
    path = shared_tmp / "w.h5"
    on_rank_0(
        {
            "file": path.touch,
            "folder": path.mkdir,
            "link": lambda: path.symlink_to(shared_tmp),
            "dangling link": lambda: path.symlink_to("missing.h5"),
            "fifo": lambda: os.mkfifo(path),
        }[kind]
    )
    before = path.lstat()
    WORLD.barrier()
    with raises_everywhere(ExistingFileError, FileExistsError, file=path, match="exists"):
        VecFile(WORLD, path, "x")
    assert path.lstat() == before and not (shared_tmp / "missing.h5").exists()


@pytest.mark.parallel([1, 2, 3])
@pytest.mark.parametrize("mode", ["r", "a"])
@pytest.mark.parametrize("content", [b"no HDF5 at all" * 1000, b"\x89HDF\r\n\x1a\n"], ids=["text", "signature"])
def test_other_content(shared_tmp, raises_everywhere, mode, content):
    path = shared_tmp / "w.h5"
    on_rank_0(lambda: path.write_bytes(content))
    with raises_everywhere(NotHDF5Error, OSError, file=path):
        VecFile(WORLD, path, mode)
    assert path.read_bytes() == content


@pytest.mark.parallel([1, 2, 3])
def test_empty_file(shared_tmp, raises_everywhere):
    path = shared_tmp / "w.h5"
    on_rank_0(path.touch)
    with raises_everywhere(NotHDF5Error, OSError, file=path):
        VecFile(WORLD, path)
    with VecFile(WORLD, path, "a") as file:  # nothing is lost by writing into it
        file.write_array("a", np.zeros(3))
    with VecFile(WORLD, path) as file:
        assert file.names() == ["a"]


@pytest.mark.parallel([1, 2, 3])
@pytest.mark.parametrize("mode", ["r", "a"])
@pytest.mark.parametrize("keep", [0.01, 0.5, 0.99])
def test_truncated_file(path, raises_everywhere, mode, keep):
    content = path.read_bytes()
    WORLD.barrier()
    on_rank_0(lambda: path.write_bytes(content[: int(keep * len(content))]))
    with raises_everywhere(NotHDF5Error, OSError, file=path):
        VecFile(WORLD, path, mode)


@pytest.mark.parallel([1, 2, 3])
def test_failed_opening_leaves_the_next_one_alone(path, shared_tmp, raises_everywhere):
    for mode in "rwa":
        with raises_everywhere(MissingFileError, FileNotFoundError):
            VecFile(WORLD, shared_tmp / "missing" / "w.h5", mode)
    with VecFile(WORLD, path) as file:
        assert "u" in file


@pytest.mark.parallel([1, 2, 3])
def test_freed_communicator(path, raises_everywhere):
    comm = WORLD.Dup()
    comm.Free()
    for mode in "rwa":
        with raises_everywhere(ClosedFileError, ValueError):
            VecFile(comm, path, mode)


@pytest.mark.parallel([1, 2, 3])
@pytest.mark.parametrize("comm", [MPI.COMM_NULL, PETSc.COMM_NULL, None, 0], ids=["MPI", "PETSc", "None", "0"])
def test_no_communicator(path, raises_everywhere, comm):
    with raises_everywhere(ClosedFileError, ValueError):
        VecFile(comm, path)


@pytest.mark.parallel([1, 2, 3])
@pytest.mark.parametrize("mode", ["", "wx", "rw", "R", None])
def test_bad_mode(path, raises_everywhere, mode):
    with raises_everywhere(ValueError, match=repr(mode)):
        VecFile(WORLD, path, mode)
