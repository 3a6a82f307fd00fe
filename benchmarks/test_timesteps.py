"""Resident memory and live PyOP2 Dats after so many timesteps, each number from a process of its own."""

import ctypes
import gc
import json
import os
import resource
import subprocess
import sys
import time

import pytest

CELLS = 60


def measure(kind, steps, folder):
    """The child: prints what there is after an iteration."""
    import psutil
    from problems import advection, square
    from pyop2 import op2

    iteration = advection(kind, square(CELLS), steps, folder)
    begin = time.perf_counter()
    iteration()
    seconds = time.perf_counter() - begin
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what the allocator keeps is not what the run needs
    dats = sum(isinstance(thing, op2.Dat) for thing in gc.get_objects())
    print(json.dumps({"seconds": seconds, "resident": psutil.Process().memory_info().rss, "dats": dats,
                      "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss*1024}))


@pytest.mark.parametrize("kind", ["localckpt", "checkpoint_comm", "memory"])
@pytest.mark.parametrize("steps", [50, 200, 800])
def test_timesteps(record, request, steps, kind):
    folder = next(iter(request.config.folders.values()))
    env = dict(os.environ)  # as it was before MPI added to it
    run = subprocess.run([sys.executable, __file__, kind, str(steps), folder], capture_output=True, text=True,
                         timeout=1800, env=env)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout.strip().splitlines()[-1])
    record([found.pop("seconds")], contestant=kind, steps=steps, **found)


if __name__ == "__main__":
    kind, steps, folder = sys.argv[1:]
    sys.argv[1:] = []  # PETSc reads them, too
    measure(kind, int(steps), folder)
