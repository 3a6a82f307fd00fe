"""Arrays on disk, stored once however often they are saved."""

import gc
import os
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, field, replace
from errno import EDQUOT, ENOSPC
from math import inf, prod
from time import monotonic

import numpy as np
from mpi4py import MPI
from xxhash import xxh3_128_digest

from localckpt import _petsc  # noqa: F401  (before what would not load with another PETSc)
from localckpt._collective import interrupts_held, raise_everywhere
from localckpt._errors import ChecksumError, LayoutError, LostCheckpointError, StorageError, TransferError
from localckpt._vecfile import VecFile
from localckpt.storage import run_directories
from localckpt.storage.directories import Directory, choose_engine, choose_tiers, log, make_next_directory
from localckpt.storage.engines import DirectEngine, ViewerEngine

__all__ = ["Store", "Stored", "Summary"]

# Mapping a row beats reading it from about this size on (benchmarks/test_iteration.py).
MAP_FROM = 1 << 18
# The tape restores what it needs several times within a step: seconds in which once verified is enough.
RECENT = 1.0
# Bytes that the disk is asked for ahead of a sweep in reverse (benchmarks/test_cgroup.py).
AHEAD = 1 << 23


def not_copied(self, protocol):
    """For ``__reduce_ex__``: neither pickle nor deepcopy can make another one."""
    raise TypeError(
        "a checkpoint is a place in a file that this process has open: it cannot be copied or pickled; "
        "restore it, and copy what that gives"
    )


class Stored:
    """An array on disk, which stays there as long as somebody holds this."""

    __slots__ = ("store", "row", "key", "nbytes", "hashed", "digest", "verified", "before", "__weakref__")

    def __init__(self, store, row, key, nbytes, hashed, digest, before=lambda: None):
        self.store = store
        self.row = row
        self.key = key
        self.nbytes = nbytes
        self.hashed = hashed  # so many of these bytes, from the first one on
        self.digest = digest
        self.verified = -inf  # when it was last read back and found right
        self.before = before  # weak reference to what was stored before it

    __reduce_ex__ = not_copied


def prefetch(stored):
    """Have the system read what a sweep in reverse asks for next: what was stored before, last first."""
    left = AHEAD
    while stored is not None and left > 0:
        if stored.nbytes:  # a length of 0 would mean the rest of the file
            stored.row.prefetch(stored.nbytes)
        left -= max(stored.nbytes, 4096)  # small ones share pages, and each costs a call
        stored = stored.before()


@dataclass(slots=True)
class Summary:
    """What was saved and restored in all tiers, on one rank or (:meth:`over`) on all."""

    saves: int = 0  #: of arrays, one for each component of a Function
    repeats: int = 0  #: saves of bytes that were on disk already
    restores: int = 0  #: of arrays
    saved: int = 0  #: bytes that were to be saved
    written: int = 0  #: bytes that went to disk
    read: int = 0  #: bytes that came back from it
    live: int = 0  #: bytes that the files written to take on disk, with what is reserved for more
    peak: int = 0  #: the most that `live` was, or the sum of each rank's most
    saving: float = 0.0  #: seconds in :meth:`Store.put`, on the slowest rank
    restoring: float = 0.0  #: seconds in :meth:`Store.get`, on that rank
    tiers: list[str] = field(default_factory=list)  #: directories that were used
    ranks: int = 1
    slowest_rank: int = 0
    slowest_host: str = field(default_factory=MPI.Get_processor_name)

    def over(self, comm):
        """That of all ranks. Collective on `comm`."""
        everyone = comm.allgather(self)
        slowest = max(everyone, key=lambda one: one.saving + one.restoring)
        total = replace(
            slowest,
            tiers=[*dict.fromkeys(tier for one in everyone for tier in one.tiers)],
            ranks=comm.size,
            slowest_rank=everyone.index(slowest),
        )
        for name in ("saves", "repeats", "restores", "saved", "written", "read", "live", "peak"):
            setattr(total, name, sum(getattr(one, name) for one in everyone))
        return total

    def __str__(self):
        whose = f"all {self.ranks} ranks, the slowest:" if self.ranks > 1 else "one rank:"
        return (
            f"checkpoints of {whose} rank {self.slowest_rank} on {self.slowest_host}\n"
            f"    saves    {self.saves:12} {self.saved / 1e6:12.3f} MB {self.saving:10.3f} s\n"
            f"    repeats  {self.repeats:12} {(self.saved - self.written) / 1e6:12.3f} MB not written\n"
            f"    restores {self.restores:12} {self.read / 1e6:12.3f} MB {self.restoring:10.3f} s\n"
            f"    on disk  {'':12} {self.live / 1e6:12.3f} MB, at most {self.peak / 1e6:.3f} MB\n"
            f"    in       {', '.join(self.tiers) or 'no directory'}"
        )


_stores: weakref.WeakSet = weakref.WeakSet()


def _renew_locks():
    """A forked child has one thread, which holds no lock that another one of the parent's held."""
    for store in list(_stores):
        store._lock = threading.RLock()


os.register_at_fork(after_in_child=_renew_locks)


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
        See :mod:`localckpt.storage.engines`.
    limit : float, optional
        The bytes that each rank may use here, the same on every rank of `comm`.
    tiers : sequence of localckpt.storage.directories.Tier, optional
        Where to go on when this file is full or fails.
    summary : Summary, optional
        To count in.
    wanted : {"direct", "viewer"}, optional
        The engine to go on with. Default: what each directory can be trusted with.
    collect : callable, optional
        Called once when the file is full: it lets go of arrays that only garbage refers to.

    Attributes
    ----------
    failure : LostCheckpointError or None
        Set to why an array was lost: from then on every :meth:`put` and :meth:`get` raises it.
    """

    def __init__(
        self,
        comm,
        path,
        cleanup=True,
        engine="direct",
        *,
        limit=inf,
        tiers=(),
        summary=None,
        wanted=None,
        collect=gc.collect,
    ):
        self.comm = comm
        self.path = path
        self.cleanup = cleanup
        self.limit = limit
        self.tiers = tiers
        self.direct = engine == "direct"
        self.wanted = wanted
        self.collective = not self.direct and comm.size > 1  # whether get is
        self.failure = None
        self._summary = summary or Summary()
        self._agrees = self.direct and comm.size > 1
        self._engine = None
        self._files = 0  # that were made
        self._late = False  # whether it is known late that bytes did not get to the disk: see sync()
        self._unsynced = False
        self._lock = threading.RLock()  # a store is for one thread at a time
        _stores.add(self)
        self._known: dict[tuple, Callable] = {}  # size, content hash -> weak reference to a Stored, perhaps dead
        self._many = 1000  # so many are worth a look for the dead among them
        self._latest: Callable = lambda: None  # weak reference to what was stored last
        self._next = None
        self._collect = collect
        self._collected = False  # whether it was called already

    @classmethod
    def temporary(cls, comm=MPI.COMM_SELF, directories=None, *, ranks=1):
        """A store in a directory of its own that goes with it. Collective on `comm`.

        Parameters
        ----------
        comm : mpi4py.MPI.Intracomm, optional
            The ranks that share a file; by default each has its own.
        directories : str or sequence of str, optional
            Where, and where to go on when that is full. Default: a node-local directory
            (:func:`localckpt.storage.directories.choose_directory`).
        ranks : int, optional
            How many share what the PETSc option ``-localckpt_dir_limit`` gives each node.

        Returns
        -------
        Store

        Raises
        ------
        OSError
            If no directory can be made there, on every rank of `comm`.
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
    def inside(cls, directory, comm, tier, tiers, cleanup=True, engine=None, summary=None, collect=gc.collect):
        """A store in a directory of :func:`localckpt.storage.directories.make_next_directory`. Collective on `comm`.

        With that engine, or the one that the directory can be trusted with.
        """
        chosen = engine or choose_engine(comm)
        return cls(
            comm,
            os.path.join(directory, "current.h5"),
            cleanup,
            chosen,
            limit=tier.limit,
            tiers=tiers,
            summary=summary,
            wanted=engine,
            collect=collect,
        )

    def put(self, key, array, valid=None):
        """Store `array`; the same bytes again are not written again.

        Collective on the store's communicator where that has several ranks.

        Parameters
        ----------
        key : str
            Arrays stored under one key have, on each rank, always the same shape and type.
        array : numpy.ndarray
            Of a Vec, its ``array_r``. Copied only if it is not C-contiguous.
        valid : int, optional
            So many entries along the first axis matter; those after them may come back as
            anything. Default: all.

        Returns
        -------
        Stored
            For :meth:`get`; two may be one and the same.

        Raises
        ------
        LayoutError
            If that is not the size that `key` began with.
        StorageError
            The last tier's that is there, where none takes it.
        """
        with self._lock, interrupts_held():  # or Ctrl-C would leave a row that nobody knows of
            return self._put(key, array, valid)

    def _put(self, key, array, valid):
        began = monotonic()
        error: Exception | None = None
        try:
            if self.failure is not None:
                raise copy(self.failure)
            array = np.ascontiguousarray(array)  # what sub() gives of a vector is every n-th number of it
            part = array if valid is None else array[:valid]
            digest = xxh3_128_digest(part)
            nbytes = array.nbytes
            content = nbytes, digest
        except Exception as exc:
            error = exc
        summary = self._summary
        stored = None
        try:
            engine = self._engine or self._open()
            if self._agrees:
                engine.reserve(key, array, error is None)
            if self.collective:
                try:
                    raise_everywhere(self.comm, error)
                except Exception as exc:  # another rank's is no reason to go on elsewhere, either
                    error = exc
                    raise
            elif error is not None:  # only now: other ranks would have waited for this one
                raise error
            if not self.collective and content in self._known:
                stored = self._known[content]()
            if stored is None:
                stored = Stored(self, engine.write(key, array), key, nbytes, part.nbytes, digest, self._latest)
                self._latest = self._know(content, stored)
                self._unsynced = True
                summary.written += nbytes
            else:
                summary.repeats += 1
        except LostCheckpointError:
            raise
        except OSError as exc:
            engine = self._engine
            full = getattr(engine, "full", None)  # set on every rank of the file, or on none
            if engine is not None and full is not None and not self._collected and full.errno in (ENOSPC, EDQUOT):
                self._collected = True
                engine.full = None
                self._collect()  # what is in the way may belong to tapes that nobody needs any more
                return self.put(key, array, valid)
            if error is not None:
                raise
            stored = self._following(exc).put(key, array, valid)
            self._know(content, stored)
            return stored
        summary.saves += 1
        summary.saved += nbytes
        summary.saving += monotonic() - began
        return stored

    def get(self, stored, shape=None, dtype=None, *, out=None):
        """An array with what was stored.

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
            If the bytes are not those that were stored, unless they were right a second ago.
        LayoutError
            If that is not the size of what was stored.
        StorageError
        """
        began = monotonic()
        row, owner = stored.row, stored.store
        if owner.collective:
            with interrupts_held():
                error = None
                try:
                    array = self._array(stored, shape, dtype, out)
                except Exception as exc:
                    error = exc
                raise_everywhere(owner.comm, error)
                row.read(array)  # which verifies it, on all ranks
            stale, mapped = True, False
        else:
            if self.failure is not None:
                raise copy(self.failure)
            # What a viewer has read is verified. A mapped row shows the disk's bytes later, too.
            stale = owner.direct and began - stored.verified > RECENT
            mapped = (
                out is None and owner.direct and stored.nbytes >= MAP_FROM and row.offset % dtype.itemsize == 0
            )  # NumPy is slow where it is not, some CPUs refuse
            if stale and row.on_disk(stored.nbytes):
                prefetch(stored)
            if mapped and stored.nbytes == prod(shape) * dtype.itemsize:
                try:
                    array = row.map(shape, dtype)
                except TransferError:  # the system lets a process have only so many mappings
                    mapped = False
            else:
                mapped = False
            if not mapped:
                array = self._array(stored, shape, dtype, out)
                row.read(array)
            if stale and xxh3_128_digest(array.reshape(-1).view(np.uint8)[: stored.hashed]) != stored.digest:
                raise ChecksumError("what was read is not what was stored", owner.path, stored.key, owner.comm.rank)
            if mapped:
                self._check(row.check)
        ended = monotonic()
        if stale:
            stored.verified = ended
        summary = self._summary
        summary.restores += 1
        if stale or not mapped:  # otherwise nothing has come from the disk yet
            summary.read += stored.nbytes
        summary.restoring += ended - began
        return array

    def _array(self, stored, shape, dtype, out):
        """The array to read into."""
        if self.failure is not None:
            raise copy(self.failure)
        array = np.empty(shape, dtype) if out is None else out
        if array.nbytes != stored.nbytes:
            raise LayoutError(
                f"stored are {stored.nbytes} bytes, to be read are {array.nbytes}",
                stored.store.path,
                stored.key,
                stored.store.comm.rank,
            )
        return array

    def sync(self):
        """Make sure that what was stored so far can be read back. Not collective.

        On a network filesystem, and where disk space cannot be reserved, a write that failed
        may show only when the disk is waited for (``fsync``), which is done there: call this once per
        timestep. Elsewhere it only asks the system, which takes microseconds.

        Raises
        ------
        LostCheckpointError
            If something was lost, and at every use of the store from then on.
        """
        with self._lock:
            if self._engine is not None and (self._unsynced or not self._late):
                descriptor = self._engine.file.descriptor
                self._check(descriptor.sync if self._late else descriptor.check)
                self._unsynced = False
            if self._next is not None:
                self._check(self._next.sync)

    def _check(self, check):
        """Have lost bytes end this store."""
        try:
            check()
        except StorageError as exc:
            self.failure = (
                exc
                if isinstance(exc, LostCheckpointError)
                else LostCheckpointError(
                    f"checkpoints that were stored are lost, on {MPI.Get_processor_name()}: {exc.cause}",
                    exc.file,
                    exc.dataset,
                    self.comm.rank,
                    exc.errno,
                )
            )
            raise copy(self.failure) from None

    def _know(self, content, stored):
        # A WeakValueDictionary takes longer over each than a small array takes to the disk.
        if len(self._known) > self._many:
            self._known = {content: known for content, known in self._known.items() if known() is not None}
            self._many = max(1000, 2 * len(self._known))
        known = self._known[content] = weakref.ref(stored)
        return known

    def _open(self):
        error = None
        self._files += 1
        try:
            stem, suffix = os.path.splitext(self.path)
            path = self.path if self._files == 1 else f"{stem}-{self._files}{suffix}"  # what was kept stays as it is
            directory = os.path.dirname(path)
        except Exception as exc:
            error = exc
        raise_everywhere(self.comm, error)
        file = VecFile(self.comm, path + ".data" if self.cleanup else path, "x" if self.cleanup else "w")
        try:
            engine = (DirectEngine if self.direct else ViewerEngine)(file, self.cleanup, self.limit)
            if os.path.dirname(directory) not in self._summary.tiers:
                self._summary.tiers.append(os.path.dirname(directory))
            with suppress(OSError):
                self._late = Directory.at(directory).on_network or not file.descriptor.can_reserve()
            if self.cleanup and self.comm.rank == 0:  # opening has made sure that all ranks hold it
                self._unlink(file.path)
        except Exception as exc:
            error = exc
        try:
            raise_everywhere(self.comm, error)
        except Exception:
            file.drop()
            raise
        self._engine = engine
        return engine

    def _unlink(self, path):
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass  # a cleaner of temporary files was here
        except OSError as exc:  # no reason for all to go on elsewhere
            log.warning(
                "%s: the file of checkpoints keeps its name, and would stay if the run were killed: %s",
                MPI.Get_processor_name(),
                exc,
            )

    def _following(self, cause):
        """The store that takes what this one cannot. Not collective."""
        tiers = list(self.tiers)
        while self._next is None:
            if not tiers:
                raise cause
            directory = None
            try:
                directory, tier = make_next_directory(MPI.COMM_SELF, tiers, keep=not self.cleanup)
                store = Store.inside(
                    directory, MPI.COMM_SELF, tier, tiers, self.cleanup, self.wanted, self._summary, self._collect
                )
                store._open()
            except OSError as exc:
                log.warning(
                    "%s: no checkpoints to %s: %s", MPI.Get_processor_name(), directory or "the next directory", exc
                )
                if directory is not None:
                    cause = exc
                    run_directories.remove(directory)
                continue
            if self.cleanup:
                run_directories.remove(directory)  # the file in it is unlinked
            place = Directory.at(tier.path)
            log.warning(
                "%s: %s; what cannot be stored there goes to %s (%s, %.1f GB free)",
                MPI.Get_processor_name(),
                cause,
                place.path,
                place.filesystem,
                place.free / 1e9,
            )
            self._next = store
        return self._next

    __reduce_ex__ = not_copied

    def __del__(self):
        if hasattr(self, "_next"):  # else __init__ did not get to its end
            self.retire()

    @property
    def taken(self):
        """int: bytes that this file and later ones take on disk. Not collective."""
        return (self._engine.taken if self._engine is not None else 0) + (self._next.taken if self._next else 0)

    @property
    def summary(self):
        """Summary: of what went through this file and later ones, on this rank. Not collective."""
        self._summary.live = self.taken
        self._summary.peak = max(self._summary.peak, self._summary.live)
        return self._summary

    @property
    def last(self):
        """Store: the one in the tier that takes new arrays now."""
        return self if self._next is None else self._next.last

    @property
    def free(self):
        """int: free bytes of the disk, none where the directory is gone. Not collective."""
        try:
            disk = (
                os.statvfs(os.path.dirname(self.path))
                if self._engine is None
                else os.fstatvfs(self._engine.file.descriptor.fileno())
            )
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
        with self._lock:
            self.summary  # noqa: B018  (notes the peak)
            engine, self._engine = self._engine, None
            following, self._next = self._next, None
            self._known = {}
            self._many = 1000
            try:
                if engine is not None:
                    engine.retire()
            except StorageError as exc:
                if not self.cleanup:
                    raise
                log.warning("%s: %s", MPI.Get_processor_name(), exc)  # of a file that nobody will read
            finally:
                if following is not None:
                    following.retire()
