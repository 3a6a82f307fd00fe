"""An inversion for kill_runs.py: python resumable.py PROBLEM OPTIMISER SCHEDULE RESULT [PACE]

Writes the control that it ends with to RESULT. RESULT.solves gets a character for each variational solve: + for one
that is begun, - for one that turns out to be read. PACE is seconds to sleep after each value and, up to 0.05, in each
solve of the recording, so that a kill can hit them.
"""

import os
import sys
import time

import numpy as np
from checkpoint_schedules import HRevolve, MultistageCheckpointSchedule, Revolve, SingleDiskStorageSchedule
from firedrake import (
    Constant,
    DirichletBC,
    Function,
    FunctionSpace,
    NonlinearVariationalProblem,
    NonlinearVariationalSolver,
    SpatialCoordinate,
    TestFunction,
    UnitSquareMesh,
    VectorFunctionSpace,
    as_vector,
    assemble,
    cos,
    dot,
    dx,
    grad,
    inner,
    pi,
    sin,
)
from firedrake.adjoint import (
    Control,
    MinimizationProblem,
    ReducedFunctional,
    ROLSolver,
    TAOSolver,
    checkpointable_mesh,
    continue_annotation,
    enable_disk_checkpointing,
    get_working_tape,
    minimize,
    pause_annotation,
)
from mpi4py import MPI

from localckpt.adjoint import replaying
from localckpt.adjoint.recordings import Solved

STEPS = 6
LU = {"ksp_type": "preonly", "pc_type": "lu"}
SCHEDULES = {
    "none": None,
    "disk": SingleDiskStorageSchedule,
    "revolve": lambda: Revolve(STEPS, 2),
    "multistage": lambda: MultistageCheckpointSchedule(STEPS, 1, 2),
    "hrevolve": lambda: HRevolve(STEPS, 1, 2, wd=0.1, rd=0.1),
}


def burgers(mesh):
    """Viscous Burgers flow: the initial velocity, what to solve in each timestep, the misfit."""
    V = VectorFunctionSpace(mesh, "CG", 1)
    x, y = SpatialCoordinate(mesh)
    initial = Function(V).interpolate(as_vector([sin(pi * x) * sin(2 * pi * y), x * (1 - x) * y * (1 - y)]))
    target = Function(V).interpolate(as_vector([sin(2 * pi * x) * sin(pi * y) / 2, 0 * x]))
    u, before, v = Function(V), Function(V), TestFunction(V)
    F = (inner(20 * (u - before) + dot(u, grad(u)), v) + 0.02 * inner(grad(u), grad(v))) * dx
    solver = NonlinearVariationalSolver(
        NonlinearVariationalProblem(F, u, bcs=DirichletBC(V, 0, "on_boundary")), solver_parameters=LU
    )
    return initial, before, u, [solver], lambda: assemble(inner(u - target, u - target) * dx)


def convection(mesh):
    """A temperature in a rotating flow that grows with it: the initial temperature, two solves in each timestep."""
    V = FunctionSpace(mesh, "CG", 1)
    x, y = SpatialCoordinate(mesh)
    initial = Function(V).interpolate(1 - y + cos(pi * x) * sin(pi * y) / 5)
    T, before, psi, v = Function(V), Function(V), Function(V), TestFunction(V)
    stream = (inner(grad(psi), grad(v)) - 20 * before.dx(0) * v) * dx
    flow = as_vector([psi.dx(1), -psi.dx(0)])
    energy = (Constant(50.0) * (T - before) * v + dot(flow, grad(T)) * v + 0.5 * inner(grad(T), grad(v))) * dx
    walls = [DirichletBC(V, 1, 3), DirichletBC(V, 0, 4)]
    solvers = [
        NonlinearVariationalSolver(NonlinearVariationalProblem(form, f, bcs=bcs), solver_parameters=LU)
        for form, f, bcs in ((stream, psi, DirichletBC(V, 0, "on_boundary")), (energy, T, walls))
    ]
    return initial, before, T, solvers, lambda: assemble((T - (1 - y)) ** 2 * dx)


def by_hand(functional):
    c = functional.controls[0].control.copy(deepcopy=True)
    for _ in range(6):
        functional(c)
        c = c._ad_add(functional.derivative(apply_riesz=True)._ad_mul(-0.1))
    return c


def tao(kind, bounded):
    def optimise(functional):
        bounds = None
        if bounded:
            V = functional.controls[0].control.function_space()
            bounds = [(Function(V).assign(-5), Function(V).assign(5))]
        problem = MinimizationProblem(functional, bounds=bounds)
        return TAOSolver(problem, {"tao_type": kind, "tao_max_it": 60, "tao_gatol": 2e-2, "tao_grtol": 0.05}).solve()

    return optimise


def rol(functional):
    """Trust regions: where a step is refused, ROL goes back to the evaluation before."""
    parameters = {
        "General": {"Secant": {"Type": "Limited-Memory BFGS", "Maximum Storage": 5, "Use as Hessian": True}},
        "Step": {"Type": "Trust Region", "Trust Region": {"Initial Radius": 1.0}},
        "Status Test": {"Gradient Tolerance": 2e-2, "Iteration Limit": 8},
    }
    return ROLSolver(MinimizationProblem(functional), parameters).solve()


OPTIMISERS = {
    "hand": by_hand,
    "scipy": lambda functional: minimize(functional, method="L-BFGS-B", tol=1e-3),
    "lmvm": tao("lmvm", False),
    "blmvm": tao("blmvm", True),
    "rol": rol,
}


def count_solves(path):
    """Write characters one by one: the system keeps them when the process is killed."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def counting(character, solve):
        def counted(*args, **kwargs):
            os.write(file, character)
            return solve(*args, **kwargs)

        return counted

    NonlinearVariationalSolver.solve = counting(b"+", NonlinearVariationalSolver.solve)
    Solved.solve = counting(b"-", Solved.solve)


def main(problem, optimiser, schedule, result, pace="0"):
    if MPI.COMM_WORLD.rank == 0:
        count_solves(f"{result}.solves")
    tape = get_working_tape()
    continue_annotation()
    enable_disk_checkpointing()
    if SCHEDULES[schedule]:
        tape.enable_checkpointing(SCHEDULES[schedule]())
    mesh = checkpointable_mesh(UnitSquareMesh(6, 6))
    initial, before, u, solvers, misfit = {"burgers": burgers, "convection": convection}[problem](mesh)
    before.assign(initial)
    J = 0.05 * assemble(inner(initial, initial) * dx)
    for _ in tape.timestepper(iter(range(STEPS))):
        for solver in solvers:
            solver.solve()
            time.sleep(min(float(pace), 0.05))
        before.assign(u)
        J += misfit()
    pause_annotation()
    functional = ReducedFunctional(
        J, Control(initial), eval_cb_post=lambda *args: replaying() or time.sleep(float(pace))
    )
    found = OPTIMISERS[optimiser](functional)
    found = found[0] if isinstance(found, (list, tuple)) else found
    parts = MPI.COMM_WORLD.gather(found.dat.data_ro.copy())
    if MPI.COMM_WORLD.rank == 0:
        np.save(result, np.concatenate(parts))


if __name__ == "__main__":
    main(*sys.argv[1:])
