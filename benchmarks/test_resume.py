"""What resume() costs: its seconds as a share of the iterations, and those of a recorded solve.

Controls and derivatives go to the first folder, and are flushed to its disk. A recorded solve is compared with a plain
write and flush (fsync) of the same bytes, in turns.
"""

import os
import time
from statistics import median

import numpy as np
import pytest
from conftest import race
from mpi4py import MPI
from problems import advection, square

from localckpt.adjoint import patches, resume
from localckpt.storage.journal import Journal, write_all

WORLD = MPI.COMM_WORLD
CELLS = {"advection, 60k dofs": 100, "advection, 540k dofs": 300}


@pytest.mark.parametrize("problem", CELLS)
def test_share(record, request, problem):
    folder = next(iter(request.config.folders.values()))
    run = resume(os.path.join(folder, f"run-{CELLS[problem]}"))
    iteration = advection("localckpt", square(CELLS[problem]), folder=folder)
    iteration()
    taken, spent = [], run.spent
    end = time.perf_counter() + 10 * request.config.getoption("seconds")
    while WORLD.bcast(time.perf_counter() < end or len(taken) < 5):
        begin = time.perf_counter()
        iteration()
        taken.append(time.perf_counter() - begin)
    share = WORLD.allreduce(run.spent - spent, MPI.MAX) / sum(taken)
    run.finish()
    patches.uninstall()
    patches.install()
    record(taken, contestant="localckpt", problem=problem, share=share)
    print(
        f"\n{problem:24} {WORLD.size} ranks: {median(taken):8.3f} s an iteration, {100 * share:.2f} % of it in resume"
    )


@pytest.mark.parametrize("dofs", [60_000, 540_000])
def test_record(record, request, dofs):
    folder = next(iter(request.config.folders.values()))
    array = np.random.default_rng(WORLD.rank).standard_normal(dofs // WORLD.size)
    directory = os.path.join(folder, f"journal-{dofs}")
    if WORLD.rank == 0:
        os.mkdir(directory)
    WORLD.Barrier()
    journal = Journal(directory, WORLD)
    file = os.open(os.path.join(directory, f"plain-{WORLD.rank}"), os.O_RDWR | os.O_CREAT)
    size = 0

    def append():
        journal.append({"kind": "solve"}, [array])

    def plain():
        nonlocal size
        write_all(file, memoryview(array).cast("B"), size)
        os.fsync(file)
        size += array.nbytes
        WORLD.Barrier()

    def timed(call):
        begin = time.perf_counter()
        call()
        return time.perf_counter() - begin

    taken = race(
        {"record": lambda: timed(append), "plain": lambda: timed(plain)}, 2 * request.config.getoption("seconds")
    )
    journal.close()
    os.close(file)
    ratio = median(taken["record"]) / median(taken["plain"])
    record(taken["record"], contestant="localckpt", recorded=f"{dofs} dofs", ratio=ratio)
    print(f"\n{dofs} dofs, {WORLD.size} ranks: {1e3 * median(taken['record']):.2f} ms a record, {ratio:.2f} of a write")
