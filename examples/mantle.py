"""The temperature that a convecting mantle began with, from the one that it has: an adjoint in G-ADOPT.

A script of G-ADOPT's own calls, with no word of localckpt in it. It prints the misfit and the norm of its
gradient. On a tape in memory, with Firedrake's disk checkpointing, and with localckpt::

    python examples/mantle.py memory
    python examples/mantle.py disk
    python -m localckpt run examples/mantle.py disk
"""

# ruff: noqa: F403, F405
import sys

from checkpoint_schedules import SingleDiskStorageSchedule, SingleMemoryStorageSchedule
from gadopt import *
from gadopt.inverse import *

kind, cells, steps = (*sys.argv[1:4], *("disk", "24", "10")[len(sys.argv[1:4]) :])
cells, steps = int(cells), int(steps)

tape = get_working_tape()
if kind == "disk":
    enable_disk_checkpointing()
    tape.enable_checkpointing(SingleDiskStorageSchedule())
elif kind == "memory":
    tape.enable_checkpointing(SingleMemoryStorageSchedule())

mesh = ExtrudedMesh(IntervalMesh(cells, 1.0), cells, 1 / cells)
mesh.cartesian = True
if kind == "disk":
    mesh = checkpointable_mesh(mesh)
    mesh.cartesian = True
boundary = get_boundary_ids(mesh)
x, y = SpatialCoordinate(mesh)

Z = VectorFunctionSpace(mesh, "CG", 2) * FunctionSpace(mesh, "CG", 1)
Q, Q1 = FunctionSpace(mesh, "DQ", 2), FunctionSpace(mesh, "CG", 1)
z, T = Function(Z, name="Stokes"), Function(Q, name="Temperature")
u, p = split(z)
approximation = BoussinesqApproximation(1e6)
closed = create_stokes_nullspace(Z, closed=True, rotational=False)
energy = EnergySolver(
    T, u, approximation, Constant(4e-6), ImplicitMidpoint, bcs={boundary.bottom: {"T": 1.0}, boundary.top: {"T": 0.0}}
)
stokes = StokesSolver(
    z,
    approximation,
    T,
    nullspace=closed,
    transpose_nullspace=closed,
    bcs={boundary.bottom: {"uy": 0}, boundary.top: {"uy": 0}, boundary.left: {"ux": 0}, boundary.right: {"ux": 0}},
)

profile = 0.5 * (erf((1 - y) * 3) + erf(-y * 3) + 1)
plume = 0.1 * exp(-0.5 * ((x - 0.5) ** 2 + (y - 0.2) ** 2) / 0.1**2)
initial = Function(Q1, name="Initial").interpolate(profile)
observed = Function(Q, name="Observed").interpolate(profile + plume)

T.project(initial, bcs=energy.strong_bcs)
J = 0.0
for _ in tape.timestepper(iter(range(steps))):
    stokes.solve()
    energy.solve()
    J += assemble((T - observed) ** 2 * dx) / steps
misfit = ReducedFunctional(J, Control(initial))
pause_annotation()

guess = Function(Q1).interpolate(profile + 0.5 * plume)
value = misfit(guess)
gradient = misfit.derivative(apply_riesz=True)
log(f"misfit {value:.15e}, norm of its gradient {norm(gradient):.15e}")
if "taylor" in sys.argv:
    direction = Function(Q1).interpolate(plume * (1 + x))
    log(f"order of convergence {taylor_test(misfit, guess, direction):.3f}")
