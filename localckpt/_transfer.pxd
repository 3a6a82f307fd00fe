# The collective operations on a file's datasets.

from localckpt._handle cimport Handle

cdef int write_entries(Handle handle, object name, const void* data, object n, long long row_size, tuple row_shape,
                       object dtype, object error) except -1
cdef int read_entries(Handle handle, object name, void* data, object n, object dtype, object error,
                      object timestep) except -1
cdef tuple create_rows(Handle handle, object name, int rows, long long limit, object room, object array,
                       bint checksums)
