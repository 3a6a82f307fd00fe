# cython: language_level=3, embedsignature=True
"""HDF5 files of PETSc Vecs on any communicator."""

import atexit
import errno as _errno
import os
import resource
import sys
import tempfile
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
from cpython.bytearray cimport PyByteArray_AS_STRING
from cpython.memoryview cimport PyMemoryView_FromMemory
from libc.errno cimport EFBIG, EINTR, ENOSYS, EOPNOTSUPP, errno
from libc.stdint cimport INT64_MAX, int32_t, int64_t, uint64_t
from libc.stdlib cimport free, malloc
from posix.types cimport off_t
from mpi4py cimport libmpi as mpi
from mpi4py.MPI cimport Comm
from petsc4py.PETSc cimport Vec

from hdf5 cimport *
from petsc cimport *
from localckpt._collective cimport raise_on_all
from localckpt._errors cimport CHKERR, CHKH5, CHKMPI, begin_capture, begin_section, end_capture
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

cdef object about(Handle handle, error, name):
    """The error, which says which file and dataset it is about if it is one of localckpt's."""
    if isinstance(error, StorageError):
        error.file, error.dataset = handle.path, name
    return error


cdef tuple prepare(Handle handle, tuple what, object name, object n, long long bs, object dtype, int ndim,
                   const void* data, object error):
    """Local checks, then everybody's sizes and the checksum of data, or the error that any rank has. Collective."""
    nbytes = 0
    if error is None:
        try:
            if what[0] == "write" and handle.mode == "r":
                raise NoAccess("the file is open for reading only", errno=_errno.EACCES)
            encode(name)
            h5type(dtype)
            if n % bs:
                raise LayoutMismatch(f"{n} entries are not whole blocks of {bs}")
            if ndim + (dtype.kind == "c") > MAXDIM:
                raise LayoutMismatch(f"HDF5 stores arrays of {MAXDIM - (dtype.kind == 'c')} dimensions at most, "
                                     f"not of {ndim}")
            if data != NULL:
                nbytes = n * dtype.itemsize
        except Exception as exc:
            error = exc
    sizes, checksum = handle.exchange((what, name, bs, str(dtype)), n, nbytes, data, about(handle, error, name))
    if sum(sizes) > PETSCINT_MAX:
        raise LayoutMismatch(f"{sum(sizes)} entries are more than this PETSc's integers count: "
                             "configure PETSc with 64-bit indices", handle.path, name)
    return sizes, checksum


cdef object stored_as(Handle handle, bytes path, tuple shape, object dtype):
    """How there is such a dataset, "chunked" or "contiguous", or None. Not collective.

    Only one of the same shape and type is written over.
    """
    cdef Dataset old
    if not exists(handle.id, path):
        return None
    old = Dataset()
    old.open(handle, path)
    stored = old.shape()[:-1] if old.is_complex else old.shape()
    if stored != shape:
        raise LayoutMismatch(f"a dataset of shape {stored} has this name; {shape} does not replace it")
    if not CHKH5(H5Tequal(old.type, h5type(dtype))) or old.is_complex != (dtype.kind == "c"):
        raise LayoutMismatch("a dataset of other numbers has this name")
    return "chunked" if old.chunked() else "contiguous"


cdef Dataset create(Handle handle, bytes path, tuple shape, object dtype):
    """A new dataset at its final place in the file, of which nothing is written. Collective."""
    cdef Dataset dataset = Dataset()
    cdef hsize_t dims[MAXDIM]
    cdef hid_t properties
    if dtype.kind == "c":
        shape += (2,)
    if len(shape) > MAXDIM:
        raise LayoutMismatch(f"HDF5 stores arrays of {MAXDIM} dimensions at most, not of {len(shape)}")
    for i, dim in enumerate(shape):
        dims[i] = dim
    type = h5type(dtype)
    properties = CHKH5(H5Pcreate(H5P_DATASET_CREATE))
    try:
        CHKH5(H5Pset_layout(properties, H5D_CONTIGUOUS))
        CHKH5(H5Pset_alloc_time(properties, H5D_ALLOC_TIME_EARLY))
        CHKH5(H5Pset_fill_time(properties, H5D_FILL_TIME_NEVER))  # nothing is written until somebody does
        dataset.space = CHKH5(H5Screate_simple(len(shape), dims, NULL))
        dataset.id = CHKH5(H5Dcreate2(handle.id, path, type, dataset.space, H5P_DEFAULT, properties, H5P_DEFAULT))
    finally:
        H5Pclose(properties)
    if dtype.kind == "c":
        dataset.mark(b"complex", 1, H5T_NATIVE_INT32)  # PETSc's own mark
    return dataset


cdef int create_reserved(Handle handle, object name, list wanted) except -1:
    """New datasets (path, shape, dtype, bytes) and their disk space: all of them, or none and an error. Collective."""
    cdef Dataset dataset
    cdef list made = []
    error = None
    try:
        for path, shape, dtype, nbytes in wanted:  # the same calls of HDF5 on every rank, and nothing else that fails
            dataset = create(handle, path, shape, dtype)
            made.append((path, H5Dget_offset(dataset.id), nbytes))
        for _, offset, nbytes in made:
            if nbytes:
                handle.reserve(offset, nbytes)
    except Exception as exc:
        error = about(handle, handle.failure(exc, "reserving disk space"), name)
    try:
        handle.raise_everywhere(error)
    except BaseException:
        dataset = None
        for path, _, _ in made:
            H5Ldelete(handle.id, path, H5P_DEFAULT)
        raise
    return 0


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


cdef int write_entries(Handle handle, object name, const void* data, object n, long long row, tuple rows,
                       object dtype, object error) except -1:
    """Store n entries of this rank's at data, in rows of so many, of this shape. Collective."""
    cdef Dataset dataset
    cdef bytes path
    log_begin(SAVE)
    try:
        sizes, checksum = prepare(handle, ("write", rows), name, n, row, dtype, 1 + len(rows), data, error)
        error = storage = None
        try:
            path = encode(name)
            shape = (sum(sizes) // row, *rows)
            storage = stored_as(handle, path, shape, dtype)
            layout, record, record_checksum = find_layout(handle, sizes)
        except Exception as exc:
            error = about(handle, exc, name)
        handle.raise_everywhere(error)  # before metadata change on some ranks only
        by_petsc = handle.size == 1 and dtype == SCALAR and storage != "contiguous" and len(rows) < 2
        if storage is None and not by_petsc:
            create_reserved(handle, name, [(path, shape, dtype, sum(sizes) * dtype.itemsize)])
        try:
            if by_petsc:
                if storage is None:
                    handle.reserve(-1, n * dtype.itemsize)
                view_vec(handle, path, data, n, row)
            record_layout(handle, sizes, layout, record, record_checksum)
            dataset = Dataset()
            dataset.open(handle, path)
            dataset.mark(LAYOUT, layout, H5T_NATIVE_INT32)
            dataset.mark(CHECKSUM, checksum, H5T_NATIVE_INT64)
            if not by_petsc:
                dataset.move(h5type(dtype), handle.dxpl, <void*> data, sum(sizes[:handle.rank]), n, True)
        except Exception as exc:
            error = about(handle, handle.failure(exc, "writing"), name)
        handle.raise_everywhere(error)
    finally:
        log_end(SAVE, n * dtype.itemsize if error is None else 0)
    return 0


cdef int view_vec(Handle handle, const char* link, const void* data, PetscInt n, PetscInt bs) except -1:
    """Have PETSc write a Vec. Only to a file of one rank.

    VecView ends in a collective flush, to which a rank whose own transfer has failed does not come:
    on several ranks the others would wait for it there.
    """
    cdef PetscVec v = NULL
    cdef PetscErrorCode status
    with nogil:
        CHKERR(VecCreateMPIWithArray(handle.comm, bs, n, PETSC_DECIDE, <const PetscScalar*> data, &v))
        status = PetscObjectSetName(<PetscObject> v, link)
        if status == 0:
            status = VecView(v, handle.viewer)
        VecDestroy(&v)
        CHKERR(status)
    return 0


cdef tuple create_rows(Handle handle, object name, int rows, long long limit, object room, object array,
                       bint checksums):
    cdef Dataset dataset, table = Dataset()
    error = None
    n, dtype = 0, SCALAR
    try:
        n, dtype = array.size, array.dtype
    except Exception as exc:
        error = exc
    sizes, _ = prepare(handle, ("write", rows, limit, room, checksums), name, n, 1, dtype, 1, NULL, error)
    stride = sum(sizes) * dtype.itemsize
    rows = max(1, min(rows, int(min(limit, room)) // max(1, stride)))
    if stride > room:
        raise TransferError(f"{os.strerror(_errno.EDQUOT)}: {room:.0f} bytes left of the limit, {stride} needed",
                            handle.path, name, errno=_errno.EDQUOT)
    error = None
    try:
        path = encode(name)
        wanted = [(path, (rows, sum(sizes)), dtype, rows * stride)]
        if checksums:  # a table that nobody has written to reads as zeros
            beside = CHECKSUMS + b"/" + path
            wanted.append((beside, (rows, handle.size), np.dtype(np.int64), 8 * rows * handle.size))
        layout, record, record_checksum = find_layout(handle, sizes)
    except Exception as exc:
        error = about(handle, exc, name)
    handle.raise_everywhere(error)  # before metadata change on some ranks only
    try:
        if checksums:
            make_group(handle, CHECKSUMS)
    except Exception as exc:
        error = about(handle, exc, name)
    handle.raise_everywhere(error)
    create_reserved(handle, name, wanted)
    try:
        record_layout(handle, sizes, layout, record, record_checksum)
        dataset = Dataset()
        dataset.open(handle, path)
        dataset.mark(b"timestepping", 1, H5T_NATIVE_INT32)  # PETSc's own mark: VecLoad finds its way
        dataset.mark(ROW_CHECKSUMS, checksums, H5T_NATIVE_INT32)
        dataset.mark(LAYOUT, layout, H5T_NATIVE_INT32)
        if checksums:
            table.open(handle, beside)
    except Exception as exc:
        error = about(handle, exc, name)
    handle.raise_everywhere(error)
    first = H5Dget_offset(dataset.id) + sum(sizes[:handle.rank]) * dtype.itemsize if stride else 0
    return first, stride, rows, H5Dget_offset(table.id) + 8 * handle.rank if checksums else None


cdef int read_entries(Handle handle, object name, void* data, object n, object dtype, object error,
                      object timestep) except -1:
    cdef Dataset dataset = Dataset()
    cdef Dataset table = Dataset()
    cdef hid_t type = -1
    cdef long long first = 0, step = -1, count = 0
    cdef int64_t stored = -1
    cdef uint64_t found = 0
    cdef bint verified = False
    cdef bytes path
    log_begin(LOAD)
    try:
        sizes, _ = prepare(handle, ("read", timestep), name, n, 1, dtype, 0, NULL, error)
        error = None
        try:
            path = find(handle, name)
            dataset.open(handle, path)
            check_fit(handle, dataset, sizes, dtype, timestep)
            type = h5type(dtype)
            first, count = sum(sizes[:handle.rank]), n
            step = -1 if timestep is None else timestep
            # Bytes that HDF5 converts, and those that others stored, are not comparable.
            verified = dataset.checksum >= 0 and H5Tequal(dataset.type, type) > 0
        except Exception as exc:
            error = about(handle, exc, name)
        if handle.dxpl != H5P_DEFAULT:  # the transfer is collective
            handle.raise_everywhere(error)
        try:
            if error is None:
                with nogil:
                    dataset.move(type, handle.dxpl, data, first, count, False, step)
                if verified:
                    found = digest(data, n * dtype.itemsize, handle.rank)
                if step >= 0 and count and dataset.attribute(ROW_CHECKSUMS, 0):
                    table.open(handle, CHECKSUMS + b"/" + path)
                    table.move(H5T_NATIVE_INT64, H5P_DEFAULT, &stored, handle.rank, 1, False, step)
                    if stored != digest(data, n * dtype.itemsize, 0):
                        raise ChecksumMismatch(f"what was read of timestep {step} is not what was stored" if stored else
                                               f"nothing was stored as timestep {step}", rank=handle.rank)
        except Exception as exc:
            error = about(handle, exc, name)
        handle.raise_everywhere(error)
        if verified:
            if handle.size > 1:
                with nogil:
                    CHKMPI(mpi.MPI_Allreduce(mpi.MPI_IN_PLACE, &found, 1, mpi.MPI_UINT64_T, mpi.MPI_SUM, handle.comm))
            if <int64_t> (found & INT64_MAX) != dataset.checksum:
                raise ChecksumMismatch("what was read is not what was stored", handle.path, name)
    finally:
        log_end(LOAD, count * dtype.itemsize)
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
    begin_section()
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
    an exception).  It may open files on ``COMM_SELF``, but can take messages that its parent
    gets meanwhile: on several ranks, communicate again when the children are over.

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

    cdef readonly object comm
    cdef readonly str path
    cdef readonly str mode
    cdef object _handle

    @cython.embedsignature(False)  # Cython's own has the star in the wrong place
    def __init__(self, comm, path, mode="r", *, collective=None):
        if isinstance(comm, PETSc.Comm):
            comm = comm.tompi4py()
        self._handle = open_handle(comm, path, mode, collective)
        self.comm = comm
        self.path = (<Handle> self._handle).path
        self.mode = mode

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
        cdef bint held = False  # of no entries the array is NULL, and yet has to be given back
        cdef Handle handle = enter(self)
        error = None
        try:
            try:
                v = vec_of(vec)
                CHKERR(VecGetLocalSize(v, &n))
                CHKERR(VecGetBlockSize(v, &bs))
                CHKERR(VecGetArrayRead(v, &data))
                held = True
            except Exception as exc:
                error = exc
            try:
                write_entries(handle, name, data, n, bs, () if bs == 1 else (bs,), SCALAR, error)
            finally:
                if held:
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
        cdef long long data = 0
        cdef Handle handle = enter(self)
        error = None
        n, rows, dtype = 0, (), SCALAR
        try:
            try:
                array = np.ascontiguousarray(array)
                row = max(1, int(np.prod(array.shape[1:], dtype=np.int64)))
                h5type(array.dtype)
                n, rows, dtype, data = array.size, array.shape[1:], array.dtype, array.ctypes.data
                if dtype == SCALAR:  # a Vec has one block size
                    rows = () if row == 1 else (row,)
            except Exception as exc:
                error = exc
            write_entries(handle, name, <const void*> data, n, row, rows, dtype, error)
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
        cdef bint held = False  # see write()
        cdef Handle handle = enter(self)
        error = None
        try:
            try:
                v = vec_of(vec)
                CHKERR(VecGetLocalSize(v, &n))
                CHKERR(VecGetArrayWrite(v, &data))
                held = True
            except Exception as exc:
                error = exc
            try:
                read_entries(handle, name, data, n, SCALAR, error, timestep)
            finally:
                if held:
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
        n, dtype = 0, SCALAR
        try:
            try:
                if not (array.flags.c_contiguous and array.flags.writeable):
                    raise LayoutMismatch("the array to fill is not C-contiguous and writeable")
                h5type(array.dtype)
                n, dtype, data = array.size, array.dtype, array.ctypes.data
            except Exception as exc:
                error = exc
            read_entries(handle, name, <void*> data, n, dtype, error, timestep)
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
            raise about(handle, exc, None)
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
            raise about(handle, exc, name)
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
            raise about(handle, exc, name)
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
                error = about(handle, exc, None)
            handle.raise_everywhere(error)
        finally:
            end_capture()

    def agree(self, bytearray flags not None):
        """Keep those of `flags` that every rank has set. Collective on the file's communicator.

        Parameters
        ----------
        flags : bytearray
            0 or 1 each, changed in place; as many on every rank.
        """
        cdef char* bits = PyByteArray_AS_STRING(flags)
        cdef int n = <int> len(flags)
        cdef Handle handle = enter(self)
        try:
            if handle.size > 1 and n:
                with nogil:
                    CHKMPI(mpi.MPI_Allreduce(mpi.MPI_IN_PLACE, bits, n, mpi.MPI_UNSIGNED_CHAR,
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
