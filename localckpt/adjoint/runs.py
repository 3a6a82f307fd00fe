"""An adjoint run that outlives its job: the same script, started again, goes on where its last job ended.

Imported, and Firedrake and pyadjoint changed for it, only if a run asks for it: by :func:`resume`, by
``python -m localckpt run --resume`` or by the PETSc option ``-localckpt_resume``.
"""

import atexit
import contextlib
import math
import os
import shutil
import stat
import sys
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from typing import Any, NoReturn

import numpy as np
from firedrake import CheckpointFile, Cofunction, Function
from mpi4py import MPI
from numpy.typing import NDArray
from petsc4py import PETSc
from pyadjoint import stop_annotating
from pyadjoint.enlisting import Enlist
from pyadjoint.tape import annotate_tape
from pyop2.mpi import COMM_WORLD
from xxhash import xxh3_64_hexdigest, xxh3_128_hexdigest

from localckpt._collective import raise_everywhere
from localckpt.adjoint import patches
from localckpt.adjoint.arguments import require_comm
from localckpt.adjoint.clock import Clock
from localckpt.adjoint.evaluations import Functional, TapeState, can_record, fits, key_of, tape_state
from localckpt.adjoint.recordings import Recordings, can_be_read
from localckpt.adjoint.sweeps import Sweep, Sweeps
from localckpt.adjoint.values import comm_of, norms, values, with_values
from localckpt.storage.directories import log
from localckpt.storage.journal import DamagedRecord, Journal, sync
from localckpt.storage.journal_entries import VERSION, Entry
from localckpt.storage.nodes import ranks_in
from localckpt.storage.ownership import Owned, Owner, job_name, require_owner
from localckpt.storage.room import show_log

__all__ = ["AGAIN", "ResumeError", "Run", "replaying", "resume"]

AGAIN = 75  # exit status: run the same job again (EX_TEMPFAIL of sysexits.h)
ROUNDING = 1e-6  # relative difference of what two jobs compute in a timestep, at most
NOISE = 1e-12  # the same, relative to the largest number of the timestep
CHECKED_STEPS = (1, 10)  # of each tape, compared while it is recorded
OFTEN = 0.5  # seconds between two agreements of all ranks, about
GRACE = 5.0  # seconds to end in

_run: "Run | None" = None


class ResumeError(RuntimeError):
    """This job cannot go on where the last one ended. Raised on all ranks."""


def resume(
    directory: str | os.PathLike[str],
    comm: MPI.Intracomm = COMM_WORLD,
    *,
    recording: bool = False,
    sweeps: bool = False,
    every: float = 600.0,
    walltime: float | None = None,
    take_over: bool = False,
    strict: bool = False,
) -> "Run":
    """Go on where the last job with this directory ended, and record what this one does. Collective on `comm`.

    Call it before the script makes its meshes. From then on, values and derivatives of every ``ReducedFunctional`` are
    recorded in the directory as soon as they are known, and those that are recorded are not computed again.

    Parameters
    ----------
    directory : str
        On a filesystem that all ranks see and that lasts. It is made, with mode 0700, if it does not exist; if it is
        empty, the run begins. Environment variables are expanded.
    comm : mpi4py.MPI.Intracomm, optional
        The communicator of the computation.
    recording : bool, optional
        Record the solution of each variational solve of the tape's recording, too. The recordings of later jobs read
        them instead of solving. :meth:`Run.start` makes this superfluous.
    sweeps : bool, optional
        Record the solves of the evaluation in progress, too, and the adjoint values of the derivative in progress, so
        that the next job goes on in that timestep. Implies `recording`. Functionals on a part of `comm`, as those of
        the members of an ensemble, are left out.
    every : float, optional
        With `sweeps`: seconds between two such records, at least. Longer if the last one took more than 2 percent of
        that; 0 is every timestep, and, on a tape without a schedule, every solve. Evaluations that take less time
        together with their derivative are not recorded in parts.
    walltime : float, optional
        Seconds from the start of the process to the end of the job. By default what Slurm or PBS says. A run leaves
        with the exit status 75, "run again", rather than begin an evaluation that would not end in time. With `sweeps`
        it leaves in the timestep for which the time would not do.
    take_over : bool, optional
        Go on although another job has, or may have, the directory. That job then records nothing more.
    strict : bool, optional
        Raise an exception, instead of a warning, where a recorded evaluation is due and the control is another one.

    Returns
    -------
    Run
        The same for each call in one process.

    Raises
    ------
    ResumeError
        If another job has the directory; if it belongs to another user, or is writeable by everyone; or if the job
        differs from the first one in its number of ranks, its precision, or its versions of Firedrake, PETSc or
        pyadjoint. Later, while the tape is recorded or evaluated, if it differs in the numbering of its meshes or in
        what the first and tenth timestep compute.
    OSError
        If the directory cannot be used.
    ValueError
        If `every` is negative.
    ImportError
        If this Firedrake or pyadjoint lacks a place that has to be replaced.

    Notes
    -----
    All of these are raised on every rank of `comm`. `recording`, `sweeps` and `every` are those of rank 0.
    """
    global _run
    if _run is None:
        require_comm("comm", comm)
        show_log()
        recording, sweeps, every = comm.bcast((recording or sweeps, sweeps, every))
        if not every >= 0:
            raise ValueError(f"every is a number of seconds, not {every!r}")
        patches.install("resume")
        if recording:
            patches.install("resume recording")
        if sweeps:
            patches.install("resume sweeps")
        sweeps_every = every if sweeps else None
        path = os.path.expandvars(os.fspath(directory))
        _run = Run(path, comm, recording, sweeps_every, walltime, take_over, strict)
        patches.keep_mesh = _run.keep_mesh
    return _run


def replaying() -> bool:
    """Whether a recorded evaluation is being given back: its callbacks run, but the tape has no states of it."""
    return _run is not None and _run.replaying


class Run:
    """A run that is recorded in a directory. Made by :func:`resume`.

    Attributes
    ----------
    directory : str
    comm : mpi4py.MPI.Intracomm
    replaying : bool
        See :func:`replaying`.
    spent : float
        Seconds of this rank that went into records and into agreeing with the other ranks.
    leaving : bool
        Whether the job has begun to leave, to be run again.
    job : int
        The number of this job, from 0.
    recordings, sweeps : object or None
        What is recorded besides values and derivatives: solves of recordings, and sweeps in progress.
    """

    def __init__(
        self,
        directory: str,
        comm: MPI.Intracomm,
        recording: bool,
        sweeps_every: float | None,
        walltime: float | None,
        take_over: bool,
        strict: bool,
    ) -> None:
        self.directory, self.comm, self.replaying = os.path.abspath(directory), comm, False
        self._strict, self._recording = strict, True
        self._begin = time.monotonic()
        self.spent = 0.0  # seconds in here
        self._added = {"value": 0, "derivative": 0}
        self._replayed = {"value": 0, "derivative": 0}
        self.recordings = Recordings(self) if recording else None
        self.sweeps: Sweeps | None = None
        self._owner: Owner | None = None
        self._finished, self._process = False, os.getpid()
        self.leaving = False
        error: Exception | None = None
        try:
            if comm.rank == 0:
                make_directory(self.directory)
                self._owner = Owner(self.directory, take_over)
        except Owned as exc:
            error = ResumeError(f"another job has this run: {exc.strerror}")
        except Exception as exc:
            error = exc
        raise_everywhere(comm, error)
        self._token = comm.bcast(self._owner and self._owner.token)
        self._journals: list[tuple[MPI.Intracomm, Journal]] = []
        self._functionals: weakref.WeakKeyDictionary[Any, Functional] = weakref.WeakKeyDictionary()
        self._numbers: dict[int, int] = {}  # how many functionals each journal has, by its id
        self._recordings = 0  # of tapes
        self._meshes: dict[int, int] = {}  # how many each journal has, by its id
        self._started: list[tuple[Any, Any, Any]] = []  # Functions, their values before start() and after
        self._start_entry: Entry | None = None
        try:
            self.journal = self.open_journal(comm, self.directory)
            self._journals.append((comm, self.journal))
            self.job = sum(entry["kind"] == "job" for entry in self.journal.entries)
            if sweeps_every is not None:
                self._open_sweeps(sweeps_every)
            self._begin_job(walltime, take_over)
        except BaseException:
            if self._owner:
                self._owner.release()
            raise
        atexit.register(self.finish, at_exit=True)

    def _open_sweeps(self, every: float) -> None:
        try:
            self.sweeps = Sweeps(self, every)
        except OSError as exc:
            self.warn(f"sweeps are not recorded, and the run goes on: {exc}")

    # The beginning and the end of a job

    def _begin_job(self, walltime: float | None, try_again: bool) -> None:
        identity = identity_of(self.comm)
        first = next((entry for entry in self.journal.entries if entry["kind"] == "run"), None)
        if first is None:
            self.append(self.journal, identity)
        else:
            for name, now in identity.items():
                if first.get(name) != now:
                    self.refuse(f"the first job had {name} {first.get(name)}, and this one has {now}")
        self.clock = Clock(walltime)
        left = self.comm.bcast(self.clock.left())
        script = self.comm.bcast(digest_of_script())
        job = {"kind": "job", "job": self.comm.bcast(job_name()), "time": time.time(), "script": script}
        job["left"] = left if left < math.inf else None
        before = [entry for entry in self.journal.entries if entry["kind"] == "job"]
        self._report_begin(before, script)
        if not try_again:
            self._require_progress(before[-2:], job)
        self.append(self.journal, job)

    def _report_begin(self, before: list[Entry], script: str) -> None:
        kinds = [entry["kind"] for entry in self.journal.entries]
        if before:
            self.say(
                f"goes on in {self.directory}: {kinds.count('value')} values and {kinds.count('derivative')} "
                f"derivatives recorded by {len(before)} job{'s' * (len(before) > 1)}"
            )
            if before[-1]["script"] != script:
                self.warn("the script is not the one of the last job")
        else:
            self.say(f"begins in {self.directory}")
        damaged = kinds.count("damaged")
        if damaged:
            self.warn(f"{damaged} lines of the journal are damaged: what they recorded is computed again")

    def _require_progress(self, before: list[Entry], job: Entry) -> None:
        """Raise ResumeError if the last two jobs have recorded nothing, and this one does not promise more."""
        if len(before) < 2:
            return
        entries = self.journal.entries
        since = entries[entries.index(before[0]) :]
        if any(entry["kind"] in ("value", "derivative", "solve") for entry in since):
            return
        if self.sweeps and self.sweeps.last_job >= self.job - len(before):
            return
        if any(entry["script"] != job["script"] for entry in before):
            return
        if job["left"] is None or any(entry["left"] is None or job["left"] > 1.05 * entry["left"] for entry in before):
            return
        self.refuse(
            "the last two jobs recorded nothing new, so this one would not either: give it more time or more nodes, "
            "so that one evaluation ends in a job, or try again with --take-over"
        )

    def finish(self, status: int | None = None, at_exit: bool = False) -> None:
        """Say what this job has added, and give up the directory: nothing is recorded after that. Not collective.

        Called at exit.

        Parameters
        ----------
        status : int, optional
            The exit status, if it is known.
        at_exit : bool, optional
            Leave the signals as they are, so that one that comes now does not change the exit status.
        """
        global _run
        if self._finished or os.getpid() != self._process:
            return
        self._finished = True
        _run, patches.keep_mesh = None, None
        if not at_exit:
            self.clock.stop()
        status = AGAIN if self.leaving else status
        if self._owner:
            code = "" if status is None else f"; exit status {status}{': run again' * (status == AGAIN)}"
            if self.recordings:
                self.say(f"{self.recordings.written} solves of the recording recorded, {self.recordings.read} read")
            if self.sweeps:
                self.say(f"{self.sweeps.written} solves of sweeps recorded, {self.sweeps.read} read")
            self.say(
                f"{self._added['value']} values and {self._added['derivative']} derivatives recorded, "
                f"{self._replayed['value']} and {self._replayed['derivative']} given back; {self.spent:.1f} s of "
                f"{time.monotonic() - self._begin:.1f} s went into that{code}"
            )
            self._owner.release()
        for _, journal in self._journals:
            journal.close()
        if self.sweeps:
            self.sweeps.close()

    def refuse(self, reason: str) -> NoReturn:
        """Raise ResumeError, which all ranks do at the same time."""
        raise ResumeError(f"cannot go on in {self.directory}: {reason}")

    def warn(self, message: str) -> None:
        """Warn, on rank 0: in the log, because a warning may be turned into an exception, on that rank alone."""
        if self.comm.rank == 0:
            log.warning("resume: %s", message)

    def say(self, message: str) -> None:
        """Say something, on rank 0."""
        if self.comm.rank == 0:
            log.info("resume: %s", message)

    # Journals

    def open_journal(self, comm: MPI.Intracomm, directory: str) -> Journal:
        """The journal in a directory, which is made. Collective on `comm`."""
        owner, token = self._owner, self._token

        def check() -> None:
            if owner is not None:
                owner.check()
            else:
                require_owner(self.directory, token)

        error: Exception | None = None
        try:
            if comm.rank == 0:
                os.makedirs(directory, 0o700, exist_ok=True)
        except OSError as exc:
            error = exc
        raise_everywhere(comm, error)
        return Journal(directory, comm, check)

    def journal_on(self, comm: MPI.Intracomm) -> Journal:
        """The journal of the functionals on this communicator. Collective on it when it is first asked for."""
        for known, journal in self._journals:
            if MPI.Comm.Compare(known, comm) in (MPI.IDENT, MPI.CONGRUENT):
                return journal
        ranks = ranks_in(self.comm, comm)
        name = f"ranks-{ranks[0]:05d}-{xxh3_64_hexdigest(np.array(ranks).tobytes())}"
        journal = self.open_journal(comm, os.path.join(self.directory, name))
        self._journals.append((comm, journal))
        return journal

    def append(self, journal: Journal, entry: Entry, arrays: Sequence[NDArray[Any]] = (), *, wait: bool = True) -> bool:
        """Record something; False, after one warning, once that is not possible. Collective on the journal's comm."""
        if not self._recording:
            return False
        try:
            with self.accounted():
                journal.append(entry, arrays, wait=wait)
        except OSError as exc:
            self._recording = False
            self.warn(f"nothing is recorded from here on, and the run goes on: {exc}")
            return False
        if entry["kind"] in self._added:
            self._added[entry["kind"]] += 1
        return True

    @contextlib.contextmanager
    def accounted(self) -> Iterator[None]:
        """Add to :attr:`spent`."""
        begin = time.monotonic()
        try:
            yield
        finally:
            self.spent += time.monotonic() - begin

    # Functionals

    def functional(self, reduced: Any) -> Functional:
        """The records of a ReducedFunctional. Collective on its communicator."""
        known = self._functionals.get(reduced)
        if known is None:
            controls = [control.control for control in reduced.controls]
            journal = self.journal_on(comm_of(controls) or comm_of_blocks(reduced.tape.get_blocks()) or self.comm)
            self._check_recording(reduced, journal)
            number = self._numbers.get(id(journal), 0)
            self._numbers[id(journal)] = number + 1
            if not tape_state(reduced.tape).current:
                self._check_recorded(number, journal, reduced)
            known = self._functionals[reduced] = Functional(self, journal, number, weakref.proxy(reduced))
        return known

    def say_how_much(self, what: str, nbytes: int) -> None:
        """Say, on rank 0, how many bytes a record takes."""
        free = "an unknown number of"
        with contextlib.suppress(OSError):
            free = f"{shutil.disk_usage(self.directory).free / 1e6:.6g}"
        self.say(f"{what} takes {nbytes / 1e6:.3g} MB; {free} MB are free")

    def begin_replay(self, kind: str) -> None:
        """A recorded evaluation is given back, to the end of pyadjoint's function that has asked for it."""
        self._replayed[kind] += 1
        self.replaying = True

    def miss(self, evaluation: int, functional: int, distance: float) -> None:
        """Say that an evaluation is not where it was."""
        message = (
            f"evaluation {evaluation} of functional {functional} is not at the recorded control (relative distance "
            f"{distance:.1e}): it is computed"
        )
        if self._strict:
            self.refuse(message)
        self.warn(message)

    # The control that a tape is recorded at

    def start(self, *controls: Any) -> bool:
        """Record the tape at the control of the evaluation that the last job did not finish. Collective on `comm`.

        Call it before the tape is recorded, with the Functions that will be controls, in that order. They get the
        values of that control, and their own values back when the ``ReducedFunctional`` is made. That evaluation then
        needs no forward sweep of its own, because the recording was one. With ``resume(sweeps=True)`` this does
        nothing: the recording and what was done of that sweep are read.

        Parameters
        ----------
        *controls : firedrake.Function

        Returns
        -------
        bool
            Whether there was such a control.
        """
        if not all(isinstance(control, Function) for control in controls):
            raise TypeError("start() takes the Functions that will be controls")
        journal = self.journal_on(controls[0].function_space().comm)
        entry = next((entry for entry in reversed(journal.entries) if entry["kind"] == "control"), None)
        initial = [values(control) for control in controls]
        self._started = [(control, before, before) for control, before in zip(controls, initial)]
        if (
            self.sweeps
            or entry is None
            or any(found["kind"] == "derivative" and found["key"] == entry["key"] for found in journal.entries)
        ):
            return False
        try:
            unfinished = journal.read(entry, initial)
        except DamagedRecord as exc:
            self.warn(f"the tape is recorded at the script's own control: {exc}")
            return False
        self._start_entry = entry
        self._started = [(control, before, after) for control, before, after in zip(controls, initial, unfinished)]
        with stop_annotating():
            for control, _, after in self._started:
                control.assign(with_values(control, after))
        return True

    def recorded(self, reduced: Any) -> None:
        """Give the controls of a new ReducedFunctional the values that they had before :meth:`start`."""
        if self._start_entry is None:
            return
        with stop_annotating():
            for function, before, _ in self._started:
                for control in reduced.controls:
                    variable = control.block_variable
                    if control.control is function:
                        initial = with_values(function, before)
                        if variable.checkpoint is not None:
                            variable.checkpoint = initial
                        if function.block_variable is variable:  # the recording has not changed it
                            function.assign(initial)

    @property
    def starts_elsewhere(self) -> bool:
        """Whether the tape is recorded at another control than the script's own."""
        return self._start_entry is not None

    def require_initial_recording(self) -> None:
        """Raise ResumeError if the tape was recorded at another control than the script's own."""
        if self.starts_elsewhere:
            self.refuse("the script computes a derivative before it evaluates, so it must not call start()")

    def key_of_recording(self, reduced: Any, comm: MPI.Intracomm) -> str:
        """The key of the controls that a tape was recorded at; empty if that is not known. Collective on `comm`."""
        controls = list(reduced.controls)
        started = {id(function): after for function, _, after in self._started} if self._start_entry else {}
        if started:
            known = [started.get(id(control.control)) for control in controls]
            return "" if any(array is None for array in known) else key_of(comm, known)
        if any(control.block_variable.checkpoint is None for control in controls):
            return ""
        return key_of(comm, [values(control.tape_value()) for control in controls])

    # Meshes

    def keep_mesh(self, mesh: Any) -> Any:
        """The mesh, with the partition that it had in the first job. Collective on its communicator."""
        journal = self.journal_on(mesh.comm)
        number = self._meshes.get(id(journal), 0)
        self._meshes[id(journal)] = number + 1
        path = os.path.join(journal.directory, f"mesh-{number:05d}.h5")
        cells = int(mesh.comm.allreduce(mesh.cell_set.size))
        size = norms(mesh.comm, [values(mesh.coordinates)])[0]
        known = next((e for e in journal.entries if e["kind"] == "mesh" and e["number"] == number), None)
        if known is None:
            with CheckpointFile(path, "w", comm=mesh.comm) as file:
                file.save_mesh(mesh)
            error: Exception | None = None
            try:
                sync(path)
                sync(journal.directory)
            except OSError as exc:
                error = exc
            raise_everywhere(mesh.comm, error)
            self.append(journal, {"kind": "mesh", "number": number, "cells": cells, "size": size})
        elif known["cells"] != cells or abs(known["size"] - size) > ROUNDING * size:
            self.refuse(
                f"mesh {number + 1} has {cells} cells and coordinates of norm {size:.10g}, and had {known['cells']} "
                f"and {known['size']:.10g} in the first job"
            )
        with CheckpointFile(path, "r", comm=mesh.comm) as file:
            return file.load_mesh(mesh.name)

    # The recording of a tape, compared with that of the first job

    def end_timestep(self, tape: Any) -> None:
        """Compare a timestep of a recording, and look at the clock. Collective on the communicator of its Functions."""
        state = tape_state(tape)
        state.steps += 1
        blocks = tape.timesteps[-1] if tape.timesteps else []
        comm = comm_of_blocks(blocks)
        if comm is not None:
            journal = self.journal_on(comm)
            if state.steps in CHECKED_STEPS:
                self._check_step(journal, state, state.steps, blocks)
            self.at_boundary(journal)

    def _check_recording(self, reduced: Any, journal: Journal) -> None:
        """Compare a recording that has no timesteps."""
        state = tape_state(reduced.tape)
        if not state.steps:
            state.steps = 1
            self._check_step(journal, state, 0, reduced.tape.get_blocks())

    def _check_recorded(self, functional: int, journal: Journal, reduced: Any) -> None:
        """Compare what came out of a recording. Collective on the journal's communicator."""
        value = reduced.functional.block_variable.saved_output
        checkpointer = reduced.tape._package_data.get("firedrake")
        found: Entry = {
            "precisions": [getattr(checkpointer, "precision", None) or "exact"],
            "timesteps": [len(reduced.tape.timesteps)],
            "blocks": [len(reduced.tape.get_blocks())],
            "values": [float(value)] if isinstance(value, float) else norms(journal.comm, [values(value)]),
        }
        start = self._start_entry and self._start_entry["key"]
        where = {"kind": "recording", "functional": functional, "start": start}
        known = next((entry for entry in journal.entries if where.items() <= entry.items()), None)
        if known is None:
            self.append(journal, {**where, **found})
        else:
            for name in found:
                self.compare(f"the recording of functional {functional + 1}", name, known[name], found[name])

    def _check_step(self, journal: Journal, state: TapeState, step: int, blocks: Any) -> None:
        if state.number is None:
            state.number, self._recordings = self._recordings, self._recordings + 1
        made: set[int] = set()
        inputs, outputs = [], []
        ours = {id(function) for function, _, _ in self._started}
        for block in blocks:
            for variable in block.get_dependencies():
                if id(variable) not in made and id(variable.output) not in ours:
                    inputs.append(variable.saved_output)
            for variable in block.get_outputs():
                made.add(id(variable))
                outputs.append(variable.saved_output)
        found: Entry = {
            "blocks": [type(block).__name__ for block in blocks],
            "inputs": norms(journal.comm, [values(one) for one in inputs if is_array(one)]),
            "outputs": norms(journal.comm, [values(one) for one in outputs if is_array(one)]),
        }
        start = self._start_entry and self._start_entry["key"]
        where = f"timestep {step}" if step else "the recording"
        same_start = None
        for entry in journal.entries:
            if entry["kind"] == "step" and (entry["tape"], entry["step"]) == (state.number, step):
                for name in ("blocks", "inputs"):
                    self.compare(where, name, entry[name], found[name])
                if entry["start"] == start:
                    same_start = entry
        if same_start:
            self.compare(where, "outputs", same_start["outputs"], found["outputs"])
        else:
            self.append(journal, {"kind": "step", "tape": state.number, "step": step, "start": start, **found})

    def compare(self, where: str, name: str, then: list[Any], now: list[Any]) -> None:
        if len(then) != len(now):
            self.refuse(f"{where} has {len(now)} {name}, and had {len(then)} in the first job")
        numbers = [abs(number) for number in (*then, *now) if not isinstance(number, str)]
        noise = NOISE * max(numbers, default=0.0)
        for i, (one, other) in enumerate(zip(then, now)):
            if isinstance(one, str) or math.isnan(one):
                same = str(one) == str(other)
            else:
                same = abs(one - other) <= ROUNDING * max(abs(one), abs(other)) + noise
            if not same:
                self.refuse(
                    f"{where} is not that of the first job (another problem, or other data?): {name[:-1]} {i + 1} of "
                    f"{len(now)} is {other}, and was {one}"
                )

    # The clock

    @contextlib.contextmanager
    def watched(self, tape: Any, journal: Journal, sweep: Sweep | None = None) -> Iterator[None]:
        """Look at the clock at each timestep of a sweep, and record the sweep."""

        def at_boundary() -> None:
            if sweep is None or sweep.at_boundary():
                self.at_boundary(journal, sweep)

        bar = tape._bar
        tape._bar = lambda *args, **kwargs: WatchedBar(bar(*args, **kwargs), at_boundary)
        self._reset_pace()
        try:
            with sweep or contextlib.nullcontext():
                yield
        finally:
            tape._bar = bar

    def _reset_pace(self) -> None:
        self._boundaries, self._every = 0, 1
        self._last_boundary = time.monotonic()

    _boundaries, _every, _last_boundary = 0, 1, math.inf

    def at_boundary(self, journal: Journal, sweep: Sweep | None = None) -> None:
        """Leave, on all ranks together, if the job ends before the next boundary. Collective on the run's `comm`.

        Before that, or when it is time, what was done of a sweep is recorded.

        Not every boundary is used: all ranks count them alike, and look at the clock every half a second or so.
        """
        self._boundaries += 1
        if self._boundaries % self._every or journal is not self.journal:
            return
        now = time.monotonic()
        elapsed = max(now - self._last_boundary, 0.0)
        with self.accounted():
            if self._owner:
                self._owner.beat()
            short = self.clock.is_short_of(2 * elapsed + GRACE + (sweep.seconds if sweep else 0.0))
            asked = np.array([float(short), elapsed, float(sweep is not None and sweep.is_due)])
            self.comm.Allreduce(MPI.IN_PLACE, asked, MPI.MAX)
        if sweep is not None and (asked[0] or asked[2]):
            sweep.commit()
        if asked[0]:
            self._leave("the time is over" if not self.clock.signalled else f"it got {self.clock.signalled}")
        if sweep is not None and sweep.at_each_step:
            self._every = 1
        elif asked[1] < OFTEN and self._boundaries > 1:  # before the first one there was no timestep
            self._every = min(2 * self._every, 1 << 20)
        elif asked[1] > 4 * OFTEN:
            self._every = max(self._every // 2, 1)
        self._last_boundary = time.monotonic()

    def require_time(self, journal: Journal, seconds: float, name: str) -> None:
        """Leave, on all ranks together, if there is not so much time. Collective on the run's `comm`."""
        if journal is not self.journal:
            return
        if self.comm.allreduce(
            bool(self.clock.signalled) or (seconds > 0 and self.clock.is_short_of(seconds)), MPI.LOR
        ):
            self._leave(f"there is no time for {name}, which takes {seconds:.3g} s")

    def _leave(self, why: str) -> NoReturn:
        self.leaving = True
        self.say(f"leaves: {why}")
        if self.sweeps:
            self.sweeps.commit()
        raise SystemExit(AGAIN)


class WatchedBar:
    """A progress bar of a tape that calls a function at each timestep.

    Parameters
    ----------
    bar : object
        The one that the tape would have.
    at_boundary : callable
    """

    def __init__(self, bar: Any, at_boundary: Callable[[], None]) -> None:
        self._bar, self._at_boundary = bar, at_boundary
        self._entered: Any = None

    def __enter__(self) -> "WatchedBar":
        self._entered = self._bar.__enter__()
        return self

    def __exit__(self, *args: Any) -> Any:
        return self._bar.__exit__(*args)

    def next(self) -> None:
        """With a schedule, pyadjoint calls this at the beginning of each timestep."""
        self._at_boundary()
        if self._entered:
            self._entered.next()

    def iter(self, iterable: Any) -> Iterator[Any]:
        """Without a schedule, pyadjoint goes through all blocks with this."""
        for item in self._bar.iter(iterable):
            self._at_boundary()
            yield item


def make_directory(path: str) -> None:
    """Make the directory of a run, or see that nobody else can change it. Not collective."""
    os.makedirs(path, 0o700, exist_ok=True)
    found = os.stat(path)
    if found.st_uid != os.geteuid():
        raise ResumeError(f"{path} belongs to another user")
    if found.st_mode & stat.S_IWOTH:
        raise ResumeError(f"{path} is writeable by everyone")


def identity_of(comm: MPI.Intracomm) -> Entry:
    """What must be the same in all jobs of a run."""
    return {
        "kind": "run",
        "format": VERSION,
        "number of ranks": comm.size,
        "scalar type": np.dtype(PETSc.ScalarType).name,
        "Firedrake": version("firedrake"),
        "PETSc": ".".join(map(str, PETSc.Sys.getVersion())),
        "pyadjoint": version("pyadjoint-ad"),
    }


def digest_of_script() -> str:
    """A hash of the text of the script; empty if there is none."""
    try:
        with open(sys.argv[0], "rb") as script:
            return xxh3_128_hexdigest(script.read())
    except OSError:
        return ""


def comm_of_blocks(blocks: Any) -> MPI.Intracomm | None:
    """The communicator of what some blocks of a tape have made; None if they have made numbers only."""
    return comm_of(variable.output for block in blocks for variable in block.get_outputs())


def is_array(value: Any) -> bool:
    """Whether the entries of a variable of a tape can be compared."""
    return isinstance(value, (float, Function, Cofunction))


# What pyadjoint's and Firedrake's functions are replaced by: called with the original first.


def init_functional(original: Callable[..., None], self: Any, *args: Any, **kwargs: Any) -> None:
    """A ReducedFunctional is made: its tape has been recorded."""
    original(self, *args, **kwargs)
    if _run is not None:
        _run.recorded(self)


def evaluate(original: Callable[..., Any], self: Any, controls: Any) -> Any:
    """The value of a ReducedFunctional, from a record or by a sweep."""
    listed = Enlist(controls)
    if _run is None or not fits(self, listed) or not can_record(self):
        return original(self, controls)
    try:
        with stop_annotating():
            return _run.functional(self).evaluate(original, listed)
    finally:
        if _run is not None:
            _run.replaying = False


_deriving: list[Any] = []  # the ReducedFunctionals whose derivative is asked for


def derivative(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    """Note whose derivative pyadjoint's own code is about to compute."""
    _deriving.append(self)
    try:
        return original(self, *args, **kwargs)
    finally:
        _deriving.pop()
        if _run is not None:
            _run.replaying = False


def compute_derivative(
    original: Callable[..., Any], J: Any, m: Any, tape: Any = None, adj_value: Any = 1.0, apply_riesz: bool = False
) -> Any:
    """The derivative of a ReducedFunctional, from a record or by a sweep."""
    if _run is None or not _deriving or not can_record(_deriving[-1]):
        return original(J, m, tape=tape, adj_value=adj_value, apply_riesz=apply_riesz)
    return _run.functional(_deriving[-1]).differentiate(original, J, Enlist(m), tape, adj_value, apply_riesz)


def compute_really(original: Callable[..., Any], J: Any, m: Any, m_dot: Any, *args: Any, **kwargs: Any) -> Any:
    """A Hessian action or a tangent: it needs the states and adjoint values of the last evaluation."""
    tape = kwargs.get("tape")
    if _run is not None and tape is not None:
        with stop_annotating():
            tape_state(tape).make_real()
    return original(J, m, m_dot, *args, **kwargs)


def evaluate_ensemble(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    """A value or derivative of an EnsembleReducedFunctional: here all members of the ensemble can leave together."""
    if _run is not None and self.ensemble.global_comm.size == _run.comm.size:
        _run.require_time(_run.journal, 0.0, "an evaluation")
    return original(self, *args, **kwargs)


def evaluate_tape(original: Callable[..., None], self: Any, *args: Any, **kwargs: Any) -> None:
    """A sweep of adjoint or tangent, whoever wants it: it needs the states of the last evaluation."""
    if _run is not None:
        tape_state(self).sweep_if_due()
    original(self, *args, **kwargs)


def end_timestep(original: Callable[..., None], self: Any) -> None:
    """A timestep has been recorded."""
    if _run is not None:
        _run.end_timestep(self)
    original(self)


def solve(original: Callable[..., Any], self: Any, **kwargs: Any) -> Any:
    """A variational solve: one of a recording or of a sweep may be in a journal."""
    if _run is not None and _run.recordings is not None:
        recomputed = _run.sweeps.take_block() if _run.sweeps else None
        if can_be_read(self):
            if recomputed is not None:
                return recomputed(original, self, **kwargs)
            if annotate_tape(dict(kwargs)) and not _run.starts_elsewhere:
                return _run.recordings.solve(original, self, **kwargs)
    return original(self, **kwargs)


def recompute_solve(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    """A block of a tape is about to solve again."""
    if _run is None or _run.sweeps is None:
        return original(self, *args, **kwargs)
    with _run.sweeps.recomputing(self):
        return original(self, *args, **kwargs)


def solve_with_tao(original: Callable[..., Any], self: Any) -> Any:
    """PETSc turns an exception of a callback into one of its own: leave as if TAO was not between."""
    try:
        return original(self)
    except PETSc.Error as exc:
        if isinstance(exc.__cause__, SystemExit):
            raise exc.__cause__ from None
        raise


def adjoint_solve(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    """Begin at zero: from its last solution, the result would depend on what was solved before it."""
    if _run is not None:
        self._ad_solvers["adjoint_lvs"]._problem.u.zero()
    return original(self, *args, **kwargs)
