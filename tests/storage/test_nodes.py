"""Communicators of the ranks that share a node."""

import pytest
from mpi4py import MPI

from localckpt.storage.nodes import node_comm

WORLD = MPI.COMM_WORLD


@pytest.fixture
def comm():
    """A communicator of all ranks that a test may free."""
    comm = WORLD.Dup()
    yield comm
    if comm:
        comm.Free()


@pytest.mark.parallel([1, 2, 3])
def test_node_comm_has_all_ranks_of_a_node_in_their_order(comm):
    assert node_comm(comm).rank == WORLD.rank and node_comm(comm).size == WORLD.size


@pytest.mark.parallel([1, 2, 3])
@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_node_comm_of_some_ranks_has_neighbours_in_it(comm, ranks):
    first = WORLD.rank // ranks * ranks
    group = node_comm(comm, ranks_per_file=ranks)
    assert group.allgather(WORLD.rank) == list(range(first, min(first + ranks, WORLD.size)))


@pytest.mark.parallel([1, 3])
@pytest.mark.parametrize("ranks", [None, 2])
def test_node_comm_asked_for_twice_is_the_same(comm, ranks):
    assert node_comm(comm, ranks) is node_comm(comm, ranks)


@pytest.mark.parallel([1, 3])
def test_node_comm_of_a_duplicate_is_another(comm):
    group = node_comm(comm)
    duplicate = comm.Dup()
    assert node_comm(duplicate) != group
    duplicate.Free()
    group.barrier()


@pytest.mark.parallel([1, 3])
def test_node_comms_are_freed_with_their_communicator(comm):
    groups = [node_comm(comm, ranks) for ranks in (None, 1, 2)]
    comm.Free()
    assert groups == [MPI.COMM_NULL] * 3


@pytest.mark.parallel([1, 3])
def test_node_comm_that_its_user_has_freed_is_made_again(comm):
    node_comm(comm, 2).Free()
    node_comm(comm, 2).barrier()


@pytest.mark.parallel([1, 2])
def test_node_comm_of_no_ranks_is_an_error(raises_everywhere):
    with raises_everywhere(ValueError, match="ranks_per_file"):
        node_comm(WORLD, 0)


@pytest.mark.parametrize("end", ["", "PETSc._finalize(); MPI.Finalize()"])
def test_node_comms_of_the_world_do_no_harm_at_its_end(run_script, end):
    done = run_script("for of in comm, MPI.COMM_SELF: localckpt.node_comm(of, 2)\n" + end, ranks=2)
    assert (done.returncode, done.stderr) == (0, "")
