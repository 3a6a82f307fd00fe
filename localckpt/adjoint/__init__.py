"""Drop-in replacement for Firedrake's disk checkpointing of the adjoint tape.

After ``from firedrake.adjoint import *``, a script needs only ``from localckpt.adjoint import *``.
:func:`enable_disk_checkpointing` then saves the tape's checkpoints through localckpt, by default in one file per rank
on a node-local disk. :func:`checkpointable_mesh` is Firedrake's, but leaves no file. All other names are Firedrake's
own.

Importing this module replaces functions of Firedrake (:mod:`localckpt.adjoint.patches`).

The functions :func:`resume` and :func:`replaying` are imported when they are first used; the PETSc option
``-localckpt_resume`` calls the first one when this module is imported.
"""

from typing import Any

from firedrake.adjoint_utils.checkpointing import (
    continue_disk_checkpointing,
    disk_checkpointing,
    pause_disk_checkpointing,
    stop_disk_checkpointing,
)
from petsc4py import PETSc

from localckpt.adjoint import patches
from localckpt.adjoint.checkpointer import DiskCheckpointer as DiskCheckpointer
from localckpt.adjoint.checkpointer import enable_disk_checkpointing
from localckpt.adjoint.checkpointer import summary as summary
from localckpt.adjoint.checkpoints import LocalCheckpoint as LocalCheckpoint
from localckpt.adjoint.patches import checkpointable_mesh
from localckpt.adjoint.progress import ProgressBar as ProgressBar
from localckpt.adjoint.states import StoredStates as StoredStates
from localckpt.adjoint.states import stored_states as stored_states

__all__ = [
    "checkpointable_mesh",
    "continue_disk_checkpointing",
    "disk_checkpointing",
    "enable_disk_checkpointing",
    "pause_disk_checkpointing",
    "stop_disk_checkpointing",
]

patches.install()


def __getattr__(name: str) -> Any:
    if name in ("replaying", "resume"):
        from localckpt.adjoint import runs

        return getattr(runs, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


_directory = PETSc.Options("localckpt_").getString("resume", "")
if _directory:
    __getattr__("resume")(_directory)
