"""The arguments of :func:`localckpt.adjoint.enable_disk_checkpointing`: whether they make sense, alone and together.

A job script or PETSC_OPTIONS may differ from node to node. What has to be the same on several ranks is
compared on `comm`, before anything is done on a `checkpoint_comm`, where ranks might wait for each other.
"""

import os
from dataclasses import dataclass

import numpy as np
from mpi4py import MPI
from xxhash import xxh3_64_intdigest

from localckpt._collective import raise_everywhere
from localckpt.storage.directories import Tier, choose_tiers
from localckpt.storage.engines import requested_engine
from localckpt.storage.nodes import check_ranks, ranks_in

__all__ = ["Arguments", "agree"]


@dataclass(frozen=True)
class Arguments:
    """One rank's, with the PETSc options that stand in for those that are not given.

    Attributes
    ----------
    comm, checkpoint_comm : mpi4py.MPI.Intracomm
    cleanup : bool
    parent : str
        The directory of shared files.
    tiers : list of localckpt.storage.directories.Tier
        With what a whole node may use, not each rank.
    engine : str or None
    """

    comm: MPI.Intracomm
    checkpoint_comm: MPI.Intracomm
    cleanup: bool
    parent: str
    tiers: list[Tier]
    engine: str | None

    @classmethod
    def checked(cls, comm, dirname, cleanup, checkpoint_comm, checkpoint_dir, engine):
        """Not collective.

        Raises
        ------
        TypeError, ValueError, OSError
            With the name of an argument or option.
        """
        own = checkpoint_comm is None
        if own:
            checkpoint_comm = MPI.COMM_SELF
        require_comm("checkpoint_comm", checkpoint_comm)
        check_ranks(checkpoint_comm, comm, "comm")
        try:
            parent = os.path.abspath(os.path.expandvars(os.fsdecode(dirname or os.getcwd())))
        except TypeError:
            raise TypeError(f"dirname is the path of a directory, not {dirname!r}") from None
        if checkpoint_dir not in (None, ""):
            tiers = choose_tiers(checkpoint_dir, 1, "checkpoint_dir")
        else:  # With a checkpoint_comm, Firedrake's dirname is for the shared files only.
            tiers = choose_tiers((own and dirname) or None, 1, "dirname")
        return cls(comm, checkpoint_comm, bool(cleanup), parent, tiers, requested_engine(engine))

    def row(self):
        """What other ranks have to know of it, in plain values. Not collective."""
        if self.checkpoint_comm.size == 1:
            return self.cleanup, (self.comm.rank, 1, 0)
        ranks = ranks_in(self.comm, self.checkpoint_comm)
        group = ranks[0], len(ranks), xxh3_64_intdigest(np.array(ranks).tobytes())
        return (
            self.cleanup,
            group,
            self.engine or "by default",
            ", ".join(tier.source for tier in self.tiers),
            ", ".join(f"{tier.limit:g}" for tier in self.tiers),
        )


def require_comm(name, comm):
    """Raise TypeError unless it is an intracommunicator. Not collective."""
    if not isinstance(comm, MPI.Intracomm) or comm == MPI.COMM_NULL:
        what = "COMM_NULL" if isinstance(comm, MPI.Comm) and comm == MPI.COMM_NULL else repr(comm)
        raise TypeError(f"{name} is an mpi4py.MPI.Intracomm, not {what}")


def agree(comm, given, error=None):
    """Raise on all ranks what is wrong on one, or between them. Collective on `comm`.

    Parameters
    ----------
    comm : mpi4py.MPI.Intracomm
    given : Arguments or None
        None: the tape has a checkpointer already.
    error : Exception, optional
        Why there are none.

    Raises
    ------
    TypeError, ValueError, OSError
        On every rank the same.
    """
    row = None
    try:
        row = given and given.row()
    except Exception as exc:
        error = exc
    raise_everywhere(comm, error)
    rows = comm.allgather(row)
    everyone = range(len(rows))
    compare("the working tape", everyone, ["has no checkpointer yet" if row else "has one already" for row in rows])
    if not rows[0]:
        return
    compare("cleanup", everyone, [row[0] for row in rows])
    groups: dict[tuple[int, int, int], list[int]] = {}
    for rank, row in enumerate(rows):
        groups.setdefault(row[1], []).append(rank)
    # As many ranks as a communicator has must have it, or some wait for ranks that do not come.
    if any(len(ranks) != size for (_, size, _), ranks in groups.items()):
        compare("checkpoint_comm", everyone, [f"of size {row[1][1]}" for row in rows])
        compare(
            "checkpoint_comm",
            everyone,
            [
                f"of size {size} from rank {first} on (hash of its ranks: {digest:x})"
                for _, (first, size, digest), *_ in rows
            ],
        )
    for (_, size, _), ranks in groups.items():
        for column, name in enumerate(
            ("engine (or -localckpt_engine)", "the directory for checkpoints", "-localckpt_dir_limit")
            if size > 1
            else (),
            2,
        ):
            compare(name, ranks, [rows[rank][column] for rank in ranks], " of one checkpoint_comm")


def compare(name, ranks, values, of=""):
    """Raise ValueError if these ranks' values are not the same. Not collective."""
    holders: dict[object, list[str]] = {}
    for rank, value in zip(ranks, values):
        holders.setdefault(value, []).append(str(rank))
    if len(holders) > 1:
        raise ValueError(
            f"{name} is not the same on all ranks{of}: "
            + some(
                [f"{value} on rank{'s' * (len(held) > 1)} {some(held, ', ')}" for value, held in holders.items()], "; "
            )
        )


def some(words, separator):
    """The first of these, and how many more there are."""
    return separator.join(words[:8]) + (f" and {len(words) - 8} more" if len(words) > 8 else "")
