"""The states that a tape holds: the values of a Function at the end of timesteps, read back on request.

A tape keeps each value of a Function in a *block variable*. The value itself is in working memory
(``BlockVariable.checkpoint``), among the checkpoints of a timestep, in memory or on disk, or nowhere: the schedule
decides. pyadjoint leaves values of earlier evaluations in both places. They are not read here: the value of a block
variable counts in a timestep where the schedule stores it in every evaluation, and in working memory if no timestep has
one that does not count.
"""

import operator
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

from checkpoint_schedules import Forward, StorageType
from firedrake import Cofunction, Function
from firedrake.adjoint_utils.blocks.function import SubfunctionBlock
from firedrake.adjoint_utils.checkpointing import CheckpointBase, DelegatedFunctionCheckpoint
from pyadjoint import Tape, get_working_tape, stop_annotating
from pyadjoint.checkpointing import Mode

__all__ = ["StoredStates", "stored_states"]

FEW = 10  # timesteps that a message lists
AFTER_GRADIENT = Mode.EVALUATE_ADJOINT, Mode.EXHAUSTED


def stored_states(function: Function | Cofunction, tape: Tape | None = None) -> "StoredStates":
    """The states of a Function that a tape holds. Not collective.

    Parameters
    ----------
    function : firedrake.Function or firedrake.Cofunction
        The object that the timesteps use or write, or one of its `subfunctions`; not a copy.
    tape : pyadjoint.Tape, optional
        The working tape by default.

    Returns
    -------
    StoredStates
        A read-only mapping of timesteps to new Functions. It reads a state when it is asked for it, from what the tape
        holds then, so that one mapping serves for all evaluations.

    Raises
    ------
    TypeError
        If `function` is neither a Function nor a Cofunction.
    """
    if not isinstance(function, (Function, Cofunction)):
        raise TypeError(f"stored states are those of a Function or Cofunction, not of {function!r}")
    return StoredStates(function, get_working_tape() if tape is None else tape)


class StoredStates(Mapping[int, Function | Cofunction]):
    """The states of a Function that a tape holds, by timestep. :func:`stored_states` makes one.

    ``states[n]`` is the value at the end of timestep n, in the last evaluation of the tape or, before any, in its
    recording. If timestep n writes the Function more than once, it is the last value; if it does not write it, the
    value is that from before. Timesteps count from 0. What is recorded before the loop over ``tape.timestepper`` is
    part of timestep 0, and what is recorded after it is part of the last one.

    Each ``states[n]`` is a new Function with values of its own: changing it changes nothing on the tape. Reading is
    collective where restoring a checkpoint is: on `checkpoint_comm` with the viewer engine, on the whole `comm` with
    Firedrake's disk checkpoints. Because Firedrake numbers the Functions that are made, all ranks of the mesh must read
    the same states in the same order in any case.

    Iteration, ``len`` and ``in`` read nothing and tell which timesteps the tape holds. They are not collective.

    Raises
    ------
    KeyError
        From ``states[n]``, on all ranks alike, with the reason why the tape does not hold that state.
    localckpt.StorageError
        From ``states[n]``, if the state cannot be read back: where restoring the checkpoint raises it.
    """

    def __init__(self, function: Function | Cofunction, tape: Tape) -> None:
        self._function, self._tape = function, tape
        self._written, self._part = parent_of(function)
        # Of each timestep, the block variable with the value at its end, and for which blocks, and how many, that was
        # found. The references are weak: a tape that is cleared must let go of its checkpoints.
        self._variables: list[weakref.ref[Any] | None] = []
        self._found_in: tuple[weakref.ref[Any], int] | None = None

    def __getitem__(self, timestep: int) -> Function | Cofunction:
        checkpoint, reason = self._look_up(timestep)
        if reason:
            raise KeyError(reason)
        name = self._function.name()
        with stop_annotating():
            state = new_function(checkpoint, name)
            return state if self._part is None else new_function(state.subfunctions[self._part], name)

    def __contains__(self, timestep: object) -> bool:
        return hasattr(timestep, "__index__") and not self._look_up(operator.index(timestep))[1]

    def __iter__(self) -> Iterator[int]:
        return (timestep for timestep in range(len(self._tape.timesteps)) if timestep in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _look_up(self, timestep: int) -> tuple[Any, str]:
        """The checkpoint of a state, or the reason why there is none."""
        name, steps = self._function.name(), self._tape.timesteps
        timestep = operator.index(timestep)
        if not 0 <= timestep < len(steps):
            return None, f"there is no timestep {timestep} among the {len(steps)} of the tape"
        if is_being_evaluated(self._tape):
            return None, (
                f"the tape is being evaluated, or its last evaluation failed: read {name!r} after an evaluation, "
                "for example in eval_cb_post"
            )
        resumed = self._tape._package_data.get("localckpt.resume")
        if resumed is not None and resumed.due:
            return None, "the last evaluation was recorded by an earlier job: the tape has the states of another one"
        variable = self._variable(timestep)
        if variable is None:
            return None, f"no block up to timestep {timestep} uses or writes this {name!r}; a copy of it does not count"
        checkpoint = find(self._tape, variable)
        if checkpoint is None:
            return None, f"{name!r} at the end of timestep {timestep} is not stored: {why_not(self._tape, variable)}"
        return checkpoint, ""

    def _variable(self, timestep: int) -> Any:
        """The block variable with the value at the end of a timestep, or None if no block has had the Function yet."""
        blocks = self._tape.get_blocks()
        number = len(blocks)
        if self._found_in is None or self._found_in[0]() is not blocks or self._found_in[1] != number:
            self._found_in = weakref.ref(blocks), number
            self._variables, last = [], None
            for step in self._tape.timesteps:
                for block in step:
                    for variable in (*block.get_dependencies(), *block.get_outputs()):
                        if variable.output is self._written:
                            last = weakref.ref(variable)
                self._variables.append(last)
        # A timestep without blocks may have been added since.
        reference = self._variables[min(timestep, len(self._variables) - 1)]
        return reference and reference()


def parent_of(function: Function | Cofunction) -> tuple[Function | Cofunction, int | None]:
    """The Function that blocks write, and which of its subfunctions is the given one: None if it is none of them."""
    if function.block_class is SubfunctionBlock:
        parent, part = function._ad_args
        return parent, part
    return function, None


def is_being_evaluated(tape: Tape) -> bool:
    """Whether some timesteps may be those of an evaluation, and the others those of the one before."""
    manager = tape._checkpoint_manager
    if manager is not None:
        return manager.mode == Mode.RECOMPUTE
    # Controls are marked as such while they are evaluated. While a derivative is computed, they have another mark, too.
    return any(
        variable.is_control and not variable.is_control_dependent
        for block in tape.get_blocks()
        for variable in block.get_dependencies()
    )


def find(tape: Tape, variable: Any) -> Any:
    """The checkpoint of a block variable in the last evaluation, or in the recording before any, or None."""
    found, others = None, False
    for number, step in enumerate(tape.timesteps):
        if variable in step._checkpoint:
            if counts(tape, variable, number):
                found = step._checkpoint[variable]
            else:
                others = True  # which the adjoint may have put into working memory
    if found is None and not others and (tape.recompute_count or is_saved_at_once(tape, variable)):
        found = variable.checkpoint
    # An assignment may have no checkpoint of its own, and refer to the block variable that was assigned.
    return find(tape, found.other) if isinstance(found, DelegatedFunctionCheckpoint) else found


def counts(tape: Tape, variable: Any, timestep: int) -> bool:
    """Whether a checkpoint in a timestep has the value of the last evaluation, or of the recording before any."""
    if tape.recompute_count == 0:
        return timestep == variable.creation_timestep and is_saved_at_once(tape, variable)
    return is_stored(tape, variable, timestep, stored_by(tape))


def is_saved_at_once(tape: Tape, variable: Any) -> bool:
    """Whether the recording saves a block variable when it is written.

    Otherwise, it does so when a block uses it, perhaps after the value has been changed in place. A Cofunction may be
    saved before it is assigned.
    """
    return not isinstance(variable.output, Cofunction) and any(
        action.write_adj_deps and variable.creation_timestep in action for action in forward_actions(tape)
    )


def is_stored(tape: Tape, variable: Any, timestep: int, actions: list[Any]) -> bool:
    """Whether these actions of the schedule store a block variable with a timestep, in each evaluation."""
    step = tape.timesteps[timestep]
    begins_with_it = variable in step.checkpointable_state
    # Before the first gradient, the tape does not know what the gradient needs, and stores more.
    is_needed = variable in step.adjoint_dependencies or (begins_with_it and not step._revised_adj_deps)
    return any(
        (action.write_ics and timestep == action.n0 and begins_with_it) or (action.write_adj_deps and is_needed)
        for action in actions
        if timestep in action
    )


def forward_actions(tape: Tape) -> list[Any]:
    """What the schedule does with timesteps in an evaluation."""
    manager = tape._checkpoint_manager
    return [action for action in manager.forward_schedule if isinstance(action, Forward)] if manager else []


def stored_by(tape: Tape) -> list[Any]:
    """Those of these that store something with timesteps."""
    return [action for action in forward_actions(tape) if action.storage != StorageType.WORK]


def why_not(tape: Tape, variable: Any) -> str:
    """Why the tape has no checkpoint of a block variable."""
    if tape.recompute_count == 0:
        return (
            "before the first evaluation, the tape has no value that is sure to be that of this timestep; "
            "evaluate the functional first"
        )
    steps, actions = range(len(tape.timesteps)), forward_actions(tape)
    if not actions:
        return "no block has computed it"
    beginnings = [action.n0 for action in stored_by(tape) if action.write_ics]
    whole = [step for step in steps if any(step in action and action.write_adj_deps for action in actions)]
    is_whole = len(whole) == len(steps)
    if not is_whole and tape._checkpoint_manager.mode not in AFTER_GRADIENT:
        actions = stored_by(tape)  # an evaluation itself may drop the rest
    if any(is_stored(tape, variable, step, actions) for step in steps):
        return "a gradient that was computed since has used it; read it before that, for example in eval_cb_post"
    schedule = type(tape._checkpoint_manager._schedule).__name__
    if is_whole:
        return f"{schedule} stores what the gradient needs, and the gradient does not need it"
    kept = [f"restart data of {listed(beginnings)}"] if beginnings else []
    kept += [f"what the gradient needs of {listed(whole)}"] if whole else []
    return f"{schedule} stores only {' and '.join(kept)}"


def listed(timesteps: list[int]) -> str:
    """The first few of these timesteps, in words."""
    numbers = ", ".join(map(str, timesteps[:FEW])) + (", ..." if len(timesteps) > FEW else "")
    return f"timestep{'s' if len(timesteps) > 1 else ''} {numbers}"


def new_function(checkpoint: Any, name: str) -> Function | Cofunction:
    """A new Function, with a number of its own, with the values of a checkpoint."""
    if isinstance(checkpoint, CheckpointBase):
        # What LocalCheckpoint.restore() does besides is for evaluations.
        local = getattr(checkpoint, "local", None)
        restored = local.saved.load() if local is not None else checkpoint.restore()
        # That has the number of the Function that was saved: a form with both would take them for the same.
        return type(restored)(restored.function_space(), restored.dat, name=name)
    copied = checkpoint.copy(deepcopy=True)
    copied.rename(name)
    return copied
