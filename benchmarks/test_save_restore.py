"""One save and one restore of a Function, as the tape does them.

`new` bytes, which have to be written, and bytes that are stored `again`. The limits are a
copy in memory, a plain pwrite over pages that the file has, a pread, and a content hash.
"""

import os
import tempfile

import numpy as np
import pytest
from firedrake import Function, FunctionSpace, UnitIntervalMesh
from firedrake.adjoint import get_working_tape, pause_annotation
from firedrake.adjoint_utils.checkpointing import CheckpointFunction
from problems import new_tape
from xxhash import xxh3_128_digest

SIZES = [10**3, 10**4, 10**5, 10**6, 4*10**6]
KEPT = 4  # checkpoints that are alive at a time


@pytest.fixture(params=SIZES, ids="{:.0e}".format)
def function(request):
    pause_annotation()
    f = Function(FunctionSpace(UnitIntervalMesh(request.param//2), "DG", 1))
    f.dat.data[:] = np.random.default_rng(1).random(f.dat.data_ro.size)
    return f


@pytest.fixture
def rounds(function):
    return max(7, min(200, 10**7//function.dat.data_ro.size))


@pytest.fixture(params=["localckpt", "viewer", "checkpoint_comm"])
def tape(request):
    """A working tape whose checkpoints go to disk now."""
    new_tape(request.param)
    pause_annotation()
    checkpointer = get_working_tape()._package_data["firedrake"]
    checkpointer.continue_checkpointing()
    yield
    checkpointer.pause_checkpointing()


def saver(function, change):
    alive = []

    def begin():
        if len(alive) == KEPT:
            alive.pop(0)
        if change:
            function.dat._data[0] += 1  # another content, in no time

    def save():
        alive.append(CheckpointFunction(function))

    return begin, save


def test_save_new(benchmark, tape, function, rounds):
    begin, save = saver(function, change=True)
    benchmark.pedantic(save, setup=begin, rounds=rounds, warmup_rounds=2*KEPT)


def test_save_again(benchmark, tape, function, rounds):
    begin, save = saver(function, change=False)
    benchmark.pedantic(save, setup=begin, rounds=rounds, warmup_rounds=2*KEPT)


@pytest.mark.parametrize("alive", [10, 100, 1000, 10000])
@pytest.mark.parametrize("kind", ["localckpt", "viewer"])
def test_save_new_among_many(benchmark, kind, alive):
    """One of 1,000 dofs, beside so many that are alive."""
    new_tape(kind)
    pause_annotation()
    f = Function(FunctionSpace(UnitIntervalMesh(500), "DG", 1))
    checkpointer = get_working_tape()._package_data["firedrake"]
    checkpointer.continue_checkpointing()
    others = []

    def change():
        f.dat._data[0] += 1

    for _ in range(alive):
        change()
        others.append(CheckpointFunction(f))
    benchmark.pedantic(lambda: CheckpointFunction(f), setup=change, rounds=200, warmup_rounds=10)
    checkpointer.pause_checkpointing()


def test_restore(benchmark, tape, function, rounds):
    checkpoint = CheckpointFunction(function)
    benchmark.pedantic(checkpoint.restore, rounds=rounds, warmup_rounds=3)


def test_restore_and_read(benchmark, tape, function, rounds):
    checkpoint = CheckpointFunction(function)
    benchmark.pedantic(lambda: checkpoint.restore().dat._data.sum(), rounds=rounds, warmup_rounds=3)


# ------------------------------------------------------------------------------ limits

class Rows:
    """A file of as many rows as checkpoints are alive, used in turn."""

    def __init__(self, file, data):
        self.file, self.data, self.number = file.fileno(), data, 0
        for _ in range(KEPT + 1):
            self.write()

    def next(self):
        self.number = (self.number + 1) % (KEPT + 1)
        return self.number*self.data.nbytes

    def write(self):
        os.pwrite(self.file, self.data, self.next())

    def read(self):
        os.preadv(self.file, [np.empty_like(self.data)], self.next())


@pytest.fixture
def rows(function):
    with tempfile.TemporaryFile(buffering=0) as file:
        yield Rows(file, function.dat.data_ro)


def test_limit_memory_checkpoint(benchmark, function, rounds):
    benchmark.pedantic(lambda: function.copy(deepcopy=True), rounds=rounds, warmup_rounds=3)


def test_limit_hash(benchmark, function, rounds):
    data = function.dat.data_ro
    benchmark.pedantic(lambda: xxh3_128_digest(data), rounds=rounds, warmup_rounds=3)


def test_limit_pwrite(benchmark, function, rounds, rows):
    benchmark.pedantic(rows.write, rounds=rounds, warmup_rounds=3)


def test_limit_hash_and_pwrite(benchmark, function, rounds, rows):
    benchmark.pedantic(lambda: (xxh3_128_digest(rows.data), rows.write()), rounds=rounds, warmup_rounds=3)


def test_limit_pread(benchmark, function, rounds, rows):
    benchmark.pedantic(rows.read, rounds=rounds, warmup_rounds=3)
