"""Directories that belong to a run, as long as it lives, and what dead runs have left.

A directory's owner holds a lock on it (``flock``), which dies with the process. Whoever gets that lock
may remove the directory, if it was made by the same user on the same host: on a network
filesystem another host's lock may not be seen.
"""

import atexit
import contextlib
import fcntl
import os
import shutil
import socket
import tempfile
import time
from dataclasses import dataclass

__all__ = ["JOB_DIRECTORIES", "RunDirectory", "find", "make", "host_prefix", "remove", "remove_dead", "default_parents"]

# Where batch systems say a job's own node-local directory is; the first that is usable counts.
JOB_DIRECTORIES = ("SLURM_TMPDIR", "PBS_JOBFS", "LOCAL_SCRATCH", "TMPDIR")

# What cleanup=False asked to keep is never a leftover.
PREFIX, KEPT = "localckpt_", "localckpt_kept_"

_locks: dict[str, tuple[int | None, int]] = {}  # of this process's directories: descriptor, process


def default_parents():
    """Where checkpoints go if nobody says where, the best place first.

    Returns
    -------
    list of str
    """
    named = [os.environ[name] for name in JOB_DIRECTORIES if os.environ.get(name)]
    return list(dict.fromkeys([*named, tempfile.gettempdir(), "/var/tmp"]))


def make(parent, files=(), keep=False):
    """A new directory in `parent`, for nobody else to read, and locked.

    Parameters
    ----------
    parent : str
    files : sequence of str, optional
        Names of empty files to make in it.
    keep : bool, optional
        Never take it for a leftover.

    Returns
    -------
    str
        Its absolute path, which a later change of the current directory does not touch.

    Raises
    ------
    OSError
        With `parent` as its file name.
    """
    parent = os.path.abspath(parent)
    while True:
        try:
            path = tempfile.mkdtemp(prefix=f"{KEPT if keep else PREFIX}{socket.gethostname()}_", dir=parent)
        except OSError as exc:
            raise OSError(exc.errno, exc.strerror, parent) from None  # mkdtemp names what it could not make
        try:
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            _locks[path] = lock, os.getpid()
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise
            except OSError:
                pass  # no locks on this filesystem, and nothing on it is ever taken for dead
            if os.path.samestat(os.fstat(lock), os.stat(path)):
                for name in files:
                    os.close(
                        os.open(os.path.join(path, name), os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
                    )
                return path
        except (FileNotFoundError, BlockingIOError):
            pass  # a cleaner was here between the making and the locking
        except BaseException:
            remove(path)
            raise
        remove(path)


_again: list[tuple[str, int]] = []  # directories that could not be removed yet, process


@atexit.register
def _remove_again():
    """On a network filesystem an unlinked file keeps a name in its directory until all ranks have closed it.

    They do so at exit, before this: the compiled modules register it later.
    """
    for path, process in _again:
        if process == os.getpid():
            shutil.rmtree(path, ignore_errors=True)


def remove(path):
    """Remove a directory of :func:`make`'s and all that is in it, unless a forked child asks."""
    lock, process = _locks.get(path, (None, os.getpid()))
    if process != os.getpid():
        return
    with contextlib.suppress(OSError):
        os.rmdir(path)  # takes no descriptor, of which there may be none left
    shutil.rmtree(path, ignore_errors=True)
    if lock is not None and os.path.isdir(path):
        _again.append((path, process))
    _locks.pop(path, None)
    if lock is not None:
        os.close(lock)


@dataclass(frozen=True)
class RunDirectory:
    """A directory that a run has made.

    Attributes
    ----------
    path : str
    nbytes : int
        What the files in it take on the disk.
    age : float
        Seconds since it was last changed; 0 where that cannot be known.
    why : str
        Why it stays, or nothing: then nobody needs it.
    """

    path: str
    nbytes: int
    age: float
    why: str


def host_prefix():
    """What the names of this host's directories begin with, but for those that are kept."""
    return f"{PREFIX}{socket.gethostname()}_"


def find(parent, prefix=PREFIX):
    """What runs have made in `parent`, if their names begin so.

    Returns
    -------
    list of RunDirectory
    """
    found: list[RunDirectory] = []
    try:
        entries = list(os.scandir(parent))
    except OSError:  # a directory that one may write to, but not look into
        return found
    for entry in entries:
        if entry.name.startswith(prefix) and entry.is_dir(follow_symlinks=False):
            nbytes, age, why, lock = 0, 0.0, "", None
            try:
                age = time.time() - entry.stat(follow_symlinks=False).st_mtime
                why, lock = _claim(entry.path)
                with os.scandir(entry.path) as inside:
                    nbytes = sum(file.stat(follow_symlinks=False).st_blocks * 512 for file in inside)
            except FileNotFoundError:
                continue  # its owner has removed it
            except OSError as exc:
                why = why or str(exc)
            finally:
                if lock is not None:
                    os.close(lock)
            found.append(RunDirectory(entry.path, nbytes, age, why))
    return sorted(found, key=lambda directory: directory.path)


def remove_dead(directories):
    """Remove those that nobody needs, and still nobody does.

    Parameters
    ----------
    directories : list of RunDirectory
        From :func:`find`.

    Returns
    -------
    list of RunDirectory
        Those that were removed.
    """
    removed = []
    for directory in directories:
        why, lock = _claim(directory.path)
        if lock is not None:
            shutil.rmtree(directory.path, ignore_errors=True)
            os.close(lock)
            if not os.path.exists(directory.path):
                removed.append(directory)
    return removed


def _claim(path):
    """Why a directory is not to be removed, or the lock that gives the right to."""
    name = os.path.basename(path)
    if name.startswith(KEPT):
        return "kept by cleanup=False", None
    if name[:-8] != host_prefix():  # mkdtemp adds eight characters, and another host's name may go on after this one's
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
        why = "of another user"
    except BlockingIOError:
        why = "in use"
    except OSError as exc:
        why = str(exc)
    os.close(lock)
    return why, None
