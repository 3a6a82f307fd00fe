"""Which checkpointer a checkpoint that is made now belongs to, and which variable of its tape.

Firedrake has one switch for all tapes that says whether checkpoints go to disk, and takes the checkpointer from the
working tape. An evaluation works whichever tape is the working one: this module remembers whose tape is saving.
"""

import weakref

from firedrake import Function
from firedrake.adjoint_utils import checkpointing as firedrakes
from pyadjoint import get_working_tape
from pyadjoint.block_variable import BlockVariable
from pyadjoint.tape import TapePackageData

_saving: "weakref.ref[TapePackageData] | None" = None  # the checkpointer whose tape is saving a timestep
_variable: BlockVariable | None = None  # the one whose value the tape has asked for last while it saves a timestep


def begin_saving(checkpointer: TapePackageData) -> None:
    """Checkpoints are on disk, and are those of `checkpointer`, until :func:`end_saving`. Not collective."""
    global _saving, _variable
    _saving, _variable = weakref.ref(checkpointer), None
    firedrakes.continue_disk_checkpointing()


def end_saving(checkpointer: TapePackageData) -> None:
    """The tape of `checkpointer` has saved its timestep: checkpoints are in memory again. Not collective."""
    global _saving, _variable
    if _saving is not None and _saving() is checkpointer:
        _saving = _variable = None
    firedrakes.pause_disk_checkpointing()


def current_checkpointer() -> TapePackageData | None:
    """The checkpointer of the tape that is saving, else the working tape's, else None. Not collective.

    It may be localckpt's or Firedrake's.
    """
    checkpointer = _saving() if _saving is not None else None
    return checkpointer or get_working_tape()._package_data.get("firedrake")


def note_variable(variable: BlockVariable) -> None:
    """The tape has asked for the value of a variable: if it is saving a timestep, to save it next. Not collective."""
    global _variable
    if _saving is not None:
        _variable = variable


def is_computed() -> bool:
    """Whether what is saved now is what a block of the tape has computed. The same on every rank. Not collective.

    False for initial conditions, coefficients and whatever else came from outside, for controls, and for the
    coordinates of meshes; and whenever no schedule is saving a timestep, because the evaluation then goes on from what
    was saved.
    """
    if _variable is None or _variable.creation_timestep < 0 or _variable.is_control:
        return False
    output = _variable.output
    return not (isinstance(output, Function) and output is getattr(output.function_space().mesh(), "coordinates", None))
