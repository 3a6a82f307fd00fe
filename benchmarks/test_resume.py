"""What resume() costs: its seconds as a share of the iterations, and those of a recorded solve.

Controls and derivatives go to the first folder, and are flushed to its disk; with "in parts", also the solves of each
sweep and, four times a second, its adjoint values. Recorded solves are compared with plain writes and a flush (fsync)
of the same bytes, in turns: one solve, as in a recording, or ten with one commit, as in a sweep.
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
@pytest.mark.parametrize("parts", [False, True], ids=["whole", "in parts"])
def test_share(record, request, problem, parts):
    folder = next(iter(request.config.folders.values()))
    run = resume(os.path.join(folder, f"run-{CELLS[problem]}-{parts}"), sweeps=parts, every=0.25)
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
    name = f"{problem}{', in parts' if parts else ''}"
    record(taken, contestant="localckpt", problem=name, share=share)
    print(f"\n{name:34} {WORLD.size} ranks: {median(taken):8.3f} s an iteration, {100 * share:.2f} % of it in resume")


@pytest.mark.parametrize("dofs", [60_000, 540_000])
@pytest.mark.parametrize("solves", [1, 10])
def test_record(record, request, dofs, solves):
    folder = next(iter(request.config.folders.values()))
    array = np.random.default_rng(WORLD.rank).standard_normal(dofs // WORLD.size)
    directory = os.path.join(folder, f"journal-{dofs}-{solves}")
    if WORLD.rank == 0:
        os.mkdir(directory)
    WORLD.Barrier()
    journal = Journal(directory, WORLD)
    file = os.open(os.path.join(directory, f"plain-{WORLD.rank}"), os.O_RDWR | os.O_CREAT)
    size = 0

    def append():
        for _ in range(solves):
            journal.stage({"kind": "solve"}, [array])
        journal.commit()

    def plain():
        nonlocal size
        for _ in range(solves):
            write_all(file, memoryview(array).cast("B"), size)
            size += array.nbytes
        os.fsync(file)
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
    name = f"{dofs} dofs{f', {solves} solves' if solves > 1 else ''}"
    ratio = median(taken["record"]) / median(taken["plain"])
    record(taken["record"], contestant="localckpt", recorded=name, ratio=ratio)
    print(f"\n{name}, {WORLD.size} ranks: {1e3 * median(taken['record']):.2f} ms a commit, {ratio:.2f} of a write")
