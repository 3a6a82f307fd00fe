"""What the schedules of checkpoint_schedules compute and store, for ``localckpt plan``; nothing here runs a tape."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import ceil
from typing import Any

from checkpoint_schedules import (
    Copy,
    EndReverse,
    Forward,
    HRevolve,
    MixedCheckpointSchedule,
    Move,
    MultistageCheckpointSchedule,
    Reverse,
    Revolve,
    SingleDiskStorageSchedule,
    SingleMemoryStorageSchedule,
    StorageType,
    TwoLevelCheckpointSchedule,
)

# HRevolve, Revolve and MixedCheckpointSchedule prepare themselves in a time that grows as steps² × checkpoints: a few
# seconds for this product of them, and minutes for 2000 steps and 200 checkpoints (benchmarks/test_plan.py).
LARGEST_PREPARATION = 10**7
# How many timesteps all schedules of one class that are tried may have together: a few seconds.
MOST_STEPS = 200_000


@dataclass
class Moved:
    """How many times the data of a timestep was moved: what restarts the run there, and what its reverse step needs."""

    restart: int = 0
    adjoint: int = 0


@dataclass
class Counts:
    """What a schedule does in an iteration: an evaluation of the functional, and one gradient.

    Attributes
    ----------
    steps : int
        Timesteps of the problem.
    forward : int
        Forward steps that are computed, in both sweeps.
    disk_writes, disk_reads, memory_writes : Moved
    disk_peak : float
        Bytes on disk at one time.
    memory_peak : float
        Bytes in memory at one time, less the adjoint data of one timestep, which every schedule has there.
    """

    steps: int
    forward: int = 0
    disk_writes: Moved = field(default_factory=Moved)
    disk_reads: Moved = field(default_factory=Moved)
    memory_writes: Moved = field(default_factory=Moved)
    disk_peak: float = 0
    memory_peak: float = 0

    @property
    def recomputed(self) -> int:
        """Forward steps that are computed a second time, or more often."""
        return self.forward - self.steps


def count(schedule: Any, steps: int, restart: float = 1, adjoint: float = 1) -> Counts:
    """Walk through a schedule as the tape does. Not collective.

    Parameters
    ----------
    schedule : checkpoint_schedules.CheckpointSchedule
        A new one.
    steps : int
    restart, adjoint : float, optional
        Bytes of the restart data and of the adjoint data of a timestep; with 1, peaks are numbers of timesteps.

    Returns
    -------
    Counts
    """
    counts = Counts(steps)
    stored: dict[int, tuple[StorageType, bool]] = {}  # of each timestep: where, and whether it is adjoint data
    in_use = {StorageType.DISK: 0.0, StorageType.RAM: 0.0}  # bytes
    at_hand: set[int] = set()  # timesteps whose adjoint data is in memory for their reverse step
    first = None

    def store(step: int, storage: StorageType, is_adjoint: bool) -> None:
        drop(step)  # on the tape, a timestep holds one checkpoint only
        stored[step] = storage, is_adjoint
        in_use[storage] += adjoint if is_adjoint else restart
        note(counts.disk_writes if storage == StorageType.DISK else counts.memory_writes, is_adjoint)

    def drop(step: int) -> None:
        if step in stored:
            storage, is_adjoint = stored.pop(step)
            in_use[storage] -= adjoint if is_adjoint else restart

    for action in schedule:
        if isinstance(action, Forward):
            first = first or action
            end = min(action.n1, steps)  # some schedules do not know yet how many there are
            counts.forward += end - action.n0
            if action.storage in in_use:
                if action.write_ics:
                    store(action.n0, action.storage, False)
                if action.write_adj_deps:
                    for step in range(action.n0, end):
                        store(step, action.storage, True)
            elif action.write_adj_deps:
                at_hand.update(range(action.n0, end))
            if schedule.max_n is None and action.n1 >= steps:
                schedule.finalize(steps)
        elif isinstance(action, (Copy, Move)):
            storage, is_adjoint = stored[action.n]
            if storage == StorageType.DISK:
                note(counts.disk_reads, is_adjoint)
            if isinstance(action, Move):
                drop(action.n)
            if is_adjoint:
                at_hand.add(action.n)
        elif isinstance(action, Reverse):
            at_hand.difference_update(range(action.n0, action.n1))
        counts.disk_peak = max(counts.disk_peak, in_use[StorageType.DISK])
        counts.memory_peak = max(counts.memory_peak, in_use[StorageType.RAM] + adjoint * max(0, len(at_hand) - 1))
        if isinstance(action, EndReverse):
            break
    # The next evaluation begins by restoring timestep 0, if that is still stored where the schedule stores it first.
    if first is not None and stored.get(first.n0, (None,))[0] == first.storage == StorageType.DISK:
        note(counts.disk_reads, stored[first.n0][1])
    return counts


def note(moved: Moved, is_adjoint: bool) -> None:
    if is_adjoint:
        moved.adjoint += 1
    else:
        moved.restart += 1


@dataclass(frozen=True)
class Candidate:
    """A schedule that could be used, and how a script makes it.

    Attributes
    ----------
    kind : type
        Its class.
    arguments : tuple
    keywords : dict
    """

    kind: type
    arguments: tuple[int, ...] = ()
    keywords: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        words = [*map(str, self.arguments), *(f"{name}={value!r}" for name, value in self.keywords.items())]
        return f"{self.kind.__name__}({', '.join(words)})"

    @property
    def imports(self) -> str:
        """The line of Python that imports what it is made of."""
        names = [self.kind.__name__] + ["StorageType"] * any(isinstance(x, StorageType) for x in self.keywords.values())
        return f"from checkpoint_schedules import {', '.join(names)}"

    def count(self, steps: int, restart: float = 1, adjoint: float = 1) -> Counts:
        """As :func:`count`."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # that MixedCheckpointSchedule is slow without Numba
            return count(self.kind(*self.arguments, **self.keywords), steps, restart, adjoint)


@dataclass(frozen=True)
class Room:
    """How many checkpoints fit on the disk and in memory: of restart data, of adjoint data, or of either kind.

    Attributes
    ----------
    disk, memory : int
        Of restart data.
    disk_adjoint, memory_adjoint : int
    disk_mixed, memory_mixed : int
        Of the larger of the two.
    """

    disk: int
    memory: int
    disk_adjoint: int
    memory_adjoint: int

    @classmethod
    def of(cls, disk: float, memory: float, restart: float, adjoint: float) -> "Room":
        """How many fit into so many bytes, if they have these sizes."""
        return cls(int(disk // restart), int(memory // restart), int(disk // adjoint), int(memory // adjoint))

    @property
    def disk_mixed(self) -> int:
        return min(self.disk, self.disk_adjoint)

    @property
    def memory_mixed(self) -> int:
        return min(self.memory, self.memory_adjoint)


def candidates(steps: int, room: Room, write: float, read: float) -> Iterator[Candidate]:
    """The schedules to try for so many timesteps, with as many checkpoints as there is room for, and with fewer.

    Fewer checkpoints make more steps be computed again, but leave more memory to the page cache of the disk. Schedules
    with checkpoints for which there is no room are not among them, but for the two that store all timesteps.

    Parameters
    ----------
    steps : int
    room : Room
    write, read : float
        How long the disk takes to write and to read a checkpoint, in forward steps.
    """
    yield Candidate(SingleMemoryStorageSchedule)
    yield Candidate(SingleDiskStorageSchedule)
    if steps == 1:
        return
    most = steps - 1
    memory, disk = min(room.memory, most), min(room.disk, most)
    prepared = checkpoints_to_prepare(steps)
    for in_memory, on_disk in fewer(memory, disk, max(3, MOST_STEPS // steps)):
        yield Candidate(MultistageCheckpointSchedule, (steps, in_memory, min(on_disk, most - in_memory)))
    for checkpoints, storage in (
        (room.disk_mixed, StorageType.DISK),
        (room.memory_mixed, StorageType.RAM),
    ):
        checkpoints = min(checkpoints, most, prepared)
        if checkpoints:
            yield Candidate(MixedCheckpointSchedule, (steps, checkpoints), {"storage": storage})
    in_memory = min(memory, prepared // 2)
    on_disk = min(disk, most - in_memory, prepared - in_memory)
    if in_memory and on_disk:
        costs = {"wd": float(f"{write:.2g}"), "rd": float(f"{read:.2g}")}
        yield Candidate(HRevolve, (steps, in_memory, on_disk), costs)
    if min(memory, prepared):
        yield Candidate(Revolve, (steps, min(memory, prepared)))
    for further, storage in ((0, StorageType.DISK), (disk // 4, StorageType.DISK), (memory, StorageType.RAM)):
        on_disk = disk - further if storage == StorageType.DISK else disk
        if on_disk > 0:
            period = ceil(steps / on_disk)
            yield two_levels(period, further, storage)


def two_levels(period: int, further: int, storage: StorageType) -> Candidate:
    return Candidate(TwoLevelCheckpointSchedule, (period, min(further, period - 1)), {"binomial_storage": storage})


def candidates_for_any_number(room: Room) -> Iterator[tuple[Candidate, int]]:
    """The schedules that need not know the number of timesteps, and how many timesteps each has room for."""
    yield Candidate(SingleMemoryStorageSchedule), room.memory_adjoint + 1
    yield Candidate(SingleDiskStorageSchedule), room.disk_adjoint
    for period in (10, 100):
        on_disk = two_levels(period, period // 10, StorageType.DISK)
        yield on_disk, max(0, room.disk - period // 10) * period
        if room.memory:
            yield two_levels(period, room.memory, StorageType.RAM), room.disk * period


def checkpoints_to_prepare(steps: int) -> int:
    """With how many checkpoints at most the schedules that prepare themselves slowly are tried."""
    return LARGEST_PREPARATION // steps**2


def fewer(memory: int, disk: int, most: int) -> Iterator[tuple[int, int]]:
    """At most so many pairs of checkpoints in memory and on disk, from as many as there is room for to one in all."""
    pairs = [(memory, disk), (0, disk), (memory, 0)]
    while disk > 1 or memory > 1:
        memory, disk = memory // 2, disk // 2
        pairs += [(memory, disk), (0, disk), (memory, 0)]
    yield from [pair for pair in dict.fromkeys(pairs) if sum(pair)][:most]
