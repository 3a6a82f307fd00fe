"""The type in petsc4py, on the ranks of the test."""

import os
from pathlib import Path

import numpy as np
import pytest
from mpi4py import MPI
from petsc4py import PETSc

import localckpt.trajectory  # noqa: F401  (registers the type)

WORLD = MPI.COMM_WORLD


@pytest.fixture
def options():
    """PETSc's options, as they were before when the test is over."""
    options = PETSc.Options()
    names = []

    def set_options(**values):
        for name, value in values.items():
            options[name] = value
            names.append(name)

    yield set_options
    for name in names:
        options.delValue(name)


class Decay:
    """u' = -u^3 for each entry of a Vec with `n` entries on each rank."""

    def __init__(self, n=10, comm=WORLD):
        self.u = PETSc.Vec().createMPI((n, None), comm=comm)
        self.matrix = PETSc.Mat().createAIJ(((n, None), (n, None)), nnz=1, comm=comm)
        self.gradient = self.u.duplicate()
        self.ts = PETSc.TS().create(comm)
        self.ts.setType("rk")
        self.ts.setRHSFunction(self.rhs, self.u.duplicate())
        self.ts.setRHSJacobian(self.jacobian, self.matrix)
        self.ts.setExactFinalTime(PETSc.TS.ExactFinalTime.MATCHSTEP)
        self.ts.setMaxTime(1.0)
        self.ts.setSaveTrajectory()
        self.ts.setCostGradients(self.gradient)
        self.ts.setFromOptions()

    def rhs(self, ts, t, u, f):
        f.array[:] = -(u.array_r**3)

    def jacobian(self, ts, t, u, J, P):
        diagonal = u.duplicate()
        diagonal.array[:] = -3 * u.array_r**2
        P.setDiagonal(diagonal)
        P.assemble()

    def solve(self, value=1.0):
        self.u.set(value)
        self.ts.setTime(0.0)
        self.ts.setStepNumber(0)
        self.ts.setTimeStep(0.1)
        self.ts.solve(self.u)

    def adjoint(self):
        self.u.copy(self.gradient)
        self.ts.adjointSolve()
        return self.gradient.array.copy()


def gradients(kind, options, values=(1.0,)):
    options(ts_trajectory_type=kind, ts_adapt_type="none")
    problem, found = Decay(), []
    for value in values:
        problem.solve(value)
        found.append(problem.adjoint())
    return found


@pytest.mark.parallel([1, 2, 3])
def test_gradient_is_that_of_memory(options):
    assert np.array_equal(gradients("localckpt", options), gradients("memory", options))


@pytest.mark.parallel([1, 2])
def test_each_solve_of_a_ts_has_its_own_gradient(options):
    expected = [gradients("memory", options, [value])[0] for value in (1.0, 2.0)]
    assert np.array_equal(gradients("localckpt", options, (1.0, 2.0)), expected)


@pytest.mark.parallel([1, 2])
def test_gradient_is_that_of_basic_with_events(options, shared_tmp, monkeypatch):
    monkeypatch.chdir(shared_tmp)  # where basic writes

    def gradient(kind):
        options(ts_trajectory_type=kind, ts_adapt_type="none")
        problem, steps = Decay(), []
        problem.ts.setEventHandler(
            [0],
            [False],
            lambda ts, t, u, values: values.__setitem__(0, u.sum() / u.size - 0.8),
            lambda ts, events, t, u, forward: steps.append(t),
        )
        problem.solve()
        return [*problem.adjoint(), *steps]

    found = gradient("localckpt")
    assert len(found) > 10 and found == gradient("basic")


@pytest.mark.parallel(1)
@pytest.mark.parametrize("end", ["", "problem.ts.destroy()"], ids=["left to Python", "destroyed"])
@pytest.mark.parametrize("ranks", [0, 2])
def test_ts_that_lives_until_the_end_does_no_harm(ranks, end, run_script):
    ran = run_script(
        f"""
sys.path.insert(0, {str(Path(__file__).parent)!r})
PETSc.Options().insertString("-ts_trajectory_type localckpt")
from test_trajectory import Decay
problem = Decay()
problem.solve()
assert problem.adjoint().any()
{end}
""",
        ranks=ranks,
    )
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parallel(1)
def test_step_that_was_not_stored_is_an_error_that_names_it(options):
    options(ts_trajectory_type="localckpt")
    problem = Decay(comm=MPI.COMM_SELF)
    problem.solve()
    problem.ts.setStepNumber(1000)
    with pytest.raises(PETSc.Error, match="step 1000 of the trajectory was not stored; steps 0 to "):
        problem.adjoint()


@pytest.mark.parallel(1)
def test_directory_is_gone_while_the_file_is_used(options, tmp_path):
    options(ts_trajectory_type="localckpt", localckpt_dir=str(tmp_path))
    problem = Decay(comm=MPI.COMM_SELF)
    problem.solve()
    assert os.listdir(tmp_path) == []
    assert problem.adjoint().any()


@pytest.mark.parallel(1)
def test_another_patch_release_of_petsc_is_refused(run_script):
    ran = run_script("""
version = PETSc.Sys.getVersion()
PETSc.Sys = type("Sys", (PETSc.Sys,), {"getVersion": staticmethod(lambda: (*version[:2], version[2] + 1))})
import localckpt.trajectory
""")
    assert ran.returncode == 1
    assert "ImportError: localckpt.trajectory was compiled for PETSc" in ran.stderr.splitlines()[-1]


@pytest.mark.parallel(1)
def test_an_option_that_one_rank_refuses_is_refused_on_all(run_script):
    ran = run_script(
        f"""
sys.path.insert(0, {str(Path(__file__).parent)!r})
PETSc.Options().insertString("-ts_trajectory_type localckpt")
if comm.rank == 1:
    PETSc.Options().insertString("-ts_trajectory_dirname mine")
from test_trajectory import Decay
for kind, words in attempt(Decay().solve):
    assert kind == "Error" and "-ts_trajectory_dirname mine is not for" in words, (kind, words)
""",
        ranks=2,
    )
    assert ran.returncode == 0, ran.stderr
