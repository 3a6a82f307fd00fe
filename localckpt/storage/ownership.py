"""Which job a directory belongs to: one at a time, and none that has ended.

A lock (POSIX, of the file ``owner``) dies with its process, so where locks work a job can go on at once when its
predecessor was killed, and a duplicate is refused however long the first one runs. Where locks do not reach other
hosts, the process itself is looked for if it was on this host, then the scheduler is asked, and if nobody knows, the
owner counts as dead when it has not touched the file for longer than ever before.

Nothing here is collective or needs MPI: one process of a job does it.
"""

import errno
import fcntl
import json
import os
import secrets
import shutil
import socket
import subprocess
import time
from typing import Any

__all__ = ["NAME", "Owned", "Owner", "job_name", "read_owner", "require_owner"]

NAME = "owner"
PATIENCE = 600.0  # seconds without a sign of life, at least
UNLOCKABLE = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
# Mount options of network filesystems whose locks hold on one host only
LOCAL_LOCKS = {"nolock", "local_lock=all", "local_lock=posix", "localflock", "noflock"}


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
        If the file cannot be made.
    """

    def __init__(self, directory: str, take_over: bool = False) -> None:
        self._path = os.path.join(directory, NAME)
        self.token = secrets.token_hex(16)
        self._process = os.getpid()
        self._longest = 0.0
        self._last_beat = time.time()
        # Closing any descriptor of the file would give up the lock: this one stays open, and nobody opens another.
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            before = self._read()
            try:
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                locked = locks_reach_other_hosts(directory)
            except OSError as exc:
                if exc.errno not in UNLOCKABLE and not take_over:
                    raise Owned(None, f"{describe(before)} runs and has {directory}") from None
                locked = False
            if not locked and not take_over and before and before["alive"]:
                reason = why_alive(before, time.time() - os.fstat(self._file).st_mtime)
                if reason:
                    raise Owned(None, f"{describe(before)} {reason} and has {directory}")
            self._write(alive=True)
        except BaseException:
            os.close(self._file)
            raise

    def _read(self) -> dict[str, Any]:
        content = os.pread(self._file, os.fstat(self._file).st_size, 0)
        try:
            found: dict[str, Any] = json.loads(content or b"{}")
        except ValueError:  # its writer was killed
            found = {}
        return found

    def _write(self, alive: bool) -> None:
        scheduler, job = job_of_scheduler()
        content = json.dumps(
            {
                "token": self.token,
                "host": socket.gethostname(),
                "process": self._process,
                "started": start_of_process(self._process),
                "scheduler": scheduler,
                "job": job,
                "since": time.time(),
                "longest": self._longest,
                "alive": alive,
            }
        ).encode()
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, content, 0)
        os.fsync(self._file)

    def check(self) -> None:
        """Raise Owned if another job has taken the directory over."""
        require_token(self._read(), self.token, os.path.dirname(self._path))

    def beat(self) -> None:
        """Give a sign of life, and remember the longest time between two."""
        now = time.time()
        self._longest, self._last_beat = max(self._longest, now - self._last_beat), now
        os.utime(self._file)

    def release(self) -> None:
        """Say that this job has ended. Does nothing in a forked child."""
        if os.getpid() == self._process and self._read().get("token") == self.token:
            self._write(alive=False)
            os.close(self._file)


def require_owner(directory: str, token: str) -> None:
    """Raise Owned unless the job with this token has the directory. For all processes but the one with the Owner."""
    try:
        with open(os.path.join(directory, NAME), "rb") as file:
            found = json.loads(file.read() or b"{}")
    except ValueError:
        found = {}
    require_token(found, token, directory)


def require_token(owner: dict[str, Any], token: str, directory: str) -> None:
    if owner.get("token") != token:
        raise Owned(None, f"{describe(owner)} has taken it over", directory)


def read_owner(directory: str | os.PathLike[str]) -> str:
    """Who has the directory, in words; empty if nobody has."""
    try:
        with open(os.path.join(directory, NAME), "rb") as file:
            found = json.loads(file.read())
            quiet = time.time() - os.fstat(file.fileno()).st_mtime
    except (OSError, ValueError):
        return ""
    if not found["alive"]:
        return ""
    return f"{describe(found)}, last seen {quiet:.0f} s ago"


def job_of_scheduler() -> tuple[str, str]:
    """The scheduler and its number of this job; empty if there is none."""
    for scheduler, variable in (("slurm", "SLURM_JOB_ID"), ("pbs", "PBS_JOBID")):
        if os.environ.get(variable):
            return scheduler, os.environ[variable]
    return "", ""


def job_name() -> str:
    """This job in words."""
    scheduler, job = job_of_scheduler()
    return f"{scheduler} job {job}" if job else f"process {os.getpid()} on {socket.gethostname()}"


def describe(owner: dict[str, Any]) -> str:
    """The owner in words."""
    if not owner:
        return "another job"
    process = f"process {owner['process']} on {owner['host']}"
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(owner["since"]))
    return (
        f"{owner['scheduler']} job {owner['job']} ({process}, since {since})"
        if owner["job"]
        else (f"{process} (since {since})")
    )


def why_alive(owner: dict[str, Any], quiet: float) -> str:
    """Why an owner may be alive, in words; empty if it is dead."""
    if owner["host"] == socket.gethostname():
        return "runs" if start_of_process(owner["process"]) == owner["started"] else ""
    state = state_of_job(owner["scheduler"], owner["job"])
    if state is not None:
        return "runs" if state else ""
    patience = max(PATIENCE, 2 * owner["longest"])
    if quiet > patience:
        return ""
    return f"may run (if it does not, begin again in {patience - quiet:.0f} s, or give --take-over)"


def state_of_job(scheduler: str, job: str) -> bool | None:
    """Whether a job runs, by its scheduler's word; None if that cannot be had."""
    if (scheduler, job) == job_of_scheduler():
        return False  # it was requeued: this is the same job, again
    commands = {"slurm": ["squeue", "--noheader", "--format=%T", f"--jobs={job}"], "pbs": ["qstat", job]}
    command = commands.get(scheduler)
    if command is None or shutil.which(command[0]) is None:
        return None
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if asked.returncode == 0:
        return bool(asked.stdout.strip())
    unknown = ("Invalid job id", "Unknown Job", "has finished")
    return False if any(words in asked.stderr for words in unknown) else None


def start_of_process(process: int) -> str:
    """When a process of this host was started, in clock ticks; empty if it does not run."""
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def locks_reach_other_hosts(directory: str) -> bool:
    """Whether the filesystem of a directory is mounted so that other hosts see a lock."""
    options, longest = "", -1
    path = os.path.realpath(directory)
    try:
        with open("/proc/mounts") as mounts:
            for line in mounts:
                point, found = line.split()[1].encode().decode("unicode_escape"), line.split()[3]
                if (path == point or path.startswith(point.rstrip("/") + "/")) and len(point) >= longest:
                    options, longest = found, len(point)
    except OSError:
        return True
    return not LOCAL_LOCKS & set(options.split(","))
