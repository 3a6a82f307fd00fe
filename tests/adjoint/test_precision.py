"""precision="single": what a block has computed is rounded, everything else is exact, and gradients stay right."""

import firedrake as fd
import numpy as np
import pytest
from burgers import (
    ON_DISK,
    SCALES,
    STEPS,
    bare_tape,
    control,
    convergence,
    kind,
    record,
    record_on_disk,
    reference,
    replay,
    square,
    sweep,
)
from checkpoint_schedules import SingleDiskStorageSchedule
from firedrake import dx
from firedrake.adjoint import (
    Control,
    ReducedFunctional,
    continue_disk_checkpointing,
    get_working_tape,
    set_working_tape,
    stop_annotating,
)
from firedrake.adjoint_utils.checkpointing import CheckpointFunction
from mpi4py import MPI
from petsc4py import PETSc
from test_ensemble_functions import value_and_gradient

from localckpt.adjoint import LocalCheckpoint, enable_disk_checkpointing, summary
from localckpt.adjoint.checkpoints import EnsembleCheckpoint, MeshCheckpoint

WORLD = MPI.COMM_WORLD
EPSILON = 2.0**-24


@pytest.fixture
def option(request):
    """-localckpt_precision with the value that the test is given."""
    options = PETSc.Options("localckpt_")
    options["precision"] = request.param
    yield
    options.delValue("precision")


def rounded(checkpoint):
    """For each array of a checkpoint on disk, whether it was rounded."""
    if isinstance(checkpoint, CheckpointFunction):
        saved = checkpoint.local.saved
    else:
        saved = checkpoint._saved if isinstance(checkpoint, EnsembleCheckpoint) else checkpoint._values
    return [stored.rounded for stored in saved.stored]


def stored(tape):
    """Of the checkpoints on disk that a tape holds: the variable of each, and whether its arrays were rounded."""
    on_disk = CheckpointFunction, MeshCheckpoint, EnsembleCheckpoint
    return [
        (variable, rounded(checkpoint))
        for step in tape.timesteps
        for variable, checkpoint in step._checkpoint.items()
        if isinstance(checkpoint, on_disk)
    ]


def errors(found, expected):
    """Of values and gradients, relative to what they should be."""
    values, gradients = zip(
        *((abs(a[0] / b[0] - 1), norm(a[1:] - b[1:]) / norm(b[1:])) for a, b in zip(found, expected))
    )
    return max(values), max(gradients)


def norm(array):
    return np.sqrt(WORLD.allreduce(np.sum(array**2)))


@pytest.mark.parametrize("schedule", ["all on disk", "multistage, memory and disk", "mixed, disk"])
def test_value_is_exact_and_the_gradient_nearly_so(schedule, shared_tmp):
    enable_disk_checkpointing(checkpoint_dir=str(shared_tmp), precision="single")
    of_value, of_gradient = errors(replay(record(ON_DISK[schedule](STEPS))), reference())
    assert of_value < 1e-12 and 0 < of_gradient < 10 * EPSILON
    assert summary().rounded > 0


@pytest.mark.parametrize("schedule", ["all on disk", "hrevolve", "two levels, disk"])
def test_gradient_converges(schedule, shared_tmp):
    enable_disk_checkpointing(checkpoint_dir=str(shared_tmp), precision="single")
    assert convergence(record(ON_DISK[schedule](STEPS))) > 1.9


@pytest.mark.parallel(2)
@pytest.mark.parametrize("comm", [MPI.COMM_SELF, WORLD], ids=["a file per rank", "one file"])
@pytest.mark.parametrize("engine", ["direct", "viewer"])
def test_gradient_on_several_ranks_is_nearly_exact(engine, comm, shared_tmp):
    functional = record_on_disk(checkpoint_comm=comm, checkpoint_dir=str(shared_tmp), engine=engine, precision="single")
    of_value, of_gradient = errors([sweep(functional, SCALES[0])], reference()[:1])
    assert of_value < 1e-12 and 0 < of_gradient < 10 * EPSILON


@pytest.mark.parametrize("option", ["single"], indirect=True)
def test_the_option_does_what_the_argument_does(option, shared_tmp, tape):
    sweep(record_on_disk(checkpoint_dir=str(shared_tmp)), 1.0)
    assert tape._package_data["firedrake"].precision == "single" and summary().rounded > 0


def test_nothing_is_rounded_unless_asked_for(shared_tmp):
    sweep(record_on_disk(checkpoint_dir=str(shared_tmp)), 1.0)
    assert summary().rounded == 0 < summary().written


def test_a_tape_without_precision_is_exact_beside_one_with_it(shared_tmp, tape):
    record_on_disk(checkpoint_dir=str(shared_tmp), precision="single")
    with set_working_tape():
        sweep(record_on_disk(checkpoint_dir=str(shared_tmp)), 1.0)
        assert summary().rounded == 0 < summary().written
    assert summary(tape).rounded > 0


@pytest.mark.parallel([1, 2])
@pytest.mark.parametrize("precision", ["double", 3])
def test_another_precision_is_refused_on_every_rank(precision, tape, raises_everywhere):
    with raises_everywhere(ValueError, match=f"precision is 'single', not {precision!r}"):
        enable_disk_checkpointing(precision=precision)
    assert not tape._package_data


@pytest.mark.parallel([1, 2])
@pytest.mark.parametrize("option", ["half"], indirect=True)
def test_another_value_of_the_option_is_refused_on_every_rank(option, raises_everywhere):
    with raises_everywhere(ValueError, match="-localckpt_precision is 'single', not 'half'"):
        enable_disk_checkpointing()


@pytest.mark.parallel(2)
def test_ranks_that_differ_are_refused_even_with_files_of_their_own(raises_everywhere):
    with raises_everywhere(ValueError, match="precision (or -localckpt_precision) is not the same on all ranks"):
        enable_disk_checkpointing(precision="single" if WORLD.rank else None)


@pytest.mark.parallel([1, 2])
def test_what_came_from_outside_is_exact_and_what_a_block_computed_is_rounded(shared_tmp, tape):
    sweep(record_on_disk(checkpoint_dir=str(shared_tmp), precision="single"), 1.3)
    found = [(variable.creation_timestep >= 0, arrays) for variable, arrays in stored(tape)]
    assert {(computed, *arrays) for computed, arrays in found} == {(False, False), (False, False, False), (True, True)}


def decay(u, coefficient=1.0):
    """A step that makes another u of u; afterwards its energy."""
    V = u.function_space()
    after, v = fd.Function(V, name="after"), fd.TestFunction(V)
    problem = fd.NonlinearVariationalProblem((after - u + 0.1 * coefficient * after**3) * v * dx, after)
    solver = fd.NonlinearVariationalSolver(problem, solver_parameters={"snes_rtol": 1e-13, "pc_type": "lu"})

    def step():
        solver.solve()
        u.assign(after)
        return fd.assemble(u * u * dx)

    return step


def run(step, steps=3):
    """The functional after so many steps, all of them stored."""
    tape = get_working_tape()
    J = 0.0
    for _ in tape.timestepper(iter(range(steps))):
        J += step()
    return J


def enable(directory):
    enable_disk_checkpointing(checkpoint_dir=str(directory), precision="single")
    get_working_tape().enable_checkpointing(SingleDiskStorageSchedule())


def space(*element):
    return fd.FunctionSpace(square(), *(element or ("CG", 1)))


def test_a_control_that_a_block_has_computed_is_exact_in_an_evaluation(shared_tmp, tape):
    enable(shared_tmp)
    x, y = fd.SpatialCoordinate(square())
    m, u = fd.Function(space()).interpolate(1 + x / 3), fd.Function(space())
    u.assign(m)
    J = run(decay(u, m))
    functional = ReducedFunctional(J, Control(m))
    with stop_annotating():
        functional(fd.Function(space()).interpolate(1 + y / 3))
    found = {(variable is m.block_variable, *arrays) for variable, arrays in stored(tape)}
    assert found >= {(True, False), (False, True)} and (True, True) not in found


def test_reals_that_a_block_has_computed_are_exact(shared_tmp, tape):
    enable(shared_tmp)
    r = fd.Function(space("R", 0)).assign(1 / 3)
    mixed = fd.Function(space() * space("R", 0))
    mixed.assign(1 / 3)
    u = fd.Function(space()).assign(1.0)
    u0, k = fd.split(mixed)
    run(decay(u, r * (u0 + k)))
    found = {tuple(arrays) for variable, arrays in stored(tape) if variable.creation_timestep >= 0}
    assert found == {(True,), (False,), (True, False)}


def test_coordinates_that_a_block_has_moved_are_exact(shared_tmp, tape):
    enable(shared_tmp)
    mesh = fd.UnitSquareMesh(3, 3)
    x, y = fd.SpatialCoordinate(mesh)
    with stop_annotating():
        shift = fd.Function(mesh.coordinates.function_space()).interpolate(fd.as_vector((x * y / 7, y * y / 3)))
    u = fd.Function(fd.FunctionSpace(mesh, "CG", 1)).assign(1.0)
    step = decay(u)

    def move():
        mesh.coordinates.assign(mesh.coordinates + shift)
        return step()

    functional = ReducedFunctional(run(move), Control(shift))
    with stop_annotating():
        functional(shift)
    coordinates = {
        tuple(arrays)
        for variable, arrays in stored(tape)
        if variable.output is mesh or variable.output is mesh.coordinates
    }
    assert coordinates == {(False,)} and summary().rounded > 0


def test_an_ensemble_function_that_a_block_has_computed_is_rounded(shared_tmp, tape):
    enable_disk_checkpointing(checkpoint_dir=str(shared_tmp), precision="single")
    value, gradient = value_and_gradient(SingleDiskStorageSchedule())
    assert any(all(arrays) for variable, arrays in stored(tape) if isinstance(variable.output, fd.EnsembleFunction))
    with bare_tape():
        expected_value, expected_gradient = value_and_gradient()
    assert abs(value / expected_value - 1) < 1e-12 and abs(gradient / expected_gradient - 1) < 10 * EPSILON


def test_without_a_schedule_nothing_is_rounded(shared_tmp):
    enable_disk_checkpointing(checkpoint_dir=str(shared_tmp), precision="single")
    continue_disk_checkpointing()
    u = fd.Function(space()).assign(1 / 3)
    J = decay(u)()
    with stop_annotating():
        ReducedFunctional(J, Control(u))(fd.Function(space()).assign(1 / 7))
    assert summary().rounded == 0 < summary().written


@pytest.mark.parallel([2])
def test_a_halo_that_comes_back_is_that_of_its_owners(shared_tmp, tape):
    functional = record_on_disk(checkpoint_dir=str(shared_tmp), precision="single")
    functional(control(1.3))
    compared = 0
    for step in tape.timesteps:
        for checkpoint in step._checkpoint.values():
            if kind(checkpoint) is LocalCheckpoint and any(rounded(checkpoint)):
                (dat,) = checkpoint.restore().dat
                if dat.halo_valid:
                    mine = dat.data_ro_with_halos.copy()
                    dat.halo_valid = False  # so that the next line asks the owners
                    np.testing.assert_array_equal(dat.data_ro_with_halos, mine)
                    compared += len(mine) > dat.dataset.size
    assert compared > 0


def test_a_state_beyond_the_range_is_exact(shared_tmp, tape):
    enable(shared_tmp)
    u = fd.Function(space()).assign(1e39)
    step = u.assign
    run(lambda: fd.assemble(step(2 * u) * dx))
    found = [arrays for variable, arrays in stored(tape) if variable.creation_timestep >= 0]
    assert found and not any(map(any, found))
