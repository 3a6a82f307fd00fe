"""Tapes with localckpt's checkpointer, with Firedrake's and with none, side by side."""

import gc
import warnings

import firedrake as fd
import numpy as np
import pytest
from burgers import (
    SCALES,
    arrays,
    assert_same,
    control,
    disk_checkpoints,
    kind,
    record,
    record_on_disk,
    reference,
    sweep,
)
from checkpoint_schedules import SingleDiskStorageSchedule
from firedrake.adjoint import continue_annotation, set_working_tape, stop_annotating
from firedrake.adjoint_utils import checkpointing as firedrakes
from firedrake.adjoint_utils.checkpointing import CheckpointFunction
from mpi4py import MPI

from localckpt.adjoint import (
    LocalCheckpoint,
    continue_disk_checkpointing,
    enable_disk_checkpointing,
    pause_disk_checkpointing,
    stop_disk_checkpointing,
)


def on_localckpt(directory):
    return record_on_disk(checkpoint_dir=str(directory))


def on_firedrake(directory):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that it is not localckpt's
        firedrakes.enable_disk_checkpointing(
            dirname=str(directory), checkpoint_comm=MPI.COMM_SELF, checkpoint_dir=str(directory)
        )
    return record(SingleDiskStorageSchedule())


def on_a_tape(make, directory):
    """The functional, recorded on a tape that is no working tape afterwards."""
    with set_working_tape():
        continue_annotation()
        return make(directory)


def evaluate(functional, scale):
    with stop_annotating():
        return functional(control(scale))


@pytest.fixture
def both(shared_tmp):
    return on_a_tape(on_localckpt, shared_tmp), on_a_tape(on_firedrake, shared_tmp)


@pytest.mark.parallel([1, 3])
def test_interleaved_evaluations_are_right_under_a_bare_working_tape(both):
    ours, theirs = both
    found = {ours: [], theirs: []}
    for scale in SCALES:
        for functional in (ours, theirs):
            found[functional].append(sweep(functional, scale))
    assert_same(found[ours], reference())
    assert_same(found[theirs], reference())


@pytest.mark.parametrize("working", ["ours", "theirs"])
def test_both_are_right_under_the_working_tape_of_either(both, working):
    ours, theirs = both
    with set_working_tape((ours if working == "ours" else theirs).tape):
        found = [[sweep(functional, scale) for scale in SCALES] for functional in both]
    assert_same(found[0], reference())
    assert_same(found[1], reference())


def test_gradient_is_right_after_the_other_tape_was_evaluated(both):
    ours, theirs = both
    value = evaluate(ours, SCALES[0])
    evaluate(theirs, SCALES[1])
    assert_same([np.concatenate([[value], *arrays(ours.derivative())])], reference()[:1])


def test_each_tape_keeps_the_checkpoints_of_its_own_checkpointer(both):
    for functional in both:
        sweep(functional, SCALES[0])
    kinds = [{kind(checkpoint) for checkpoint in disk_checkpoints(functional.tape)} for functional in both]
    assert kinds == [{LocalCheckpoint}, {CheckpointFunction}]


@pytest.mark.parallel([1, 3])
def test_two_tapes_of_localckpt_do_not_mix_their_checkpoints(shared_tmp):
    first, second = (on_a_tape(on_localckpt, shared_tmp) for _ in range(2))
    values = evaluate(first, SCALES[0]), evaluate(second, SCALES[1])
    assert_same(
        [
            np.concatenate([[value], *arrays(functional.derivative())])
            for value, functional in zip(values, (first, second), strict=True)
        ],
        reference(),
    )


def test_a_bare_tape_beside_ours_stays_in_memory(shared_tmp):
    sweep(on_a_tape(on_localckpt, shared_tmp), SCALES[0])
    functional = record()
    sweep(functional, SCALES[0])
    assert not disk_checkpoints(functional.tape)


def test_firedrakes_tape_is_right_after_ours_is_gone(shared_tmp):
    theirs, ours = (on_a_tape(make, shared_tmp) for make in (on_firedrake, on_localckpt))
    sweep(ours, SCALES[0])
    del ours
    gc.collect()
    assert_same([sweep(theirs, SCALES[0])], reference()[:1])


def test_a_second_enable_on_one_tape_keeps_its_checkpointer(shared_tmp, tape):
    enable_disk_checkpointing(checkpoint_dir=str(shared_tmp))
    first = tape._package_data["firedrake"]
    enable_disk_checkpointing()
    assert tape._package_data["firedrake"] is first


def test_disk_checkpointing_switched_on_by_hand_stores_through_localckpt(shared_tmp):
    f = fd.Function(fd.FunctionSpace(fd.UnitSquareMesh(2, 2), "CG", 1)).assign(2.0)
    enable_disk_checkpointing(checkpoint_dir=str(shared_tmp))
    continue_disk_checkpointing()
    checkpoint = f._ad_create_checkpoint()
    assert kind(checkpoint) is LocalCheckpoint


def test_disk_checkpointing_stopped_keeps_copies_in_memory(shared_tmp):
    f = fd.Function(fd.FunctionSpace(fd.UnitSquareMesh(2, 2), "CG", 1)).assign(2.0)
    enable_disk_checkpointing(checkpoint_dir=str(shared_tmp))
    continue_disk_checkpointing()
    with stop_disk_checkpointing():
        checkpoint = f._ad_create_checkpoint()
    pause_disk_checkpointing()
    assert type(checkpoint) is fd.Function


def test_saving_without_a_checkpointer_says_what_to_call():
    f = fd.Function(fd.FunctionSpace(fd.UnitSquareMesh(2, 2), "CG", 1))
    continue_disk_checkpointing()
    with pytest.raises(ValueError, match="enable_disk_checkpointing"):
        f._ad_create_checkpoint()
