# Names, datasets and layouts inside a file.

from libc.stdint cimport int32_t, int64_t

from hdf5 cimport H5S_MAX_RANK, hid_t, hsize_t
from localckpt._handle cimport Handle


cdef class Dataset:
    cdef hid_t id, space, type
    cdef int ndims, is_complex
    cdef hsize_t dims[H5S_MAX_RANK]
    cdef int32_t layout    # number of the record of what each rank owned, or -1
    cdef int64_t checksum  # of the bytes that were stored, or -1

    cdef int open(self, Handle handle, bytes path) except -1
    cdef int create(self, Handle handle, bytes path, tuple shape, object dtype) except -1
    cdef tuple shape(self)
    cdef long long entries(self) noexcept nogil
    cdef bint is_chunked(self) except -1
    cdef bint is_timestepping(self) except -1
    cdef bint has_row_checksums(self) except -1
    cdef int set_timestepping(self) except -1
    cdef int set_row_checksums(self, bint value) except -1
    cdef int set_layout(self, int32_t number) except -1
    cdef int set_checksum(self, int64_t checksum) except -1
    cdef int transfer(self, hid_t type, hid_t dxpl, void* data, long long first, long long n,
                      bint writing, long long timestep=*) except -1 nogil


cdef bytes encode(object name)
cdef bytes find(Handle handle, object name)
cdef bint exists(Handle handle, bytes path) except -1
cdef list dataset_names(Handle handle)
cdef hid_t hdf5_type(object dtype) except? -1
cdef tuple layout_sizes(Handle handle, int32_t number)
cdef tuple find_layout(Handle handle, tuple sizes)
cdef int record_layout(Handle handle, tuple sizes, int32_t number, int64_t[::1] record, int64_t checksum) except -1
cdef bytes checksum_table(bytes path)
cdef int make_checksum_group(Handle handle) except -1
