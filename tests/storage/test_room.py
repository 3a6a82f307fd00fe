"""Messages about the room for checkpoints."""

import logging

import pytest
from mpi4py import MPI

from localckpt.storage.directories import Directory
from localckpt.storage.room import announce

WORLD = MPI.COMM_WORLD


@pytest.fixture
def said(caplog):
    """said(): the messages so far, with their levels."""
    caplog.set_level(logging.DEBUG, logger="localckpt")
    return lambda: [(record.levelname, record.getMessage()) for record in caplog.records]


@pytest.mark.parallel([1, 2, 3])
def test_announcement_tells_the_room_of_each_rank(shared_tmp, said):
    announce(here := Directory(str(shared_tmp), "ext4", 12_000_000_000), WORLD.bcast(here), WORLD, WORLD)
    sentence = (
        f"{MPI.Get_processor_name()}: checkpoints go to {shared_tmp} (ext4), 12.0 GB free, "
        f"{12 / WORLD.size:.1f} GB for each of {WORLD.size} ranks"
    )
    assert said() == ([("INFO", sentence)] if WORLD.rank == 0 else [])


def test_announcement_tells_the_schedulers_limit(shared_tmp, said, monkeypatch):
    monkeypatch.setenv("PBS_NCI_JOBFS", "100MB")
    announce(here := Directory.at(shared_tmp), WORLD.bcast(here), WORLD, WORLD)
    assert said()[0][1].endswith("; the scheduler's limit is PBS_NCI_JOBFS=100MB")


def test_announcement_is_made_once(shared_tmp, said):
    for free in (3_000_000_000, 2_000_000_000):
        announce(here := Directory(str(shared_tmp), "ext4", free), WORLD.bcast(here), WORLD, WORLD)
    assert len(said()) == 1


def test_another_directory_is_announced_too(shared_tmp, said):
    announce(here := Directory.at(shared_tmp), WORLD.bcast(here), WORLD, WORLD)
    (shared_tmp / "below").mkdir()
    announce(here := Directory.at(shared_tmp / "below"), WORLD.bcast(here), WORLD, WORLD)
    assert len(said()) == 2
