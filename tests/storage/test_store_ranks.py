"""One file for several ranks, which drop, repeat and read differently: no rank waits, no byte is lost.

Saves come in one sequence on all ranks. Everything else a rank does when it likes.
"""

import gc

import numpy as np
import pytest
from mpi4py import MPI

from localckpt.storage.store import Store

WORLD = MPI.COMM_WORLD
DOUBLE = np.dtype(float)
# Keys and sizes; the large ones are mapped when they are read.
KEYS = {"none on rank 0": 50 * WORLD.rank, "small": 20 + WORLD.rank, "large": 140_000}


@pytest.fixture(autouse=True)
def others_objects_are_not_searched_for_garbage():
    gc.freeze()
    yield
    gc.unfreeze()


def values(key, seed):
    return np.random.default_rng([seed, WORLD.rank]).standard_normal(KEYS[key])


class Held:
    """What this rank holds of a store: rows, restored arrays, and what they should be."""

    def __init__(self, store, seed, cyclic=0.0):
        self.store = store
        self.cyclic = cyclic  # how likely it is that what is dropped is in a cycle
        self.random = np.random.default_rng([seed, WORLD.rank])
        self.rows = {}  # number of the put -> row, key, seed of its values
        self.restored = []  # array, what it has to show

    def put(self, number, key):
        repeated = self.rows and self.random.random() < 0.4
        seed = self.rows[self.random.choice(list(self.rows))][2] if repeated else number
        self.rows[number] = self.store.put(key, values(key, seed)), key, seed

    def get(self, number):
        row, key, seed = self.rows[number]
        return self.store.get(row, (KEYS[key],), DOUBLE), values(key, seed)

    def forget(self, live):
        """Drop rows and restored arrays until no more than so many are left."""
        while len(self.rows) > live:
            garbage = [self.rows.pop(self.random.choice(list(self.rows)))]
            if self.random.random() < self.cyclic:
                garbage.append(garbage)  # until garbage is collected
        del self.restored[: len(self.restored) - 3]

    def act(self):
        """Something that only this rank does."""
        what = self.random.integers(5)
        if what == 0:
            self.forget(self.random.integers(len(self.rows) + 1))
        elif what == 1:
            gc.collect()
        elif what == 2 and self.rows:
            self.restored.append(self.get(self.random.choice(list(self.rows))))
        elif what == 3 and self.restored:
            array, expected = self.restored[-1]
            array += 1
            expected += 1

    def check(self):
        for array, expected in self.restored + [self.get(number) for number in self.rows]:
            np.testing.assert_array_equal(array, expected)


@pytest.mark.parallel([2, 3])
@pytest.mark.parametrize("seed", range(4))
def test_ranks_drop_repeat_and_read_as_they_like(shared_tmp, seed):
    store = Store(WORLD, str(shared_tmp / "all.h5"))
    together, held = np.random.default_rng(seed), Held(store, seed, cyclic=0.3)
    for number in range(200):
        what = together.random()
        if what < 0.02:
            store.flush()
        elif what < 0.04:
            store.retire()
        held.put(number, together.choice(list(KEYS)))
        for _ in range(held.random.integers(3)):
            held.act()
        held.forget(12)
        if number % 20 == 0:
            held.check()
    held.check()


@pytest.mark.parallel([2, 3])
@pytest.mark.parametrize("seed", range(2))
def test_ranks_that_drop_differently_agree_on_datasets(shared_tmp, seed):
    store = Store(WORLD, str(shared_tmp / "all.h5"), engine="viewer")
    together, held = np.random.default_rng(seed), Held(store, seed, cyclic=0.3)
    for number in range(40):
        held.put(number, together.choice(list(KEYS)))
        held.forget(held.random.integers(4, 10))
    # Reading is collective: what some rank has dropped is not read.
    for number in sorted(set.intersection(*WORLD.allgather(set(held.rows)))):
        np.testing.assert_array_equal(*held.get(number))


@pytest.mark.parallel([2, 3])
@pytest.mark.parametrize(
    "live", [lambda rank: 1, lambda rank: 20, lambda rank: 20 * (rank == 0) + 1], ids=["few", "many", "many on rank 0"]
)
def test_rows_and_datasets_are_as_many_as_the_live_arrays_need(shared_tmp, live):
    store = Store(WORLD, str(shared_tmp / "all.h5"))
    held = Held(store, 0)
    for number in range(400):
        held.put(number, "small")
        held.forget(live(WORLD.rank))
    most = WORLD.allreduce(live(WORLD.rank), MPI.MAX)
    # Chunks are a quarter of the rows there were, and at least 4.
    assert store.current_file.engine.pools["small"].rows <= 1.5 * most + 8
    assert len(store.current_file.engine.file.names()) <= 10


@pytest.mark.parallel([2, 3])
def test_ranks_of_which_one_repeats_itself_save_together(shared_tmp):
    store = Store(WORLD, str(shared_tmp / "all.h5"))
    rows = [store.put("small", values("small", number * (WORLD.rank > 0))) for number in range(100)]
    assert len({id(row) for row in rows}) == (100 if WORLD.rank else 1)
    for number, row in enumerate(rows):
        found = store.get(row, (KEYS["small"],), DOUBLE)
        np.testing.assert_array_equal(found, values("small", number * (WORLD.rank > 0)))


@pytest.mark.parametrize("engine", ["direct", "viewer"])
def test_a_wrong_size_on_one_rank_leaves_none_waiting(run_script, tmp_path, engine):
    result = run_script(
        f"""
from localckpt.storage.store import Store
store = Store(comm, sys.argv[1], engine={engine!r})
stored = store.put("a", np.ones(10))
found = attempt(lambda: store.get(stored, (10 + comm.rank,), np.dtype(float)))
assert found[1][0] == "LayoutError" and found[0][0] == ("LayoutError" if store.collective else "nothing"), found
assert (store.get(stored, (10,), np.dtype(float)) == 1).all()
""",
        tmp_path / "all.h5",
        ranks=2,
    )
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("engine", ["direct", "viewer"])
def test_a_collection_of_garbage_that_fails_on_one_rank_leaves_none_waiting(run_script, tmp_path, engine):
    result = run_script(
        f"""
from localckpt.storage.store import Store

def collect():
    collected.append(True)
    if comm.rank == 1:
        raise MemoryError

collected, held = [], []
store = Store(comm, sys.argv[1], engine={engine!r}, limit=400_000, collect=collect)
found = attempt(lambda: [held.append(store.put("a", np.full(10_000, float(i)))) for i in range(20)])
assert {{kind for kind, _ in found}} == {{"TransferError"}}, found
assert comm.allgather(len(held)) == 2 * [5] and collected == ([True] if {engine!r} == "direct" else [])
""",
        tmp_path / "all.h5",
        ranks=2,
    )
    assert (result.returncode, result.stderr) == (0, "")


# Rows can come one at a time: very large ones, or on a disk that is nearly full.
ONE_AT_A_TIME = """
from localckpt.storage.store import Store

class Tight:
    def __init__(self, file):
        self.file = file
    def __getattr__(self, name):
        return getattr(self.file, name)
    def __contains__(self, name):
        return name in self.file
    def create_rows(self, name, rows, array, **others):
        return self.file.create_rows(name, rows, array, limit=1, **others)

store = Store(comm, sys.argv[1])
store.put("other", np.ones(1))
store.current_file.engine.file = Tight(store.current_file.engine.file)
data = [np.full(10, float(number) if comm.rank else 0.0) for number in range(30)]
rows = [store.put("a", array) for array in data]
for row, array in zip(rows, data):
    assert (store.get(row, (10,), array.dtype) == array).all()
"""


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_that_repeat_differently_agree_where_rows_come_one_at_a_time(run_script, tmp_path, ranks):
    result = run_script(ONE_AT_A_TIME, tmp_path / "all.h5", ranks=ranks)
    assert (result.returncode, result.stderr) == (0, "")
