"""Value and gradient under every layout and every schedule are those without a schedule."""

import gc

import pytest
from burgers import (
    IN_MEMORY,
    ON_DISK,
    SCALES,
    SCHEDULES,
    STEPS,
    assert_same,
    control,
    convergence,
    disk_checkpoints,
    kind,
    pairs,
    record,
    record_on_disk,
    reference,
    replay,
    rows_in_use,
    sweep,
)
from known_faults import TAPE_MAY_BE_KEPT
from mpi4py import MPI
from test_files import open_data

from localckpt.adjoint import LocalCheckpoint, enable_disk_checkpointing

LAYOUTS = {
    "default": lambda directory: {},
    "dirname": lambda directory: {"dirname": directory},
    "a file per rank": lambda directory: {"checkpoint_comm": MPI.COMM_SELF, "checkpoint_dir": directory},
    "a file per pair": lambda directory: {"checkpoint_comm": pairs(), "checkpoint_dir": directory},
    "one file": lambda directory: {"checkpoint_comm": MPI.COMM_WORLD, "checkpoint_dir": directory},
}


@pytest.mark.parallel([1, 2, 3])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_gives_the_gradient_of_a_bare_tape(layout, shared_tmp):
    functional = record_on_disk(**LAYOUTS[layout](str(shared_tmp)))
    assert_same(replay(functional), reference())


@pytest.mark.parallel([1, 3])
@pytest.mark.parametrize("layout", ["default", "a file per pair"])
def test_layout_gives_a_gradient_that_converges(layout, shared_tmp):
    assert convergence(record_on_disk(**LAYOUTS[layout](str(shared_tmp)))) > 1.9


@pytest.mark.parallel([1, 2])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedule_gives_the_gradient_of_a_bare_tape(schedule, shared_tmp):
    enable_disk_checkpointing(checkpoint_dir=str(shared_tmp))
    functional = record(SCHEDULES[schedule](STEPS))
    assert_same(replay(functional), reference())


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedule_gives_a_gradient_that_converges(schedule, shared_tmp):
    enable_disk_checkpointing(checkpoint_dir=str(shared_tmp))
    assert convergence(record(SCHEDULES[schedule](STEPS))) > 1.9


def kinds_of_checkpoints(schedule, directory, tape):
    enable_disk_checkpointing(checkpoint_dir=str(directory))
    functional = record(SCHEDULES[schedule](STEPS))
    functional(control(1.0))  # recording ends when the first evaluation begins
    return {kind(checkpoint) for checkpoint in disk_checkpoints(tape)}


@pytest.mark.parametrize("schedule", ON_DISK)
def test_schedule_stores_through_localckpt(schedule, shared_tmp, tape):
    assert kinds_of_checkpoints(schedule, shared_tmp, tape) == {LocalCheckpoint}


@pytest.mark.parametrize("schedule", IN_MEMORY)
def test_schedule_without_a_disk_stores_nothing_there(schedule, shared_tmp, tape):
    assert kinds_of_checkpoints(schedule, shared_tmp, tape) == set()


@pytest.mark.parametrize("schedule", ON_DISK)
def test_schedule_holds_no_more_rows_after_three_sweeps_than_after_two(schedule, shared_tmp, tape):
    enable_disk_checkpointing(checkpoint_dir=str(shared_tmp))
    functional = record(SCHEDULES[schedule](STEPS))
    held = []
    for _ in range(3):
        sweep(functional, SCALES[0])
        held.append(rows_in_use(engine(tape)))
    assert held[2] == held[1], held


@TAPE_MAY_BE_KEPT
@pytest.mark.parallel([1, 2])
@pytest.mark.parametrize("schedule", ON_DISK)
def test_schedule_leaves_no_row_and_no_file_behind(schedule, shared_tmp, tape):
    enable_disk_checkpointing(checkpoint_dir=str(shared_tmp))
    functional = record(SCHEDULES[schedule](STEPS))
    sweep(functional, SCALES[0])
    was = engine(tape)
    tape.clear_tape()
    del functional
    gc.collect()
    assert rows_in_use(was) == 0
    del was
    assert open_data(shared_tmp) == []


def engine(tape):
    """What stores the checkpoints of this tape."""
    return tape._package_data["firedrake"]._functions.store.current_file.engine


@pytest.mark.parallel([1, 3])
def test_many_evaluations_at_changing_controls_stay_right(shared_tmp):
    functional = record_on_disk(checkpoint_dir=str(shared_tmp))
    scales = SCALES * 3
    assert_same(replay(functional, scales), reference() * 3)


@pytest.mark.parallel([1, 3])
def test_evaluations_without_gradients_in_between_stay_right(shared_tmp):
    functional = record_on_disk(checkpoint_dir=str(shared_tmp))
    for scale in (0.2, 2.0, 0.4):
        functional(control(scale))
    assert_same([sweep(functional, scale) for scale in SCALES], reference())


@pytest.mark.parallel([1, 3])
def test_gradient_twice_at_one_control_is_the_same(shared_tmp):
    functional = record_on_disk(checkpoint_dir=str(shared_tmp))
    assert_same(replay(functional, (SCALES[0], SCALES[0])), reference()[:1] * 2)
