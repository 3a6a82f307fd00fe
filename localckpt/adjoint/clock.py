"""When a job has to end: what its scheduler or its user has said, and signals."""

import math
import os
import signal
import time
from types import FrameType
from typing import Any

__all__ = ["Clock"]

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
MARGIN = 1.1  # evaluations may take longer than the longest one before


class Clock:
    """The time that this process has.

    Parameters
    ----------
    walltime : float, optional
        Seconds from the start of this process on. By default ``SLURM_JOB_END_TIME``, or else ``PBS_WALLTIME``.

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
        """Give the signals back."""
        for number, handler in self._handlers.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def end_of_job(walltime: float | None) -> float:
    """The time at which this job is ended."""
    if walltime is not None:
        return start_of_this_process() + walltime
    for variable, begin in (("SLURM_JOB_END_TIME", 0.0), ("PBS_WALLTIME", start_of_this_process())):
        try:
            return begin + float(os.environ[variable])
        except (KeyError, ValueError):
            pass
    return math.inf


def start_of_this_process() -> float:
    """The time at which it was started."""
    import psutil

    started: Any = psutil.Process().create_time()
    return float(started)
