"""When a job has to end: what its scheduler or its user has said, and signals."""

import contextlib
import math
import os
import signal
import time
from types import FrameType

import psutil

__all__ = ["Clock"]

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
MARGIN = 1.1  # evaluations may take longer than the longest one before


class Clock:
    """The time that this process has. From now on, signals that ask it to end are only noted.

    Parameters
    ----------
    walltime : float, optional
        Seconds from the start of this process on. By default the job ends when ``SLURM_JOB_END_TIME`` says, or else
        ``PBS_WALLTIME`` seconds after it began.

    Attributes
    ----------
    signalled : str
        The name of the signal that has asked the job to end; empty if there was none.
    """

    def __init__(self, walltime: float | None = None) -> None:
        self.signalled = ""
        self._end = end_of_job(walltime)
        self._handlers = {number: signal.signal(number, self._note) for number in SIGNALS}

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signalled = signal.Signals(number).name

    def left(self) -> float:
        """Seconds; infinite if nobody has said when the job ends, 0 after a signal."""
        return 0.0 if self.signalled else self._end - time.time()

    def is_short_of(self, seconds: float) -> bool:
        """Whether something that has taken so long before cannot be finished any more."""
        return self.left() <= MARGIN * seconds

    def stop(self) -> None:
        """Give the signals back, except those that somebody else has taken meanwhile."""
        for number, handler in self._handlers.items():
            if signal.getsignal(number) == self._note:
                signal.signal(number, signal.SIG_DFL if handler is None else handler)


def end_of_job(walltime: float | None) -> float:
    """The time at which this job is ended."""
    if walltime is not None:
        return psutil.Process().create_time() + walltime
    for variable, begin in (("SLURM_JOB_END_TIME", lambda: 0.0), ("PBS_WALLTIME", start_of_pbs_job)):
        try:
            return float(os.environ[variable]) + begin()
        except (KeyError, ValueError):
            pass
    return math.inf


def start_of_pbs_job() -> float:
    """The time at which this process began or, of those above it in the same job, the first one.

    The job's script may have done other things before.
    """
    process = psutil.Process()
    began, job = process.create_time(), os.environ.get("PBS_JOBID")
    with contextlib.suppress(psutil.Error):  # those of other users cannot be looked into
        for parent in process.parents() if job else []:
            if parent.environ().get("PBS_JOBID") == job:
                began = parent.create_time()
    return began
