"""Where localckpt attaches to Firedrake: who makes a disk checkpoint, and for which tape.

Firedrake imports its ``CheckpointFunction`` by value all over, so the class itself is
taught to ask (:func:`checkpointer`) whose checkpoint it is to be.  Tapes that carry
Firedrake's own checkpointer keep working beside ours.
"""

import sys
import warnings
import weakref
from functools import wraps
from importlib.metadata import version

from firedrake.adjoint_utils import checkpointing as fd
from firedrake.adjoint_utils.ensemble_function import EnsembleFunctionMixin
from firedrake.adjoint_utils.mesh import MeshGeometryMixin
from pyadjoint import get_working_tape

_active = None  # weak reference to the checkpointer whose tape is saving a timestep
_replaced: list = []  # what install() put in place: (owner, name, what was there or None)


def begin(checkpointer):
    """The tape of `checkpointer` begins to save."""
    global _active
    _active = weakref.ref(checkpointer)
    fd.continue_disk_checkpointing()


def end(checkpointer):
    """The tape of `checkpointer` has saved."""
    global _active
    if _active is not None and _active() is checkpointer:
        _active = None
    fd.pause_disk_checkpointing()


def checkpointer():
    """The one that a checkpoint made now belongs to, or None.

    Between ``continue_checkpointing`` and ``pause_checkpointing`` of a tape's checkpointer
    it is that one, else the working tape's: an evaluation works whichever tape is the
    working one.
    """
    active = _active() if _active is not None else None
    return active or get_working_tape()._package_data.get("firedrake")


theirs_mesh = fd.checkpointable_mesh


@wraps(theirs_mesh)
def checkpointable_mesh(mesh):
    try:
        return theirs_mesh(mesh)
    finally:  # if it raises, its frame lives on, and keeps the file, until the job is aborted
        forget = getattr(checkpointer(), "forget_mesh_file", None)
        if forget is not None:
            forget()


def install(ours, checkpoint_class, everywhere=False):
    """Let `ours` make the checkpoints of its tapes.

    Parameters
    ----------
    ours : type
        The DiskCheckpointer whose tapes get `checkpoint_class`.
    checkpoint_class : type
        A subclass of Firedrake's ``CheckpointFunction``, made of a Function and one of `ours`.
    everywhere : bool, optional
        Let Firedrake's ``enable_disk_checkpointing`` make one of `ours`, too, and its
        ``checkpointable_mesh`` be :func:`checkpointable_mesh`. Otherwise the first of them
        warns, once: a later ``from firedrake.adjoint import *`` may have brought it back.

    Raises
    ------
    ImportError
        If this Firedrake has no such place.
    """
    uninstall()
    theirs = attachment_points()
    warned = False

    def init_checkpoint(self, function, *args, **kwargs):  # and not __new__: a class never gets over having had one
        owner = checkpointer() if type(self) is theirs["CheckpointFunction"] else None
        if isinstance(owner, ours):
            self.__class__ = checkpoint_class
            checkpoint_class.__init__(self, function, owner, *args, **kwargs)
        else:
            theirs_init_checkpoint(self, function, *args, **kwargs)

    def current_checkpoint_file(init=None):
        owner = checkpointer()
        if isinstance(owner, ours) and init:  # only checkpointable_mesh says so
            return owner.shared_mesh_file()
        if owner is not None:
            return owner.init_checkpoint_file if init or fd._checkpoint_init_data else owner.current_checkpoint_file

    @wraps(vars(theirs["DiskCheckpointer"])["__init__"])
    def init(self, *args, **kwargs):
        nonlocal warned
        if not warned:
            warned = True
            warnings.warn(
                "this is Firedrake's enable_disk_checkpointing, not localckpt's: import * from "
                "localckpt.adjoint after all modules that import * from firedrake.adjoint",
                UserWarning,
                stacklevel=3,
            )
        theirs_init(self, *args, **kwargs)

    def create_mesh_checkpoint(self):
        owner = checkpointer()
        return owner.save_mesh(self) if isinstance(owner, ours) else theirs_create(self)

    def restore_mesh_checkpoint(self, checkpoint):
        if not hasattr(checkpoint, "restore_to"):
            return theirs_restore(self, checkpoint)
        checkpoint.restore_to(self)
        return self

    def create_ensemble_checkpoint(self):
        owner = checkpointer() if fd.disk_checkpointing() else None
        return owner.save_ensemble(self) if isinstance(owner, ours) else theirs_create_ensemble(self)

    def restore_ensemble_checkpoint(self, checkpoint):
        return (
            checkpoint.restore()
            if isinstance(checkpoint, fd.CheckpointBase)
            else theirs_restore_ensemble(self, checkpoint)
        )

    theirs_init_checkpoint = vars(theirs["CheckpointFunction"])["__init__"]
    theirs_create = vars(MeshGeometryMixin)["_ad_create_checkpoint"]
    theirs_restore = vars(MeshGeometryMixin)["_ad_restore_at_checkpoint"]
    theirs_create_ensemble = vars(EnsembleFunctionMixin)["_ad_create_checkpoint"]
    theirs_restore_ensemble = vars(EnsembleFunctionMixin)["_ad_restore_at_checkpoint"]
    theirs_init = vars(theirs["DiskCheckpointer"])["__init__"]
    replace(theirs["CheckpointFunction"], "__init__", init_checkpoint)
    replace(fd, "current_checkpoint_file", current_checkpoint_file)
    replace(theirs["DiskCheckpointer"], "continue_checkpointing", begin)
    replace(theirs["DiskCheckpointer"], "pause_checkpointing", end)
    replace(MeshGeometryMixin, "_ad_create_checkpoint", create_mesh_checkpoint)
    replace(MeshGeometryMixin, "_ad_restore_at_checkpoint", restore_mesh_checkpoint)
    replace(EnsembleFunctionMixin, "_ad_create_checkpoint", create_ensemble_checkpoint)
    replace(EnsembleFunctionMixin, "_ad_restore_at_checkpoint", restore_ensemble_checkpoint)
    if everywhere:
        replace(fd, "DiskCheckpointer", ours)
        for name in fd.__name__, fd.__package__, "firedrake.adjoint":
            if name in sys.modules:
                replace(sys.modules[name], "checkpointable_mesh", checkpointable_mesh)
    else:
        replace(theirs["DiskCheckpointer"], "__init__", init)


def attachment_points():
    """What localckpt attaches to, or ImportError."""
    theirs = {
        name: getattr(fd, name, None) for name in ("CheckpointFunction", "DiskCheckpointer", "current_checkpoint_file")
    }
    gone = [f"{fd.__name__}.{name}" for name, value in theirs.items() if value is None]
    methods = {theirs["DiskCheckpointer"]: ("continue_checkpointing", "pause_checkpointing")} | dict.fromkeys(
        (MeshGeometryMixin, EnsembleFunctionMixin), ("_ad_create_checkpoint", "_ad_restore_at_checkpoint")
    )
    gone += [
        f"{owner.__module__}.{owner.__name__}.{name}"
        for owner, names in methods.items()
        if owner
        for name in names
        if name not in vars(owner)
    ]  # its own: pyadjoint's are inherited by all
    if gone:
        raise ImportError(
            f"Firedrake {version('firedrake')} has no {' or '.join(gone)}, "
            "where localckpt attaches; a newer localckpt may know its new place"
        )
    return theirs


def replace(owner, name, value):
    _replaced.append((owner, name, vars(owner).get(name)))
    setattr(owner, name, value)


def uninstall():
    """Leave Firedrake as it was."""
    while _replaced:
        owner, name, value = _replaced.pop()
        if value is None:
            delattr(owner, name)
        else:
            setattr(owner, name, value)


attachment_points()  # before anything else of localckpt builds on them
