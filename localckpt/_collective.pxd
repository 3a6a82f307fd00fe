# How an error of one rank reaches all of them; `cimport`able.

from mpi4py.libmpi cimport MPI_Comm

cdef int raise_on_all(MPI_Comm comm, object error) except -1
