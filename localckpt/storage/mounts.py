"""The filesystem that a directory is on. Needs neither MPI nor PETSc."""

import os
from typing import Any

import psutil

__all__ = ["mount_of"]


def mount_of(path: str | os.PathLike[str]) -> Any:
    """What is mounted where a path is, as psutil describes it; None if that cannot be known."""
    real = os.path.realpath(path)
    mounts = [
        mount
        for mount in psutil.disk_partitions(all=True)
        if real == mount.mountpoint or real.startswith(mount.mountpoint.rstrip("/") + "/")
    ]
    # Of several filesystems mounted on one point, only the last one is visible.
    return max(reversed(mounts), key=lambda mount: len(mount.mountpoint), default=None)
