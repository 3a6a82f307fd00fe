"""Whatever the control and the functional are, the gradient is that of a tape without a schedule."""

import functools

import firedrake as fd
import numpy as np
import pytest
from burgers import IN_MEMORY, LU, ON_DISK, arrays, assert_same, bare_tape
from firedrake import dx, inner, pi, sin
from firedrake.adjoint import Control, ReducedFunctional, get_working_tape, stop_annotating, taylor_test
from pyadjoint import AdjFloat

from localckpt.adjoint import enable_disk_checkpointing

STEPS = 5
SCHEDULES = "all on disk", "multistage, disk", "mixed, disk", "two levels, disk"


@functools.cache
def space():
    return fd.FunctionSpace(fd.UnitSquareMesh(4, 4), "CG", 1)


def field(scale=1.0):
    x, y = fd.SpatialCoordinate(space().mesh())
    with stop_annotating():
        return fd.Function(space()).interpolate(1 + scale * sin(pi * x) * sin(2 * y))


def decay(source):
    """The state, the one before it, and what solves an implicit step of a nonlinear decay."""
    V = source.function_space()
    u, before, v = fd.Function(V), fd.Function(V), fd.TestFunction(V)
    F = inner(8 * (u - before) + u**3 - source, v) * dx
    return u, before, fd.NonlinearVariationalSolver(fd.NonlinearVariationalProblem(F, u), solver_parameters=LU)


def steps():
    return get_working_tape().timestepper(iter(range(STEPS)))


def energy(u):
    return fd.assemble(u**2 * dx)


def initial_condition():
    control = field()
    u, before, solver = decay(field(0.2))
    before.assign(control)
    for _ in steps():
        solver.solve()
        before.assign(u)
    return energy(u), [control]


def sum_over_steps(u, before, solver):
    J = 0.0
    for _ in steps():
        solver.solve()
        before.assign(u)
        J += energy(u)
    return J


def state_that_each_step_overwrites():
    u, before, solver = decay(field(0.2))
    with stop_annotating():
        before.assign(field())
    control = Control(before)
    for _ in steps():
        solver.solve()
        before.assign(u)
    return energy(before), [control]


def output_of_a_block():
    source = field(0.5)
    control = fd.Function(space()).assign(2 * source)
    return sum_over_steps(*decay(control)), [control]


def source_as_it_is_in_one_step():
    source, growth = field(), field(0.3)
    u, before, solver = decay(source)
    J = 0.0
    for step in steps():
        source.assign(source * 1.1 + growth)
        if step == 2:
            control = Control(source)
        solver.solve()
        before.assign(u)
        J += energy(u)
    return J, [control]


def source_of_each_step():
    controls = [field(0.1 * step) for step in range(STEPS)]
    source = fd.Function(space())
    u, before, solver = decay(source)
    J = 0.0
    for step in steps():
        source.assign(controls[step])
        solver.solve()
        before.assign(u)
        J += energy(u)
    return J, controls


def source_of_the_last_step():
    control, source = field(), field(0.4)
    u, before, solver = decay(source)
    for step in steps():
        if step == STEPS - 1:
            source.assign(source + control)
        solver.solve()
        before.assign(u)
    return energy(u), [control]


def number():
    source, control = field(), AdjFloat(1.5)
    u, before, solver = decay(source)
    J = 0.0
    for _ in steps():
        solver.solve()
        before.assign(u)
        J += control**2 * energy(u)
    return J, [control, source]


def functional_of_one_step():
    control = field()
    u, before, solver = decay(control)
    for step in steps():
        solver.solve()
        before.assign(u)
        if step == 2:
            J = energy(u)
    return J, [control]


def functional_that_is_a_cofunction():
    control, v = field(), fd.TestFunction(space())
    u, before, solver = decay(control)
    for _ in steps():
        solver.solve()
        before.assign(u)
    return fd.assemble(u**2 * v * dx), [control]


CASES = [
    initial_condition,
    state_that_each_step_overwrites,
    output_of_a_block,
    source_as_it_is_in_one_step,
    source_of_each_step,
    source_of_the_last_step,
    number,
    functional_of_one_step,
    functional_that_is_a_cofunction,
]


def functional_of(case):
    J, controls = case()
    return ReducedFunctional(J, [c if isinstance(c, Control) else Control(c) for c in controls])


def replay(functional):
    """Values and gradients at two controls."""
    results = []
    with stop_annotating():
        controls = [c.control._ad_copy() for c in functional.controls]
        for scale in (1.2, 0.8):
            value = functional([c._ad_mul(scale) for c in controls])
            seed = 1.0 if isinstance(value, float) else field()
            value = [value] if isinstance(value, float) else value.dat.data_ro.copy()
            parts = functional.derivative(adj_input=seed)
            results.append(
                np.concatenate(
                    [
                        value,
                        *(array for part in parts for array in ([[part]] if isinstance(part, float) else arrays(part))),
                    ]
                )
            )
    return results


@functools.cache
def on_bare_tape(case):
    with bare_tape():
        return replay(functional_of(case))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_gradient_is_that_of_a_bare_tape(case, schedule, tape, shared_tmp):
    enable_disk_checkpointing(checkpoint_dir=str(shared_tmp))
    tape.enable_checkpointing(ON_DISK[schedule](STEPS))
    assert_same(replay(functional_of(case)), on_bare_tape(case))


@pytest.mark.parallel(3)
@pytest.mark.parametrize(
    "case", [state_that_each_step_overwrites, source_of_each_step, number], ids=lambda case: case.__name__
)
def test_gradient_on_several_ranks_is_that_of_a_bare_tape(case, tape, shared_tmp):
    enable_disk_checkpointing(checkpoint_dir=str(shared_tmp))
    tape.enable_checkpointing(ON_DISK["multistage, disk"](STEPS))
    assert_same(replay(functional_of(case)), on_bare_tape(case))


@pytest.mark.parametrize(
    "case", [case for case in CASES if case is not functional_that_is_a_cofunction], ids=lambda case: case.__name__
)
def test_gradient_converges(case, tape, shared_tmp):
    assert_converges(case, "mixed, disk", tape, shared_tmp)


def assert_converges(case, schedule, tape, shared_tmp):
    enable_disk_checkpointing(checkpoint_dir=str(shared_tmp))
    tape.enable_checkpointing(ON_DISK[schedule](STEPS))
    functional = functional_of(case)
    with stop_annotating():
        controls = [c.control._ad_copy() for c in functional.controls]
        assert taylor_test(functional, controls, [c._ad_mul(0.3) for c in controls]) > 1.9


def shape():
    """A displacement of the mesh."""
    mesh = fd.UnitSquareMesh(4, 4)
    x, y = fd.SpatialCoordinate(mesh)
    with stop_annotating():
        control = fd.Function(mesh.coordinates.function_space()).interpolate(fd.as_vector((0.1 * x * y, 0.2 * y * y)))
        source = fd.Function(fd.FunctionSpace(mesh, "CG", 1)).interpolate(1 + x * y)
    mesh.coordinates.assign(mesh.coordinates + control)
    return sum_over_steps(*decay(source)), [control]


def product_over_steps():
    """Each step multiplies the functional of the one before."""
    control = field()
    u, before, solver = decay(control)
    J = 1.0
    for _ in steps():
        solver.solve()
        before.assign(u)
        J = (1 + energy(u)) * J
    return J, [control]


# With schedules that compute steps again the gradients of these two are wrong, whatever checkpoints are made of.
NOT_AGAIN = [shape, product_over_steps]


@pytest.mark.parametrize("case", NOT_AGAIN, ids=lambda case: case.__name__)
def test_gradient_without_computing_again_is_that_of_a_bare_tape(case, tape, shared_tmp):
    enable_disk_checkpointing(checkpoint_dir=str(shared_tmp))
    tape.enable_checkpointing(ON_DISK["all on disk"](STEPS))
    assert_same(replay(functional_of(case)), on_bare_tape(case))


@pytest.mark.parallel([1, 3])
def test_gradient_of_a_shape_converges(tape, shared_tmp):
    assert_converges(shape, "all on disk", tape, shared_tmp)


@pytest.mark.parametrize("case", NOT_AGAIN, ids=lambda case: case.__name__)
@pytest.mark.parametrize("schedule", ["multistage", "mixed"])
def test_gradient_with_computing_again_is_that_of_memory_checkpoints(case, schedule, tape, shared_tmp):
    with bare_tape() as other:
        other.enable_checkpointing(IN_MEMORY[f"{schedule}, memory"](STEPS))
        expected = replay(functional_of(case))
    enable_disk_checkpointing(checkpoint_dir=str(shared_tmp))
    tape.enable_checkpointing(ON_DISK[f"{schedule}, disk"](STEPS))
    assert_same(replay(functional_of(case)), expected)
