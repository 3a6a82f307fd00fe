"""Which job a directory belongs to: one at a time, and none that has ended.

A lock (POSIX, of the file ``lock``) dies with its process, so where locks work a job can go on at once when its
predecessor was killed, and a duplicate is refused however long the first one runs. Where locks do not reach other
hosts, the process itself is looked for if it was on this host, then the scheduler is asked, and if nobody knows, the
owner counts as dead when it has not written to the file ``owner`` for longer than ever before.

Whatever these say, two jobs never both own a directory: the last one that has written its token into ``owner`` does,
and each job reads that again before it records anything.

Nothing here is collective or needs MPI: one process of a job does it.
"""

import contextlib
import errno
import fcntl
import os
import re
import secrets
import socket
import subprocess
import time
from typing import Any

from localckpt.storage.journal_entries import DAMAGED, as_line, parse
from localckpt.storage.mounts import mount_of

__all__ = ["LOCK", "NAME", "Owned", "Owner", "job_name", "read_owner", "require_owner"]

NAME = "owner"
LOCK = "lock"  # apart from the owner's file, because a process that closes a file gives up all its locks on it
PATIENCE = 600.0  # seconds without a sign of life, at least
BEAT = 60.0  # seconds between two signs of life, at least
# Filesystems, and mount options of others, whose locks may hold on one host only
LOCAL_FILESYSTEMS = ("beegfs", "fuse", "9p", "virtiofs")
LOCAL_LOCKS = {"nolock", "local_lock=all", "local_lock=posix", "localflock", "noflock", "nobrl"}
# How to ask a scheduler for a job's state, how to find that in the answer, and the states in which its processes live
SCHEDULERS = {
    "slurm": (
        ["squeue", "--noheader", "--format=%T", "--jobs={}"],
        r"\w+",
        {"RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING"},
    ),
    "pbs": (["qstat", "-f", "{}"], r"job_state = (\w)", {"R", "E", "S", "U", "B"}),
}
UNKNOWN_JOB = ("Invalid job id", "Unknown Job", "has finished")


class Owned(OSError):
    """The directory belongs to another job."""


class Owner:
    """This job as the owner of a directory.

    Parameters
    ----------
    directory : str
    take_over : bool, optional
        Whether another job lives or not.

    Attributes
    ----------
    token : str
        Stands in the file as long as this job is the owner.

    Raises
    ------
    Owned
        If another job that is known to live, or may live, has the directory.
    OSError
        If the files cannot be made.
    """

    def __init__(self, directory: str, take_over: bool = False) -> None:
        self._directory = directory
        self.token = secrets.token_hex(16)
        self._process, self._since = os.getpid(), time.time()
        self._longest, self._last_beat = 0.0, time.monotonic()
        self._lock = os.open(os.path.join(directory, LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            held = is_locked(self._lock, directory)
            before = read(directory)
            reason = why_alive(before, held)
            if reason and not take_over:
                raise Owned(errno.EBUSY, f"{describe(before)} {reason}", directory)
            self._locked = held is False
            self._write(alive=True)
        except BaseException:
            os.close(self._lock)
            raise

    def _write(self, alive: bool) -> None:
        line = as_line(
            {
                **job_of_scheduler(),
                "token": self.token,
                "host": socket.gethostname(),
                "process": self._process,
                "started": start_of_process(self._process),
                "locked": self._locked,
                "since": self._since,
                "longest": self._longest,
                "alive": alive,
            }
        )
        path = os.path.join(self._directory, NAME)
        new = f"{path}.{self.token}"
        try:
            with open(new, "wb") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
            os.replace(new, path)  # whoever reads it meanwhile finds the whole of the one or the other
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(new)
            raise

    def check(self) -> None:
        """Raise Owned if another job has taken the directory over."""
        require_owner(self._directory, self.token)

    def beat(self) -> None:
        """Give a sign of life, with the longest time between two, if the last one was a while ago. Raises nothing."""
        elapsed = time.monotonic() - self._last_beat
        if elapsed < BEAT:
            return
        self._last_beat += elapsed
        self._longest = max(self._longest, elapsed)
        with contextlib.suppress(OSError):
            self.check()
            self._write(alive=True)

    def release(self) -> None:
        """Say that this job has ended. Raises nothing, and does nothing in a forked child."""
        if self._lock == -1 or os.getpid() != self._process:
            return
        with contextlib.suppress(OSError):
            self.check()
            self._write(alive=False)
        os.close(self._lock)
        self._lock = -1


def require_owner(directory: str, token: str) -> None:
    """Raise Owned unless the job with this token has the directory, and OSError if that cannot be known."""
    owner = read(directory)
    if owner.get("token") != token:
        raise Owned(errno.EBUSY, f"{describe(owner)} has taken it over", directory)


def read_owner(directory: str | os.PathLike[str]) -> str:
    """Who has the directory, in words; empty if nobody has, or that cannot be known."""
    try:
        owner = read(directory)
    except OSError:
        return ""
    return f"{describe(owner)}, last seen {owner['quiet']:.0f} s ago" if owner and owner["alive"] else ""


def read(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """What the last owner has written, and the seconds since; empty if there was none, or its host crashed then."""
    try:
        with open(os.path.join(directory, NAME), "rb") as file:
            entries, _ = parse(file.read())
            quiet = time.time() - os.fstat(file.fileno()).st_mtime
    except FileNotFoundError:
        return {}
    if not entries or entries[0] is DAMAGED:
        return {}
    return {**entries[0], "quiet": max(quiet, 0.0)}


def is_locked(descriptor: int, directory: str) -> bool | None:
    """Whether another process has locked a file; if not, this one does. None if no lock tells that of other hosts."""
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        return True if exc.errno in (errno.EAGAIN, errno.EACCES) else None
    return False if locks_reach_other_hosts(directory) else None


def locks_reach_other_hosts(directory: str) -> bool:
    """Whether the filesystem of a directory is mounted so that other hosts see a lock."""
    mount = mount_of(directory)
    if mount is None:
        return False
    return not mount.fstype.startswith(LOCAL_FILESYSTEMS) and not LOCAL_LOCKS & set(mount.opts.split(","))


def why_alive(owner: dict[str, Any], locked: bool | None) -> str:
    """Why the last owner may be alive, in words; empty if there is none, or it is dead.

    Parameters
    ----------
    owner : dict
        See :func:`read`.
    locked : bool or None
        See :func:`is_locked`.
    """
    here = owner.get("host") == socket.gethostname()
    if locked and (not owner or owner["locked"]):  # else it is still locked by one that was taken over
        # Some servers keep the lock of a host that has crashed.
        return "" if owner and not here and has_ended(owner) else "runs: it holds the lock of this directory"
    if not owner or not owner["alive"]:
        return ""
    if here:  # even if the lock is free: its file may have been removed
        started = start_of_process(owner["process"])
        return "runs" if started and started == owner["started"] and owner["process"] != os.getpid() else ""
    if locked is False and owner["locked"]:
        return ""
    ended = has_ended(owner)
    if ended is not None:
        return "" if ended else "runs, as its scheduler says"
    patience = max(PATIENCE, 2 * owner["longest"]) - owner["quiet"]
    return f"may run: if it does not, begin again in {patience:.0f} s, or give --take-over" if patience > 0 else ""


def has_ended(owner: dict[str, Any]) -> bool | None:
    """Whether the owner's job has ended, by its scheduler's word; None if that cannot be had."""
    this = job_of_scheduler()
    if owner["scheduler"] not in SCHEDULERS or (this["cluster"] and this["cluster"] != owner["cluster"]):
        return None
    if this["job"] == owner["job"]:  # it was begun again, or this is another process in the same job
        return True if this["restarts"] != owner["restarts"] or not this["restarts"] else None
    command, state, living = SCHEDULERS[owner["scheduler"]]
    try:
        asked = subprocess.run(
            [word.format(owner["job"]) for word in command], capture_output=True, errors="replace", timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if asked.returncode == 0:
        return not living & set(re.findall(state, asked.stdout))
    return True if any(words in asked.stderr for words in UNKNOWN_JOB) else None


def job_of_scheduler() -> dict[str, str]:
    """The scheduler, its number of this job, and how often it has begun it again; empty where nobody says."""
    variable = os.environ.get
    if job := variable("SLURM_JOB_ID"):
        found = "slurm", variable("SLURM_CLUSTER_NAME", ""), job, variable("SLURM_RESTART_COUNT", "0")
    elif job := variable("PBS_JOBID"):
        found = "pbs", "", job, ""
    else:
        found = "", "", "", ""
    return dict(zip(("scheduler", "cluster", "job", "restarts"), found))


def job_name() -> str:
    """This job in words."""
    found = job_of_scheduler()
    if found["job"]:
        return f"{found['scheduler']} job {found['job']}"
    return f"process {os.getpid()} on {socket.gethostname()}"


def describe(owner: dict[str, Any]) -> str:
    """The owner in words."""
    if not owner:
        return "another job"
    process = f"process {owner['process']} on {owner['host']}"
    since = time.strftime("since %Y-%m-%d %H:%M:%S", time.localtime(owner["since"]))
    job = f"{owner['scheduler']} job {owner['job']}"
    return f"{job} ({process}, {since})" if owner["job"] else f"{process} ({since})"


def start_of_process(process: int) -> str:
    """When a process of this host was started, in clock ticks; empty if it does not run."""
    try:
        with open(f"/proc/{process}/stat") as file:
            found = file.read().rpartition(")")[2].split()
    except OSError:
        return ""
    return found[19] if found[0] not in "ZX" else ""  # killed, but its parent has not asked how it ended
