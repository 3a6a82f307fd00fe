"""Adjoint checkpoints on node-local disks for Firedrake, and HDF5 files of PETSc Vecs.

:class:`VecFile` and the exceptions need petsc4py, mpi4py and numpy only; :func:`node_comm` psutil, too.
:class:`TemporaryFunctionCheckpointFile` and :mod:`localckpt.adjoint` need Firedrake.

Names are imported when they are first used: importing petsc4py starts PETSc, and PETSc
takes its options from the command line only if Firedrake, or the user, starts it.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from localckpt._errors import (
        CheckpointError,
        ChecksumMismatch,
        ClosedFile,
        FileExists,
        FileNotFound,
        LayoutMismatch,
        NoAccess,
        NotHDF5,
        StorageError,
        TransferError,
        UnknownDataset,
    )
    from localckpt._vecfile import VecFile
    from localckpt.functions import TemporaryFunctionCheckpointFile as TemporaryFunctionCheckpointFile
    from localckpt.places import node_comm

__all__ = ["CheckpointError", "ChecksumMismatch", "ClosedFile", "FileExists", "FileNotFound", "LayoutMismatch",
           "NoAccess", "NotHDF5", "StorageError", "TransferError", "UnknownDataset", "VecFile",
           "node_comm"]  # what needs no Firedrake

_home = {"VecFile": "localckpt._vecfile", "TemporaryFunctionCheckpointFile": "localckpt.functions",
         "node_comm": "localckpt.places"}


def __getattr__(name):
    if name not in __all__ and name not in _home:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        home = import_module(_home.get(name, "localckpt._errors"))
    except (ImportError, ValueError):
        import_module("localckpt._petsc")  # says so if it was compiled for another PETSc
        raise
    return getattr(home, name)


def __dir__():
    return __all__ + list(globals())
