"""What every engine has to do: the same tests for each, on a file per rank and on a file of all ranks."""

import gc
import os

import h5py
import numpy as np
import pytest
from mpi4py import MPI

from localckpt import LayoutError, TransferError, VecFile
from localckpt.storage.engines import ENGINES

WORLD = MPI.COMM_WORLD


@pytest.fixture(params=ENGINES)
def make_engine(request, comm, path):
    """make_engine(recycle=True, limit=inf): an engine that writes to a new file."""

    def make(recycle=True, **limit):
        return ENGINES[request.param](VecFile(comm, path, "w"), recycle, **limit)

    return make


def values(size, seed):
    return np.random.default_rng([seed, WORLD.rank]).standard_normal(size)


def save(engine, key, array):
    """What Store does for each array."""
    error = engine.prepare(key, array, None) if engine.shared else None
    if error is not None:
        raise error
    return engine.write(key, array)


def read(row, size):
    array = np.empty(size)
    row.read(array)
    return array


def place(row):
    """What tells one row of a key from another."""
    return row.number if hasattr(row, "number") else row.offset


def open_files(path):
    """This process's open files that have, or had, this name."""
    links = []
    for number in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink(f"/proc/self/fd/{number}"))
        except OSError:
            pass  # the listing's own descriptor
    return [link for link in links if link.startswith(os.path.realpath(path))]


@pytest.mark.parallel([1, 2, 3])
@pytest.mark.parametrize("size", [1, 1000, 50_000])
def test_arrays_come_back(make_engine, size):
    engine = make_engine()
    rows = [save(engine, "a", values(size, seed)) for seed in range(10)]
    for seed, row in enumerate(rows):
        np.testing.assert_array_equal(read(row, size), values(size, seed))


@pytest.mark.parallel([1, 3])
def test_ranks_without_entries_take_part(make_engine):
    engine, size = make_engine(), 4 * (WORLD.rank == WORLD.size - 1)
    rows = [save(engine, "a", values(size, seed)) for seed in range(10)]
    for seed, row in enumerate(rows):
        np.testing.assert_array_equal(read(row, size), values(size, seed))


@pytest.mark.parallel([1, 2])
@pytest.mark.parametrize("keys", [["a", "a_0", "a_0_0", "a/0", "a%2F0"], ["u", "u.1"], ["u.1", "u"]])
def test_keys_are_kept_apart(make_engine, keys):
    engine, rows = make_engine(), {}
    for turn in range(7):
        for seed, key in enumerate(keys):
            rows[key, turn] = 10 * turn + seed, save(engine, key, values(10, 10 * turn + seed))
    for seed, row in rows.values():
        np.testing.assert_array_equal(read(row, 10), values(10, seed))


@pytest.mark.parallel([1, 2, 3])
def test_rows_that_were_dropped_are_used_again(make_engine):
    engine = make_engine()
    places, taken = set(), []
    for sweep in range(4):
        rows = [save(engine, "a", values(100, 10 * sweep + i)) for i in range(10)]
        places.update(map(place, rows))
        taken.append(engine.bytes_taken)
        for i, row in enumerate(rows):
            np.testing.assert_array_equal(read(row, 100), values(100, 10 * sweep + i))
        del rows, row
    assert len(places) < 25 and taken[3] == taken[1] >= 8000


@pytest.mark.parallel([2, 3])
def test_a_row_that_one_rank_still_holds_is_not_used_again_there(make_engine):
    engine = make_engine()
    rows = [save(engine, "a", values(5, seed)) for seed in range(6)]
    places = {place(row) for row in rows}
    held = rows if WORLD.rank == 1 else []
    del rows
    again = {place(save(engine, "a", values(5, 100 + i))) for i in range(20)}
    assert not held or not places & again


@pytest.mark.parallel([1, 2])
def test_without_recycling_no_row_is_used_again(make_engine):
    engine = make_engine(recycle=False)
    places = [place(save(engine, "a", values(5, seed))) for seed in range(10)]
    assert len(set(places)) == 10 and engine.bytes_taken >= 10 * 5 * 8


@pytest.mark.parallel([1, 2, 3])
def test_a_kept_file_is_read_by_h5py(make_engine, comm, path):
    engine = make_engine(recycle=False)
    for seed in range(6):
        save(engine, "a", values(20, seed))
    engine.retire()
    expected = np.concatenate(comm.allgather(np.stack([values(20, seed) for seed in range(6)])), axis=1)
    WORLD.barrier()
    with h5py.File(path, "r", locking=False) as file:
        found = [file[name][:] for name in file if not name.startswith("%")]
    arrays = {tuple(array) for stored in found for array in stored.reshape(-1, expected.shape[1])}
    assert arrays >= {tuple(array) for array in expected}


@pytest.mark.parallel([1, 2, 3])
@pytest.mark.parametrize("size", [9, 30])
def test_an_array_of_another_size_is_refused_and_harms_none(make_engine, size):
    engine = make_engine()
    rows = [save(engine, "a", np.full(10, float(i))) for i in range(6)]
    for _ in range(3):
        with pytest.raises(LayoutError, match=f"the array to store has {8 * size} bytes, rows of this key have 80"):
            save(engine, "a", np.ones(size))
    rows.append(save(engine, "a", np.full(10, 6.0)))
    assert [set(read(row, 10)) for row in rows] == [{float(i)} for i in range(7)]


@pytest.mark.parallel([1, 2, 3])
def test_a_limit_is_kept_and_all_ranks_reach_it_together(make_engine, comm):
    engine = make_engine(limit=20_000)
    rows, error = [], None
    while error is None:
        try:
            rows.append(save(engine, "a", values(100, len(rows))))
        except TransferError as exc:
            error = exc
    assert "Disk quota exceeded" in str(error) and engine.bytes_taken <= 20_000
    assert comm.allgather(len(rows)) == [len(rows)] * comm.size and len(rows) > 15
    for seed, row in enumerate(rows):
        np.testing.assert_array_equal(read(row, 100), values(100, seed))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("ranks, layout", [(0, "own"), (2, "own"), (2, "world"), (3, "world")])
def test_a_full_disk_is_an_error_on_all_ranks_of_the_file(run_script, tmp_path, engine, ranks, layout):
    done = run_script(
        f"""
import resource
from localckpt.storage.engines import ENGINES
comm = MPI.COMM_SELF if {layout!r} == "own" else comm
engine = ENGINES[{engine!r}](VecFile(comm, f"{{sys.argv[1]}}/{{MPI.COMM_WORLD.rank * (comm.size == 1)}}", "w"), True)
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, hard))
rows, error = [], None
while error is None:
    try:
        array = np.full(5000, float(len(rows)))
        assert engine.prepare("a", array, None) is None or not engine.shared
        rows.append(engine.write("a", array))
    except localckpt.TransferError as exc:
        error = exc
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
found = comm.allgather((len(rows), str(error)))
assert all(there == len(rows) and "'a" in words for there, words in found), found
assert engine.full is not None or engine.broken is not None
for i, row in enumerate(rows):
    row.read(array)
    assert (array == i).all(), i
engine.retire()
""",
        tmp_path,
        ranks=ranks,
        seconds=40,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parallel([1, 2, 3])
def test_rows_are_read_after_retire_and_the_file_is_closed_with_the_last_one(make_engine, comm, path):
    engine = make_engine()
    rows = [save(engine, "a", values(5, seed)) for seed in range(3)]
    engine.retire()
    del engine
    for seed, row in enumerate(rows):
        np.testing.assert_array_equal(read(row, 5), values(5, seed))
    WORLD.barrier()
    before = len(open_files(path))
    del rows, row
    gc.collect()
    assert before and (comm.size > 1 or not open_files(path))  # of several ranks: once the next file is opened


def test_a_file_without_rows_is_closed_by_retire(make_engine, path):
    engine = make_engine()
    save(engine, "a", values(5, 1))
    before = len(open_files(path))
    engine.retire()
    del engine
    assert before and not open_files(path)


@pytest.mark.parallel([1, 2, 3])
def test_an_error_of_one_rank_reaches_those_that_would_wait_for_it(make_engine, comm):
    engine = make_engine()
    if not engine.shared:
        return
    mine = OSError(5, f"of rank {WORLD.rank}") if WORLD.rank == WORLD.size - 1 else None
    error = engine.prepare("a", values(5, 1), mine)
    collective = type(engine) is ENGINES["viewer"]
    assert error is mine if mine or not collective else f"of rank {WORLD.size - 1}" in str(error)
