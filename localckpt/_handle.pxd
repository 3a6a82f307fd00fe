# Open files, below VecFile.

from libc.stdint cimport int64_t
from mpi4py.libmpi cimport MPI_Comm

from hdf5 cimport hid_t
from petsc cimport PetscViewer
from localckpt._descriptor cimport Descriptor

cdef struct Announcement:
    int64_t entries        # in the array of that rank; -1 if it has an error
    int64_t call           # a checksum of the call and its arguments, the same on all ranks
    int64_t data_checksum  # of the bytes that it writes


cdef class Handle:
    cdef MPI_Comm comm        # PETSc's own duplicate
    cdef int rank, size
    cdef PetscViewer viewer   # NULL once this is closed
    cdef hid_t id             # HDF5's, of the file
    cdef hid_t dxpl           # HDF5's property list for collective transfers, or H5P_DEFAULT
    cdef readonly str path, mode
    cdef Descriptor descriptor
    cdef object device_and_inode
    cdef set mpiio_descriptors     # numbers of those that MPI-IO has for this viewer
    cdef int64_t reserved_end      # of what has been reserved on the disk
    cdef Announcement* announced   # by each rank, see agree_on_call()
    cdef dict layouts              # number -> sizes on all ranks, and sizes -> number
    cdef dict damaged_objects      # path -> the error of HDF5 when it opened the object there
    cdef bint created              # by this rank, where there must have been none
    cdef int dropped               # by the VecFile on this rank
    cdef str closed_reason

    cdef int raise_everywhere(self, error) except -1
    cdef tuple agree_on_call(self, object call, object n, object nbytes, const void* data, object error)
    cdef int reserve(self, int64_t start, int64_t nbytes) except -1
    cdef object located(self, error, dataset=*)
    cdef object as_transfer_error(self, error, doing)
    cdef int close(self) except -1
    cdef int abandon(self) except -1


cdef Handle open_handle(object comm, object path, object mode, object collective)
