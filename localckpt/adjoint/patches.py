"""Every place in Firedrake and pyadjoint that localckpt replaces: one table, installed and taken back in one place.

Firedrake makes all checkpoints for a checkpointer of its own. With these patches it asks whose tape is saving
(:mod:`localckpt.adjoint.saving`): the tapes of localckpt's checkpointers get localckpt's checkpoints, and tapes
that carry Firedrake's checkpointer keep working beside them.

pyadjoint's interface for packages, ``TapePackageData``, tells a checkpointer when its tape saves. There is no such
interface for what is saved then: Functions and meshes make their own checkpoints, so it takes patches.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from importlib.metadata import version
from pkgutil import resolve_name
from typing import Any

from firedrake.adjoint_utils import checkpointing as firedrakes

from localckpt.adjoint import derivatives, timesteps
from localckpt.adjoint.checkpointer import DiskCheckpointer
from localckpt.adjoint.checkpoints import EnsembleCheckpoint, LocalCheckpoint, MeshCheckpoint
from localckpt.adjoint.saving import begin_saving, current_checkpointer, end_saving, note_variable

__all__ = ["checkpointable_mesh", "install", "uninstall"]

# The functions of localckpt that are called in place of Firedrake's: with the original first, then with all that the
# original was called with.


def init_checkpoint(original: Callable[..., None], self: Any, function: Any) -> None:
    """Save a Function for the checkpointer whose tape is saving."""
    checkpointer = current_checkpointer()
    # A subclass may have a restore of its own, which needs Firedrake's file.
    if isinstance(checkpointer, DiskCheckpointer) and type(self) is firedrakes.CheckpointFunction:
        self.local = LocalCheckpoint(function, checkpointer)
        saved = self.local.saved
        self.name, self.count, self.mesh = saved.name, saved.count, saved.function_space.mesh()
    else:
        original(self, function)


def restore_checkpoint(original: Callable[..., Any], self: Any) -> Any:
    """Restore the Function from where it was saved."""
    return self.local.restore() if hasattr(self, "local") else original(self)


def current_checkpoint_file(original: Callable[..., Any], init: bool | None = None) -> Any:
    """The file of the checkpointer whose tape is saving, which may not be the working tape."""
    checkpointer = current_checkpointer()
    if checkpointer is None:
        return original(init)
    if isinstance(checkpointer, DiskCheckpointer) and init:  # only checkpointable_mesh calls it with init
        return checkpointer.shared_mesh_file()
    in_init_file = init or firedrakes._checkpoint_init_data
    return checkpointer.init_checkpoint_file if in_init_file else checkpointer.current_checkpoint_file


def continue_checkpointing(original: Callable[..., None], self: Any) -> None:
    """Note that the tape of a checkpointer of Firedrake's begins to save."""
    begin_saving(self)
    original(self)


def pause_checkpointing(original: Callable[..., None], self: Any) -> None:
    """Note that the tape of a checkpointer of Firedrake's has saved."""
    end_saving(self)
    original(self)


def create_mesh_checkpoint(original: Callable[..., Any], self: Any) -> Any:
    """A mesh's checkpoint for the checkpointer whose tape is saving."""
    checkpointer = current_checkpointer()
    return checkpointer.save_mesh(self) if isinstance(checkpointer, DiskCheckpointer) else original(self)


def restore_mesh_checkpoint(original: Callable[..., Any], self: Any, checkpoint: Any) -> Any:
    """Give a mesh the coordinates of its checkpoint."""
    if not isinstance(checkpoint, MeshCheckpoint):
        return original(self, checkpoint)
    checkpoint.restore_to(self)
    return self


def create_ensemble_checkpoint(original: Callable[..., Any], self: Any) -> Any:
    """An EnsembleFunction's checkpoint for the checkpointer whose tape is saving, if that goes to disk."""
    checkpointer = current_checkpointer() if firedrakes.disk_checkpointing() else None
    return checkpointer.save_ensemble(self) if isinstance(checkpointer, DiskCheckpointer) else original(self)


def restore_ensemble_checkpoint(original: Callable[..., Any], self: Any, checkpoint: Any) -> Any:
    """The EnsembleFunction of a checkpoint."""
    return checkpoint.restore() if isinstance(checkpoint, EnsembleCheckpoint) else original(self, checkpoint)


def noting_variable(original: property) -> property:
    """The value of a variable, noted as what may be saved next."""

    def saved_output(self: Any) -> Any:
        value = original.__get__(self)
        note_variable(self)  # last: the value may have been made of other variables' values
        return value

    return property(saved_output, doc=original.__doc__)


_warned = False  # once is enough


def init_firedrakes_checkpointer(original: Callable[..., None], self: Any, *args: Any, **kwargs: Any) -> None:
    """Warn that a tape gets Firedrake's checkpointer."""
    global _warned
    if not _warned:
        _warned = True
        warnings.warn(
            "this is Firedrake's enable_disk_checkpointing, not localckpt's: import * from "
            "localckpt.adjoint after all modules that import * from firedrake.adjoint",
            UserWarning,
            stacklevel=4,  # the caller of enable_disk_checkpointing, which calls __init__, which calls this
        )
    original(self, *args, **kwargs)


keep_mesh: Callable[[Any], Any] | None = None  # set by a run that resumes: it keeps its meshes in its directory


def make_checkpointable_mesh(original: Callable[..., Any], mesh: Any) -> Any:
    """Make the mesh, and leave no file.

    The file goes with the last reference to its name. If Firedrake's function raises, its frame lives on, with that
    reference, until the job is aborted.
    """
    try:
        if keep_mesh is not None and current_checkpointer() is not None:
            return keep_mesh(mesh)
        return original(mesh)
    finally:
        checkpointer = current_checkpointer()
        if isinstance(checkpointer, DiskCheckpointer):
            checkpointer.forget_mesh_file()


def around(replacement: Callable[..., Any]) -> Callable[[Any], Any]:
    """To replace a function by one that calls `replacement` with the original first."""

    def around_original(original: Any) -> Any:
        @wraps(original)
        def call(*args: Any, **kwargs: Any) -> Any:
            return replacement(original, *args, **kwargs)

        return call

    return around_original


def instead(replacement: Any) -> Callable[[Any], Any]:
    """To put `replacement` itself in place of the original."""
    return lambda original: replacement


def of_runs(name: str) -> Callable[..., Any]:
    """A function of :mod:`localckpt.adjoint.runs`, which is imported only if a run resumes."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return resolve_name(f"localckpt.adjoint.runs:{name}")(*args, **kwargs)

    return call


checkpointable_mesh = around(make_checkpointable_mesh)(firedrakes.checkpointable_mesh)


@dataclass(frozen=True)
class Patch:
    """One attribute of Firedrake's or pyadjoint's that localckpt replaces.

    Attributes
    ----------
    owner : str
        The module, or the module and class (``"package.module:Class"``), that has the attribute itself.
    name : str
        The attribute.
    replace : callable
        Makes the replacement out of the original: :func:`around`, :func:`instead`, or :func:`noting_variable` for a
        property.
    why : str
    """

    owner: str
    name: str
    replace: Callable[[Any], Any]
    why: str

    def find_owner(self) -> Any:
        """The module or class to change.

        Raises
        ------
        LookupError
            With the name of what this Firedrake lacks: the owner, or its attribute.
        """
        place = self.owner.replace(":", ".")
        try:
            owner = resolve_name(self.owner)
        except (ImportError, AttributeError):
            raise LookupError(place) from None
        if self.name not in vars(owner):  # one that is inherited, as all have from pyadjoint, is not enough
            raise LookupError(f"{place}.{self.name}")
        return owner


CHECKPOINTING = "firedrake.adjoint_utils.checkpointing"
MESH = "firedrake.adjoint_utils.mesh:MeshGeometryMixin"
ENSEMBLE_FUNCTION = "firedrake.adjoint_utils.ensemble_function:EnsembleFunctionMixin"
OPTIMIZATION = "pyadjoint.optimization"

REDUCED_FUNCTIONAL = "pyadjoint.reduced_functional"
ENSEMBLE_FUNCTIONAL = "firedrake.adjoint.ensemble_reduced_functional:EnsembleReducedFunctional"

# For each feature, what it needs. Firedrake is searched for a feature's places, and they are replaced, only when the
# feature is asked for.
PATCHES = {
    # localckpt's checkpoints on tapes of localckpt's: installed when localckpt.adjoint is imported.
    "checkpoints": [
        # Replacing two methods reaches everybody who makes a CheckpointFunction, and isinstance keeps working. What
        # looks plainer does not do that: Firedrake's blocks import the class, or a function that makes one, by value,
        # as other packages may, so a name in one module reaches only some of them; and a class that was once given a
        # __new__ refuses all arguments after that was removed again.
        Patch(
            f"{CHECKPOINTING}:CheckpointFunction",
            "__init__",
            around(init_checkpoint),
            "saves the Function in localckpt's store",
        ),
        Patch(
            f"{CHECKPOINTING}:CheckpointFunction",
            "restore",
            around(restore_checkpoint),
            "restores it from there",
        ),
        Patch(
            CHECKPOINTING,
            "current_checkpoint_file",
            around(current_checkpoint_file),
            "Firedrake looks at the working tape only; a mesh's file is made when it is asked for, for all ranks",
        ),
        Patch(
            f"{CHECKPOINTING}:DiskCheckpointer",
            "continue_checkpointing",
            around(continue_checkpointing),
            "a tape of Firedrake's gets Firedrake's checkpoints while it saves, whichever tape is the working one",
        ),
        Patch(
            f"{CHECKPOINTING}:DiskCheckpointer",
            "pause_checkpointing",
            around(pause_checkpointing),
            "the end of that",
        ),
        Patch(
            f"{CHECKPOINTING}:DiskCheckpointer",
            "__init__",
            around(init_firedrakes_checkpointer),
            "warns: a late 'from firedrake.adjoint import *' may have replaced localckpt's enable_disk_checkpointing",
        ),
        Patch(
            MESH,
            "_ad_create_checkpoint",
            around(create_mesh_checkpoint),
            "Firedrake copies the coordinates in memory in every timestep, whether the mesh has moved or not",
        ),
        Patch(
            MESH,
            "_ad_restore_at_checkpoint",
            around(restore_mesh_checkpoint),
            "Firedrake expects such a copy",
        ),
        Patch(
            ENSEMBLE_FUNCTION,
            "_ad_create_checkpoint",
            around(create_ensemble_checkpoint),
            "Firedrake cannot save EnsembleFunctions on disk",
        ),
        Patch(
            ENSEMBLE_FUNCTION,
            "_ad_restore_at_checkpoint",
            around(restore_ensemble_checkpoint),
            "nor restore them from there",
        ),
    ],
    # enable_disk_checkpointing(precision="single"): what a block has computed is rounded, everything else is not.
    "precision": [
        Patch(
            "pyadjoint.block_variable:BlockVariable",
            "saved_output",
            noting_variable,
            "a Function does not know which variable of the tape it is the value of when it is saved",
        ),
    ],
    # python -m localckpt run: a script that knows nothing of localckpt uses it. What firedrake.adjoint imports by value
    # when the script imports that is then replaced already.
    "run": [
        Patch(
            CHECKPOINTING,
            "DiskCheckpointer",
            instead(DiskCheckpointer),
            "Firedrake's enable_disk_checkpointing makes one of localckpt's",
        ),
        *(
            Patch(
                module,
                "checkpointable_mesh",
                instead(checkpointable_mesh),
                "leaves no file",
            )
            for module in (CHECKPOINTING, "firedrake.adjoint_utils")
        ),
    ],
    # python -m localckpt verify: it tests the gradient where a script computes its first derivative.
    "verify": [
        *(
            Patch(
                owner,
                "derivative",
                around(derivatives.derivative),
                "stops there, whichever optimiser or driver has called it",
            )
            for owner in (
                f"{REDUCED_FUNCTIONAL}:ReducedFunctional",
                ENSEMBLE_FUNCTIONAL,
            )
        ),
        Patch(
            f"{OPTIMIZATION}.optimization_problem:OptimizationProblem",
            "__init__",
            around(derivatives.init_optimization_problem),
            "TAO, ROL and IPOPT have the bounds from it",
        ),
        Patch(
            f"{OPTIMIZATION}.optimization",
            "serialise_bounds",
            around(derivatives.serialise_bounds),
            "minimize gives its bounds to it",
        ),
        Patch(
            "pyadjoint.tape:Tape",
            "add_block",
            around(derivatives.add_block),
            "measures how long the recording takes",
        ),
    ],
    # -localckpt_view :FILE:json: what a timestep stores and takes.
    "view": [
        Patch(
            "pyadjoint.tape:TimeStep",
            "checkpoint",
            around(timesteps.save_timestep),
            "the tape says only here whether it saves restart data or adjoint data, and where a timestep ends",
        ),
        Patch(
            "pyadjoint.tape:TimeStep",
            "restore_from_checkpoint",
            around(timesteps.restore_timestep),
            "and where one ends in reverse",
        ),
    ],
    # resume(): values and derivatives of all ReducedFunctionals are recorded and given back. TAO, ROL, ensembles and
    # other wrappers hold ReducedFunctionals, so a class of our own would not reach them.
    "resume": [
        Patch(
            f"{REDUCED_FUNCTIONAL}:ReducedFunctional",
            "__init__",
            around(of_runs("init_functional")),
            "controls of a tape that was recorded at another control get their own values back",
        ),
        Patch(
            f"{REDUCED_FUNCTIONAL}:ReducedFunctional",
            "__call__",
            around(of_runs("evaluate")),
            "gives a recorded value back, or records it",
        ),
        Patch(
            f"{REDUCED_FUNCTIONAL}:ReducedFunctional",
            "derivative",
            around(of_runs("derivative")),
            "says whose derivative compute_derivative computes",
        ),
        Patch(
            REDUCED_FUNCTIONAL,
            "compute_derivative",
            around(of_runs("compute_derivative")),
            "gives a recorded derivative back, or records it",
        ),
        *(
            Patch(
                REDUCED_FUNCTIONAL,
                name,
                around(of_runs("compute_really")),
                "needs states and adjoint values that a recorded evaluation has not brought onto the tape",
            )
            for name in ("compute_hessian", "compute_tlm")
        ),
        *(
            Patch(
                ENSEMBLE_FUNCTIONAL,
                name,
                around(of_runs("evaluate_ensemble")),
                "where all members of an ensemble can leave together",
            )
            for name in ("__call__", "derivative")
        ),
        *(
            Patch(
                "pyadjoint.tape:Tape",
                name,
                around(of_runs("evaluate_tape")),
                "needs such states, too, if somebody else calls it",
            )
            for name in ("evaluate_adj", "evaluate_tlm")
        ),
        Patch(
            "pyadjoint.tape:Tape",
            "end_timestep",
            around(of_runs("end_timestep")),
            "compares the first and the tenth timestep with those of the first job",
        ),
        Patch(
            f"{OPTIMIZATION}.tao_solver:TAOSolver",
            "solve",
            around(of_runs("solve_with_tao")),
            "the exception that ends a job is not to be one of PETSc's",
        ),
        Patch(
            "firedrake.adjoint_utils.blocks.solving:NonlinearVariationalSolveBlock",
            "_adjoint_solve",
            around(of_runs("adjoint_solve")),
            "begins at zero, so that a derivative does not depend on what was solved before it",
        ),
    ],
    # resume(recording=True): solves of a recording are written, and read by later jobs.
    "resume recording": [
        Patch(
            "firedrake.variational_solver:NonlinearVariationalSolver",
            "solve",
            around(of_runs("solve")),
            "all variational solves go through it",
        ),
    ],
    # resume(sweeps=True): solves of a sweep are written, and read by later jobs; "resume recording" is installed, too.
    "resume sweeps": [
        Patch(
            "firedrake.adjoint_utils.blocks.solving:GenericSolveBlock",
            "recompute_component",
            around(of_runs("recompute_solve")),
            "says which block of the tape the next solve is for",
        ),
    ],
}

_installed: set[str] = set()  # groups of the table
_originals: list[tuple[Any, str, Any]] = []  # what was replaced: owner, name and what was there, in that order


def install(group: str = "checkpoints") -> None:
    """Replace what a group of the table names, unless that was done already.

    Raises
    ------
    ImportError
        If this Firedrake lacks one of the places. Nothing is replaced then.
    """
    if group in _installed:
        return
    patches = PATCHES[group]
    owners, missing = [], []
    for patch in patches:
        try:
            owners.append(patch.find_owner())
        except LookupError as exc:
            missing.append(str(exc))
    if missing:
        raise ImportError(
            f"Firedrake {version('firedrake')} has no {' or '.join(dict.fromkeys(missing))}, which localckpt replaces; "
            "a newer localckpt may fit this Firedrake"
        )
    for patch, owner in zip(patches, owners):
        original = vars(owner)[patch.name]
        _originals.append((owner, patch.name, original))
        setattr(owner, patch.name, patch.replace(original))
    _installed.add(group)


def uninstall() -> None:
    """Leave Firedrake as it was before anything was installed."""
    while _originals:
        owner, name, original = _originals.pop()
        setattr(owner, name, original)
    _installed.clear()
