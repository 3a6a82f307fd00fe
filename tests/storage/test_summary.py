"""What a store says of itself: every save and restore counts once, in whichever tier."""

import os

import numpy as np
import pytest
from mpi4py import MPI

from localckpt.storage.directories import Tier
from localckpt.storage.store import Store

WORLD = MPI.COMM_WORLD
SELF = MPI.COMM_SELF


def values(size, seed):
    return np.random.default_rng([seed, WORLD.rank]).standard_normal(size)


def counted(summary):
    return {name: getattr(summary, name) for name in ("saves", "repeats", "restores", "saved", "written", "read")}


@pytest.fixture(params=["direct", "viewer"])
def engine(request):
    return request.param


@pytest.fixture
def store(tmp_path, engine):
    """On one rank."""
    return Store(SELF, str(tmp_path / "run" / f"{WORLD.rank}.h5"), engine=engine)


@pytest.fixture(autouse=True)
def run_directory(tmp_path):
    (tmp_path / "run").mkdir()
    return tmp_path


def test_before_anything_is_saved_all_is_nought(store):
    assert set(counted(store.summary).values()) == {0} and store.summary.tiers == []


def test_saves_repeats_and_restores_are_counted(store):
    first, second = store.put("a", values(10, 1)), store.put("b", values(100, 2))
    again = store.put("a", values(10, 1))
    for row, size in (first, 10), (again, 10), (second, 100):
        store.get(row, (size,), np.dtype(float))
    assert counted(store.summary) == {
        "saves": 3,
        "repeats": 1,
        "restores": 3,
        "saved": 960,
        "written": 880,
        "read": 960,
    }


def test_what_is_reserved_for_more_is_on_disk(store):
    held = [store.put("a", values(1000, seed)) for seed in range(10)]
    assert 80_000 <= store.summary.live == store.summary.peak < 120_000
    del held


def test_room_that_is_used_again_is_no_more_on_disk(store):
    store.put("a", values(1000, 1))
    before = store.summary.live
    for seed in range(20):
        store.put("a", values(1000, seed))
    assert store.summary.live == store.summary.peak == before


def test_a_file_that_was_given_up_is_remembered_by_the_peak(store):
    held = [store.put("a", values(1000, seed)) for seed in range(10)]
    del held
    store.retire()
    store.put("a", values(10, 1))
    assert store.summary.live < 10_000 and store.summary.peak >= 80_000


def test_time_is_spent(store):
    row = store.put("a", values(1000, 1))
    store.get(row, (1000,), np.dtype(float))
    assert store.summary.saving > 0 and store.summary.restoring > 0


def test_a_mapped_array_that_nobody_has_looked_at_is_not_read(tmp_path):
    store = Store(SELF, str(tmp_path / "run" / "mapped.h5"))
    row = store.put("a", values(100_000, 1))
    for _ in range(3):  # verified once
        store.get(row, (100_000,), np.dtype(float))
    assert (store.summary.restores, store.summary.read) == (3, 800_000)


def test_all_tiers_are_counted_together(tmp_path, engine):
    (tmp_path / "next").mkdir()
    store = Store(
        SELF, str(tmp_path / "run" / "current.h5"), engine=engine, limit=4000, tiers=[Tier(str(tmp_path / "next"))]
    )
    held = [store.put("a", values(100, seed)) for seed in range(10)]
    held.append(store.put("a", values(100, 9)))
    assert len({row.file for row in held}) == 2
    for row in held:
        store.get(row, (100,), np.dtype(float))
    assert counted(store.summary) == {
        "saves": 11,
        "repeats": 1,
        "restores": 11,
        "saved": 8800,
        "written": 8000,
        "read": 8800,
    }
    assert 8000 <= store.summary.live <= 8000 + 4000
    assert store.summary.tiers == [str(tmp_path), str(tmp_path / "next")]


def test_what_could_not_be_saved_does_not_count(tmp_path, engine):
    store = Store(SELF, str(tmp_path / "run" / "current.h5"), engine=engine, limit=10)
    with pytest.raises(OSError):
        store.put("a", values(100, 1))
    assert set(counted(store.summary).values()) == {0}


@pytest.mark.parallel([1, 3])
def test_ranks_add_up(tmp_path, engine):
    directory = tmp_path / f"run-{WORLD.rank}"
    directory.mkdir()
    store = Store(SELF, str(directory / "current.h5"), engine=engine)
    held = [store.put("a", values(10, seed)) for seed in range(WORLD.rank + 1)]
    if WORLD.rank == WORLD.size - 1:
        store.summary.saving += 1000  # the slowest
    summary = store.summary.over(WORLD)
    n = WORLD.size * (WORLD.size + 1) // 2
    assert counted(summary) == {"saves": n, "repeats": 0, "restores": 0, "saved": 80 * n, "written": 80 * n, "read": 0}
    assert summary.live == summary.peak >= 80 * n
    assert (summary.ranks, summary.slowest_rank) == (WORLD.size, WORLD.size - 1)
    assert summary.saving > 1000 and summary.slowest_host == MPI.Get_processor_name()
    assert len(summary.tiers) == len(set(WORLD.allgather(os.fspath(tmp_path))))
    assert len(set(WORLD.allgather(str(summary)))) == 1
    del held
