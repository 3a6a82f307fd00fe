"""Which ranks share a node."""

import os

from mpi4py import MPI

from localckpt._collective import interrupts_held

__all__ = ["check_ranks", "node_comm", "ranks_in"]


def _free(comm, key, groups):
    if not MPI.Is_finalized():
        for group in filter(None, groups.values()):
            group.Free()


_groups = MPI.Comm.Create_keyval(delete_fn=_free)  # what node_comm has made of a communicator, by ranks_per_file


def node_comm(comm, ranks_per_file=None):
    """The ranks of `comm` that share this rank's node, or groups of them. Collective on `comm`.

    For `checkpoint_comm`, where a file per rank would be too many: a file for each node, or for
    so many of its ranks. A node is what shares memory (``MPI_COMM_TYPE_SHARED``) and a host name.

    Parameters
    ----------
    comm : mpi4py.MPI.Intracomm
    ranks_per_file : int, optional
        Ranks in a group, the same on all of `comm`: neighbours by rank, and in a node's last group
        what is left. Default: all of the node's.

    Returns
    -------
    mpi4py.MPI.Intracomm
        Kept on `comm`, which frees it: asked for again it is the same one.

    Raises
    ------
    ValueError
        If `ranks_per_file` is less than 1.
    """
    if ranks_per_file is not None and ranks_per_file < 1:
        raise ValueError(f"ranks_per_file is a number of ranks, not {ranks_per_file}")
    groups = comm.Get_attr(_groups)
    if groups is None:
        comm.Set_attr(_groups, groups := {})
    if not groups.get(ranks_per_file):  # not made yet, or freed by its user
        with interrupts_held():
            if ranks_per_file is not None:
                node = node_comm(comm)
                groups[ranks_per_file] = node.Split(node.rank // ranks_per_file)
            else:
                host = os.uname().nodename
                memory = comm.Split_type(MPI.COMM_TYPE_SHARED)
                hosts = memory.allgather(host)
                groups[None] = memory.Split(hosts.index(host))
                memory.Free()
    return groups[ranks_per_file]


def ranks_in(comm, other):
    """The rank in `comm` of each rank of another communicator, or ``MPI.UNDEFINED``. Not collective."""
    group, others = comm.Get_group(), other.Get_group()
    try:
        return list(MPI.Group.Translate_ranks(others, list(range(others.size)), group))
    finally:
        group.Free()
        others.Free()


def check_ranks(checkpoint_comm, comm, what):
    """Raise ValueError if checkpoint_comm has ranks that comm lacks. Not collective."""
    missing = ranks_in(comm, checkpoint_comm).count(MPI.UNDEFINED)
    if missing:
        raise ValueError(f"checkpoint_comm has {missing} ranks that are not in {what}")
