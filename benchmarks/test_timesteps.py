"""Resident memory and live PyOP2 Dats after so many timesteps, each number from a process of its own.

`held`: after a forward sweep, when all checkpoints are alive; `resident`: after the reverse sweep; `peak`: the most in
both, with what waits for Python's garbage collector.
"""

import ctypes
import gc
import json
import os
import subprocess
import sys
import time

import pytest

CELLS = 60


def clean():
    """Let go of what the run does not need: garbage, and what the allocator keeps."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def status(name):
    """Bytes: VmRSS, VmHWM (the most that it was)."""
    with open("/proc/self/status") as file:
        return 1024 * next(int(line.split()[1]) for line in file if line.startswith(name))


def measure(kind, steps, folder):
    """The child: prints what there is in an iteration that is not the first."""
    from problems import advection, square
    from pyop2 import op2

    def look():
        clean()
        held.append(status("VmRSS"))
        dats.append(sum(isinstance(thing, op2.Dat) for thing in gc.get_objects()))

    held, dats = [], []
    iteration = advection(kind, square(CELLS), steps, folder)
    iteration()
    clean()
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # forget the most
    begin = time.perf_counter()
    iteration()
    seconds, peak = time.perf_counter() - begin, status("VmHWM")
    clean()
    resident = status("VmRSS")
    iteration(look)
    print(json.dumps({"seconds": seconds, "peak": peak, "resident": resident, "held": held[0], "dats": dats[0]}))


@pytest.mark.parametrize("kind", ["localckpt", "checkpoint_comm", "memory"])
@pytest.mark.parametrize("steps", [50, 200, 800])
def test_timesteps(record, request, steps, kind):
    folder = next(iter(request.config.folders.values()))
    env = dict(os.environ)  # as it was before MPI added to it
    run = subprocess.run(
        [sys.executable, __file__, kind, str(steps), folder], capture_output=True, text=True, timeout=1800, env=env
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout.strip().splitlines()[-1])
    record([found.pop("seconds")], contestant=kind, steps=steps, **found)


if __name__ == "__main__":
    kind, steps, folder = sys.argv[1:]
    sys.argv[1:] = []  # PETSc reads them, too
    measure(kind, int(steps), folder)
