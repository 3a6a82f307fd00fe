# cython: language_level=3
"""Names, datasets and layouts inside a file."""

import numpy as np

from hdf5 cimport *
from localckpt._checksum cimport checksum_of
from localckpt._errors cimport CHKH5
from localckpt._errors import ChecksumError, MissingDatasetError, StorageError, TransferError

# Groups of localckpt's own: no encoded name starts like these.
cdef bytes LAYOUTS = b"%layouts"      # a dataset for each layout: how many entries each rank owned
cdef bytes CHECKSUMS = b"%checksums"  # a dataset for each one of rows: a checksum for each row and rank

# Attributes of datasets.
cdef const char* COMPLEX = b"complex"            # PETSc's own
cdef const char* TIMESTEPPING = b"timestepping"  # PETSc's own
cdef const char* LAYOUT = b"localckpt_layout"
cdef const char* CHECKSUM = b"localckpt_checksum"
cdef const char* ROW_CHECKSUMS = b"localckpt_row_checksums"


# -----------------------------------------------------------------------------
# Names
# -----------------------------------------------------------------------------

cdef bytes encode(object name):
    """The HDF5 link name for any string: '/' would make groups, '.' means 'here'."""
    if not isinstance(name, str) or not name:
        raise ValueError(f"a dataset name is a non-empty string, not {name!r}")
    name = name.replace("%", "%25").replace("/", "%2F").replace("\0", "%00")
    return ("%2E" if name == "." else name).encode(errors="surrogateescape")


cdef str decode(bytes link):
    name = link.decode(errors="surrogateescape")
    return name.replace("%2E", ".").replace("%00", "\0").replace("%2F", "/").replace("%25", "%")


cdef bint exists(Handle handle, bytes path) except -1:
    """Whether every link along path exists."""
    cdef bytes prefix = b""
    cdef const char* c_prefix
    cdef htri_t found
    for link in path.strip(b"/").split(b"/"):
        prefix += link
        c_prefix = prefix
        with nogil:
            found = H5Lexists(handle.id, c_prefix, H5P_DEFAULT)
        if found <= 0:
            return False
        prefix += b"/"
    return True


cdef hid_t open_object(Handle handle, bytes path) except -1:
    """Open the object at path, or fail as before.

    When HDF5 could not read a part of an object header and is asked a second time, it
    takes the header for whole, without that part.
    """
    cdef const char* c_path
    path = path.strip(b"/") or b"/"
    c_path = path
    if path in handle.damaged_objects:
        raise TransferError(handle.damaged_objects[path])
    try:
        with nogil:
            return CHKH5(H5Oopen(handle.id, c_path, H5P_DEFAULT))
    except StorageError as exc:
        handle.damaged_objects[path] = exc.cause
        raise


cdef bint is_dataset(Handle handle, bytes path) except -1:
    cdef hid_t object_id
    if (b"\0" in path or path.strip(b"/").startswith((LAYOUTS, CHECKSUMS)) or not exists(handle, path)
            or H5Oexists_by_name(handle.id, path, H5P_DEFAULT) <= 0):  # a link to nothing
        return False
    object_id = open_object(handle, path)
    kind = H5Iget_type(object_id)
    H5Oclose(object_id)
    return kind == H5I_DATASET


cdef bytes find(Handle handle, object name):
    """The path of dataset `name`: its encoded name, or the name itself in a file that PETSc wrote."""
    path = encode(name)
    if is_dataset(handle, path):
        return path
    path = name.encode(errors="surrogateescape")
    if decode(path) == name and is_dataset(handle, path):  # "a%2Fb" is how "a/b" is encoded
        return path
    raise MissingDatasetError("no such dataset")


cdef herr_t append_link(hid_t group, const char* path, const void* info, void* links) noexcept with gil:
    (<list> links).append(<bytes> path)
    return 0


cdef list dataset_names(Handle handle):
    """Names of all datasets, sorted."""
    cdef list links = []
    cdef void* data = <void*> links
    with nogil:
        # In any other order HDF5 crashes where the index of a large group is damaged.
        CHKH5(H5Lvisit(handle.id, H5_INDEX_NAME, H5_ITER_NATIVE, <H5L_iterate_t> append_link, data))
    return sorted([decode(link) for link in links if is_dataset(handle, link)])


# -----------------------------------------------------------------------------
# Datasets
# -----------------------------------------------------------------------------

cdef hid_t hdf5_type(object dtype) except? -1:
    """HDF5's type for a NumPy dtype; a complex number is two reals."""
    cdef hid_t type = -1
    cdef int size
    dtype = np.dtype(dtype)
    if dtype.isnative:
        size = dtype.itemsize // (2 if dtype.kind == "c" else 1)
        if dtype.kind in ("f", "c"):
            type = H5T_NATIVE_FLOAT if size == 4 else H5T_NATIVE_DOUBLE if size == 8 else -1
        elif dtype.kind == "i":
            type = (H5T_NATIVE_INT8 if size == 1 else H5T_NATIVE_INT16 if size == 2 else
                    H5T_NATIVE_INT32 if size == 4 else H5T_NATIVE_INT64)
        elif dtype.kind == "u":
            type = (H5T_NATIVE_UINT8 if size == 1 else H5T_NATIVE_UINT16 if size == 2 else
                    H5T_NATIVE_UINT32 if size == 4 else H5T_NATIVE_UINT64)
    if type < 0:
        raise TypeError(f"cannot store NumPy arrays of dtype {dtype!r}")
    return type


cdef class Dataset:
    """An open dataset, its shape and its attributes."""

    def __cinit__(self):
        self.id = self.space = self.type = -1
        self.layout = self.checksum = -1

    def __dealloc__(self):
        if self.type >= 0:
            H5Tclose(self.type)
        if self.space >= 0:
            H5Sclose(self.space)
        if self.id >= 0:
            H5Oclose(self.id)

    cdef int open(self, Handle handle, bytes path) except -1:
        """Open the dataset at path. Not collective."""
        self.id = open_object(handle, path)
        with nogil:
            self.space = CHKH5(H5Dget_space(self.id))
            self.ndims = <int> CHKH5(H5Sget_simple_extent_ndims(self.space))
            if self.ndims > 0:
                CHKH5(H5Sget_simple_extent_dims(self.space, self.dims, NULL))
            self.type = CHKH5(H5Dget_type(self.id))
            self.layout = <int32_t> get_attribute(self.id, LAYOUT, -1)
            self.checksum = get_attribute(self.id, CHECKSUM, -1)
            self.is_complex = <int> get_attribute(self.id, COMPLEX, 0)
        return 0

    cdef int create(self, Handle handle, bytes path, tuple shape, object dtype) except -1:
        """Create a dataset at its final place in the file, in which nothing is written. Collective."""
        cdef hsize_t dims[H5S_MAX_RANK]
        cdef hid_t type = hdf5_type(dtype)
        cdef hid_t properties
        cdef const char* link = path
        cdef int i, ndims
        if dtype.kind == "c":
            shape += (2,)
        ndims = <int> len(shape)
        for i in range(ndims):
            dims[i] = shape[i]
        with nogil:
            properties = CHKH5(H5Pcreate(H5P_DATASET_CREATE))
            try:
                CHKH5(H5Pset_layout(properties, H5D_CONTIGUOUS))
                CHKH5(H5Pset_alloc_time(properties, H5D_ALLOC_TIME_EARLY))
                CHKH5(H5Pset_fill_time(properties, H5D_FILL_TIME_NEVER))
                self.space = CHKH5(H5Screate_simple(ndims, dims, NULL))
                self.id = CHKH5(H5Dcreate2(handle.id, link, type, self.space, H5P_DEFAULT, properties, H5P_DEFAULT))
            finally:
                H5Pclose(properties)
        if dtype.kind == "c":
            set_attribute(self.id, COMPLEX, 1, H5T_NATIVE_INT32)
        return 0

    cdef tuple shape(self):
        return tuple([self.dims[i] for i in range(self.ndims)])

    cdef long long entries(self) noexcept nogil:
        """How many numbers there are: a complex one counts once."""
        cdef long long n = 1
        cdef int i
        for i in range(self.ndims):
            n *= self.dims[i]
        return n // 2 if self.is_complex else n

    cdef bint is_chunked(self) except -1:
        """Whether it is stored as VecView stores, which writes over no other."""
        cdef hid_t properties = CHKH5(H5Dget_create_plist(self.id))
        cdef int layout = H5Pget_layout(properties)
        H5Pclose(properties)
        return layout == H5D_CHUNKED

    cdef bint is_timestepping(self) except -1:
        return get_attribute(self.id, TIMESTEPPING, 0) != 0

    cdef bint has_row_checksums(self) except -1:
        return get_attribute(self.id, ROW_CHECKSUMS, 0) != 0

    # Setting an attribute is collective.

    cdef int set_timestepping(self) except -1:
        return set_attribute(self.id, TIMESTEPPING, 1, H5T_NATIVE_INT32)

    cdef int set_row_checksums(self, bint value) except -1:
        return set_attribute(self.id, ROW_CHECKSUMS, value, H5T_NATIVE_INT32)

    cdef int set_layout(self, int32_t number) except -1:
        return set_attribute(self.id, LAYOUT, number, H5T_NATIVE_INT32)

    cdef int set_checksum(self, int64_t checksum) except -1:
        return set_attribute(self.id, CHECKSUM, checksum, H5T_NATIVE_INT64)

    cdef int transfer(self, hid_t type, hid_t dxpl, void* data, long long first, long long n,
                      bint writing, long long timestep=-1) except -1 nogil:
        """Move entries [first, first + n), of a timestep if there are any, between data and the file, in whole rows.

        Collective if dxpl says so.
        """
        cdef hsize_t start[H5S_MAX_RANK]
        cdef hsize_t count[H5S_MAX_RANK]
        cdef hsize_t row = 1, reals
        cdef hid_t memory
        cdef int i, axis = timestep >= 0  # which is distributed over the ranks
        reals = <hsize_t> n * (2 if self.is_complex else 1)
        start[0] = <hsize_t> timestep
        count[0] = 1
        for i in range(axis + 1, self.ndims):
            start[i] = 0
            count[i] = self.dims[i]
            row *= self.dims[i]
        start[axis] = (<hsize_t> first * (2 if self.is_complex else 1)) // row if row else 0
        count[axis] = reals // row if row else 0
        memory = CHKH5(H5Screate_simple(1, &reals, NULL))
        try:
            if reals == 0:
                CHKH5(H5Sselect_none(self.space))
                CHKH5(H5Sselect_none(memory))
            elif timestep < 0 and n == self.entries():
                CHKH5(H5Sselect_all(self.space))  # one piece to MPI-IO, where a hyperslab is one for each row
            else:
                CHKH5(H5Sselect_hyperslab(self.space, H5S_SELECT_SET, start, NULL, count, NULL))
            if writing:
                CHKH5(H5Dwrite(self.id, type, memory, self.space, dxpl, data))
            else:
                CHKH5(H5Dread(self.id, type, memory, self.space, dxpl, data))
        finally:
            H5Sclose(memory)
        return 0


cdef int64_t get_attribute(hid_t dataset, const char* name, int64_t default) except? -2 nogil:
    """An integer attribute, or the default if there is none. Not collective."""
    cdef hid_t attribute
    cdef int64_t value = default
    if CHKH5(H5Aexists(dataset, name)):
        attribute = CHKH5(H5Aopen(dataset, name, H5P_DEFAULT))
        try:
            CHKH5(H5Aread(attribute, H5T_NATIVE_INT64, &value))
        finally:
            H5Aclose(attribute)
    return value


cdef int set_attribute(hid_t dataset, const char* name, int64_t value, hid_t type) except -1:
    """Set an integer attribute. Collective."""
    cdef hid_t space, attribute
    with nogil:
        if CHKH5(H5Aexists(dataset, name)):
            attribute = CHKH5(H5Aopen(dataset, name, H5P_DEFAULT))
        else:
            space = CHKH5(H5Screate(H5S_SCALAR))
            try:
                attribute = CHKH5(H5Acreate2(dataset, name, type, space, H5P_DEFAULT, H5P_DEFAULT))
            finally:
                H5Sclose(space)
        try:
            CHKH5(H5Awrite(attribute, H5T_NATIVE_INT64, &value))
        finally:
            H5Aclose(attribute)
    return 0


# -----------------------------------------------------------------------------
# Layouts: how many entries each rank owned
# -----------------------------------------------------------------------------

cdef tuple layout_sizes(Handle handle, int32_t number):
    """The sizes on all ranks in layout `number`. Not collective."""
    cdef Dataset table
    cdef int64_t[::1] sizes
    if number not in handle.layouts:
        table = Dataset()
        table.open(handle, LAYOUTS + b"/%d" % number)
        sizes = np.empty(max(1, table.entries()), dtype=np.int64)
        table.transfer(H5T_NATIVE_INT64, H5P_DEFAULT, &sizes[0], 0, table.entries(), False)
        if table.checksum not in (-1, checksum_of(&sizes[0], 8 * table.entries())):
            raise ChecksumError("the record of what each rank owned is damaged")
        handle.layouts[number] = tuple(np.asarray(sizes)[:table.entries()].tolist())
        handle.layouts[handle.layouts[number]] = number
    return handle.layouts[number]


cdef tuple find_layout(Handle handle, tuple sizes):
    """The number of the layout with these sizes, and its record and checksum if it is new. Not collective.

    All that can fail on one rank only is done here: :c:func:`record_layout` changes metadata, in step with the
    other ranks.
    """
    cdef int64_t[::1] values
    number = handle.layouts.get(sizes, 0)
    if sizes in handle.layouts:
        return number, None, 0
    while exists(handle, LAYOUTS + b"/%d" % number):  # of an earlier opening of this file
        if layout_sizes(handle, number) == sizes:
            return number, None, 0
        number += 1
    record = np.array(sizes, dtype=np.int64)
    values = record
    return number, record, checksum_of(&values[0], 8 * len(sizes))


cdef int record_layout(Handle handle, tuple sizes, int32_t number, int64_t[::1] record, int64_t checksum) except -1:
    """Write the record of a layout if it is new. Collective."""
    cdef Dataset table
    cdef bytes path
    cdef const char* link
    cdef const int64_t* values
    cdef hsize_t n = len(sizes)
    if record is not None:
        make_group(handle, LAYOUTS)
        path = LAYOUTS + b"/%d" % number
        link = path
        table = Dataset()
        with nogil:
            table.space = CHKH5(H5Screate_simple(1, &n, NULL))
            table.id = CHKH5(H5Dcreate2(handle.id, link, H5T_NATIVE_INT64, table.space,
                                        H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT))
        table.set_checksum(checksum)
        if handle.rank == 0:
            values = &record[0]
            with nogil:
                CHKH5(H5Dwrite(table.id, H5T_NATIVE_INT64, H5S_ALL, H5S_ALL, H5P_DEFAULT, values))
    handle.layouts[sizes] = number
    handle.layouts[number] = sizes
    return 0


# -----------------------------------------------------------------------------
# Groups
# -----------------------------------------------------------------------------

cdef int make_group(Handle handle, bytes name) except -1:
    """Make sure that there is such a group. Collective."""
    cdef hid_t group
    cdef const char* link = name
    if exists(handle, name):
        group = open_object(handle, name)
    else:
        with nogil:
            group = CHKH5(H5Gcreate2(handle.id, link, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT))
    H5Oclose(group)
    return 0


cdef int make_checksum_group(Handle handle) except -1:
    """Make sure that there is a group for tables of checksums. Collective."""
    return make_group(handle, CHECKSUMS)


cdef bytes checksum_table(bytes path):
    """The path of the table of checksums of the rows of the dataset at path."""
    return CHECKSUMS + b"/" + path
