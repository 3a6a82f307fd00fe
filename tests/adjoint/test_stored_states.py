"""States that are read back from a tape are those of its last evaluation, or there are none."""

import functools
import gc
import warnings
import weakref

import firedrake as fd
import numpy as np
import pytest
from burgers import arrays, assert_same, bare_tape
from checkpoint_schedules import (
    MultistageCheckpointSchedule,
    Revolve,
    SingleDiskStorageSchedule,
    SingleMemoryStorageSchedule,
)
from firedrake import dx, inner
from firedrake.adjoint import Control, ReducedFunctional, get_working_tape, minimize, stop_annotating
from firedrake.adjoint_utils import checkpointing as firedrakes
from mpi4py import MPI
from pyadjoint import Block

from localckpt.adjoint import checkpointable_mesh, enable_disk_checkpointing
from localckpt.adjoint.states import listed, stored_states

STEPS = 4
SCALES = 1.3, 0.7


@functools.cache
def square():
    return fd.UnitSquareMesh(3, 3)


def control(scale, mesh=None):
    V = fd.FunctionSpace(mesh or square(), "CG", 1)
    x, y = fd.SpatialCoordinate(V.mesh())
    with stop_annotating():
        return fd.Function(V, name="control").interpolate(1 + scale * x * y)


class Problem:
    """A few timesteps, run once. `seen` has what the script saw: arrays by name and timestep."""

    def __init__(self, c, with_cofunction=True, in_step=lambda problem, step: None):
        V = c.function_space()
        self.control = c
        self.u, self.new, self.energy = (fd.Function(V, name=name) for name in ("u", "new", "energy"))
        self.pair = fd.Function(V * V, name="pair")
        self.load = fd.Cofunction(V.dual(), name="load") if with_cofunction else None
        self.seen, self.J = {}, 0.0
        v = fd.TestFunction(V)
        for step in get_working_tape().timestepper(iter(range(STEPS))):
            self.new.interpolate(0.9 * self.u + 0.1 * c**3)
            self.u.assign(self.new)
            self.energy.interpolate(self.u**2)  # the functional does not need it
            self.pair.subfunctions[0].assign(self.u)
            self.pair.subfunctions[1].interpolate(self.u**2)
            self.J += fd.assemble((self.u**2 + fd.split(self.pair)[1]) * dx)
            if with_cofunction:
                self.load.assign(fd.assemble(inner(self.u, v) * dx))
                self.J += fd.assemble(fd.action(self.load, self.new))
            with stop_annotating():
                for name, function in self.functions().items():
                    self.seen[name, step] = copied(function)
            in_step(self, step)

    def functions(self):
        named = {name: getattr(self, name) for name in ("u", "energy", "pair", "control")}
        named["second of pair"] = self.pair.subfunctions[1]
        return named | ({"load": self.load} if self.load is not None else {})

    def check_states(self, name, seen):
        """Each state that the tape holds of a Function is the one that was seen. Returns the timesteps."""
        function = self.functions()[name]
        states = stored_states(function)
        for step, state in states.items():
            assert state is not function and type(state) is type(function) and state.name() == function.name()
            assert_same(copied(state), seen[name, step])
        return list(states)


@functools.cache
def script(scale, with_cofunction=True):
    """What a script with this control sees, without a tape."""
    with bare_tape(), stop_annotating():
        return Problem(control(scale), with_cofunction)


def copied(function):
    return [array.copy() for array in arrays(function)]


def in_memory(directory):
    pass


def on_localckpt(directory):
    enable_disk_checkpointing(checkpoint_dir=directory)


def in_one_file(directory):
    enable_disk_checkpointing(checkpoint_comm=MPI.COMM_WORLD, checkpoint_dir=directory, engine="viewer")


def on_firedrake(directory):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that it is not localckpt's
        firedrakes.enable_disk_checkpointing(directory, checkpoint_comm=MPI.COMM_SELF, checkpoint_dir=directory)


def on_firedrake_in_one_file(directory):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        firedrakes.enable_disk_checkpointing(directory)


EACH = [0, 1, 2, 3]
ALL = SingleDiskStorageSchedule
FEW_ON_DISK = functools.partial(MultistageCheckpointSchedule, STEPS, 0, 2)
USED = "a gradient that was computed since has used it"
# A storage, a schedule, the timesteps of which it has the state u after an evaluation and after a gradient, and why it
# has no other one.
WAYS = {
    "no schedule": (in_memory, None, EACH, EACH, ""),
    "all in memory": (in_memory, SingleMemoryStorageSchedule, EACH, [], USED),
    "revolve": (in_memory, functools.partial(Revolve, STEPS, 2), [1, 3], [], "Revolve stores only restart data of ti"),
    "all on localckpt": (on_localckpt, ALL, EACH, EACH, ""),
    "all on localckpt, moved": (on_localckpt, functools.partial(ALL, move_data=True), EACH, [], USED),
    "few on localckpt": (
        on_localckpt,
        FEW_ON_DISK,
        [1, 3],
        [],
        "MultistageCheckpointSchedule stores only restart data of timesteps 0, 2 and what the gradient needs of ti",
    ),
    "all in one file": (in_one_file, ALL, EACH, EACH, ""),
    "all on Firedrake's": (on_firedrake, ALL, EACH, EACH, ""),
}


def record(storage, schedule, directory, **arguments):
    storage(str(directory))
    if schedule is not None:
        get_working_tape().enable_checkpointing(schedule())
    return Problem(control(1.0), storage is not on_firedrake, **arguments)


@pytest.mark.parametrize("way", WAYS)
def test_states_are_those_of_the_evaluation_and_reading_them_changes_no_gradient(way, tape, shared_tmp):
    check_evaluations(way, tape, shared_tmp)


@pytest.mark.parallel(2)
@pytest.mark.parametrize("way", ["few on localckpt", "all in one file"])
def test_several_ranks_read_the_states_of_the_evaluation(way, tape, shared_tmp):
    check_evaluations(way, tape, shared_tmp)


def check_evaluations(way, tape, shared_tmp):
    storage, schedule, evaluated, derived, why_not = WAYS[way]
    problem = record(storage, schedule, shared_tmp)
    held = {}

    def read(*_):
        held.update({name: problem.check_states(name, seen) for name in problem.functions()})

    functional = ReducedFunctional(problem.J, Control(problem.control), eval_cb_post=read)
    blocks, gradients = len(tape.get_blocks()), []
    for scale in SCALES:
        seen = script(scale, problem.load is not None).seen
        functional(control(scale))
        assert held["u"] == evaluated and held["control"] == EACH
        assert held["pair"] == held["second of pair"]
        gradients.append(arrays(functional.derivative()))
        assert problem.check_states("u", seen) == derived
        if not derived:
            assert f"'u' at the end of timestep 0 is not stored: {why_not}" in reason(stored_states(problem.u), 0)
    if schedule is ALL:  # it is not the first evaluation
        assert held["energy"] == [] and "the gradient does not need it" in reason(stored_states(problem.energy), 0)
    assert len(tape.get_blocks()) == blocks
    for found, expected in zip(gradients, gradients_of_a_bare_tape(problem.load is not None)):
        assert_same(found, expected)


@functools.cache
def gradients_of_a_bare_tape(with_cofunction):
    with bare_tape():
        problem = Problem(control(1.0), with_cofunction)
        functional = ReducedFunctional(problem.J, Control(problem.control))
        gradients = []
        for scale in SCALES:
            functional(control(scale))
            gradients.append(arrays(functional.derivative()))
        return gradients


@pytest.mark.parametrize("storage", [in_memory, on_localckpt])
def test_states_of_a_recording_are_those_that_the_script_saw(storage, tape, shared_tmp):
    check_recording(storage, tape, shared_tmp)


@pytest.mark.parallel([1, 2])
def test_states_in_the_shared_file_of_firedrake(tape, shared_tmp):
    check_recording(on_firedrake_in_one_file, tape, shared_tmp)


def check_recording(storage, tape, shared_tmp):
    storage(str(shared_tmp))
    mesh = checkpointable_mesh(fd.UnitSquareMesh(3, 3)) if storage is on_firedrake_in_one_file else None
    tape.enable_checkpointing(SingleMemoryStorageSchedule() if storage is in_memory else ALL())
    problem = Problem(control(1.0, mesh), with_cofunction=mesh is None)
    assert problem.check_states("u", problem.seen) == problem.check_states("pair", problem.seen) == EACH
    ReducedFunctional(problem.J, Control(problem.control)).derivative()
    assert problem.check_states("u", problem.seen) == ([] if storage is in_memory else EACH)


def test_states_after_an_optimisation_are_those_of_the_last_evaluation(shared_tmp):
    problem = record(on_localckpt, ALL, shared_tmp)
    controls = []
    functional = ReducedFunctional(
        problem.J, Control(problem.control), eval_cb_post=lambda J, c: controls.append(c.copy(deepcopy=True))
    )
    minimize(functional, options={"ftol": 1.0})
    with bare_tape(), stop_annotating():
        seen = Problem(controls[-1]).seen
    assert problem.check_states("u", seen) == EACH


def reason(states, timestep):
    """Why there is no such state. The message is the exception's only argument."""
    assert timestep not in states
    with pytest.raises(KeyError) as caught:
        states[timestep]
    return caught.value.args[0]


def test_a_value_that_no_block_computes_is_missing(tape):
    problem = Problem(control(1.0))
    tape.add_block(Silent(problem.u))
    ReducedFunctional(problem.J, Control(problem.control))(control(1.3))
    assert reason(stored_states(problem.u), STEPS - 1).endswith("is not stored: no block has computed it")


class Silent(Block):
    """Writes a Function, in a way that cannot be repeated."""

    def __init__(self, function):
        super().__init__()
        self.add_output(function.create_block_variable())

    def recompute_component(self, inputs, block_variable, idx, prepared):
        return None


def test_a_long_list_of_timesteps_is_shortened():
    assert listed(list(range(10))) == "timesteps 0, 1, 2, 3, 4, 5, 6, 7, 8, 9"
    assert listed(list(range(11))) == "timesteps 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ..."


@pytest.mark.parametrize("schedule", [None, FEW_ON_DISK, ALL], ids=["none", "few", "all"])
def test_what_a_recording_may_have_saved_too_late_or_too_early_is_not_read(schedule, shared_tmp):
    """pyadjoint has the values of a later timestep, or of the one before, in some of these."""
    problem = record(on_localckpt, schedule, shared_tmp)
    assert "evaluate the functional first" in reason(stored_states(problem.load), 1)
    assert (1 in stored_states(problem.pair)) == (schedule is ALL)


def test_a_timestep_that_the_tape_does_not_have(shared_tmp):
    states = stored_states(record(on_localckpt, ALL, shared_tmp).u)
    for timestep in -1, STEPS:
        assert reason(states, timestep) == f"there is no timestep {timestep} among the 4 of the tape"
    assert "first" not in states and np.int64(1) in states and len(states) == STEPS


def test_before_a_function_is_used_it_has_no_states(shared_tmp):
    late = fd.Function(control(1.0).function_space(), name="late")

    def use_late(problem, step):
        if step == 2:
            late.assign(problem.u)
            problem.J += fd.assemble(late**2 * dx)

    problem = record(on_localckpt, ALL, shared_tmp, in_step=use_late)
    states = stored_states(late)
    assert list(states) == [2, 3]
    assert "no block up to timestep 1 uses or writes this 'late'" in reason(states, 1)
    for step in states:  # those after it are as it has left it
        assert_same(arrays(states[step]), problem.seen["u", 2])
    assert "a copy of it does not count" in reason(stored_states(problem.u.copy(deepcopy=True)), 0)


class ReadingBar:
    """A progress bar that reads states in each timestep of an evaluation."""

    def __init__(self, text, **_):
        self.text = text

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def next(self):
        self.found.append((self.text, list(self.states)))

    def iter(self, items):
        for item in items:
            self.next()
            yield item


@pytest.mark.parametrize("schedule", [None, ALL], ids=["none", "all"])
def test_nothing_is_read_while_the_tape_is_evaluated(schedule, tape, shared_tmp):
    problem = record(on_localckpt, schedule, shared_tmp)
    functional = ReducedFunctional(problem.J, Control(problem.control))
    functional(control(1.3))
    ReadingBar.states, ReadingBar.found = stored_states(problem.u), []
    tape.progress_bar = ReadingBar
    functional(control(0.7))
    assert ReadingBar.found and all(not held for _, held in ReadingBar.found)
    ReadingBar.found.clear()
    functional.derivative()
    assert ReadingBar.found and all(held == EACH for _, held in ReadingBar.found)


def test_an_evaluation_that_failed_leaves_no_states(shared_tmp):
    def fail_once(problem, step):
        if step == 2:
            get_working_tape().add_block(Failing())

    problem = record(on_localckpt, ALL, shared_tmp, in_step=fail_once)
    functional = ReducedFunctional(problem.J, Control(problem.control))
    with pytest.raises(LookupError):
        functional(control(1.3))
    assert "or its last evaluation failed" in reason(stored_states(problem.u), 0)


class Failing(Block):
    def recompute(self, markings=False):
        raise LookupError


def test_states_belong_to_the_caller(shared_tmp):
    """They can be changed, and are Functions of their own in a form."""
    problem = record(on_localckpt, ALL, shared_tmp)
    functional = ReducedFunctional(problem.J, Control(problem.control))
    functional(control(1.3))
    states = stored_states(problem.u)
    one, two = states[1], states[2]
    difference = fd.assemble((one - two) ** 2 * dx)
    assert difference > 0 and fd.assemble((one - problem.u) ** 2 * dx) > 0
    for state in (one, two, stored_states(problem.pair.subfunctions[0])[3], stored_states(problem.control)[0]):
        state.assign(17)
    assert fd.assemble((states[1] - states[2]) ** 2 * dx) == difference
    assert_same(arrays(functional.derivative()), gradients_of_a_bare_tape(True)[0])


def test_reading_in_a_recording_leaves_garbage_collection_alone(shared_tmp):
    frozen = []

    def read(problem, step):
        stored = stored_states(problem.u)
        assert (step > 0) <= (0 in stored)
        _ = [stored[n] for n in stored]
        frozen.append(gc.get_freeze_count())

    record(on_localckpt, ALL, shared_tmp, in_step=read)
    assert frozen == sorted(frozen, reverse=True)  # some that were frozen before may go


def test_states_of_another_tape_than_the_working_one(tape, shared_tmp):
    problem = record(on_localckpt, ALL, shared_tmp)
    with bare_tape():
        assert list(stored_states(problem.u)) == []
        assert list(stored_states(problem.u, tape)) == EACH


def test_a_tape_that_is_cleared_has_no_states_and_holds_none(tape, shared_tmp):
    problem = record(on_localckpt, ALL, shared_tmp)
    states = stored_states(problem.u)
    assert list(states) == EACH
    held = [weakref.ref(checkpoint) for step in tape.timesteps for checkpoint in step._checkpoint.values()]
    tape.clear_tape()
    problem.__dict__.clear()
    gc.collect()
    assert held and not any(checkpoint() for checkpoint in held) and list(states) == []


def test_only_functions_have_states():
    with pytest.raises(TypeError, match="of a Function or Cofunction, not of 3"):
        stored_states(3)
