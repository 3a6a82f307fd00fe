# cython: language_level=3
"""The PETSc that localckpt was compiled for: whether petsc4py uses such a one.

It needs no library itself, so that it can be asked before another PETSc fails to load, or crashes.
"""

import numpy as np
from mpi4py import MPI
from petsc4py import PETSc

from mpi4py.libmpi cimport MPI_Comm
from petsc cimport PETSC_VERSION_MAJOR, PETSC_VERSION_MINOR, PetscInt, PetscReal, PetscScalar


cdef str describe(version, kind, scalar, integer, handle, extra):
    # Open MPI's handles are pointers, MPICH's and its kin's are ints.
    return (f"PETSc {version[0]}.{version[1]} with {kind}{8 * scalar} scalars and {8 * integer}-bit indices "
            f"on {'Open MPI' if handle > 4 else 'MPICH'}{extra}")


def check():
    """Raise an ImportError that names both, where they differ."""
    scalar = np.dtype(PETSc.ScalarType)
    compiled = describe((PETSC_VERSION_MAJOR, PETSC_VERSION_MINOR),
                        "complex" if sizeof(PetscScalar) > sizeof(PetscReal) else "float",
                        sizeof(PetscScalar), sizeof(PetscInt), sizeof(MPI_Comm), "")
    used = describe(PETSc.Sys.getVersion(), "complex" if scalar.kind == "c" else "float", scalar.itemsize,
                    np.dtype(PETSc.IntType).itemsize, MPI._sizeof(MPI.Comm),
                    "" if PETSc.Sys.hasExternalPackage("hdf5") else ", without HDF5")
    if compiled != used:
        raise ImportError(f"localckpt was compiled for {compiled}, but petsc4py uses {used}: "
                          "compile localckpt again, with 'pip install --no-build-isolation'")


check()
