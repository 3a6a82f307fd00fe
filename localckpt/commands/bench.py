"""``localckpt bench``: measure what checkpoints cost in each directory."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from math import inf
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from localckpt.commands.units import positive
from localckpt.storage import run_directories

if TYPE_CHECKING:
    from localckpt.storage.directories import Tier


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "bench",
        help="measure what checkpoints cost on your disks, in about a minute",
        description="Save and restore small and large arrays in each directory, with both engines and with plain "
        "system calls, and print the cost of a timestep and the directory to use. Under mpiexec all ranks do so at "
        "the same time, and the times are those of the slowest rank.",
        epilog="Exit status: 0, or 1 if a directory could not be measured.",
    )
    parser.add_argument(
        "--dir",
        nargs="+",
        metavar="DIR",
        help="directories to measure (default: one on each disk that a run may choose)",
    )
    parser.add_argument(
        "--timestep",
        type=positive,
        default=100,
        metavar="MB",
        help="size of the checkpoints of a timestep on each rank (default: %(default)s)",
    )
    parser.add_argument("--seconds", type=positive, default=60, help="how long to measure (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    parser.set_defaults(main=main)


@dataclass
class Timing:
    """How long an operation on so many bytes takes, in seconds."""

    operation: str
    nbytes: int
    seconds: float


@dataclass
class TimestepCost:
    """How long the checkpoints of a timestep of so many bytes take, in seconds.

    Attributes
    ----------
    nbytes : float
    save, restore : float
        While the page cache holds the checkpoints.
    save_to_disk, restore_from_disk : float
        When memory is full: at the speed of the disk.
    """

    nbytes: float
    save: float
    restore: float
    save_to_disk: float
    restore_from_disk: float

    @property
    def total(self) -> float:
        return self.save + self.restore + self.save_to_disk + self.restore_from_disk


@dataclass
class Result:
    """What was measured in a directory.

    Attributes
    ----------
    directory : str
    error : str or None
        Why it could not be measured; the other attributes are then without meaning.
    filesystem : str
    in_ram : bool
    free : int
        Bytes, on the node that has the fewest.
    room : int
        So many timesteps of each rank fit.
    times : list of Timing
    timestep : TimestepCost or None
    """

    directory: str
    error: str | None = None
    filesystem: str = ""
    in_ram: bool = False
    free: int = 0
    room: int = 0
    times: list[Timing] = field(default_factory=list)
    timestep: TimestepCost | None = None


def main(options: argparse.Namespace) -> int:
    """Print, on rank 0, the times of all ranks measuring at once. Collective on COMM_WORLD."""
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    ranks = ranks_per_node()
    directories = world.bcast(options.dir or default_directories(ranks))
    timestep = options.timestep * 1e6
    results = [measure_directory(name, ranks, options.seconds / len(directories), timestep) for name in directories]
    costs = {result.directory: result.timestep.total for result in results if result.timestep and not result.in_ram}
    best = min(costs, key=costs.__getitem__, default=None)
    if world.rank == 0 and options.json:
        print_json(world.size, ranks, results, best)
    elif world.rank == 0:
        print_text(results, best)
    return int(any(result.error for result in results))


def ranks_per_node() -> int:
    """The number of ranks on the fullest node. Collective on COMM_WORLD."""
    from mpi4py import MPI

    return MPI.COMM_WORLD.allreduce(MPI.COMM_WORLD.Split_type(MPI.COMM_TYPE_SHARED).size, MPI.MAX)


def default_directories(ranks: int) -> list[str]:
    """The directories that a run may choose, one on each disk. Collective on COMM_WORLD."""
    from localckpt.storage.directories import is_writeable

    chosen = [tier.path for tier in tiers_of_a_run(None, ranks)]
    disks: dict[int, str] = {}
    for path in filter(is_writeable, [*chosen, *run_directories.default_parents()]):
        disks.setdefault(os.stat(path).st_dev, path)
    return list(disks.values())


def tiers_of_a_run(directories: list[str] | None, ranks: int) -> "list[Tier]":
    """The directories that a run uses, and their limits. Ends all ranks if options make no sense.

    Collective on COMM_WORLD.
    """
    from mpi4py import MPI

    from localckpt._collective import raise_everywhere
    from localckpt.storage.directories import choose_tiers

    tiers, error = [], None
    try:
        tiers = choose_tiers(directories, ranks, "--dir")
    except ValueError as exc:
        error = exc
    try:
        raise_everywhere(MPI.COMM_WORLD, error)
    except ValueError as exc:
        sys.exit(str(exc) if MPI.COMM_WORLD.rank == 0 else 1)
    return tiers


def measure_directory(name: str, ranks: int, budget: float, timestep: float) -> Result:
    """What so many seconds of measuring find, on the slowest rank. Collective on COMM_WORLD."""
    from mpi4py import MPI

    from localckpt.storage.directories import Directory
    from localckpt.storage.engines import choose_engine

    world, error = MPI.COMM_WORLD, None
    try:
        directory = Directory.at(os.path.expandvars(name))
        times = measure(directory.path, ranks, budget)
    except OSError as exc:
        error = f"{MPI.Get_processor_name()}: {exc}"
    error = next(filter(None, world.allgather(error)), None)
    if error:
        return Result(name, error)
    slowest = np.array([timing.seconds for timing in times])
    world.Allreduce(MPI.IN_PLACE, slowest, MPI.MAX)
    for timing, seconds in zip(times, slowest.tolist()):
        timing.seconds = seconds
    free = world.allreduce(directory.free, MPI.MIN)
    room = int(free / ranks / timestep)
    cost = timestep_cost(times, large_size(ranks), choose_engine(MPI.COMM_SELF), timestep)
    return Result(name, None, directory.filesystem, directory.in_ram, free, room, times, cost)


SMALL = 8_000  # bytes


def large_size(ranks: int) -> int:
    """Bytes of a large array: 32 MB shared by the ranks of a node, so that its memory suffices."""
    return max(1_000_000, 32_000_000 // ranks // 8 * 8)


def measure(directory: str, ranks: int, budget: float) -> list[Timing]:
    """Time saves, restores and plain calls on this rank, on a node with so many ranks. Not collective."""
    share, large = budget / 18, large_size(ranks)
    scratch = run_directories.make(directory)
    try:
        with open(f"{scratch}/plain", "w+b", buffering=0) as file:
            return [
                *measure_size(SMALL, scratch, file.fileno(), share),
                *measure_size(large, scratch, file.fileno(), share),
                *measure_disk(large, file.fileno(), 2**29 // ranks, 2 * share),
            ]
    finally:
        run_directories.remove(scratch)


def measure_size(nbytes: int, directory: str, file: int, share: float) -> list[Timing]:
    """Saves and restores of one array, through both engines and with plain calls on an open file."""
    from mpi4py import MPI

    from localckpt.storage.store import Store

    array, other = np.random.default_rng(1).random((2, nbytes // 8))
    times = []
    for engine in "direct", "viewer":
        store = Store(MPI.COMM_SELF, f"{directory}/{engine}", engine=engine)
        held: list[Any] = []  # the last checkpoints: dropping one frees its place for the next
        for name, call in ("save", save), ("restore", restore):
            times.append(Timing(f"{name}, {engine} engine", nbytes, typical(share, call, store, held, array)))
        store.retire()
    return [
        *times,
        Timing("pwrite", nbytes, typical(share, os.pwrite, file, array, 0)),
        Timing("pread", nbytes, typical(share, os.preadv, file, [other], 0)),
        Timing("memcpy", nbytes, typical(share, np.copyto, other, array)),
    ]


def save(store: Any, held: list[Any], array: NDArray[Any]) -> None:
    array[0] += 1  # the same bytes would not be written again
    held[:] = held[-1:] + [store.put("bench", array)]


def restore(store: Any, held: list[Any], array: NDArray[Any]) -> None:
    held[-1].verified_at = -inf  # otherwise the checksum would be skipped if it was verified within the last second
    store.get(held[-1], array.shape, array.dtype)


def typical(budget: float, call: Callable[..., Any], *args: Any) -> float:
    """The median time of as many calls as fit into the budget, in seconds, without the first three."""
    times: list[float] = []
    end = perf_counter() + budget
    while len(times) < 6 or (perf_counter() < end and len(times) < 1000):
        begin = perf_counter()
        call(*args)
        times.append(perf_counter() - begin)
    return median(times[3:])


def measure_disk(nbytes: int, file: int, most: int, budget: float) -> list[Timing]:
    """Writes that wait for the disk, and reads of what the page cache does not hold."""
    array: Any = np.random.default_rng(1).random(nbytes // 8)
    os.ftruncate(file, 0)
    moved, begin = 0, perf_counter()
    while moved < most and perf_counter() < begin + budget:
        moved += os.pwrite(file, array, moved)
        os.fdatasync(file)
    written = perf_counter() - begin
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    begin = perf_counter()
    for offset in range(0, moved, nbytes):
        os.preadv(file, [array], offset)
    read = perf_counter() - begin
    return [
        Timing("write to disk", nbytes, written * nbytes / moved),
        Timing("read from disk", nbytes, read * nbytes / moved),
    ]


def timestep_cost(times: Iterable[Timing], measured: int, engine: str, nbytes: float) -> TimestepCost:
    """The cost of a timestep, in proportion to the times for arrays of `measured` bytes."""
    seconds = {timing.operation: timing.seconds / measured * nbytes for timing in times if timing.nbytes == measured}
    return TimestepCost(
        nbytes,
        save=seconds[f"save, {engine} engine"],
        restore=seconds[f"restore, {engine} engine"],
        save_to_disk=seconds["write to disk"],
        restore_from_disk=seconds["read from disk"],
    )


def print_json(ranks: int, on_a_node: int, results: list[Result], best: str | None) -> None:
    directories = {result.directory: asdict(result) for result in results}
    report = {"ranks": ranks, "ranks_per_node": on_a_node, "directories": directories, "best": best}
    print(json.dumps(report, indent=4))


def print_text(results: list[Result], best: str | None) -> None:
    for result in results:
        if result.timestep is None:
            print(f"{result.directory}: {result.error}")
            continue
        print(f"{result.directory}: {result.filesystem}, room for {result.room} timesteps of each rank")
        for timing in result.times:
            print_time(timing.operation, timing.nbytes, timing.seconds)
        cost = result.timestep
        print_time("save a timestep", cost.nbytes, cost.save)
        print_time("restore a timestep", cost.nbytes, cost.restore)
        print_time("save it when memory is full", cost.nbytes, cost.save_to_disk)
        print_time("restore it when memory is full", cost.nbytes, cost.restore_from_disk)
    if best:
        print(f"use {best}: with checkpoint_dir= or -localckpt_dir")
    else:
        print("none of these directories is on a disk")


def print_time(operation: str, nbytes: float, seconds: float) -> None:
    speed = nbytes / seconds / 1e6
    print(f"    {operation:30}{nbytes / 1e6:10g} MB{seconds * 1e3:12.4f} ms{speed:8.0f} MB/s")
