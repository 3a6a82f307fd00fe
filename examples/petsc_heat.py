"""A hand-written adjoint in plain PETSc, its checkpoints on node-local disks: find the initial temperature.

The temperature u follows  u_t = k lap(u) + u - u^3  on the unit square, with u = 0 on the boundary; diffusion is
implicit, reaction explicit. The control is the initial temperature; the functional is the misfit between the final
temperature and a target. A schedule of checkpoint_schedules decides which states are kept where::

    mpiexec -n 2 python examples/petsc_heat.py --schedule HRevolve

Without that option, several schedules run one after the other. Needs petsc4py, checkpoint_schedules and localckpt,
but neither Firedrake nor a tape.
"""

import argparse
import sys
import time

options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
options.add_argument("--schedule", help="class name of a schedule in checkpoint_schedules")
options.add_argument("--cells", type=int, default=64, help="cells along each side")
options.add_argument("--steps", type=int, default=50)
options, sys.argv[1:] = options.parse_known_args()  # PETSc takes the others

import petsc4py  # noqa: E402

petsc4py.init(sys.argv)

import checkpoint_schedules as schedules  # noqa: E402
import numpy as np  # noqa: E402
from checkpoint_schedules import StorageType  # noqa: E402
from petsc4py import PETSc  # noqa: E402

from localckpt.storage.store import Store  # noqa: E402


class Heat:
    """One timestep of the equation, and its adjoint."""

    def __init__(self, cells, dt=0.002, diffusivity=0.1):
        self.dt = dt
        self.grid = PETSc.DMDA().create([cells - 1, cells - 1], stencil_width=1)
        self.grid.setUniformCoordinates(1 / cells, 1 - 1 / cells, 1 / cells, 1 - 1 / cells)
        self.matrix = self.grid.createMat()  # 1 - dt k lap
        weight = dt * diffusivity * cells**2
        row, column = PETSc.Mat.Stencil(), PETSc.Mat.Stencil()
        (x0, x1), (y0, y1) = self.grid.getRanges()
        for j in range(y0, y1):
            for i in range(x0, x1):
                row.index = i, j
                self.matrix.setValueStencil(row, row, 1 + 4 * weight)
                for x, y in (i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1):
                    if min(x, y) >= 0 and max(x, y) < cells - 1:
                        column.index = x, y
                        self.matrix.setValueStencil(row, column, -weight)
        self.matrix.assemble()
        self.solver = PETSc.KSP().create(self.grid.comm)
        self.solver.setOperators(self.matrix)
        self.solver.setType("cg")  # the matrix is symmetric: its own adjoint
        self.solver.getPC().setType("jacobi")
        self.solver.setTolerances(rtol=30 * np.finfo(PETSc.RealType).eps, atol=0)
        self.solver.setFromOptions()

    def field(self, function):
        """Return function(x, y) as a Vec."""
        u = self.grid.createGlobalVec()
        u.array = function(*self.grid.getCoordinates().array_r.reshape(-1, 2).real.T)
        return u

    def step(self, u):
        """Advance u by one step."""
        u.array += self.dt * (u.array_r - u.array_r**3)
        self.solver.solve(u.copy(), u)

    def adjoint_step(self, u, adjoint):
        """Take the adjoint back over the step that began with the state u."""
        self.solver.solve(adjoint.copy(), adjoint)
        adjoint.array *= 1 + self.dt * (1 - 3 * u.array_r**2)


class Run:
    """Computes the functional, and its gradient with the checkpoints of a schedule."""

    def __init__(self, heat, target, steps):
        self.heat, self.target, self.steps = heat, target, steps
        self.store = Store.temporary()  # a file per rank on a node-local disk
        self.done = 0  # timesteps computed in the last gradient

    def written(self):
        """Return the bytes written to disk so far, on all ranks."""
        return self.heat.grid.comm.tompi4py().allreduce(self.store.summary.written)

    def functional(self, u):
        """Advance u from the initial to the final state and return half the mean square of its misfit."""
        for _ in range(self.steps):
            self.heat.step(u)
        return self.misfit(u)[0]

    def misfit(self, u):
        """Return the functional and its derivative with respect to the final state u."""
        adjoint = u - self.target
        adjoint.scale(1 / u.getSize())
        return (u - self.target).dot(adjoint).real / 2, adjoint

    def gradient(self, initial, schedule):
        """Return the functional and its derivative with respect to the initial state."""
        u = initial.copy()
        kept = {storage: {} for storage in StorageType}  # where -> timestep -> state
        self.done = 0

        def keep(n, storage):
            kept[storage][n] = self.store.put("u", u.array_r) if storage is StorageType.DISK else u.copy()

        def fetch(n, storage):
            if storage is StorageType.DISK:
                self.store.get(kept[storage][n], out=u.array_w)
            else:
                kept[storage][n].copy(u)

        for action in schedule:
            if isinstance(action, schedules.Forward):
                for n in range(action.n0, min(action.n1, self.steps)):
                    # The adjoint of this step and a restart from it need the same state.
                    if action.write_adj_deps or action.write_ics and n == action.n0:
                        keep(n, action.storage)
                    self.heat.step(u)
                    self.done += 1
                if action.n1 >= self.steps and schedule.max_n is None:
                    schedule.finalize(self.steps)
            elif isinstance(action, schedules.EndForward):
                value, adjoint = self.misfit(u)
            elif isinstance(action, schedules.Reverse):
                for n in reversed(range(action.n0, action.n1)):
                    fetch(n, StorageType.WORK)
                    self.heat.adjoint_step(u, adjoint)
                    if action.clear_adj_deps:
                        del kept[StorageType.WORK][n]
            elif isinstance(action, (schedules.Copy, schedules.Move)):
                fetch(action.n, action.from_storage)
                keep(action.n, action.to_storage)
                if isinstance(action, schedules.Move):
                    del kept[action.from_storage][action.n]
            else:  # EndReverse
                return value, adjoint


def taylor_test(run, initial, value, gradient):
    """Return the order in h at which J(u + h v) - J(u) - h J'(u) v vanishes: 2 if the gradient is right."""
    v = run.heat.field(lambda x, y: x * (1 - x) * np.sin(3 * np.pi * y))
    single = PETSc.RealType(0).itemsize < 8
    remainders = []
    for h in (1.0, 0.5, 0.25) if single else (0.1, 0.05, 0.025):
        remainders.append(abs(run.functional(initial + h * v) - value - h * gradient.dot(v).real))
    return min(np.log2(remainders[i] / remainders[i + 1]) for i in range(2))


def main():
    steps = options.steps
    arguments = {
        "SingleMemoryStorageSchedule": (),
        "SingleDiskStorageSchedule": (),
        "Revolve": (steps, 5),
        "HRevolve": (steps, 3, 10),
    }
    heat = Heat(options.cells)
    run = Run(heat, heat.field(lambda x, y: np.sin(np.pi * x) * np.sin(np.pi * y) / 2), steps)
    initial = heat.field(lambda x, y: np.sin(2 * np.pi * x) * y * (1 - y))
    PETSc.Sys.Print(f"{'':28}{'functional':>13}{'gradient':>13}{'steps':>7}{'kB to disk':>12}{'s':>7}")
    for name in [options.schedule] if options.schedule else arguments:
        schedule = getattr(schedules, name)(*arguments[name])
        before, begin = run.written(), time.perf_counter()
        value, gradient = run.gradient(initial, schedule)
        seconds = time.perf_counter() - begin
        PETSc.Sys.Print(
            f"{name:28}{value:13.6g}{gradient.norm():13.6g}{run.done:7}"
            f"{(run.written() - before) / 1e3:12.1f}{seconds:7.2f}"
        )
    rate = taylor_test(run, initial, value, gradient)
    PETSc.Sys.Print(f"Taylor test: {rate:.3f}")
    assert rate > 1.9, "the gradient is wrong"


if __name__ == "__main__":
    main()
