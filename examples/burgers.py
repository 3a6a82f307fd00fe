"""Initial condition of a viscous Burgers flow from what it became: a time-dependent adjoint.

The velocity u follows  u_t + (u . grad) u = nu lap(u)  on the unit square; the initial
velocity is the control and the misfit to a target at every timestep is what is to be small.
Run one way of checkpointing::

    mpiexec -n 2 python examples/burgers.py --checkpoint localckpt

or all of them, one after the other, with a table at the end::

    python examples/burgers.py --compare --ranks 2
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time

ROWS = {  # name: what the tape does with the states of the timesteps
    "plain": "tape without a schedule, everything in memory",
    "memory": "SingleMemoryStorageSchedule",
    "shared": "Firedrake, one shared parallel-HDF5 file",
    "checkpoint_comm": "Firedrake, checkpoint_comm=COMM_SELF",
    "localckpt": "localckpt, as it comes",
}


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", choices=ROWS, default="localckpt")
    parser.add_argument("--compare", action="store_true", help="run all rows and print a table")
    parser.add_argument("--ranks", type=int, default=2, help="ranks of each row of the table")
    parser.add_argument("--cells", type=int, default=32, help="cells along each side")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--iterations", type=int, default=3, help="optimisation iterations; the first is not timed")
    parser.add_argument("--taylor", action="store_true", help="verify the gradient by a Taylor test")
    parser.add_argument("--result", help="file for rank 0 to write what was measured to (.npz)")
    options, sys.argv[1:] = parser.parse_known_args()  # the rest is for PETSc
    return options


def main(options):
    import firedrake.adjoint as adjoint
    from checkpoint_schedules import SingleDiskStorageSchedule, SingleMemoryStorageSchedule
    from firedrake import (
        Constant,
        DirichletBC,
        Function,
        NonlinearVariationalProblem,
        NonlinearVariationalSolver,
        SpatialCoordinate,
        TestFunction,
        UnitSquareMesh,
        VectorFunctionSpace,
        as_vector,
        assemble,
        dot,
        dx,
        grad,
        inner,
        pi,
        sin,
    )
    from mpi4py import MPI

    # ---------------------------------------------------------------- the tape
    tape = adjoint.get_working_tape()
    adjoint.continue_annotation()
    if options.checkpoint == "shared":
        adjoint.enable_disk_checkpointing()
    elif options.checkpoint == "checkpoint_comm":
        adjoint.enable_disk_checkpointing(checkpoint_comm=MPI.COMM_SELF, checkpoint_dir=tempfile.gettempdir())
    elif options.checkpoint == "localckpt":
        from localckpt.adjoint import enable_disk_checkpointing
        enable_disk_checkpointing()
    if options.checkpoint == "memory":
        tape.enable_checkpointing(SingleMemoryStorageSchedule())
    elif options.checkpoint != "plain":
        tape.enable_checkpointing(SingleDiskStorageSchedule())

    # ----------------------------------------------------------- the equations
    mesh = UnitSquareMesh(options.cells, options.cells)
    if options.checkpoint in ("shared", "checkpoint_comm"):
        mesh = adjoint.checkpointable_mesh(mesh)
    V = VectorFunctionSpace(mesh, "CG", 2)
    x, y = SpatialCoordinate(mesh)
    initial = Function(V, name="initial").interpolate(as_vector([sin(pi*x)*sin(2*pi*y), x*(1 - x)*y*(1 - y)]))
    target = Function(V, name="target").interpolate(as_vector([sin(2*pi*x)*sin(pi*y)/2, 0*x]))
    u, previous = Function(V, name="u"), Function(V, name="previous")
    v = TestFunction(V)
    nu, dt = Constant(0.01), Constant(0.02)
    F = (inner((u - previous)/dt, v) + inner(dot(u, grad(u)), v) + nu*inner(grad(u), grad(v)))*dx
    solver = NonlinearVariationalSolver(NonlinearVariationalProblem(F, u, bcs=DirichletBC(V, 0, "on_boundary")))

    previous.assign(initial)
    u.assign(previous)
    J = 0.0
    for _ in tape.timestepper(iter(range(options.steps))):
        solver.solve()
        J += assemble(inner(u - target, u - target)*dx)*float(dt)
        previous.assign(u)
    control = adjoint.Control(initial)
    reduced = adjoint.ReducedFunctional(J, control)
    adjoint.pause_annotation()

    # -------------------------------------------------------- the optimisation
    clock = Clock(V.dim()*8)
    begin, m = 0.0, initial
    for iteration in range(options.iterations):
        if iteration == 1:
            clock.reset()
            begin = time.perf_counter()
        J = reduced(m)
        gradient = reduced.derivative(apply_riesz=True)
        m = Function(V).assign(m - 0.1*gradient)
    timed = max(1, options.iterations - 1)
    seconds = (time.perf_counter() - begin)/timed
    if options.taylor:
        h = Function(V).interpolate(as_vector([x*(1 - x)*sin(pi*y), y*x]))
        assert adjoint.taylor_test(reduced, initial, h) > 1.9

    comm = mesh.comm
    slowest = comm.allreduce(clock.save/timed, MPI.MAX), comm.allreduce(clock.restore/timed, MPI.MAX)
    peak = comm.allreduce(peak_memory(), MPI.SUM)
    points = Function(V).interpolate(as_vector([x, y]))
    fields = comm.gather((points.dat.data_ro.copy(), gradient.dat.data_ro.copy()))
    if comm.rank == 0:
        print(f"{options.checkpoint}: J = {J:.12g}, {seconds:.2f} s per iteration")
        if options.result:
            write_result(options.result, fields, seconds=seconds, save=slowest[0], restore=slowest[1],
                         bytes=clock.bytes/timed, peak=peak, dofs=V.dim())


class Clock:
    """Time that the tape spends in storing and restoring timesteps, and what it stores."""

    def __init__(self, nbytes):
        from pyadjoint.tape import TimeStep
        self.nbytes = nbytes
        self.reset()
        checkpoint, restore = TimeStep.checkpoint, TimeStep.restore_from_checkpoint

        def timed_checkpoint(step, *args):
            begin = time.perf_counter()
            checkpoint(step, *args)
            self.save += time.perf_counter() - begin
            fields = [c for c in step._checkpoint.values() if hasattr(c, "restore") or hasattr(c, "function_space")]
            self.bytes += self.nbytes*len(fields)

        def timed_restore(step, *args):
            begin = time.perf_counter()
            restore(step, *args)
            self.restore += time.perf_counter() - begin

        TimeStep.checkpoint, TimeStep.restore_from_checkpoint = timed_checkpoint, timed_restore

    def reset(self):
        self.save = self.restore = 0.0
        self.bytes = 0


def peak_memory():
    """Peak resident memory of this process in bytes."""
    import resource
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss*1024


def write_result(path, fields, **figures):
    """The figures, and the gradient in an order that no partition of the mesh changes."""
    import numpy as np
    points, values = (np.concatenate(parts) for parts in zip(*fields))
    order = np.lexsort(np.round(points, 9).T)
    np.savez(path, gradient=values[order], figures=json.dumps(figures))


def compare(options):
    import numpy as np
    passed_on = [f"--{name}={getattr(options, name)}" for name in ("cells", "steps", "iterations")] + sys.argv[1:]
    launcher = os.environ.get("MPIEXEC", "mpiexec").split() + ["-n", str(options.ranks)]
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ROWS:
            result = os.path.join(folder, name + ".npz")
            subprocess.run([*launcher, sys.executable, __file__, "--checkpoint", name, "--result", result,
                            *passed_on], check=True, timeout=1800, cwd=folder)
            with np.load(result) as data:
                rows[name] = data["gradient"], json.loads(str(data["figures"]))
    reference = rows["plain"][0]
    first = rows["plain"][1]
    print(f"\nBurgers, {first['dofs']} dofs, {options.steps} steps, {options.ranks} ranks; per optimisation "
          "iteration (functional and gradient)\n")
    print(f"{'':16}{'wall s':>8}{'save s':>9}{'restore s':>11}{'stored MB':>11}{'peak MB':>9}{'gradient error':>16}")
    for name, (gradient, figures) in rows.items():
        error = np.linalg.norm(gradient - reference)/np.linalg.norm(reference)
        assert error < 1e-8, f"the gradient of {name} is wrong by {error}"
        print(f"{name:16}{figures['seconds']:8.2f}{figures['save']:9.3f}{figures['restore']:11.3f}"
              f"{figures['bytes']/1e6:11.1f}{figures['peak']/1e6:9.0f}{error:16.1e}   {ROWS[name]}")


if __name__ == "__main__":
    options = parse()
    compare(options) if options.compare else main(options)
