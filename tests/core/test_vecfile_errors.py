"""Reads and writes that fail: one exception, the same on all ranks, that says where."""

import itertools
import re

import h5py
import numpy as np
import pytest
from mpi4py import MPI

from localckpt import ChecksumError, ClosedFileError, FileAccessError, LayoutError, MissingDatasetError, VecFile

WORLD = MPI.COMM_WORLD


@pytest.fixture
def path(shared_tmp, make_vec):
    """A file with 6 real entries of each rank in "u", and integer and complex numbers."""
    with VecFile(WORLD, shared_tmp / "w.h5", "w") as file:
        file.write("u", make_vec(WORLD, 6))
        file.write_array("real", np.arange(6, dtype="f4"))
        file.write_array("integer", np.arange(6, dtype="i4"))
        file.write_array("complex", np.arange(6, dtype="c8"))
    return shared_tmp / "w.h5"


@pytest.mark.parallel([1, 2, 3])
def test_unknown_dataset(path, make_vec, raises_everywhere):
    with VecFile(WORLD, path) as file:
        with raises_everywhere(MissingDatasetError, KeyError, file=path, dataset="v"):
            file.read("v", make_vec(WORLD, 6))
        with pytest.raises(MissingDatasetError, match=re.escape(repr(str(path)))) as caught:
            file.sizes("v")
        assert caught.value.dataset == "v"


@pytest.mark.parallel([1, 2, 3])
@pytest.mark.parametrize("n", [0, 5, 7])
def test_wrong_global_size(path, make_vec, raises_everywhere, n):
    with VecFile(WORLD, path, "a") as file:
        with raises_everywhere(LayoutError, ValueError, file=path, dataset="u", match=f"{6 * WORLD.size} "):
            file.read("u", make_vec(WORLD, n))
        with raises_everywhere(LayoutError, ValueError, file=path, dataset="u"):
            file.write("u", make_vec(WORLD, n))
        with raises_everywhere(LayoutError, ValueError, file=path, dataset="u", match=str((6 * WORLD.size,))):
            file.write("u", make_vec(WORLD, 6, 3))
        back = make_vec(WORLD, 6)
        back.set(0)
        file.read("u", back)  # nothing of it was written
        np.testing.assert_array_equal(back.array_r, make_vec(WORLD, 6).array_r)


@pytest.mark.parallel([2, 3])
def test_wrong_partition(path, make_vec, raises_everywhere):
    # The last rank takes over one entry of the one before, the first whose part differs.
    moved = {WORLD.size - 1: 1, WORLD.size - 2: -1}.get(WORLD.rank, 0)
    with (
        VecFile(WORLD, path) as file,
        raises_everywhere(LayoutError, ValueError, file=path, dataset="u", match="6 entries", rank=WORLD.size - 2),
    ):
        file.read("u", make_vec(WORLD, 6 + moved))


@pytest.mark.parallel([2, 3])
def test_other_number_of_ranks(shared_tmp, make_vec, raises_everywhere):
    path = shared_tmp / "w.h5"
    if WORLD.rank == 0:
        with VecFile(MPI.COMM_SELF, path, "w") as file:
            file.write("u", make_vec(MPI.COMM_SELF, 6 * WORLD.size))
    WORLD.barrier()
    with VecFile(WORLD, path) as file:
        assert file.sizes("u") == (None, 6 * WORLD.size)
        with raises_everywhere(LayoutError, ValueError, file=path, dataset="u", match="by 1 rank"):
            file.read("u", make_vec(WORLD, 6))


@pytest.mark.parallel([1, 2, 3])
@pytest.mark.parametrize(("stored", "wanted"), itertools.permutations(["real", "integer", "complex"], 2))
def test_wrong_kind_of_number(path, raises_everywhere, stored, wanted):
    dtype = {"real": "f4", "integer": "i4", "complex": "c8"}[wanted]
    with (
        VecFile(WORLD, path) as file,
        raises_everywhere(LayoutError, ValueError, file=path, dataset=stored, match=wanted),
    ):
        file.read_array(stored, np.zeros(6, dtype))


@pytest.mark.parallel([1, 2, 3])
def test_text_is_no_numbers(shared_tmp, raises_everywhere):
    path = shared_tmp / "w.h5"
    if WORLD.rank == 0:
        with h5py.File(path, "w") as file:
            file["text"] = ["a", "b"]
    WORLD.barrier()
    with VecFile(WORLD, path) as file, raises_everywhere(LayoutError, ValueError, file=path, dataset="text"):
        file.read_array("text", np.zeros(2))


@pytest.mark.parallel([1, 2, 3])
def test_parts_that_are_no_whole_rows(path, raises_everywhere):
    with VecFile(WORLD, path, "a") as file:
        file.write_array("rows", np.zeros((2, 3)))
        if WORLD.size == 1:  # on several ranks the partition says it first
            file.read_array("rows", np.zeros(6))
        mine = 6 + {0: 1, WORLD.size - 1: -1}.get(WORLD.rank, 0) if WORLD.size > 1 else 5
        with raises_everywhere(LayoutError, ValueError, file=path, dataset="rows"):
            file.read_array("rows", np.zeros(mine))


@pytest.mark.parallel([1, 2, 3])
def test_more_entries_than_petsc_counts(path, raises_everywhere):
    many = np.empty(2**31, "i1")  # memory that is never touched
    with VecFile(WORLD, path) as file, raises_everywhere(LayoutError, ValueError):
        file.read_array("integer", many)


@pytest.mark.parallel([1, 2, 3])
def test_writing_in_mode_r(path, make_vec, raises_everywhere):
    with VecFile(WORLD, path) as file:
        with raises_everywhere(FileAccessError, PermissionError, file=path, dataset="v", match="reading only"):
            file.write("v", make_vec(WORLD, 6))
        with raises_everywhere(FileAccessError, PermissionError, file=path, dataset="v", match="reading only"):
            file.write_array("v", np.arange(3))
        assert "v" not in file


@pytest.mark.parallel([1, 2, 3])
def test_closed_file(path, make_vec, raises_everywhere):
    file, vec, array = VecFile(WORLD, path, "a"), make_vec(WORLD, 6), np.zeros(6)
    file.close()
    for use in (
        lambda: file.write("u", vec),
        lambda: file.read("u", vec),
        lambda: file.write_array("u", array),
        lambda: file.read_array("u", array),
        file.names,
        file.flush,
        lambda: "u" in file,
        lambda: file.sizes("u"),
        lambda: file.read_array("u", array[::2]),
    ):
        with raises_everywhere(ClosedFileError, ValueError, match=repr(str(path))):
            use()


@pytest.mark.parallel([1, 2, 3])
@pytest.mark.parametrize("name", ["", None, 3, b"u", "\ud800"], ids=repr)
def test_bad_name(path, make_vec, name):
    vec, array = make_vec(WORLD, 6), np.zeros(6)
    with VecFile(WORLD, path, "a") as file:
        before = file.names()
        for use in (
            lambda: file.write(name, vec),
            lambda: file.read(name, vec),
            lambda: name in file,
            lambda: file.write_array(name, array),
            lambda: file.sizes(name),
        ):
            with pytest.raises((ValueError, TypeError)):
                use()
        assert file.names() == before


@pytest.mark.parallel([1, 2, 3])
@pytest.mark.parametrize("dtype", ["?", "f2", "g", ">f8", ">i4", "U3", "S3", "O", "M8[s]", "i4,f8"])
def test_unsupported_dtype(path, raises_everywhere, dtype):
    with VecFile(WORLD, path, "a") as file:
        with raises_everywhere(TypeError, match="dtype"):
            file.write_array("new", np.zeros(3, dtype))
        assert "new" not in file
        with pytest.raises((TypeError, LayoutError)):
            file.read_array("u", np.zeros(6, dtype))


@pytest.mark.parallel([1, 2, 3])
@pytest.mark.parametrize("array", [np.zeros(12)[::2], np.frombuffer(bytes(48))], ids=["strided", "read-only"])
def test_array_that_cannot_be_filled(path, raises_everywhere, array):
    with (
        VecFile(WORLD, path) as file,
        raises_everywhere(LayoutError, ValueError, file=path, dataset="u", match="writeable"),
    ):
        file.read_array("u", array)


# -----------------------------------------------------------------------------
# Checksums
# -----------------------------------------------------------------------------


@pytest.fixture
def spoil(path):
    """spoil(dataset): change its last number behind its checksum's back."""

    def change(dataset):
        WORLD.barrier()
        if WORLD.rank == 0:
            with h5py.File(path, "r+") as file:
                numbers = file[dataset][...]
                numbers.reshape(-1)[-1] += 1
                file[dataset][...] = numbers
        WORLD.barrier()

    return change


@pytest.mark.parallel([1, 2, 3])
@pytest.mark.parametrize("name", ["u", "real", "integer", "complex"])
def test_other_numbers_than_were_stored(path, spoil, make_vec, raises_everywhere, name):
    spoil(name)
    with VecFile(WORLD, path) as file:
        with raises_everywhere(ChecksumError, OSError, dataset=name, match=repr(str(path))):
            if name == "u":
                file.read("u", make_vec(WORLD, 6))
            else:
                file.read_array(name, np.empty(6, {"real": "f4", "integer": "i4", "complex": "c8"}[name]))
        for other, dtype in (("real", "f4"), ("integer", "i4")):
            if other != name:
                file.read_array(other, np.empty(6, dtype))


@pytest.mark.parallel([2, 3])
def test_parts_of_two_ranks_in_each_others_place(shared_tmp, raises_everywhere):
    with VecFile(WORLD, path := shared_tmp / "w.h5", "w") as file:
        file.write_array("i", np.full(3, WORLD.rank))
    WORLD.barrier()
    if WORLD.rank == 0:
        with h5py.File(path, "r+") as file:
            file["i"][...] = file["i"][...][::-1]
    WORLD.barrier()
    with VecFile(WORLD, path) as file, raises_everywhere(ChecksumError, OSError, dataset="i"):
        file.read_array("i", np.empty(3, int))


@pytest.mark.parallel([1, 2, 3])
@pytest.mark.parametrize("dtype", ["f4", "i4"])
def test_checksum_follows_what_is_written_again(path, spoil, dtype):
    name = {"f4": "real", "i4": "integer"}[dtype]
    spoil(name)
    with VecFile(WORLD, path, "a") as file:
        for array in (np.arange(6, dtype=dtype) + 5, np.zeros(6, dtype)):
            file.write_array(name, array)
            file.read_array(name, back := np.empty(6, dtype))
            np.testing.assert_array_equal(back, array)


@pytest.mark.parallel([1, 2, 3])
def test_numbers_that_are_converted_are_read_without_a_checksum(path):
    with VecFile(WORLD, path) as file:
        file.read_array("real", back := np.empty(6))
        file.read_array("integer", wide := np.empty(6, int))
    np.testing.assert_array_equal([back, wide], [np.arange(6)] * 2)


@pytest.mark.parallel([1, 2, 3])
def test_dataset_without_a_checksum_is_read(path, spoil):
    spoil("real")
    if WORLD.rank == 0:
        with h5py.File(path, "r+") as file:
            del file["real"].attrs["localckpt_checksum"]
    WORLD.barrier()
    with VecFile(WORLD, path) as file:
        file.read_array("real", np.empty(6, "f4"))
