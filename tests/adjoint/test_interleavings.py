"""Functions saved, restored, written to, dropped, flushed, reset in whatever order, on ranks that share a file or not.

All ranks draw the same order, and agree on each outcome: a failure is one on all of them.
"""

import gc
import itertools

import firedrake as fd
import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test
from mpi4py import MPI

from localckpt.adjoint import DiskCheckpointer

WORLD = MPI.COMM_WORLD


@pytest.fixture(scope="module")
def spaces():
    mesh = fd.UnitSquareMesh(6, 6)
    V, W = fd.FunctionSpace(mesh, "CG", 1), fd.VectorFunctionSpace(mesh, "DG", 1)
    return [V, W, W * fd.FunctionSpace(mesh, "R", 0) * V, V.dual()]


def owned(function):
    return [dat.data_ro.copy() for dat in function.dat]


def agree(well, what):
    assert WORLD.allreduce(bool(well), MPI.LAND), what


def machine(spaces, **arguments):
    class Model(RuleBasedStateMachine):
        def __init__(self):
            super().__init__()
            self.checkpointer = DiskCheckpointer(**arguments)
            self.saved, self.restored = {}, {}  # number -> what is tested, the arrays that it has to have
            self.numbers = itertools.count()

        def choose(self, data, held):
            return data.draw(st.sampled_from(sorted(held)))

        @rule(space=st.integers(0, 3), seed=st.integers(0, 2), stale=st.booleans())
        def save(self, space, seed, stale):
            f = fd.Function(spaces[space])
            for i, dat in enumerate(f.dat):
                dat.data_wo[...] = np.random.default_rng(
                    [seed, i, 0 if dat.data_ro.size == 1 else WORLD.rank + 1]
                ).random(dat.data_ro.shape)
                if not stale:
                    dat.data_ro_with_halos  # noqa: B018  (exchanges them)
            expected = owned(f), [dat.halo_valid for dat in f.dat], f.name(), f.count()
            self.saved[next(self.numbers)] = self.checkpointer.save(f), expected
            for dat in f.dat:
                dat.data_wo[...] += 1  # the caller's, who may do with it as they like

        @precondition(lambda self: self.saved)
        @rule(data=st.data())
        def restore(self, data):
            saved, expected = self.saved[self.choose(data, self.saved)]
            f = saved.load()
            found = [dat.halo_valid for dat in f.dat], f.name(), f.count()
            agree(found == expected[1:], (found, expected[1:]))
            self.restored[next(self.numbers)] = f, expected[0]
            self.check_restored()

        @precondition(lambda self: self.restored)
        @rule(data=st.data())
        def write_to_restored(self, data):
            number = self.choose(data, self.restored)
            f, expected = self.restored[number]
            for dat in f.dat:
                dat.data[...] -= number
            self.restored[number] = f, [array - number for array in expected]
            self.check_restored()

        @precondition(lambda self: self.saved)
        @rule(data=st.data())
        def drop_saved(self, data):
            del self.saved[self.choose(data, self.saved)]

        @precondition(lambda self: self.restored)
        @rule(data=st.data())
        def drop_restored(self, data):
            del self.restored[self.choose(data, self.restored)]

        @rule()
        def flush(self):
            store = self.checkpointer._functions.store
            store.flush()
            whole = True
            if not self.checkpointer.cleanup and store.current_file.engine is not None and store.comm.rank == 0:
                with h5py.File(store.path, locking=False) as file:
                    whole = len(file) > 0
            agree(whole, "flushed")

        @rule()
        def reset(self):
            self.checkpointer.reset()

        @rule()
        def clear(self):
            self.checkpointer.clear()

        @rule()
        def collect_garbage(self):
            gc.collect()

        def check_restored(self):
            agree(
                all(
                    (array == wanted).all()
                    for f, expected in self.restored.values()
                    for array, wanted in zip(owned(f), expected)
                ),
                "held",
            )

        def teardown(self):
            for saved, expected in self.saved.values():
                self.restored[next(self.numbers)] = saved.load(), expected[0]
            self.check_restored()
            self.checkpointer.clear()

    return Model


def check(spaces, examples, **arguments):
    run_state_machine_as_test(
        machine(spaces, **arguments),
        settings=settings(
            max_examples=examples,
            stateful_step_count=25,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.fixture
def examples(request):
    """Five, or more in a long run (make soak)."""
    return max(5, request.config.getoption("--soak") // 10)


@pytest.mark.parallel([1, 2])
@pytest.mark.parametrize("engine", ["direct", "viewer"])
@pytest.mark.parametrize("cleanup", [True, False])
def test_functions_in_a_file_per_rank_are_what_a_dictionary_says(shared_tmp, spaces, engine, cleanup, examples):
    check(spaces, examples, checkpoint_dir=str(shared_tmp), engine=engine, cleanup=cleanup)


@pytest.mark.parallel(2)
@pytest.mark.parametrize("engine", ["direct", "viewer"])
@pytest.mark.parametrize("cleanup", [True, False])
def test_functions_in_a_shared_file_are_what_a_dictionary_says(shared_tmp, spaces, engine, cleanup, examples):
    check(spaces, examples, checkpoint_comm=WORLD, checkpoint_dir=str(shared_tmp), engine=engine, cleanup=cleanup)
