"""The entries of controls and derivatives, whatever type they are of."""

from typing import Any

import numpy as np
from mpi4py import MPI

__all__ = ["comm_of", "values", "with_values"]


def values(of: Any) -> Any:
    """The entries of a control or derivative as an array: those of this rank, or all if it is not distributed."""
    try:
        return of._ad_to_petsc().array.copy()
    except (AttributeError, NotImplementedError):  # a number, or an array of numbers
        return np.array(of._ad_to_list(of) if hasattr(of, "_ad_to_list") else [of])


def with_values(like: Any, array: Any) -> Any:
    """A new object of that kind with these entries."""
    made = like._ad_copy()
    try:
        vec = made._ad_to_petsc()
    except NotImplementedError:
        return made._ad_assign_numpy(made, array, 0)[0]
    vec.array[:] = array
    made._ad_from_petsc(vec)
    return made


def comm_of(functional: Any) -> MPI.Intracomm | None:
    """The communicator of a functional's controls, or of its checkpoints; None if it has neither."""
    ensemble = getattr(functional, "ensemble", None)
    if ensemble is not None:
        return ensemble.global_comm
    comms = [getattr(control.control, "comm", None) for control in functional.controls]
    checkpointer = getattr(functional.tape, "_package_data", {}).get("firedrake")
    return next((comm for comm in (*comms, getattr(checkpointer, "comm", None)) if comm is not None), None)
