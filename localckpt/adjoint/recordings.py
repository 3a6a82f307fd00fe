"""The solves of a tape's recording, written once and read by the recordings of later jobs.

Only solves are left out. All else runs again (assemblies, assignments, interpolations), so that the tape becomes the
same one, and an adaptive timestep takes the same steps.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import firedrake as fd
import numpy as np
from petsc4py import PETSc
from tsfc.ufl_utils import extract_firedrake_constants

from localckpt.adjoint.values import norms, values
from localckpt.storage.journal import DamagedRecord, Journal
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
        found: Entry = {"kind": "solve", "solve": number, **description_of(problem)}
        entry = next((e for e in journal.entries if e["kind"] == "solve" and e["solve"] == number), None)
        if entry is not None:
            solution = read_solution(self._run, journal, entry, found, problem, f"solve {number + 1} of the recording")
            if solution is not None:
                self.read += 1
                return solve_as_before(original, solver, solution, **kwargs)
        result = original(solver, **kwargs)
        solution = values(problem.u_restrict)
        if number == 0 and entry is None:
            self._run.say_how_much("a solve of the recording", journal.comm.allreduce(solution.nbytes))
        if self._run.append(journal, found, [solution]):
            self.written += 1
        return result


def description_of(problem: Any) -> Entry:
    """What must be the same where a solve is read. Collective on the communicator of the problem's mesh."""
    return {"form": problem.F.signature(), "inputs": inputs_of(problem)}


def read_solution(run: "Run", journal: Journal, entry: Entry, found: Entry, problem: Any, what: str) -> Any:
    """The solution in a record, or None, with a warning, if it is damaged. Collective on the journal's communicator.

    Raises
    ------
    ResumeError
        If the record is one of another problem than was found.
    """
    for name in ("form", "inputs"):
        then, now = ([one[name]] if name == "form" else one[name] for one in (entry, found))
        run.compare(what, name, then, now)
    try:
        return journal.read(entry, [values(problem.u_restrict)])[0]
    except DamagedRecord as exc:
        run.warn(f"{what} is done again: {exc}")
        return None


def solve_as_before(original: Callable[..., Any], solver: Any, solution: Any, **kwargs: Any) -> Any:
    """Do all that Firedrake does for a solve, but for the solve."""
    snes = solver.snes
    solver.snes = Solved(snes, solution)
    try:
        return original(solver, **kwargs)
    finally:
        solver.snes = snes


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


def can_be_read(solver: Any) -> bool:
    """Whether a solve does nothing but solve, on the mesh of its problem."""
    callbacks = (
        "_pre_jacobian_callback",
        "_post_jacobian_callback",
        "_pre_function_callback",
        "_post_function_callback",
        "_marking_callback",
    )
    return not any(getattr(solver._ctx, name, None) for name in callbacks)


def inputs_of(problem: Any) -> list[float]:
    """The norm of each coefficient of a problem and of its boundary conditions, but for the unknown."""
    boundary = [getattr(bc, "function_arg", None) for bc in problem.dirichlet_bcs()]
    inputs = [one for one in (*problem.F.coefficients(), *boundary) if isinstance(one, (fd.Function, fd.Cofunction))]
    constants = [one for one in (*extract_firedrake_constants(problem.F), *boundary) if isinstance(one, fd.Constant)]
    arrays = [values(one) for one in inputs if one is not problem.u_restrict]
    comm = problem.u_restrict.function_space().mesh().comm
    sizes = [float(np.linalg.norm(one.dat.data_ro)) for one in constants]
    return norms(comm, arrays) + sizes
