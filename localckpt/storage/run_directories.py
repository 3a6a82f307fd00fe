"""Directories that belong to a run while it lives, and those that dead runs have left.

A directory's owner holds a lock on it (``flock``), which dies with the process. Whoever gets that lock
may remove the directory, if it was made by the same user on the same host: on a network
filesystem the lock of another host may not be seen.

Nothing here is collective or needs MPI or PETSc: the commands ``clean`` and ``doctor`` have to work without them.
"""

import atexit
import contextlib
import fcntl
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["JOB_DIRECTORIES", "RunDirectory", "default_parents", "find", "host_prefix", "make", "remove", "remove_dead"]

# Where batch systems say which node-local directory is a job's own; the first one that is writeable is used.
JOB_DIRECTORIES = ("SLURM_TMPDIR", "PBS_JOBFS", "LOCAL_SCRATCH", "TMPDIR")

PREFIX = "localckpt_"
KEPT_PREFIX = "localckpt_kept_"  # of directories that cleanup=False has asked to keep: never taken for dead
RANDOM_CHARACTERS = 8  # that mkdtemp adds to a prefix

_locks: dict[str, tuple[int, int]] = {}  # path of a directory of this process -> descriptor, process
_left_over: list[tuple[str, int]] = []  # path of a directory that could not be removed yet, process


def default_parents() -> list[str]:
    """Return where directories are made if nobody says where, the best place first: the job's own or the system's."""
    named = [os.environ[name] for name in JOB_DIRECTORIES if os.environ.get(name)]
    return list(dict.fromkeys([*named, tempfile.gettempdir(), "/var/tmp"]))


def host_prefix() -> str:
    """Return the beginning of the names of this host's directories, except those that are kept."""
    return f"{PREFIX}{socket.gethostname()}_"


def make(parent: str, files: Sequence[str] = (), keep: bool = False) -> str:
    """Make a new directory, locked and readable by nobody else.

    Parameters
    ----------
    parent : str
        The directory to make it in.
    files : sequence of str, optional
        Names of empty files to make in it.
    keep : bool, optional
        Never take it for that of a dead run.

    Returns
    -------
    str
        Its absolute path, which stays right when the current directory changes.

    Raises
    ------
    OSError
        With `parent` as its file name.
    """
    parent = os.path.abspath(parent)
    while True:
        try:
            path = tempfile.mkdtemp(prefix=f"{KEPT_PREFIX if keep else PREFIX}{socket.gethostname()}_", dir=parent)
        except OSError as exc:
            raise OSError(exc.errno, exc.strerror, parent) from None  # mkdtemp names the directory it could not make
        try:
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            _locks[path] = lock, os.getpid()
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise
            except OSError:
                pass  # this filesystem has no locks, and no directory on it is ever taken for dead
            if os.path.samestat(os.fstat(lock), os.stat(path)):
                for name in files:
                    os.close(
                        os.open(os.path.join(path, name), os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
                    )
                return path
        except (FileNotFoundError, BlockingIOError):
            pass  # another run's remove_dead() came between mkdtemp and the lock
        except BaseException:
            remove(path)
            raise
        remove(path)


def remove(path: str) -> None:
    """Remove a directory that :func:`make` has made and all that is in it. Does nothing in a forked child."""
    lock, process = _locks.get(path, (None, os.getpid()))
    if process != os.getpid():
        return
    with contextlib.suppress(OSError):
        os.rmdir(path)  # needs no descriptor, of which there may be none left
    shutil.rmtree(path, ignore_errors=True)
    if lock is not None and os.path.isdir(path):
        _left_over.append((path, process))
    _locks.pop(path, None)
    if lock is not None:
        os.close(lock)


@atexit.register
def _remove_left_over() -> None:
    """Try again at exit to remove directories.

    On a network filesystem an unlinked file keeps a name in its directory until all ranks have closed it.
    They do so at exit, before this: the compiled modules register their exit handlers later.
    """
    for path, process in _left_over:
        if process == os.getpid():
            shutil.rmtree(path, ignore_errors=True)


@dataclass(frozen=True)
class RunDirectory:
    """A directory that a run has made.

    Attributes
    ----------
    path : str
    nbytes : int
        Bytes that the files in it take on disk.
    age : float
        Seconds since it was last changed; 0 if that cannot be known.
    reason_to_keep : str
        Why it must not be removed; empty if nobody needs it any more.
    """

    path: str
    nbytes: int
    age: float
    reason_to_keep: str


def find(parent: str | os.PathLike[str], prefix: str = PREFIX) -> list[RunDirectory]:
    """Return the directories that runs have made in a directory, those whose names begin with a prefix."""
    found: list[RunDirectory] = []
    try:
        entries = list(os.scandir(parent))
    except OSError:  # some directories can be written to but not listed
        return found
    for entry in entries:
        if entry.name.startswith(prefix) and entry.is_dir(follow_symlinks=False):
            nbytes, age, reason, lock = 0, 0.0, "", None
            try:
                age = time.time() - entry.stat(follow_symlinks=False).st_mtime
                reason, lock = _lock_if_dead(entry.path)
                with os.scandir(entry.path) as inside:
                    nbytes = sum(file.stat(follow_symlinks=False).st_blocks * 512 for file in inside)
            except FileNotFoundError:
                continue  # its owner has removed it meanwhile
            except OSError as exc:
                reason = reason or str(exc)
            finally:
                if lock is not None:
                    os.close(lock)
            found.append(RunDirectory(entry.path, nbytes, age, reason))
    return sorted(found, key=lambda directory: directory.path)


def remove_dead(directories: Sequence[RunDirectory]) -> list[RunDirectory]:
    """Remove those directories of :func:`find` that nobody needs, even now; return the ones that were removed."""
    removed = []
    for directory in directories:
        _, lock = _lock_if_dead(directory.path)
        if lock is not None:
            shutil.rmtree(directory.path, ignore_errors=True)
            os.close(lock)
            if not os.path.exists(directory.path):
                removed.append(directory)
    return removed


def _lock_if_dead(path: str) -> tuple[str, int | None]:
    """Take over the lock of a dead run's directory.

    Returns
    -------
    reason_to_keep : str
        See :class:`RunDirectory`.
    lock : int or None
        The right to remove the directory: a descriptor, which the caller closes. None if there is a reason to keep it.
    """
    name = os.path.basename(path)
    if name.startswith(KEPT_PREFIX):
        return "kept by cleanup=False", None
    if name[:-RANDOM_CHARACTERS] != host_prefix():  # not startswith: another host's name may begin like this one's
        return "of another host", None
    try:
        lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except PermissionError:  # its mode is 0700
        return "of another user", None
    except OSError as exc:
        return str(exc), None
    try:
        if os.fstat(lock).st_uid == os.getuid():
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return "", lock
        reason = "of another user"
    except BlockingIOError:
        reason = "in use"
    except OSError as exc:
        reason = str(exc)
    os.close(lock)
    return reason, None
