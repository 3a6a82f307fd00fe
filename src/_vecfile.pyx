# cython: language_level=3, embedsignature=True
"""HDF5 files of PETSc Vecs on any communicator."""

import atexit
import errno as _errno
import os
import pickle
import resource
import sys
import warnings
from contextlib import suppress
from types import SimpleNamespace
from zlib import crc32

import numpy as np
from mpi4py import MPI
from petsc4py import PETSc
from xxhash import xxh3_64_intdigest

cimport cython
from cpython.buffer cimport PyBUF_READ
from cpython.memoryview cimport PyMemoryView_FromMemory
from libc.errno cimport EFBIG, EINTR, ENOSYS, EOPNOTSUPP, errno
from libc.stdint cimport INT64_MAX, int32_t, int64_t, uint64_t
from posix.types cimport off_t
from mpi4py cimport libmpi as mpi
from mpi4py.MPI cimport Comm
from petsc4py.PETSc cimport Vec

from hdf5 cimport *
from petsc cimport *
from localckpt._errors cimport CHKERR, CHKH5, CHKMPI, begin_capture, end_capture
from localckpt._log cimport LOAD, SAVE, log_begin, log_end
from localckpt._errors import (ChecksumMismatch, ClosedFile, FileExists, FileNotFound, LayoutMismatch, NoAccess,
                               NotHDF5, StorageError, TransferError, UnknownDataset)

from localckpt._rows import Descriptor

__all__ = ["VecFile"]

cdef extern from "fcntl.h" nogil:
    int FALLOC_FL_KEEP_SIZE
    int fallocate(int fd, int mode, off_t offset, off_t length)

cdef enum:
    MAXDIM = 32
    SLACK = 1 << 16  # bytes that HDF5 may want beside the data, for one dataset and the next flush

# How many entries a PetscInt counts.
cdef long long PETSCINT_MAX = ((<long long> 1 << (8 * sizeof(PetscInt) - 2)) - 1) * 2 + 1
SCALAR = np.dtype(PETSc.ScalarType)

include "handle.pxi"
include "dataset.pxi"

# -----------------------------------------------------------------------------
# The collective operations
# -----------------------------------------------------------------------------

cdef object blame(Handle handle, error, name):
    """Say which file and dataset an error is about."""
    if isinstance(error, StorageError):
        error.file, error.dataset = handle.path, name
    return error


cdef tuple prepare(Handle handle, str what, object name, object n, long long bs, object kind, object error):
    """Local checks, then everybody's sizes, or the error that any rank has. Collective."""
    if error is None:
        try:
            if handle.diverted:
                raise TransferError("an earlier transfer failed")
            if what == "write" and handle.mode == "r":
                raise NoAccess("the file is open for reading only", errno=_errno.EACCES)
            encode(name)
            h5type(kind)
            if n % bs:
                raise LayoutMismatch(f"{n} entries are not whole blocks of {bs}")
        except Exception as exc:
            error = exc
    sizes = handle.begin((what, name, bs, str(kind)), n, blame(handle, error, name))
    if sum(sizes) > PETSCINT_MAX:
        raise LayoutMismatch(f"{sum(sizes)} entries are more than this PETSc's integers count: "
                             "configure PETSc with 64-bit indices", handle.path, name)
    return sizes


cdef bint check_old(Handle handle, bytes path, tuple shape, object dtype, bint chunked) except -1:
    """Whether there is such a dataset; only one of the same shape, type and storage is written over."""
    cdef Dataset old
    if exists(handle.id, path):
        old = Dataset()
        old.open(handle, path)
        stored = old.shape()[:-1] if old.is_complex else old.shape()
        if stored != shape:
            raise LayoutMismatch(f"a dataset of shape {stored} has this name; {shape} does not replace it")
        if (not CHKH5(H5Tequal(old.type, h5type(dtype))) or old.chunked() != chunked
                or old.is_complex != (dtype.kind == "c")):
            raise LayoutMismatch("a dataset of other numbers has this name")
        return True
    return False


cdef Dataset contiguous(Handle handle, bytes path, tuple shape, object dtype, bint zeros=False):
    """A new dataset at its final place in the file, its disk space reserved. Collective."""
    cdef Dataset dataset = Dataset()
    cdef hsize_t dims[MAXDIM]
    cdef hid_t properties
    cdef int64_t nbytes = dtype.itemsize
    for i, dim in enumerate(shape):
        dims[i] = dim
        nbytes *= dim
    if dtype.kind == "c":
        shape += (2,)
        dims[len(shape) - 1] = 2
    properties = CHKH5(H5Pcreate(H5P_DATASET_CREATE))
    try:
        CHKH5(H5Pset_layout(properties, H5D_CONTIGUOUS))
        CHKH5(H5Pset_alloc_time(properties, H5D_ALLOC_TIME_EARLY))
        if not zeros:
            CHKH5(H5Pset_fill_time(properties, H5D_FILL_TIME_NEVER))  # nothing is written until somebody does
        dataset.space = CHKH5(H5Screate_simple(len(shape), dims, NULL))
        dataset.id = CHKH5(H5Dcreate2(handle.id, path, h5type(dtype), dataset.space, H5P_DEFAULT, properties,
                                      H5P_DEFAULT))
    finally:
        H5Pclose(properties)
    try:
        if nbytes:
            handle.reserve(H5Dget_offset(dataset.id), nbytes)
    except StorageError:
        H5Ldelete(handle.id, path, H5P_DEFAULT)
        raise
    if dtype.kind == "c":
        dataset.mark(b"complex", 1, H5T_NATIVE_INT32)  # PETSc's own mark
    return dataset


cdef int check_fit(Handle handle, Dataset dataset, tuple sizes, object dtype, object timestep) except -1:
    """Whether arrays of these sizes and this dtype are what was written."""
    wanted = "complex" if dtype.kind == "c" else "integer" if dtype.kind in "iu" else "real"
    stored = ("complex" if dataset.is_complex else "integer" if H5Tget_class(dataset.type) == H5T_INTEGER else
              "real" if H5Tget_class(dataset.type) == H5T_FLOAT else "other")
    if stored != wanted or dataset.ndims == 0:
        raise LayoutMismatch(f"stored are {stored} numbers, to be read are {wanted} ones")
    if (H5Tget_size(dataset.type) > H5Tget_size(h5type(dtype))
            or wanted == "integer" and H5Tget_sign(dataset.type) != H5Tget_sign(h5type(dtype))):
        raise LayoutMismatch(f"{dtype} does not hold the numbers that are stored")
    steps = 1
    if timestep is not None:
        if not dataset.attribute(b"timestepping", 0):
            raise LayoutMismatch("there are no timesteps in this dataset")
        steps = dataset.dims[0]
        if not 0 <= timestep < steps:
            raise LayoutMismatch(f"there is no timestep {timestep} among {steps}")
    if dataset.entries() != steps * sum(sizes):
        raise LayoutMismatch(f"stored are {dataset.entries() // steps} entries, to be read are {sum(sizes)}")
    if dataset.layout >= 0:
        written = layout_sizes(handle, dataset.layout)
        if len(written) != len(sizes):
            raise LayoutMismatch(f"written by {len(written)} ranks, to be read by {len(sizes)}")
        for rank, (then, now) in enumerate(zip(written, sizes)):
            if then != now:
                raise LayoutMismatch(f"{then} entries were written by rank {rank}, "
                                     f"which is to read {now}", rank=rank)
    row = 1
    for i in range(1 if timestep is None else 2, dataset.ndims):
        row *= dataset.dims[i]
    row //= 2 if dataset.is_complex else 1
    if row > 1 and any(n % row for n in sizes):
        raise LayoutMismatch(f"a rank's entries are not whole rows of {row}")
    return 0


cdef int write_scalars(Handle handle, object name, const void* data, long long n, long long bs, object error) except -1:
    cdef Dataset dataset
    cdef PetscVec v = NULL
    cdef PetscErrorCode ierr = 0
    cdef bytes path
    cdef const char* link
    log_begin(SAVE)
    try:
        sizes = prepare(handle, "write", name, n, bs, SCALAR, error)
        checksum = handle.checksum(data, n * sizeof(PetscScalar))
        error = None
        try:
            path = encode(name)
            link = path
            if not check_old(handle, path, (sum(sizes) // bs,) + (() if bs == 1 else (bs,)), SCALAR, True):
                handle.reserve(-1, sum(sizes) * sizeof(PetscScalar))
            with nogil:
                CHKERR(VecCreateMPIWithArray(handle.comm, <PetscInt> bs, <PetscInt> n, PETSC_DECIDE,
                                             <const PetscScalar*> data, &v))
                CHKERR(PetscObjectSetName(<PetscObject> v, link))
                ierr = VecView(v, handle.viewer)
                VecDestroy(&v)
                CHKERR(ierr)
        except Exception as exc:
            error = blame(handle, exc, name)
            # VecView ends in a collective flush, where the others wait for a rank whose own
            # transfer failed: one in which it cannot fail again.
            if handle.size > 1 and "H5Dwrite" in str(exc):
                handle.divert()
                with nogil:
                    H5Fflush(handle.id, H5F_SCOPE_GLOBAL)
        handle.settle(error)  # before metadata change on some ranks only
        try:
            dataset = Dataset()
            dataset.open(handle, path)
            dataset.mark(LAYOUT, layout_number(handle, sizes), H5T_NATIVE_INT32)
            dataset.mark(CHECKSUM, checksum, H5T_NATIVE_INT64)
        except Exception as exc:
            error = blame(handle, exc, name)
        handle.settle(error)
    finally:
        log_end(SAVE, n * sizeof(PetscScalar))
    return 0


cdef int write_entries(Handle handle, object name, object array, long long row, object error) except -1:
    """Numbers other than PetscScalar: a dataset of our own making."""
    cdef Dataset dataset
    cdef bytes path
    cdef long long data = array.ctypes.data
    log_begin(SAVE)
    try:
        sizes = prepare(handle, "write", name, array.size, row, array.dtype, error)
        checksum = handle.checksum(<void*> data, array.nbytes)
        error = None
        try:
            path = encode(name)
            shape = (sum(sizes) // row,) + array.shape[1:]
            if not check_old(handle, path, shape, array.dtype, False):
                contiguous(handle, path, shape, array.dtype)
            dataset = Dataset()
            dataset.open(handle, path)
            dataset.mark(LAYOUT, layout_number(handle, sizes), H5T_NATIVE_INT32)
            dataset.mark(CHECKSUM, checksum, H5T_NATIVE_INT64)
            dataset.move(h5type(array.dtype), handle.dxpl, <void*> data, sum(sizes[:handle.rank]), array.size, True)
        except Exception as exc:
            error = blame(handle, exc, name)
        handle.settle(error)
    finally:
        log_end(SAVE, array.nbytes)
    return 0


cdef tuple create_rows(Handle handle, object name, int rows, long long limit, object room, object array,
                       bint checksums):
    cdef Dataset dataset, table
    sizes = prepare(handle, "write", name, array.size, 1, array.dtype, None)
    stride = sum(sizes) * array.itemsize
    rows = max(1, min(rows, int(min(limit, room)) // max(1, stride)))
    if stride > room:
        raise TransferError(f"{os.strerror(_errno.EDQUOT)}: {room:.0f} bytes left of the limit, {stride} needed",
                            handle.path, name, errno=_errno.EDQUOT)
    error = None
    try:
        if checksums:
            make_group(handle, CHECKSUMS)
            beside = CHECKSUMS + b"/" + encode(name)
            table = contiguous(handle, beside, (rows, handle.size), np.dtype(np.int64), True)
        try:
            dataset = contiguous(handle, encode(name), (rows, sum(sizes)), array.dtype)
        except StorageError:
            if checksums:
                H5Ldelete(handle.id, beside, H5P_DEFAULT)
            raise
        dataset.mark(b"timestepping", 1, H5T_NATIVE_INT32)  # PETSc's own mark: VecLoad finds its way
        dataset.mark(ROW_CHECKSUMS, checksums, H5T_NATIVE_INT32)
        dataset.mark(LAYOUT, layout_number(handle, sizes), H5T_NATIVE_INT32)
    except Exception as exc:
        error = blame(handle, exc, name)
    handle.settle(error)
    first = H5Dget_offset(dataset.id) + sum(sizes[:handle.rank]) * array.itemsize if stride else 0
    return first, stride, rows, H5Dget_offset(table.id) + 8 * handle.rank if checksums else None


cdef int read_entries(Handle handle, object name, void* data, long long n, object dtype, object error,
                      object timestep) except -1:
    cdef Dataset dataset = Dataset()
    cdef Dataset table = Dataset()
    cdef hid_t type
    cdef long long first, step
    cdef int64_t stored = -1
    cdef bytes path
    log_begin(LOAD)
    try:
        sizes = prepare(handle, "read" if timestep is None else f"read {timestep}", name, n, 1, dtype, error)
        error = None
        try:
            path = find(handle, name)
            dataset.open(handle, path)
            check_fit(handle, dataset, sizes, np.dtype(dtype), timestep)
            type = h5type(dtype)
            first = sum(sizes[:handle.rank])
            step = -1 if timestep is None else timestep
            with nogil:
                dataset.move(type, handle.dxpl, data, first, n, False, step)
            if step >= 0 and n and dataset.attribute(ROW_CHECKSUMS, 0):
                table.open(handle, CHECKSUMS + b"/" + path)
                table.move(H5T_NATIVE_INT64, H5P_DEFAULT, &stored, handle.rank, 1, False, step)
                if stored != digest(data, n * dtype.itemsize, 0):
                    raise ChecksumMismatch(f"what was read of timestep {step} is not what was stored" if stored else
                                           f"nothing was stored as timestep {step}", rank=handle.rank)
        except Exception as exc:
            error = blame(handle, exc, name)
        handle.settle(error)
        # Bytes that HDF5 converts, and those that others stored, are not comparable.
        if (dataset.checksum >= 0 and H5Tequal(dataset.type, type) > 0
                and handle.checksum(data, n * dtype.itemsize) != dataset.checksum):
            raise ChecksumMismatch("what was read is not what was stored", handle.path, name)
    finally:
        log_end(LOAD, n * dtype.itemsize)
    return 0


# -----------------------------------------------------------------------------
# VecFile
# -----------------------------------------------------------------------------

cdef PetscVec vec_of(object vec) except NULL:
    if not isinstance(vec, Vec) or (<Vec> vec).vec == NULL:
        raise TypeError("a Vec that was not created, or is destroyed" if isinstance(vec, Vec) else
                        f"not a petsc4py Vec but a {type(vec).__name__}")
    return <PetscVec> (<Vec> vec).vec


cdef tuple stored_sizes(Handle handle, object name):
    cdef Dataset dataset = Dataset()
    dataset.open(handle, find(handle, name))
    written = layout_sizes(handle, dataset.layout) if dataset.layout >= 0 else ()
    return (written[handle.rank] if len(written) == handle.size else None), dataset.entries()


cdef Handle enter(VecFile file):
    """The file's handle, until :c:func:`end_capture` nobody else's."""
    cdef Handle handle
    begin_capture()
    handle = file._handle
    if file.closed:
        end_capture()
        raise ClosedFile(handle.why if handle is not None else "the file is closed", file=file.path)
    return handle


cdef class VecFile:
    """VecFile(comm, path, mode="r", *, collective=None)

    An HDF5 file of PETSc Vecs on any communicator.

    What is stored under a name is the part of a Vec or array that each rank of `comm`
    owns, in rank order, whatever communicator the Vec itself lives on: on
    ``COMM_SELF`` each rank has a file of its own.  The file is an ordinary PETSc HDF5
    file: ``VecLoad``, h5py and h5dump read it, and files that ``VecView`` wrote are
    read here.  Opening is collective on `comm`.

    Each dataset carries a checksum of its numbers, which reading verifies (not where it
    converts them, to float64 from float32, say); a program that changes them in place has
    to delete the attribute ``localckpt_checksum``.  Threads wait for each other; on
    several ranks they have to come in the same order.  A forked child cannot use the files
    of its parent, and ends without finalizing PETSc and MPI (with exit status 0, or 1 after
    an exception).

    Parameters
    ----------
    comm : mpi4py.MPI.Intracomm or petsc4py.PETSc.Comm
        The file's communicator.
    path : str or os.PathLike
        The file, the same on every rank of `comm`.
    mode : {"r", "w", "x", "a"}
        Read; create or truncate; create what must not exist, a link included; read and
        write, creating the file if it is missing.
    collective : bool, optional
        Use collective MPI-IO transfers (``PetscViewerHDF5SetCollective``): worth it for
        many ranks on a parallel filesystem.  Default: the PETSc option
        ``-localckpt_collective``, else False.

    Raises
    ------
    FileNotFound, FileExists, NoAccess, NotHDF5, ClosedFile, TransferError
        On every rank of `comm`.

    See Also
    --------
    petsc.PetscViewerHDF5Open
    """

    @cython.embedsignature(False)  # Cython's own has the star in the wrong place
    def __init__(self, comm, path, mode="r", *, collective=None):
        if isinstance(comm, PETSc.Comm):
            comm = comm.tompi4py()
        if collective is None:
            collective = PETSc.Options("localckpt_").getBool("collective", False)
        self._handle = open_handle(comm, path, mode, collective)
        self.comm = comm
        self.path = (<Handle> self._handle).path
        self.mode = mode

    cdef int write_scalars(self, object name, const void* data, long long n, long long bs) except -1:
        cdef Handle handle = enter(self)
        try:
            return write_scalars(handle, name, data, n, bs, None)
        finally:
            end_capture()

    cdef int read_scalars(self, object name, void* data, long long n) except -1:
        cdef Handle handle = enter(self)
        try:
            return read_entries(handle, name, data, n, SCALAR, None, None)
        finally:
            end_capture()

    # ------------------------------------------------------------------ writing

    def write(self, name, vec):
        """Store a Vec under `name`, replacing what has the same name and sizes.

        Collective on the file's communicator.  `vec` may live on any communicator;
        its data is not copied.

        Parameters
        ----------
        name : str
            Any non-empty string; '/' makes no group.
        vec : petsc4py.PETSc.Vec

        Raises
        ------
        NoAccess, LayoutMismatch, ClosedFile, TransferError
            On every rank of the file's communicator.

        See Also
        --------
        petsc.VecView, petsc.VecCreateMPIWithArray
        """
        cdef PetscVec v = NULL
        cdef PetscInt n = 0, bs = 1
        cdef const PetscScalar* data = NULL
        cdef Handle handle = enter(self)
        error = None
        try:
            try:
                v = vec_of(vec)
                CHKERR(VecGetLocalSize(v, &n))
                CHKERR(VecGetBlockSize(v, &bs))
                CHKERR(VecGetArrayRead(v, &data))
            except Exception as exc:
                error = exc
            try:
                write_scalars(handle, name, data, n, bs, error)
            finally:
                if data != NULL:
                    VecRestoreArrayRead(v, &data)
        finally:
            end_capture()

    def write_array(self, name, array):
        """Store each rank's `array` under `name`, concatenated along the first axis.

        Collective on the file's communicator.  Entries of PETSc's scalar type are
        written as a Vec whose block size is the number of entries in a row; other
        numbers as a plain dataset.  Copies only an array that is not C-contiguous.

        Parameters
        ----------
        name : str
        array : numpy.ndarray
            Float, complex or integer; the rows are of one shape on all ranks.

        Raises
        ------
        NoAccess, LayoutMismatch, ClosedFile, TransferError
            On every rank of the file's communicator.
        """
        cdef long long row = 1
        cdef long long data
        cdef Handle handle = enter(self)
        error = None
        try:
            try:
                array = np.ascontiguousarray(array)
                row = max(1, int(np.prod(array.shape[1:], dtype=np.int64)))
                h5type(array.dtype)
            except Exception as exc:
                error, array = exc, np.empty(0, SCALAR)
            if array.dtype == SCALAR:
                data = array.ctypes.data
                write_scalars(handle, name, <const void*> data, array.size, row, error)
            else:
                write_entries(handle, name, array, row, error)
        finally:
            end_capture()

    # ------------------------------------------------------------------ reading

    def read(self, name, vec, *, timestep=None):
        """Fill `vec` with what is stored under `name`.

        Collective on the file's communicator.  The bytes land once, in the Vec's own
        memory (``VecLoad`` would allocate an array and replace the Vec's).

        Parameters
        ----------
        name : str
        vec : petsc4py.PETSc.Vec
            Partitioned like the one that was written.
        timestep : int, optional
            Which row to read of a dataset with the attribute ``timestepping``.

        Raises
        ------
        UnknownDataset, LayoutMismatch, ChecksumMismatch, ClosedFile, TransferError
            On every rank of the file's communicator.

        See Also
        --------
        petsc.VecLoad, petsc.PetscViewerHDF5SetTimestep
        """
        cdef PetscVec v = NULL
        cdef PetscInt n = 0
        cdef PetscScalar* data = NULL
        cdef Handle handle = enter(self)
        error = None
        try:
            try:
                v = vec_of(vec)
                CHKERR(VecGetLocalSize(v, &n))
                CHKERR(VecGetArrayWrite(v, &data))
            except Exception as exc:
                error = exc
            try:
                read_entries(handle, name, data, n, SCALAR, error, timestep)
            finally:
                if data != NULL:
                    VecRestoreArrayWrite(v, &data)
        finally:
            end_capture()

    def read_array(self, name, array, *, timestep=None):
        """Fill `array` with this rank's part of what is stored under `name`.

        Collective on the file's communicator.

        Parameters
        ----------
        name : str
        array : numpy.ndarray
            C-contiguous and writeable, of as many entries as were written here.
        timestep : int, optional
            As for :meth:`read`.

        Raises
        ------
        UnknownDataset, LayoutMismatch, ChecksumMismatch, ClosedFile, TransferError
            On every rank of the file's communicator.
        """
        cdef long long data = 0
        cdef Handle handle = enter(self)
        error = None
        try:
            try:
                if not (array.flags.c_contiguous and array.flags.writeable):
                    raise LayoutMismatch("the array to fill is not C-contiguous and writeable")
                data = array.ctypes.data
                h5type(array.dtype)
            except Exception as exc:
                error, array = exc, np.empty(0, SCALAR)
            read_entries(handle, name, <void*> data, array.size, array.dtype, error, timestep)
        finally:
            end_capture()

    def create_rows(self, name, rows, array, *, limit=2**28, room=float("inf"), checksums=False):
        """Make a dataset for arrays like `array`, one in each row, at its final place in the file.

        Collective on the file's communicator.  Nothing is written: each rank moves its own
        part of a row by itself (:class:`localckpt._rows.Pool`).  To PETSc row k is timestep k
        (``PetscViewerHDF5PushTimestepping``) of a Vec.

        Parameters
        ----------
        name : str
        rows : int
        array : numpy.ndarray
            As large as this rank's part of a row.
        limit : int, optional
            Make fewer rows, but at least one, where they would take more bytes than this.
        room : float, optional
            Bytes that all rows of all ranks may take at most, the same on every rank.
        checksums : bool, optional
            Make a place for checksums of the rows, too, which reading a row verifies.

        Returns
        -------
        first : int
            Where in the file this rank's part of row 0 is.
        stride : int
            Bytes from one row to the next.
        rows : int
        checksums : int or None
            Where the checksum of this rank's part of row 0 is.

        Raises
        ------
        NoAccess, ClosedFile, TransferError
            On every rank of the file's communicator.
        """
        cdef Handle handle = enter(self)
        try:
            return create_rows(handle, name, rows, limit, room, array, checksums)
        finally:
            end_capture()

    # ------------------------------------------------------------------ looking

    def names(self):
        """Names of all datasets, sorted. Not collective.

        Returns
        -------
        list of str
        """
        cdef Handle handle = enter(self)
        links = []
        try:
            # In any other order HDF5 crashes where the index of a large group is damaged.
            CHKH5(H5Lvisit(handle.id, H5_INDEX_NAME, H5_ITER_NATIVE, <H5L_iterate_t> add_link, <void*> links))
            return sorted([decode(link) for link in links if is_dataset(handle, link)])
        except StorageError as exc:
            raise blame(handle, exc, None)
        finally:
            end_capture()

    def __contains__(self, name):
        cdef Handle handle = enter(self)
        try:
            find(handle, name)
            return True
        except UnknownDataset:
            return False
        except StorageError as exc:
            raise blame(handle, exc, name)
        finally:
            end_capture()

    def sizes(self, name):
        """Local and global number of entries stored under `name`. Not collective.

        Returns
        -------
        local : int or None
            What this rank wrote; None for a file that PETSc itself wrote, or that
            another number of ranks wrote.
        global : int

        Raises
        ------
        UnknownDataset, ChecksumMismatch, ClosedFile, TransferError
        """
        cdef Handle handle = enter(self)
        try:
            return stored_sizes(handle, name)
        except StorageError as exc:
            raise blame(handle, exc, name)
        finally:
            end_capture()

    # ------------------------------------------------------------------ the end

    def flush(self):
        """Bring all that was written to the system. Collective on the file's communicator.

        Raises
        ------
        ClosedFile, TransferError
            On every rank of the file's communicator.
        """
        cdef Handle handle = enter(self)
        error = None
        try:
            try:
                with nogil:
                    CHKH5(H5Fflush(handle.id, H5F_SCOPE_GLOBAL))
            except StorageError as exc:
                error = blame(handle, exc, None)
            handle.settle(error)
        finally:
            end_capture()

    def agree(self, flags):
        """Keep those of `flags` that every rank has set. Collective on the file's communicator.

        Parameters
        ----------
        flags : numpy.ndarray of uint8
            0 or 1 each, changed in place; as many on every rank.
        """
        cdef unsigned char[::1] bits = flags
        cdef int n = <int> bits.shape[0]
        cdef Handle handle = enter(self)
        try:
            if handle.size > 1 and n:
                with nogil:
                    CHKMPI(mpi.MPI_Allreduce(mpi.MPI_IN_PLACE, &bits[0], n, mpi.MPI_UNSIGNED_CHAR,
                                             mpi.MPI_MIN, handle.comm))
        finally:
            end_capture()

    def close(self):
        """Close the file; again is no error. Collective on the file's communicator.

        Raises
        ------
        TransferError
            On every rank of the file's communicator.
        """
        if self._handle is not None:
            (<Handle> self._handle).close()

    def drop(self):
        """Do without this file from now on. Not collective.

        A file of one rank is closed at once; one of several when all of them have
        dropped it: the next time that a file is opened on its communicator, or at exit.
        """
        cdef Handle handle = self._handle
        self._handle = None
        if handle is not None and handle.viewer != NULL:
            handle.dropped = True
            if handle.size == 1:
                handle.close()

    @property
    def descriptor(self):
        """localckpt._rows.Descriptor: a plain one of the file; it may outlive this object."""
        cdef Handle handle = enter(self)
        end_capture()
        return handle.descriptor

    @property
    def closed(self):
        """bool: whether this object can no longer be used."""
        return self._handle is None or (<Handle> self._handle).viewer == NULL

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    def __del__(self):
        if not self.closed:
            try:
                try:
                    warnings.warn(f"{self!r} was not closed", ResourceWarning, source=self)
                finally:
                    self.drop()
            except Exception as exc:
                # Cython would print it through sys.excepthook, in which PyOP2 aborts the job.
                sys.unraisablehook(SimpleNamespace(exc_type=type(exc), exc_value=exc, object=self,
                                                   exc_traceback=exc.__traceback__, err_msg=None))

    def __repr__(self):
        return f"<{'closed ' if self.closed else ''}VecFile {self.path!r}, mode {self.mode!r}>"
