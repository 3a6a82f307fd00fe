"""Stores and files for the tests here: one layout is a file per rank, the other one file for all."""

import pytest
from mpi4py import MPI

from localckpt.store import Store


@pytest.fixture(params=["own", "world"])
def comm(request):
    """The communicator that a file is on."""
    return MPI.COMM_SELF if request.param == "own" else MPI.COMM_WORLD


@pytest.fixture
def path(comm, shared_tmp):
    """A path for a file on `comm`."""
    return str(shared_tmp / (f"{MPI.COMM_WORLD.rank}.h5" if comm == MPI.COMM_SELF else "all.h5"))


@pytest.fixture(params=["direct", "viewer"])
def store(comm, path, request):
    return Store(comm, path, engine=request.param)
