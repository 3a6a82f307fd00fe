"""Adjoint problems to measure, and tapes that checkpoint in different ways."""

import contextlib
import itertools
import tempfile
import time
import warnings
from collections import defaultdict

import checkpoint_schedules
import firedrake.adjoint as adjoint
import numpy as np
from checkpoint_schedules import SingleDiskStorageSchedule, SingleMemoryStorageSchedule
from firedrake import (
    Constant,
    FacetNormal,
    Function,
    FunctionSpace,
    LinearVariationalProblem,
    LinearVariationalSolver,
    SpatialCoordinate,
    TestFunction,
    TrialFunction,
    UnitSquareMesh,
    VectorFunctionSpace,
    as_vector,
    assemble,
    div,
    dot,
    dS,
    dx,
    exp,
)
from firedrake.adjoint_utils import checkpointing as fd
from mpi4py import MPI
from pyadjoint.tape import TimeStep

from localckpt.adjoint import enable_disk_checkpointing

CONTESTANTS = ("memory", "localckpt", "viewer", "checkpoint_comm", "shared")

# Seconds in the tape's own store and restore of timesteps, by the contestant of the moment.
inside: defaultdict[str, float] = defaultdict(float)
contestant = ""


def _time(name):
    original = getattr(TimeStep, name)

    def timed(*args):
        begin = time.perf_counter()
        original(*args)
        inside[contestant] += time.perf_counter() - begin

    setattr(TimeStep, name, timed)


_time("checkpoint")
_time("restore_from_checkpoint")


def new_tape(kind, folder=None, comm=MPI.COMM_SELF):
    """A new working tape that checkpoints as `kind` says, into files of `comm` in `folder`.

    `kind` may end in a schedule: ``localckpt with Revolve(20, 4)``.
    """
    folder = folder or tempfile.gettempdir()
    kind, _, schedule = kind.partition(" with ")
    tape = adjoint.Tape()
    adjoint.set_working_tape(tape)
    adjoint.continue_annotation()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Firedrake's own is meant here
        if kind == "localckpt":
            enable_disk_checkpointing(checkpoint_comm=comm, checkpoint_dir=folder)
        elif kind == "viewer":
            enable_disk_checkpointing(checkpoint_comm=comm, checkpoint_dir=folder, engine="viewer")
        elif kind == "single":
            enable_disk_checkpointing(checkpoint_comm=comm, checkpoint_dir=folder, precision="single")
        elif kind == "checkpoint_comm":
            fd.enable_disk_checkpointing(checkpoint_comm=comm, checkpoint_dir=folder)
        elif kind == "shared":
            fd.enable_disk_checkpointing(dirname=folder)
    if schedule:
        tape.enable_checkpointing(eval(schedule, vars(checkpoint_schedules)))
    else:
        tape.enable_checkpointing(SingleMemoryStorageSchedule() if kind == "memory" else SingleDiskStorageSchedule())
    return tape


def advection(kind, mesh, steps=20, folder=None):
    """Explicit DG1 advection with a reaction: a cheap step, the hardest case for checkpoints.

    Returns
    -------
    iteration : callable
        Evaluates functional and gradient, and returns the gradient.
    """
    tape = new_tape(kind, folder)
    if kind == "shared":
        mesh = adjoint.checkpointable_mesh(mesh)
    V, W = FunctionSpace(mesh, "DG", 1), VectorFunctionSpace(mesh, "CG", 1)
    x, y = SpatialCoordinate(mesh)
    velocity = Function(W).interpolate(as_vector([0.5 - y, x - 0.5]))
    start = Function(V).interpolate(exp(-50 * ((x - 0.5) ** 2 + (y - 0.75) ** 2)))
    rate = Function(V).interpolate(1 + x)
    q, new = Function(V), Function(V)
    q.assign(start)
    u, v, n = TrialFunction(V), TestFunction(V), FacetNormal(mesh)
    upwind = (dot(velocity, n) + abs(dot(velocity, n))) / 2
    dt = Constant(0.1 / np.sqrt(mesh.num_cells() / 2))
    flux = (v("+") - v("-")) * (upwind("+") * q("+") - upwind("-") * q("-")) * dS
    L = q * v * dx + dt * (q * div(v * velocity) * dx - flux - rate * q * q * v * dx)
    solver = LinearVariationalSolver(
        LinearVariationalProblem(u * v * dx, L, new, constant_jacobian=True),
        solver_parameters={"ksp_type": "preonly", "pc_type": "bjacobi", "sub_pc_type": "ilu"},
    )
    for _ in tape.timestepper(iter(range(steps))):
        solver.solve()
        q.assign(new)
    return repeated(kind, assemble(q * q * dx), [start, rate])


def repeated(kind, functional, controls):
    """What an optimiser does: functional and gradient, at another point each time.

    At the same point all states would be those of the time before, and none of them written again.
    """
    reduced = adjoint.ReducedFunctional(functional, [adjoint.Control(control) for control in controls])
    adjoint.pause_annotation()
    first = controls[0].dat.data_ro.copy()
    count = itertools.count(1)

    def iteration(between=lambda: None):
        controls[0].dat.data_wo[...] = (1 + 1e-6 * next(count)) * first
        with measured(kind):
            reduced(controls)
            between()
            return reduced.derivative()

    iteration.functional = reduced
    return iteration


@contextlib.contextmanager
def measured(kind):
    """Count what the tape does inside for `kind`."""
    global contestant
    contestant = kind
    inside[kind] = 0.0
    yield


def square(cells):
    """The mesh, with 6 DG1 dofs for each of its cells squared."""
    return UnitSquareMesh(cells, cells)
