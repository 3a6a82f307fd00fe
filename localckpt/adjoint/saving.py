"""Which checkpointer a checkpoint that is made now belongs to.

Firedrake has one switch for all tapes that says whether checkpoints go to disk, and takes the checkpointer from the
working tape. An evaluation works whichever tape is the working one: this module remembers whose tape is saving.
"""

import weakref

from firedrake.adjoint_utils import checkpointing as firedrakes
from pyadjoint import get_working_tape
from pyadjoint.tape import TapePackageData

_saving: "weakref.ref[TapePackageData] | None" = None  # the checkpointer whose tape is saving a timestep


def begin_saving(checkpointer: TapePackageData) -> None:
    """Checkpoints are on disk, and are those of `checkpointer`, until :func:`end_saving`. Not collective."""
    global _saving
    _saving = weakref.ref(checkpointer)
    firedrakes.continue_disk_checkpointing()


def end_saving(checkpointer: TapePackageData) -> None:
    """The tape of `checkpointer` has saved its timestep: checkpoints are in memory again. Not collective."""
    global _saving
    if _saving is not None and _saving() is checkpointer:
        _saving = None
    firedrakes.pause_disk_checkpointing()


def current_checkpointer() -> TapePackageData | None:
    """The checkpointer of the tape that is saving, else the working tape's, else None. Not collective.

    It may be localckpt's or Firedrake's.
    """
    checkpointer = _saving() if _saving is not None else None
    return checkpointer or get_working_tape()._package_data.get("firedrake")
