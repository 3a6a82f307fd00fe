"""The file of a store in one tier: made when it is first needed, unlinked at once, replaced when it is retired."""

import logging
import os
from collections.abc import Callable
from contextlib import suppress
from math import inf

from mpi4py import MPI

from localckpt._collective import raise_everywhere
from localckpt._vecfile import VecFile
from localckpt.storage.directories import Directory
from localckpt.storage.engines import ENGINES, Engine, EngineName
from localckpt.storage.single import WideCopies
from localckpt.storage.stored import Stored

__all__ = ["StoreFile"]

log = logging.getLogger("localckpt")


class StoreFile:
    """A store's file in one tier, and the engine that writes to it. Not collective to make.

    Parameters
    ----------
    comm : mpi4py.MPI.Intracomm
        The ranks that share the file.
    path : str
        The same on every rank of `comm`.
    cleanup : bool
        Unlink the file as soon as every rank has it open, and use the space of dropped arrays again.
    engine : {"direct", "viewer"}
    limit : float, optional
        Bytes that each rank may use, the same on every rank of `comm`.

    Attributes
    ----------
    engine : localckpt.storage.engines.Engine or None
        None before :meth:`open` and after :meth:`retire`.
    collective : bool
        Whether reading from the file is collective on `comm`.
    tier : str
        The directory that the run's directory is in; known once the file was opened.
    latest : callable
        A weak reference to the array that was stored last.
    unsynced : bool
        Whether something was stored since the last :meth:`sync`.
    garbage_collected : bool
        Whether garbage was collected already because the file was full.
    """

    def __init__(self, comm: MPI.Intracomm, path: str, cleanup: bool, engine: EngineName, limit: float = inf) -> None:
        self.comm = comm
        self.path = path
        self.cleanup = cleanup
        self.limit = limit
        self.engine: Engine | None = None
        self.collective = engine == "viewer" and comm.size > 1
        self.tier = ""
        self.latest: Callable[[], Stored | None] = lambda: None
        self.unsynced = False
        self.garbage_collected = False
        self.wide_copies: dict[int, WideCopies] = {}  # by their bytes
        self._make_engine = ENGINES[engine]
        self._times_opened = 0
        self._errors_are_late = False  # whether only fsync shows that bytes did not get to the disk

    def open(self) -> Engine:
        """Make the file and its engine. Collective on the file's communicator.

        Raises
        ------
        OSError
            On every rank.
        """
        error: Exception | None = None
        self._times_opened += 1
        try:
            path = self._next_path()
            directory = os.path.dirname(path)
            self.tier = os.path.dirname(directory)
        except Exception as exc:
            error = exc
        raise_everywhere(self.comm, error)
        file = VecFile(self.comm, path + ".data" if self.cleanup else path, "x" if self.cleanup else "w")
        try:
            engine = self._make_engine(file, self.cleanup, self.limit)
            with suppress(OSError):
                self._errors_are_late = Directory.at(directory).on_network or not file.descriptor.can_reserve()
            if self.cleanup and self.comm.rank == 0:  # VecFile returns when all ranks have the file open
                unlink(file.path)
        except Exception as exc:
            error = exc
        try:
            raise_everywhere(self.comm, error)
        except Exception:
            file.drop()
            raise
        self.engine = engine
        return engine

    def _next_path(self) -> str:
        """Return the path of the file to make: a file that is kept is not written over by the next one."""
        if self._times_opened == 1:
            return self.path
        stem, suffix = os.path.splitext(self.path)
        return f"{stem}-{self._times_opened}{suffix}"

    def sync(self) -> None:
        """Make sure that the disk takes everything stored so far. Not collective.

        Raises
        ------
        TransferError
            If the disk could not take all of it, once.
        """
        if self.engine is None:
            return
        descriptor = self.engine.file.descriptor
        if not self._errors_are_late:
            descriptor.check()
        elif self.unsynced:
            descriptor.sync()
        self.unsynced = False

    def flush(self) -> None:
        """Make an ordinary HDF5 file of everything stored so far. Collective on the file's communicator."""
        if self.engine is not None:
            self.engine.file.flush()

    def retire(self) -> None:
        """Let the file go with the last array in it; the next array begins a new file. Not collective.

        Raises
        ------
        StorageError
            If the file cannot be closed.
        """
        engine, self.engine = self.engine, None
        self.wide_copies.clear()
        if engine is not None:
            engine.retire()

    @property
    def bytes_taken(self) -> int:
        """int: bytes that each rank takes on disk. Not collective."""
        return 0 if self.engine is None else self.engine.bytes_taken

    @property
    def limit_left(self) -> float:
        """float: bytes of the limit that this rank has not taken. Not collective."""
        return self.limit - self.bytes_taken

    @property
    def free_bytes(self) -> int:
        """int: free bytes of the disk, 0 if the directory is gone. Not collective."""
        try:
            if self.engine is None:
                disk = os.statvfs(os.path.dirname(self.path))
            else:
                disk = os.fstatvfs(self.engine.file.descriptor.fileno())
        except OSError:
            return 0
        return disk.f_bavail * disk.f_frsize


def unlink(path: str) -> None:
    """Take a file's name away, or warn that it keeps it: no reason to go on elsewhere. Not collective."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass  # a cleaner of temporary files was faster
    except OSError as exc:
        log.warning(
            "%s: cannot unlink the file of checkpoints, which will stay if the run is killed: %s",
            MPI.Get_processor_name(),
            exc,
        )
