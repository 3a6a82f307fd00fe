"""How a store's arrays get into its file and back: one protocol, :class:`Engine`, and two engines.

:class:`DirectEngine` moves bytes by ``pwrite`` and ``pread``, :class:`ViewerEngine` through HDF5, MPI-IO and
PETSc's viewer. Both write files that ``VecLoad``, h5py and h5dump read.
"""

import errno
import os
from abc import ABC, abstractmethod
from collections import defaultdict
from copy import copy
from math import inf
from typing import Any, Literal

from mpi4py import MPI
from numpy.typing import NDArray
from petsc4py import PETSc

from localckpt._collective import interrupts_held, raise_everywhere
from localckpt._errors import LayoutError, LostCheckpointError, TransferError
from localckpt._rows import Pool, Row
from localckpt._vecfile import VecFile
from localckpt.storage.nodes import node_comm
from localckpt.storage.single import Rounded

__all__ = [
    "ENGINES",
    "DirectEngine",
    "Engine",
    "EngineName",
    "ViewerEngine",
    "ViewerRow",
    "choose_engine",
    "requested_engine",
]

EngineName = Literal["direct", "viewer"]


class Engine(ABC):
    """Puts the arrays of a :class:`~localckpt.storage.store.Store` into one file: :meth:`prepare`, then :meth:`write`.

    All ranks of the file save in the same sequence: same keys, on each rank the same size for each key. They
    drop arrays when they like: nothing about a dropped row is collective.

    Parameters
    ----------
    file : localckpt.VecFile
        Open for writing.
    recycle : bool
        Whether rows that nobody holds are written over.
    limit : float, optional
        Bytes that each rank may use, the same on every rank.

    Attributes
    ----------
    shared : bool
        Whether the file has several ranks.
    bytes_taken : int
        Bytes on disk, those reserved for more arrays included, for each rank; where ranks differ, their mean.
    full : OSError or None
        Why the file gets no new rows, on every rank of it; rows that become free are still used. Whoever has made room
        sets it to None, on every rank. Only the direct engine knows such a state.
    broken : OSError or None
        Why this rank no longer writes to the file.
    """

    def __init__(self, file: VecFile, recycle: bool, limit: float = inf) -> None:
        self.file = file
        self.recycle = recycle
        self.limit = limit
        self.shared = file.comm.size > 1
        self.bytes_taken = 0
        self.full: OSError | None = None
        self.broken: OSError | None = None
        self._flag = bytearray(1)  # made once: a lack of memory must not keep a rank from an agreement

    def agree(self, flag: bool) -> bool:
        """Whether `flag` is set on all ranks of the file. Collective on the file's communicator.

        A file that gets no new rows is one whose ranks agree no more: then, whether it is set on this rank.
        """
        if not self.shared or self.full is not None:
            return flag
        self._flag[0] = flag
        self.file.agree(self._flag)
        return bool(self._flag[0])

    @abstractmethod
    def prepare(self, key: str, array: NDArray[Any] | Rounded, error: Exception | None) -> Exception | None:
        """Begin a save with the other ranks of the file, if :attr:`shared`. Collective on the file's communicator.

        Parameters
        ----------
        key : str
        array : numpy.ndarray or localckpt.storage.single.Rounded
            The array to store. Where `error` is given it may be anything.
        error : Exception or None
            Why this rank cannot take part in the save, found out before.

        Returns
        -------
        Exception or None
            With this the save has to end on this rank: `error`, or where writing is collective another rank's.

        Raises
        ------
        LayoutError
            If this rank's array has not the size that `key` began with, and ranks compare notes in this save.
        LostCheckpointError
            If this is so on another rank, or another rank came with an error.
        TransferError
            If there is no room for new rows. On every rank, once.
        """

    @abstractmethod
    def write(self, key: str, array: NDArray[Any] | Rounded) -> "Row | ViewerRow":
        """Store an array in a row of its own, after :meth:`prepare`.

        Collective on the file's communicator with the viewer engine, not collective with the direct one.

        Returns
        -------
        Row or ViewerRow
            Its method ``read(array)`` fills an array, as collectively as this method.
            The row is free again when nobody holds it.

        Raises
        ------
        LayoutError
            If the array has not the size that `key` began with.
        TransferError
            If it cannot be written, and then at every later call: on this rank or, where writing is collective, on all.
        """

    def _require_size(self, key: str, array: NDArray[Any] | Rounded, nbytes: int) -> None:
        """Raise LayoutError if the array to store has not the size that the key began with. Not collective."""
        if array.nbytes != nbytes:
            raise LayoutError(
                f"the array to store has {array.nbytes} bytes, rows of this key have {nbytes}",
                self.file.path,
                key,
                self.file.comm.rank,
            )

    @abstractmethod
    def retire(self) -> None:
        """Write no more: the file is closed when this engine and its last row are dropped. Not collective.

        Raises
        ------
        StorageError
            If it cannot be closed.
        """


def rows_to_add(rows: int) -> int:
    """Return how many rows to add to so many: ranks agree seldom, and little space is reserved in vain."""
    return min(max(4, rows // 4), 250)


class DirectEngine(Engine):
    """Rows of contiguous datasets, moved by ``pwrite`` and ``pread`` without MPI or HDF5.

    Each rank moves its own part of a row and chooses the row by itself. Where several ranks
    share the file they agree, once in so many saves of a key, that each of them has rows
    left until the next agreement: drops, repeats and garbage collection differ from rank
    to rank, the sequence of saves does not. Once there is no room for new rows, which all
    ranks learn together, they agree no more: each writes to the rows that become free.

    Parameters and attributes are those of :class:`Engine`.
    """

    def __init__(self, file: VecFile, recycle: bool, limit: float = inf) -> None:
        super().__init__(file, recycle, limit)
        self.pools: dict[str, Pool] = {}
        self.datasets: set[str] = set()
        self._flags = bytearray(2)  # made once: a lack of memory must not keep a rank from an agreement

    def prepare(self, key: str, array: NDArray[Any] | Rounded, error: Exception | None) -> Exception | None:
        self.reserve(key, array, error is None)
        return error

    def reserve(self, key: str, array: NDArray[Any] | Rounded, this_rank_can_save: bool = True) -> None:
        """Have rows for the next saves of `key`. Collective on the file's communicator.

        Raises
        ------
        LayoutError
            If this rank's array has not the size of the rows.
        LostCheckpointError
            If this or another rank cannot save, or another rank's array has not the size of the rows.
        TransferError
            If there is no room, on every rank, once.
        """
        if self.full is not None:
            return
        with interrupts_held():
            pool = self.pools.get(key) or self.add_rows(key, array)
            if pool.saves_until_agreement == 0:
                wanted = rows_to_add(pool.rows)
                self._flags[:] = pool.free >= wanted, this_rank_can_save and array.nbytes == pool.nbytes
                self.file.agree(self._flags)
                enough_rows, all_can_save = self._flags
                if not all_can_save:
                    self._require_size(key, array, pool.nbytes)
                    raise LostCheckpointError("another rank could not store a checkpoint", self.file.path, key)
                if enough_rows:
                    pool.saves_until_agreement = wanted
                else:
                    self.add_rows(key, array)  # perhaps fewer than wanted; the next agreement comes after as many saves
            pool.saves_until_agreement -= 1

    def add_rows(self, key: str, array: NDArray[Any] | Rounded) -> Pool:
        """Add rows to a key, their disk space reserved. Collective on the file's communicator.

        Raises
        ------
        TransferError
            If there is no room for even one, on every rank.
        """
        if self.full is not None:
            raise copy(self.full)
        with interrupts_held():
            pool = self.pools.get(key) or Pool(self.file.descriptor, self.recycle, key)
            dataset = self._new_dataset_name(key)
            ranks = self.file.comm.size
            try:
                first, stride, rows, checksums = self._create_rows(dataset, rows_to_add(pool.rows), array)
                if not self.recycle:
                    self.file.flush()  # a file to keep is an HDF5 file whatever happens next
            except OSError as exc:
                self.full = copy(exc)  # without the objects that its frames hold
                raise
            self.datasets.add(dataset)
            self.bytes_taken += stride * rows // ranks
            self.pools[key] = pool
            pool.nbytes = array.nbytes
            pool.add(first, stride, rows, checksums, 8 * ranks)
            pool.saves_until_agreement = rows
            return pool

    def _new_dataset_name(self, key: str) -> str:
        name, number = key, 0
        while name in self.datasets:  # the key's own, or another key's that is called so
            number += 1
            name = f"{key}.{number}"
        return name

    def _create_rows(self, dataset: str, rows: int, array: NDArray[Any] | Rounded) -> tuple[int, int, int, int | None]:
        """Make a dataset of so many rows or, if there is no room for them, of one."""
        room = (self.limit - self.bytes_taken) * self.file.comm.size
        checksums = not self.recycle
        try:
            return self.file.create_rows(dataset, rows, array, room=room, checksums=checksums)
        except OSError as exc:
            if exc.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
        return self.file.create_rows(dataset, 1, array, room=room, checksums=checksums)

    def write(self, key: str, array: NDArray[Any] | Rounded) -> Row:
        if self.broken is not None:
            raise copy(self.broken)
        pool = self.pools.get(key) or self.add_rows(key, array)
        self._require_size(key, array, pool.nbytes)
        row = pool.claim() or self.add_rows(key, array).claim()
        assert row is not None
        try:
            if not isinstance(array, Rounded):
                row.write(array)
            elif self.recycle:
                row.write_pieces(array.pieces())
            else:  # a row of a file to keep has a checksum, which takes all bytes at once
                row.write(array.whole())
        except OSError as exc:
            self.broken = copy(exc)
            raise
        return row

    def retire(self) -> None:
        self.file.drop()  # rows need no more than the descriptor


class ViewerRow:
    """A dataset of the viewer engine, free again when nobody holds this object."""

    __slots__ = ("engine", "key", "number")

    def __init__(self, engine: "ViewerEngine", key: str, number: int) -> None:
        self.engine, self.key, self.number = engine, key, number

    def read(self, array: NDArray[Any]) -> None:
        """Fill an array with the dataset's values, verified. Collective on the file's communicator.

        Raises
        ------
        StorageError
            On every rank.
        """
        self.engine.file.read_array(f"{self.key}_{self.number}", array)

    def __del__(self) -> None:
        self.engine.release(self.key, self.number)


class ViewerEngine(Engine):
    """A dataset for each array, through HDF5, MPI-IO and PETSc's viewer.

    Every save and restore is collective on the file's communicator. Saves come in the same
    sequence on all its ranks, but rows die when each rank's interpreter gets to it: one is
    used again only once all ranks have agreed that it is free.

    Parameters and attributes are those of :class:`Engine`.
    """

    def __init__(self, file: VecFile, recycle: bool, limit: float = inf) -> None:
        super().__init__(file, recycle, limit)
        self.retired = False
        self.held = 0  # rows that this rank holds
        # For each key: the bytes of an array on this rank; how many datasets there are; which of them all ranks know to
        # be free; which of them this rank alone no longer needs.
        self.sizes: dict[str, int] = {}
        self.datasets: defaultdict[str, int] = defaultdict(int)
        self.free: defaultdict[str, list[int]] = defaultdict(list)
        self.released: defaultdict[str, set[int]] = defaultdict(set)

    def prepare(self, key: str, array: NDArray[Any] | Rounded, error: Exception | None) -> Exception | None:
        try:
            if error is None:
                self._require_size(key, array, self.sizes.setdefault(key, array.nbytes))
                if isinstance(array, Rounded):
                    array.whole()  # which write() needs: if there is no memory for it, the other ranks learn that here
        except Exception as exc:
            error = exc
        try:
            raise_everywhere(self.file.comm, error)
        except Exception as exc:
            return exc
        return None

    def claim(self, key: str, nbytes: int) -> int:
        """Return the number of a free dataset, of so many bytes here. Collective on the file's communicator.

        Raises
        ------
        TransferError
            If the limit is reached, on every rank.
        """
        free = self.free[key]
        if not free and self.recycle:
            free.extend(self._agree_on_released(key))
        if not free:
            free.extend(self._add_datasets(key, nbytes))
        return free.pop()

    def _agree_on_released(self, key: str) -> list[int]:
        """Return the datasets that no rank needs any more, the highest number first. Collective."""
        flags = bytearray(self.datasets[key])
        for number in list(self.released[key]):  # a copy: the garbage collector may add to the set meanwhile
            flags[number] = 1
        self.file.agree(flags)
        free = [number for number in range(len(flags) - 1, -1, -1) if flags[number]]
        self.released[key].difference_update(free)
        return free

    def _add_datasets(self, key: str, nbytes: int) -> range:
        """Return the numbers of new datasets, as many as the limit allows, the highest first. Collective."""
        there, added = self.datasets[key], rows_to_add(self.datasets[key])
        fits = bytearray(self.bytes_taken + number * nbytes <= self.limit for number in (added, 1))
        self.file.agree(fits)
        all_fit, one_fits = fits
        if not one_fits:
            raise TransferError(
                f"{os.strerror(errno.EDQUOT)}, the limit of {self.limit:.0f} bytes for each rank is reached",
                self.file.path,
                key,
                errno=errno.EDQUOT,
            )
        added = added if all_fit else 1
        self.bytes_taken += added * nbytes
        self.datasets[key] += added
        return range(there + added - 1, there - 1, -1)

    def release(self, key: str, number: int) -> None:
        """Note that this rank no longer needs a dataset. Not collective."""
        self.held -= 1
        self.released[key].add(number)
        if self.retired and self.held == 0:
            self.file.drop()

    def write(self, key: str, array: NDArray[Any] | Rounded) -> ViewerRow:
        if self.broken is not None:
            raise copy(self.broken)
        self._require_size(key, array, self.sizes.setdefault(key, array.nbytes))
        try:
            number = self.claim(key, array.nbytes)
            self.held += 1
            row = ViewerRow(self, key, number)
            whole = array.whole() if isinstance(array, Rounded) else array
            self.file.write_array(f"{key}_{number}", whole.reshape(-1))  # flat: one piece to MPI-IO
            if not self.recycle:
                self.file.flush()  # a file to keep is an HDF5 file whatever happens next
        except OSError as exc:
            self.broken = copy(exc)
            raise
        return row

    def retire(self) -> None:
        self.retired = True
        if self.held == 0:
            self.file.drop()


ENGINES: dict[EngineName, type[Engine]] = {"direct": DirectEngine, "viewer": ViewerEngine}


def requested_engine(engine: str | None = None) -> EngineName | None:
    """Return `engine`, by default the value of the PETSc option ``-localckpt_engine``, or None. Not collective.

    Raises
    ------
    ValueError
        If it is neither "direct" nor "viewer".
    """
    requested = engine or PETSc.Options("localckpt_").getString("engine", "") or None
    match requested:
        case None | "direct" | "viewer":
            return requested
    raise ValueError(f"{'engine' if engine else '-localckpt_engine'} is 'direct' or 'viewer', not {requested!r}")


def choose_engine(comm: MPI.Intracomm) -> EngineName:
    """Return the engine for files of `comm`. Collective on `comm`.

    The one that ``-localckpt_engine`` requests (:func:`requested_engine`). By default "direct" where the ranks of
    `comm` are on one node and "viewer" where they are not, whatever the filesystem: nodes that have
    different caches of one file must not write to it without MPI-IO.
    """
    on_one_node = comm.allreduce(node_comm(comm).size == comm.size, MPI.LAND)
    return requested_engine() or ("direct" if on_one_node else "viewer")
