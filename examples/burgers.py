"""Initial condition of a viscous Burgers flow from what it became: a time-dependent adjoint.

The velocity u follows  u_t + (u . grad) u = nu lap(u)  on the unit square; the initial
velocity is the control and the misfit to a target at every timestep is what is to be small.
With one way of checkpointing, or with all of them, which take turns::

    mpiexec -n 2 python examples/burgers.py --checkpoint localckpt
    mpiexec -n 2 python examples/burgers.py --compare
"""

# ruff: noqa: E402, F403, F405, I001
import argparse
import sys
import tempfile
from itertools import combinations
from statistics import median
from textwrap import fill
from time import perf_counter

ROWS = {  # what the tape does with the states of the timesteps
    "plain": "tape without a schedule, everything in memory",
    "memory": "SingleMemoryStorageSchedule",
    "shared": "Firedrake, one shared parallel-HDF5 file",
    "checkpoint_comm": "Firedrake, checkpoint_comm=COMM_SELF",
    "localckpt": "localckpt, as it comes",
}

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--checkpoint", choices=ROWS, default="localckpt")
parser.add_argument("--compare", action="store_true", help="all ways, and a table")
parser.add_argument("--cells", type=int, default=32, help="cells along each side")
parser.add_argument("--steps", type=int, default=10, help="timesteps")
parser.add_argument("--iterations", type=int, default=8, help="after one that is not timed")
parser.add_argument("--taylor", action="store_true", help="verify the gradient by a Taylor test")
options, sys.argv[1:] = parser.parse_known_args()  # the rest is for PETSc

import numpy as np
from checkpoint_schedules import SingleDiskStorageSchedule, SingleMemoryStorageSchedule
from mpi4py import MPI
from pyadjoint.tape import TimeStep
from firedrake import *
from firedrake.adjoint import *


def record(checkpoint):
    """The misfit as a functional of the initial velocity, on a tape of its own."""
    # ---------------------------------------------------------------- the tape
    tape = Tape()
    set_working_tape(tape)
    continue_annotation()
    if checkpoint == "shared":
        enable_disk_checkpointing(dirname=tempfile.gettempdir())
    elif checkpoint == "checkpoint_comm":
        enable_disk_checkpointing(checkpoint_comm=COMM_SELF, checkpoint_dir=tempfile.gettempdir())
    elif checkpoint == "localckpt":
        import localckpt.adjoint

        localckpt.adjoint.enable_disk_checkpointing()
    if checkpoint == "memory":
        tape.enable_checkpointing(SingleMemoryStorageSchedule())
    elif checkpoint != "plain":
        tape.enable_checkpointing(SingleDiskStorageSchedule())

    # ----------------------------------------------------------- the equations
    mesh = UnitSquareMesh(options.cells, options.cells)
    if checkpoint in ("shared", "checkpoint_comm"):
        mesh = checkpointable_mesh(mesh)
    V = VectorFunctionSpace(mesh, "CG", 2)
    x, y = SpatialCoordinate(mesh)
    initial = Function(V, name="initial").interpolate(
        as_vector([sin(pi * x) * sin(2 * pi * y), x * (1 - x) * y * (1 - y)])
    )
    target = Function(V, name="target").interpolate(as_vector([sin(2 * pi * x) * sin(pi * y) / 2, 0 * x]))
    u, previous = Function(V, name="u"), Function(V, name="previous")
    v = TestFunction(V)
    nu, dt = Constant(0.01), Constant(0.02)
    F = (inner((u - previous) / dt, v) + inner(dot(u, grad(u)), v) + nu * inner(grad(u), grad(v))) * dx
    solver = NonlinearVariationalSolver(NonlinearVariationalProblem(F, u, bcs=DirichletBC(V, 0, "on_boundary")))

    previous.assign(initial)
    u.assign(previous)
    J = 0.0
    for _ in tape.timestepper(iter(range(options.steps))):
        solver.solve()
        J += assemble(inner(u - target, u - target) * dx) * float(dt)
        previous.assign(u)
    misfit = ReducedFunctional(J, Control(initial))
    pause_annotation()
    return misfit


def descend(misfit, m):
    """One iteration of steepest descent from m."""
    J = misfit(m)
    gradient = misfit.derivative(apply_riesz=True)
    return J, gradient, Function(m.function_space()).assign(m - 0.1 * gradient)


# ------------------------------------------------------------- the comparison

inside = []  # seconds that the tape took to save or to restore a timestep


def time_inside(name):
    original = getattr(TimeStep, name)

    def timed(*args):
        begin = perf_counter()
        original(*args)
        inside.append(perf_counter() - begin)

    setattr(TimeStep, name, timed)


def by_place(f):
    """All numbers of f, in an order that no partition of the mesh changes."""
    x, y = SpatialCoordinate(f.function_space().mesh())
    points = Function(f.function_space()).interpolate(as_vector([x, y]))
    points, values = map(np.concatenate, zip(*COMM_WORLD.allgather((points.dat.data_ro, f.dat.data_ro))))
    return values[np.lexsort(np.round(points, 9).T)]


def take_turns(misfits):
    """The last J; by way: seconds of the iterations, of which the tape's own, and the gradient's error."""
    m = {name: misfit.controls[0].tape_value() for name, misfit in misfits.items()}
    seconds, saving = {name: [] for name in misfits}, {name: [] for name in misfits}
    errors = dict.fromkeys(misfits, 0.0)
    for number in range(1 + options.iterations):  # the first one compiles the adjoint
        gradients = {}
        for name in misfits if number % 2 else reversed(misfits):
            set_working_tape(misfits[name].tape)
            inside.clear()
            COMM_WORLD.barrier()
            begin = perf_counter()
            J, gradient, m[name] = descend(misfits[name], m[name])
            taken = perf_counter() - begin
            if number > 0:
                seconds[name].append(COMM_WORLD.allreduce(taken, MPI.MAX))  # the slowest rank counts
                saving[name].append(COMM_WORLD.allreduce(sum(inside), MPI.MAX))
            gradients[name] = by_place(gradient)
        for name, gradient in gradients.items():
            right = gradients.get("plain", gradient)
            errors[name] = max(errors[name], np.linalg.norm(gradient - right) / np.linalg.norm(right))
            assert errors[name] < 1e-8, f"the gradient of {name} is wrong by {errors[name]}"
        if number >= 5 and sum(map(sum, seconds.values())) > 60:
            break  # a busy machine
    return J, seconds, saving, errors


def spread(values):
    """Lowest and highest value, but for one outlier in eight at either end."""
    values = sorted(values)
    outliers = len(values) // 8
    return values[outliers], values[-1 - outliers]


def show(values):
    return "{:.2f} ({:.2f}-{:.2f})".format(median(values), *spread(values))


def report(seconds, saving, errors, dofs):
    """A table, and one sentence that says what it shows."""
    rounds = len(seconds["plain"])

    def ratios(name, other="memory"):  # within a round: whatever else the machine does hits both alike
        return [mine / theirs for mine, theirs in zip(seconds[name], seconds[other])]

    def alike(pair):  # the tape that was recorded first may be a few percent faster, whichever it is
        low, high = spread(ratios(*pair))
        return rounds < 5 or low < 1.03 and high > 0.97

    print(
        f"\nBurgers, {dofs} dofs, {options.steps} timesteps, {COMM_WORLD.size} ranks; {rounds} rounds of functional "
        "and gradient\n"
    )
    for name, meaning in ROWS.items():
        print(f"{name:16} {meaning}")
    print(f"\n{'':16}{'seconds':>20}{'/ memory':>20}{'save, restore s':>17}{'error':>7}")
    for name in ROWS:
        print(
            f"{name:16}{show(seconds[name]):>20}{show(ratios(name)):>20}{median(saving[name]):17.3f}{errors[name]:7.0e}"
        )
    disks = ["localckpt", "checkpoint_comm", "shared"]
    sentence = "On this machine an iteration took, divided by one with memory checkpoints, " + ", ".join(
        f"{show(ratios(name))} with {name}" for name in disks
    )
    pairs = [" and ".join(pair) for pair in combinations(["memory", *disks], 2) if alike(pair)]
    if pairs:
        sentence += "; the rounds differ too much, or are too few, to tell apart " + ", ".join(pairs)
    print("\n" + fill(sentence + ".", 80))


def main():
    misfits = {name: record(name) for name in (ROWS if options.compare else [options.checkpoint])}
    time_inside("checkpoint")
    time_inside("restore_from_checkpoint")
    J, *measured = take_turns(misfits)
    misfit = misfits[options.checkpoint]
    V = misfit.controls[0].tape_value().function_space()
    if options.compare and COMM_WORLD.rank == 0:
        report(*measured, V.dim())
    elif COMM_WORLD.rank == 0:
        print(f"{options.checkpoint}: J = {J:.12g}, {show(measured[0][options.checkpoint])} s per iteration")
    if options.taylor:
        x, y = SpatialCoordinate(V.mesh())
        h = Function(V).interpolate(as_vector([x * (1 - x) * sin(pi * y), y * x]))
        set_working_tape(misfit.tape)
        assert taylor_test(misfit, misfit.controls[0].tape_value().copy(deepcopy=True), h) > 1.9


if __name__ == "__main__":
    main()
