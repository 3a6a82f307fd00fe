"""Whole iterations, with what waits for Python's garbage collector: anonymous memory, and what collecting takes.

Each number of `peaks` is the most in one iteration, in a process of its own; the pages of restored checkpoints that
are mapped are not anonymous. `left alone` is localckpt with `-localckpt_collect 0`. Several iterations after one
another show growth from one to the next, several numbers of timesteps growth within one. The largest problem
has the most timesteps with `--full` only.
"""

import contextlib
import gc
import json
import os
import subprocess
import sys
import threading
import time
from statistics import median, quantiles

import pytest

CELLS = {"60k": 100, "240k": 200}
KINDS = ("localckpt", "left alone", "checkpoint_comm", "memory")
ITERATIONS = {50: 5, 800: 2}
SECONDS = 120  # of iterations with and without


def anonymous():
    """Bytes of RssAnon."""
    with open("/proc/self/status") as file:
        return 1024 * next(int(line.split()[1]) for line in file if line.startswith("RssAnon"))


@contextlib.contextmanager
def watched(peaks):
    """Append the most anonymous memory that the block has, looked at fifty times a second."""
    over, most = threading.Event(), [anonymous()]

    def watch():
        while not over.wait(0.02):
            most[0] = max(most[0], anonymous())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        peaks.append(max(most[0], anonymous()))


def prepare(kind, cells, steps, folder):
    from petsc4py import PETSc
    from problems import advection, square

    if kind == "left alone":
        kind = "localckpt"
        PETSc.Options("localckpt_").setValue("collect", False)
    return advection(kind, square(cells), steps, folder)


def measure(kind, cells, steps, folder):
    """A child: prints the most memory in each iteration, and its seconds."""
    iteration = prepare(kind, int(cells), int(steps), folder)
    peaks, seconds = [], []
    for _ in range(ITERATIONS[int(steps)]):
        begin = time.perf_counter()
        with watched(peaks):
            iteration()
        seconds.append(time.perf_counter() - begin)
    print(json.dumps({"peaks": peaks, "seconds": seconds}))


def compare(cells, steps, folder):
    """A child: prints seconds of iterations of one tape, in turns with what is old frozen and not."""
    from firedrake.adjoint import get_working_tape
    from petsc4py import PETSc

    from localckpt.adjoint import garbage

    iteration = prepare("localckpt", int(cells), int(steps), folder)
    checkpointer = get_working_tape()._package_data["firedrake"]
    taken = {"with": [], "without": []}
    begin = time.perf_counter()
    iteration()
    while time.perf_counter() - begin < SECONDS:
        order = list(taken)[:: (-1) ** len(taken["with"])]
        for way in order:
            PETSc.Options("localckpt_").setValue("collect", way == "with")
            garbage.unfreeze()
            gc.collect()
            garbage.freeze(checkpointer)
            start = time.perf_counter()
            iteration()
            taken[way].append(time.perf_counter() - start)
    print(json.dumps(taken))


def child(*arguments):
    run = subprocess.run(
        [sys.executable, __file__, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=3600,
        env=dict(os.environ),
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.strip().splitlines()[-1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", ITERATIONS)
@pytest.mark.parametrize("dofs", CELLS)
def test_anonymous_memory(record, request, dofs, steps, kind):
    if (dofs, steps) == ("240k", 800) and not request.config.getoption("full"):
        pytest.skip("each takes minutes: --full")
    folder = next(iter(request.config.folders.values()))
    found = child("measure", kind, CELLS[dofs], steps, folder)
    record(found["seconds"], contestant=kind, dofs=dofs, steps=steps, peaks=found["peaks"])
    print(f"\n{dofs} {steps:4} {kind:16}", *(f"{peak / 1e6:.0f}" for peak in found["peaks"]), "MB")


def test_seconds_with_and_without(record, request):
    taken = child("compare", CELLS["60k"], 50, next(iter(request.config.folders.values())))
    ratios = [one / other for one, other in zip(taken["with"], taken["without"])]
    low, middle, high = quantiles(ratios, n=4)
    record(
        taken["with"],
        contestant="localckpt",
        dofs="60k",
        steps=50,
        ratio=middle,
        spread=[low, high],
        without=median(taken["without"]),
        pairs=len(ratios),
    )
    print(f"\nwith ÷ without {middle:.3f} ({low:.3f}-{high:.3f}), {len(ratios)} pairs")


if __name__ == "__main__":
    what, *arguments = sys.argv[1:]
    sys.argv[1:] = []  # PETSc reads them, too
    {"measure": measure, "compare": compare}[what](*arguments)
