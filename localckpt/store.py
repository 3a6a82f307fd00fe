"""Arrays on disk, stored once however often they are saved."""

import os
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
from xxhash import xxh3_128_digest

from localckpt._errors import ChecksumMismatch
from localckpt._vecfile import VecFile
from localckpt.engines import DirectEngine, ViewerEngine

__all__ = ["Store", "Stored"]

# Mapping a row beats reading it from about this size on (benchmarks/test_iteration.py).
MAP_FROM = 1 << 18


@dataclass(slots=True, weakref_slot=True, eq=False)
class Stored:
    """An array on disk, which stays there as long as somebody holds this."""

    row: Any
    key: str
    nbytes: int
    digest: bytes


class Store:
    """Arrays on disk in one file per communicator.

    What :meth:`put` returns is the right to read that array. Its space is free again
    when that was dropped, which is never collective.

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
    """

    def __init__(self, comm, path, cleanup=True, engine="direct"):
        self.comm = comm
        self.path = path
        self.cleanup = cleanup
        self.direct = engine == "direct"
        self.collective = not self.direct and comm.size > 1  # whether get is
        self._agrees = self.direct and comm.size > 1
        self._engine = None
        self._known: WeakValueDictionary = WeakValueDictionary()  # size, content hash -> Stored

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
        """
        engine = self._engine or self._open()
        if self._agrees:
            engine.agree(key, array)
        digest = xxh3_128_digest(array if valid is None else array[:valid])
        content = array.nbytes, digest
        stored = None if self.collective else self._known.get(content)
        if stored is None:
            row = engine.write(key, array)
            stored = self._known[content] = Stored(row, key, array.nbytes, digest)
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
            If the bytes are not those that were stored.
        StorageError
        """
        row = stored.row
        if self.direct and stored.nbytes >= MAP_FROM:
            array = row.map(shape, dtype)
        else:
            array = np.empty(shape, dtype)
            row.read(array)
        if xxh3_128_digest(array if valid is None else array[:valid]) != stored.digest:
            raise ChecksumMismatch("what was read is not what was stored", self.path, stored.key, self.comm.rank)
        return array

    def _open(self):
        path = self.path + ".data" if self.cleanup else self.path
        file = VecFile(self.comm, path, "w")
        self._engine = (DirectEngine if self.direct else ViewerEngine)(file, recycle=self.cleanup)
        if self.cleanup and self.comm.rank == 0:  # opening has made sure that all ranks hold it
            os.unlink(path)
        return self._engine

    def flush(self):
        """Make an ordinary HDF5 file of what is stored. Collective on the store's communicator."""
        if self._engine is not None:
            self._engine.file.flush()

    def retire(self):
        """Let what is stored so far go with its last row. Not collective.

        The next array begins a new file.
        """
        if self._engine is not None:
            self._engine.retire()
            self._engine = None
            self._known = WeakValueDictionary()
