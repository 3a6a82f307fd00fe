"""Sweeps where the page cache cannot hold the checkpoints: in a memory cgroup (as root).

The cgroup leaves a quarter of a sweep's distinct bytes for the cache. A sweep should take no
longer than the larger of the same sweep with memory checkpoints outside the cgroup, and its
bytes at the disk's own speed past the cache: `limit` and `ratio` in extra_info. Checkpoints in single precision get the
same cache, half of their sweep, and the same limits. On this disk as it is, and on one that the cgroup makes so slow
that the reverse sweep waits for it.
"""

import json
import mmap
import os
import select
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from statistics import median

import pytest

V1 = "/sys/fs/cgroup/memory"
ROOT = V1 if os.path.isdir(V1) else "/sys/fs/cgroup"
GROUP = os.path.join(ROOT, f"localckpt-benchmark-{os.getpid()}")
DISK_GROUP = GROUP.replace("/memory/", "/blkio/") if ROOT == V1 else GROUP
SLOW = 5_000_000  # bytes a second that a slow disk reads
LIMIT = "memory.limit_in_bytes" if ROOT == V1 else "memory.max"
# Cells along each side and steps, in a full run and else. The cache that is left must be several times what the
# kernel reads ahead of a page fault (`read_ahead_kb`, up to 8 MB), or all it does is to read that again.
SIZES = {False: (200, 60), True: (300, 60)}
WARM_UP = 12  # iterations at most


def measure(kind, cells, steps, iterations, folder):
    """The child: says how far it is, waits for the limit, and prints what the sweeps took after that."""
    import firedrake.adjoint as adjoint
    from problems import advection, square

    def read():
        with open("/proc/self/io") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("read_bytes"))

    swept = {"forward": [], "reverse": []}
    for name, key in (("__call__", "forward"), ("derivative", "reverse")):
        original = getattr(adjoint.ReducedFunctional, name)

        def timed(*args, original=original, key=key, **kwargs):
            before, begin = read(), time.perf_counter()
            result = original(*args, **kwargs)
            swept[key].append((time.perf_counter() - begin, read() - before))
            return result

        setattr(adjoint.ReducedFunctional, name, timed)
    iteration = advection(kind, square(cells), steps, folder)
    print("ready", flush=True)
    while sys.stdin.readline() == "again\n":
        iteration()
        print("done", flush=True)
    for _ in range(iterations):
        iteration()
    print(json.dumps({key: times[-iterations:] for key, times in swept.items()}), flush=True)


def used():
    """Bytes of the group that cannot be reclaimed: all but the page cache."""
    with open(os.path.join(GROUP, "memory.stat")) as file:
        stat = {name: int(value) for name, value in map(str.split, file)}
    if ROOT == V1:
        with open(os.path.join(GROUP, "memory.kmem.usage_in_bytes")) as file:
            return stat["rss"] + stat["shmem"] + int(file.read())
    return stat["anon"] + stat["shmem"] + stat["kernel"]


@contextmanager
def group():
    """A cgroup without a limit so far; yields what a command has to begin with to run in it."""
    if ROOT != V1:
        with open(os.path.join(ROOT, "cgroup.subtree_control"), "w") as file:
            file.write("+memory +io")
    groups = list(dict.fromkeys([GROUP, DISK_GROUP]))
    for path in groups:
        os.mkdir(path)
    enter = "; ".join(f"echo $$ >{path}/cgroup.procs" for path in groups)
    try:
        yield ["sh", "-ec", f'{enter}; exec "$@"', "sh"]
    finally:
        for path in groups:
            for _ in range(50):  # until what MPI has started there has gone, too
                with suppress(OSError):
                    os.rmdir(path)
                    break
                time.sleep(0.1)


def slow_down(folder):
    """Let the group read no more than SLOW from the disk of that folder."""
    device = os.stat(folder).st_dev
    disk = f"{os.major(device)}:{os.minor(device)}"
    name, limit = ("blkio.throttle.read_bps_device", SLOW) if ROOT == V1 else ("io.max", f"rbps={SLOW}")
    with open(os.path.join(DISK_GROUP, name), "w") as file:
        file.write(f"{disk} {limit}")


def run(kind, cells, steps, folder, before=(), cache=None, iterations=7, slow=False):
    """What the child prints, and the peak of :func:`used`; `cache` bytes more are what it had in the end."""
    command = [*before, sys.executable, __file__, kind, str(cells), str(steps), str(iterations), folder]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        try:
            child.stdout.readline()
            peak = steady = 0
            for _ in range(WARM_UP if cache else 2):
                print("again", file=child.stdin, flush=True)
                last = peak
                # Looked at from here: a thread of the child would not run while PETSc has the interpreter's lock.
                while not select.select([child.stdout], [], [], 0.002)[0]:
                    peak = max(peak, used()) if cache else 0
                child.stdout.readline()
                # The allocator keeps more of what was freed from iteration to iteration, up to a point.
                steady = steady + 1 if peak <= 1.005 * last else 0
                if steady == 2:
                    break
            if cache:
                os.sync()
                with open(os.path.join(GROUP, LIMIT), "w") as file:
                    file.write(str(peak + cache))
            if slow:
                slow_down(folder)
            out, _ = child.communicate("go\n", timeout=600)
        finally:
            child.kill()
    assert child.returncode == 0, f"{kind}: exit status {child.returncode} with {peak} bytes and a cache of {cache}"
    return json.loads(out.strip().splitlines()[-1]), peak


def disk_speed(folder, nbytes=2**28):
    """Bytes a second past the page cache, writing and reading."""
    block = mmap.mmap(-1, 2**23)
    speeds = []
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        fd = os.open(file.name, os.O_RDWR | os.O_DIRECT)
        for move in (os.pwrite, lambda fd, block, offset: os.preadv(fd, [block], offset)):
            begin = time.perf_counter()
            for offset in range(0, nbytes, len(block)):
                move(fd, block, offset)
            speeds.append(nbytes / (time.perf_counter() - begin))
        os.close(fd)
    return dict(zip(("forward", "reverse"), speeds))


@pytest.fixture(scope="module")
def limits(request):
    """What memory checkpoints, and the disk, take for a sweep."""
    if os.geteuid() != 0 or not os.access(ROOT, os.W_OK):
        pytest.skip("needs root, to make a memory cgroup")
    cells, steps = SIZES[request.config.getoption("full")]
    folder = next(iter(request.config.folders.values()))
    speed = disk_speed(folder)
    memory, _ = run("memory", cells, steps, folder)
    nbytes = 8 * 3 * 2 * cells**2 * steps  # a new state in every step
    return (
        cells,
        steps,
        folder,
        nbytes,
        {way: (median(seconds for seconds, _ in swept), nbytes / speed[way]) for way, swept in memory.items()},
    )


@pytest.fixture(
    scope="module",
    params=[("localckpt", False), ("single", False), ("localckpt", True), ("single", True), ("checkpoint_comm", False)],
    ids=["localckpt", "single", "localckpt-slow disk", "single-slow disk", "checkpoint_comm"],
)
def swept(request, limits):
    cells, steps, folder, nbytes, _ = limits
    kind, slow = request.param
    with group() as before:
        return (kind, slow, *run(kind, cells, steps, folder, before, nbytes // 4, 3 if slow else 7, slow))


@pytest.mark.parametrize("way", ["forward", "reverse"])
def test_sweep(record, limits, swept, way):
    kind, slow, times, peak = swept
    *_, nbytes, limit = limits
    memory, disk = limit[way]
    if slow and way == "reverse":
        disk = 3 / 4 * nbytes / SLOW  # what the cache does not have
    seconds, read = zip(*times[way])
    record(
        seconds,
        contestant=kind,
        sweep=f"{way}, slow disk" if slow else way,
        bytes=nbytes,
        read=median(read),
        anonymous=peak,
        memory=memory,
        disk=disk,
        ratio=median(seconds) / max(memory, disk),
    )


if __name__ == "__main__":
    kind, *numbers, folder = sys.argv[1:]
    sys.argv[1:] = []  # PETSc reads them, too
    measure(kind, *map(int, numbers), folder)
