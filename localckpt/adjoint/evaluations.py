"""Values and derivatives of one functional, recorded as soon as they are known and given back to the same script.

An optimiser that gets the same answers asks the same questions. So nothing of the optimiser is recorded: the script of
a later job runs from its beginning, and each evaluation that was recorded is answered without a sweep.
"""

import json
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from firedrake import Constant
from mpi4py import MPI
from numpy.typing import NDArray
from pyadjoint import AdjFloat, OverloadedType, ReducedFunctional
from pyadjoint.tape import TapePackageData, _NullProgressBar
from xxhash import xxh3_128_intdigest

from localckpt.adjoint.sweeps import ReverseSweep, Sweep
from localckpt.adjoint.values import norms, values, with_values
from localckpt.functions import numbering_digest
from localckpt.storage.journal import DamagedRecord
from localckpt.storage.journal_entries import Entry

if TYPE_CHECKING:
    from localckpt.adjoint.runs import Run

__all__ = ["Functional", "TapeState", "key_of", "tape_state"]

NEAR = 1e-10  # relative distance of a control from the recorded one, at most, that is due to rounding
PACKAGE = "localckpt.resume"
NOTHING = -1  # the number of no evaluation


class TapeState(TapePackageData):
    """Which evaluation is on a tape, really and for the script.

    After a value that was recorded the tape still has the forward states of an earlier evaluation. Whatever needs the
    states makes up for that (:meth:`sweep_if_due`).

    Attributes
    ----------
    actual : int
        The number of the evaluation whose states are on the tape: 0 is its recording, -1 a sweep that has failed.
    current : int
        The number of the last evaluation that the script has asked for.
    key : str
        That of its controls; empty before the first evaluation.
    functional : object
        The ReducedFunctional that was evaluated.
    number : int or None
        Of its recording, among all recordings of the script.
    steps : int
        Timesteps that have been recorded.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self.steps = 0
        self.actual = self.current = self._evaluations = 0
        self.key, self.functional = "", None
        self._sweep: Callable[[], Any] = lambda: None
        self._derive: Callable[[], Any] | None = None  # the last derivative, if it was not computed

    @property
    def due(self) -> bool:
        """Whether the states on the tape are those of another evaluation than the script has asked for."""
        return self.current != self.actual

    def evaluated(self, functional: Any, key: str, sweep: Callable[[], Any], swept: bool) -> None:
        """Note an evaluation, and whether its states are on the tape; `sweep` would bring them there."""
        self._evaluations += 1
        self.current, self.functional, self.key = self._evaluations, functional, key
        self._sweep, self._derive = sweep, None
        if swept:
            self.actual = self.current

    def derived(self, derive: Callable[[], Any] | None) -> None:
        """Note a derivative, and, if the tape does not have its adjoint values, what would bring them there."""
        self._derive = derive

    def sweep_if_due(self) -> None:
        """Bring the states of the current evaluation onto the tape. Collective on the functional's communicator."""
        if self.due:
            self._sweep()
            self.actual = self.current

    def make_real(self) -> None:
        """Bring the states and adjoint values of the current evaluation onto the tape. Collective as above."""
        self.sweep_if_due()
        derive, self._derive = self._derive, None
        if derive is not None:
            derive()

    def clear(self) -> None:
        self.__init__()  # type: ignore[misc]

    def reset(self) -> None:
        pass

    def checkpoint(self) -> tuple[Any, ...]:
        return self.current, self.key, self.functional, self._sweep

    def restore_from_checkpoint(self, state: tuple[Any, ...]) -> None:
        # ROL reverts to an earlier evaluation. pyadjoint brings back references only, to Functions that a sweep in
        # between has changed: if there was one, `due` is true now.
        self.current, self.key, self.functional, self._sweep = state
        self._derive = None

    def copy(self) -> "TapeState":
        return TapeState()

    def continue_checkpointing(self) -> None:
        pass

    def pause_checkpointing(self) -> None:
        pass


def tape_state(tape: Any) -> TapeState:
    """That of a tape, made when it is first asked for."""
    state: TapeState = tape._package_data.setdefault(PACKAGE, TapeState())
    return state


class NoBlocks:
    """Stands in for the tape of a ReducedFunctional that is evaluated without a sweep."""

    _checkpoint_manager = None
    _bar = _NullProgressBar
    _recompute_count = 0

    def __init__(self, tape: Any) -> None:
        self._tape = tape

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tape, name)

    def reset_blocks(self) -> None:
        pass

    def get_blocks(self, tag: Any = None) -> list[Any]:
        return []


class Functional:
    """The records of one ReducedFunctional. All methods are collective on the journal's communicator.

    Parameters
    ----------
    run : localckpt.adjoint.runs.Run
    journal : localckpt.storage.journal.Journal
    number : int
        Functionals are numbered in the order in which a script first uses them.
    reduced : pyadjoint.ReducedFunctional
    """

    def __init__(self, run: "Run", journal: Any, number: int, reduced: Any) -> None:
        self.run, self.journal, self.number, self.reduced = run, journal, number, reduced
        self._controls: list[Entry] = []  # in the order of their evaluation
        self._position = 0  # of the next one
        self._values: dict[str, Entry] = {}
        self._derivatives: dict[tuple[str, str], Entry] = {}
        self.longest = {"value": 0.0, "derivative": 0.0}  # seconds
        # The tape as it was recorded: where, if that is known, and what came out.
        self._recorded_key, self._recorded = "", reduced.functional.block_variable.saved_output
        if tape_state(reduced.tape).current == 0:
            self._recorded_key = run.key_of_recording(reduced, journal.comm)
        for entry in journal.entries:
            if entry.get("functional") == number:
                self._remember(entry)
        self._check_identity()

    def _remember(self, entry: Entry) -> None:
        kind = entry["kind"]
        if kind == "control":
            self._controls.append(entry)
        elif kind == "value":
            self._values[entry["key"]] = entry
        elif kind == "derivative":
            self._derivatives[entry["key"], entry["of"]] = entry
        if kind in self.longest:
            self.longest[kind] = max(self.longest[kind], entry["seconds"])

    def _check_identity(self) -> None:
        """Raise ResumeError if the spaces of the controls are numbered otherwise than they were."""
        controls = [control.control for control in self.reduced.controls]
        identity: Entry = {
            "kind": "functional",
            "functional": self.number,
            "controls": [describe(control) for control in controls],
            "numbering": key_of(self.journal.comm, [np.frombuffer(numbering_digest(c), np.uint8) for c in controls]),
        }
        mine = [entry for entry in self.journal.entries if entry["kind"] == "functional"]
        known = next((entry for entry in mine if entry["functional"] == self.number), None)
        if known is None:
            nbytes = self.journal.comm.allreduce(sum(values(control).nbytes for control in controls))
            self.run.say_how_much(f"an evaluation of functional {self.number + 1} with its derivative", 2 * nbytes)
            self.run.append(self.journal, identity)
            known = identity
        name = f"functional {self.number + 1}"
        if known["controls"] != identity["controls"]:
            self.run.refuse(
                f"the controls of {name} are {'; '.join(identity['controls'])}, and were {'; '.join(known['controls'])}"
            )
        if known["numbering"] != identity["numbering"]:
            self.run.refuse(
                f"the meshes of the controls of {name} are partitioned or numbered otherwise than in the first job: "
                "make them with checkpointable_mesh, which keeps its meshes in the directory"
            )

    def find(self, controls: Sequence[Any]) -> tuple[str, Sequence[Any], str]:
        """Look for the evaluation at these controls.

        Returns
        -------
        key : str
        controls : sequence
            These, or the recorded ones if these are near them.
        state : str
            ``new``, ``begun`` (the control is recorded) or ``known`` (its value, too).
        """
        arrays = [values(control) for control in controls]
        key = key_of(self.journal.comm, arrays)
        index = next((i for i, entry in enumerate(self._controls) if entry["key"] == key), None)
        if index is None and self._position < len(self._controls):
            due = self._controls[self._position]
            recorded = self._read(due, arrays)
            if recorded is not None:
                distance = relative_distance(self.journal.comm, arrays, recorded)
                if distance <= NEAR:
                    index, key = self._position, due["key"]
                    controls = [with_values(like, array) for like, array in zip(controls, recorded)]
                else:
                    self.run.miss(self._position + 1, self.number + 1, distance)
        if index is None:
            return key, controls, "new"
        self._position = max(self._position, index + 1)
        return key, controls, "known" if key in self._values else "begun"

    def _read(self, entry: Entry, like: Sequence[NDArray[Any]]) -> list[NDArray[Any]] | None:
        """The arrays of a record, or None, with a warning, if they are damaged."""
        try:
            return list(self.journal.read(entry, like))
        except DamagedRecord as exc:
            self.run.warn(f"a {entry['kind']} of functional {self.number + 1} is computed again: {exc}")
            return None

    def evaluate(self, original: Callable[..., Any], controls: Sequence[Any]) -> Any:
        """The value, with all callbacks, from a record or by a sweep."""
        reduced, state = self.reduced, tape_state(self.reduced.tape)
        controls = [AdjFloat(control) if isinstance(control, (int, float)) else control for control in controls]
        with self.run.accounted():
            key, controls, found = self.find(controls)
        sweep = partial(self._sweep, key, controls)
        on_tape = state.actual == 0 and key == self._recorded_key  # the recording of the tape was this sweep
        value = self._recorded_value(key) if found == "known" else None
        if value is not None:
            state.evaluated(reduced, key, sweep, swept=on_tape)
            self.run.begin_replay("value")
            return self._answer(original, controls, value)
        if on_tape:
            state.evaluated(reduced, key, sweep, swept=True)
            self._record_control(found, key, controls)
            self._record_value(key, self._recorded, 0.0)
            return self._answer(original, controls, self._recorded)
        parts = self._in_parts(key)
        self._require_time("value", parts)
        self._record_control(found, key, controls)
        begin, after = time.monotonic(), reduced.eval_cb_post

        def record(*args: Any) -> Any:
            """Record the value before the script's own callback, which may take long, or fail."""
            state.evaluated(reduced, key, sweep, swept=True)
            seconds = time.monotonic() - begin + (parts.seconds_before if parts else 0.0)
            self._record_value(key, reduced.functional.block_variable.saved_output, seconds)
            return after(*args)

        reduced.eval_cb_post = record
        state.actual = NOTHING  # until the sweep ends
        try:
            with self.run.watched(reduced.tape, self.journal, parts):
                return original(reduced, list(controls))
        finally:
            reduced.eval_cb_post = after

    def _answer(self, original: Callable[..., Any], controls: Sequence[Any], value: Any) -> Any:
        """Evaluate on an empty tape, which gives this value: pyadjoint's own code calls the callbacks and scales."""
        reduced, tape = self.reduced, self.reduced.tape
        reduced.functional.block_variable.checkpoint = value
        reduced.tape = NoBlocks(tape)
        try:
            return original(reduced, list(controls))
        finally:
            reduced.tape = tape

    def _in_parts(self, key: str, kind: Callable[..., Any] = Sweep, *arguments: Any) -> Any:
        """A sweep at these controls that is recorded while it is in progress; None if this one is not."""
        sweeps = self.run.sweeps
        if sweeps is None:
            return None
        if self.journal is not self.run.journal:
            sweeps.warn_once("sweeps of functionals on a part of the ranks are not recorded")
            return None
        sweep = kind(sweeps, self.reduced.tape, self.number, key, *arguments)
        # One that is made up for, for a Hessian action, must not take the place of one that is in progress.
        finished = any(known == key for known, _ in self._derivatives)
        return sweep if sweeps.is_of(sweep.of) or (not finished and sweeps.is_worth(self.longest)) else None

    def _require_time(self, kind: str, parts: Any) -> None:
        """Leave rather than begin what would not end in time, unless it is recorded in parts."""
        name = {"value": "an evaluation", "derivative": "a derivative"}[kind]
        self.run.require_time(self.journal, 0.0 if parts else self.longest[kind], name)

    def _sweep(self, key: str, controls: Sequence[Any]) -> None:
        """Evaluate without callbacks, between other calls of pyadjoint."""
        reduced = self.reduced
        variables = [control.block_variable for control in reduced.controls]
        marks = [variable.is_control for variable in variables]
        callbacks = reduced.eval_cb_pre, reduced.eval_cb_post
        reduced.eval_cb_pre = reduced.eval_cb_post = lambda *args: None
        begin = time.monotonic()
        try:
            parts = self._in_parts(key)
            self._require_time("value", parts)
            with self.run.watched(reduced.tape, self.journal, parts):
                ReducedFunctional.__call__.__wrapped__(reduced, list(controls))  # pyadjoint's own
        finally:
            reduced.eval_cb_pre, reduced.eval_cb_post = callbacks
            for variable, mark in zip(variables, marks):  # the evaluation has taken them away
                variable.is_control = mark
        self.longest["value"] = max(self.longest["value"], time.monotonic() - begin)

    def _record_control(self, found: str, key: str, controls: Sequence[Any]) -> None:
        if found == "new":
            entry = {"kind": "control", "functional": self.number, "key": key}
            # While the sweep runs, there is time to flush it.
            if self.run.append(self.journal, entry, [values(control) for control in controls], wait=False):
                self._controls.append(self.journal.entries[-1])
                self._position = len(self._controls)

    def _record_value(self, key: str, value: Any, seconds: float) -> None:
        self.longest["value"] = max(self.longest["value"], seconds)
        entry = {"kind": "value", "functional": self.number, "key": key, "seconds": seconds}
        arrays = []
        if isinstance(value, float):
            entry["value"] = float(value).hex()
        else:
            arrays.append(values(value))
        if self.run.append(self.journal, entry, arrays):
            self._values[key] = self.journal.entries[-1]

    def _recorded_value(self, key: str) -> Any:
        entry, functional = self._values[key], self.reduced.functional
        if "value" in entry:
            return functional._ad_init_object(float.fromhex(entry["value"]))
        arrays = self._read(entry, [values(functional)])
        return None if arrays is None else with_values(functional, arrays[0])

    def differentiate(
        self, original: Callable[..., Any], J: Any, controls: Any, tape: Any, adj_value: Any, apply_riesz: bool
    ) -> Any:
        """The derivative with respect to these controls, from a record or by a sweep."""
        state = tape_state(tape)
        compute = partial(original, J, controls, tape=tape, adj_value=adj_value, apply_riesz=apply_riesz)
        known = list(self.reduced.controls)
        if state.functional is None and self._recorded_key:  # before any evaluation
            self.run.require_initial_recording()
            at = [control.tape_value() for control in known]
            key = self._recorded_key
            state.evaluated(self.reduced, key, partial(self._sweep, key, at), swept=True)
        if state.functional is not self.reduced or any(control not in known for control in controls):
            self._require_time("derivative", None)
            with self.run.watched(tape, self.journal):
                return compute()
        of = json.dumps([[known.index(control) for control in controls], self._seed(adj_value), bool(apply_riesz)])
        entry = self._derivatives.get((state.key, of))
        if entry is not None:
            zeros = [control.control._ad_init_zero(dual=not apply_riesz) for control in controls]
            arrays = self._read(entry, [values(zero) for zero in zeros])
            if arrays is not None:
                state.derived(compute)
                self.run.begin_replay("derivative")
                return controls.delist([with_values(zero, array) for zero, array in zip(zeros, arrays)])
        parts = self._in_parts(state.key, ReverseSweep, of, J.block_variable, controls)
        self._require_time("derivative", parts)
        state.sweep_if_due()
        begin = time.monotonic()
        with self.run.watched(tape, self.journal, parts):
            found = compute()
        state.derived(None)
        seconds = time.monotonic() - begin
        if parts is not None:
            seconds += parts.seconds_before
        state.derived(compute if parts is not None and parts.resumed else None)
        self.longest["derivative"] = max(self.longest["derivative"], seconds)
        arrays = [values(part) for part in (found if isinstance(found, (list, tuple)) else [found])]
        norm = norms(self.journal.comm, [np.concatenate([array.ravel() for array in arrays])])[0]
        entry = {"kind": "derivative", "functional": self.number, "key": state.key, "of": of, "norm": norm}
        if self.run.append(self.journal, {**entry, "seconds": seconds}, arrays):
            self._derivatives[state.key, of] = self.journal.entries[-1]
        return found

    def _seed(self, adj_value: Any) -> str:
        """The adjoint value that a derivative begins with, as text."""
        if isinstance(adj_value, (int, float)):
            return float(adj_value).hex()
        return key_of(self.journal.comm, [values(adj_value)])


def fits(reduced: Any, controls: Sequence[Any]) -> bool:
    """Whether these can be the controls of a functional; if not, pyadjoint raises an exception."""
    if len(controls) != len(reduced.controls):
        return False
    kinds = [type(control.control) for control in reduced.controls]
    return all(
        isinstance(control, kind) or (kind is AdjFloat and isinstance(control, (int, float)))
        for control, kind in zip(controls, kinds)
    )


def can_record(reduced: Any) -> bool:
    """Whether a functional can be recorded.

    pyadjoint scales values that are no numbers in place, on the tape. Firedrake cannot copy a Constant as a control.
    """
    if any(isinstance(control.control, Constant) for control in reduced.controls):
        return False
    return isinstance(reduced.functional, float) or (
        isinstance(reduced.functional, OverloadedType) and reduced.scale == 1
    )


def describe(control: Any) -> str:
    """A control in words."""
    if not hasattr(control, "function_space"):
        return type(control).__name__
    space = control.function_space()
    return f"{type(control).__name__} of {space.dim()} dofs in {space.ufl_element()}"


def key_of(comm: MPI.Intracomm, arrays: Sequence[Any]) -> str:
    """A key that two lists of arrays share if and only if they are the same on every rank. Collective on `comm`."""
    digests = [xxh3_128_intdigest(np.ascontiguousarray(array).view(np.uint8).data, comm.rank) for array in arrays]
    digest = xxh3_128_intdigest(json.dumps(digests).encode(), comm.rank)
    halves = np.array([digest >> 64, digest & (2**64 - 1)], np.uint64)
    comm.Allreduce(MPI.IN_PLACE, halves, MPI.SUM)  # modulo 2**64
    return f"{int(halves[0]):016x}{int(halves[1]):016x}"


def relative_distance(comm: MPI.Intracomm, arrays: Sequence[Any], recorded: Sequence[Any]) -> float:
    """The largest distance of two arrays, relative to the norm of the recorded one. Collective on `comm`."""
    found = norms(comm, [*(a - b for a, b in zip(arrays, recorded)), *recorded])
    pairs = zip(found[: len(arrays)], found[len(arrays) :])
    return max((distance / size if size else (math.inf if distance else 0.0) for distance, size in pairs), default=0.0)
