"""An optimisation that goes on and on: nothing grows, and the gradient stays what it was."""

import pytest

SOAK = """
import ctypes, gc, psutil
from checkpoint_schedules import SingleDiskStorageSchedule
from firedrake import *
from firedrake.adjoint import *
from localckpt.adjoint import *

folder, iterations, engine = sys.argv[1], int(sys.argv[2]), sys.argv[3]
process = psutil.Process()
continue_annotation()
tape = get_working_tape()
enable_disk_checkpointing(checkpoint_dir=folder, engine=engine)
tape.enable_checkpointing(SingleDiskStorageSchedule())
# Without a Real space: PyOP2 keeps some of what it makes for one, in each iteration, with memory checkpoints, too.
V = FunctionSpace(UnitSquareMesh(30, 30), "CG", 2)
source = Function(V).assign(1.3)
u, before, v = Function(V), Function(V), TestFunction(V)
F = (10*(u - before)*v + u*u.dx(0)*v - source*v + inner(grad(u), grad(v)))*dx
solver = NonlinearVariationalSolver(NonlinearVariationalProblem(F, u, bcs=DirichletBC(V, 0, "on_boundary")),
                                    solver_parameters={"ksp_type": "preonly", "pc_type": "lu"})
J = 0
for _ in tape.timestepper(iter(range(5))):
    solver.solve()
    before.assign(u)
    J += assemble(u*u*dx)
functional = ReducedFunctional(J, Control(source))
pause_annotation()


def sweep():
    return functional(source), functional.derivative().dat.data_ro


def measure():
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    disk = 0
    for number in os.listdir("/proc/self/fd"):
        try:
            if folder in os.readlink(f"/proc/self/fd/{number}"):
                disk = max(disk, os.stat(f"/proc/self/fd/{number}").st_blocks)
        except OSError:
            pass  # the listing's own descriptor
    return process.memory_info().rss, process.num_fds(), disk


def sweeps(iterations):
    for i in range(iterations):
        now, derivative = sweep()
        assert abs(now/value - 1) < 1e-12 and abs(derivative - gradient).max() < 1e-12*abs(gradient).max()


value, gradient = sweep()
sweeps(5)
memory, descriptors, disk = measure()
sweeps(iterations)
after = measure()
assert after[1] == descriptors, (after, descriptors)
assert after[0] < 1.05*memory, (after, memory)
# How many checkpoints are alive at a time differs a little from sweep to sweep: rows are added once more, at most. The
# filesystem's own blocks count, too: a written row may take one more than a reserved one.
added = 4 * V.dof_dset.total_size * 8 // 512  # in blocks
assert after[2] < 1.05*(disk + added), (after, disk, added)
"""


@pytest.mark.parametrize("engine", ["direct", "viewer"])
@pytest.mark.parametrize("ranks", [0, 2])
def test_nothing_grows(tmp_path, run_script, request, ranks, engine):
    iterations = request.config.getoption("--soak")
    done = run_script(SOAK, tmp_path, iterations, engine, ranks=ranks, seconds=120 + 10 * iterations)
    assert done.returncode == 0, done.stderr
