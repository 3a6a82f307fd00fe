"""Messages about the room for checkpoints: at the start, after the first timestep, and when it gets short."""

import logging
import os
import weakref

from mpi4py import MPI

from localckpt.storage import run_directories
from localckpt.storage.directories import JOB_LIMITS, Directory
from localckpt.storage.store import Store
from localckpt.storage.store_file import StoreFile

__all__ = ["RoomMonitor", "announce", "show_log"]

log = logging.getLogger("localckpt")
_announced: set[str] = set()  # once is enough for a script that makes tape after tape

LITTLE = 0.1  # of the room that there was at first


def show_log() -> None:
    """Have log messages go to stderr, unless the script has configured logging. Not collective."""
    if not log.hasHandlers():
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)


def announce(directory: Directory, first: Directory, comm: MPI.Intracomm, node: MPI.Intracomm) -> None:
    """Say where checkpoints go and how much room there is, and remove what dead runs have left there. Not collective.

    Rank 0 of `comm` says it at level INFO, rank 0 of another node at level DEBUG, or at level INFO
    if its directory is another one. Without any handler for log messages they go to stderr.

    Parameters
    ----------
    directory : localckpt.storage.directories.Directory
        This rank's.
    first : localckpt.storage.directories.Directory
        That of rank 0 of `comm`.
    comm, node : mpi4py.MPI.Intracomm
        All ranks of the run, and those on this node.
    """
    show_log()
    if node.rank != 0:
        return
    if directory.path not in _announced:
        _announced.add(directory.path)
        same = (directory.path, directory.filesystem) == (first.path, first.filesystem)
        limits = "".join(
            f"; the scheduler's limit is {name}={os.environ[name]}" for name in JOB_LIMITS if name in os.environ
        )
        log.log(
            logging.DEBUG if same and comm.rank != 0 else logging.INFO,
            f"{MPI.Get_processor_name()}: checkpoints go to {directory.path} ({directory.filesystem}), "
            f"{directory.free / 1e9:.1f} GB free, {directory.free / node.size / 1e9:.1f} GB for each of "
            f"{node.size} ranks{limits}",
        )
    remove_dead_runs(directory.path)


def remove_dead_runs(parent: str) -> None:
    """Remove the directories that dead runs of this host have left in a directory, and say so. Not collective."""
    # Not those of other hosts: on a shared filesystem every node would look into the directories of all ranks.
    found = run_directories.find(parent, run_directories.host_prefix())
    removed = run_directories.remove_dead(found)
    if removed:
        log.info(
            "%s: removed %d directories that dead runs had left in %s, %.3g MB",
            MPI.Get_processor_name(),
            len(removed),
            parent,
            sum(directory.nbytes for directory in removed) / 1e6,
        )


class RoomMonitor:
    """Says how much a timestep takes, and warns when room gets short. Not collective.

    Parameters
    ----------
    store : localckpt.storage.store.Store
    ranks : int
        How many ranks share the disk.
    rank : int
        Rank 0 says how much the first timestep took.
    """

    def __init__(self, store: Store, ranks: int, rank: int) -> None:
        self.store = store
        self.ranks = ranks
        self.rank = rank
        self.written = 0
        file = store.current_file
        self.room_at_first: weakref.WeakKeyDictionary[StoreFile, float] = weakref.WeakKeyDictionary(
            {file: self.room(file)}
        )

    def room(self, file: StoreFile) -> float:
        """Return the bytes left for this rank, if the others on the node take as many."""
        return min(file.free_bytes / self.ranks, file.limit_left)

    def step(self) -> None:
        """Note that a timestep has been saved."""
        written = self.store.summary.written
        if written == self.written:
            return  # nothing new on any disk
        file = self.store.current_file
        room = self.room(file)
        if self.written == 0 and self.rank == 0:
            log.info(
                "the first timestep takes %.3g MB on this rank; there is room for at least %d more like it",
                written / 1e6,
                room // written,
            )
        self.written = written
        if room < LITTLE * self.room_at_first.setdefault(file, room):
            self.room_at_first[file] = 0  # warn once
            log.warning(
                "%s: %.3g MB are left for each rank in %s",
                MPI.Get_processor_name(),
                room / 1e6,
                os.path.dirname(file.path),
            )
