"""NumPy arrays in files, and the names things are stored under."""

import h5py
import numpy as np
import pytest
from mpi4py import MPI

from localckpt import LayoutError, VecFile

WORLD = MPI.COMM_WORLD

DTYPES = ["f4", "f8", "c8", "c16", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"]

NAMES = [
    "u",
    "/",
    "//",
    "a/b",
    "/lead",
    "trail/",
    "./a",
    ".",
    "..",
    "...",
    "%",
    "%%",
    "a%2Fb",
    "%252F",
    "%2E",
    "%00",
    "%layouts",
    "%layouts/0",
    "a b",
    " ",
    "\n",
    "ünï ☃",
    "\0",
    "x\0y",
    "\udcff",
    "long" * 1000,
]


def filled(shape, dtype):
    """Numbers up to the limits of their type, different on every rank."""
    numbers = np.random.default_rng(WORLD.rank).integers(-(2**31), 2**31, np.prod(shape, dtype=int))
    kind = np.dtype(dtype).kind
    numbers = numbers / 3 if kind == "f" else numbers * (1 / 3 - 1j / 7) if kind == "c" else numbers
    array = numbers.astype(dtype)
    if kind in "iu" and array.size:
        array[-1], array[0] = np.iinfo(dtype).min, np.iinfo(dtype).max
    return array.reshape(shape)


def round_trip(path, array):
    """What is read after `array` was written and the file opened again."""
    with VecFile(WORLD, path, "w") as file:
        file.write_array("a", array)
    back = np.full(array.shape, 77, array.dtype)
    with VecFile(WORLD, path) as file:
        file.read_array("a", back)
    return back


@pytest.mark.parallel([1, 2, 3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_array_round_trip(shared_tmp, dtype):
    array = filled(3 + WORLD.rank, dtype)
    np.testing.assert_array_equal(round_trip(shared_tmp / "a.h5", array), array)


@pytest.mark.parallel([1, 2, 3])
@pytest.mark.parametrize("dtype", ["f8", "f4", "c16", "i4"])
@pytest.mark.parametrize("row", [(3,), (2, 3), (1,), (0,)])
def test_array_of_several_dimensions(shared_tmp, dtype, row):
    array = filled((2 + WORLD.rank, *row), dtype)
    np.testing.assert_array_equal(round_trip(shared_tmp / "a.h5", array), array)


@pytest.mark.parallel([2, 3])
@pytest.mark.parametrize("dtype", ["f8", "c8", "u2"])
def test_array_on_ranks_without_rows(shared_tmp, dtype):
    array = filled((4 if WORLD.rank == 1 else 0, 3), dtype)
    np.testing.assert_array_equal(round_trip(shared_tmp / "a.h5", array), array)


@pytest.mark.parallel([1, 2, 3])
@pytest.mark.parametrize("dtype", ["f8", "c8", "u2"])
def test_array_without_entries(shared_tmp, dtype):
    assert round_trip(shared_tmp / "a.h5", np.empty((0,), dtype)).size == 0
    with VecFile(WORLD, shared_tmp / "a.h5") as file:
        assert file.sizes("a") == (0, 0)


@pytest.mark.parallel([1, 2, 3])
@pytest.mark.parametrize("dtype", ["f8", "f4"])
@pytest.mark.parametrize(
    "view",
    [lambda a: a.T, lambda a: a[::2], lambda a: a[:, 1:], lambda a: a[::-1]],
    ids=["transposed", "strided", "columns", "reversed"],
)
def test_array_that_is_not_contiguous(shared_tmp, dtype, view):
    array = view(filled((4, 4), dtype))
    np.testing.assert_array_equal(round_trip(shared_tmp / "a.h5", array), array)


@pytest.mark.parallel([1, 2, 3])
@pytest.mark.parametrize("dtype", ["f8", "c16", "i4"])
def test_array_read_only_is_written(shared_tmp, dtype):
    array = filled(4, dtype)
    array.flags.writeable = False
    np.testing.assert_array_equal(round_trip(shared_tmp / "a.h5", array), array)


@pytest.mark.parallel([1, 2, 3])
@pytest.mark.parametrize("dtype", ["f8", "c8", "i4"])
def test_array_written_again_replaces(shared_tmp, dtype):
    array = filled((3, 2), dtype)
    with VecFile(WORLD, shared_tmp / "a.h5", "w") as file:
        file.write_array("a", array)
        file.write_array("a", -array)
        file.read_array("a", back := np.empty_like(array))
        assert file.names() == ["a"]
    np.testing.assert_array_equal(back, -array)


@pytest.mark.parallel([1, 2, 3])
@pytest.mark.parametrize("old", ["f4", "f8", "c8", "c16", "i2", "i8"])
@pytest.mark.parametrize("new", ["f4", "f8", "c8", "c16", "i2", "i8"])
def test_overwriting_with_other_numbers_loses_nothing(shared_tmp, old, new):
    # Either LayoutError, with the old numbers still there, or the new ones as given.
    array, other = filled(4, old), filled(4, new)
    with VecFile(WORLD, shared_tmp / "a.h5", "w") as file:
        file.write_array("a", array)
        expected = other
        try:
            file.write_array("a", other)
        except LayoutError:
            expected = array
        back = np.empty_like(expected)
        file.read_array("a", back)
    np.testing.assert_array_equal(back, expected)


@pytest.mark.parallel([1, 2, 3])
def test_complex_numbers_do_not_replace_pairs_of_reals(shared_tmp, raises_everywhere):
    pairs = filled((4, 2), "f4")
    with VecFile(WORLD, path := shared_tmp / "a.h5", "w") as file:
        file.write_array("a", pairs)
        with raises_everywhere(LayoutError, ValueError, file=path, dataset="a"):
            file.write_array("a", filled(4, "c8"))
        file.read_array("a", back := np.empty_like(pairs))
    np.testing.assert_array_equal(back, pairs)


@pytest.mark.parallel([1, 2, 3])
@pytest.mark.parametrize(("stored", "wanted"), [("i8", "i1"), ("i4", "u4"), ("u8", "i8"), ("f8", "f4"), ("c16", "c8")])
def test_reading_into_a_narrower_type_is_refused(shared_tmp, raises_everywhere, stored, wanted):
    with VecFile(WORLD, path := shared_tmp / "a.h5", "w") as file:
        file.write_array("a", filled(4, stored))
        with raises_everywhere(LayoutError, ValueError, file=path, dataset="a"):
            file.read_array("a", np.empty(4, wanted))


@pytest.mark.parallel([1, 2, 3])
def test_vec_reads_what_was_written_as_array(shared_tmp, make_vec):
    vec = make_vec(WORLD, 6)
    with VecFile(WORLD, shared_tmp / "a.h5", "w") as file:
        file.write_array("a", vec.array_r.reshape(3, 2))
        back = vec.duplicate()
        file.read("a", back)
    np.testing.assert_array_equal(back.array_r, vec.array_r)


# -----------------------------------------------------------------------------
# Names
# -----------------------------------------------------------------------------


@pytest.mark.parallel([1, 2, 3])
def test_any_names_live_side_by_side(shared_tmp):
    with VecFile(WORLD, shared_tmp / "n.h5", "w") as file:
        for i, name in enumerate(NAMES):
            file.write_array(name, np.full(2, 1.0 * i + WORLD.rank))  # by PETSc
            file.write_array("int" + name, np.full(2, i + WORLD.rank))  # by HDF5 alone
    with VecFile(WORLD, shared_tmp / "n.h5") as file:
        assert file.names() == sorted([*NAMES, *("int" + name for name in NAMES)])
        for i, name in enumerate(NAMES):
            assert name in file
            assert file.sizes(name) == (2, 2 * WORLD.size)
            file.read_array(name, real := np.zeros(2))
            file.read_array("int" + name, integer := np.zeros(2, int))
            assert real.tolist() == integer.tolist() == [i + WORLD.rank] * 2, name


@pytest.mark.parallel([1, 2, 3])
@pytest.mark.parametrize(
    "name", ["u", "a/b", ".", "..", "/", "%layouts", "%layouts/0", "%layouts/", "a\0", "%2E", "%61"]
)
def test_what_was_not_written_is_not_in(shared_tmp, name):
    with VecFile(WORLD, shared_tmp / "n.h5", "w") as file:
        assert file.names() == []
        file.write_array("a", np.zeros(2))
        assert name not in file
        assert file.names() == ["a"]


@pytest.mark.parallel([1, 2])
def test_an_encoded_name_is_no_name(shared_tmp):
    with VecFile(WORLD, shared_tmp / "n.h5", "w") as file:
        file.write_array("a/b", np.zeros(2))
        assert "a/b" in file and "a%2Fb" not in file


@pytest.mark.parallel([1, 2])
@pytest.mark.parametrize("ndim, dtype", [(40, "i4"), (33, "i4"), (33, "f4"), (32, "c8")])
def test_arrays_of_more_dimensions_than_hdf5_has_are_refused(shared_tmp, raises_everywhere, ndim, dtype):
    with VecFile(WORLD, shared_tmp / "n.h5", "w") as file:
        with raises_everywhere(LayoutError, ValueError, dataset="a", match="dimensions"):
            file.write_array("a", np.zeros((1,) * ndim, dtype))
        file.write_array("b", np.ones((1,) * 31, dtype))
        file.read_array("b", back := np.zeros((1,) * 31, dtype))
        assert back.all() and file.names() == ["b"]


@pytest.mark.parallel([1, 2, 3])
def test_slash_makes_no_group(shared_tmp):
    with VecFile(WORLD, shared_tmp / "n.h5", "w") as file:
        file.write_array("a/b", np.zeros(2))
    WORLD.barrier()
    with h5py.File(shared_tmp / "n.h5", "r") as file:
        assert "a%2Fb" in file and "a" not in file
