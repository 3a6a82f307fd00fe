"""Whatever is stored, dropped and written to in whatever order: the store and a dictionary say the same."""

import gc
import itertools
import os

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from mpi4py import MPI

from localckpt.storage.store import Store

SIZES = [0, 1, 1000, 140_000]  # the last one is mapped when it is read
DOUBLE = np.dtype(float)


def values(size, seed):
    return np.random.default_rng(seed).standard_normal(size)


def get(store, row, size):
    return store.get(row, (size,), DOUBLE)


@pytest.fixture(autouse=True)
def others_objects_are_not_searched_for_garbage():
    gc.freeze()
    yield
    gc.unfreeze()


def machine(path, engine, cleanup):
    class Model(RuleBasedStateMachine):
        def __init__(self):
            super().__init__()
            self.store = Store(MPI.COMM_SELF, path, cleanup, engine)
            self.rows = {}  # number -> row, the array that it stands for
            self.restored = {}  # number -> array, what it has to show
            self.numbers = itertools.count()
            self.turn = 0

        def choose(self, data, held):
            return data.draw(st.sampled_from(sorted(held)))

        @rule(size=st.sampled_from(SIZES), seed=st.integers(0, 2), single=st.booleans())
        def put(self, size, seed, single):
            array = values(size, seed)
            expected = array.astype(np.float32).astype(float) if single else array.copy()
            self.rows[next(self.numbers)] = self.store.put(str(size), array, single=single), expected
            array += 1  # the caller's, who may do with it as they like

        @precondition(lambda self: self.rows)
        @rule(data=st.data())
        def get(self, data):
            row, expected = self.rows[self.choose(data, self.rows)]
            self.restored[next(self.numbers)] = get(self.store, row, expected.size), expected

        @precondition(lambda self: self.restored)
        @rule(data=st.data(), part=st.sampled_from([slice(1), slice(500, 700), slice(None)]))
        def write_to_restored(self, data, part):
            number = self.choose(data, self.restored)
            array, expected = self.restored[number]
            array[part] -= number
            expected = expected.copy()
            expected[part] -= number
            self.restored[number] = array, expected

        @precondition(lambda self: self.rows)
        @rule(data=st.data(), in_a_cycle=st.booleans())
        def drop_row(self, data, in_a_cycle):
            garbage = [self.rows.pop(self.choose(data, self.rows))]
            if in_a_cycle:  # until garbage is collected
                garbage.append(garbage)

        @precondition(lambda self: self.restored)
        @rule(data=st.data())
        def drop_restored(self, data):
            del self.restored[self.choose(data, self.restored)]

        @rule()
        def flush(self):
            self.store.flush()

        @precondition(lambda self: cleanup)  # a file that is to be kept is the only one
        @rule()
        def retire(self):
            self.store.retire()

        @rule()
        def collect_garbage(self):
            gc.collect()

        @invariant()
        def what_is_held_is_what_it_should_be(self):
            self.turn += 1
            if self.rows:  # one of them in each step, all in the end
                self.check(*list(self.rows.values())[self.turn % len(self.rows)])
            if self.restored:
                np.testing.assert_array_equal(*list(self.restored.values())[self.turn % len(self.restored)])

        def check(self, row, expected):
            np.testing.assert_array_equal(get(self.store, row, expected.size), expected)

        def teardown(self):
            while self.rows:
                self.check(*self.rows.popitem()[1])
            self.store.retire()
            for array, expected in self.restored.values():
                np.testing.assert_array_equal(array, expected)

    return Model


@pytest.mark.parametrize("engine, cleanup", [("direct", True), ("direct", False), ("viewer", True)])
def test_the_store_does_what_a_dictionary_does(tmp_path, engine, cleanup):
    run_state_machine_as_test(
        machine(str(tmp_path / "all.h5"), engine, cleanup),
        settings=settings(
            max_examples=25,
            stateful_step_count=25,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def bytes_written(call, *args):
    """What `call` returns, and how many bytes this process has written in it."""

    def written():
        with open("/proc/self/io") as file:
            return int(dict(line.split(": ") for line in file)["wchar"])

    before = written()
    return call(*args), written() - before


@pytest.mark.parametrize("size", [1000, 200_000])
def test_bytes_that_are_stored_are_not_written_again(tmp_path, size):
    store = Store(MPI.COMM_SELF, str(tmp_path / "all.h5"))
    others = [store.put("a", values(size, seed)) for seed in range(1, 4)]
    array = values(size, 0)
    row, first = bytes_written(store.put, "a", array)
    again, second = bytes_written(store.put, "a", array.copy())
    elsewhere, third = bytes_written(store.put, "another key", array)
    assert row is again is elsewhere and row not in others
    assert (first, second, third) == (array.nbytes, 0, 0)


def test_bytes_that_nobody_holds_any_more_are_written_again(tmp_path):
    store = Store(MPI.COMM_SELF, str(tmp_path / "all.h5"))
    array = values(1000, 0)
    row = store.put("a", array)
    del row
    other = store.put("a", values(1000, 1))  # in the place of the first
    row, written = bytes_written(store.put, "a", array)
    assert written == array.nbytes
    np.testing.assert_array_equal(get(store, row, 1000), array)
    np.testing.assert_array_equal(get(store, other, 1000), values(1000, 1))


def space_taken(path):
    """Length and disk space of this process's unlinked file that had that name."""
    for number in os.listdir("/proc/self/fd"):
        link = f"/proc/self/fd/{number}"
        if os.path.lexists(link) and os.readlink(link).startswith(path):
            facts = os.stat(link)
            return facts.st_size, facts.st_blocks


@pytest.mark.parametrize("engine", ["direct", "viewer"])
@pytest.mark.parametrize("size", [1000, 20_000])
def test_a_sweep_takes_the_space_of_the_one_before(tmp_path, engine, size):
    path = str(tmp_path / "all.h5")
    store = Store(MPI.COMM_SELF, path, engine=engine)
    held = [None] * 20
    taken = []
    for sweep in range(5):
        for i in range(20):
            held[i] = store.put("a", values(size, 20 * sweep + i))
        store.flush()
        taken.append(space_taken(path))
    assert taken[4] == taken[1]
    assert taken[1][0] < 2 * 20 * size * 8
