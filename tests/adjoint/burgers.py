"""A small nonlinear time-dependent problem, recorded on the working tape and replayed.

The control is a mixed Function with a Real part, so that what a schedule stores is both
a state in a plain space and a control in a mixed one.
"""

import functools
from contextlib import contextmanager

import checkpoint_schedules
import firedrake as fd
import numpy as np
from checkpoint_schedules import (
    HRevolve,
    MixedCheckpointSchedule,
    MultistageCheckpointSchedule,
    Revolve,
    SingleDiskStorageSchedule,
    SingleMemoryStorageSchedule,
    StorageType,
    TwoLevelCheckpointSchedule,
)
from firedrake import dx, grad, inner, pi, sin
from firedrake.adjoint import (
    Control,
    ReducedFunctional,
    continue_annotation,
    get_working_tape,
    set_working_tape,
    stop_annotating,
    taylor_test,
)
from firedrake.adjoint_utils.checkpointing import CheckpointFunction
from mpi4py import MPI

from localckpt.adjoint import enable_disk_checkpointing

STEPS = 5
SCALES = 1.3, 0.7
LU = {"ksp_type": "preonly", "pc_type": "lu", "snes_rtol": 1e-13}


class UsesTheDisk:
    """checkpoint_schedules 1.0.4 raises TypeError when these two are asked, which a tape does first of all."""

    def uses_storage_type(self, storage):
        return storage in (StorageType.DISK, StorageType.RAM)


class DiskRevolve(UsesTheDisk, checkpoint_schedules.DiskRevolve):
    pass


class PeriodicDiskRevolve(UsesTheDisk, checkpoint_schedules.PeriodicDiskRevolve):
    pass


# Where the disk costs as much as a step, those of Revolve's kin prefer computing again.
CHEAP = {"wd": 0.1, "rd": 0.1}
ON_DISK = {
    "all on disk": lambda steps: SingleDiskStorageSchedule(),
    "all on disk, moved": lambda steps: SingleDiskStorageSchedule(move_data=True),
    "multistage, memory and disk": lambda steps: MultistageCheckpointSchedule(steps, 1, 2),
    "multistage, disk": lambda steps: MultistageCheckpointSchedule(steps, 0, 2),
    "hrevolve": lambda steps: HRevolve(steps, 1, 2, **CHEAP),
    "disk revolve": lambda steps: DiskRevolve(steps, 1, **CHEAP),
    "periodic disk revolve": lambda steps: PeriodicDiskRevolve(steps, 1),
    "mixed, disk": lambda steps: MixedCheckpointSchedule(steps, 2, storage=StorageType.DISK),
    "two levels, disk": lambda steps: TwoLevelCheckpointSchedule(2, 1, binomial_storage=StorageType.DISK),
    "two levels, disk and memory": lambda steps: TwoLevelCheckpointSchedule(2, 1, binomial_storage=StorageType.RAM),
}
IN_MEMORY = {
    "all in memory": lambda steps: SingleMemoryStorageSchedule(),
    "revolve": lambda steps: Revolve(steps, 2),
    "multistage, memory": lambda steps: MultistageCheckpointSchedule(steps, 2, 0),
    "mixed, memory": lambda steps: MixedCheckpointSchedule(steps, 2, storage=StorageType.RAM),
}
SCHEDULES = ON_DISK | IN_MEMORY


@functools.cache
def square():
    return fd.UnitSquareMesh(4, 4)


def control(scale, mesh=None):
    """The control that `scale` stands for."""
    mesh = mesh or square()
    W = fd.FunctionSpace(mesh, "CG", 2) * fd.FunctionSpace(mesh, "R", 0)
    x, y = fd.SpatialCoordinate(mesh)
    with stop_annotating():
        c = fd.Function(W, name="control")
        c.sub(0).interpolate(1 + scale * sin(pi * x) * sin(pi * y))
        c.sub(1).assign(scale)
    return c


def record(schedule=None, mesh=None, in_step=lambda step: None):
    """Run the problem on the working tape: its ReducedFunctional of the control.

    `in_step` is called in every step.
    """
    tape = get_working_tape()
    if schedule is not None:
        tape.enable_checkpointing(schedule)
    c = control(1.0, mesh)
    V = c.function_space().sub(0).collapse()
    u, before, v = fd.Function(V, name="u"), fd.Function(V, name="before"), fd.TestFunction(V)
    source, k = fd.split(c)
    residual = (inner(10 * (u - before) + u * u.dx(0) - source, v) + 0.1 * (1 + k * k) * inner(grad(u), grad(v))) * dx
    problem = fd.NonlinearVariationalProblem(residual, u, bcs=fd.DirichletBC(V, 0, "on_boundary"))
    solver = fd.NonlinearVariationalSolver(problem, solver_parameters=LU)
    J = 0.0
    for step in tape.timestepper(iter(range(STEPS))):
        solver.solve()
        before.assign(u)
        J += fd.assemble((1 + k * k) * u * u * dx)
        in_step(step)
    return ReducedFunctional(J, Control(c))


def record_on_disk(mesh=None, in_step=lambda step: None, **arguments):
    """Run the problem on the working tape with every step stored on disk by localckpt."""
    enable_disk_checkpointing(**arguments)
    return record(SingleDiskStorageSchedule(), mesh, in_step)


def replay(functional, scales=SCALES):
    """Values and gradients at the controls of those scales, one after another."""
    return [sweep(functional, scale) for scale in scales]


def sweep(functional, scale, mesh=None):
    """A new evaluation and its gradient, as arrays."""
    with stop_annotating():
        value = functional(control(scale, mesh))
        return np.concatenate([[value], *arrays(functional.derivative())])


def arrays(function):
    return [dat.data_ro.ravel() for dat in function.dat]


@functools.cache
def reference(scales=SCALES):
    """What :func:`replay` has on a tape without a schedule."""
    with bare_tape():
        return replay(record(), scales)


@contextmanager
def bare_tape():
    with set_working_tape() as tape:
        continue_annotation()
        yield tape


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)


def convergence(functional):
    """The order at which the Taylor remainder falls: 2 where the gradient is right."""
    with stop_annotating():
        return taylor_test(functional, control(1.1), control(0.3))


def disk_checkpoints(tape):
    """All checkpoints on disk that the tape holds now."""
    return [
        checkpoint
        for step in tape.timesteps
        for checkpoint in step._checkpoint.values()
        if isinstance(checkpoint, CheckpointFunction)
    ]


def kind(checkpoint):
    """The class of a checkpoint, or LocalCheckpoint if it is a CheckpointFunction that localckpt made."""
    return type(getattr(checkpoint, "local", checkpoint))


def rows_in_use(engine):
    """Rows of a file, direct engine, that somebody holds."""
    return sum(pool.rows - pool.free for pool in engine.pools.values())


@functools.cache
def pairs():
    """The world in groups of two ranks."""
    world = MPI.COMM_WORLD
    return world.Split(world.rank // 2, world.rank)
