# How an error of one rank reaches all of them.

from mpi4py.libmpi cimport MPI_Comm

cdef int raise_everywhere_on(MPI_Comm comm, object error) except -1
