"""The temperature that a convecting mantle began with: an inversion with G-ADOPT's own optimiser, over several jobs.

A script of G-ADOPT's calls (2026.4, on Firedrake 2026.4), with no word of localckpt in it. It goes on where it was
ended, however often::

    mpiexec -n 2 python -m localckpt run --resume inversion examples/mantle_inversion.py
"""

# ruff: noqa: F403, F405
import sys

from checkpoint_schedules import SingleDiskStorageSchedule
from gadopt import *
from gadopt.inverse import *

cells, steps, iterations = (*map(int, sys.argv[1:4]), *(16, 5, 8)[len(sys.argv[1:4]) :])

tape = get_working_tape()
enable_disk_checkpointing()
tape.enable_checkpointing(SingleDiskStorageSchedule())

mesh = checkpointable_mesh(UnitSquareMesh(cells, cells, quadrilateral=True))
mesh.cartesian = True
boundary = get_boundary_ids(mesh)
x, y = SpatialCoordinate(mesh)

Z = VectorFunctionSpace(mesh, "CG", 2) * FunctionSpace(mesh, "CG", 1)
Q = FunctionSpace(mesh, "CG", 1)
z, T = Function(Z, name="Stokes"), Function(Q, name="Temperature")
u, p = split(z)
approximation = BoussinesqApproximation(1e5)
closed = create_stokes_nullspace(Z, closed=True, rotational=False)
walls = {boundary.bottom: {"T": 1.0}, boundary.top: {"T": 0.0}}
energy = EnergySolver(T, u, approximation, Constant(2e-5), ImplicitMidpoint, bcs=walls)
free_slip = {
    boundary.bottom: {"uy": 0},
    boundary.top: {"uy": 0},
    boundary.left: {"ux": 0},
    boundary.right: {"ux": 0},
}
stokes = StokesSolver(z, approximation, T, nullspace=closed, transpose_nullspace=closed, bcs=free_slip)

profile = 0.5 * (erf((1 - y) * 3) + erf(-y * 3) + 1)
plume = 0.1 * exp(-0.5 * ((x - 0.5) ** 2 + (y - 0.2) ** 2) / 0.1**2)
initial = Function(Q, name="Initial").interpolate(profile)
observed = Function(Q, name="Observed").interpolate(profile + plume)

T.assign(initial)
J = 0.0
for _ in tape.timestepper(iter(range(steps))):
    stokes.solve()
    energy.solve()
    J += assemble((T - observed) ** 2 * dx) / steps
pause_annotation()


def report(value, *controls):
    log(f"misfit {value:.15e}")


misfit = ReducedFunctional(J, Control(initial), eval_cb_post=report)
lower, upper = Function(Q).assign(0.0), Function(Q).assign(1.2)
parameters = {**minimisation_parameters}
parameters["Status Test"] = {"Iteration Limit": iterations, "Gradient Tolerance": 0}
problem = MinimizationProblem(misfit, bounds=(lower, upper))
optimiser = LinMoreOptimiser(problem, parameters)
optimiser.run()
found = optimiser.rol_solver.rolvector.dat[0]
log(f"final misfit {misfit(found):.15e}, norm of the temperature {norm(found):.15e}")
