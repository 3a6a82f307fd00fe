"""Adjoint checkpoints on node-local disks for Firedrake, and HDF5 files of PETSc Vecs.

:class:`VecFile` and the exceptions need petsc4py, mpi4py and numpy only; :func:`node_comm` psutil, too.
:class:`TemporaryFunctionCheckpointFile` and :mod:`localckpt.adjoint` need Firedrake.

Names are imported when they are first used: importing petsc4py starts PETSc, and PETSc
takes its options from the command line only if Firedrake, or the user, starts it.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from os.path import dirname
from typing import TYPE_CHECKING

# Before the compiled modules: it registers the removal of directories at exit, which has to come after theirs, the
# closing of files.
from localckpt.storage import run_directories  # noqa: F401

if find_spec("localckpt._petsc") is None:
    raise ImportError(
        f"the localckpt in {dirname(__file__)} is not compiled: to use the one that is installed, start "
        "Python in another directory; to use this one, 'pip install --no-build-isolation -e .' there",
        name=__name__,
    )

if TYPE_CHECKING:
    from localckpt._errors import (
        ChecksumError,
        ClosedFileError,
        ExistingFileError,
        FileAccessError,
        LayoutError,
        LostCheckpointError,
        MissingDatasetError,
        MissingFileError,
        NotHDF5Error,
        StorageError,
        TransferError,
    )
    from localckpt._vecfile import VecFile
    from localckpt.functions import TemporaryFunctionCheckpointFile as TemporaryFunctionCheckpointFile
    from localckpt.storage.nodes import node_comm

    __version__: str

__all__ = [
    "LostCheckpointError",
    "ChecksumError",
    "ClosedFileError",
    "ExistingFileError",
    "MissingFileError",
    "LayoutError",
    "FileAccessError",
    "NotHDF5Error",
    "StorageError",
    "TransferError",
    "MissingDatasetError",
    "VecFile",
    "node_comm",
]  # what needs no Firedrake

_home = {
    "VecFile": "localckpt._vecfile",
    "TemporaryFunctionCheckpointFile": "localckpt.functions",
    "node_comm": "localckpt.storage.nodes",
}


def __getattr__(name):
    if name == "__version__":
        try:
            return version(__name__)
        except PackageNotFoundError:  # compiled in a clone, and not installed
            return "0+unknown"
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
