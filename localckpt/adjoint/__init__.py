"""Drop-in replacement for Firedrake's disk checkpointing of the adjoint tape.

After ``from firedrake.adjoint import *``, ``from localckpt.adjoint import *`` is all that
a script needs: :func:`enable_disk_checkpointing` then stores the tape's checkpoints
through localckpt, in a file per rank on a node-local disk unless told otherwise.  The
other names are Firedrake's own, but for :func:`checkpointable_mesh`, which leaves no file.

Firedrake makes every disk checkpoint by calling ``CheckpointFunction``; importing this
module puts the question which checkpointer it belongs to in front of that
(:mod:`localckpt.adjoint.patches`).
"""

from firedrake.adjoint_utils.checkpointing import (
    continue_disk_checkpointing,
    disk_checkpointing,
    pause_disk_checkpointing,
    stop_disk_checkpointing,
)

from localckpt.adjoint.checkpointer import DiskCheckpointer as DiskCheckpointer
from localckpt.adjoint.checkpointer import LocalCheckpoint as LocalCheckpoint
from localckpt.adjoint.checkpointer import ProgressBar as ProgressBar
from localckpt.adjoint.checkpointer import enable_disk_checkpointing
from localckpt.adjoint.patches import checkpointable_mesh

__all__ = [
    "checkpointable_mesh",
    "continue_disk_checkpointing",
    "disk_checkpointing",
    "enable_disk_checkpointing",
    "pause_disk_checkpointing",
    "stop_disk_checkpointing",
]
