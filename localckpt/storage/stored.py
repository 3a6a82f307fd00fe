"""One stored array: how it is read back, verified, and read ahead of time."""

import weakref
from collections.abc import Callable
from math import inf, prod
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_128_digest

from localckpt._errors import ChecksumError, LayoutError, TransferError
from localckpt._rows import Row
from localckpt.storage import single

if TYPE_CHECKING:
    from localckpt.storage.engines import ViewerRow
    from localckpt.storage.store_file import StoreFile

__all__ = ["Stored", "prefetch", "refuse_to_copy"]

MAP_FROM = 1 << 18  # bytes from which mapping a row is faster than reading it (benchmarks/test_iteration.py)
VERIFIED_FOR = 1.0  # seconds in which once is enough: the tape restores a checkpoint several times within a step
PREFETCH = 1 << 23  # bytes that the disk is asked for ahead of a sweep in reverse (benchmarks/test_cgroup.py)
PAGE = 4096  # bytes: the least that a disk reads


def refuse_to_copy(self: object, protocol: int) -> NoReturn:
    """Serve as ``__reduce_ex__`` of objects that neither pickle nor deepcopy can make again."""
    raise TypeError(
        "a checkpoint belongs to a file that this process has open and cannot be copied or pickled: "
        "restore it and copy the result"
    )


class Stored:
    """An array on disk, which stays there as long as somebody holds this object.

    Attributes
    ----------
    file : localckpt.storage.store_file.StoreFile
        The file that it is in.
    row : localckpt._rows.Row or localckpt.storage.engines.ViewerRow
        Its place in the file.
    key : str
        The key that it was stored under, for messages.
    nbytes : int
        On disk.
    valid_nbytes : int
        The number of bytes, from the first on, that are hashed and verified.
    digest : bytes
        The hash of these bytes.
    rounded : bool
        Whether it is on disk in single precision, and comes back in double.
    verified_at : float
        When the array was last read back and verified, as :func:`time.monotonic` says.
    previous : callable
        A weak reference to the array that was stored before this one.
    wide : callable
        A weak reference to a copy in memory of a rounded array, widened.
    """

    __slots__ = (
        "file",
        "row",
        "key",
        "nbytes",
        "valid_nbytes",
        "digest",
        "verified_at",
        "previous",
        "rounded",
        "wide",
        "__weakref__",
    )

    def __init__(
        self,
        file: "StoreFile",
        row: "Row | ViewerRow",
        key: str,
        nbytes: int,
        valid_nbytes: int,
        digest: bytes,
        previous: "Callable[[], Stored | None]" = lambda: None,
        rounded: bool = False,
    ) -> None:
        self.file = file
        self.row: Any = row  # prefetch() is for direct rows only
        self.key = key
        self.nbytes = nbytes
        self.valid_nbytes = valid_nbytes
        self.digest = digest
        self.verified_at = -inf
        self.previous = previous
        self.rounded = rounded
        self.wide: Callable[[], Row | None] = lambda: None

    def load(
        self, shape: tuple[int, ...] | None, dtype: np.dtype | None, out: NDArray[Any] | None, now: float
    ) -> tuple[NDArray[Any], bool, bool]:
        """Read the array back, by this rank alone. Not collective.

        Parameters are those of :meth:`localckpt.storage.store.Store.get`, and the time (:func:`time.monotonic`).

        Returns
        -------
        array : numpy.ndarray
        mapped : bool
            Whether its bytes come from the disk only when somebody looks at them.
        verified : bool
            Whether they were read and verified now; not if that was done within the last second.

        Raises
        ------
        ChecksumError, LayoutError, TransferError
        """
        row = self.row
        if not isinstance(row, Row):
            array = self.destination(shape, dtype, out)
            row.read(self.landing(array))  # VecFile verifies it
            self.widen(array)
            return array, False, False
        verify = now - self.verified_at > VERIFIED_FOR
        if verify and row.on_disk(self.nbytes):
            prefetch(self)
        mapping = None
        if out is None and self.exact_nbytes >= MAP_FROM:
            if self.rounded:
                wide = self._map_wide(row, shape, dtype, verify, now)
                if wide is not None:
                    return wide, True, self.verified_at == now
            else:
                mapping = self._map(row, shape, dtype)
        if mapping is None:
            array = self.destination(shape, dtype, out)
            row.read(self.landing(array))
        else:
            array = mapping
        if verify:
            self.verify(self.landing(array), now)
        self.widen(array)
        return array, mapping is not None, verify

    @property
    def exact_nbytes(self) -> int:
        """int: bytes of the array that is stored, rounded or not."""
        return 2 * self.nbytes if self.rounded else self.nbytes

    def verify(self, array: NDArray[Any], now: float) -> None:
        """Compare the bytes of an array that was read with the hash of those that were stored. Not collective.

        Raises
        ------
        ChecksumError
        """
        valid_part: Any = array.reshape(-1).view(np.uint8)[: self.valid_nbytes]
        if xxh3_128_digest(valid_part) != self.digest:
            raise ChecksumError(
                "the bytes read differ from those stored", self.file.path, self.key, self.file.comm.rank
            )
        self.verified_at = now

    def destination(
        self, shape: tuple[int, ...] | None, dtype: np.dtype | None, out: NDArray[Any] | None
    ) -> NDArray[Any]:
        """Return the array to fill: `out` or a new one. Not collective.

        Raises
        ------
        LayoutError
            If it has not the size of the stored array, or, where that was rounded, other numbers.
        """
        array = np.empty(shape or (), dtype) if out is None else out
        if array.nbytes != self.exact_nbytes:
            reason = f"{self.exact_nbytes} bytes are stored, the array to read them into has {array.nbytes}"
        elif self.rounded and not single.can_be_rounded(array.dtype):
            reason = f"numbers that were rounded to single precision are not read into an array of {array.dtype}"
        else:
            return array
        raise LayoutError(reason, self.file.path, self.key, self.file.comm.rank)

    def landing(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return what the row is read into: the array, or the part of it for its rounded numbers. Not collective."""
        return single.landing(array) if self.rounded else array

    def widen(self, array: NDArray[Any]) -> None:
        """Make the array, whose :meth:`landing` was filled, what it is to be. Not collective."""
        if self.rounded:
            single.widen(array)

    def _map(self, row: Row, shape: tuple[int, ...] | None, dtype: np.dtype | None) -> NDArray[Any] | None:
        """Return the row's bytes as an array without reading them, or None if they have to be read."""
        if shape is None or dtype is None or self.nbytes != prod(shape) * dtype.itemsize:
            return None  # for destination() to refuse
        if row.offset % dtype.itemsize:
            return None  # NumPy is slow with unaligned numbers, and some CPUs refuse them
        try:
            return row.map(shape, dtype)
        except TransferError:  # the system gives each process a limited number of mappings
            return None

    def _map_wide(
        self, row: Row, shape: tuple[int, ...] | None, dtype: np.dtype | None, verify: bool, now: float
    ) -> NDArray[Any] | None:
        """Return a mapping of a widened copy in memory, or None if the array has to be read and widened."""
        if shape is None or dtype not in single.SINGLE or self.exact_nbytes != prod(shape) * dtype.itemsize:
            return None  # for destination() to refuse
        if row.offset % single.SINGLE[dtype].itemsize:
            return None
        try:
            copy = self.wide()
            if copy is None:
                narrow = row.map(shape, single.SINGLE[dtype])
                if verify:
                    self.verify(narrow, now)
                copies = self.file.wide_copies
                if self.exact_nbytes not in copies:
                    copies[self.exact_nbytes] = single.WideCopies(self.exact_nbytes)
                copy = copies[self.exact_nbytes].copy(narrow)
                self.wide = weakref.ref(copy)
            return copy.map(shape, dtype)
        except ChecksumError:
            raise
        except OSError:  # no files in memory, or no memory
            return None

    __reduce_ex__ = refuse_to_copy  # type: ignore[assignment]


def prefetch(stored: Stored | None) -> None:
    """Have the system read ahead for a sweep in reverse. Not collective.

    The sweep asks for this array next and then for those stored before it, the latest one first.
    """
    remaining = PREFETCH
    while stored is not None and remaining > 0:
        if stored.nbytes:  # a length of 0 would mean the rest of the file
            stored.row.prefetch(stored.nbytes)
        remaining -= max(stored.nbytes, PAGE)  # small arrays share pages, and each costs a call
        stored = stored.previous()
