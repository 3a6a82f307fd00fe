"""Arrays that are stored in single precision: rounded on their way to the disk, widened on their way back.

Both go in pieces through a small buffer. On the way to the disk no copy of a whole array has to be in memory.
"""

import errno
import os
from collections import deque
from collections.abc import Iterator
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_128

from localckpt._descriptor import Descriptor
from localckpt._rows import Pool, Row

__all__ = ["Rounded", "WideCopies", "can_be_rounded", "landing", "widen"]

SINGLE = {np.dtype(np.float64): np.dtype(np.float32), np.dtype(np.complex128): np.dtype(np.complex64)}
PAGE = 4096  # bytes; a multiple of it is one of the size of an array's numbers, too
KEPT = 3  # copies that stay in memory: a timestep of the tape restores so many arrays in turns
PIECE = 1 << 16  # numbers, of 256 KiB in single precision: the buffer stays in a core's cache


def can_be_rounded(dtype: np.dtype[Any]) -> bool:
    """Whether there are numbers of half the size for these: not for integers, nor for single precision itself."""
    return dtype in SINGLE


class Rounded:
    """An array in single precision, which exists only piece by piece. To an engine it is the array to store.

    Parameters
    ----------
    array : numpy.ndarray
        C-contiguous, of a type that :func:`can_be_rounded`. Not copied.
    valid : int, optional
        The number of entries along the first axis that matter. Default: all.

    Attributes
    ----------
    dtype : numpy.dtype
    size, nbytes : int
    valid_nbytes : int
        Bytes of the entries that matter.
    digest : bytes
        The hash of these bytes, once :meth:`fits` has computed it or somebody who knows it has set it.
    """

    __slots__ = ("dtype", "size", "nbytes", "valid_nbytes", "digest", "_reals", "_whole")

    def __init__(self, array: NDArray[Any], valid: int | None = None) -> None:
        self.dtype = SINGLE[array.dtype]
        self.size = array.size
        self.nbytes = array.size * self.dtype.itemsize
        self.valid_nbytes = self.nbytes if valid is None else array[:valid].size * self.dtype.itemsize
        self.digest = b""
        self._reals = array.reshape(-1).view(array.real.dtype)  # of a complex number, both parts
        self._whole: NDArray[Any] | None = None

    def pieces(self) -> Iterator[NDArray[np.float32]]:
        """The rounded numbers, in order. Each piece is overwritten by the next one."""
        buffer = np.empty(min(PIECE, self._reals.size), np.float32)
        for start in range(0, self._reals.size, PIECE):
            exact = self._reals[start : start + PIECE]
            piece = buffer[: exact.size]
            with np.errstate(all="ignore"):  # values in a halo that does not matter may be anything
                np.copyto(piece, exact, casting="same_kind")
            yield piece

    def whole(self) -> NDArray[Any]:
        """All rounded numbers in one array, which is made once."""
        if self._whole is None:
            self._whole = np.empty(self.size, self.dtype)
            reals, start = self._whole.view(np.float32), 0
            for piece in self.pieces():
                reals[start : start + piece.size] = piece
                start += piece.size
        return self._whole

    def fits(self) -> bool:
        """Compute :attr:`digest`, and whether no entry that matters is beyond the range of single precision.

        Infinity and NaN are in that range: they stay what they are.
        """
        hashed = xxh3_128()
        start, stop = 0, self.valid_nbytes // 4
        for piece in self.pieces():
            valid: Any = piece[: max(0, stop - start)]
            infinite = np.isinf(valid)
            if infinite.any() and not np.isinf(self._reals[start : start + valid.size][infinite]).all():
                return False
            hashed.update(valid)
            start += PIECE
        self.digest = hashed.digest()
        return True


def landing(array: NDArray[Any]) -> NDArray[Any]:
    """The part of an array that its rounded numbers are read into, before :func:`widen`: the second half.

    Raises
    ------
    ValueError
        If the array is not C-contiguous.
    """
    if not array.flags.c_contiguous:
        raise ValueError("the array to fill is not C-contiguous")
    return array.reshape(-1).view(SINGLE[array.dtype])[array.size :]


def widen(array: NDArray[Any]) -> None:
    """Make all numbers of an array those in its :func:`landing`.

    In order, the first number first: the place of a wide number is never beyond that of the single one.
    """
    narrow = landing(array).view(np.float32)
    wide = array.reshape(-1).view(array.real.dtype)
    buffer = np.empty(min(PIECE, wide.size), np.float32)
    for start in range(0, wide.size, PIECE):
        piece = buffer[: min(PIECE, wide.size - start)]
        piece[:] = narrow[start : start + PIECE]  # a copy, because what is written now may lie over it
        wide[start : start + PIECE] = piece


class WideCopies:
    """Widened arrays of one size in memory, of which private mappings are made. Not collective.

    The tape restores an array several times in a timestep, and to widen it takes much longer than to map it
    (benchmarks/test_precision.py).

    Parameters
    ----------
    nbytes : int
        Of a widened array.

    Raises
    ------
    OSError
        If this system has no files in memory.
    """

    def __init__(self, nbytes: int) -> None:
        if not hasattr(os, "memfd_create"):
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        number = os.memfd_create("localckpt")
        try:
            self._file = Descriptor(f"/proc/self/fd/{number}", os.O_RDWR)
        finally:
            os.close(number)
        self._pool = Pool(self._file, True, "in memory")
        self._offsets = count(0, -(-nbytes // PAGE) * PAGE)
        self._recent: deque[Row] = deque(maxlen=KEPT)
        self._process = os.getpid()

    def copy(self, narrow: NDArray[Any]) -> Row:
        """Widen an array into memory, for :meth:`localckpt._rows.Row.map`. The last few stay if nobody holds them.

        Raises
        ------
        OSError
            If there is no memory, or in a forked child, whose parent has the same files.
        """
        if os.getpid() != self._process:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        row = self._pool.claim()
        while row is None:
            self._pool.add(next(self._offsets), PAGE, 1)
            row = self._pool.claim()
        reals, offset = narrow.reshape(-1).view(np.float32), row.offset
        for start in range(0, reals.size, PIECE):
            piece = reals[start : start + PIECE].astype(np.float64)
            if os.pwrite(self._file.fileno(), piece.data, offset) < piece.nbytes:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            offset += piece.nbytes
        self._recent.append(row)
        return row
