"""Where no checkpoint file can be made, every rank says so and none waits for another."""

import os

import pytest
from burgers import assert_same, record_on_disk, reference, replay
from mpi4py import MPI

from localckpt.adjoint import enable_disk_checkpointing

WORLD = MPI.COMM_WORLD


def last_rank_elsewhere(directory, elsewhere):
    """The directory; on the last rank another one."""
    return str(elsewhere if WORLD.rank == WORLD.size - 1 else directory)


@pytest.mark.parallel([1, 2])
@pytest.mark.parametrize("argument", ["checkpoint_dir", "dirname"])
def test_a_missing_directory_is_an_error_that_names_it(argument, shared_tmp, tape):
    missing = str(shared_tmp / "missing")
    with pytest.raises(FileNotFoundError, match=missing):
        enable_disk_checkpointing(**{argument: missing})


@pytest.mark.parallel([1, 2, 3])
def test_a_directory_missing_on_one_rank_is_an_error_on_all(shared_tmp):
    directory = last_rank_elsewhere(shared_tmp, shared_tmp / "missing")
    with pytest.raises(OSError, match="missing"):
        enable_disk_checkpointing(checkpoint_comm=MPI.COMM_SELF, checkpoint_dir=directory)


@pytest.mark.parallel(2)
def test_ranks_may_have_directories_of_their_own(shared_tmp):
    directory = shared_tmp / str(WORLD.rank)
    directory.mkdir()
    functional = record_on_disk(checkpoint_comm=MPI.COMM_SELF, checkpoint_dir=str(directory))
    assert_same(replay(functional), reference())
    assert len(os.listdir(directory)) == 1


@pytest.mark.parallel([1, 2])
def test_a_file_for_a_directory_is_an_error_on_all(shared_tmp):
    file = shared_tmp / "file"
    file.touch()
    with pytest.raises(OSError, match="file"):
        enable_disk_checkpointing(checkpoint_dir=last_rank_elsewhere(shared_tmp, file))


@pytest.mark.parallel([1, 2])
def test_after_an_error_the_tape_has_no_checkpointer(shared_tmp, tape):
    with pytest.raises(OSError):
        enable_disk_checkpointing(checkpoint_dir=str(shared_tmp / "missing"))
    assert not tape._package_data


@pytest.mark.parallel(2)
def test_after_an_error_on_one_rank_no_directory_is_left_on_the_others(shared_tmp):
    directory = last_rank_elsewhere(shared_tmp, shared_tmp / "missing")
    with pytest.raises(OSError):
        enable_disk_checkpointing(checkpoint_dir=directory)
    WORLD.barrier()
    assert os.listdir(shared_tmp) == []


@pytest.mark.parallel(3)
def test_files_on_more_ranks_than_the_tape_are_an_error_on_all(shared_tmp):
    first_two = WORLD.Split(WORLD.rank // 2, WORLD.rank)
    with pytest.raises(ValueError, match="ranks that are not in comm"):
        enable_disk_checkpointing(comm=first_two, checkpoint_comm=WORLD, checkpoint_dir=str(shared_tmp))


@pytest.mark.parallel([1, 2])
def test_an_unknown_engine_is_an_error_that_leaves_no_directory(shared_tmp, tape):
    with pytest.raises(ValueError, match="engine is 'direct' or 'viewer', not 'Direct'"):
        enable_disk_checkpointing(checkpoint_dir=str(shared_tmp), engine="Direct")
    assert not os.listdir(shared_tmp) and "firedrake" not in tape._package_data
