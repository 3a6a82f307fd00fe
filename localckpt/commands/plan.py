"""``localckpt plan``: which schedules fit on a node's disk and memory, and how long an iteration takes with each."""

import argparse
import json
import os
import sys
from dataclasses import asdict, dataclass
from math import inf
from typing import TYPE_CHECKING, Any

from localckpt.commands import bench
from localckpt.commands.units import duration, positive, size, walltime, whole

if TYPE_CHECKING:
    from localckpt.commands.schedules import Candidate, Room

SWEEPS = 0.02  # part of the time that --resume-sweeps takes at most: adjoint/sweeps.py, which needs Firedrake


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "plan",
        help="choose a schedule for a node's disk and memory",
        description="Walk the schedules of checkpoint_schedules with what a timestep of a short run has stored and "
        "taken, and print which of them fit on the disk and in memory, how long an iteration (functional and "
        "gradient) takes with each, what to ask the scheduler for, and the best one as a line of Python. All bytes "
        "are those of one node. The disk is measured where this runs: on a node, under mpiexec with all its ranks. "
        "Sizes may end in K, M, G or T for powers of 1000, or in KiB, MiB, GiB or TiB; times in ms, s, min or h.",
        epilog="Exit status: 0 if a schedule fits, 1 if none does or an option of PETSc is wrong, 2 if the command "
        "line or a file that it names is wrong.",
    )
    parser.add_argument("--steps", type=whole, metavar="N", help="timesteps (default: as many as fit)")
    parser.add_argument(
        "--from",
        dest="run",
        type=read_run,
        metavar="FILE",
        help="what a short run with -localckpt_view :FILE:json has written",
    )
    parser.add_argument("--step-bytes", type=size, metavar="SIZE", help="adjoint data of a timestep on a node")
    parser.add_argument(
        "--restart-bytes", type=size, metavar="SIZE", help="restart data of a timestep on a node (default: as much)"
    )
    parser.add_argument("--forward", type=duration, metavar="TIME", help="time of a forward step")
    parser.add_argument("--reverse", type=duration, metavar="TIME", help="time of a reverse step")
    parser.add_argument(
        "--ranks-per-node", type=whole, metavar="N", help="ranks on a node (default: those of the short run)"
    )
    parser.add_argument(
        "--memory",
        type=size,
        default=0.0,
        metavar="SIZE",
        help="memory of a node for checkpoints and the page cache, beside what the run takes itself (default: none)",
    )
    parser.add_argument("--room", type=size, metavar="SIZE", help="room on a node's disk (default: what is free)")
    parser.add_argument("--walltime", type=walltime, metavar="H:MM", help="time that the job may take; also D-HH:MM:SS")
    parser.add_argument(
        "--dir", nargs="+", metavar="DIR", help="directories for checkpoints (default: those that a run would choose)"
    )
    parser.add_argument(
        "--disk",
        type=read_bench,
        metavar="FILE",
        help="measure nothing: take what 'bench --json' has printed on a node",
    )
    parser.add_argument("--seconds", type=positive, default=10, help="how long to measure (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    parser.set_defaults(main=main, fail=parser.error)


def read_run(path: str) -> dict[str, Any]:
    """What a short run has written."""
    run = read_json(path)
    try:
        numbers = [run[kind]["stored"] for kind in ("restart", "adjoint")]
        numbers += [run[name] for name in ("forward", "reverse", "saving", "restoring")]
        is_right = run["ranks_per_node"] > 0 and all(isinstance(one, (int, float)) or one is None for one in numbers)
    except (KeyError, TypeError):
        is_right = False
    if not is_right:
        raise argparse.ArgumentTypeError(f"{path} is not what -localckpt_view :FILE:json writes")
    return run


def read_bench(path: str) -> tuple[int, dict[str, bench.Result], str | None]:
    """Ranks on a node, what was measured in each directory, and the best one."""
    report = read_json(path)
    try:
        results = {
            name: bench.Result(**result | {"timestep": result["timestep"] and bench.TimestepCost(**result["timestep"])})
            for name, result in report["directories"].items()
        }
        return report["ranks_per_node"], results, report["best"]
    except (KeyError, TypeError, AttributeError):
        raise argparse.ArgumentTypeError(f"{path} is not what 'bench --json' prints") from None


def read_json(path: str) -> Any:
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError) as exc:
        raise argparse.ArgumentTypeError(f"cannot read {path}: {exc}") from None


@dataclass(frozen=True)
class Step:
    """What a timestep stores and takes.

    Attributes
    ----------
    restart, adjoint : float
        Bytes on a node of what restarts the run there, and of what its reverse step needs.
    forward, reverse : float
        Seconds, without saves and restores.
    saving, restoring : float or None
        Seconds in which the adjoint data is saved and restored, if they were measured in the run.
    """

    restart: float
    adjoint: float
    forward: float
    reverse: float
    saving: float | None = None
    restoring: float | None = None


@dataclass(frozen=True)
class Disk:
    """The disk of a node.

    Attributes
    ----------
    directories : list of str
        Filled in this order.
    room : float
        Bytes.
    save, restore : float
        Seconds for a byte while the page cache holds the checkpoints.
    write, read : float
        The same when memory is full: at the speed of the disk.
    ranks : int
        How many ranks of a node have measured these together.
    notes : list of str
        Why other directories are not used, and what may limit the room.
    """

    directories: list[str]
    room: float
    save: float
    restore: float
    write: float
    read: float
    ranks: int
    notes: list[str]


@dataclass(frozen=True)
class Estimate:
    """What an iteration takes with a schedule.

    Attributes
    ----------
    schedule : str
        As a script writes it.
    steps : int
    problem : str
        What it has too little of: ``disk``, ``memory`` or ``time``; empty if it fits.
    disk, memory : float
        Bytes on each node at one time.
    forward, recomputed : int
        Forward steps that are computed, and how many of them not for the first time.
    writes, reads : int
        How many timesteps' data goes to disk, and comes from there.
    seconds : float
        For the functional and the gradient.
    waiting : float
        How many of these the disk takes.
    """

    schedule: str
    steps: int
    problem: str
    disk: float
    memory: float
    forward: int
    recomputed: int
    writes: int
    reads: int
    seconds: float
    waiting: float


@dataclass(frozen=True)
class Resume:
    """What ``run --resume-sweeps`` adds to an iteration, at most.

    Attributes
    ----------
    seconds : float
    nbytes : float
        Of each node, on a shared filesystem.
    """

    seconds: float
    nbytes: float


def main(options: argparse.Namespace) -> int:
    """Print, on rank 0, what fits. Collective on COMM_WORLD, and without MPI if the disk was measured before."""
    step = step_of(options)
    if options.disk:
        ranks, results, best = options.disk
        names = options.dir or filter(None, [best])
        disk = disk_of([(results.get(name) or bench.Result(name, "not measured"), inf) for name in names], ranks)
        return report(options, step, disk)
    from mpi4py import MPI

    from localckpt._collective import raise_everywhere

    world = MPI.COMM_WORLD
    disk = measure_disk(options.dir, options.seconds)
    status, error = 0, None
    try:
        if world.rank == 0:
            status = report(options, step, disk)
    except Exception as exc:
        error = exc
    raise_everywhere(world, error)
    return world.bcast(status)


def step_of(options: argparse.Namespace) -> Step:
    """What a timestep takes, from the short run and the command line, which counts. Ends the command if it is unknown.

    Each rank of a node stores its part of a timestep, so with more ranks on a node that node stores more of it.
    """
    run = options.run or {"restart": {"stored": None}, "adjoint": {"stored": None}}
    ratio = options.ranks_per_node / run["ranks_per_node"] if options.run and options.ranks_per_node else 1
    adjoint = options.step_bytes or (run["adjoint"]["stored"] or 0) * ratio
    restart = options.restart_bytes or (run["restart"]["stored"] or 0) * ratio or adjoint
    forward = options.forward or run.get("forward") or 0
    reverse = options.reverse or run.get("reverse") or 0
    known = {"--step-bytes": adjoint, "--forward": forward, "--reverse": reverse}
    missing = " and ".join(name for name, value in known.items() if not value)
    if missing and options.run:
        options.fail(
            f"the short run has not measured what {missing} would say: let it use SingleDiskStorageSchedule, with 3 "
            "timesteps or more, and compute a gradient"
        )
    if missing:
        options.fail(f"--from FILE, or {missing}, is required")
    if options.step_bytes:
        return Step(restart, adjoint, forward, reverse)
    return Step(restart, adjoint, forward, reverse, run["saving"], run["restoring"])


def measure_disk(directories: list[str] | None, seconds: float) -> Disk:
    """Measure the directories that a run would use, with all ranks at once. Collective on COMM_WORLD."""
    from localckpt.storage.directories import JOB_LIMITS

    ranks = bench.ranks_per_node()
    tiers = bench.tiers_of_a_run(directories, 1)
    results = [bench.measure_directory(tier.path, ranks, seconds / len(tiers), 1e6) for tier in tiers]
    disk = disk_of([(result, tier.limit) for result, tier in zip(results, tiers)], ranks)
    disk.notes.extend(
        f"the scheduler's limit is {name}={os.environ[name]}: give a node's share of it with --room"
        for name in filter(os.environ.get, JOB_LIMITS)
    )
    return disk


def disk_of(measured: list[tuple[bench.Result, float]], ranks: int) -> Disk:
    """The disk of a node on which so many ranks have measured these directories. Not collective.

    Parameters
    ----------
    measured : list of tuple
        What was measured in a directory, and how many bytes a node may use there.
    ranks : int
    """
    usable, notes = [], []
    rooms: dict[object, float] = {}  # of each disk
    for result, limit in measured:
        if result.timestep is None:
            notes.append(f"{result.directory}: {result.error}")
        elif result.in_ram:
            notes.append(f"{result.directory}: in memory, not on a disk")
        else:
            usable.append(result)
            try:
                disk: object = os.stat(result.directory).st_dev
            except OSError:  # of another node
                disk = result.directory
            rooms[disk] = min(result.free, rooms.get(disk, 0) + limit)
    slowest = {
        name: max(
            (getattr(one.timestep, name) / one.timestep.nbytes / ranks for one in usable if one.timestep), default=0
        )
        for name in ("save", "restore", "save_to_disk", "restore_from_disk")
    }
    if not usable and not notes:
        notes.append("no directory on a disk was measured")
    return Disk(
        [result.directory for result in usable],
        sum(rooms.values()),
        slowest["save"],
        slowest["restore"],
        slowest["save_to_disk"],
        slowest["restore_from_disk"],
        ranks,
        notes,
    )


def report(options: argparse.Namespace, step: Step, disk: Disk) -> int:
    """Print what fits, and return the exit status. Not collective."""
    try:
        from localckpt.commands import schedules
    except ModuleNotFoundError as exc:
        print(f"localckpt plan: {exc}; checkpoint_schedules comes with Firedrake", file=sys.stderr)
        return 1
    notes = list(disk.notes)
    room_on_disk = disk.room if options.room is None else options.room
    if not disk.directories:
        room_on_disk = 0
    wanted = options.ranks_per_node or (options.run or {}).get("ranks_per_node", disk.ranks)
    if wanted != disk.ranks:
        notes.append(
            f"ranks on a node that have measured the disk together: {disk.ranks}; that are to use it: {wanted}"
        )
    planner = Planner(step, disk, room_on_disk, options.memory, options.walltime or inf)
    room = schedules.Room.of(room_on_disk, options.memory, step.restart, step.adjoint)
    if options.steps:
        planned = planner.for_steps(options.steps, room)
        most = schedules.checkpoints_to_prepare(options.steps)
        if most < min(options.steps - 1, max(room.disk, room.memory)):
            notes.append(
                f"HRevolve, Revolve and MixedCheckpointSchedule were tried with at most {most} checkpoints: they take "
                "too long to prepare more"
            )
    else:
        planned = planner.for_any_number(room)
    chosen = next((one for one in planned if not one[1].problem), None)
    if options.json:
        best = chosen and {"schedule": str(chosen[0]), "import": chosen[0].imports}
        print(
            json.dumps(
                {
                    "step": asdict(step),
                    "disk": asdict(disk) | {"room": room_on_disk},
                    "memory": options.memory,
                    "walltime": options.walltime,
                    "schedules": [asdict(estimate) for _, estimate in planned],
                    "best": best,
                    "resume": chosen and asdict(planner.resume(chosen[1])),
                    "notes": notes,
                },
                indent=4,
            )
        )
    else:
        print_text(planner, planned, chosen, notes)
    return int(chosen is None)


@dataclass(frozen=True)
class Planner:
    """Estimates iterations on a node.

    Attributes
    ----------
    step : Step
    disk : Disk
    room : float
        Bytes on the disk.
    memory : float
        Bytes for checkpoints, and for the page cache.
    walltime : float
        Seconds.
    """

    step: Step
    disk: Disk
    room: float
    memory: float
    walltime: float

    @property
    def save(self) -> float:
        """Seconds that saving a byte takes while the page cache holds it."""
        return self.disk.save if self.step.saving is None else self.step.saving / self.step.adjoint

    @property
    def restore(self) -> float:
        """Seconds that restoring a byte takes while the page cache holds it."""
        return self.disk.restore if self.step.restoring is None else self.step.restoring / self.step.adjoint

    def for_steps(self, steps: int, room: "Room") -> "list[tuple[Candidate, Estimate]]":
        """The best schedule of each class for so many timesteps, the best of all first."""
        from localckpt.commands import schedules

        step, disk = self.step, self.disk
        cached = self.memory >= min(self.room, steps * step.restart)
        write, read = (
            (moved + (0 if cached else waited)) * step.restart / step.forward
            for moved, waited in ((self.save, disk.write), (self.restore, disk.read))
        )
        best: dict[type, tuple[Candidate, Estimate]] = {}
        for candidate in schedules.candidates(steps, room, write, read):
            one = candidate, self.estimate(candidate, steps)
            best[candidate.kind] = min(best.get(candidate.kind, one), one, key=order)
        return sorted(best.values(), key=order)

    def for_any_number(self, room: "Room") -> "list[tuple[Candidate, Estimate]]":
        """The schedules that need no number of timesteps, each with as many as fit; the largest number first."""
        from localckpt.commands import schedules

        planned = []
        for candidate, capacity in schedules.candidates_for_any_number(room):
            steps = min(max(1, capacity), schedules.MOST_STEPS)
            estimate = self.estimate(candidate, steps)
            if estimate.problem == "time":
                steps = max(1, int(steps * self.walltime / estimate.seconds))
                estimate = self.estimate(candidate, steps)
            planned.append((candidate, estimate))
        return sorted(planned, key=lambda one: (bool(one[1].problem), -one[1].steps, one[1].seconds))

    def estimate(self, candidate: "Candidate", steps: int) -> Estimate:
        """What an iteration takes with a schedule.

        Writes wait for the disk if memory does not hold the checkpoints and the disk takes longer than the forward
        steps between them, because the system writes while the run computes. Reads always wait for the disk then.
        """
        step, disk = self.step, self.disk
        counts = candidate.count(steps, step.restart, step.adjoint)
        written, read, kept = (
            moved.restart * step.restart + moved.adjoint * step.adjoint
            for moved in (counts.disk_writes, counts.disk_reads, counts.memory_writes)
        )
        forward = counts.forward * step.forward
        page_cache = max(0, self.memory - counts.memory_peak)
        beyond = max(0, 1 - page_cache / counts.disk_peak) if counts.disk_peak else 0  # part that memory does not hold
        waiting = max(0, beyond * written * disk.write - forward) + beyond * read * disk.read
        seconds = forward + steps * step.reverse + (written + kept) * self.save + read * self.restore + waiting
        problems = {
            "disk": counts.disk_peak > self.room,
            "memory": counts.memory_peak > self.memory,
            "time": seconds > self.walltime,
        }
        return Estimate(
            str(candidate),
            steps,
            next((name for name, is_too_much in problems.items() if is_too_much), ""),
            counts.disk_peak,
            counts.memory_peak,
            counts.forward,
            counts.recomputed,
            counts.disk_writes.restart + counts.disk_writes.adjoint,
            counts.disk_reads.restart + counts.disk_reads.adjoint,
            seconds,
            waiting,
        )

    def resume(self, estimate: Estimate) -> Resume:
        """What ``run --resume-sweeps`` adds to an iteration, at most."""
        return Resume(SWEEPS * estimate.seconds, estimate.steps * self.step.adjoint)


def order(one: "tuple[Candidate, Estimate]") -> tuple[bool, float, float, float]:
    """Those that fit first, then by time; of equal ones, those that need less disk and memory."""
    estimate = one[1]
    return bool(estimate.problem), round(estimate.seconds, 6), estimate.disk, estimate.memory


def print_text(
    planner: Planner,
    planned: "list[tuple[Candidate, Estimate]]",
    chosen: "tuple[Candidate, Estimate] | None",
    notes: list[str],
) -> None:
    step, disk = planner.step, planner.disk
    print(
        f"a timestep, on a node: {human(step.adjoint)} of adjoint data, {human(step.restart)} of restart data; "
        f"{clock(step.forward)} forward, {clock(step.reverse)} reverse"
    )
    if disk.directories:
        print(
            f"disk of a node: room for {human(planner.room)} in {', '.join(disk.directories)}; "
            f"{1e-6 / disk.write:.0f} MB/s written, {1e-6 / disk.read:.0f} MB/s read"
        )
    print(f"memory of a node: {human(planner.memory)} for checkpoints and the page cache")
    for note in notes:
        print(f"note: {note}")
    limit = "" if planner.walltime == inf else f" of {clock(planner.walltime)}"
    rows = [("fits", "schedule", "timesteps", "disk", "memory", "forward steps", f"iteration{limit}", "waits for disk")]
    rows += [
        (
            f"no: {one.problem}" if one.problem else "yes",
            one.schedule,
            f"{one.steps}",
            human(one.disk),
            human(one.memory),
            f"{one.forward}",
            clock(one.seconds),
            clock(one.waiting),
        )
        for _, one in planned
    ]
    widths = [max(map(len, column)) for column in zip(*rows)]
    print()
    for row in rows:
        words = [f"{word:{'<' if k < 2 else '>'}{width}}" for k, (word, width) in enumerate(zip(row, widths))]
        print("  ".join(words).rstrip())
    print()
    if chosen is None:
        print("nothing fits: use more nodes, or fewer timesteps")
        if any(one.problem == "time" for _, one in planned):
            print("an iteration that takes longer than a job goes on in the next one with 'run --resume-sweeps'")
        return
    candidate, best = chosen
    wanted = [
        # The files of a run grow by a quarter (storage/engines.py).
        (min(1.25 * best.disk, planner.room), "of local disk"),
        (best.memory, "of memory for checkpoints, beside what the run takes itself"),
        (min(best.disk, planner.memory - best.memory), "of memory for the page cache"),
    ]
    words = [f"{human(nbytes)} {purpose}" for nbytes, purpose in wanted if nbytes]
    if words:
        print(f"ask for, on each node: {'; '.join(words)}")
    print(f"ask for {clock(best.seconds)} for each iteration")
    resume = planner.resume(best)
    print(
        f"'run --resume-sweeps' adds at most {clock(resume.seconds)}, and {human(resume.nbytes)} of each node on a "
        "shared filesystem"
    )
    print(candidate.imports)
    print(f"tape.enable_checkpointing({candidate})")


def human(nbytes: float) -> str:
    """Bytes in the largest unit of which there are one or more."""
    unit, name = next((unit for unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")) if nbytes >= unit[0]), (1, "B"))
    return f"{nbytes / unit:.3g} {name}"


def clock(seconds: float) -> str:
    """Seconds, or hours, minutes and seconds."""
    if seconds < 120:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
