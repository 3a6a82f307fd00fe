"""Arrays in single precision: half the bytes, each number the nearest float32, and nothing else changed."""

import os
import resource
import tracemalloc

import h5py
import numpy as np
import pytest
from mpi4py import MPI
from petsc4py import PETSc

from localckpt import ChecksumError, LayoutError, LostCheckpointError, VecFile
from localckpt.storage import store as store_module
from localckpt.storage.directories import Tier
from localckpt.storage.single import KEPT
from localckpt.storage.store import Store
from localckpt.storage.stored import MAP_FROM

WORLD = MPI.COMM_WORLD
SINGLE = {np.dtype(float): np.float32, np.dtype(complex): np.complex64}
DTYPES = list(SINGLE)
# PETSc's numbers in double precision, whichever precision it has
DOUBLE = np.result_type(PETSc.ScalarType, np.float64)
BEYOND = 1e39


@pytest.fixture(autouse=True)
def not_warned_yet(monkeypatch):
    monkeypatch.setattr(store_module, "_warned_of_range", False)


@pytest.fixture
def warnings(caplog):
    """warnings(): what was logged about the range."""
    return lambda: [record for record in caplog.records if "beyond the range of single" in record.getMessage()]


@pytest.fixture
def own(tmp_path):
    """A store of this rank alone, direct engine."""
    return Store(MPI.COMM_SELF, str(tmp_path / "own.h5"))


def values(size, seed, dtype=DTYPES[0]):
    found = np.random.default_rng([seed, WORLD.rank]).standard_normal((size, 2))
    return np.ascontiguousarray(found[:, 0] + 1j * found[:, 1] if dtype.kind == "c" else found[:, 0])


def nearest(array):
    with np.errstate(all="ignore"):
        return array.astype(SINGLE[array.dtype]).astype(array.dtype)


def read(store, stored, array):
    return store.get(stored, array.shape, array.dtype)


@pytest.mark.parallel([1, 3])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [0, 1, 1000, 150_000])
def test_each_number_comes_back_as_the_nearest_in_single_precision(store, size, dtype):
    arrays = [values(size + WORLD.rank, seed, dtype) for seed in range(3)]
    stored = [store.put("a", array, single=True) for array in arrays]
    for one, array in zip(stored, arrays):
        np.testing.assert_array_equal(read(store, one, array), nearest(array))


def test_the_error_is_as_small_as_the_manual_says(own):
    array = np.frombuffer(np.random.default_rng(1).bytes(8 * 200_000))  # any bits, so any exponent
    array = array[np.abs(array) < 1e38]
    array = np.concatenate([array, 10 ** np.random.default_rng(2).uniform(-46, 38, 100_000)])
    error = np.abs(read(own, own.put("a", array, single=True), array) - array)
    smallest = np.array([2.0**-149]).astype(np.float32)[0]  # 0 if kernels of Firedrake's are loaded (-ffast-math)
    assert (error <= np.maximum(2.0**-24 * np.abs(array), 2.0**-150 if smallest else 2.0**-126)).all()
    assert error.max() > 0


@pytest.mark.parallel([1, 2])
def test_bytes_on_disk_are_half_and_counted(store):
    exact, single = store.put("a", values(1000, 1)), store.put("a", values(1000, 2), single=True)
    summary = store.summary
    assert (exact.nbytes, single.nbytes) == (8000, 4000)
    assert (summary.written, summary.saved, summary.rounded) == (12_000, 12_000, 4000)
    assert "0.004 MB written, 0.008 MB exact" in str(summary)


def test_the_summary_says_nothing_of_rounding_where_nothing_was_rounded(own):
    own.put("a", values(10, 1))
    assert "rounded" not in str(own.summary)


@pytest.mark.parallel([1, 2])
def test_infinity_and_nan_stay_what_they_are(store, warnings):
    array = np.array([np.inf, -np.inf, np.nan, -0.0, 1 / 3])
    with np.errstate(all="raise"):
        found = read(store, store.put("a", array, single=True), array)
    np.testing.assert_array_equal(found, nearest(array))
    assert np.signbit(found[3]) and not warnings()


@pytest.mark.parallel([1, 3])
def test_values_beyond_the_range_keep_an_array_exact_on_all_ranks_of_its_file(store, comm, warnings):
    array = values(100, 1)
    if WORLD.rank == WORLD.size - 1:
        array[50] = BEYOND
    stored = [store.put("a", array, single=True) for _ in range(2)]
    beyond = BEYOND in comm.allgather(array.max())
    for one in stored:
        assert one.rounded is not beyond
        np.testing.assert_array_equal(read(store, one, array), array if beyond else nearest(array))
    assert len(warnings()) == (WORLD.rank == WORLD.size - 1)  # once


@pytest.mark.parallel([1, 3])
def test_ranks_of_a_file_go_on_after_an_array_beyond_the_range(store):
    arrays = [values(100, seed) for seed in range(12)]
    for number, array in enumerate(arrays):
        if number % 3 == WORLD.rank:
            array[0] = BEYOND
    stored = [store.put("a", array, single=True) for array in arrays]
    for one, array in zip(stored, arrays):
        np.testing.assert_array_equal(read(store, one, array), nearest(array) if one.rounded else array)


@pytest.mark.parallel([1, 2])
def test_a_rank_that_has_failed_keeps_no_other_waiting(store, comm):
    stored = [store.put("a", values(100, seed), single=True) for seed in range(3)]
    if WORLD.rank == WORLD.size - 1:
        store.failure = LostCheckpointError("as if the disk had failed")
    errors = 0
    for seed in range(20):
        try:
            stored.append(store.put("a", values(100, seed + 3), single=True))
        except LostCheckpointError:
            errors += 1
    assert errors > 0 if comm.size > 1 or WORLD.rank == WORLD.size - 1 else errors == 0


@pytest.mark.parallel([1, 2])
def test_entries_that_do_not_matter_may_be_beyond_the_range(store, warnings):
    array = values(70_000, 1)
    array[100:] = BEYOND
    stored = store.put("a", array, 100, single=True)
    np.testing.assert_array_equal(read(store, stored, array)[:100], nearest(array[:100]))
    assert stored.rounded and not warnings()


@pytest.mark.parallel([1, 2])
@pytest.mark.parametrize("dtype", ["float32", "complex64", "int64", "uint8"])
def test_other_numbers_are_stored_exactly(store, dtype):
    array = np.arange(100).astype(dtype)
    stored = store.put("a", array, single=True)
    assert not stored.rounded and (read(store, stored, array) == array).all()


def test_rounded_bytes_are_stored_once(own):
    array = values(1000, 1)
    assert own.put("a", array, single=True) is own.put("a", array.copy(), single=True)


@pytest.mark.parametrize("first", [True, False], ids=["rounded first", "exact first"])
def test_exact_and_rounded_rows_of_one_content_are_kept_apart(own, first):
    array = values(1000, 1)
    rows = {single: own.put("a", array, single=single) for single in (first, not first)}
    np.testing.assert_array_equal(read(own, rows[False], array), array)
    np.testing.assert_array_equal(read(own, rows[True], array), nearest(array))


@pytest.mark.parametrize("offset", [0, 4 * 10**5 - 1], ids=["first", "last"])
def test_bytes_that_changed_on_disk_are_an_error(tmp_path, offset):
    store = Store(MPI.COMM_SELF, str(tmp_path / "own.h5"), cleanup=False)
    array = values(10**5, 1)
    stored = store.put("a", array, single=True)
    with open(store.path, "r+b") as file:
        file.seek(stored.row.offset + offset)
        file.write(b"!")
    with pytest.raises(ChecksumError, match=r"own\.h5'.*dataset 'a~float32'"):
        read(store, stored, array)


@pytest.mark.parallel([1, 2])
def test_an_array_that_is_given_is_filled(store):
    array, out = values(70_000, 1), np.empty(70_000)
    assert store.get(store.put("a", array, single=True), out=out) is out
    np.testing.assert_array_equal(out, nearest(array))


@pytest.mark.parametrize(
    "out, error, words",
    [
        (np.empty(5), LayoutError, "80 bytes are stored, the array to read them into has 40"),
        (np.empty(10, np.int64), LayoutError, "rounded to single precision are not read into an array of int64"),
        (np.empty((10, 2))[:, 0], ValueError, "the array to fill is not C-contiguous"),
    ],
    ids=["size", "type", "stride"],
)
def test_an_array_that_cannot_be_filled_is_refused(own, out, error, words):
    stored = own.put("a", values(10, 1), single=True)
    with pytest.raises(error, match=words):
        own.get(stored, out=out)


def test_a_save_and_a_restore_hold_no_second_copy(own):
    array = values(10**6, 1)
    tracemalloc.start()
    try:
        stored = own.put("a", array, single=True)
        saving = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        restored = read(own, stored, array)
        restoring = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert saving < array.nbytes / 10 and restoring < 1.1 * restored.nbytes


@pytest.mark.parallel(1)
@pytest.mark.parametrize("dtype", DTYPES)
def test_an_array_that_is_restored_again_is_nobody_elses(own, dtype):
    array = values(MAP_FROM // 8, 1, dtype)
    stored = own.put("a", array, single=True)
    first = read(own, stored, array)
    assert stored.wide() is not None  # the second one is a mapping of this
    first[:] = 0
    np.testing.assert_array_equal(read(own, stored, array), nearest(array))
    assert not first.any()


@pytest.mark.parallel(1)
def test_few_widened_copies_stay_in_memory(own):
    arrays = [values(MAP_FROM // 8, seed) for seed in range(KEPT + 1)]
    stored = [own.put("a", array, single=True) for array in arrays]
    for one, array in zip(stored, arrays):
        np.testing.assert_array_equal(read(own, one, array), nearest(array))
    assert [one.wide() is None for one in stored] == [True] + KEPT * [False]


def test_without_memory_for_a_widened_copy_an_array_is_read(own):
    array = values(MAP_FROM // 8, 1)
    stored = own.put("a", array, single=True)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # of a file in memory, too
    try:
        np.testing.assert_array_equal(read(own, stored, array), nearest(array))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert stored.wide() is None


def test_a_forked_child_reads_what_its_parent_has_rounded(own):
    arrays = [values(MAP_FROM // 8, seed) for seed in range(2)]
    stored = [own.put("a", array, single=True) for array in arrays]
    read(own, stored[0], arrays[0])  # the parent has a copy of the first, in a file in memory that the child has, too
    child = os.fork()
    if child == 0:
        right = all(np.array_equal(read(own, one, array), nearest(array)) for one, array in zip(stored, arrays))
        os._exit(0 if right else 1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parallel([1, 2])
def test_arrays_that_do_not_fit_go_to_the_next_directory_rounded(tmp_path, store_of):
    arrays = [values(1000, seed) for seed in range(10)]
    store = store_of(tmp_path, limit=20_000)
    stored = [store.put("a", array, single=True) for array in arrays]
    assert len({one.file for one in stored}) == 2
    for one, array in zip(stored, arrays):
        np.testing.assert_array_equal(read(store, one, array), nearest(array))


@pytest.fixture(params=["direct", "viewer"])
def store_of(request, comm, path):
    """store_of(directory, limit): a store that goes on there."""
    return lambda directory, limit: Store(
        comm, path, engine=request.param, limit=limit, tiers=[Tier(str(directory))], later_engine=request.param
    )


@pytest.fixture
def kept(comm, path):
    """Rounded arrays of PETSc's numbers in a file that was kept; where each rank's are, the path."""
    store = Store(comm, path, cleanup=False)
    arrays = [values(20 + WORLD.rank, seed, DOUBLE) for seed in range(3)]
    held = [store.put("a", array, single=True) for array in arrays]
    store.retire()
    del store, held
    WORLD.barrier()
    return arrays, path


@pytest.mark.parallel([1, 2])
def test_a_kept_file_is_read_by_h5py(kept, comm):
    arrays, path = kept
    with h5py.File(path, "r", locking=False) as file:
        found = file[f"a~{np.dtype(SINGLE[DOUBLE])}"][:3]
    assert found.dtype == np.float32
    expected = np.concatenate(comm.allgather(np.stack([nearest(array) for array in arrays])), axis=1)
    np.testing.assert_array_equal(found.reshape(3, -1).astype(float).view(DOUBLE), expected)


@pytest.mark.parallel([1, 2])
@pytest.mark.parametrize("reader", ["PETSc", "VecFile"])
def test_a_kept_file_is_read_into_vecs_of_any_precision(kept, comm, reader):
    arrays, path = kept
    name = f"a~{np.dtype(SINGLE[DOUBLE])}"
    vec = PETSc.Vec().createMPI((arrays[0].size, None), comm=comm)
    vec.setName(name)
    if reader == "PETSc":
        viewer = PETSc.ViewerHDF5().create(path, "r", comm=comm)
        viewer.pushTimestepping()
    else:
        file = VecFile(comm, path)
    for step, array in enumerate(arrays):
        if reader == "PETSc":
            viewer.setTimestep(step)
            vec.load(viewer)
        else:
            file.read(name, vec, timestep=step)
        np.testing.assert_array_equal(vec.array_r, nearest(array))
    viewer.destroy() if reader == "PETSc" else file.close()


@pytest.mark.parallel([1, 2])
def test_a_timestep_in_single_precision_is_verified_by_vecfile(kept, comm):
    arrays, path = kept
    dtype = np.dtype(SINGLE[DOUBLE])
    found = np.empty(arrays[1].size, dtype)
    with VecFile(comm, path) as file:
        file.read_array(f"a~{dtype}", found, timestep=1)
    np.testing.assert_array_equal(found, arrays[1].astype(dtype))
