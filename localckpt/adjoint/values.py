"""The entries of controls and derivatives, whatever type they are of."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from mpi4py import MPI

__all__ = ["comm_of", "norms", "values", "with_values"]


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


def comm_of(objects: Iterable[Any]) -> MPI.Intracomm | None:
    """The communicator of the first Function, or of what else has one, among these objects; None if none has."""
    for one in objects:
        space = getattr(one, "function_space", None)
        ensemble = getattr(space(), "ensemble", None) if space else None
        comm = ensemble.global_comm if ensemble is not None else getattr(one, "comm", None)
        if comm is not None:
            found: MPI.Intracomm = comm
            return found
    return None


def norms(comm: MPI.Intracomm, arrays: Sequence[Any]) -> list[float]:
    """The Euclidean norm of each array over all ranks. Collective on `comm`."""
    squares = np.array([np.vdot(array, array).real for array in arrays], float)
    comm.Allreduce(MPI.IN_PLACE, squares, MPI.SUM)
    return [math.sqrt(square) for square in squares]
