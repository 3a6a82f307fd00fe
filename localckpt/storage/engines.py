"""How a store's arrays get into its file, and back.

Both engines write files that ``VecLoad``, h5py and h5dump read.
"""

import errno
import os
from collections import defaultdict
from copy import copy
from math import inf

from localckpt._collective import interrupts_held
from localckpt._errors import LayoutError, LostCheckpointError, TransferError
from localckpt._rows import Pool

__all__ = ["DirectEngine", "ViewerEngine"]


def more(rows):
    """How many rows to add to so many: few agreements and little space to spare."""
    return min(max(4, rows // 4), 250)


class DirectEngine:
    """Rows of contiguous datasets, moved by ``pwrite`` and ``pread`` without MPI or HDF5.

    Each rank moves its own part of a row and chooses the row by itself. Where several ranks
    share the file they agree, at every so many saves of a key, that each of them has rows
    left until the next agreement: drops, repeats and garbage collection differ from rank
    to rank, the sequence of saves does not. Once there is no room for new rows, which all
    ranks learn together, they agree no more: each writes to what rows become free.

    Parameters
    ----------
    file : localckpt.VecFile
        Open for writing.
    recycle : bool
        Whether rows that nobody holds are written over.
    limit : float, optional
        The bytes that each rank may use, the same on every rank.
    """

    def __init__(self, file, recycle, limit=inf):
        self.file = file
        self.recycle = recycle
        self.limit = limit
        self.taken = 0  # bytes for each rank, on average over the ranks
        self.full = None  # why there are no new rows, on every rank
        self.broken = None  # why this rank no longer writes here
        self.pools: dict[str, Pool] = {}
        self.names: set[str] = set()  # of datasets
        self.flags = bytearray(2)  # for agreements, which no lack of memory is to keep a rank from

    def reserve(self, key, array, well=True):
        """Have rows for the next saves of `key`. Collective on the file's communicator.

        Raises
        ------
        LostCheckpointError
            Where this or another rank is not `well`, or another rank's array does not fit.
        LayoutError
            If this rank's does not.
        TransferError
            If there is no room, on every rank, once.
        """
        if self.full is not None:
            return
        with interrupts_held():
            pool = self.pools.get(key) or self.grow(key, array)
            if pool.saves_until_agreement == 0:
                wanted = more(pool.rows)
                self.flags[:] = pool.free >= wanted, well and array.nbytes == pool.nbytes
                self.file.agree(self.flags)
                if not self.flags[1]:
                    self.check(pool, array)
                    raise LostCheckpointError("another rank could not store a checkpoint", self.file.path, key)
                if self.flags[0]:
                    pool.saves_until_agreement = wanted
                else:
                    self.grow(key, array)  # perhaps by fewer rows than wanted, and due as many saves from now
            pool.saves_until_agreement -= 1

    def grow(self, key, array):
        """Add rows to a key, their disk space reserved. Collective on the file's communicator."""
        if self.full is not None:
            raise copy(self.full)
        with interrupts_held():
            return self._grow(key, array)

    def _grow(self, key, array):
        pool = self.pools.get(key) or Pool(self.file.descriptor, self.recycle, key)
        name, chunk = key, 0
        while name in self.names:  # the key's own, or one that is called so itself
            chunk += 1
            name = f"{key}.{chunk}"
        size = self.file.comm.size
        room = (self.limit - self.taken) * size
        try:
            try:
                made = self.file.create_rows(name, more(pool.rows), array, room=room, checksums=not self.recycle)
            except OSError as exc:
                if exc.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                # No room for so many; for one, perhaps.
                made = self.file.create_rows(name, 1, array, room=room, checksums=not self.recycle)
            if not self.recycle:
                self.file.flush()  # a file to keep is an HDF5 file whatever happens next
        except OSError as exc:
            self.full = copy(exc)  # without what its frames hold
            raise
        first, stride, rows, checksums = made
        self.names.add(name)
        self.taken += stride * rows // size
        self.pools[key] = pool
        pool.nbytes = array.nbytes
        pool.add(first, stride, rows, checksums, 8 * size)
        pool.saves_until_agreement = rows
        return pool

    def write(self, key, array):
        """Store `array` in a row of its own. Not collective if :meth:`reserve` was.

        Returns
        -------
        localckpt._rows.Row

        Raises
        ------
        LayoutError
            If it is not of the size that the key began with.
        TransferError
        """
        if self.broken is not None:
            raise copy(self.broken)
        pool = self.pools.get(key) or self.grow(key, array)
        self.check(pool, array)
        row = pool.claim() or self.grow(key, array).claim()
        try:
            row.write(array)
        except OSError as exc:
            self.broken = copy(exc)
            raise
        return row

    def check(self, pool, array):
        """LayoutError if the array is not of the size of the pool's rows. Not collective."""
        if array.nbytes != pool.nbytes:
            raise LayoutError(
                f"rows of {pool.nbytes} bytes, to be stored are {array.nbytes}",
                self.file.path,
                pool.name,
                self.file.comm.rank,
            )

    def retire(self):
        """Nothing more will be written: rows need no more than the descriptor. Not collective."""
        self.file.drop()


class ViewerRow:
    """A dataset; free again when nobody holds this."""

    __slots__ = ("engine", "key", "number")

    def __init__(self, engine, key, number):
        self.engine, self.key, self.number = engine, key, number

    def read(self, array):
        """Fill `array`. Collective on the file's communicator."""
        self.engine.file.read_array(f"{self.key}_{self.number}", array)

    def __del__(self):
        self.engine.release(self.key, self.number)


class ViewerEngine:
    """A dataset for each array, through HDF5, MPI-IO and PETSc's viewer.

    Every save and restore is collective on the file's communicator. Saves come in the same
    sequence on all its ranks, but rows die when each rank's interpreter gets to it: one is
    taken again only once all ranks have agreed that it is free.

    Parameters
    ----------
    file : localckpt.VecFile
        Open for writing.
    recycle : bool
        Whether datasets that nobody holds are written over.
    limit : float, optional
        The bytes that each rank may use, the same on every rank.
    """

    def __init__(self, file, recycle, limit=inf):
        self.file = file
        self.recycle = recycle
        self.limit = limit
        self.taken = 0
        self.broken = None  # why nothing is written here any more, on every rank
        self.retired = False
        self.live = 0
        self.count: defaultdict[str, int] = defaultdict(int)  # datasets of a key, the same on all ranks
        self.agreed: defaultdict[str, list] = defaultdict(list)  # those that all ranks know to be free
        self.dropped: defaultdict[str, set] = defaultdict(set)  # those that this rank no longer needs

    def claim(self, key, nbytes):
        """The number of a free dataset, of so many bytes here. Collective on the file's communicator."""
        agreed, dropped = self.agreed[key], self.dropped[key]
        if not agreed and self.recycle:
            free = bytearray(self.count[key])
            for number in list(dropped):  # which the garbage collector adds to
                free[number] = 1
            self.file.agree(free)
            agreed.extend(number for number in range(len(free) - 1, -1, -1) if free[number])
            dropped.difference_update(agreed)
        if not agreed:
            new = more(self.count[key])
            fits = bytearray(self.taken + n * nbytes <= self.limit for n in (new, 1))
            self.file.agree(fits)
            if not fits[1]:
                raise TransferError(
                    f"{os.strerror(errno.EDQUOT)}, the limit of {self.limit:.0f} bytes for each rank is reached",
                    self.file.path,
                    key,
                    errno=errno.EDQUOT,
                )
            new = new if fits[0] else 1
            self.taken += new * nbytes
            agreed.extend(range(self.count[key] + new - 1, self.count[key] - 1, -1))
            self.count[key] += new
        return agreed.pop()

    def release(self, key, number):
        """Note that this rank no longer needs a dataset. Not collective."""
        self.live -= 1
        self.dropped[key].add(number)
        if self.retired and self.live == 0:
            self.file.drop()

    def write(self, key, array):
        """Store `array` in a dataset of its own. Collective on the file's communicator.

        Returns
        -------
        ViewerRow

        Raises
        ------
        TransferError
        """
        if self.broken is not None:
            raise copy(self.broken)
        try:
            number = self.claim(key, array.nbytes)
            self.live += 1
            row = ViewerRow(self, key, number)
            self.file.write_array(f"{key}_{number}", array.reshape(-1))  # one piece to MPI-IO
            if not self.recycle:
                self.file.flush()  # a file to keep is an HDF5 file whatever happens next
        except OSError as exc:
            self.broken = copy(exc)
            raise
        return row

    def retire(self):
        """Nothing more will be written: the file goes with its last row. Not collective."""
        self.retired = True
        if self.live == 0:
            self.file.drop()
