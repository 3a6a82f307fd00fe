"""What a tape holds in place of a Function, a mesh or an EnsembleFunction."""

import weakref
from typing import TYPE_CHECKING, Any

from firedrake import Cofunction, Function
from firedrake.adjoint_utils.checkpointing import CheckpointBase
from pyadjoint import OverloadedType

from localckpt.adjoint import garbage
from localckpt.adjoint.saving import is_computed
from localckpt.functions import CopiedFunction, Fingerprint, SavedFunction, fingerprint, mark_modified

if TYPE_CHECKING:
    from firedrake import EnsembleCofunction, EnsembleFunction, MeshGeometry
    from firedrake.ensemble import EnsembleFunctionSpaceBase

    from localckpt.adjoint.checkpointer import DiskCheckpointer

__all__ = ["EnsembleCheckpoint", "LocalCheckpoint", "MeshCheckpoint", "saved_function"]


class LocalCheckpoint:
    """A Function in the store of a checkpointer.

    The tape itself holds a ``CheckpointFunction`` of Firedrake's, which has one of these if it was made for a
    checkpointer of localckpt's (:mod:`localckpt.adjoint.patches`).

    Parameters
    ----------
    function : firedrake.Function or firedrake.Cofunction
        Saving it is collective on `checkpoint_comm` where that has several ranks.
    checkpointer : localckpt.adjoint.DiskCheckpointer
    """

    __slots__ = ("saved", "_checkpointer")

    def __init__(self, function: Function | Cofunction, checkpointer: "DiskCheckpointer") -> None:
        self.saved = checkpointer.save(function, computed=is_computed())
        self._checkpointer = weakref.ref(checkpointer)

    def restore(self) -> Function | Cofunction:
        """A new Function with the values, name and count of the saved one.

        Collective on `checkpoint_comm` with the viewer engine where that has several ranks, and not collective
        otherwise.
        """
        checkpointer = self._checkpointer()
        if checkpointer is not None:
            garbage.freeze_once(checkpointer)  # a gradient may be computed without an evaluation before it
        return self.saved.load()


class MeshCheckpoint(OverloadedType):
    """The coordinates of a mesh, on disk or in memory.

    A tape asks for the checkpoint of a mesh much more often than meshes move. A mesh may have moved on some
    ranks only. Restoring it therefore makes no new Function: Firedrake numbers Functions, and the numbers would
    not be the same on all ranks any more.

    Parameters
    ----------
    values : localckpt.functions.SavedFunction or localckpt.functions.CopiedFunction
        The coordinates.
    fingerprint : list
        Their :func:`localckpt.functions.fingerprint`.
    collective : bool, optional
        Whether reading `values` is collective.
    """

    def __init__(
        self, values: SavedFunction | CopiedFunction, fingerprint: Fingerprint, collective: bool = False
    ) -> None:
        self.fingerprint = fingerprint
        self._values = values
        self._collective = collective

    def restore_to(self, mesh: "MeshGeometry") -> None:
        """Give the mesh these coordinates, unless it has them. Collective if reading them is."""
        coordinates = mesh.coordinates
        if not self._collective and fingerprint(coordinates) == self.fingerprint:
            mark_modified(coordinates)  # as on the ranks where the mesh has moved
        else:
            self._values.load_into(coordinates)

    def _ad_restore_at_checkpoint(self, checkpoint: "MeshCheckpoint") -> "MeshCheckpoint":
        return checkpoint  # the mesh takes its coordinates from it when a block needs them


class EnsembleCheckpoint(CheckpointBase, OverloadedType):
    """An EnsembleFunction or EnsembleCofunction on disk.

    Parameters
    ----------
    saved : localckpt.functions.SavedFunction
        The part of this ensemble member.
    cls : type
        ``EnsembleFunction`` or ``EnsembleCofunction``.
    function_space : firedrake.EnsembleFunctionSpace or firedrake.EnsembleDualSpace
    """

    def __init__(self, saved: SavedFunction, cls: type, function_space: "EnsembleFunctionSpaceBase") -> None:
        self._saved = saved
        self._cls = cls
        self._function_space = function_space

    def restore(self) -> "EnsembleFunction | EnsembleCofunction":
        """A new one with the saved values. Collective on the whole ensemble, as making any EnsembleFunction is."""
        function = self._cls(self._function_space)
        self._saved.load_into(function._full_local_function)
        return function

    def _ad_restore_at_checkpoint(self, checkpoint: Any) -> Any:
        return checkpoint.restore()


def saved_function(checkpoint: Any) -> SavedFunction | None:
    """The Function in a store that a checkpoint on the tape refers to; None if the checkpoint is in memory."""
    local = getattr(checkpoint, "local", None)
    if isinstance(local, LocalCheckpoint):
        return local.saved
    if isinstance(checkpoint, EnsembleCheckpoint):
        return checkpoint._saved
    values = checkpoint._values if isinstance(checkpoint, MeshCheckpoint) else None
    return values if isinstance(values, SavedFunction) else None
