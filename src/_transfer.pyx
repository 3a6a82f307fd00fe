# cython: language_level=3
"""The collective operations on a file's datasets: write, read, create rows.

Each begins with the checks that a rank can make by itself, and one agreement: every rank makes the same
call and none has an error.  HDF5's metadata change only after that, in the same order on all ranks.
"""

import errno as _errno
import os

import numpy as np
from petsc4py import PETSc

from libc.stdint cimport INT64_MAX, int64_t, uint64_t
from mpi4py cimport libmpi as mpi

from hdf5 cimport (H5Dget_offset, H5Ldelete, H5P_DEFAULT, H5S_MAX_RANK, H5T_FLOAT, H5T_INTEGER, H5T_NATIVE_INT64,
                   H5Tequal, H5Tget_class, H5Tget_sign, H5Tget_size, hid_t)
from petsc cimport (PETSC_DECIDE, PetscErrorCode, PetscInt, PetscObject, PetscObjectSetName, PetscScalar, PetscVec,
                    VecCreateMPIWithArray, VecDestroy, VecView)
from localckpt._checksum cimport checksum_of
from localckpt._dataset cimport (Dataset, checksum_table, encode, exists, find, find_layout, hdf5_type, layout_sizes,
                                 make_checksum_group, record_layout)
from localckpt._errors cimport CHKERR, CHKH5, CHKMPI
from localckpt._errors import ChecksumError, FileAccessError, LayoutError, TransferError
from localckpt._log cimport LOAD, SAVE, log_begin, log_end

# How many entries a PetscInt counts.
cdef long long PETSCINT_MAX = ((<long long> 1 << (8 * sizeof(PetscInt) - 2)) - 1) * 2 + 1
SCALAR = np.dtype(PETSc.ScalarType)


cdef tuple check_and_agree(Handle handle, tuple call, object name, object n, long long row_size, object dtype,
                           int ndim, const void* data, object error):
    """Check the arguments, then agree on the call (:meth:`Handle.agree_on_call`). Collective.

    Returns all ranks' numbers of entries, and the checksum of all ranks' data if there are any.
    """
    nbytes = 0
    if error is None:
        try:
            if call[0] == "write" and handle.mode == "r":
                raise FileAccessError("the file is open for reading only", errno=_errno.EACCES)
            encode(name)
            hdf5_type(dtype)
            if n % row_size:
                raise LayoutError(f"{n} entries are not whole blocks of {row_size}")
            if ndim + (dtype.kind == "c") > H5S_MAX_RANK:
                raise LayoutError(f"HDF5 stores arrays of {H5S_MAX_RANK - (dtype.kind == 'c')} dimensions at most, "
                                  f"not of {ndim}")
            if data != NULL:
                nbytes = n * dtype.itemsize
        except Exception as exc:
            error = exc
    sizes, checksum = handle.agree_on_call((call, name, row_size, str(dtype)), n, nbytes, data,
                                           handle.located(error, name))
    if sum(sizes) > PETSCINT_MAX:
        raise LayoutError(f"{sum(sizes)} entries are more than this PETSc's integers count: "
                          "configure PETSc with 64-bit indices", handle.path, name)
    return sizes, checksum


# -----------------------------------------------------------------------------
# Writing
# -----------------------------------------------------------------------------

cdef int write_entries(Handle handle, object name, const void* data, object n, long long row_size, tuple row_shape,
                       object dtype, object error) except -1:
    """Store n entries at data, which are whole rows of that size and shape, or raise the error. Collective."""
    cdef Dataset dataset
    cdef hid_t type
    cdef long long first, count
    cdef bytes path
    log_begin(SAVE)
    try:
        sizes, checksum = check_and_agree(handle, ("write", row_shape), name, n, row_size, dtype, 1 + len(row_shape),
                                          data, error)
        error = storage = None
        try:
            path = encode(name)
            shape = (sum(sizes) // row_size, *row_shape)
            storage = existing_storage(handle, path, shape, dtype)
            layout, record, record_checksum = find_layout(handle, sizes)
        except Exception as exc:
            error = handle.located(exc, name)
        handle.raise_everywhere(error)  # before metadata change on some ranks only
        by_petsc = handle.size == 1 and dtype == SCALAR and storage != "contiguous" and len(row_shape) < 2
        if storage is None and not by_petsc:
            create_datasets(handle, name, [(path, shape, dtype, sum(sizes) * dtype.itemsize)])
        try:
            if by_petsc:
                if storage is None:
                    handle.reserve(-1, n * dtype.itemsize)
                view_vec(handle, path, data, n, row_size)
            record_layout(handle, sizes, layout, record, record_checksum)
            dataset = Dataset()
            dataset.open(handle, path)
            dataset.set_layout(layout)
            dataset.set_checksum(checksum)
            if not by_petsc:
                type, first, count = hdf5_type(dtype), sum(sizes[:handle.rank]), n
                with nogil:
                    dataset.transfer(type, handle.dxpl, <void*> data, first, count, True)
        except Exception as exc:
            error = handle.located(handle.as_transfer_error(exc, "writing"), name)
        handle.raise_everywhere(error)
    finally:
        log_end(SAVE, n * dtype.itemsize if error is None else 0)
    return 0


cdef object existing_storage(Handle handle, bytes path, tuple shape, object dtype):
    """How the dataset at path is stored: "chunked", "contiguous", or None if there is none. Not collective.

    Raises a LayoutError if it is not of this shape and type.
    """
    cdef Dataset dataset
    if not exists(handle, path):
        return None
    dataset = Dataset()
    dataset.open(handle, path)
    stored = dataset.shape()[:-1] if dataset.is_complex else dataset.shape()
    if stored != shape:
        raise LayoutError(f"a dataset of shape {stored} has this name; {shape} does not replace it")
    if not CHKH5(H5Tequal(dataset.type, hdf5_type(dtype))) or dataset.is_complex != (dtype.kind == "c"):
        raise LayoutError("a dataset of other numbers has this name")
    return "chunked" if dataset.is_chunked() else "contiguous"


cdef int create_datasets(Handle handle, object name, list specifications) except -1:
    """Create datasets (path, shape, dtype, bytes) and reserve their disk space: all of them or none. Collective."""
    cdef Dataset dataset
    cdef list created = []
    error = None
    try:
        for path, shape, dtype, nbytes in specifications:
            # The same calls of HDF5 on every rank, and nothing else that fails.
            dataset = Dataset()
            dataset.create(handle, path, shape, dtype)
            created.append((path, H5Dget_offset(dataset.id), nbytes))
        for _, offset, nbytes in created:
            if nbytes:
                handle.reserve(offset, nbytes)
    except Exception as exc:
        error = handle.located(handle.as_transfer_error(exc, "reserving disk space"), name)
    try:
        handle.raise_everywhere(error)
    except BaseException:
        dataset = None
        for path, _, _ in created:
            H5Ldelete(handle.id, path, H5P_DEFAULT)
        raise
    return 0


cdef int view_vec(Handle handle, const char* link, const void* data, PetscInt n, PetscInt block_size) except -1:
    """Have PETSc write a Vec. Only to a file of one rank.

    VecView ends in a collective flush, to which a rank whose own transfer has failed does not come:
    on several ranks the others would wait for it there.
    """
    cdef PetscVec v = NULL
    cdef PetscErrorCode status
    with nogil:
        CHKERR(VecCreateMPIWithArray(handle.comm, block_size, n, PETSC_DECIDE, <const PetscScalar*> data, &v))
        status = PetscObjectSetName(<PetscObject> v, link)
        if status == 0:
            status = VecView(v, handle.viewer)
        VecDestroy(&v)
        CHKERR(status)
    return 0


cdef tuple create_rows(Handle handle, object name, int rows, long long limit, object room, object array,
                       bint checksums):
    """:meth:`VecFile.create_rows`, in a section. Collective."""
    cdef Dataset dataset, table = Dataset()
    error = None
    n, dtype = 0, SCALAR
    try:
        n, dtype = array.size, array.dtype
    except Exception as exc:
        error = exc
    sizes, _ = check_and_agree(handle, ("write", rows, limit, room, checksums), name, n, 1, dtype, 1, NULL, error)
    stride = sum(sizes) * dtype.itemsize
    rows = max(1, min(rows, int(min(limit, room)) // max(1, stride)))
    if stride > room:
        raise TransferError(f"{os.strerror(_errno.EDQUOT)}: {room:.0f} bytes left of the limit, {stride} needed",
                            handle.path, name, errno=_errno.EDQUOT)
    error = None
    try:
        path = encode(name)
        specifications = [(path, (rows, sum(sizes)), dtype, rows * stride)]
        if checksums:  # a table that nobody has written to reads as zeros
            table_path = checksum_table(path)
            specifications.append((table_path, (rows, handle.size), np.dtype(np.int64), 8 * rows * handle.size))
        layout, record, record_checksum = find_layout(handle, sizes)
    except Exception as exc:
        error = handle.located(exc, name)
    handle.raise_everywhere(error)  # before metadata change on some ranks only
    try:
        if checksums:
            make_checksum_group(handle)
    except Exception as exc:
        error = handle.located(exc, name)
    handle.raise_everywhere(error)
    create_datasets(handle, name, specifications)
    try:
        record_layout(handle, sizes, layout, record, record_checksum)
        dataset = Dataset()
        dataset.open(handle, path)
        dataset.set_timestepping()  # so that VecLoad finds its way
        dataset.set_row_checksums(checksums)
        dataset.set_layout(layout)
        if checksums:
            table.open(handle, table_path)
    except Exception as exc:
        error = handle.located(exc, name)
    handle.raise_everywhere(error)
    first = H5Dget_offset(dataset.id) + sum(sizes[:handle.rank]) * dtype.itemsize if stride else 0
    return first, stride, rows, H5Dget_offset(table.id) + 8 * handle.rank if checksums else None


# -----------------------------------------------------------------------------
# Reading
# -----------------------------------------------------------------------------

cdef int read_entries(Handle handle, object name, void* data, object n, object dtype, object error,
                      object timestep) except -1:
    """Fill n entries at data and verify them, or raise the error. Collective."""
    cdef Dataset dataset = Dataset()
    cdef hid_t type = -1
    cdef long long first = 0, step = -1, count = 0
    cdef uint64_t found = 0
    cdef bint verify = False, comparable = False
    cdef bytes path
    log_begin(LOAD)
    try:
        sizes, _ = check_and_agree(handle, ("read", timestep), name, n, 1, dtype, 0, NULL, error)
        error = None
        try:
            path = find(handle, name)
            dataset.open(handle, path)
            check_layout(handle, dataset, sizes, dtype, timestep)
            type = hdf5_type(dtype)
            first, count = sum(sizes[:handle.rank]), n
            step = -1 if timestep is None else timestep
            # Bytes that HDF5 converts, and those that others stored, are not comparable.
            comparable = H5Tequal(dataset.type, type) > 0
            verify = comparable and dataset.checksum >= 0
        except Exception as exc:
            error = handle.located(exc, name)
        if handle.dxpl != H5P_DEFAULT:  # the transfer is collective
            handle.raise_everywhere(error)
        try:
            if error is None:
                with nogil:
                    dataset.transfer(type, handle.dxpl, data, first, count, False, step)
                if verify:
                    found = checksum_of(data, n * dtype.itemsize, handle.rank)
                if comparable and step >= 0 and count and dataset.has_row_checksums():
                    verify_row(handle, path, step, checksum_of(data, n * dtype.itemsize))
        except Exception as exc:
            error = handle.located(exc, name)
        handle.raise_everywhere(error)
        if verify:
            if handle.size > 1:
                with nogil:
                    CHKMPI(mpi.MPI_Allreduce(mpi.MPI_IN_PLACE, &found, 1, mpi.MPI_UINT64_T, mpi.MPI_SUM, handle.comm))
            if <int64_t> (found & INT64_MAX) != dataset.checksum:
                raise ChecksumError("what was read is not what was stored", handle.path, name)
    finally:
        log_end(LOAD, count * dtype.itemsize)
    return 0


cdef int check_layout(Handle handle, Dataset dataset, tuple sizes, object dtype, object timestep) except -1:
    """Raise a LayoutError unless the ranks can read arrays of these sizes and this dtype. Not collective."""
    wanted = "complex" if dtype.kind == "c" else "integer" if dtype.kind in "iu" else "real"
    stored = ("complex" if dataset.is_complex else "integer" if H5Tget_class(dataset.type) == H5T_INTEGER else
              "real" if H5Tget_class(dataset.type) == H5T_FLOAT else "other")
    if stored != wanted or dataset.ndims == 0:
        raise LayoutError(f"stored are {stored} numbers, to be read are {wanted} ones")
    if (H5Tget_size(dataset.type) > H5Tget_size(hdf5_type(dtype))
            or wanted == "integer" and H5Tget_sign(dataset.type) != H5Tget_sign(hdf5_type(dtype))):
        raise LayoutError(f"{dtype} does not hold the numbers that are stored")
    steps = 1
    if timestep is not None:
        if not dataset.is_timestepping():
            raise LayoutError("there are no timesteps in this dataset")
        steps = dataset.dims[0]
        if not 0 <= timestep < steps:
            raise LayoutError(f"there is no timestep {timestep} among {steps}")
    if dataset.entries() != steps * sum(sizes):
        raise LayoutError(f"stored are {dataset.entries() // steps} entries, to be read are {sum(sizes)}")
    if dataset.layout >= 0:
        written = layout_sizes(handle, dataset.layout)
        if len(written) != len(sizes):
            raise LayoutError(f"written by {len(written)} ranks, to be read by {len(sizes)}")
        for rank, (written_size, size) in enumerate(zip(written, sizes)):
            if written_size != size:
                raise LayoutError(f"{written_size} entries were written by rank {rank}, which is to read {size}",
                                  rank=rank)
    row_size = 1
    for i in range(1 if timestep is None else 2, dataset.ndims):
        row_size *= dataset.dims[i]
    row_size //= 2 if dataset.is_complex else 1
    if row_size > 1 and any(n % row_size for n in sizes):
        raise LayoutError(f"a rank's entries are not whole rows of {row_size}")
    return 0


cdef int verify_row(Handle handle, bytes path, long long timestep, int64_t checksum) except -1:
    """Raise a ChecksumError unless this rank stored a row of that checksum as this timestep. Not collective."""
    cdef Dataset table = Dataset()
    cdef int64_t stored = -1
    table.open(handle, checksum_table(path))
    with nogil:
        table.transfer(H5T_NATIVE_INT64, H5P_DEFAULT, &stored, handle.rank, 1, False, timestep)
    if stored != checksum:
        raise ChecksumError(f"what was read of timestep {timestep} is not what was stored" if stored else
                            f"nothing was stored as timestep {timestep}", rank=handle.rank)
    return 0
