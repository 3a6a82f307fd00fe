"""The pace of checkpoints, beside each timestep of an evaluation."""

import firedrake

from localckpt.adjoint.checkpointer import living_checkpointers

__all__ = ["ProgressBar"]


class ProgressBar(firedrake.ProgressBar):
    """Firedrake's progress bar, for ``tape.progress_bar``, with the pace of checkpoints beside the timestep.

    The pace is how many MB a second rank 0 has written while it saved, and read while it restored, since the last
    timestep. The parameters are those of Firedrake's progress bar.
    """

    width = 24
    suffix = firedrake.ProgressBar.suffix + "%(pace)s"
    _totals: tuple[float, ...] | None = None  # when the last timestep ended

    @property
    def pace(self) -> str:
        """The text that the bar shows."""
        summaries = [checkpointer.local_summary for checkpointer in living_checkpointers]
        totals = tuple(
            sum(getattr(summary, name) for summary in summaries) for name in ("written", "saving", "read", "restoring")
        )
        written, saving, read, restoring = (after - before for after, before in zip(totals, self._totals or totals))
        self._totals = totals
        return f" write {rate(written, saving)} read {rate(read, restoring)} MB/s"


def rate(nbytes: float, seconds: float) -> str:
    """MB a second, or a dash where nothing was moved."""
    return f"{nbytes / 1e6 / seconds:.0f}" if nbytes > 0 and seconds > 0 else "-"
