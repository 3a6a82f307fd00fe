"""Jobs of a run that resumes, and what they compute.

A job is a block in this process: it has a tape of its own, and ends as a killed one does, without a word.
"""

import functools
from contextlib import contextmanager

import firedrake as fd
import numpy as np
from burgers import SCHEDULES, STEPS, arrays, control, record
from firedrake import dx
from firedrake.adjoint import (
    Control,
    ReducedFunctional,
    continue_annotation,
    get_working_tape,
    set_working_tape,
    stop_annotating,
)
from petsc4py import PETSc

from localckpt.adjoint import enable_disk_checkpointing, patches, resume, runs
from localckpt.adjoint.recordings import Solved

SOLVE = fd.NonlinearVariationalSolver.solve


class Killed(BaseException):
    """What a job that is killed ends with here."""


class Solves:
    """Counts the variational solves that are done, not read, and kills the job at the one with a given number."""

    def __init__(self):
        self.count, self.last = 0, None

    def solve(self, solver, *args, **kwargs):
        if isinstance(solver.snes, Solved):
            return SOLVE(solver, *args, **kwargs)
        self.count += 1
        if self.last is not None and self.count > self.last:
            raise Killed
        return SOLVE(solver, *args, **kwargs)


def uninstall():
    if runs._run is not None:
        runs._run.finish()
    patches.uninstall()
    patches.install()


@contextmanager
def job(directory, solves=None, last=None, **arguments):
    """A job of a run: killed at a solve if `last` is given."""
    if solves is not None:
        solves.count, solves.last = 0, last
    run = resume(directory, **arguments)
    with set_working_tape():
        continue_annotation()
        try:
            yield run
        except Killed:
            pass
        except PETSc.Error as exc:  # from TAO
            assert isinstance(exc.__cause__, Killed)
        finally:
            run.finish()


def recorded(schedule=None, in_step=lambda step: None):
    if schedule is None:
        return record(in_step=in_step)
    enable_disk_checkpointing()
    return record(SCHEDULES[schedule](STEPS), in_step=in_step)


def by_hand(functional):
    c = control(1.0)
    for _ in range(3):
        functional(c)
        c = c._ad_add(functional.derivative(apply_riesz=True)._ad_mul(-0.1))
    return c


def end_of(optimiser, functional):
    """The control that an optimiser ends with, as an array."""
    with stop_annotating():
        found = optimiser(functional)
        return np.concatenate(arrays(found[0] if isinstance(found, (list, tuple)) else found))


interval = functools.cache(fd.UnitIntervalMesh)


def line(value=1.0, cells=12):
    """A Function to begin with."""
    V = fd.FunctionSpace(interval(cells), "CG", 1)
    (x,) = fd.SpatialCoordinate(V.mesh())
    with stop_annotating():
        return fd.Function(V).interpolate(value * x * (2 - x))


def diffusion(initial, steps=3, k=0.1, weight=1.0, **arguments):
    """A few timesteps, each with one solve, recorded on the working tape: the ReducedFunctional of `initial`."""
    V = initial.function_space()
    u, before, v = fd.Function(V), fd.Function(V), fd.TestFunction(V)
    before.assign(initial)
    residual = (10 * (u - before) * v + fd.Constant(k) * (1 + u * u) * u.dx(0) * v.dx(0)) * dx
    problem = fd.NonlinearVariationalProblem(residual, u, bcs=fd.DirichletBC(V, 0, 1))
    solver = fd.NonlinearVariationalSolver(problem)
    J = weight * fd.assemble(initial * initial * dx)
    for _ in get_working_tape().timestepper(iter(range(steps))):
        solver.solve()
        before.assign(u)
        J += fd.assemble((u - 0.2) ** 2 * dx)
    return ReducedFunctional(J, Control(initial), **arguments)


def descent(functional, initial, evaluations=3):
    """A hand-written optimiser: the last control, as an array, and all values."""
    values = []
    with stop_annotating():
        c = initial.copy(deepcopy=True)
        for _ in range(evaluations):
            values.append(functional(c))
            c = c._ad_add(functional.derivative(apply_riesz=True)._ad_mul(-0.05))
    return np.concatenate(arrays(c)), values


def on_schedule(schedule):
    """The diffusion problem; its checkpoints go to disk if the schedule has any there."""
    if schedule is not None:
        enable_disk_checkpointing()
        get_working_tape().enable_checkpointing(SCHEDULES[schedule](STEPS))
    return diffusion(line(), STEPS)
