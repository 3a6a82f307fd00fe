"""What else a tape is asked for while it records and replays: the gradient is that of a tape without a schedule."""

import firedrake as fd
import pytest
from burgers import (
    ON_DISK,
    SCALES,
    STEPS,
    arrays,
    assert_same,
    bare_tape,
    control,
    kind,
    record,
    record_on_disk,
    reference,
    replay,
    sweep,
)
from firedrake.adjoint import (
    continue_annotation,
    set_working_tape,
    stop_annotating,
)

from localckpt.adjoint import (
    LocalCheckpoint,
    continue_disk_checkpointing,
    disk_checkpointing,
    enable_disk_checkpointing,
    pause_disk_checkpointing,
    stop_disk_checkpointing,
)

SCHEDULES = "all on disk", "multistage, disk", "hrevolve"


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_progress_bar_changes_nothing(schedule, shared_tmp, tape):
    tape.progress_bar = fd.ProgressBar
    enable_disk_checkpointing(checkpoint_dir=str(shared_tmp))
    assert_same(replay(record(ON_DISK[schedule](STEPS))), reference())


@pytest.mark.parallel([1, 3])
@pytest.mark.parametrize("schedule", ["all on disk", "multistage, disk"])
def test_garbage_collection_in_every_step_changes_nothing(schedule, shared_tmp, tape):
    enable_disk_checkpointing(checkpoint_dir=str(shared_tmp))
    tape.enable_checkpointing(ON_DISK[schedule](STEPS), gc_timestep_frequency=1, gc_generation=1)
    assert_same(replay(record()), reference())


def test_steps_that_stop_disk_checkpointing_twice_change_nothing(shared_tmp):
    def stop(step):
        before = disk_checkpointing()
        with stop_disk_checkpointing():
            with stop_disk_checkpointing():
                assert not disk_checkpointing()
            assert not disk_checkpointing()
        assert disk_checkpointing() == before

    assert_same(replay(record_on_disk(checkpoint_dir=str(shared_tmp), in_step=stop)), reference())


def test_stopping_twice_leaves_disk_checkpointing_switched_on(shared_tmp):
    f = fd.Function(fd.FunctionSpace(fd.UnitSquareMesh(2, 2), "CG", 1)).assign(2.0)
    enable_disk_checkpointing(checkpoint_dir=str(shared_tmp))
    continue_disk_checkpointing()
    with stop_disk_checkpointing(), stop_disk_checkpointing():
        inside = f._ad_create_checkpoint()
    after = f._ad_create_checkpoint()
    assert (kind(inside), kind(after)) == (fd.Function, LocalCheckpoint)


@pytest.mark.parallel([1, 2])
def test_another_tape_evaluated_in_two_steps_changes_neither(shared_tmp):
    with set_working_tape():
        continue_annotation()
        first = record_on_disk(checkpoint_dir=str(shared_tmp))
    found = []

    def evaluate(step):
        if step in (1, 3):
            found.append(sweep(first, SCALES[step // 2]))

    second = record_on_disk(checkpoint_dir=str(shared_tmp), in_step=evaluate)
    assert_same(found, reference())
    assert_same(replay(second), reference())


def test_another_tape_recorded_in_a_step_changes_neither(shared_tmp):
    inner = []

    def record_another(step):
        if step == 2:
            with set_working_tape():
                inner.append(record_on_disk(checkpoint_dir=str(shared_tmp)))

    outer = record_on_disk(checkpoint_dir=str(shared_tmp), in_step=record_another)
    assert_same(replay(outer), reference())
    assert_same(replay(inner[0]), reference())


def test_control_updated_by_hand_is_what_the_next_reads(shared_tmp):
    functional = record_on_disk(checkpoint_dir=str(shared_tmp))
    sweep(functional, SCALES[0])
    (handle,) = functional.controls
    handle.update(control(SCALES[1]))
    assert_same(arrays(handle.tape_value()), arrays(control(SCALES[1])))
    assert_same(replay(functional), reference())


def test_control_updated_while_disk_checkpointing_is_on_comes_from_disk(shared_tmp):
    functional = record_on_disk(checkpoint_dir=str(shared_tmp))
    (handle,) = functional.controls
    continue_disk_checkpointing()
    handle.update(control(SCALES[1]))
    pause_disk_checkpointing()
    assert kind(handle.data()) is LocalCheckpoint
    assert_same(arrays(handle.tape_value()), arrays(control(SCALES[1])))
    assert_same(replay(functional), reference())


def test_hessian_on_a_tape_without_a_schedule_is_that_of_memory(shared_tmp):
    def hessian(functional):
        with stop_annotating():
            functional(control(SCALES[0]))
            functional.derivative()
            return arrays(functional.hessian(control(0.4)))

    enable_disk_checkpointing(checkpoint_dir=str(shared_tmp))
    continue_disk_checkpointing()  # no schedule does it
    functional = record()
    found = hessian(functional)
    pause_disk_checkpointing()
    with bare_tape():
        assert_same(found, hessian(record()))
