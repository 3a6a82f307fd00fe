"""PETSc's TSTrajectory on node-local disks: importing this module makes ``-ts_trajectory_type localckpt`` known.

For programs with TSAdjoint, in C, Fortran or Python, without Firedrake. Each rank writes to a file of its own, in the
directories that the PETSc options ``-localckpt_dir`` and ``-localckpt_dir_limit`` name, or in a node-local one.
``-ts_trajectory_view`` says how much that was.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mpi4py import MPI
from numpy.typing import NDArray
from petsc4py import PETSc

from localckpt._collective import interrupts_held, raise_everywhere
from localckpt._errors import LayoutError, StorageError
from localckpt._trajectory import register
from localckpt.storage.nodes import node_comm
from localckpt.storage.store import Store, Stored, Summary

__all__ = ["Trajectory"]


class Trajectory:
    """What one TSTrajectory of the type "localckpt" has stored. PETSc makes and calls it, through _trajectory.

    Every step of a forward solve is kept until it is stored again, or until a solve begins at step 0 anew: an adjoint
    may go back over the same steps several times, or over a part of them (``TSAdjointSetSteps``).
    """

    def __init__(self) -> None:
        self._comm: MPI.Intracomm = MPI.COMM_SELF
        self._store: Store | None = None
        self._steps: dict[int, tuple[tuple[float, float], list[Stored]]] = {}

    def set_up(self, comm: MPI.Intracomm, error: Exception | None = None) -> None:
        """Choose the directory, before the first step. Collective on `comm`.

        Parameters
        ----------
        comm : mpi4py.MPI.Intracomm
        error : Exception, optional
            Why this rank refuses the options.

        Raises
        ------
        OSError, ValueError
            On every rank of `comm`.
        """
        self._comm = comm
        with interrupts_held():
            ranks = node_comm(comm).size
            try:
                if error is not None:
                    raise error
                self._store = Store.temporary(ranks=ranks)
                self._store.detach()
            except Exception as exc:
                error = exc
            raise_everywhere(comm, error)

    def save(self, step: int, times: tuple[float, float], state: list[PETSc.Vec | PETSc.Mat]) -> None:
        """Store a step: its time, that of the step before, the solution and the stages. Not collective.

        Raises
        ------
        StorageError
        """
        store = self._require_store()
        if step == 0 and step in self._steps:
            self._steps.clear()
        stored = []
        with self._rank_in_errors():
            for part in state:
                array = part.array_r if isinstance(part, PETSc.Vec) else dense(part, readonly=True)
                stored.append(store.put(f"{array.nbytes} bytes", array))
            store.sync()
        self._steps[step] = times, stored

    def load(self, step: int, state: list[PETSc.Vec | PETSc.Mat]) -> tuple[float, float]:
        """Fill the solution and the stages with those of a step, and return its times. Not collective.

        Raises
        ------
        LookupError
            If the step was not stored.
        StorageError
        """
        store = self._require_store()
        if step not in self._steps:
            there = f"steps {min(self._steps)} to {max(self._steps)} were" if self._steps else "nothing was"
            raise LookupError(f"step {step} of the trajectory was not stored; {there}")
        times, stored = self._steps[step]
        if len(state) > len(stored):
            raise LayoutError(f"of step {step} {len(stored)} arrays were stored, {len(state)} are to be read")
        with self._rank_in_errors():
            for part, token in zip(state, stored):
                array = part.array_w if isinstance(part, PETSc.Vec) else dense(part)
                if array.flags.c_contiguous:
                    store.get(token, out=array)
                else:  # a part of a larger matrix
                    array[...] = store.get(token, array.shape, array.dtype)
        return times

    def summary(self) -> Summary:
        """Return how much all ranks have stored and read. Collective on the trajectory's communicator."""
        summary = Summary() if self._store is None else self._store.summary
        return summary.over(self._comm)

    def reset(self) -> None:
        """Forget all steps, and the file that they are in. Not collective."""
        self._steps.clear()
        self._store = None

    @contextmanager
    def _rank_in_errors(self) -> Iterator[None]:
        """Have errors name the rank among all that compute: the file is of this rank alone."""
        try:
            yield
        except StorageError as exc:
            exc.rank = self._comm.rank
            raise

    def _require_store(self) -> Store:
        if self._store is None:
            raise RuntimeError("TSTrajectorySetUp comes first")
        return self._store


def dense(matrix: PETSc.Mat, readonly: bool = False) -> NDArray[Any]:
    """Return this rank's part of a dense matrix, without a copy. Not collective.

    Raises
    ------
    TypeError
        If it is not dense.
    """
    if not matrix.getType().endswith("dense"):
        raise TypeError(f"sensitivities in a {matrix.getType()} matrix are not stored: use a dense one")
    return matrix.getDenseArray(readonly=readonly).T  # stored by columns


register(Trajectory)
