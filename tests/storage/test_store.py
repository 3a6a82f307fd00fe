"""Stored arrays: what is held is kept, what was dropped makes room, on all ranks alike."""

import copy
import ctypes
import gc
import mmap
import os
import pickle
import random
import subprocess
import sys
import time
import weakref

import numpy as np
import pytest
from mpi4py import MPI

from localckpt import ChecksumError, LayoutError, LostCheckpointError, TransferError
from localckpt.storage.store import Store
from localckpt.storage.stored import Stored, prefetch

WORLD = MPI.COMM_WORLD


def values(size, seed):
    return np.random.default_rng([seed, WORLD.rank]).standard_normal(size)


def read(store, row, size):
    return store.get(row, (size,), np.dtype(float))


def place(row):
    """What tells one row from another."""
    return row.row.number if hasattr(row.row, "number") else row.row.offset


def open_files(path):
    """This process's open files that had this name."""
    links = []
    for number in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink(f"/proc/self/fd/{number}"))
        except OSError:
            pass  # the listing's own descriptor
    return [link for link in links if link.startswith(os.path.realpath(path))]


def cached(file, offset, nbytes):
    """Whether all of these bytes of a file are in the page cache. Does not bring them there."""
    start = offset % mmap.PAGESIZE
    mapped = mmap.mmap(file.fileno(), start + nbytes, access=mmap.ACCESS_COPY, offset=offset - start)
    pages = (ctypes.c_ubyte * -(-len(mapped) // mmap.PAGESIZE))()
    first = ctypes.byref(ctypes.c_char.from_buffer(mapped))
    assert ctypes.CDLL(None).mincore(first, ctypes.c_size_t(len(mapped)), pages) == 0
    return all(page & 1 for page in pages)


@pytest.mark.parallel([1, 2, 3])
def test_an_array_comes_back(store):
    a = values(10, 1)
    assert (read(store, store.put("a", a), 10) == a).all()


@pytest.mark.parallel([1, 2])
def test_arrays_whose_valid_entries_are_equal_keep_their_sizes(store):
    # Two spaces with equal owned dofs, stale halos, and halos of different sizes.
    rows = [store.put(f"halo {halo}", values(10 + halo, 1), valid=10) for halo in (2, 5, 0)]
    for halo, row in zip((2, 5, 0), rows):
        assert (read(store, row, 10 + halo)[:10] == values(10, 1)).all()


@pytest.mark.parallel([1, 2, 3])
def test_arrays_under_one_key_are_kept_apart(store):
    rows = [store.put("a", values(10, seed)) for seed in range(20)]
    assert all((read(store, row, 10) == values(10, seed)).all() for seed, row in enumerate(rows))


@pytest.mark.parallel([1, 3])
@pytest.mark.parametrize("before", [0, 1, 3])
def test_numbers_come_back_where_a_cpu_wants_them(store, before):
    held = [store.put(f"int8 {n}", np.full(n, n, dtype=np.int8)) for n in range(before)]
    row = store.put("a", values(10**5, 1))
    assert read(store, row, 10**5).flags.aligned and len(held) == before


@pytest.mark.parametrize("recently", [True, False])
def test_more_than_was_stored_is_not_read(store, recently):
    stored = store.put("a", values(10, 1))
    if recently:
        read(store, stored, 10)
    with pytest.raises(LayoutError, match="80 bytes are stored, the array to read them into has 160"):
        read(store, stored, 20)


def test_a_store_that_is_dropped_closes_its_file(tmp_path):
    store = Store(MPI.COMM_SELF, str(tmp_path / "own.h5"))
    store.put("a", values(10, 1))
    assert open_files(store.path)
    del store
    assert not open_files(str(tmp_path / "own.h5"))


@pytest.mark.parallel([1, 2, 3])
def test_what_was_dropped_makes_room(store):
    places = {place(store.put("a", values(5, seed))) for seed in range(50)}
    assert len(places) < 10


@pytest.mark.parallel([1, 2, 3])
def test_a_store_used_over_and_over_takes_no_more_rows(store):
    highest = [max(place(row) for row in [store.put("a", values(5, i)) for i in range(7)]) for _ in range(10)]
    assert max(highest[2:]) == max(highest[:2])


@pytest.mark.parallel([1, 2, 3])
@pytest.mark.parametrize("seed", range(4))
def test_ranks_that_drop_differently_never_disagree(seed, store):
    everywhere, mine = random.Random(seed), random.Random(1000 * seed + WORLD.rank)
    held, numbers = {}, []
    for put in range(120):
        size = everywhere.choice([3, 8])
        held[put] = size, store.put(f"of size {size}", values(size, put))
        numbers.append(place(held[put][1]))
        for old in list(held):
            if mine.random() < 0.2:
                del held[old]
    if store.collective:  # otherwise each rank chooses rows of its own
        assert WORLD.allgather(numbers) == [numbers] * WORLD.size
    # Reading is collective: what some rank has dropped is not read.
    common = set.intersection(*WORLD.allgather(set(held)))
    for put in sorted(common):
        size, row = held[put]
        np.testing.assert_array_equal(read(store, row, size), values(size, put))


@pytest.mark.parallel([1, 2, 3])
def test_what_is_stored_stays_readable_after_retire(store):
    row = store.put("a", values(5, 1))
    store.retire()
    other = store.put("a", values(5, 2))
    assert (read(store, row, 5) == values(5, 1)).all() and (read(store, other, 5) == values(5, 2)).all()


def test_the_same_bytes_after_retire_do_not_keep_the_old_file(store, path):
    def numbers():  # of all files that have had this name
        return {
            os.stat(f"/proc/self/fd/{fd}").st_ino
            for fd in os.listdir("/proc/self/fd")
            if os.path.realpath(path) in os.path.realpath(f"/proc/self/fd/{fd}")
        }

    old = store.put("a", values(5, 1))
    retired = numbers()
    store.retire()
    new = store.put("a", values(5, 1))
    del old
    gc.collect()
    assert retired and not retired & numbers()
    assert (read(store, new, 5) == values(5, 1)).all()


@pytest.mark.parallel([2, 3])
def test_a_retired_file_of_several_ranks_is_closed_once_the_next_is_opened(shared_tmp):
    store = Store(WORLD, str(shared_tmp / "all.h5"))
    for _ in range(4):
        store.put("a", values(5, 1))
        store.retire()
    store.put("a", values(5, 1))
    assert len(set(open_files(str(shared_tmp)))) == 1


def test_retire_before_anything_was_stored_makes_no_file(store, path):
    store.retire()
    assert not os.listdir(os.path.dirname(path))


@pytest.mark.parallel([1, 2])
def test_with_cleanup_no_file_has_a_name(store, path):
    row = store.put("a", values(5, 1))
    WORLD.barrier()
    assert os.listdir(os.path.dirname(path)) == [] and row


@pytest.mark.parallel([1, 2])
def test_without_cleanup_the_file_keeps_its_name(comm, path):
    Store(comm, path, cleanup=False).put("a", values(5, 1))
    assert os.path.getsize(path) > 0


@pytest.mark.parallel([1, 2])
@pytest.mark.parametrize("engine", ["direct", "viewer"])
def test_a_file_that_is_kept_is_not_written_over_by_the_next_one(comm, path, engine):
    store = Store(comm, path, cleanup=False, engine=engine)
    rows = [store.put("a", values(10**5, seed)) for seed in range(3)]
    held = read(store, rows[0], 10**5)
    store.retire()
    rows += [store.put("a", values(10**5, seed)) for seed in range(3, 6)]
    np.testing.assert_array_equal(held, values(10**5, 0))
    for seed, row in enumerate(rows):
        np.testing.assert_array_equal(read(store, row, 10**5), values(10**5, seed))
    stem, suffix = os.path.splitext(path)
    assert os.path.getsize(path) > 0 and os.path.getsize(f"{stem}-2{suffix}") > 0


@pytest.mark.parallel([1, 2])
def test_a_directory_that_is_gone_is_an_error_on_every_rank(shared_tmp):
    store = Store(WORLD, str(shared_tmp / "gone" / "all.h5"))
    with pytest.raises(FileNotFoundError, match="gone"):
        store.put("a", values(5, 1))


@pytest.mark.parametrize("size", [10, 10**5], ids=["read", "mapped"])
def test_bytes_that_changed_on_disk_are_an_error(tmp_path, size):
    store = Store(MPI.COMM_SELF, str(tmp_path / "own.h5"), cleanup=False)
    stored = store.put("a", values(size, 1))
    with open(store.path, "r+b") as file:
        file.seek(place(stored) + 8 * size - 1)
        file.write(b"!")
    with pytest.raises(ChecksumError, match=r"own\.h5'.*dataset 'a'"):
        read(store, stored, size)


def test_entries_that_do_not_matter_are_not_compared(tmp_path):
    store = Store(MPI.COMM_SELF, str(tmp_path / "own.h5"))
    first, second = store.put("a", np.array([1.0, 2.0, 3.0]), 2), store.put("a", np.array([1.0, 2.0, 4.0]), 2)
    assert first is second and store.get(first, (3,), np.dtype(float))[:2].tolist() == [1, 2]


def test_an_array_of_the_same_bytes_but_another_shape_comes_back(tmp_path):
    store = Store(MPI.COMM_SELF, str(tmp_path / "own.h5"))
    first, second = store.put("a", np.zeros(8), 4), store.put("b", np.zeros((4, 2)), 2)
    assert first is second and not store.get(second, (4, 2), np.dtype(float)).any()


def test_an_error_that_is_kept_keeps_nothing_of_its_callers(tmp_path):
    class Thing:
        pass

    store = Store(MPI.COMM_SELF, str(tmp_path / "own.h5"), limit=1)

    def put():
        thing = Thing()
        with pytest.raises(TransferError, match="limit"):
            store.put("a", values(5, 1))
        return weakref.ref(thing)

    things = [put(), put()]
    gc.collect()
    assert [thing() for thing in things] == [None, None]


@pytest.mark.parallel([1, 2])
@pytest.mark.parametrize("size", [10, 10**5])
def test_an_array_of_the_callers_is_filled(store, size):
    stored, mine = store.put("a", values(size, 1)), np.zeros(size)
    assert store.get(stored, out=mine) is mine and (mine == values(size, 1)).all()


def test_an_array_of_another_size_is_not_filled(store):
    stored, mine = store.put("a", values(10, 1)), np.zeros(9)
    with pytest.raises(LayoutError, match="80 bytes are stored, the array to read them into has 72"):
        store.get(stored, out=mine)
    assert not mine.any()


@pytest.mark.parametrize("size", [1000, 10**5])
def test_a_sweep_in_reverse_past_the_cache_is_right(store, size):
    held = [store.put("a", values(size, i)) for i in range(20)]
    del held[7]  # the chain of what was stored before has a gap
    store.flush()
    number = store.current_file.engine.file.descriptor.fileno()
    os.fsync(number)
    os.posix_fadvise(number, 0, 0, os.POSIX_FADV_DONTNEED)
    for i, stored in reversed([*enumerate(held)]):
        assert (read(store, stored, size) == values(size, i + (i > 6))).all()


def test_a_sweep_in_reverse_has_the_disk_read_ahead(tmp_path):
    size = 10**5
    store = Store(MPI.COMM_SELF, str(tmp_path / "own.h5"))
    held = [store.put("a", values(size, i)) for i in range(8)]
    file = store.current_file.engine.file.descriptor
    os.fsync(file.fileno())
    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    store.get(held[-1], out=np.empty(size))  # not mapped: around those pages the system reads both ways by itself
    early = held[-6]
    deadline = time.monotonic() + 20
    while not cached(file, early.row.offset, early.nbytes) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert cached(file, early.row.offset, early.nbytes)


@pytest.mark.parametrize("nbytes, most", [(0, 0), (64, 2048), (10**6, 9)])
def test_few_calls_ask_for_what_comes_next(nbytes, most):
    class Row:
        asked = 0

        def prefetch(self, nbytes):
            self.asked += 1

    row, held = Row(), [None]
    for _ in range(5000):
        held.append(Stored(None, row, "a", nbytes, nbytes, b"", lambda last=held[-1]: last))
    prefetch(held[-1])
    assert min(1, most) <= row.asked <= most


@pytest.mark.parallel([1, 2])
def test_a_temporary_store_takes_its_directory_along(comm, shared_tmp):
    store = Store.temporary(comm, shared_tmp)
    stored = store.put("a", values(5, 1))
    assert (read(store, stored, 5) == values(5, 1)).all()
    WORLD.barrier()
    before = len(os.listdir(shared_tmp))
    WORLD.barrier()
    del store, stored
    gc.collect()
    WORLD.barrier()
    assert (before, os.listdir(shared_tmp)) == (WORLD.size if comm == MPI.COMM_SELF else 1, [])


def test_store_and_places_need_no_firedrake():
    code = "import localckpt.storage.store, localckpt.storage.directories, sys; sys.exit('firedrake' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=dict(os.environ), timeout=60).returncode == 0


@pytest.mark.parallel(2)
def test_array_too_large_on_one_rank_is_an_error_there_and_soon_on_all(shared_tmp):
    store, held, found = Store(WORLD, str(shared_tmp / "file.h5")), [], None
    for i in range(20):
        try:
            held.append(store.put("row", np.full(30 if WORLD.rank and i > 1 else 10, float(i))))
        except (LayoutError, LostCheckpointError) as error:
            found = found or error
    found = WORLD.allgather(type(found))
    assert found == [LostCheckpointError, LayoutError]
    assert all((read(store, row, 10) == i).all() for i, row in enumerate(held))


def many(store, kept):
    """So many arrays are stored and dropped that what is known of them is looked through several times."""
    for n in range(5000):
        store.put("row", np.array([kept[0] + 1 + n]))


@pytest.mark.parametrize("engine", ["direct", "viewer"])
def test_memory_of_dropped_arrays_does_not_grow(tmp_path, engine):
    store = Store(MPI.COMM_SELF, str(tmp_path / "file.h5"), engine=engine)
    many(store, np.zeros(1))
    assert len(store._index) <= 1001


@pytest.mark.parametrize("engine", ["direct", "viewer"])
def test_array_is_known_as_long_as_it_is_held(tmp_path, engine):
    store, kept = Store(MPI.COMM_SELF, str(tmp_path / "file.h5"), engine=engine), np.zeros(1)
    held = store.put("row", kept)
    many(store, kept)
    assert store.put("row", kept) is held


@pytest.mark.parametrize("copy_of", [copy.copy, copy.deepcopy, pickle.dumps])
def test_neither_a_store_nor_what_it_holds_can_be_copied(tmp_path, copy_of):
    store = Store(MPI.COMM_SELF, str(tmp_path / "store.h5"))
    for original in store, store.put("a", np.arange(3.0)):
        with pytest.raises(TypeError, match="cannot be copied or pickled: restore it and copy the result"):
            copy_of(original)


def test_a_store_that_was_not_made_says_nothing_when_it_goes(run_script):
    done = run_script("from localckpt.storage.store import Store\nprint(attempt(Store)[0][0])")
    assert (done.returncode, done.stdout, done.stderr) == (0, "TypeError\n", "")


def test_threads_that_store_first_at_the_same_time_share_a_file(tmp_path):
    from concurrent.futures import ThreadPoolExecutor
    from threading import Barrier

    def put(store, barrier, number):
        barrier.wait()
        return [store.put("a", values(1000, 10 * number + i)) for i in range(10)]

    for trial in range(30):
        store = Store(MPI.COMM_SELF, str(tmp_path / f"{trial}.h5"))
        with ThreadPoolExecutor(4) as threads:
            rows = sum(threads.map(put, [store] * 4, [Barrier(4)] * 4, range(4)), [])
        assert len({row.row.offset for row in rows}) == 40 and store.current_file._times_opened == 1
        for seed, row in enumerate(rows):
            np.testing.assert_array_equal(read(store, row, 1000), values(1000, seed))
