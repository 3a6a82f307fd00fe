"""The sweep in progress, recorded so that the next job goes on in the timestep where this one has stopped.

Forward, the solution of each solve is written once, and later jobs read it instead of solving. All else runs again. In
reverse, all that passes from one timestep to the next is the adjoint values of variables of the tape. They are written
at intervals; the next job puts them back where it comes to the same place. Until then its variables have no adjoint
values, and pyadjoint passes by blocks whose outputs have none, so nothing has to be skipped.

The records of a sweep take the place of those of the sweep before.
"""

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np
from firedrake import Cofunction, Function
from petsc4py import PETSc
from pyadjoint import AdjFloat
from xxhash import xxh3_128_hexdigest

from localckpt.adjoint.recordings import description_of, read_solution, solve_as_before
from localckpt.adjoint.values import values, with_values
from localckpt.storage.journal import DamagedRecord, Journal
from localckpt.storage.journal_entries import SWEEP, Entry

if TYPE_CHECKING:
    from localckpt.adjoint.runs import Run

__all__ = ["ReverseSweep", "Sweep", "Sweeps"]

SHARE = 0.02  # of the time of a run that its commits may take, about


class Sweeps:
    """The records of the sweep in progress. All methods but :meth:`close` are collective on the run's `comm`.

    Parameters
    ----------
    run : localckpt.adjoint.runs.Run
    every : float
        Seconds between two commits, at least; 0 is every timestep.

    Attributes
    ----------
    last_job : int
        The last one before this that has recorded something of the sweep; -1 if none has.
    seconds : float
        What the last commit of this rank has taken.
    read, written : int
        Solves.

    Raises
    ------
    OSError
        On every rank.
    """

    def __init__(self, run: "Run", every: float) -> None:
        self.run, self.every = run, every
        self.read = self.written = 0
        self.seconds, self.committed = 0.0, time.monotonic()
        self.current: Sweep | None = None
        self._block: Any = None  # that solves next
        self._recording = True
        self._journals: list[Journal] = []
        try:
            for name in ("", "adjoint-0", "adjoint-1"):
                self._journals.append(run.open_journal(run.comm, os.path.join(run.directory, SWEEP, name)))
        except OSError:
            self.close()
            raise
        # Two slots for adjoint values, so that one of them is whole while the other one is written.
        self.solves, *self.slots = self._journals
        self.next_slot = 0
        entries = [entry for journal in self._journals for entry in journal.entries]
        self.last_job = max((entry.get("job", -1) for entry in entries), default=-1)
        self._of = next((entry["of"] for entry in self.solves.entries if entry["kind"] == "sweep"), None)
        # The solves of earlier jobs, by their block. Those of this job are not read: it computes again what its
        # schedule says.
        self.readable = {entry["block"]: entry for entry in self.solves.entries if entry["kind"] == "solve"}
        self.known = set(self.readable)
        self._said: set[str] = set()

    def is_of(self, of: Entry) -> bool:
        """Whether these are the records of a sweep."""
        return self._of == of

    def is_worth(self, longest: dict[str, float]) -> bool:
        """Whether an evaluation and its derivative take so long that a part of them is worth recording."""
        taken = longest.values()
        return bool(self.run.comm.bcast(self._recording and (0.0 in taken or sum(taken) >= self.every)))

    def is_missing(self, block: int) -> bool:
        """Whether the solve of a block is still to be recorded."""
        return self._recording and block not in self.known

    def begin(self, sweep: "Sweep") -> None:
        """Make room for the records of a sweep, unless it is the one whose records are here."""
        if self.is_of(sweep.of):
            return
        self.say_once("a sweep", sweep.nbytes)
        self._of = sweep.of
        self.readable.clear()
        self.known.clear()
        self.write(self.solves.clear)
        self.write(partial(self.solves.stage, {"kind": "sweep", "job": self.run.job, "of": sweep.of}))

    def write(self, write: Callable[[], None]) -> bool:
        """Write something; once that is not possible, warn, free the space and write nothing more."""
        if not self._recording:
            return False
        try:
            with self.run.accounted():
                write()
        except OSError as exc:
            self._recording = False
            self.readable.clear()
            with suppress(OSError):  # what is recorded of evaluations is worth more
                self.solves.clear()
            self.run.warn(f"sweeps are not recorded from here on, and the run goes on: {exc}")
        return self._recording

    def commit(self) -> None:
        """Make the solves that were written so far outlive the job."""
        self.write(self.solves.commit)

    def say_once(self, what: str, nbytes: int) -> None:
        """Say how many bytes something takes, before the first is written."""
        if what not in self._said:
            self._said.add(what)
            self.run.say_how_much(what, nbytes)

    def warn_once(self, message: str) -> None:
        """Warn where it would be the same in each timestep."""
        if message not in self._said:
            self._said.add(message)
            self.run.warn(message)

    @contextmanager
    def recomputing(self, block: Any) -> Iterator[None]:
        """While this block of the tape in progress solves."""
        if self.current is not None and id(block) in self.current.index:
            self._block = block
        try:
            yield
        finally:
            self._block = None

    def take_block(self) -> "Callable[..., Any] | None":
        """What does the next solve, if that is one of the sweep; solves inside of it are done. Not collective."""
        block, self._block = self._block, None
        return None if block is None or self.current is None else partial(self.current.solve, block)

    def close(self) -> None:
        """Close the files. Not collective."""
        for journal in self._journals:
            journal.close()


class Sweep:
    """A forward sweep: a context, inside of which it is recorded and read. Collective on the run's `comm`.

    Parameters
    ----------
    sweeps : Sweeps
    tape : pyadjoint.Tape
    functional : int
    key : str
        That of the controls. In two jobs the same tape gives the same states at the same controls.

    Attributes
    ----------
    at_each_step : bool
        Whether each timestep is committed.
    seconds_before : float
        What the jobs before have taken for the part that they have done.
    """

    def __init__(self, sweeps: Sweeps, tape: Any, functional: int, key: str) -> None:
        self.sweeps, self.blocks = sweeps, tape.get_blocks()
        self.of = identity_of(tape, functional, key)
        self.index = {id(block): i for i, block in enumerate(self.blocks)}
        self.at_each_step = sweeps.every == 0
        # Without a schedule, these blocks are the places to commit at: all is done that belongs to the solve before.
        self._solves = solves_of(self.blocks)
        self._places = self._solves if self._solves and tape._checkpoint_manager is None else None
        self._boundaries = 0  # that it has come to
        self._outer: Sweep | None = None
        self._begin = math.inf
        self._written = 0  # solves, up to the last commit
        self.seconds_before = 0.0

    @property
    def nbytes(self) -> int:
        """Those of its solutions, on all ranks."""
        number = np.dtype(PETSc.ScalarType).itemsize
        return sum(int(self.blocks[i].function_space.dim()) * number for i in self._solves)

    @property
    def seconds(self) -> float:
        """What a commit takes."""
        return self.sweeps.seconds

    @property
    def is_due(self) -> bool:
        """Whether it is time to commit. Not collective: ranks may disagree."""
        sweeps = self.sweeps
        wait = max(sweeps.every, sweeps.seconds / SHARE) if sweeps.every else 0.0
        return time.monotonic() - sweeps.committed >= wait

    def __enter__(self) -> "Sweep":
        self._outer, self.sweeps.current = self.sweeps.current, self
        self.sweeps.begin(self)
        self._begin, self._written = time.monotonic(), self.sweeps.written
        with self.sweeps.run.accounted():
            self._find()
        return self

    def __exit__(self, *args: Any) -> None:
        self.sweeps.current = self._outer

    def _find(self) -> None:
        """Look for what another job has done."""
        parts = [entry["seconds"] for entry in self.sweeps.solves.entries if entry["kind"] == "forward"]
        self.seconds_before = max(parts, default=0.0)
        if self.sweeps.readable:
            self.sweeps.run.say(f"{len(self.sweeps.readable)} solves of this forward sweep are read")

    def solve(self, block: Any, original: Callable[..., Any], solver: Any, **kwargs: Any) -> Any:
        """Solve, or read what another job has solved."""
        sweeps, number, problem = self.sweeps, self.index[id(block)], solver._problem
        sweeps.begin(self)  # a callback may have made another sweep meanwhile
        entry = sweeps.readable.get(number)
        if entry is None and not sweeps.is_missing(number):
            return original(solver, **kwargs)
        with sweeps.run.accounted():
            found: Entry = {"kind": "solve", "job": sweeps.run.job, "block": number, **description_of(problem)}
            solution = None
            if entry is not None:
                what = f"the solve of block {number + 1} of the tape"
                solution = read_solution(sweeps.run, sweeps.solves, entry, found, problem, what)
        if solution is not None:
            sweeps.read += 1
            return solve_as_before(original, solver, solution, **kwargs)
        sweeps.readable.pop(number, None)
        sweeps.known.add(number)
        result = original(solver, **kwargs)
        sweeps.written += sweeps.write(partial(sweeps.solves.stage, found, [values(problem.u_restrict)]))
        return result

    def at_boundary(self) -> bool:
        """A timestep begins or, without a schedule, a block: whether this is a place to commit at. Not collective."""
        self._boundaries += 1
        return self._is_place(self._boundaries - 1)

    def _is_place(self, block: int) -> bool:
        return self._places is None or block in self._places

    def commit(self) -> None:
        """Make what was done so far outlive the job."""
        begin = time.monotonic()
        self.sweeps.write(self._write)
        self.sweeps.committed = time.monotonic()
        self.sweeps.seconds = self.sweeps.committed - begin

    def _write(self) -> None:
        if self.sweeps.written > self._written:
            self._written = self.sweeps.written
            self.sweeps.solves.append({"kind": "forward", "job": self.sweeps.run.job, "seconds": self._seconds})

    @property
    def _seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self._begin


class ReverseSweep(Sweep):
    """A sweep in reverse.

    Parameters
    ----------
    sweeps, tape, functional, key
        As above.
    derivative : str
        Which one: of which controls, from which adjoint value on.
    J : object
        The functional's block variable.
    controls : sequence of pyadjoint.Control

    Attributes
    ----------
    resumed : bool
        Whether it goes on where another one has stopped: the tape does not get all adjoint values.
    """

    def __init__(
        self, sweeps: Sweeps, tape: Any, functional: int, key: str, derivative: str, J: Any, controls: Sequence[Any]
    ) -> None:
        super().__init__(sweeps, tape, functional, key)
        self._derivative, self._J = derivative, J
        self._controls = [control.block_variable for control in controls]
        manager = tape._checkpoint_manager
        if manager is None:
            self._lefts = list(range(len(self.blocks), 0, -1))
        else:
            steps = tape.timesteps[: manager.total_timesteps]
            self._lefts = list(accumulate(len(step) for step in steps))[::-1]
        self._left = len(self.blocks)  # blocks that come next in this sweep: the first ones of the tape
        self._restore: tuple[int, list[tuple[Any, Any]]] | None = None  # how many are left then; variables and values
        self.resumed = False

    def _find(self) -> None:
        found = [
            (entry["left"], slot, entry)
            for slot, journal in enumerate(self.sweeps.slots)
            for entry in journal.entries
            if entry["kind"] == "adjoint" and (entry["of"], entry["derivative"]) == (self.of, self._derivative)
        ]
        for left, slot, entry in sorted(found, key=lambda one: one[0]):
            if left not in self._lefts:
                continue
            variables = [self._variable(*name) for name in entry["variables"]]
            zeros = [variable.output._ad_init_zero(dual=True) for variable in variables]
            try:
                arrays = self.sweeps.slots[slot].read(entry, [values(zero) for zero in zeros])
            except DamagedRecord as exc:
                self.sweeps.run.warn(f"timesteps of a derivative are computed again: {exc}")
                continue
            self.sweeps.next_slot = 1 - slot
            self.sweeps.run.say(f"this derivative goes on with block {left} of {len(self.blocks)}, in reverse")
            self._restore = left, [(v, with_values(zero, array)) for v, zero, array in zip(variables, zeros, arrays)]
            self.resumed, self.seconds_before = True, entry["seconds"]
            return

    def _variable(self, block: int, number: int) -> Any:
        return self._controls[number] if block < 0 else self.blocks[block].get_outputs()[number]

    def _live(self) -> dict[int, tuple[int, int]]:
        """The names of the variables whose adjoint values are used from here on, by their ids."""
        names: dict[int, tuple[int, int]] = {}
        for i in range(self._left):
            for j, variable in enumerate(self.blocks[i].get_outputs()):
                if variable.adj_value is not None:
                    names.setdefault(id(variable), (i, j))
        for j, variable in enumerate(self._controls):
            if variable.adj_value is not None:
                names.setdefault(id(variable), (-1, j))
        return names

    def at_boundary(self) -> bool:
        """As above. If it has come to where another job has stopped, it goes on from there."""
        self._left = self._lefts[self._boundaries]
        self._boundaries += 1
        if self._restore is not None:
            left, adjoint_values = self._restore
            if self._boundaries == 1:
                self._J.adj_value = None
            if self._left == left:
                for variable, value in adjoint_values:
                    variable.adj_value = value
                self._restore = None
        return self._is_place(self._left - 1)

    def _write(self) -> None:
        self.sweeps.solves.commit()
        if self._restore is not None or self._left == len(self.blocks):
            return  # nothing is done that another job has not done
        sweeps, names = self.sweeps, list(self._live().values())
        variables = [self._variable(*name) for name in names]
        strange = next((v for v in variables if not can_be_recorded(v)), None)
        if strange is not None:
            kind = type(strange.output).__name__
            sweeps.warn_once(f"timesteps of a derivative are not recorded: the adjoint value of a {kind} cannot be")
            return
        arrays = [values(variable.adj_value) for variable in variables]
        sweeps.say_once(
            "one of the two records of adjoint values",
            sweeps.run.comm.allreduce(sum(array.nbytes for array in arrays)),
        )
        slot: Journal = sweeps.slots[sweeps.next_slot]
        slot.clear()
        entry = {"kind": "adjoint", "job": sweeps.run.job, "of": self.of, "derivative": self._derivative}
        slot.append({**entry, "left": self._left, "variables": names, "seconds": self._seconds}, arrays)
        sweeps.next_slot = 1 - sweeps.next_slot


def identity_of(tape: Any, functional: int, key: str) -> Entry:
    """What two jobs must share to share a sweep: functional, controls, and the blocks of the tape in their order."""
    kinds = [
        (type(block).__name__, [type(v.output).__name__ for v in block.get_outputs()]) for block in tape.get_blocks()
    ]
    tape_key = xxh3_128_hexdigest(json.dumps(kinds).encode())
    return {"functional": functional, "key": key, "tape": tape_key, "blocks": len(kinds)}


def solves_of(blocks: Sequence[Any]) -> set[int]:
    """Which blocks of a tape are variational solves."""
    from firedrake.adjoint_utils.blocks.solving import GenericSolveBlock  # a place that "resume sweeps" has looked for

    return {i for i, block in enumerate(blocks) if isinstance(block, GenericSolveBlock)}


def can_be_recorded(variable: Any) -> bool:
    """Whether the adjoint value of a variable is a number, or a Function in the dual space of the variable's."""
    output, value = variable.output, variable.adj_value
    if isinstance(output, AdjFloat):
        return isinstance(value, (int, float))
    return (
        isinstance(output, (Function, Cofunction))
        and isinstance(value, (Function, Cofunction))
        and value.function_space() == output.function_space().dual()
    )
