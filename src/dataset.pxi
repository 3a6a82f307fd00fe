# Names, datasets and layouts inside a file. Part of _vecfile.pyx.

cdef bytes LAYOUTS = b"%layouts"         # no encoded name starts like these
cdef bytes CHECKSUMS = b"%checksums"     # of rows, one for each rank
cdef bytes LAYOUT = b"localckpt_layout"  # attribute of a dataset: its number in there
cdef bytes CHECKSUM = b"localckpt_checksum"
cdef bytes ROW_CHECKSUMS = b"localckpt_row_checksums"  # whether there are any


cdef int64_t digest(const void* data, size_t nbytes, int seed):
    """XXH3 but for the sign."""
    view = PyMemoryView_FromMemory(<char*> data, <Py_ssize_t> nbytes, PyBUF_READ) if nbytes else b""
    return xxh3_64_intdigest(view, seed) & INT64_MAX


cdef int64_t digest_of(int64_t[::1] numbers):
    return digest(&numbers[0], 8 * numbers.shape[0], 0)


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


cdef herr_t add_link(hid_t group, const char* path, const void* info, void* links) noexcept with gil:
    (<list> links).append(<bytes> path)
    return 0


cdef hid_t open_object(Handle handle, bytes path) except -1:
    """Open what is at path, or fail as before.

    An object header of which HDF5 could not read a part it takes for whole, without
    that part, when it is asked a second time.
    """
    path = path.strip(b"/") or b"/"
    if path in handle.damaged:
        raise TransferError(handle.damaged[path])
    try:
        return CHKH5(H5Oopen(handle.id, path, H5P_DEFAULT))
    except StorageError as exc:
        handle.damaged[path] = exc.cause
        raise


# -----------------------------------------------------------------------------
# Datasets
# -----------------------------------------------------------------------------

cdef class Dataset:
    """An open dataset and what there is to know of it."""

    cdef hid_t id, space, type
    cdef int ndims, is_complex
    cdef hsize_t dims[MAXDIM]
    cdef int32_t layout
    cdef int64_t checksum  # of what was stored, or -1

    def __cinit__(self):
        self.id = self.space = self.type = -1
        self.layout = self.checksum = -1

    cdef int open(self, Handle handle, bytes path) except -1:
        self.id = open_object(handle, path)
        self.space = CHKH5(H5Dget_space(self.id))
        self.ndims = <int> CHKH5(H5Sget_simple_extent_ndims(self.space))
        if self.ndims > 0:
            CHKH5(H5Sget_simple_extent_dims(self.space, self.dims, NULL))
        self.type = CHKH5(H5Dget_type(self.id))
        self.layout = <int32_t> self.attribute(LAYOUT, -1)
        self.checksum = self.attribute(CHECKSUM, -1)
        self.is_complex = <int> self.attribute(b"complex", 0)  # PETSc's own mark
        return 0

    cdef int64_t attribute(self, bytes name, int64_t value) except? -2:
        cdef hid_t attribute
        if CHKH5(H5Aexists(self.id, name)):
            attribute = CHKH5(H5Aopen(self.id, name, H5P_DEFAULT))
            try:
                CHKH5(H5Aread(attribute, H5T_NATIVE_INT64, &value))
            finally:
                H5Aclose(attribute)
        return value

    cdef int mark(self, bytes name, int64_t value, hid_t type) except -1:
        """Set an integer attribute. Collective."""
        cdef hid_t space, attribute
        if CHKH5(H5Aexists(self.id, name)):
            attribute = CHKH5(H5Aopen(self.id, name, H5P_DEFAULT))
        else:
            space = CHKH5(H5Screate(H5S_SCALAR))
            try:
                attribute = CHKH5(H5Acreate2(self.id, name, type, space, H5P_DEFAULT, H5P_DEFAULT))
            finally:
                H5Sclose(space)
        try:
            CHKH5(H5Awrite(attribute, H5T_NATIVE_INT64, &value))
        finally:
            H5Aclose(attribute)
        return 0

    def shape(self):
        return tuple([self.dims[i] for i in range(self.ndims)])

    cdef long long entries(self) noexcept nogil:
        """Numbers in all: a complex one counts once."""
        cdef long long n = 1
        cdef int i
        for i in range(self.ndims):
            n *= self.dims[i]
        return n // 2 if self.is_complex else n

    cdef int move(self, hid_t type, hid_t dxpl, void* data, long long first, long long n,
                  bint writing, long long step=-1) except -1 nogil:
        """Move entries [first, first + n), of a timestep, between data and the file, in whole rows."""
        cdef hsize_t start[MAXDIM]
        cdef hsize_t count[MAXDIM]
        cdef hsize_t row = 1, reals
        cdef hid_t memory
        cdef int i, axis = step >= 0
        reals = <hsize_t> n * (2 if self.is_complex else 1)
        start[0] = <hsize_t> step
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
            elif step < 0 and n == self.entries():
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

    cdef bint chunked(self) except -1:
        """Whether it is stored as VecView stores, which writes over no other."""
        cdef hid_t properties = CHKH5(H5Dget_create_plist(self.id))
        cdef int layout = H5Pget_layout(properties)
        H5Pclose(properties)
        return layout == H5D_CHUNKED

    def __dealloc__(self):
        if self.type >= 0:
            H5Tclose(self.type)
        if self.space >= 0:
            H5Sclose(self.space)
        if self.id >= 0:
            H5Oclose(self.id)


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


cdef bint is_dataset(Handle handle, bytes path) except -1:
    cdef hid_t thing
    if (b"\0" in path or path.strip(b"/").startswith((LAYOUTS, CHECKSUMS)) or not exists(handle.id, path)
            or H5Oexists_by_name(handle.id, path, H5P_DEFAULT) <= 0):  # a link to nothing
        return False
    thing = open_object(handle, path)
    kind = H5Iget_type(thing)
    H5Oclose(thing)
    return kind == H5I_DATASET


cdef bytes find(Handle handle, object name):
    """Where name is: under its encoded name, or at that path in a file of PETSc's."""
    path = encode(name)
    if is_dataset(handle, path):
        return path
    path = name.encode(errors="surrogateescape")
    if decode(path) == name and is_dataset(handle, path):  # "a%2Fb" is how "a/b" is encoded
        return path
    raise MissingDatasetError("no such dataset")


cdef tuple layout_sizes(Handle handle, int32_t number):
    """The sizes of all ranks in layout `number`."""
    cdef Dataset table
    cdef int64_t[::1] sizes
    if number not in handle.layouts:
        table = Dataset()
        table.open(handle, LAYOUTS + b"/%d" % number)
        sizes = np.empty(max(1, table.entries()), dtype=np.int64)
        table.move(H5T_NATIVE_INT64, H5P_DEFAULT, &sizes[0], 0, table.entries(), False)
        if table.checksum not in (-1, digest(&sizes[0], 8 * table.entries(), 0)):
            raise ChecksumError("the record of what each rank owned is damaged")
        handle.layouts[number] = tuple(np.asarray(sizes)[:table.entries()].tolist())
        handle.layouts[handle.layouts[number]] = number
    return handle.layouts[number]


cdef tuple find_layout(Handle handle, tuple sizes):
    """The number of the layout with these sizes, and the record to make if it is new. Not collective.

    All that can fail on one rank only is done here: :c:func:`record_layout` changes metadata, in step with the
    other ranks.
    """
    number = handle.layouts.get(sizes, 0)
    if sizes in handle.layouts:
        return number, None, 0
    while exists(handle.id, LAYOUTS + b"/%d" % number):  # of an earlier opening of this file
        if layout_sizes(handle, number) == sizes:
            return number, None, 0
        number += 1
    return number, (record := np.array(sizes, dtype=np.int64)), digest_of(record)


cdef int make_group(Handle handle, bytes name) except -1:
    """Have such a group. Collective."""
    H5Oclose(open_object(handle, name) if exists(handle.id, name) else
             CHKH5(H5Gcreate2(handle.id, name, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT)))
    return 0


cdef int record_layout(Handle handle, tuple sizes, int32_t number, int64_t[::1] record, int64_t checksum) except -1:
    """Write the record of a new layout. Collective."""
    cdef Dataset table
    cdef hid_t space
    cdef hsize_t n = len(sizes)
    if record is not None:
        make_group(handle, LAYOUTS)
        table = Dataset()
        space = CHKH5(H5Screate_simple(1, &n, NULL))
        try:
            table.id = CHKH5(H5Dcreate2(handle.id, LAYOUTS + b"/%d" % number, H5T_NATIVE_INT64, space,
                                        H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT))
        finally:
            H5Sclose(space)
        table.mark(CHECKSUM, checksum, H5T_NATIVE_INT64)
        if handle.rank == 0:
            CHKH5(H5Dwrite(table.id, H5T_NATIVE_INT64, H5S_ALL, H5S_ALL, H5P_DEFAULT, &record[0]))
    handle.layouts[sizes] = number
    handle.layouts[number] = sizes
    return 0
