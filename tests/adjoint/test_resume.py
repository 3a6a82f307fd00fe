"""A run that is interrupted anywhere ends, over several jobs, where an uninterrupted one ends."""

import os
import resource
import signal

import firedrake as fd
import numpy as np
import pytest
from burgers import STEPS
from firedrake import dx
from firedrake.adjoint import (
    Control,
    EnsembleReducedFunctional,
    MinimizationProblem,
    ReducedFunctional,
    TAOSolver,
    continue_annotation,
    minimize,
    set_working_tape,
    stop_annotating,
)
from jobs import Killed, Solves, by_hand, descent, diffusion, end_of, job, line, on_schedule, recorded
from mpi4py import MPI
from pyadjoint import AdjFloat

from localckpt.adjoint import (
    checkpointable_mesh,
    enable_disk_checkpointing,
    replaying,
    resume,
    runs,
    stored_states,
)

WORLD = MPI.COMM_WORLD

pytestmark = pytest.mark.usefixtures("end_of_run")


def scipy(functional):
    return minimize(functional, method="L-BFGS-B", tol=1e-2)


def tao(functional, kind="lmvm", bounds=None):
    problem = MinimizationProblem(functional, bounds=bounds)
    return TAOSolver(problem, {"tao_type": kind, "tao_max_it": 50, "tao_gatol": 5e-2}).solve()


def tao_with_bounds(functional):
    return tao(functional, "blmvm", [(line(0.1), line(3.0))])


CASES = [
    (scipy, None),
    (scipy, "multistage, memory and disk"),
    (tao, "all on disk"),
    (tao_with_bounds, "revolve"),
]


@pytest.mark.parametrize("optimiser, schedule", CASES)
def test_interrupted_run_ends_with_the_same_bits_as_an_uninterrupted_one(optimiser, schedule, shared_tmp, solves):
    expected, found = whole_and_interrupted(optimiser, schedule, shared_tmp, solves)
    assert np.array_equal(found, expected)


@pytest.mark.parallel(2)
@pytest.mark.parametrize("optimiser, schedule", [(scipy, None), (tao, "multistage, memory and disk")])
def test_interrupted_run_ends_where_an_uninterrupted_one_ends(optimiser, schedule, shared_tmp, solves):
    expected, found = whole_and_interrupted(optimiser, schedule, shared_tmp, solves)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def whole_and_interrupted(optimiser, schedule, shared_tmp, solves):
    """What a run ends with, and what another ends with that is killed twice, and solves less in its last job."""
    with job(shared_tmp / "whole", solves):
        expected = end_of(optimiser, on_schedule(schedule))
    whole = solves.count
    found = None
    for last in (whole // 2, whole // 2, None):
        with job(shared_tmp / "killed", solves, last):
            found = end_of(optimiser, on_schedule(schedule))
    assert solves.count < whole
    return expected, found


@pytest.mark.parallel([1, 3])
def test_recorded_evaluations_take_no_solve(shared_tmp, solves):
    with job(shared_tmp, solves):
        expected = end_of(by_hand, recorded())
    with job(shared_tmp, solves):
        assert np.array_equal(end_of(by_hand, recorded()), expected)
    assert solves.count == STEPS  # of the recording


@pytest.mark.parallel([1, 2])
def test_recording_at_the_unfinished_control_is_its_forward_sweep(shared_tmp, solves):
    with job(shared_tmp / "whole"):
        initial = line()
        expected, _ = descent(diffusion(initial), initial)
    with job(shared_tmp / "killed", solves, 13) as run:  # in the gradient of the second evaluation
        initial = line()
        assert not run.start(initial)
        descent(diffusion(initial), initial)
    with job(shared_tmp / "killed", solves) as run:
        initial = line()
        before = initial.dat.data_ro.copy()
        assert run.start(initial)
        assert not np.array_equal(initial.dat.data_ro, before)
        functional = diffusion(initial)
        assert np.array_equal(initial.dat.data_ro, before)
        found, _ = descent(functional, initial)
    assert functional.tape.recompute_count == 1  # for the third evaluation
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parallel([1, 2])
def test_recorded_solves_are_read_by_the_next_recording(shared_tmp, solves):
    found = []
    for last in (2, None, None):
        with job(shared_tmp, solves, last, recording=True) as run:
            initial = line()
            found.append(descent(diffusion(initial), initial))
    assert run.recordings.read == 3 and run.recordings.written == 0
    assert np.array_equal(found[0][0], found[1][0]) and found[0][1] == found[1][1]


@pytest.mark.parallel([1, 2])
def test_recorded_solves_of_another_problem_are_refused(shared_tmp):
    with job(shared_tmp, recording=True):
        diffusion(line())
    with job(shared_tmp, recording=True):
        with pytest.raises(runs.ResumeError, match="solve 1 of the recording is not that of the first job"):
            diffusion(line(), k=0.2)


@pytest.mark.parallel([1, 2])
def test_derivative_before_an_evaluation_is_refused_after_a_start_elsewhere(shared_tmp, solves):
    with job(shared_tmp, solves, 3 + 1) as run:
        initial = line()
        run.start(initial)
        functional = diffusion(initial)
        functional.derivative()
        functional(line(0.5))
    with job(shared_tmp) as run:
        initial = line()
        run.start(initial)
        with pytest.raises(runs.ResumeError, match="must not call start"):
            diffusion(initial).derivative()


@pytest.mark.parallel([1, 2])
def test_derivative_before_any_evaluation_is_recorded(shared_tmp):
    found = []
    for _ in range(2):
        with job(shared_tmp) as run:
            found.append(diffusion(line()).derivative().dat.data_ro.copy())
    assert np.array_equal(*found)
    assert run._replayed["derivative"] == 1


def hessian(functional):
    with stop_annotating():
        functional(line(0.7))
        functional.derivative()
        return functional.hessian(line(0.3)).dat.data_ro.copy()


@pytest.mark.parallel([1, 2])
def test_hessian_is_right_after_a_recorded_gradient(shared_tmp):
    found = []
    for _ in range(2):
        with job(shared_tmp) as run:
            found.append(hessian(diffusion(line())))
    np.testing.assert_allclose(found[1], found[0], rtol=1e-10)
    assert run._replayed == {"value": 1, "derivative": 1}


@pytest.mark.parallel([1, 2])
def test_gradient_after_a_recorded_value_is_right(shared_tmp, solves):
    """The second job has the value without its states, and makes up for them."""
    with job(shared_tmp / "whole"):
        functional = diffusion(line())
        functional(line(0.5))
        expected = functional.derivative().dat.data_ro.copy()
    with job(shared_tmp / "killed"):
        diffusion(line())(line(0.5))
    with job(shared_tmp / "killed"):
        functional = diffusion(line())
        functional(line(0.5))
        found = functional.derivative().dat.data_ro.copy()
    assert np.array_equal(found, expected)


@pytest.mark.parallel([1, 2])
def test_gradient_after_going_back_to_an_earlier_evaluation_is_right(shared_tmp):
    """As ROL does it. Without resume() pyadjoint gives the gradient of the later control."""
    with job(shared_tmp):
        functional = diffusion(line())
        functional(line(0.5))
        expected = functional.derivative().dat.data_ro.copy()
    with job(shared_tmp / "another"):
        functional = diffusion(line())
        functional(line(0.5))
        saved = functional.tape.checkpoint_block_vars(functional.controls)
        functional(line(2.0))
        functional.tape.restore_block_vars(saved)
        found = functional.derivative().dat.data_ro.copy()
    np.testing.assert_allclose(found, expected, rtol=1e-10)


@pytest.mark.parallel([1, 2])
def test_gradient_after_an_evaluation_that_failed_is_that_of_the_one_before(shared_tmp, solves):
    with job(shared_tmp / "whole"):
        functional = diffusion(line())
        functional(line(0.5))
        expected = functional.derivative().dat.data_ro.copy()
    with job(shared_tmp / "failed", solves):
        functional = diffusion(line())
        functional(line(0.5))
        solves.last = solves.count + 1
        with pytest.raises(Killed):
            functional(line(2.0))
        solves.last = None
        found = functional.derivative().dat.data_ro.copy()
    np.testing.assert_allclose(found, expected, rtol=1e-10)


@pytest.mark.parallel([1, 2])
def test_functionals_and_numbers_as_controls_are_told_apart(shared_tmp):
    found = []
    for _ in range(2):
        with job(shared_tmp) as run, stop_annotating():
            continue_annotation()
            c, factor = line(), AdjFloat(2.0)
            u = fd.Function(c.function_space()).assign(c)
            one = ReducedFunctional(factor * fd.assemble(u * u * dx), [Control(c), Control(factor)])
            other = ReducedFunctional(fd.assemble(u**4 * dx), Control(c))
            found.append([])
            for functional, at in ((one, [line(0.5), AdjFloat(3.0)]), (other, line(0.5)), (one, [line(0.5), 1.0])):
                found[-1].append(functional(at))
                for part in np.ravel(functional.derivative()):
                    found[-1].append(part if isinstance(part, float) else part.dat.data_ro.tolist())
    assert found[0] == found[1]
    assert run._replayed == {"value": 3, "derivative": 3}


@pytest.mark.parallel([1, 2])
def test_functional_that_is_no_number_is_given_back(shared_tmp):
    found = []
    for _ in range(2):
        with job(shared_tmp) as run:
            c = line()
            v = fd.TestFunction(c.function_space())
            functional = ReducedFunctional(fd.assemble(c * c * v * dx), Control(c))
            seed = line(0.3)
            value = functional(line(0.5)).dat.data_ro.copy()
            found.append(np.concatenate([value, functional.derivative(adj_input=seed).dat.data_ro]))
    assert np.array_equal(*found)
    assert run._replayed == {"value": 1, "derivative": 1}


def test_functional_of_a_constant_is_computed_and_not_recorded(shared_tmp):
    found = []
    for _ in range(2):
        with job(shared_tmp) as run:
            k, c = fd.Constant(2.0), line()
            functional = ReducedFunctional(fd.assemble(k * c * c * dx), [Control(c), Control(k)])
            found.append(functional([line(0.5), fd.Constant(3.0)]))
    assert found[0] == found[1]
    assert run._replayed["value"] == 0


@pytest.mark.parallel([1, 2])
def test_control_that_differs_by_rounding_is_the_recorded_one(shared_tmp):
    with job(shared_tmp):
        expected = diffusion(line())(line(0.5))
    with job(shared_tmp) as run:
        assert diffusion(line())(line(0.5 + 1e-12)) == expected
    assert run._replayed["value"] == 1


@pytest.mark.parallel([1, 2])
def test_control_that_is_another_one_is_computed_with_a_warning(shared_tmp, warnings_on_rank_0):
    with job(shared_tmp):
        diffusion(line())(line(0.5))
    with job(shared_tmp) as run:
        with warnings_on_rank_0("evaluation 1 of functional 1 is not at the recorded control"):
            found = diffusion(line())(line(0.6))
    assert run._replayed["value"] == 0
    with set_working_tape():
        continue_annotation()
        assert found == pytest.approx(diffusion(line())(line(0.6)), rel=1e-12)


@pytest.mark.parallel([1, 2])
def test_control_that_is_another_one_ends_a_strict_run(shared_tmp):
    with job(shared_tmp):
        diffusion(line())(line(0.5))
    with job(shared_tmp, strict=True):
        with pytest.raises(runs.ResumeError, match="is not at the recorded control"):
            diffusion(line())(line(0.6))


@pytest.mark.parallel([1, 2])
@pytest.mark.parametrize(
    "change, message",
    [
        ({"k": 0.2}, "timestep 1 is not that of the first job"),
        ({"steps": 4}, "the recording of functional 1 is not that of the first job"),
        ({"weight": 2.0}, "is not that of the first job"),
    ],
)
def test_another_problem_is_refused(change, message, shared_tmp):
    with job(shared_tmp):
        diffusion(line())(line(0.5))
    with job(shared_tmp):
        with pytest.raises(runs.ResumeError, match=message):
            diffusion(line(), **change)(line(0.5))


@pytest.mark.parallel([1, 2])
def test_another_precision_of_checkpoints_is_refused(shared_tmp):
    for precision in (None, "single"):
        with job(shared_tmp):
            enable_disk_checkpointing(precision=precision)
            functional = diffusion(line())
            if precision is None:
                functional(line(0.5))
            else:
                with pytest.raises(runs.ResumeError, match="precision 1 of 1 is single, and was exact"):
                    functional(line(0.5))


@pytest.mark.parallel([1, 2])
def test_another_mesh_is_refused(shared_tmp):
    with job(shared_tmp):
        diffusion(line())(line(0.5))
    with job(shared_tmp):
        with pytest.raises(runs.ResumeError):
            diffusion(line(cells=13))(line(0.5, cells=13))


@pytest.mark.parametrize("name", ["number of ranks", "scalar type", "Firedrake", "PETSc", "pyadjoint"])
def test_another_environment_is_refused(name, shared_tmp, monkeypatch):
    with job(shared_tmp):
        pass
    identity = runs.identity_of(WORLD)
    monkeypatch.setattr(runs, "identity_of", lambda comm: {**identity, name: "another"})
    with pytest.raises(runs.ResumeError, match=f"the first job had {name} .*, and this one has another"):
        resume(shared_tmp)


@pytest.mark.parallel([1, 2])
def test_directory_that_everyone_can_write_to_is_refused(shared_tmp):
    if WORLD.rank == 0:
        (shared_tmp / "run").mkdir()
        (shared_tmp / "run").chmod(0o777)
    WORLD.Barrier()
    with pytest.raises(runs.ResumeError, match="writeable by everyone"):
        resume(shared_tmp / "run")


@pytest.mark.parallel([1, 2])
def test_damaged_records_are_computed_again(shared_tmp, solves, warnings_on_rank_0):
    with job(shared_tmp, solves):
        initial = line()
        expected = descent(diffusion(initial), initial)
    if WORLD.rank == 0:
        for path in shared_tmp.glob("arrays-*"):
            data = bytearray(path.read_bytes())
            data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
            path.write_bytes(data)
    WORLD.Barrier()
    with job(shared_tmp, solves):
        with warnings_on_rank_0("is computed again"):
            initial = line()
            found = descent(diffusion(initial), initial)
    assert np.array_equal(found[0], expected[0]) and found[1] == expected[1]
    assert solves.count > 3


@pytest.mark.parallel([1, 2])
def test_full_directory_ends_the_recording_and_not_the_run(shared_tmp, warnings_on_rank_0):
    with job(shared_tmp / "whole"):
        initial = line()
        expected = descent(diffusion(initial), initial)
    with job(shared_tmp / "full"):
        initial = line()
        functional = diffusion(initial)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 13, limits[1]))
        try:
            with warnings_on_rank_0("nothing is recorded from here on"):
                found = descent(functional, initial)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, ignored)
    assert np.array_equal(found[0], expected[0]) and found[1] == expected[1]


@pytest.mark.parallel([1, 2])
@pytest.mark.parametrize("schedule", ["all on disk"] if WORLD.size > 1 else [None, "all on disk"])
def test_signal_ends_all_ranks_at_a_timestep_with_run_again(schedule, shared_tmp, solves, monkeypatch):
    with job(shared_tmp / "whole"):
        expected = end_of(by_hand, recorded(schedule))
    with job(shared_tmp / "ended", solves):
        functional = recorded(schedule)

        def signalled(solver, *args, **kwargs):
            if solves.count == 3 * STEPS and WORLD.rank == WORLD.size - 1:
                os.kill(os.getpid(), signal.SIGUSR1)
            return Solves.solve(solves, solver, *args, **kwargs)

        monkeypatch.setattr(fd.NonlinearVariationalSolver, "solve", lambda *args, **kwargs: signalled(*args, **kwargs))
        with pytest.raises(SystemExit) as left:
            end_of(by_hand, functional)
    assert left.value.code == 75
    with job(shared_tmp / "ended"):
        found = end_of(by_hand, recorded(schedule))
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parallel([1, 2])
def test_evaluation_that_would_not_end_in_time_is_not_begun(shared_tmp, monkeypatch):
    with job(shared_tmp) as run:
        functional = diffusion(line())
        functional(line(0.5))
        monkeypatch.setattr(run.clock, "left", lambda: 0.0)
        count = functional.tape.recompute_count
        with pytest.raises(SystemExit) as left:
            functional(line(0.6))
    assert left.value.code == 75
    assert functional.tape.recompute_count == count


@pytest.mark.parallel([1, 2])
def test_third_job_is_refused_if_two_have_recorded_nothing(shared_tmp):
    for _ in range(2):
        with job(shared_tmp, walltime=3600):
            pass
    with pytest.raises(runs.ResumeError, match="the last two jobs recorded nothing new"):
        resume(shared_tmp, walltime=3600)
    with job(shared_tmp, walltime=7200):
        pass


@pytest.mark.parallel([1, 2])
def test_callbacks_run_in_a_replay_and_can_tell(shared_tmp):
    seen = []
    for _ in range(2):
        calls = []

        def note(name, calls=calls, result=None):
            return lambda *args: calls.append((name, replaying())) or (args[1] if name == "derivative" else None)

        with job(shared_tmp):
            functional = diffusion(
                line(), eval_cb_pre=note("before"), eval_cb_post=note("after"), derivative_cb_post=note("derivative")
            )
            functional(line(0.5))
            functional.derivative()
        seen.append(calls)
    assert seen[0] == [("before", False), ("after", False), ("derivative", False)]
    assert seen[1] == [("before", True), ("after", True), ("derivative", True)]
    assert not replaying()


@pytest.mark.parallel([1, 2])
def test_states_of_a_recorded_evaluation_are_not_there(shared_tmp):
    for last in (False, True):
        with job(shared_tmp):
            initial = line()
            functional = diffusion(initial)
            states = stored_states(initial)
            functional(line(0.5))
            if last:
                with pytest.raises(KeyError, match="recorded by an earlier job"):
                    states[0]
            else:
                assert np.array_equal(states[0].dat.data_ro, line(0.5).dat.data_ro)


@pytest.mark.parallel([2, 3])
def test_checkpointable_mesh_keeps_its_partition(shared_tmp):
    found = []
    for _ in range(3):
        with job(shared_tmp):
            enable_disk_checkpointing()
            mesh = checkpointable_mesh(fd.UnitSquareMesh(5, 5))
            found.append(mesh.coordinates.dat.data_ro_with_halos.copy())
    assert all(np.array_equal(found[0], other) for other in found[1:])


@pytest.mark.parallel([1, 2])
def test_another_mesh_than_the_kept_one_is_refused(shared_tmp):
    for cells in (5, 6):
        with job(shared_tmp):
            enable_disk_checkpointing()
            if cells == 5:
                checkpointable_mesh(fd.UnitSquareMesh(cells, cells))
            else:
                with pytest.raises(runs.ResumeError, match="mesh 1 has 72 cells .* and had 50"):
                    checkpointable_mesh(fd.UnitSquareMesh(cells, cells))


@pytest.mark.parallel([2])
def test_members_of_an_ensemble_have_records_of_their_own(shared_tmp):
    found = []
    for _ in range(2):
        with job(shared_tmp) as run:
            ensemble = fd.Ensemble(WORLD, 1)
            V = fd.FunctionSpace(fd.UnitIntervalMesh(8, comm=ensemble.comm), "CG", 1)
            c = fd.Function(V).assign(1.0)
            J = (1 + WORLD.rank) * fd.assemble(c**4 * dx)
            functional = EnsembleReducedFunctional(J, Control(c), ensemble)
            value = functional(fd.Function(V).assign(0.5))
            found.append([value, *functional.derivative().dat.data_ro])
    assert found[0] == found[1]
    assert run._replayed == {"value": 1, "derivative": 1}
