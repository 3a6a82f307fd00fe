"""Which ranks share a node."""

import os
from typing import Any

from mpi4py import MPI

from localckpt._collective import interrupts_held

__all__ = ["check_ranks", "node_comm", "ranks_in"]


def _free(comm: MPI.Comm, key: int, groups: dict[int | None, MPI.Intracomm]) -> None:
    if not MPI.Is_finalized():
        for group in filter(None, groups.values()):
            group.Free()


# The attribute of a communicator with the groups that node_comm has made of it, by ranks_per_file.
_groups = MPI.Comm.Create_keyval(delete_fn=_free)


def node_comm(comm: MPI.Intracomm, ranks_per_file: int | None = None) -> MPI.Intracomm:
    """Return a communicator of the ranks that share this rank's node, or of groups of them. Collective on `comm`.

    For `checkpoint_comm`, where a file per rank would be too many: one file for each node, or for
    a number of its ranks. Ranks are on one node if they share memory (``MPI_COMM_TYPE_SHARED``) and a host name.

    Parameters
    ----------
    comm : mpi4py.MPI.Intracomm
    ranks_per_file : int, optional
        Ranks in a group, the same on all of `comm`. Neighbouring ranks form a group; a node's last group
        has the remaining ones. Default: all ranks of the node.

    Returns
    -------
    mpi4py.MPI.Intracomm
        Kept on `comm` and freed with it: later calls return the same one.

    Raises
    ------
    ValueError
        If `ranks_per_file` is less than 1.
    """
    if ranks_per_file is not None and ranks_per_file < 1:
        raise ValueError(f"ranks_per_file is a number of ranks, not {ranks_per_file}")
    groups: Any = comm.Get_attr(_groups)
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


def ranks_in(comm: MPI.Comm, other: MPI.Comm) -> list[int]:
    """Return the rank in `comm` of each rank of another communicator, or ``MPI.UNDEFINED``. Not collective."""
    group, others = comm.Get_group(), other.Get_group()
    try:
        return list(MPI.Group.Translate_ranks(others, list(range(others.size)), group))
    finally:
        group.Free()
        others.Free()


def check_ranks(checkpoint_comm: MPI.Comm, comm: MPI.Comm, name: str) -> None:
    """Require that `comm`, which messages call `name`, has all ranks of `checkpoint_comm`. Not collective.

    Raises
    ------
    ValueError
    """
    missing = ranks_in(comm, checkpoint_comm).count(MPI.UNDEFINED)
    if missing:
        raise ValueError(f"checkpoint_comm has {missing} ranks that are not in {name}")
