"""Arrays on disk, each content stored once, in as many directories as it takes."""

import gc
import logging
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from copy import copy
from errno import EDQUOT, ENOSPC
from math import inf
from time import monotonic
from typing import Any

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray
from xxhash import xxh3_128_digest

from localckpt import _petsc  # noqa: F401  (first: reports a PETSc other than the one of the build)
from localckpt._collective import interrupts_held, raise_everywhere
from localckpt._errors import LostCheckpointError, StorageError
from localckpt.storage import run_directories
from localckpt.storage.content_index import ContentIndex
from localckpt.storage.directories import Directory, Tier, choose_tiers
from localckpt.storage.engines import Engine, EngineName, choose_engine
from localckpt.storage.shared_directories import make_next_directory
from localckpt.storage.single import Rounded, can_be_rounded
from localckpt.storage.store_file import StoreFile
from localckpt.storage.stored import Stored, refuse_to_copy
from localckpt.storage.summary import Summary

__all__ = ["Store", "Stored", "Summary"]

log = logging.getLogger("localckpt")
_stores: "weakref.WeakSet[Store]" = weakref.WeakSet()
_warned_of_range = False  # once is enough


def _renew_locks() -> None:
    """Give each store of a forked child a new lock: a thread that held the old one is not in the child."""
    for store in list(_stores):
        store._lock = threading.RLock()


os.register_at_fork(after_in_child=_renew_locks)


class Store:
    """Arrays on disk in one file per communicator. Not collective to make.

    :meth:`put` stores an array and returns a token, :meth:`get` reads the array back. Dropping the token frees
    the array's space, which is never collective.

    A rank that cannot write to its file goes on with a file of its own in the next tier. A file
    of several ranks is full for all of them at the same time.

    Parameters
    ----------
    comm : mpi4py.MPI.Intracomm
        Saving and reading communicate on it, if at all, and on no other communicator.
    path : str
        The file, the same on every rank of `comm`.
    cleanup : bool, optional
        Unlink the file as soon as every rank has it open, so that its disk space is freed however
        the run ends, and use the space of dropped arrays again. False: keep everything that was ever stored.
    engine : {"direct", "viewer"}, optional
        See :mod:`localckpt.storage.engines`.
    limit : float, optional
        Bytes that each rank may use in this file, the same on every rank of `comm`.
    tiers : sequence of localckpt.storage.directories.Tier, optional
        Where to go on, one after the other, when this file is full or fails.
    later_engine : {"direct", "viewer"}, optional
        The engine in these tiers. Default: :func:`localckpt.storage.engines.choose_engine`.
    collect : callable, optional
        Called once when a file is full, to drop arrays that only garbage refers to.

    Attributes
    ----------
    failure : LostCheckpointError or None
        Why an array was lost. Once set, every :meth:`put` and :meth:`get` raises it.
    collective : bool
        Whether :meth:`get` is collective on `comm`.
    """

    def __init__(
        self,
        comm: MPI.Intracomm,
        path: str,
        cleanup: bool = True,
        engine: EngineName = "direct",
        *,
        limit: float = inf,
        tiers: Sequence[Tier] = (),
        later_engine: EngineName | None = None,
        collect: Callable[[], Any] = gc.collect,
    ) -> None:
        self.comm = comm
        self.path = path
        self.cleanup = cleanup
        self.failure: LostCheckpointError | None = None
        self._tiers = list(tiers)
        self._untried_tiers = self._tiers
        self._later_engine = later_engine
        self._collect = collect
        self._summary = Summary()
        self._index = ContentIndex()
        self._lock = threading.RLock()  # one thread at a time
        self._files = [StoreFile(comm, path, cleanup, engine, limit)]  # one for each tier so far, the current one last
        self.collective = self._files[0].collective
        _stores.add(self)

    @classmethod
    def temporary(
        cls,
        comm: MPI.Intracomm = MPI.COMM_SELF,
        directories: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
        *,
        ranks: int = 1,
    ) -> "Store":
        """Make a store in a new directory that is removed with it. Collective on `comm`.

        Parameters
        ----------
        comm : mpi4py.MPI.Intracomm, optional
            The ranks that share a file; by default each has its own.
        directories : str or sequence of str, optional
            Where to make the directory, and where to go on when the disk is full. Default: a node-local directory
            (:func:`localckpt.storage.directories.choose_directory`).
        ranks : int, optional
            How many ranks share what the PETSc option ``-localckpt_dir_limit`` gives each node.

        Returns
        -------
        Store

        Raises
        ------
        OSError, TypeError, ValueError
            On every rank of `comm`, if no directory can be made there or the arguments or options make no sense.
        """
        error = None
        try:
            tiers = choose_tiers(directories, ranks)
        except Exception as exc:
            error = exc
        raise_everywhere(comm, error)
        directory, tier = make_next_directory(comm, tiers)
        store = cls.inside(directory, comm, tier, tiers)
        if comm.rank == 0:
            weakref.finalize(store, run_directories.remove, directory)
        return store

    @classmethod
    def inside(
        cls,
        directory: str,
        comm: MPI.Intracomm,
        tier: Tier,
        tiers: Sequence[Tier],
        cleanup: bool = True,
        engine: EngineName | None = None,
        collect: Callable[[], Any] = gc.collect,
    ) -> "Store":
        """Make a store in an existing directory. Collective on `comm`.

        Parameters
        ----------
        directory : str
        comm : mpi4py.MPI.Intracomm
        tier : localckpt.storage.directories.Tier
            The one that the directory is in; see :func:`localckpt.storage.shared_directories.make_next_directory`.
        tiers : sequence of localckpt.storage.directories.Tier
            The tiers after that one.
        engine : {"direct", "viewer"}, optional
            In all tiers. Default: :func:`localckpt.storage.engines.choose_engine`.
        cleanup, collect
            As for :class:`Store`.

        Returns
        -------
        Store
        """
        chosen_engine = engine or choose_engine(comm)  # collective: before anything that could raise on one rank
        return cls(
            comm,
            os.path.join(directory, "current.h5"),
            cleanup,
            chosen_engine,
            limit=tier.limit,
            tiers=tiers,
            later_engine=engine,
            collect=collect,
        )

    def put(self, key: str, array: NDArray[Any], valid: int | None = None, *, single: bool = False) -> Stored:
        """Store an array; bytes that are on disk already are not written again.

        Collective on the store's communicator where that has several ranks.

        Parameters
        ----------
        key : str
            Arrays stored under one key have, on each rank, always the same shape and type.
        array : numpy.ndarray
            Of a Vec, its ``array_r``. Copied only if it is not C-contiguous.
        valid : int, optional
            The number of entries along the first axis that matter; those after them may come back as
            anything. Default: all.
        single : bool, optional
            Store float64 numbers as float32, and complex128 as complex64, each rounded to the nearest; the same on all
            ranks. An array of other numbers is stored exactly, and so is one with a finite value beyond the
            range of float32: on all ranks of the file, or, once that gets no new rows, on those that have such values.

        Returns
        -------
        Stored
            The token for :meth:`get`, the same for equal arrays.

        Raises
        ------
        LayoutError
            If the array has not the size that `key` began with.
        StorageError
            If no tier can store it, with the reason of the last one whose directory could be made.
        """
        with self._lock, interrupts_held():  # otherwise Ctrl-C could leave a row that nobody knows
            return self._put(key, array, valid, single)

    def _put(self, key: str, array: NDArray[Any], valid: int | None, single: bool) -> Stored:
        began = monotonic()
        # Other ranks may be waiting for this one: they learn of an error before it is raised.
        error: Exception | None = None
        rounded: Rounded | None = None
        try:
            if self.failure is not None:
                raise copy(self.failure)
            array = np.ascontiguousarray(array)  # a component that sub() gives of a vector is not
            valid_part: Any = array if valid is None else array[:valid]
            digest = xxh3_128_digest(valid_part)
            if single and can_be_rounded(array.dtype):
                rounded = self._round(key, array, valid, digest)
        except Exception as exc:
            error = exc
        summary = self._summary
        file = self._files[0]  # full or not: it may have free rows again
        while True:
            try:
                engine = file.engine or self._open(file)
                if single and not engine.agree(rounded is not None):  # ranks of a file use rows of one kind
                    rounded = None
                source = array if rounded is None else rounded
                row_key = key if rounded is None else f"{key}~{rounded.dtype}"
                if engine.shared:
                    error = engine.prepare(row_key, source, error)
                if error is not None:
                    raise error
                # Where writing is collective all ranks write: one that repeats itself would leave the others waiting.
                content = array.nbytes, digest, rounded is not None
                stored = None if file.collective else self._index.find(content)
                if stored is None:
                    row = engine.write(row_key, source)
                    valid_nbytes, hashed = valid_part.nbytes, digest
                    if rounded is not None:
                        valid_nbytes, hashed = rounded.valid_nbytes, rounded.digest
                        summary.rounded += rounded.nbytes
                    stored = Stored(
                        file, row, row_key, source.nbytes, valid_nbytes, hashed, file.latest, rounded is not None
                    )
                    reference = file.latest = weakref.ref(stored)
                    file.unsynced = True
                    if not file.collective:
                        self._index.add(content, reference)
                    summary.written += stored.nbytes
                else:
                    summary.repeats += 1
                break
            except LostCheckpointError:
                raise
            except OSError as exc:
                if self._make_room(file):
                    continue
                if error is not None:  # a rank that could not take part in the save: no reason to go on elsewhere
                    raise
                file = self._file_after(file, exc)
        summary.saves += 1
        summary.saved += stored.nbytes
        summary.saving += monotonic() - began
        return stored

    def _round(self, key: str, array: NDArray[Any], valid: int | None, digest: bytes) -> Rounded | None:
        """Return an array in single precision, or None if that has no such values. Not collective.

        `digest` is the hash of the exact bytes: what is on disk already was looked at before.
        """
        global _warned_of_range
        rounded = Rounded(array, valid)
        known = self._index.find((array.nbytes, digest, True))
        if known is not None:
            rounded.digest = known.digest
            return rounded
        if rounded.fits():
            return rounded
        if not _warned_of_range:
            _warned_of_range = True
            log.warning(
                "%s, rank %d: an array of %r has values beyond the range of single precision; such arrays are stored "
                "exactly",
                MPI.Get_processor_name(),
                MPI.COMM_WORLD.rank,
                key,
            )
        return None

    def get(
        self,
        stored: Stored,
        shape: tuple[int, ...] | None = None,
        dtype: np.dtype | None = None,
        *,
        out: NDArray[Any] | None = None,
    ) -> NDArray[Any]:
        """Read an array back.

        Collective on the store's communicator if :attr:`collective`.

        Parameters
        ----------
        stored : Stored
            From :meth:`put`.
        shape : tuple of int
        dtype : numpy.dtype
        out : numpy.ndarray, optional
            The array to fill, instead of a new one of that shape and dtype; of a Vec, its ``array_w``.

        Returns
        -------
        numpy.ndarray
            Writeable, and nobody else's.

        Raises
        ------
        ChecksumError
            If the bytes differ from those stored. Verified bytes are not verified again for a second.
        LayoutError
            If the array to fill has another size than the stored one or, where that was rounded, another type.
        StorageError
        """
        began = monotonic()
        if stored.file.collective:
            array = self._get_together(stored, shape, dtype, out)
            read = True
        else:
            if self.failure is not None:
                raise copy(self.failure)
            array, mapped, verified = stored.load(shape, dtype, out, began)
            if mapped:  # the disk may have failed since, and its bytes are looked at only later
                self._require_no_loss(stored.row.check)
            read = verified or not mapped
        summary = self._summary
        summary.restores += 1
        if read:
            summary.read += stored.nbytes
        summary.restoring += monotonic() - began
        return array

    def _get_together(
        self, stored: Stored, shape: tuple[int, ...] | None, dtype: np.dtype | None, out: NDArray[Any] | None
    ) -> NDArray[Any]:
        """Read an array back, verified. Collective on the file's communicator."""
        with interrupts_held():
            error = None
            try:
                if self.failure is not None:
                    raise copy(self.failure)
                array = stored.destination(shape, dtype, out)
                landing = stored.landing(array)
            except Exception as exc:
                error = exc
            raise_everywhere(stored.file.comm, error)
            stored.row.read(landing)
            stored.widen(array)
        return array

    def sync(self) -> None:
        """Make sure that everything stored so far can be read back. Not collective.

        On a network filesystem, and where disk space cannot be reserved, a write that failed
        may show only when one waits for the disk (``fsync``). Then this does wait: call it once per
        timestep. Otherwise it only asks the system, which takes microseconds.

        Raises
        ------
        LostCheckpointError
            If something was lost, and at every use of the store from then on.
        """
        with self._lock:
            for file in self._files:
                self._require_no_loss(file.sync)

    def _require_no_loss(self, check: Callable[[], None]) -> None:
        """Call something that raises if stored bytes are lost, which ends this store."""
        try:
            check()
        except StorageError as exc:
            self.failure = LostCheckpointError(
                f"checkpoints that were stored are lost, on {MPI.Get_processor_name()}: {exc.cause}",
                exc.file,
                exc.dataset,
                self.comm.rank,
                exc.errno,
            )
            raise copy(self.failure) from None

    def _open(self, file: StoreFile) -> Engine:
        engine = file.open()
        if file.tier not in self._summary.tiers:
            self._summary.tiers.append(file.tier)
        return engine

    def _make_room(self, file: StoreFile) -> bool:
        """Collect garbage once for each full file, on all its ranks; return whether that was done now.

        The arrays that fill it may belong to tapes that nobody needs any more.
        """
        engine = file.engine
        if engine is None or engine.full is None or file.garbage_collected:
            return False
        if engine.full.errno not in (ENOSPC, EDQUOT):
            return False
        file.garbage_collected = True
        engine.full = None
        with suppress(Exception):  # other ranks of the file go on to save, and would wait for this one
            self._collect()
        return True

    def _file_after(self, file: StoreFile, cause: OSError) -> StoreFile:
        """Return the file that takes the arrays that this one cannot, or raise the cause. Not collective."""
        position = self._files.index(file) + 1
        if position == len(self._files):
            self._files.append(self._open_next_tier(cause))
        return self._files[position]

    def _open_next_tier(self, cause: OSError) -> StoreFile:
        """Return this rank's own file in the first tier that takes one, or raise the last cause. Not collective."""
        tiers = list(self._untried_tiers)
        while tiers:
            path = None
            try:
                path, tier = make_next_directory(MPI.COMM_SELF, tiers, keep=not self.cleanup)
                directory = Directory.at(tier.path)
                file = StoreFile(
                    MPI.COMM_SELF,
                    os.path.join(path, "current.h5"),
                    self.cleanup,
                    self._later_engine or choose_engine(MPI.COMM_SELF),
                    tier.limit,
                )
                self._open(file)
            except OSError as exc:
                log.warning(
                    "%s: no checkpoints to %s: %s", MPI.Get_processor_name(), path or "the remaining directories", exc
                )
                if path is not None:
                    cause = exc
                    run_directories.remove(path)
                continue
            if self.cleanup:
                run_directories.remove(path)  # the file in it is unlinked
            log.warning(
                "%s: %s; checkpoints that do not fit there go to %s (%s, %.1f GB free)",
                MPI.Get_processor_name(),
                cause,
                directory.path,
                directory.filesystem,
                directory.free / 1e9,
            )
            self._untried_tiers = tiers
            return file
        raise cause

    def detach(self) -> None:
        """Make the file now and remove its directory, so that nothing stays however the process ends. Not collective.

        For a new store of one rank that is never retired.

        Raises
        ------
        OSError
            If no tier takes a file.
        """
        with self._lock:
            try:
                self._open(self._files[0])
            except OSError as exc:
                self._files = [self._open_next_tier(exc)]
            finally:
                run_directories.remove(os.path.dirname(self.path))

    @property
    def current_file(self) -> StoreFile:
        """StoreFile: the file, in the last tier reached so far, that takes new arrays now."""
        return self._files[-1]

    @property
    def summary(self) -> Summary:
        """Summary: how much went through all files of this store, on this rank. Not collective."""
        self._summary.live = sum(file.bytes_taken for file in self._files)
        self._summary.peak = max(self._summary.peak, self._summary.live)
        return self._summary

    def flush(self) -> None:
        """Make ordinary HDF5 files of everything stored so far. Collective on the store's communicator."""
        for file in self._files:
            file.flush()

    def retire(self) -> None:
        """Let each file go with the last array in it; the next array begins a new file. Not collective.

        Raises
        ------
        StorageError
            If a file that is to be kept cannot be closed.
        """
        with self._lock:
            self.summary  # noqa: B018  (notes the peak)
            files, self._files = self._files, self._files[:1]
            self._untried_tiers = self._tiers
            self._index.clear()
            error = None
            for file in files:
                try:
                    file.retire()
                except StorageError as exc:
                    error = error or exc
                    if self.cleanup:  # nobody will read this file
                        log.warning("%s: %s", MPI.Get_processor_name(), exc)
            if error is not None and not self.cleanup:
                raise error

    __reduce_ex__ = refuse_to_copy  # type: ignore[assignment]

    def __del__(self) -> None:
        if hasattr(self, "collective"):  # otherwise __init__ was not completed
            self.retire()
