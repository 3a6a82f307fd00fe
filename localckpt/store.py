"""Arrays on disk, addressed by tokens."""

import os
from collections import defaultdict

import numpy as np

from localckpt._vecfile import VecFile

__all__ = ["Store", "Token"]


class Token:
    """The right to read one stored array; its slot is free again when the token goes.

    Not collective to drop.
    """

    __slots__ = ("_slots", "key", "number")

    def __init__(self, slots, key, number):
        self._slots = slots
        self.key = key
        self.number = number

    def get(self, array):
        """Fill `array` with what was stored. Collective on the store's communicator."""
        self._slots.file.read_array(dataset(self.key, self.number), array)

    def __del__(self):
        self._slots.release(self.key, self.number)


def dataset(key, number):
    return f"{key}_{number}"


class Slots:
    """A file and which of its datasets are free.

    Saves come in the same sequence on every rank of the file's communicator, but tokens
    die when each rank's interpreter gets to it: a slot is taken again only once all
    ranks have agreed that it is free, and the agreement for a key is sought when the
    slots of the one before are used up.
    """

    def __init__(self, file, recycle):
        self.file = file
        self.recycle = recycle
        self.retired = False
        self.live = 0
        self.count = defaultdict(int)     # slots of a key, the same on all ranks
        self.agreed = defaultdict(list)   # slots that all ranks know to be free
        self.dropped = defaultdict(set)   # slots that this rank no longer needs

    def claim(self, key):
        agreed, dropped = self.agreed[key], self.dropped[key]
        if not agreed and self.recycle:
            free = np.zeros(self.count[key], dtype=np.uint8)
            free[list(dropped)] = 1
            self.file.agree(free)
            agreed.extend(np.flatnonzero(free)[::-1].tolist())
            dropped.difference_update(agreed)
        if not agreed:
            # So many at once that agreements stay rare while a sweep grows.
            new = 1 + self.count[key] // 4
            agreed.extend(range(self.count[key] + new - 1, self.count[key] - 1, -1))
            self.count[key] += new
        self.live += 1
        return agreed.pop()

    def release(self, key, number):
        self.live -= 1
        self.dropped[key].add(number)
        if self.retired and self.live == 0:
            self.file.drop()

    def retire(self):
        self.retired = True
        if self.live == 0:
            self.file.drop()


class Store:
    """Arrays on disk in one file per communicator.

    Parameters
    ----------
    comm : mpi4py.MPI.Intracomm
        Saving and reading are collective on it, and on nothing else.
    path : str
        The file, the same on every rank of `comm`.
    cleanup : bool, optional
        Unlink the file as soon as every rank holds it open, so that however the run ends
        its bytes go too, and use the space of dropped arrays again. Otherwise keep
        everything that was ever stored.
    """

    def __init__(self, comm, path, cleanup=True):
        self.comm = comm
        self.path = path
        self.cleanup = cleanup
        self._slots = None

    def put(self, key, array):
        """Store `array`. Collective on the store's communicator.

        Parameters
        ----------
        key : str
            Arrays stored under one key have, on each rank, always the same size.
        array : numpy.ndarray

        Returns
        -------
        Token

        Raises
        ------
        StorageError
            On every rank of the communicator.
        """
        if self._slots is None:
            self._slots = Slots(self._open(), recycle=self.cleanup)
        number = self._slots.claim(key)
        token = Token(self._slots, key, number)
        self._slots.file.write_array(dataset(key, number), array)
        return token

    def _open(self):
        if not self.cleanup:
            return VecFile(self.comm, self.path, "w")
        path = self.path + ".data"
        file = VecFile(self.comm, path, "w")
        if self.comm.rank == 0:  # opening has made sure that all of them have it
            os.unlink(path)
        return file

    def retire(self):
        """Let what is stored so far go with its last token. Not collective.

        The next array begins a new file.
        """
        if self._slots is not None:
            self._slots.retire()
            self._slots = None
