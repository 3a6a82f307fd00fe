"""``localckpt doctor``: what a run will find here. ``localckpt bench``: what checkpoints cost on which disk."""

import ctypes
import json
import os
import resource
import sys
import warnings
from importlib import import_module
from importlib.metadata import distributions
from math import inf
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import NamedTuple

import numpy as np

from localckpt.storage import run_directories


class Finding(NamedTuple):
    """What is so, what to do about it, and whether runs fail on it."""

    subject: str
    said: str
    todo: str = ""
    fatal: bool = False


def version(package):
    return next((found.version for found in distributions(name=package)), "of unknown version")


def hdf5(vecfile):
    library, numbers = ctypes.CDLL(vecfile.__file__), [ctypes.c_uint() for _ in range(3)]
    library.H5get_libversion(*map(ctypes.byref, numbers))
    parallel = "parallel" if hasattr(library, "H5Pset_fapl_mpio") else "not parallel"
    return f"{'.'.join(str(number.value) for number in numbers)}, {parallel}"


WANTED = {  # in the order in which they need each other: module, what it says of itself, what to do without it
    "mpi4py": (
        "mpi4py.MPI",
        lambda MPI: f"{version('mpi4py')}, {MPI.Get_library_version().partition(',')[0].strip()}",
        "install mpi4py, compiled with the MPI of your jobs",
    ),
    "PETSc": (
        "petsc4py.PETSc",
        lambda PETSc: (
            f"{'.'.join(map(str, PETSc.Sys.getVersion()))}, petsc4py {sys.modules['petsc4py'].__version__}, "
            f"scalars {np.dtype(PETSc.ScalarType)}, indices {np.dtype(PETSc.IntType)}"
        ),
        "install petsc4py for the PETSc that you use (PETSC_DIR, PETSC_ARCH)",
    ),
    "HDF5": ("localckpt._vecfile", hdf5, "build localckpt for this PETSc: pip install --no-build-isolation"),
    "Firedrake": (
        "localckpt.adjoint.patches",
        lambda _: f"{version('firedrake')}, pyadjoint {version('pyadjoint-ad')}",
        "install a Firedrake and a localckpt that fit this PETSc and each other",
    ),
}


def versions():
    """What is installed. Collective on COMM_WORLD, as importing Firedrake is."""
    yield Finding("localckpt", f"{version('localckpt')}, {os.path.dirname(__file__)}, Python {sys.version.split()[0]}")
    for subject, (module, describe, todo) in WANTED.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Firedrake's, that PETSc is there already
                yield Finding(subject, describe(import_module(module)))
        except Exception as exc:  # an import may raise anything
            absent = getattr(exc, "name", None) == "firedrake"
            yield Finding(
                subject,
                "not installed" if absent else f"{type(exc).__name__}: {' '.join(str(exc).split())}",
                "without it there is VecFile, and no tape" if absent else todo,
                not absent,
            )


def memory_limits(root="/"):
    """Limit and use, in bytes, of each memory cgroup, v1 or v2, that this process is in."""
    for line in Path(root, "proc/self/cgroup").read_text().splitlines():
        number, controllers, group = line.split(":", 2)
        mount, names = (
            ("sys/fs/cgroup", ("memory.max", "memory.current"))
            if number == "0"
            else ("sys/fs/cgroup/memory", ("memory.limit_in_bytes", "memory.usage_in_bytes"))
        )
        path = Path(group.lstrip("/"))
        # Each of its parents has a limit, too; a container sees only the last of them.
        for directory in (path, *path.parents) if number == "0" or "memory" in controllers.split(",") else ():
            try:
                limit, used = (int(Path(root, mount, directory, name).read_text()) for name in names)
            except (OSError, ValueError):  # no such file; "max"
                continue
            if limit < 1 << 60:
                yield limit, used


def limits():
    """What the system and the scheduler do not allow on this node."""
    from localckpt.storage.directories import JOB_LIMITS

    for name, enough, why, todo in (
        ("RLIMIT_NOFILE", 256, "open files; each rank has some in every directory", "ulimit -n 4096"),
        ("RLIMIT_FSIZE", inf, "bytes in a file; more goes to the next directory, or fails", "ulimit -f unlimited"),
        ("RLIMIT_AS", inf, "bytes of addresses; restored checkpoints are mapped", "ulimit -v unlimited"),
        ("RLIMIT_DATA", inf, "bytes of data; restored checkpoints are mapped", "ulimit -d unlimited"),
    ):
        most = resource.getrlimit(getattr(resource, name))[0]
        if most != resource.RLIM_INFINITY and most < enough:
            yield Finding(name, f"{most} {why}", todo)
    for limit, used in sorted(memory_limits())[:1]:
        yield Finding(
            "memory",
            f"{limit / 1e9:.3g} GB here, {used / 1e9:.3g} used; the page cache of checkpoints is a part of it",
            "the system takes back what it has on disk, and goes at the disk's pace then; "
            "it cannot take back what directories in memory hold: name a disk",
        )
    for name in filter(os.environ.get, JOB_LIMITS):
        yield Finding(
            name,
            f"{os.environ[name]}, beyond which the scheduler ends the job",
            "give less to -localckpt_dir_limit, in bytes for each node",
        )


def directories(named, ranks):
    """Where checkpoints go on this node, and where else they could."""
    from localckpt.storage.directories import Directory, choose_tiers, named_directories

    tiers, usable = [], []
    try:
        tiers = [tier.path for tier in choose_tiers(None, ranks)]
    except ValueError as exc:
        yield Finding("-localckpt_dir_limit", str(exc), "correct it", True)
    asked = [*tiers, *filter(None, named_directories()), *named]
    for path in dict.fromkeys([*asked, *run_directories.default_parents()]):
        use = "checkpoints go here; " if path in tiers else ""
        try:
            run_directories.remove(run_directories.make(path))
            place = Directory.at(path)
        except OSError as exc:
            yield Finding(path, f"no directory to write to: {exc.strerror}", "make it, or name another one")
        else:
            usable.append(path)
            todo = (
                "in memory, and counts against the job's: name a disk"
                if place.in_ram
                else "on the network: name a disk of the node's own"
                if place.on_network
                else ""
            )
            yield Finding(
                path,
                f"{use}{place.filesystem}, {place.free / 1e9:.3g} GB free, "
                f"{place.free / 1e9 / ranks:.3g} for each rank",
                todo if use else "",
            )
    if tiers and not set(usable) & set(tiers):
        yield Finding("checkpoints", "have no directory to go to", "name one with -localckpt_dir", True)


def doctor(named, as_json):
    """Print, on rank 0, what runs will find on the nodes of COMM_WORLD. Collective on COMM_WORLD."""
    found = list(versions())
    nodes, first = [(os.uname().nodename, 1, found)], True
    if not any(finding.fatal for finding in found[:4]):  # else nothing to look with, or to talk over
        from mpi4py import MPI

        world, node = MPI.COMM_WORLD, MPI.COMM_WORLD.Split_type(MPI.COMM_TYPE_SHARED)
        if node.rank == 0:
            found += [*limits(), *directories(named, node.size)]
        here = (MPI.Get_processor_name(), node.size, found) if node.rank == 0 else None
        nodes, first = [node for node in world.allgather(here) if node], world.rank == 0
    where: dict[Finding, list[str]] = {}
    for name, _, findings in nodes:
        for finding in findings:
            where.setdefault(finding, []).append(name)
    if first and as_json:
        print(
            json.dumps(
                {
                    "nodes": [{"name": name, "ranks": ranks} for name, ranks, _ in nodes],
                    "findings": [finding._asdict() | {"nodes": names} for finding, names in where.items()],
                },
                indent=4,
            )
        )
    elif first:
        print("nodes (ranks): " + ", ".join(f"{name} ({ranks})" for name, ranks, _ in nodes))
        width = max(len(finding.subject) for finding in where) + 2
        for (subject, said, todo, fatal), names in where.items():
            mark = "FAILS" if fatal else "note" if todo else ""
            print(f"{mark:7}{subject:{width}}{said}", *(names if len(names) < len(nodes) else []))
            if todo:
                print(f"{'':{width + 7}}-> {todo}")
    return int(any(finding.fatal for finding in where))


def seconds(budget, call, *args):
    """The median time of a call that has found its pace, of as many as the budget allows."""
    times: list[float] = []
    end = perf_counter() + budget
    while len(times) < 6 or (perf_counter() < end and len(times) < 1000):
        begin = perf_counter()
        call(*args)
        times.append(perf_counter() - begin)
    return median(times[3:])


def save(store, held, array):
    array[0] += 1  # else nothing is written
    held[:] = held[-1:] + [store.put("bench", array)]


def restore(store, held, array):
    held[-1].verified_at = -inf  # as if that had been long ago
    store.get(held[-1], array.shape, array.dtype)


def measure(directory, ranks, budget):
    """What was done with how many bytes in how many seconds; so many ranks share memory and disk."""
    from mpi4py import MPI

    from localckpt.storage.store import Store

    share, found, made = budget / 18, {}, run_directories.make(directory)
    try:
        with open(f"{made}/plain", "w+b", buffering=0) as file:
            number = file.fileno()
            for size in 8_000, max(1_000_000, 32_000_000 // ranks // 8 * 8):
                array, other = np.random.default_rng(1).random((2, size // 8))
                for engine in "direct", "viewer":
                    store, held = Store(MPI.COMM_SELF, f"{made}/{engine}", engine=engine), []  # type: ignore[var-annotated]
                    found[f"save, {engine} engine", size] = seconds(share, save, store, held, array)
                    found[f"restore, {engine} engine", size] = seconds(share, restore, store, held, array)
                    store.retire()
                found["pwrite", size] = seconds(share, os.pwrite, number, array, 0)
                found["pread", size] = seconds(share, os.preadv, number, [other], 0)
                found["memcpy", size] = seconds(share, np.copyto, other, array)
            os.ftruncate(number, 0)
            moved, begin = 0, perf_counter()
            while moved < 2**29 // ranks and perf_counter() < begin + 2 * share:
                moved += os.pwrite(number, array, moved)
                os.fdatasync(number)
            found["write past the page cache", size] = (perf_counter() - begin) * size / moved
            os.posix_fadvise(number, 0, 0, os.POSIX_FADV_DONTNEED)
            begin = perf_counter()
            for offset in range(0, moved, size):
                os.preadv(number, [array], offset)
            found["read past the page cache", size] = (perf_counter() - begin) * size / moved
    finally:
        run_directories.remove(made)
    return found


def bench(named, timestep, budget, as_json):
    """Print, on rank 0, what disks cost all ranks at once: the slowest one's times. Collective on COMM_WORLD."""
    from mpi4py import MPI

    from localckpt._collective import raise_everywhere
    from localckpt.storage.directories import Directory, choose_tiers, is_writeable
    from localckpt.storage.engines import choose_engine

    world = MPI.COMM_WORLD
    ranks = world.allreduce(world.Split_type(MPI.COMM_TYPE_SHARED).size, MPI.MAX)
    likely, wrong = run_directories.default_parents(), None
    try:
        likely = [*(tier.path for tier in choose_tiers(None, ranks)), *likely]
    except ValueError as exc:
        wrong = exc
    try:
        raise_everywhere(world, wrong)
    except ValueError as exc:
        sys.exit(str(exc) if world.rank == 0 else 1)
    disks = {os.stat(path).st_dev: path for path in filter(is_writeable, reversed(likely))}
    named = world.bcast(named or [*disks.values()][::-1])
    results: dict[str, dict] = {}
    costs = {}
    for directory in named:
        error, found = None, {}
        try:
            place = Directory.at(os.path.expandvars(directory))
            found = measure(place.path, ranks, budget / len(named))
        except OSError as exc:
            error = f"{MPI.Get_processor_name()}: {exc}"
        results[directory] = {"error": next(filter(None, world.allgather(error)), None)}
        if results[directory]["error"] is None:
            times, size = np.array([*found.values()]), list(found)[-1][1]
            world.Allreduce(MPI.IN_PLACE, times, MPI.MAX)
            found, engine = dict(zip(found, times.tolist())), choose_engine(MPI.COMM_SELF)
            for doing, what in {
                f"save, {engine} engine": "a timestep stored",
                f"restore, {engine} engine": "restored",
                "write past the page cache": "stored when memory is full",
                "read past the page cache": "restored when memory is full",
            }.items():
                found[what, timestep] = found[doing, size] / size * timestep
            if not place.in_ram:
                costs[directory] = sum([*found.values()][-4:])
            results[directory] = {
                "filesystem": place.filesystem,
                "timesteps": int(place.free / ranks / timestep),
                "times": [(*what, spent) for what, spent in found.items()],
            }
    take = min(costs, key=costs.__getitem__, default=None)
    if world.rank == 0 and as_json:
        print(json.dumps({"ranks": world.size, "directories": results, "take": take}, indent=4))
    elif world.rank == 0:
        for directory, result in results.items():
            print(
                f"{directory}:",
                result.get("error") or f"{result['filesystem']}, room for {result['timesteps']} timesteps of each rank",
            )
            for what, nbytes, spent in result.get("times", ()):
                print(f"    {what:30}{nbytes / 1e6:10g} MB{spent * 1e3:12.4f} ms{nbytes / spent / 1e6:8.0f} MB/s")
        print(f"take {take}: checkpoint_dir= or -localckpt_dir" if take else "none of them is a disk to take")
    return int(any("error" in result for result in results.values()))
