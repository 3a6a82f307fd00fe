"""The solves of a tape's recording, written once and read by the recordings of later jobs.

Only solves are left out. All else runs again (assemblies, assignments, interpolations), so that the tape becomes the
same one, and an adaptive timestep takes the same steps.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import firedrake as fd
import numpy as np
from petsc4py import PETSc
from pyadjoint.tape import annotate_tape
from tsfc.ufl_utils import extract_firedrake_constants

from localckpt.adjoint.values import norms, values
from localckpt.storage.journal import DamagedRecord
from localckpt.storage.journal_entries import Entry

if TYPE_CHECKING:
    from localckpt.adjoint.runs import Run

__all__ = ["Recordings"]


class Recordings:
    """The solves of all recordings of a run. Made when a run asks for them.

    Parameters
    ----------
    run : localckpt.adjoint.runs.Run
    """

    def __init__(self, run: "Run") -> None:
        self._run = run
        self._solves: dict[int, int] = {}  # how many have been recorded or read in each journal, by its id
        self.read = self.written = 0

    def solve(self, original: Callable[..., Any], solver: Any, **kwargs: Any) -> Any:
        """Solve, or read what was solved. Collective on the communicator of the problem's mesh."""
        problem = solver._problem
        journal = self._run.journal_on(problem.u_restrict.function_space().mesh().comm)
        number = self._solves.get(id(journal), 0)
        self._solves[id(journal)] = number + 1
        found: Entry = {"kind": "solve", "solve": number, "form": problem.F.signature(), "inputs": inputs_of(problem)}
        entry = next((e for e in journal.entries if e["kind"] == "solve" and e["solve"] == number), None)
        if entry is not None:
            for name in ("form", "inputs"):
                then, now = ([one[name]] if name == "form" else one[name] for one in (entry, found))
                self._run.compare(f"solve {number + 1} of the recording", name, then, now)
            try:
                (solution,) = journal.read(entry, [values(problem.u_restrict)])
            except DamagedRecord as exc:
                self._run.warn(f"solve {number + 1} of the recording is done again: {exc}")
            else:
                self.read += 1
                snes = solver.snes
                solver.snes = Solved(snes, solution)
                try:
                    return original(solver, **kwargs)
                finally:
                    solver.snes = snes
        result = original(solver, **kwargs)
        solution = values(problem.u_restrict)
        if number == 0 and entry is None:
            self._run.say_how_much("a solve of the recording", journal.comm.allreduce(solution.nbytes))
        if self._run.append(journal, found, [solution]):
            self.written += 1
        return result


class Solved:
    """Stands in for a SNES that finds what it has found in another job.

    Parameters
    ----------
    snes : petsc4py.PETSc.SNES
    solution : numpy.ndarray
        Of the dofs that this rank owns.
    """

    def __init__(self, snes: PETSc.SNES, solution: Any) -> None:
        self._snes, self._solution = snes, solution
        self._vec: PETSc.Vec | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._snes, name)

    def solve(self, b: Any, x: PETSc.Vec) -> None:
        x.array[:] = self._solution
        self._vec = x

    def getSolution(self) -> PETSc.Vec | None:
        return self._vec

    def getConvergedReason(self) -> int:
        return int(PETSc.SNES.ConvergedReason.CONVERGED_FNORM_ABS)


def can_be_read(solver: Any, kwargs: dict[str, Any]) -> bool:
    """Whether a solve belongs to a recording, and does nothing but solve."""
    callbacks = (
        "_pre_jacobian_callback",
        "_post_jacobian_callback",
        "_pre_function_callback",
        "_post_function_callback",
    )
    return annotate_tape(dict(kwargs)) and not any(getattr(solver._ctx, name, None) for name in callbacks)


def inputs_of(problem: Any) -> list[float]:
    """The norm of each coefficient of a problem and of its boundary conditions, but for the unknown."""
    boundary = [getattr(bc, "function_arg", None) for bc in problem.dirichlet_bcs()]
    inputs = [one for one in (*problem.F.coefficients(), *boundary) if isinstance(one, (fd.Function, fd.Cofunction))]
    constants = [one for one in (*extract_firedrake_constants(problem.F), *boundary) if isinstance(one, fd.Constant)]
    arrays = [values(one) for one in inputs if one is not problem.u_restrict]
    comm = problem.u_restrict.function_space().mesh().comm
    sizes = [float(np.linalg.norm(one.dat.data_ro)) for one in constants]
    return norms(comm, arrays) + sizes
