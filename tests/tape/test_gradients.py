"""Value and gradient under every layout and every schedule are those without a schedule."""

import pytest
from burgers import (
    SCALES,
    STEPS,
    assert_same,
    control,
    convergence,
    disk_checkpoints,
    pairs,
    record,
    record_on_disk,
    reference,
    replay,
    sweep,
)
from checkpoint_schedules import (
    HRevolve,
    MixedCheckpointSchedule,
    MultistageCheckpointSchedule,
    SingleDiskStorageSchedule,
    StorageType,
    TwoLevelCheckpointSchedule,
)
from mpi4py import MPI

from localckpt.adjoint import LocalCheckpoint, enable_disk_checkpointing

LAYOUTS = {
    "default": lambda folder: {},
    "dirname": lambda folder: {"dirname": folder},
    "a file per rank": lambda folder: {"checkpoint_comm": MPI.COMM_SELF, "checkpoint_dir": folder},
    "a file per pair": lambda folder: {"checkpoint_comm": pairs(), "checkpoint_dir": folder},
    "one file": lambda folder: {"checkpoint_comm": MPI.COMM_WORLD, "checkpoint_dir": folder},
}

# Left out: Revolve, which has no disk, and DiskRevolve and PeriodicDiskRevolve, which no
# tape can be given, with Firedrake's checkpointer or without one: checkpoint_schedules
# 1.0.4 raises TypeError when asked whether they use the disk.
SCHEDULES = {
    "all on disk": lambda: SingleDiskStorageSchedule(),
    "all on disk, moved": lambda: SingleDiskStorageSchedule(move_data=True),
    "multistage, memory and disk": lambda: MultistageCheckpointSchedule(STEPS, 1, 2),
    "multistage, disk": lambda: MultistageCheckpointSchedule(STEPS, 0, 2),
    # It prefers computing again where the disk costs as much as a step.
    "hrevolve": lambda: HRevolve(STEPS, 1, 2, wd=0.1, rd=0.1),
    "mixed, disk": lambda: MixedCheckpointSchedule(STEPS, 2, storage=StorageType.DISK),
    "two levels, disk": lambda: TwoLevelCheckpointSchedule(2, 1, binomial_storage=StorageType.DISK),
    "two levels, disk and memory": lambda: TwoLevelCheckpointSchedule(2, 1, binomial_storage=StorageType.RAM),
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
    functional = record(SCHEDULES[schedule]())
    assert_same(replay(functional), reference())


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedule_gives_a_gradient_that_converges(schedule, shared_tmp):
    enable_disk_checkpointing(checkpoint_dir=str(shared_tmp))
    assert convergence(record(SCHEDULES[schedule]())) > 1.9


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedule_stores_through_localckpt(schedule, shared_tmp, tape):
    enable_disk_checkpointing(checkpoint_dir=str(shared_tmp))
    functional = record(SCHEDULES[schedule]())
    # Recording ends when the first evaluation begins.
    functional(control(1.0))
    kinds = {type(checkpoint) for checkpoint in disk_checkpoints(tape)}
    assert kinds == {LocalCheckpoint}


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
