"""An optimisation that goes on and on: nothing grows, and the gradient stays what it was."""

from pathlib import Path

import pytest

SOAK = """
sys.path.insert(0, sys.argv[1])
import ctypes, gc, psutil
import firedrake as fd
from burgers import assert_same, record_on_disk, sweep
from firedrake.adjoint import continue_annotation

iterations, process = int(sys.argv[3]), psutil.Process()
continue_annotation()
mesh = fd.UnitSquareMesh(30, 30)
functional = record_on_disk(mesh=mesh, checkpoint_dir=sys.argv[2], engine=sys.argv[4])


def measure():
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    disk = 0
    for number in os.listdir("/proc/self/fd"):
        try:
            if sys.argv[2] in os.readlink(f"/proc/self/fd/{number}"):
                disk = max(disk, os.stat(f"/proc/self/fd/{number}").st_blocks)
        except OSError:
            pass  # the listing's own descriptor
    return process.memory_info().rss, process.num_fds(), disk


first = sweep(functional, 1.3, mesh)
for i in range(5):
    assert_same([sweep(functional, 1.3, mesh)], [first])
memory, descriptors, disk = measure()
for i in range(iterations):
    assert_same([sweep(functional, 1.3, mesh)], [first])
after = measure()
assert after[1] == descriptors, (after, descriptors)
# The filesystem's own blocks count, too: a written row may take one more than a reserved one.
assert after[0] < 1.05*memory and after[2] < 1.05*disk, (after, memory, disk)
"""


@pytest.mark.parametrize("engine", ["direct", "viewer"])
@pytest.mark.parametrize("ranks", [0, 2])
def test_nothing_grows(tmp_path, run_script, request, ranks, engine):
    iterations = request.config.getoption("--soak")
    done = run_script(SOAK, Path(__file__).parents[1] / "tape", tmp_path, iterations, engine, ranks=ranks,
                      seconds=60 + 5*iterations)
    assert done.returncode == 0, done.stderr
