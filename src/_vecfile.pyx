# cython: language_level=3, embedsignature=True
"""HDF5 files of PETSc Vecs on any communicator."""

import atexit
import errno as _errno
import os
import pickle
import warnings

import numpy as np
from mpi4py import MPI
from petsc4py import PETSc

from libc.stdint cimport int32_t, int64_t
from mpi4py cimport libmpi as mpi
from mpi4py.MPI cimport Comm
from petsc4py.PETSc cimport Vec

from hdf5 cimport *
from petsc cimport *
from localckpt._errors cimport CHKERR, CHKH5, CHKMPI, begin_capture, end_capture
from localckpt._errors import (ClosedFile, FileNotFound, LayoutMismatch, NoAccess, NotHDF5,
                               StorageError, TransferError, UnknownDataset)

__all__ = ["VecFile"]

cdef enum:
    MAXDIM = 32

# How many PetscInts there can be, and what one PetscReal is in HDF5.
cdef long long PETSCINT_MAX = (<long long> 1 << (8 * sizeof(PetscInt) - 1)) - 1 if sizeof(PetscInt) < 8 \
    else 0x7fffffffffffffff
cdef hid_t H5_REAL = H5T_NATIVE_FLOAT if sizeof(PetscReal) == 4 else H5T_NATIVE_DOUBLE
SCALAR = np.dtype(PETSc.ScalarType)

# -----------------------------------------------------------------------------
# -log_view: one event each way; bytes show up as PETSc's messages do
# -----------------------------------------------------------------------------

cdef PetscLogEvent SAVE, LOAD


def _register_events():
    cdef PetscClassId package = 0
    CHKERR(PetscClassIdRegister(b"localckpt", &package))
    CHKERR(PetscLogEventRegister(b"localckptSave", package, &SAVE))
    CHKERR(PetscLogEventRegister(b"localckptLoad", package, &LOAD))


_register_events()


cdef inline void log_begin(PetscLogEvent event) noexcept nogil:
    PetscLogEventBegin(event, NULL, NULL, NULL, NULL)


cdef inline void log_end(PetscLogEvent event, long long nbytes) noexcept nogil:
    count_message(nbytes)
    PetscLogEventEnd(event, NULL, NULL, NULL, NULL)


cdef extern from *:
    """
    /* Both counters exist only in a PETSc with logging. */
    #if defined(PETSC_USE_LOG)
      #define count_message(nbytes) (petsc_send_ct += 1, petsc_send_len += (nbytes))
    #else
      #define count_message(nbytes) ((void)(nbytes))
    #endif
    """
    void count_message(long long) noexcept nogil


# -----------------------------------------------------------------------------
# What is behind an open file
# -----------------------------------------------------------------------------

cdef class Handle:
    """PETSc's viewer, its HDF5 id and PETSc's own duplicate of the communicator.

    Apart from :class:`VecFile` so that it outlives one that was dropped: closing is
    collective, and garbage collection is not.
    """

    cdef mpi.MPI_Comm comm
    cdef int rank, size
    cdef PetscViewer viewer
    cdef hid_t id, dxpl
    cdef int dropped
    cdef readonly str path, mode
    cdef dict layouts  # number -> sizes of all ranks, and back

    def __cinit__(self):
        self.viewer = NULL
        self.dxpl = H5P_DEFAULT
        self.layouts = {}

    cdef settle(self, error):
        """Raise the error of the lowest failing rank on every rank. Collective."""
        cdef int first = self.size if error is None else self.rank
        cdef int n = 0
        cdef char* buffer
        if self.size == 1:
            if error is not None:
                raise error
            return
        with nogil:
            CHKMPI(mpi.MPI_Allreduce(mpi.MPI_IN_PLACE, &first, 1, mpi.MPI_INT, mpi.MPI_MIN, self.comm))
        if first == self.size:
            return
        payload = b""
        if first == self.rank:
            if isinstance(error, StorageError) and error.rank is None:
                error.rank = self.rank
            payload = pickle.dumps(error)
        n = len(payload)
        with nogil:
            CHKMPI(mpi.MPI_Bcast(&n, 1, mpi.MPI_INT, first, self.comm))
        payload = payload or bytes(n)
        buffer = payload
        with nogil:
            CHKMPI(mpi.MPI_Bcast(buffer, n, mpi.MPI_CHAR, first, self.comm))
        raise pickle.loads(payload)

    cdef tuple exchange(self, long long n):
        """Everybody's number of entries. Collective."""
        cdef int64_t mine = n
        cdef int64_t[::1] sizes
        if self.size == 1:
            return (n,)
        sizes = np.empty(self.size, dtype=np.int64)
        with nogil:
            CHKMPI(mpi.MPI_Allgather(&mine, 1, mpi.MPI_INT64_T, &sizes[0], 1, mpi.MPI_INT64_T, self.comm))
        return tuple(sizes)

    cdef int close(self) except -1:
        """Give everything back. Collective where there are several ranks."""
        cdef PetscViewer viewer = self.viewer
        cdef hid_t dxpl = self.dxpl
        error = None
        if viewer == NULL:
            return 0
        self.viewer = NULL
        files.remove(self)
        begin_capture()
        try:
            with nogil:
                if dxpl != H5P_DEFAULT:
                    CHKH5(H5Pclose(dxpl))
                CHKERR(PetscViewerDestroy(&viewer))
        except StorageError as exc:
            exc.file = self.path
            error = exc
        finally:
            end_capture()
        try:
            self.settle(error)
        finally:
            PetscCommDestroy(&self.comm)
        return 0


# Every file that is open in this process, in the order of opening. Opening is collective,
# so on each communicator all its ranks have the same files here in the same order.
files = []


cdef reap(Handle new):
    """Close the files of new's communicator that every rank has dropped. Collective."""
    cdef int n
    cdef int[::1] dropped
    cdef Handle old
    mine = [old for old in files if (<Handle> old).comm == new.comm and old is not new]
    if not mine:
        return
    dropped = np.array([(<Handle> old).dropped for old in mine], dtype=np.intc)
    n = len(mine)
    if new.size > 1:
        with nogil:
            CHKMPI(mpi.MPI_Allreduce(mpi.MPI_IN_PLACE, &dropped[0], n, mpi.MPI_INT, mpi.MPI_MIN, new.comm))
    for i, old in enumerate(mine):
        if dropped[i]:
            old.close()


@atexit.register
def _close_all():
    cdef Handle handle
    cdef PetscBool gone = PETSC_FALSE
    PetscFinalized(&gone)
    if gone or MPI.Is_finalized():
        return
    for handle in list(files):
        try:
            handle.close()
        except StorageError as exc:
            warnings.warn(f"closing at exit: {exc}", ResourceWarning)


# -----------------------------------------------------------------------------
# Names
# -----------------------------------------------------------------------------

cdef bytes LAYOUTS = b"%layouts"         # no encoded name starts like this
cdef bytes LAYOUT = b"localckpt_layout"  # attribute of a dataset: its number in there


cdef bytes encode(object name):
    """The HDF5 link name for any string: '/' would make groups, '.' means 'here'."""
    if not isinstance(name, str) or not name:
        raise ValueError(f"a dataset name is a non-empty string, not {name!r}")
    name = name.replace("%", "%25").replace("/", "%2F").replace("\0", "%00")
    return ("%2E" if name == "." else name).encode(errors="surrogateescape")


cdef str decode(bytes link):
    name = link.decode(errors="surrogateescape")
    return (name.replace("%2E", ".").replace("%00", "\0").replace("%2F", "/").replace("%25", "%"))


cdef bint exists(hid_t where, bytes path):
    """Whether every link along path is there."""
    cdef bytes part = b""
    for piece in path.strip(b"/").split(b"/"):
        part += piece
        if H5Lexists(where, part, H5P_DEFAULT) <= 0:
            return False
        part += b"/"
    return True


cdef herr_t add_name(hid_t group, const char* path, const void* info, void* names) noexcept with gil:
    cdef hid_t thing = H5Oopen(group, path, H5P_DEFAULT)
    cdef bytes link = path
    if thing >= 0:
        if H5Iget_type(thing) == H5I_DATASET and not link.startswith(LAYOUTS):
            (<list> names).append(decode(link))
        H5Oclose(thing)
    return 0


# -----------------------------------------------------------------------------
# Datasets
# -----------------------------------------------------------------------------

cdef class Dataset:
    """An open dataset and what there is to know of it."""

    cdef hid_t id, space
    cdef int ndims, is_complex
    cdef hsize_t dims[MAXDIM]
    cdef H5T_class_t kind
    cdef int32_t layout

    def __cinit__(self):
        self.id = self.space = -1
        self.layout = -1

    cdef int open(self, Handle handle, bytes path) except -1:
        cdef hid_t kind
        self.id = CHKH5(H5Dopen2(handle.id, path, H5P_DEFAULT))
        self.space = CHKH5(H5Dget_space(self.id))
        self.ndims = <int> CHKH5(H5Sget_simple_extent_ndims(self.space))
        if self.ndims > 0:
            CHKH5(H5Sget_simple_extent_dims(self.space, self.dims, NULL))
        kind = CHKH5(H5Dget_type(self.id))
        self.kind = H5Tget_class(kind)
        H5Tclose(kind)
        self.layout = self.attribute(LAYOUT, -1)
        self.is_complex = self.attribute(b"complex", 0)  # PETSc's own mark
        return 0

    cdef int32_t attribute(self, bytes name, int32_t value) except? -2:
        cdef hid_t attribute
        if CHKH5(H5Aexists(self.id, name)):
            attribute = CHKH5(H5Aopen(self.id, name, H5P_DEFAULT))
            CHKH5(H5Aread(attribute, H5T_NATIVE_INT32, &value))
            H5Aclose(attribute)
        return value

    cdef int mark(self, bytes name, int32_t value) except -1:
        """Set an integer attribute. Collective."""
        cdef hid_t space, attribute
        if CHKH5(H5Aexists(self.id, name)):
            attribute = CHKH5(H5Aopen(self.id, name, H5P_DEFAULT))
        else:
            space = CHKH5(H5Screate(H5S_SCALAR))
            attribute = H5Acreate2(self.id, name, H5T_NATIVE_INT32, space, H5P_DEFAULT, H5P_DEFAULT)
            H5Sclose(space)
            CHKH5(attribute)
        CHKH5(H5Awrite(attribute, H5T_NATIVE_INT32, &value))
        H5Aclose(attribute)
        return 0

    def shape(self):
        return tuple([self.dims[i] for i in range(self.ndims)])

    cdef long long entries(self):
        """Numbers in all: a complex one counts once."""
        cdef long long n = 1
        for i in range(self.ndims):
            n *= self.dims[i]
        return n // 2 if self.is_complex else n

    cdef int move(self, hid_t type, hid_t dxpl, void* data, long long first, long long n,
                  bint writing) except -1 nogil:
        """Move entries [first, first + n) between data and the file, in whole rows."""
        cdef hsize_t start[MAXDIM]
        cdef hsize_t count[MAXDIM]
        cdef hsize_t row = 1, reals
        cdef hid_t memory
        cdef herr_t status
        cdef int i
        reals = <hsize_t> n * (2 if self.is_complex else 1)
        for i in range(1, self.ndims):
            start[i] = 0
            count[i] = self.dims[i]
            row *= self.dims[i]
        start[0] = (<hsize_t> first * (2 if self.is_complex else 1)) // row if row else 0
        count[0] = reals // row if row else 0
        memory = CHKH5(H5Screate_simple(1, &reals, NULL))
        if reals == 0:
            status = H5Sselect_none(self.space)
            H5Sselect_none(memory)
        else:
            status = H5Sselect_hyperslab(self.space, H5S_SELECT_SET, start, NULL, count, NULL)
        if status >= 0:
            if writing:
                status = H5Dwrite(self.id, type, memory, self.space, dxpl, data)
            else:
                status = H5Dread(self.id, type, memory, self.space, dxpl, data)
        CHKH5(status)
        CHKH5(H5Sclose(memory))
        return 0

    def __dealloc__(self):
        if self.space >= 0:
            H5Sclose(self.space)
        if self.id >= 0:
            H5Dclose(self.id)


cdef hid_t h5type(object dtype) except? -1:
    """HDF5's type for a NumPy dtype; a complex number is two reals."""
    cdef hid_t type = -1
    dtype = np.dtype(dtype)
    if dtype.isnative:
        key = (dtype.kind, dtype.itemsize // (2 if dtype.kind == "c" else 1))
        if key in (("f", 4), ("c", 4)):
            type = H5T_NATIVE_FLOAT
        elif key in (("f", 8), ("c", 8)):
            type = H5T_NATIVE_DOUBLE
        elif key in (("i", 1), ("i", 2), ("i", 4), ("i", 8)):
            type = [H5T_NATIVE_INT8, H5T_NATIVE_INT16, H5T_NATIVE_INT32, H5T_NATIVE_INT64][key[1].bit_length() - 1]
        elif key in (("u", 1), ("u", 2), ("u", 4), ("u", 8)):
            type = [H5T_NATIVE_UINT8, H5T_NATIVE_UINT16, H5T_NATIVE_UINT32, H5T_NATIVE_UINT64][key[1].bit_length() - 1]
    if type < 0:
        raise TypeError(f"cannot store NumPy arrays of dtype {dtype!r}")
    return type


cdef bytes find(Handle handle, object name):
    """Where name is: under its encoded name, or at that path in a file of PETSc's."""
    path = encode(name)
    if exists(handle.id, path):
        return path
    path = name.encode(errors="surrogateescape")
    if b"\0" not in path and path.strip(b"/.") and exists(handle.id, path):
        return path
    raise UnknownDataset("no such dataset")


cdef tuple layout_sizes(Handle handle, int32_t number):
    """The sizes of all ranks in layout `number`."""
    cdef Dataset table
    cdef int64_t[::1] sizes
    if number not in handle.layouts:
        table = Dataset()
        table.open(handle, LAYOUTS + b"/%d" % number)
        sizes = np.empty(max(1, table.entries()), dtype=np.int64)
        table.move(H5T_NATIVE_INT64, H5P_DEFAULT, &sizes[0], 0, table.entries(), False)
        handle.layouts[number] = tuple(np.asarray(sizes)[:table.entries()].tolist())
        handle.layouts[handle.layouts[number]] = number
    return handle.layouts[number]


cdef int layout_number(Handle handle, tuple sizes) except -1:
    """The number of the layout with these sizes, recorded if it is new. Collective."""
    cdef Dataset table
    cdef hid_t space, group
    cdef hsize_t n = len(sizes)
    cdef int64_t[::1] values
    if sizes in handle.layouts:
        return handle.layouts[sizes]
    if not exists(handle.id, LAYOUTS):
        group = CHKH5(H5Gcreate2(handle.id, LAYOUTS, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT))
        H5Gclose(group)
    number = 0
    while exists(handle.id, LAYOUTS + b"/%d" % number):  # of an earlier opening of this file
        if layout_sizes(handle, number) == sizes:
            return number
        number += 1
    table = Dataset()
    space = CHKH5(H5Screate_simple(1, &n, NULL))
    table.id = H5Dcreate2(handle.id, LAYOUTS + b"/%d" % number, H5T_NATIVE_INT64, space,
                          H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT)
    H5Sclose(space)
    CHKH5(table.id)
    if handle.rank == 0:
        values = np.array(sizes, dtype=np.int64)
        CHKH5(H5Dwrite(table.id, H5T_NATIVE_INT64, H5S_ALL, H5S_ALL, H5P_DEFAULT, &values[0]))
    handle.layouts[sizes] = number
    handle.layouts[number] = sizes
    return number


# -----------------------------------------------------------------------------
# The collective operations
# -----------------------------------------------------------------------------

cdef object blame(Handle handle, error, name):
    """Say which file and dataset an error is about."""
    if isinstance(error, StorageError):
        error.file, error.dataset = handle.path, name
    return error


cdef refuse(Handle handle, error, name):
    """Raise on all ranks what this one found before any of them began. Collective."""
    handle.exchange(-1)
    handle.settle(blame(handle, error, name))


cdef tuple prepare(Handle handle, object name, long long n, long long bs, bint writing):
    """Local checks, then everybody's sizes. Collective."""
    error = None
    try:
        if writing and handle.mode == "r":
            raise NoAccess("the file is open for reading only", errno=_errno.EACCES)
        encode(name)
        if n % bs:
            raise LayoutMismatch(f"{n} entries are not whole blocks of {bs}")
    except Exception as exc:
        error = blame(handle, exc, name)
    sizes = handle.exchange(n if error is None else -1)
    if min(sizes) < 0:
        handle.settle(error)
    if sum(sizes) > PETSCINT_MAX:
        raise LayoutMismatch(f"{sum(sizes)} entries are more than this PETSc's integers count: "
                             "configure PETSc with 64-bit indices", handle.path, name)
    return sizes


cdef int check_old(Handle handle, bytes path, tuple shape, bint is_complex) except -1:
    """Only a dataset of the same shape is written over."""
    cdef Dataset old
    if exists(handle.id, path):
        old = Dataset()
        old.open(handle, path)
        shape += (2,) if is_complex else ()
        if old.shape() != shape:
            raise LayoutMismatch(f"a dataset of shape {old.shape()} has this name; {shape} does not replace it")
    return 0


cdef int check_fit(Handle handle, Dataset dataset, tuple sizes, object dtype) except -1:
    """Whether arrays of these sizes and this dtype are what was written."""
    wanted = "complex" if dtype.kind == "c" else "integer" if dtype.kind in "iu" else "real"
    stored = ("complex" if dataset.is_complex else "integer" if dataset.kind == H5T_INTEGER else
              "real" if dataset.kind == H5T_FLOAT else "other")
    if stored != wanted or dataset.ndims == 0:
        raise LayoutMismatch(f"stored are {stored} numbers, to be read are {wanted} ones")
    if dataset.entries() != sum(sizes):
        raise LayoutMismatch(f"stored are {dataset.entries()} entries, to be read are {sum(sizes)}")
    if dataset.layout >= 0:
        written = layout_sizes(handle, dataset.layout)
        if len(written) != len(sizes):
            raise LayoutMismatch(f"written by {len(written)} ranks, to be read by {len(sizes)}")
        for rank, (then, now) in enumerate(zip(written, sizes)):
            if then != now:
                raise LayoutMismatch(f"{then} entries were written by rank {rank}, "
                                     f"which is to read {now}", rank=rank)
    row = 1
    for i in range(1, dataset.ndims):
        row *= dataset.dims[i]
    row //= 2 if dataset.is_complex else 1
    if row > 1 and any(n % row for n in sizes):
        raise LayoutMismatch(f"a rank's entries are not whole rows of {row}")
    return 0


cdef int write_scalars(Handle handle, object name, const void* data, long long n, long long bs) except -1:
    cdef Dataset dataset
    cdef PetscVec v = NULL
    cdef PetscErrorCode ierr = 0
    cdef bytes path
    cdef const char* link
    log_begin(SAVE)
    begin_capture()
    try:
        sizes = prepare(handle, name, n, bs, writing=True)
        error = None
        try:
            path = encode(name)
            link = path
            check_old(handle, path, (sum(sizes) // bs,) + (() if bs == 1 else (bs,)), SCALAR.kind == "c")
            with nogil:
                CHKERR(VecCreateMPIWithArray(handle.comm, <PetscInt> bs, <PetscInt> n, PETSC_DECIDE,
                                             <const PetscScalar*> data, &v))
                CHKERR(PetscObjectSetName(<PetscObject> v, link))
                ierr = VecView(v, handle.viewer)
                VecDestroy(&v)
                CHKERR(ierr)
            dataset = Dataset()
            dataset.open(handle, path)
            dataset.mark(LAYOUT, layout_number(handle, sizes))
        except Exception as exc:
            error = blame(handle, exc, name)
            # VecView ends in a collective flush, where the others wait for a rank
            # whose own transfer failed.
            if handle.size > 1 and "H5Dwrite" in str(exc):
                with nogil:
                    H5Fflush(handle.id, H5F_SCOPE_GLOBAL)
        handle.settle(error)
    finally:
        end_capture()
        log_end(SAVE, n * sizeof(PetscScalar))
    return 0


cdef int write_entries(Handle handle, object name, object array, long long row) except -1:
    """Numbers other than PetscScalar: a dataset of our own making."""
    cdef Dataset dataset = Dataset()
    cdef hsize_t dims[MAXDIM]
    cdef hid_t space, type
    cdef bytes path
    cdef long long data = array.ctypes.data
    log_begin(SAVE)
    begin_capture()
    try:
        sizes = prepare(handle, name, array.size, max(1, row), writing=True)
        error = None
        try:
            path = encode(name)
            type = h5type(array.dtype)
            shape = (sum(sizes) // max(1, row),) + array.shape[1:]
            check_old(handle, path, shape, array.dtype.kind == "c")
            if not exists(handle.id, path):
                shape += (2,) if array.dtype.kind == "c" else ()
                for i, dim in enumerate(shape):
                    dims[i] = dim
                space = CHKH5(H5Screate_simple(len(shape), dims, NULL))
                dataset.id = H5Dcreate2(handle.id, path, type, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT)
                H5Sclose(space)
                CHKH5(dataset.id)
                if array.dtype.kind == "c":
                    dataset.mark(b"complex", 1)
                dataset.mark(LAYOUT, layout_number(handle, sizes))
                dataset = Dataset()
            dataset.open(handle, path)
            dataset.mark(LAYOUT, layout_number(handle, sizes))
            dataset.move(type, handle.dxpl, <void*> data, sum(sizes[:handle.rank]), array.size, True)
        except Exception as exc:
            error = blame(handle, exc, name)
        handle.settle(error)
    finally:
        end_capture()
        log_end(SAVE, array.nbytes)
    return 0


cdef int read_entries(Handle handle, object name, void* data, long long n, object dtype) except -1:
    cdef Dataset dataset = Dataset()
    cdef hid_t type
    cdef long long first
    log_begin(LOAD)
    begin_capture()
    try:
        sizes = prepare(handle, name, n, 1, writing=False)
        error = None
        try:
            dataset.open(handle, find(handle, name))
            check_fit(handle, dataset, sizes, np.dtype(dtype))
            type = h5type(dtype)
            first = sum(sizes[:handle.rank])
            with nogil:
                dataset.move(type, handle.dxpl, data, first, n, False)
        except Exception as exc:
            error = blame(handle, exc, name)
        handle.settle(error)
    finally:
        end_capture()
        log_end(LOAD, n * dtype.itemsize)
    return 0


cdef Handle open_handle(object comm, str path, str mode, bint collective):
    """Open path, or raise the same exception on every rank of comm. Collective."""
    cdef Handle handle = Handle()
    cdef bytes name = os.fsencode(path)
    cdef const char* cname = name
    cdef PetscFileMode how
    cdef int fresh
    if not isinstance(comm, Comm) or comm == MPI.COMM_NULL:
        raise ClosedFile(f"{comm!r} is no communicator", file=path)
    handle.path = path
    handle.mode = mode
    begin_capture()
    try:
        CHKERR(PetscCommDuplicate((<Comm> comm).ob_mpi, &handle.comm, NULL))
        CHKMPI(mpi.MPI_Comm_rank(handle.comm, &handle.rank))
        CHKMPI(mpi.MPI_Comm_size(handle.comm, &handle.size))
        try:
            reap(handle)
            fresh = agree_on_file(handle, mode)
            how = (FILE_MODE_WRITE if fresh else FILE_MODE_READ if mode == "r" else FILE_MODE_APPEND)
            error = None
            try:
                with nogil:
                    CHKERR(PetscViewerHDF5Open(handle.comm, cname, how, &handle.viewer))
                    # PETSc has read -viewer_hdf5_sp_output and -viewer_hdf5_collective, which are
                    # meant for the user's other viewers: a checkpoint keeps its precision.
                    CHKERR(PetscViewerHDF5SetSPOutput(handle.viewer, PETSC_FALSE))
                    CHKERR(PetscViewerHDF5SetCollective(handle.viewer, <PetscBool> collective))
                    CHKERR(PetscViewerHDF5GetFileId(handle.viewer, &handle.id))
                    if collective:
                        handle.dxpl = CHKH5(H5Pcreate(H5P_DATASET_XFER))
                        CHKH5(H5Pset_dxpl_mpio(handle.dxpl, H5FD_MPIO_COLLECTIVE))
            except StorageError as exc:
                # The path was there and could be opened, so what HDF5 objects to is its content.
                error = (exc if fresh else NotHDF5(exc.cause))
                error.file = path
            handle.settle(error)
        except BaseException:
            if handle.viewer != NULL:
                PetscViewerDestroy(&handle.viewer)
                handle.viewer = NULL
            PetscCommDestroy(&handle.comm)
            raise
    finally:
        end_capture()
    files.append(handle)
    return handle


cdef int agree_on_file(Handle handle, str mode) except -1:
    """Whether to create the file, once every rank can open it. Collective.

    MPI-IO and HDF5 go on where some ranks see a file and others don't, and then hang.
    """
    cdef int fresh = mode == "w"
    flags = os.O_RDONLY if mode == "r" else os.O_RDWR
    for turn in (handle.rank == 0, handle.rank > 0):  # rank 0 creates, then the others look
        error = None
        if turn:
            try:
                if handle.rank == 0 and mode == "a":
                    fresh = not os.path.exists(handle.path)
                create = os.O_CREAT if fresh and handle.rank == 0 else 0
                os.close(os.open(handle.path, flags | create, 0o600))
                if os.path.isdir(handle.path):  # which can be opened for reading
                    raise IsADirectoryError(_errno.EISDIR, os.strerror(_errno.EISDIR))
            except OSError as exc:
                kind = (FileNotFound if exc.errno in (_errno.ENOENT, _errno.ENOTDIR) else
                        NoAccess if exc.errno in (_errno.EACCES, _errno.EPERM, _errno.EROFS) else
                        TransferError)
                error = kind(exc.strerror, handle.path, errno=exc.errno)
        handle.settle(error)
        if handle.size == 1:
            break
    if mode == "a" and handle.size > 1:
        with nogil:
            CHKMPI(mpi.MPI_Bcast(&fresh, 1, mpi.MPI_INT, 0, handle.comm))
    return fresh


# -----------------------------------------------------------------------------
# VecFile
# -----------------------------------------------------------------------------

cdef Handle checked(VecFile file):
    if file.closed:
        raise ClosedFile("the file is closed", file=file.path)
    return file._handle


cdef class VecFile:
    """VecFile(comm, path, mode="r", *, collective=None)

    An HDF5 file of PETSc Vecs on any communicator.

    What is stored under a name is the part of a Vec or array that each rank of `comm`
    owns, in rank order, whatever communicator the Vec itself lives on: on
    ``COMM_SELF`` each rank has a file of its own.  The file is an ordinary PETSc HDF5
    file: ``VecLoad``, h5py and h5dump read it, and files that ``VecView`` wrote are
    read here.  Opening is collective on `comm`.

    Parameters
    ----------
    comm : mpi4py.MPI.Intracomm or petsc4py.PETSc.Comm
        The file's communicator.
    path : str or os.PathLike
        The file, the same on every rank of `comm`.
    mode : {"r", "w", "a"}
        Read; create or truncate; read and write, creating the file if it is missing.
    collective : bool, optional
        Use collective MPI-IO transfers (``PetscViewerHDF5SetCollective``): worth it for
        many ranks on a parallel filesystem.  Default: the PETSc option
        ``-localckpt_collective``, else False.

    Raises
    ------
    FileNotFound, NoAccess, NotHDF5, ClosedFile, TransferError
        On every rank of `comm`.

    See Also
    --------
    petsc.PetscViewerHDF5Open
    """

    def __init__(self, comm, path, mode="r", *, collective=None):
        if mode not in ("r", "w", "a"):
            raise ValueError(f"mode is 'r', 'w' or 'a', not {mode!r}")
        if isinstance(comm, PETSc.Comm):
            comm = comm.tompi4py()
        if collective is None:
            collective = PETSc.Options("localckpt_").getBool("collective", False)
        self.comm = comm
        self.path = os.fspath(path)
        self.mode = mode
        self._handle = open_handle(comm, self.path, mode, collective)

    cdef int write_scalars(self, object name, const void* data, long long n, long long bs) except -1:
        return write_scalars(checked(self), name, data, n, bs)

    cdef int read_scalars(self, object name, void* data, long long n) except -1:
        return read_entries(checked(self), name, data, n, SCALAR)

    # ------------------------------------------------------------------ writing

    def write(self, name, Vec vec not None):
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
        cdef PetscVec v = <PetscVec> vec.vec
        cdef PetscInt n = 0, bs = 1
        cdef const PetscScalar* data = NULL
        begin_capture()
        try:
            try:
                CHKERR(VecGetLocalSize(v, &n))
                CHKERR(VecGetBlockSize(v, &bs))
                CHKERR(VecGetArrayRead(v, &data))
            except StorageError as exc:
                refuse(checked(self), exc, name)
            try:
                write_scalars(checked(self), name, data, n, bs)
            finally:
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
        array = np.ascontiguousarray(array)
        row = int(np.prod(array.shape[1:], dtype=np.int64))
        cdef long long data = array.ctypes.data
        if array.dtype == SCALAR:
            write_scalars(checked(self), name, <const void*> data, array.size, max(1, row))
        else:
            write_entries(checked(self), name, array, row)

    # ------------------------------------------------------------------ reading

    def read(self, name, Vec vec not None):
        """Fill `vec` with what is stored under `name`.

        Collective on the file's communicator.  The bytes land once, in the Vec's own
        memory (``VecLoad`` would allocate an array and replace the Vec's).

        Parameters
        ----------
        name : str
        vec : petsc4py.PETSc.Vec
            Partitioned like the one that was written.

        Raises
        ------
        UnknownDataset, LayoutMismatch, ClosedFile, TransferError
            On every rank of the file's communicator.

        See Also
        --------
        petsc.VecLoad
        """
        cdef PetscVec v = <PetscVec> vec.vec
        cdef PetscInt n = 0
        cdef PetscScalar* data = NULL
        begin_capture()
        try:
            try:
                CHKERR(VecGetLocalSize(v, &n))
                CHKERR(VecGetArrayWrite(v, &data))
            except StorageError as exc:
                refuse(checked(self), exc, name)
            try:
                read_entries(checked(self), name, data, n, SCALAR)
            finally:
                VecRestoreArrayWrite(v, &data)
        finally:
            end_capture()

    def read_array(self, name, array):
        """Fill `array` with this rank's part of what is stored under `name`.

        Collective on the file's communicator.

        Parameters
        ----------
        name : str
        array : numpy.ndarray
            C-contiguous and writeable, of as many entries as were written here.

        Raises
        ------
        UnknownDataset, LayoutMismatch, ClosedFile, TransferError
            On every rank of the file's communicator.
        """
        cdef long long data = array.ctypes.data
        if not (array.flags.c_contiguous and array.flags.writeable):
            refuse(checked(self), LayoutMismatch("the array to fill is not C-contiguous and writeable"), name)
        read_entries(checked(self), name, <void*> data, array.size, array.dtype)

    # ------------------------------------------------------------------ looking

    def names(self):
        """Names of all datasets, sorted. Not collective.

        Returns
        -------
        list of str
        """
        cdef Handle handle = checked(self)
        found = []
        begin_capture()
        try:
            CHKH5(H5Lvisit(handle.id, H5_INDEX_NAME, H5_ITER_INC, <H5L_iterate_t> add_name, <void*> found))
        except StorageError as exc:
            raise blame(handle, exc, None)
        finally:
            end_capture()
        return sorted(found)

    def __contains__(self, name):
        cdef Handle handle = checked(self)
        begin_capture()
        try:
            find(handle, name)
            return True
        except UnknownDataset:
            return False
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
        UnknownDataset, ClosedFile, TransferError
        """
        cdef Handle handle = checked(self)
        cdef Dataset dataset = Dataset()
        begin_capture()
        try:
            dataset.open(handle, find(handle, name))
            written = layout_sizes(handle, dataset.layout) if dataset.layout >= 0 else ()
            return (written[handle.rank] if len(written) == handle.size else None), dataset.entries()
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
        cdef Handle handle = checked(self)
        error = None
        begin_capture()
        try:
            with nogil:
                CHKH5(H5Fflush(handle.id, H5F_SCOPE_GLOBAL))
        except StorageError as exc:
            error = blame(handle, exc, None)
        finally:
            end_capture()
        handle.settle(error)

    def agree(self, flags):
        """Keep those of `flags` that every rank has set. Collective on the file's communicator.

        Parameters
        ----------
        flags : numpy.ndarray of uint8
            0 or 1 each, changed in place; as many on every rank.
        """
        cdef Handle handle = checked(self)
        cdef unsigned char[::1] bits = flags
        cdef int n = <int> bits.shape[0]
        if handle.size > 1 and n:
            with nogil:
                CHKMPI(mpi.MPI_Allreduce(mpi.MPI_IN_PLACE, &bits[0], n, mpi.MPI_UNSIGNED_CHAR,
                                         mpi.MPI_MIN, handle.comm))

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
    def closed(self):
        """bool: whether this object can no longer be used."""
        return self._handle is None or (<Handle> self._handle).viewer == NULL

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    def __del__(self):
        if not self.closed:
            warnings.warn(f"{self!r} was not closed", ResourceWarning, source=self)
            self.drop()

    def __repr__(self):
        return f"<{'closed ' if self.closed else ''}VecFile {self.path!r}, mode {self.mode!r}>"
