"""Directories of a run that several ranks share: made by one rank, seen by all.

Apart from :mod:`localckpt.storage.run_directories`, which the commands ``clean`` and ``doctor`` use where
neither MPI nor PETSc may be started.
"""

import logging
import os
from collections.abc import Sequence

from mpi4py import MPI

from localckpt._collective import interrupts_held, raise_everywhere
from localckpt.storage import run_directories
from localckpt.storage.directories import Tier, unset_variables

__all__ = ["make_next_directory", "make_shared_directory"]

log = logging.getLogger("localckpt")


def make_next_directory(
    comm: MPI.Intracomm, tiers: list[Tier], files: Sequence[str] = (), keep: bool = False
) -> tuple[str, Tier]:
    """Make a new directory in the first tier where that works. Collective on `comm`.

    Parameters
    ----------
    comm : mpi4py.MPI.Intracomm
    tiers : list of localckpt.storage.directories.Tier
        Loses those that were tried, the one that worked included.
    files, keep
        See :func:`localckpt.storage.run_directories.make`.

    Returns
    -------
    str, localckpt.storage.directories.Tier

    Raises
    ------
    OSError
        For the reason of the last tier, on every rank.
    """
    while True:
        tier = tiers.pop(0)
        try:
            return make_shared_directory(comm, tier.path, files, keep, tier.source), tier
        except OSError as exc:
            if not tiers:
                raise
            if comm.rank == 0:
                log.warning("%s: no checkpoints to %s: %s", MPI.Get_processor_name(), tier.path, exc)


def make_shared_directory(
    comm: MPI.Intracomm, parent: str, files: Sequence[str] = (), keep: bool = False, source: str | None = None
) -> str:
    """Have rank 0 make a run's directory that all ranks see. Collective on `comm`.

    Parameters
    ----------
    comm : mpi4py.MPI.Intracomm
    parent : str
    files, keep
        See :func:`localckpt.storage.run_directories.make`.
    source : str, optional
        How the user has named `parent`, for the error message.

    Returns
    -------
    str

    Raises
    ------
    OSError
        On every rank: rank 0 could not make the directory, or some ranks do not see it.
    """
    with interrupts_held():
        path, error = "", None
        if comm.rank == 0:
            try:
                path = _make(parent, files, keep, source or parent)
            except Exception as exc:
                error = exc
        raise_everywhere(comm, error)
        path = comm.bcast(path)
        if comm.size > 1:
            _require_all_see(comm, path, parent)
    return path


def _make(parent: str, files: Sequence[str], keep: bool, source: str) -> str:
    """Make the directory, or raise an error that the user can do something about."""
    try:
        return run_directories.make(parent, files, keep)
    except OSError as exc:
        raise OSError(
            exc.errno,
            f"cannot make a directory in {source} on {MPI.Get_processor_name()} ({exc.strerror}"
            f"{unset_variables(parent)}): name a directory that exists and is writeable on every node",
            exc.filename,
        ) from None


def _require_all_see(comm: MPI.Intracomm, path: str, parent: str) -> None:
    """Remove the directory and raise OSError on every rank if some do not see it. Collective on `comm`."""
    host = MPI.Get_processor_name()
    blind = [rank for rank in comm.allgather("" if can_open(path) else f"rank {comm.rank} ({host})") if rank]
    if blind:
        error = None
        if comm.rank == 0:
            run_directories.remove(path)
            more = f" and {len(blind) - 8} more" if len(blind) > 8 else ""
            error = OSError(
                f"{parent} of rank 0 ({host}) is not the same directory on {', '.join(blind[:8])}{more}: name a "
                "directory that all ranks of a file share, or let only ranks of one node "
                "share files, with checkpoint_comm=localckpt.node_comm(comm)"
            )
        raise_everywhere(comm, error)


def can_open(path: str) -> bool:
    """Return whether this rank sees that directory, whose name is unique, now and not in a cache. Not collective."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    except Exception:
        return False
    return True
