"""A job that ends in the middle of a sweep is followed by one that goes on in that timestep."""

import os
import signal
from argparse import Namespace

import firedrake as fd
import numpy as np
import pytest
from burgers import STEPS
from firedrake import dx
from firedrake.adjoint import (
    Control,
    EnsembleReducedFunctional,
    ReducedFunctional,
    continue_annotation,
    get_working_tape,
    stop_annotating,
)
from jobs import Killed, descent, diffusion, job, line, on_schedule
from mpi4py import MPI
from tsfc.ufl_utils import extract_firedrake_constants

from localckpt.adjoint import resume, runs
from localckpt.commands import status
from localckpt.storage.journal import Journal

WORLD = MPI.COMM_WORLD

pytestmark = pytest.mark.usefixtures("end_of_run")


def at_each_step(directory, solves=None, last=None, **arguments):
    """A job that records its sweeps at each timestep."""
    return job(directory, solves, last, sweeps=True, every=0, **arguments)


def gradient(functional, value=0.5):
    """One evaluation and its gradient, as an array."""
    with stop_annotating():
        functional(line(value))
        return functional.derivative().dat.data_ro.copy()


def optimise(functional):
    return descent(functional, line(), 2)[0]


@pytest.mark.parallel([1, 2])
@pytest.mark.parametrize("schedule", [None, "multistage, memory and disk"])
def test_jobs_that_are_killed_in_sweeps_do_the_work_of_one_that_is_not(schedule, shared_tmp, solves):
    kill_in_sweeps(schedule, shared_tmp, solves)


@pytest.mark.parallel([1])
@pytest.mark.parametrize("schedule", ["all on disk", "revolve", "hrevolve"])
def test_jobs_that_are_killed_on_other_schedules_do_the_work_of_one_that_is_not(schedule, shared_tmp, solves):
    kill_in_sweeps(schedule, shared_tmp, solves)


def kill_in_sweeps(schedule, shared_tmp, solves):
    with at_each_step(shared_tmp / "whole", solves):
        expected = optimise(on_schedule(schedule))
    whole, count, kills = solves.count, 0, 0
    last = STEPS + 1  # in a forward sweep, in one in reverse, as it comes
    found = None
    while found is None and kills < 20:
        with at_each_step(shared_tmp / "killed", solves, last):
            found = optimise(on_schedule(schedule))
        count += solves.count - (found is None)  # the last one was not done
        kills += found is None
    assert kills >= 3
    assert count <= whole + 2 * kills  # a timestep has one solve, and in reverse another one if it computes again
    if WORLD.size == 1:
        assert np.array_equal(found, expected)
    else:
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parallel([1])
@pytest.mark.parametrize("schedule", [None, "all on disk"])
@pytest.mark.parametrize("done", [3, STEPS + 2])
def test_next_job_solves_what_is_left(schedule, done, shared_tmp, solves):
    with job(shared_tmp / "whole"):
        expected = gradient(on_schedule(schedule))
    with at_each_step(shared_tmp, solves, STEPS + done):
        gradient(on_schedule(schedule))
    with at_each_step(shared_tmp, solves) as run:
        found = gradient(on_schedule(schedule))
    assert run.sweeps.read >= min(done, STEPS) - 1
    assert 2 * STEPS - done <= solves.count <= 2 * STEPS - done + 1
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    if WORLD.size == 1:
        assert np.array_equal(found, expected)


@pytest.mark.parallel([1])
def test_what_is_not_committed_is_computed_again(shared_tmp, solves):
    with job(shared_tmp, solves, STEPS + 4, sweeps=True, every=3600):
        gradient(on_schedule(None))
    with at_each_step(shared_tmp, solves) as run:
        gradient(on_schedule(None))
    assert run.sweeps.read == 0 and solves.count == 2 * STEPS


@pytest.mark.parallel([1])
@pytest.mark.parametrize("call", range(1, 10))
def test_job_that_is_killed_in_a_commit_leaves_the_last_one(call, shared_tmp, solves, monkeypatch):
    with job(shared_tmp / "whole"):
        expected = gradient(diffusion(line()))
    calls = 0

    def killed(self, line):
        nonlocal calls
        calls += 1
        if calls == call:
            os.write(self._journal, line[: len(line) // 2])
            raise Killed
        return write(self, line)

    write = Journal._write_line
    with at_each_step(shared_tmp):
        functional = diffusion(line())
        monkeypatch.setattr(Journal, "_write_line", killed)
        gradient(functional)
    monkeypatch.undo()
    assert calls == call
    with at_each_step(shared_tmp):
        assert np.array_equal(gradient(diffusion(line())), expected)


@pytest.mark.parallel([1])
def test_sweep_at_another_control_is_not_used(shared_tmp, solves):
    with job(shared_tmp / "whole"):
        expected = gradient(diffusion(line()), 0.7)
    with at_each_step(shared_tmp, solves, 3 + 3 + 2):  # in reverse
        gradient(diffusion(line()), 0.5)
    with at_each_step(shared_tmp, solves) as run:
        found = gradient(diffusion(line()), 0.7)
    assert run.sweeps.read == 0
    np.testing.assert_allclose(found, expected, rtol=1e-10)


@pytest.mark.parallel([1])
def test_another_derivative_at_the_same_control_is_not_gone_on_with(shared_tmp, solves):
    def doubled(functional):
        with stop_annotating():
            functional(line(0.5))
            return functional.derivative(adj_input=2.0).dat.data_ro.copy()

    with job(shared_tmp / "whole"):
        expected = doubled(diffusion(line()))
    with at_each_step(shared_tmp, solves, 3 + 3 + 2):
        gradient(diffusion(line()))
    with at_each_step(shared_tmp, solves) as run:
        found = doubled(diffusion(line()))
    assert run.sweeps.read == 3 and solves.count == 3  # all in reverse
    np.testing.assert_allclose(found, expected, rtol=1e-10)


@pytest.mark.parallel([1, 2])
def test_solve_of_another_problem_is_refused(shared_tmp, solves):
    """A recording cannot tell: its solves are read, too."""
    with at_each_step(shared_tmp, solves, 3 + 2):
        gradient(diffusion(line()))
    with at_each_step(shared_tmp, solves):
        functional = diffusion(line())
        solver = functional.tape.get_blocks()[4]._ad_solvers["forward_nlvs"]
        with stop_annotating():
            for constant in extract_firedrake_constants(solver._problem.F):
                constant.assign(2 * float(constant))
        with pytest.raises(runs.ResumeError, match="solve of block .* of the tape is not that of the first job"):
            gradient(functional)


@pytest.mark.parallel([1, 2])
def test_damaged_records_of_a_sweep_are_computed_again(shared_tmp, solves, warnings_on_rank_0):
    with job(shared_tmp / "whole"):
        expected = gradient(diffusion(line()))
    with at_each_step(shared_tmp, solves, 3 + 3 + 2):
        gradient(diffusion(line()))
    if WORLD.rank == 0:
        for path in shared_tmp.glob("sweep/**/arrays-*"):
            data = bytearray(path.read_bytes())
            data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
            path.write_bytes(data)
    WORLD.Barrier()
    with at_each_step(shared_tmp, solves), warnings_on_rank_0("timesteps of a derivative are computed again"):
        with warnings_on_rank_0("is done again"):
            found = gradient(diffusion(line()))
    assert solves.count > 3
    np.testing.assert_allclose(found, expected, rtol=1e-10)


@pytest.mark.parallel([1, 2])
@pytest.mark.parametrize("schedule, at", [(None, 2 * STEPS + 2), ("all on disk", STEPS + 3)])
def test_signal_in_a_sweep_ends_all_ranks_where_the_next_job_goes_on(schedule, at, shared_tmp, solves, monkeypatch):
    with job(shared_tmp / "whole"):
        expected = gradient(on_schedule(schedule))
    with job(shared_tmp, solves, sweeps=True):
        functional = on_schedule(schedule)
        solve = solves.solve

        def signalled(*args, **kwargs):
            if solves.count == at and WORLD.rank == WORLD.size - 1:
                os.kill(os.getpid(), signal.SIGUSR1)
            return solve(*args, **kwargs)

        monkeypatch.setattr(solves, "solve", signalled)
        with pytest.raises(SystemExit) as left:
            gradient(functional)
        monkeypatch.setattr(solves, "solve", solve)
    assert left.value.code == 75
    done = solves.count
    with job(shared_tmp, solves, sweeps=True):
        found = gradient(on_schedule(schedule))
    assert done + solves.count == 3 * STEPS
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parallel([1])
def test_evaluation_that_would_not_end_in_time_is_begun(shared_tmp, monkeypatch):
    with at_each_step(shared_tmp) as run:
        functional = diffusion(line())
        run.functional(functional).longest["value"] = 1000.0
        monkeypatch.setattr(run.clock, "left", lambda: 100.0)
        gradient(functional)
    assert functional.tape.recompute_count == 1


@pytest.mark.parallel([1])
def test_evaluations_that_take_less_than_the_interval_are_not_recorded_in_parts(shared_tmp):
    with job(shared_tmp, sweeps=True, every=3600) as run:
        functional = diffusion(line())
        gradient(functional)
        written = run.sweeps.written
        gradient(functional, 0.6)
    assert written == run.sweeps.written == 3


@pytest.mark.parallel([1])
def test_files_do_not_grow_with_the_evaluations(shared_tmp):
    sizes = []
    for evaluations in (1, 4):
        with at_each_step(shared_tmp / str(evaluations)):
            initial = line()
            descent(diffusion(initial), initial, evaluations)
        files = (shared_tmp / str(evaluations) / "sweep").glob("**/arrays-*")
        sizes.append({path.name: path.stat().st_size for path in files})
    assert sizes[0] == sizes[1]


@pytest.mark.parallel([1, 2])
def test_sweeps_that_cannot_be_recorded_do_not_end_the_run_or_its_recording(shared_tmp, warnings_on_rank_0):
    with at_each_step(shared_tmp) as run:
        functional = diffusion(line())
        WORLD.Barrier()
        if WORLD.rank == 0:
            (shared_tmp / "sweep" / "journal").unlink()
        WORLD.Barrier()
        with warnings_on_rank_0("sweeps are not recorded from here on"):
            expected = gradient(functional)
    assert run.sweeps.read == 0
    with at_each_step(shared_tmp) as run:
        assert np.array_equal(gradient(diffusion(line())), expected)
    assert run._replayed == {"value": 1, "derivative": 1}


@pytest.mark.parallel([1])
def test_hessian_is_right_after_a_gradient_that_went_on(shared_tmp, solves):
    def hessian():
        functional = diffusion(line())
        gradient(functional)
        return functional.hessian(line(0.3)).dat.data_ro.copy()

    with job(shared_tmp / "whole"):
        expected = hessian()
    with at_each_step(shared_tmp, solves, 3 + 3 + 2):
        hessian()
    with at_each_step(shared_tmp, solves):
        found = hessian()
    np.testing.assert_allclose(found, expected, rtol=1e-10)


@pytest.mark.parallel([1])
def test_hessian_of_a_finished_evaluation_leaves_the_sweep_in_progress(shared_tmp, solves):
    for last in (3 + 3 + 3 + 3 + 3 + 3 + 1, None):
        with at_each_step(shared_tmp, solves, last) as run:
            functional = diffusion(line())
            gradient(functional)
            functional.hessian(line(0.3))
            gradient(functional, 0.6)
    assert run.sweeps.read > 0


def steady(u, residual, control, bcs=()):
    """Solve an equation three times: the functional of `control`."""
    before = [c for c in residual.coefficients() if c.name() == "before"][0]
    solver = fd.NonlinearVariationalSolver(fd.NonlinearVariationalProblem(residual, u, bcs=bcs))
    for _ in get_working_tape().timestepper(iter(range(3))):
        solver.solve()
        before.assign(u)
    return ReducedFunctional(fd.assemble(u * u * dx), Control(control))


def of_boundary_values():
    control = line()
    V = control.function_space()
    u, before, v = fd.Function(V), fd.Function(V, name="before"), fd.TestFunction(V)
    residual = (10 * (u - before) * v + u.dx(0) * v.dx(0)) * dx
    return steady(u, residual, control, fd.DirichletBC(V, control, 2)), line(0.5)


def of_the_mesh():
    mesh = fd.UnitIntervalMesh(6)
    displacement = fd.Function(mesh.coordinates.function_space())
    mesh.coordinates.assign(mesh.coordinates + displacement)
    V = fd.FunctionSpace(mesh, "CG", 1)
    u, before, v = fd.Function(V), fd.Function(V, name="before"), fd.TestFunction(V)
    residual = (10 * (u - before) * v + u.dx(0) * v.dx(0) - v) * dx
    return steady(u, residual, displacement), displacement.copy(deepcopy=True).assign(0.01)


@pytest.mark.parallel([1, 2])
def test_derivative_with_respect_to_boundary_values_goes_on(shared_tmp, solves):
    found, left = killed_derivatives(of_boundary_values, shared_tmp, solves)
    assert left == 1
    np.testing.assert_allclose(found[1], found[0], rtol=1e-9)


@pytest.mark.parallel([1])
def test_derivative_with_respect_to_a_mesh_is_computed_again(shared_tmp, solves):
    found, left = killed_derivatives(of_the_mesh, shared_tmp, solves)
    assert left == 3
    np.testing.assert_allclose(found[1], found[0], rtol=1e-9)


def killed_derivatives(made, shared_tmp, solves):
    """A derivative of a run that is not killed and of one that is, and the solves of its last job."""

    def derivative():
        functional, at = made()
        with stop_annotating():
            functional(at)
            return functional.derivative().dat.data_ro.copy()

    with job(shared_tmp / "whole"):
        expected = derivative()
    with at_each_step(shared_tmp, solves, 3 + 3 + 2):
        derivative()
    with at_each_step(shared_tmp, solves):
        found = derivative()
    return (expected, found), solves.count


@pytest.mark.parallel([1])
def test_derivative_whose_timesteps_cannot_be_recorded_is_said(shared_tmp, warnings_on_rank_0):
    with at_each_step(shared_tmp), warnings_on_rank_0("not recorded: the adjoint value of a MeshGeometry cannot be"):
        functional, at = of_the_mesh()
        with stop_annotating():
            functional(at)
            functional.derivative()


@pytest.mark.parallel([1])
def test_two_jobs_that_recorded_parts_of_a_sweep_have_recorded_something(shared_tmp, solves):
    with job(shared_tmp, solves):
        functional = diffusion(line())
        with pytest.raises(Killed):
            solves.last = 3
            functional(line(0.5))
    for last in (1, 1):
        with at_each_step(shared_tmp, solves, last, walltime=3600):
            gradient(diffusion(line()))
    with at_each_step(shared_tmp, walltime=3600):
        continue_annotation()


@pytest.mark.parallel([1, 2])
def test_directory_without_room_for_sweeps_ends_their_recording_only(shared_tmp, warnings_on_rank_0):
    if WORLD.rank == 0:
        (shared_tmp / "sweep").touch()
    WORLD.Barrier()
    with warnings_on_rank_0("sweeps are not recorded, and the run goes on"), at_each_step(shared_tmp) as run:
        gradient(diffusion(line()))
    assert run.sweeps is None and run._added == {"value": 1, "derivative": 1}


@pytest.mark.parallel([2])
def test_members_of_an_ensemble_are_not_recorded_in_parts(shared_tmp, warnings_on_rank_0):
    with warnings_on_rank_0("on a part of the ranks are not recorded"), at_each_step(shared_tmp) as run:
        ensemble = fd.Ensemble(WORLD, 1)
        c = fd.Function(fd.FunctionSpace(fd.UnitIntervalMesh(4, comm=ensemble.comm), "CG", 1)).assign(1.0)
        functional = EnsembleReducedFunctional(fd.assemble(c**4 * dx), Control(c), ensemble)
        functional(c.copy(deepcopy=True).assign(0.5))
        functional.derivative()
    assert run.sweeps.written == 0


@pytest.mark.parallel([1])
def test_solves_of_solve_and_project_are_read(shared_tmp, solves):
    def record():
        c = line()
        V = c.function_space()
        u, v = fd.Function(V), fd.TestFunction(V)
        fd.solve((u + u**3 - c) * v * dx == 0, u)
        p = fd.project(u * u, V)
        return ReducedFunctional(fd.assemble(p * p * dx), Control(c))

    with job(shared_tmp / "whole"):
        expected = gradient(record())
    with at_each_step(shared_tmp):
        record()(line(0.5))
    with at_each_step(shared_tmp) as run:
        found = gradient(record())
    assert run.sweeps.read == 1  # the last one was not committed
    assert np.array_equal(found, expected)


@pytest.mark.parallel([1])
def test_status_shows_where_a_sweep_stands(shared_tmp, solves, capsys):
    with at_each_step(shared_tmp, solves, 3 + 3 + 2):
        gradient(diffusion(line()))
    assert status.main(Namespace(directory=str(shared_tmp))) == 0
    shown = capsys.readouterr().out
    assert "in progress: evaluation 1 of functional 1" in shown
    assert "3 solves of its forward sweep are recorded" in shown and " blocks of the tape are done in reverse" in shown
    with at_each_step(shared_tmp, solves):
        gradient(diffusion(line()))
    assert status.main(Namespace(directory=str(shared_tmp))) == 0
    assert "in progress" not in capsys.readouterr().out


@pytest.mark.parallel([1])
def test_negative_interval_is_refused(shared_tmp):
    with pytest.raises(ValueError, match="every is a number of seconds, not -1"):
        resume(shared_tmp, sweeps=True, every=-1)
