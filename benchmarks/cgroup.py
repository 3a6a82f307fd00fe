"""Sweeps where the page cache cannot hold the checkpoints: in a memory cgroup (v1, as root).

The cgroup leaves a quarter of a sweep's distinct bytes for the cache. A sweep should take no
longer than the larger of the same sweep with memory checkpoints outside the cgroup, and its
bytes at the disk's own speed past the cache.

    sudo python benchmarks/cgroup.py --dir /local/scratch
"""

import argparse
import contextlib
import json
import mmap
import os
import subprocess
import sys
import tempfile
import threading
import time
from statistics import median

GROUP = "/sys/fs/cgroup/memory/localckpt-benchmark"


def tell(name, value):
    with open(os.path.join(GROUP, name), "w") as file:
        file.write(str(value))


def ask(name):
    with open(os.path.join(GROUP, name)) as file:
        return file.read()


def disk_speed(folder, nbytes=2**29):
    """Bytes a second past the page cache, writing and reading."""
    block = mmap.mmap(-1, 2**23)
    speeds = []
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        fd = os.open(file.name, os.O_RDWR | os.O_DIRECT)
        for move in (os.pwrite, lambda fd, block, offset: os.preadv(fd, [block], offset)):
            begin = time.perf_counter()
            for offset in range(0, nbytes, len(block)):
                move(fd, block, offset)
            speeds.append(nbytes/(time.perf_counter() - begin))
        os.close(fd)
    return speeds


@contextlib.contextmanager
def peak(kind):
    """The most bytes that the group's processes have for themselves, page cache not included."""
    found, over = [0], threading.Event()

    def watch():
        while not over.wait(0.002):
            stat = dict(line.split() for line in ask("memory.stat").splitlines())
            found[0] = max(found[0], int(stat["rss"]))

    thread = threading.Thread(target=watch)
    if kind != "memory":
        thread.start()
    yield found
    over.set()
    if kind != "memory":
        thread.join()


def measure(kind, options):
    """Median seconds of a forward and of a reverse sweep, after the first ones."""
    import firedrake.adjoint as adjoint
    from problems import advection, square

    swept = {"forward": [], "reverse": []}
    for name, key in (("__call__", "forward"), ("derivative", "reverse")):
        original = getattr(adjoint.ReducedFunctional, name)

        def timed(*args, original=original, key=key, **kwargs):
            begin = time.perf_counter()
            result = original(*args, **kwargs)
            swept[key].append(time.perf_counter() - begin)
            return result

        setattr(adjoint.ReducedFunctional, name, timed)
    mesh = square(options.cells)
    nbytes = 8*3*mesh.num_cells()*options.steps  # a new state in every step
    if kind != "memory":
        os.makedirs(GROUP, exist_ok=True)
        tell("memory.limit_in_bytes", -1)
        tell("cgroup.procs", os.getpid())
    iteration = advection(kind, mesh, options.steps, options.dir)
    with peak(kind) as anonymous:
        iteration()
        iteration()
    if kind != "memory":
        tell("memory.limit_in_bytes", anonymous[0] + nbytes//4)
    for _ in range(options.iterations):
        iteration()
    print(json.dumps({key: median(times[2:]) for key, times in swept.items()} | {"bytes": nbytes}))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", default=tempfile.gettempdir())
    parser.add_argument("--cells", type=int, default=300)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--iterations", type=int, default=4)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    sys.argv[1:] = []  # PETSc reads them, too
    if options.measure:
        return measure(options.measure, options)
    write, read = disk_speed(options.dir)
    print(f"disk past the page cache: writes {write/1e9:.2f} GB/s, reads {read/1e9:.2f} GB/s")
    limits = None
    for kind in ("memory", "localckpt", "checkpoint_comm"):
        run = subprocess.run([sys.executable, __file__, "--measure", kind, "--dir", options.dir,
                              f"--cells={options.cells}", f"--steps={options.steps}",
                              f"--iterations={options.iterations}"], capture_output=True, text=True, timeout=3600)
        if run.returncode:
            print(f"{kind:16} failed, exit status {run.returncode}: {run.stderr.strip()[-300:]}")
            continue
        found = json.loads(run.stdout.strip().splitlines()[-1])
        if limits is None:
            limits = {"forward": max(found["forward"], found["bytes"]/write),
                      "reverse": max(found["reverse"], found["bytes"]/read)}
            print(f"{found['bytes']/1e6:.0f} MB of states in a sweep; the limit: forward "
                  f"{limits['forward']:.2f} s, reverse {limits['reverse']:.2f} s")
        print(f"{kind:16} forward {found['forward']:6.2f} s, {found['forward']/limits['forward']:.2f} of the limit; "
              f"reverse {found['reverse']:6.2f} s, {found['reverse']/limits['reverse']:.2f}", flush=True)
    if os.path.isdir(GROUP):
        os.rmdir(GROUP)


if __name__ == "__main__":
    main()
