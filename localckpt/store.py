"""Arrays on disk, stored once however often they are saved."""

import os
from dataclasses import dataclass
from math import inf
from time import monotonic
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
from mpi4py import MPI
from xxhash import xxh3_128_digest

from localckpt import leftovers
from localckpt._errors import CheckpointError, ChecksumMismatch
from localckpt._vecfile import VecFile
from localckpt.engines import DirectEngine, ViewerEngine
from localckpt.places import Place, choose_engine, log, next_folder

__all__ = ["Store", "Stored"]

# Mapping a row beats reading it from about this size on (benchmarks/test_iteration.py).
MAP_FROM = 1 << 18
# The tape restores what it needs several times within a step: seconds in which once verified is enough.
RECENT = 1.0


@dataclass(slots=True, weakref_slot=True, eq=False)
class Stored:
    """An array on disk, which stays there as long as somebody holds this."""

    store: "Store"
    row: Any
    key: str
    nbytes: int
    digest: bytes
    verified: float = -inf  # when it was last read back and found right


class Store:
    """Arrays on disk in one file per communicator.

    What :meth:`put` returns is the right to read that array. Its space is free again
    when that was dropped, which is never collective.

    A rank that cannot write to its file goes on with one of its own in the next tier; a file
    of several ranks has no room for one of them only if it has none for all.

    Parameters
    ----------
    comm : mpi4py.MPI.Intracomm
        Saving and reading communicate on it, if at all, and on nothing else.
    path : str
        The file, the same on every rank of `comm`.
    cleanup : bool, optional
        Unlink the file as soon as every rank holds it open, so that however the run ends
        its bytes go too, and use the space of dropped arrays again. Otherwise keep
        everything that was ever stored.
    engine : {"direct", "viewer"}, optional
        See :mod:`localckpt.engines`.
    limit : float, optional
        The bytes that each rank may use here, the same on every rank of `comm`.
    tiers : sequence of localckpt.places.Tier, optional
        Where to go on when this file is full or fails.

    Attributes
    ----------
    failure : CheckpointError or None
        Set to why an array was lost: from then on every :meth:`put` and :meth:`get` raises it.
    written : int
        Bytes that were ever written from this rank, to this file or to later ones.
    """

    def __init__(self, comm, path, cleanup=True, engine="direct", *, limit=inf, tiers=()):
        self.comm = comm
        self.path = path
        self.cleanup = cleanup
        self.limit = limit
        self.tiers = tiers
        self.direct = engine == "direct"
        self.collective = not self.direct and comm.size > 1  # whether get is
        self.failure = None
        self.written = 0
        self._agrees = self.direct and comm.size > 1
        self._engine = None
        self._known: WeakValueDictionary = WeakValueDictionary()  # size, content hash -> Stored
        self._next = None

    def put(self, key, array, valid=None):
        """Store `array`; the same bytes again are not written again.

        Collective on the store's communicator where that has several ranks.

        Parameters
        ----------
        key : str
            Arrays stored under one key have, on each rank, always the same shape and type.
        array : numpy.ndarray
            C-contiguous.
        valid : int, optional
            So many entries along the first axis matter; those after them may come back as
            anything. Default: all.

        Returns
        -------
        Stored
            For :meth:`get`; two may be one and the same.

        Raises
        ------
        StorageError
            The last tier's, where no tier takes it.
        """
        digest = xxh3_128_digest(array if valid is None else array[:valid])
        content = array.nbytes, digest
        stored = None
        try:
            engine = self._engine or self._open()
            if self._agrees:
                engine.agree(key, array, self.failure is None)
            if self.failure is not None:
                raise self.failure.with_traceback(None)
            if not self.collective:
                stored = self._known.get(content)
            if stored is None:
                stored = Stored(self, engine.write(key, array), key, array.nbytes, digest)
                self.written += array.nbytes
                self._known[content] = stored
        except CheckpointError:
            raise
        except OSError as exc:
            following = self._following(exc)
            before = following.written
            stored = self._known[content] = following.put(key, array, valid)
            self.written += following.written - before
        return stored

    def get(self, stored, shape, dtype, valid=None):
        """A new array with what was stored.

        Collective on the store's communicator if :attr:`collective`.

        Parameters
        ----------
        stored : Stored
            From :meth:`put`.
        shape : tuple of int
        dtype : numpy.dtype
        valid : int, optional
            As it was stored.

        Returns
        -------
        numpy.ndarray
            Writeable, and nobody else's.

        Raises
        ------
        ChecksumMismatch
            If the bytes are not those that were stored, unless they were right a second ago.
        StorageError
        """
        if self.failure is not None:
            raise self.failure.with_traceback(None)
        row, owner = stored.row, stored.store
        if owner.direct and stored.nbytes >= MAP_FROM:
            array = row.map(shape, dtype)
        else:
            array = np.empty(shape, dtype)
            row.read(array)
        now = monotonic()
        if now - stored.verified > RECENT:
            if xxh3_128_digest(array if valid is None else array[:valid]) != stored.digest:
                raise ChecksumMismatch("what was read is not what was stored", owner.path, stored.key,
                                       owner.comm.rank)
            stored.verified = now
        return array

    def _open(self):
        path = self.path + ".data" if self.cleanup else self.path
        file = VecFile(self.comm, path, "x" if self.cleanup else "w")
        self._engine = (DirectEngine if self.direct else ViewerEngine)(file, self.cleanup, self.limit)
        if self.cleanup and self.comm.rank == 0:  # opening has made sure that all ranks hold it
            os.unlink(path)
        return self._engine

    def _following(self, cause):
        """The store that takes what this one cannot. Not collective."""
        tiers = list(self.tiers)
        while self._next is None:
            if not tiers:
                raise cause
            folder, tier = next_folder(MPI.COMM_SELF, tiers, keep=not self.cleanup)
            place = Place.at(tier.path)
            store = Store(MPI.COMM_SELF, os.path.join(folder, "current.h5"), self.cleanup,
                          choose_engine(MPI.COMM_SELF, place), limit=tier.limit, tiers=tiers)
            try:
                store._open()
            except OSError as exc:
                log.warning("%s: no checkpoints to %s: %s", MPI.Get_processor_name(), tier.path, exc)
                cause = exc
                leftovers.remove(folder)
                continue
            if self.cleanup:
                leftovers.remove(folder)  # the file in it is unlinked
            log.warning("%s: %s; what cannot be stored there goes to %s (%s, %.1f GB free)",
                        MPI.Get_processor_name(), cause, place.path, place.filesystem, place.free / 1e9)
            self._next = store
        return self._next

    @property
    def last(self):
        """Store: the one in the tier that takes new arrays now."""
        return self if self._next is None else self._next.last

    @property
    def free(self):
        """int: free bytes of the disk, none where the folder is gone. Not collective."""
        try:
            disk = (os.statvfs(os.path.dirname(self.path)) if self._engine is None else
                    os.fstatvfs(self._engine.file.descriptor.fileno()))
        except OSError:
            return 0
        return disk.f_bavail * disk.f_frsize

    @property
    def left(self):
        """float: bytes of the limit that are not taken. Not collective."""
        return self.limit - (self._engine.taken if self._engine is not None else 0)

    def flush(self):
        """Make an ordinary HDF5 file of what is stored. Collective on the store's communicator."""
        if self._engine is not None:
            self._engine.file.flush()
        if self._next is not None:
            self._next.flush()

    def retire(self):
        """Let what is stored so far go with its last row. Not collective.

        The next array begins a new file.
        """
        if self._engine is not None:
            self._engine.retire()
            self._engine = None
            self._known = WeakValueDictionary()
        if self._next is not None:
            self._next.retire()
            self._next = None
