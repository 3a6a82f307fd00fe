"""Which directories checkpoints go to: what the user names or else the best of the node, and their filesystems."""

import logging
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import inf

from mpi4py import MPI
from petsc4py import PETSc

from localckpt.storage import run_directories
from localckpt.storage.mounts import mount_of

__all__ = [
    "Directory",
    "Tier",
    "choose_directory",
    "choose_tiers",
    "is_writeable",
    "named_directories",
]

log = logging.getLogger("localckpt")

# Where a scheduler says how much a job may write to its own directory before it is killed.
JOB_LIMITS = ("PBS_NCI_JOBFS",)
IN_RAM = {"tmpfs", "ramfs", "devtmpfs"}
NETWORK = {
    "nfs",
    "nfs4",
    "lustre",
    "gpfs",
    "beegfs",
    "cifs",
    "smb3",
    "ceph",
    "fuse.ceph",
    "fuse.glusterfs",
    "orangefs",
    "pvfs2",
    "panfs",
    "wekafs",
    "afs",
    "9p",
    "fuse.sshfs",
    "fuse.juicefs",
}


@dataclass(frozen=True)
class Tier:
    """A directory to use until it is full, and how much of it.

    Attributes
    ----------
    path : str
    limit : float
        Bytes that each rank may use there.
    source : str
        Who named the directory and how, for messages: ``checkpoint_dir='/scratch/me'``, for example.
    """

    path: str
    limit: float = inf
    source: str = field(default="the default directory", compare=False)


@dataclass(frozen=True)
class Directory:
    """A directory on this node, the type of its filesystem, and its free bytes."""

    path: str
    filesystem: str
    free: int

    @classmethod
    def at(cls, path: str | os.PathLike[str]) -> "Directory":
        """Look at a directory. Not collective.

        Raises
        ------
        OSError
            If it does not exist.
        """
        mount = mount_of(path)
        return cls(os.fspath(path), mount.fstype if mount else "unknown", shutil.disk_usage(path).free)

    @property
    def in_ram(self) -> bool:
        """bool: whether its files are in memory."""
        return self.filesystem in IN_RAM

    @property
    def on_network(self) -> bool:
        """bool: whether it is on a network filesystem."""
        return self.filesystem in NETWORK


def is_writeable(path: str) -> bool:
    """Return whether files can be made at this path. Not collective."""
    return bool(path) and os.path.isdir(path) and os.access(path, os.W_OK | os.X_OK)


def named_directories() -> list[str]:
    """Return the directories that the PETSc option ``-localckpt_dir`` names. Not collective.

    Environment variables are expanded. Empty names, such as those of unset variables, are in the list.
    """
    return [os.path.expandvars(name) for name in PETSc.Options("localckpt_").getString("dir", "").split(",")]


def unset_variables(path: str) -> str:
    """Return an addition to an error message: the variables in a path that ``os.path.expandvars`` has left there."""
    names = [name.strip("{}") for name in re.findall(r"\$(\w+|{\w+})", path)]
    return "".join(f"; the variable {name} is not set" for name in names)


def choose_directory() -> Directory:
    """Choose the node-local directory to use where the user named none. Not collective.

    The first writeable one of the PETSc option ``-localckpt_dir``, the batch system's
    job-local scratch and the system's temporary directory. A directory in memory is passed
    over unless it is ``-localckpt_dir``. If nothing is left, the current directory.

    Returns
    -------
    Directory
    """
    named = next(filter(None, named_directories()), "")
    if is_writeable(named):
        return Directory.at(named)
    if named:
        log.warning(
            "-localckpt_dir %s is not a writeable directory on %s%s",
            named,
            MPI.Get_processor_name(),
            unset_variables(named),
        )
    for path in filter(is_writeable, run_directories.default_parents()):
        directory = Directory.at(path)
        if not directory.in_ram:
            if directory.on_network:
                log.warning(
                    "checkpoints go to %s, on the network filesystem %s: name a node-local directory "
                    "with checkpoint_dir= or -localckpt_dir",
                    directory.path,
                    directory.filesystem,
                )
            return directory
    log.warning(
        "no node-local directory for checkpoints found, so they go to the current directory: name another "
        "with checkpoint_dir= or -localckpt_dir"
    )
    return Directory.at(os.getcwd())


def choose_tiers(
    directories: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None,
    ranks: int,
    argument: str = "directories",
) -> list[Tier]:
    """Choose the directories to use, in this order: each one when those before it are full. Not collective.

    Parameters
    ----------
    directories : str or os.PathLike or sequence of these or None
        None: those in the PETSc option ``-localckpt_dir``, separated by commas, or the one that
        :func:`choose_directory` finds.
    ranks : int
        How many ranks share what ``-localckpt_dir_limit`` gives each node.
    argument : str, optional
        What messages call `directories`.

    Returns
    -------
    list of Tier
        With absolute paths.

    Raises
    ------
    TypeError
        If `directories` is nothing of the above.
    ValueError
        If it names no directory, or the option is not one number, or one for each directory.
    """
    tiers = _default_tiers() if directories is None else _tiers_named(directories, argument)
    return [replace(tier, limit=limit / ranks) for tier, limit in zip(tiers, _limits(len(tiers)))]


def _default_tiers() -> list[Tier]:
    """Return the tiers where the caller names none."""
    named = named_directories()
    directories = [name for name in named if name]
    if len(directories) < len(named) > 1:
        log.warning("-localckpt_dir has empty names, which are ignored: %s", ",".join(named))
    if len(directories) > 1:
        return [Tier(os.path.abspath(name), source=f"-localckpt_dir {name}") for name in directories]
    return [Tier(os.path.abspath(choose_directory().path))]


def _tiers_named(directories: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], argument: str) -> list[Tier]:
    """Return the tiers that the caller names."""
    single = isinstance(directories, (str, bytes, os.PathLike))
    try:
        names = [os.fsdecode(directory) for directory in ([directories] if single else directories)]  # type: ignore
    except TypeError:
        raise TypeError(f"{argument} is the path of a directory or a sequence of paths, not {directories!r}") from None
    if not names or not all(map(os.path.expandvars, names)):
        raise ValueError(f"{argument}={directories!r} names no directory")
    return [Tier(os.path.abspath(os.path.expandvars(name)), source=f"{argument}={name!r}") for name in names]


def _limits(count: int) -> list[float]:
    """Return the bytes that each node may use in each of so many directories."""
    option = PETSc.Options("localckpt_").getString("dir_limit", "")
    try:
        limits = [float(limit) for limit in option.split(",")] if option else [inf]
    except ValueError:
        limits = []
    if len(limits) == 1:
        limits *= count
    if len(limits) != count or not all(limit > 0 for limit in limits):
        raise ValueError(
            f"-localckpt_dir_limit is one number of bytes, or one for each of {count} directories, not {option!r}"
        )
    return limits
