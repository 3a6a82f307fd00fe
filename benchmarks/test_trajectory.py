"""What a step of TSSolve and TSAdjoint takes to store and restore, with localckpt's TSTrajectory type and PETSc's own.

Seconds are those of PETSc's events TSTrajectorySet and TSTrajectoryGet, per step, on the slowest rank; contestants take
turns in one process. Bytes are those on disk after a forward solve.
"""

import gc
from pathlib import Path
from statistics import median

import numpy as np
import pytest
from conftest import race
from mpi4py import MPI
from petsc4py import PETSc

from localckpt.trajectory import Trajectory

WORLD = MPI.COMM_WORLD
STEPS = 40
METHODS = {"Runge-Kutta": "rk", "Crank-Nicolson": "cn"}


class Diffusion:
    """u' = A u on a line, with so many unknowns on all ranks."""

    def __init__(self, dofs, method, kind):
        options = PETSc.Options()
        options["ts_trajectory_type"] = kind
        options["ts_adapt_type"] = "none"
        options["ts_rk_type"] = "4"
        grid = PETSc.DMDA().create([dofs], stencil_width=1)
        self.matrix = grid.createMat()
        first, last = self.matrix.getOwnershipRange()
        for row in range(first, last):
            columns = [column for column in (row - 1, row, row + 1) if 0 <= column < dofs]
            self.matrix.setValues(row, columns, [-2.0 if column == row else 1.0 for column in columns])
        self.matrix.assemble()
        self.u = grid.createGlobalVec()
        self.gradient = self.u.duplicate()
        self.start = np.random.default_rng(WORLD.rank).standard_normal(self.u.getLocalSize())
        ts = self.ts = PETSc.TS().create()
        ts.setType(METHODS[method])
        ts.setRHSFunction(lambda ts, t, u, f: self.matrix.mult(u, f), self.u.duplicate())
        ts.setRHSJacobian(lambda ts, t, u, J, P: self.matrix.copy(P), self.matrix.duplicate())  # which TS changes
        ts.setExactFinalTime(PETSc.TS.ExactFinalTime.STEPOVER)
        ts.setMaxTime(1e9)
        ts.setMaxSteps(STEPS)
        ts.setSaveTrajectory()
        ts.setCostGradients(self.gradient)
        ts.setFromOptions()

    def forward(self):
        self.u.array[:] = self.start
        self.ts.setTime(0.0)
        self.ts.setStepNumber(0)
        self.ts.setTimeStep(0.1)
        self.ts.solve(self.u)

    def seconds(self):
        """Of a step, in both sweeps."""
        before = self.events()
        self.forward()
        self.u.copy(self.gradient)
        self.ts.adjointSolve()
        return (self.events() - before) / STEPS

    @staticmethod
    def events():
        return sum(PETSc.Log.Event(name).getPerfInfo()["time"] for name in ("TSTrajectorySet", "TSTrajectoryGet"))


@pytest.fixture(autouse=True)
def folder(request, monkeypatch):
    """PETSc's type "basic" writes to the current directory, ours to the same filesystem."""
    folder = next(iter(request.config.folders.values()))
    monkeypatch.chdir(folder)
    PETSc.Options()["localckpt_dir"] = folder
    PETSc.Log.begin()
    return folder


@pytest.mark.parametrize("dofs", [512, 32768])
def test_step(record, request, dofs):
    contestants = {kind: Diffusion(dofs, "Runge-Kutta", kind) for kind in ("localckpt", "basic", "memory")}
    taken = race(
        {kind: contestant.seconds for kind, contestant in contestants.items()},
        6 * request.config.getoption("seconds"),
    )
    for contestant in contestants.values():
        contestant.ts.destroy()  # which has references to it that Python does not see
    ratios = {kind: median(taken["localckpt"]) / median(taken[kind]) for kind in ("basic", "memory")}
    record(taken["localckpt"], contestant="localckpt", problem=f"{dofs} dofs", ratios=ratios)
    print(
        f"\n{dofs} dofs, {WORLD.size} ranks: {1e3 * median(taken['localckpt']):.3f} ms a step, "
        + ", ".join(f"{ratio:.2f} of {kind}" for kind, ratio in ratios.items())
    )


@pytest.mark.parametrize("method", METHODS)
def test_bytes(record, method, folder):
    ours, theirs = Diffusion(32768, method, "localckpt"), Diffusion(32768, method, "basic")
    ours.forward()
    theirs.forward()
    trajectory = next(thing for thing in gc.get_objects() if isinstance(thing, Trajectory))
    written = trajectory.summary().written
    WORLD.Barrier()
    basic = sum(file.stat().st_size for file in Path(folder).glob("TS-data-*/*")) if WORLD.rank == 0 else 0
    ours.ts.destroy()
    theirs.ts.destroy()
    ratio = written / WORLD.bcast(basic)
    record([1.0], contestant="localckpt", problem=method, ratio=ratio)
    print(f"\n{method}, {WORLD.size} ranks: {written / 1e6:.1f} MB, {ratio:.2f} of basic")
