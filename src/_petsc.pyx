# cython: language_level=3
"""The check that petsc4py uses a PETSc like the one that localckpt was compiled for.

This module is linked to no library, so that it can be imported before another PETSc fails to load, or crashes.
"""

import numpy as np
from mpi4py import MPI
from petsc4py import PETSc

from mpi4py.libmpi cimport MPI_Comm
from petsc cimport PETSC_VERSION_MAJOR, PETSC_VERSION_MINOR, PetscInt, PetscReal, PetscScalar


cdef str describe(version, kind, scalar_size, index_size, comm_size, extra):
    # Handles of Open MPI are pointers, those of MPICH and its kin are ints.
    return (f"PETSc {version[0]}.{version[1]} with {kind}{8 * scalar_size} scalars and {8 * index_size}-bit indices "
            f"on {'Open MPI' if comm_size > 4 else 'MPICH'}{extra}")


def check():
    """Raise an ImportError that names both if they differ."""
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
