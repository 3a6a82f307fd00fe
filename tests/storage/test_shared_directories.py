"""Directories that several ranks share, and errors that all of them raise."""

import os
import stat

import pytest
from mpi4py import MPI

from localckpt._collective import raise_everywhere
from localckpt.storage.shared_directories import make_shared_directory

WORLD = MPI.COMM_WORLD


@pytest.mark.parallel([1, 2])
def test_a_made_directory_is_one_for_all(shared_tmp):
    made = make_shared_directory(WORLD, str(shared_tmp))
    assert WORLD.allgather(made) == [made] * WORLD.size and os.path.dirname(made) == str(shared_tmp)


def test_a_made_directory_is_for_nobody_else(tmp_path):
    assert stat.S_IMODE(os.stat(make_shared_directory(WORLD, str(tmp_path))).st_mode) == 0o700


def test_a_made_directory_has_the_files_asked_for(tmp_path):
    made = make_shared_directory(WORLD, str(tmp_path), ["a.h5", "b.h5"])
    assert {file.name: file.stat().st_size for file in os.scandir(made)} == {"a.h5": 0, "b.h5": 0}


def test_made_directories_are_different(tmp_path):
    assert make_shared_directory(WORLD, str(tmp_path)) != make_shared_directory(WORLD, str(tmp_path))


@pytest.mark.parallel([1, 2, 3])
def test_a_directory_that_cannot_be_made_is_one_error_on_every_rank(shared_tmp, raises_everywhere):
    with raises_everywhere(FileNotFoundError, match="missing"):
        make_shared_directory(WORLD, str(shared_tmp / "missing"))


@pytest.mark.parallel([1, 2, 3])
def test_ranks_raise_the_error_of_the_lowest_that_has_one(raises_everywhere):
    lowest = WORLD.size // 2
    error = OSError(28, f"of rank {WORLD.rank}") if WORLD.rank >= lowest else None
    with raises_everywhere(OSError, match=f"of rank {lowest}"):
        raise_everywhere(WORLD, error)


@pytest.mark.parallel([1, 2])
def test_ranks_without_an_error_raise_none(shared_tmp):
    assert raise_everywhere(WORLD, None) is None
