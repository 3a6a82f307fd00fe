"""Adjoint checkpoints on node-local disks for Firedrake, and HDF5 files of PETSc Vecs.

:class:`VecFile` and the exceptions need petsc4py, mpi4py and numpy only.
:class:`TemporaryFunctionCheckpointFile` and :mod:`localckpt.adjoint` need Firedrake,
which is imported when they are first used.
"""

from localckpt._errors import (
    ClosedFile,
    FileNotFound,
    LayoutMismatch,
    NoAccess,
    NotHDF5,
    StorageError,
    TransferError,
    UnknownDataset,
)
from localckpt._vecfile import VecFile

__all__ = ["ClosedFile", "FileNotFound", "LayoutMismatch", "NoAccess", "NotHDF5", "StorageError",
           "TemporaryFunctionCheckpointFile", "TransferError", "UnknownDataset", "VecFile"]


def __getattr__(name):
    if name == "TemporaryFunctionCheckpointFile":
        from localckpt.functions import TemporaryFunctionCheckpointFile
        return TemporaryFunctionCheckpointFile
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
