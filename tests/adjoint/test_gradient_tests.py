"""What ``localckpt verify`` finds of one gradient or another, in this process."""

import functools
import random

import pytest
import test_controls as cases
from burgers import bare_tape
from firedrake import (
    COMM_WORLD,
    Ensemble,
    Function,
    FunctionSpace,
    SpatialCoordinate,
    TensorFunctionSpace,
    UnitIntervalMesh,
    UnitSquareMesh,
    VectorFunctionSpace,
    VertexOnlyMesh,
    as_tensor,
    as_vector,
    assemble,
    dx,
    inner,
    split,
)
from firedrake.adjoint import (
    Control,
    EnsembleReducedFunctional,
    ReducedFunctional,
    get_working_tape,
    stop_annotating,
)
from mpi4py import MPI
from pyadjoint import AdjFloat, Block

from localckpt.adjoint import enable_disk_checkpointing
from localckpt.adjoint.derivatives import Request
from localckpt.adjoint.gradient_tests import GradientTests, comm_of_functional


@pytest.fixture
def V():
    return FunctionSpace(UnitSquareMesh(3, 3), "CG", 1)


@pytest.fixture
def c(V):
    x, y = SpatialCoordinate(V.mesh())
    with stop_annotating():
        return Function(V).interpolate(1 + x * y)


@pytest.fixture
def J(c):
    return assemble(c**4 * dx)


def report_of(functional, bounds=None, adj_input=1.0):
    return GradientTests(Request(functional, adj_input, bounds, 0.0), comm_of_functional(functional)).report()


def orders(report):
    return [test.order for test in report.tests]


def report_of_case(case, schedule, tape):
    """That of a case of test_controls.py."""
    enable_disk_checkpointing()
    if schedule is not None:
        tape.enable_checkpointing((cases.ON_DISK | cases.IN_MEMORY)[schedule](cases.STEPS))
    adj_input = cases.field() if case is cases.functional_that_is_a_cofunction else 1.0
    return report_of(cases.functional_of(case), adj_input=adj_input)


@pytest.mark.parametrize(
    "case, schedule",
    [
        (cases.source_of_each_step, None),
        (cases.initial_condition, "all on disk"),
        (cases.number, "multistage, disk"),
        (cases.state_that_each_step_overwrites, "revolve"),
        (cases.source_as_it_is_in_one_step, "mixed, disk"),
        (cases.functional_that_is_a_cofunction, "multistage, memory and disk"),
        (cases.shape, "all on disk"),
        (cases.product_over_steps, "all in memory"),
    ],
)
def test_gradient_that_is_right(case, schedule, tape):
    report = report_of_case(case, schedule, tape)
    assert report.verdict == "right" and orders(report) == pytest.approx([2, 2], abs=0.1), report


@pytest.mark.parametrize("schedule", ["revolve", "multistage, disk"])
@pytest.mark.parametrize("case, first", [(cases.shape, 1), (cases.product_over_steps, 2)])
def test_gradient_that_is_known_to_be_wrong(case, first, schedule, tape):
    report = report_of_case(case, schedule, tape)
    assert report.verdict == "wrong" and orders(report) == pytest.approx([first, 1], abs=0.1), report


# A state of one timestep is used nonlinearly in a later one. With schedules that compute steps again, pyadjoint-ad
# 2026.10.0 has a wrong gradient: at each control if it is the next step, otherwise at others than the recorded one.
def next_step():
    """Explicit steps: each uses the state of the one before, and not linearly."""
    control = cases.field()
    u, new = Function(cases.space()), Function(cases.space())
    for _ in cases.steps():
        new.interpolate(u + 0.1 * (control - u**3))
        u.assign(new)
    return cases.energy(u), [control]


def later_step():
    control = cases.field()
    u, before, solver = cases.decay(control)
    kept = Function(cases.space())
    for step in cases.steps():
        solver.solve()
        before.assign(u)
        if step == 1:
            kept.assign(u)
        if step == 3:
            before.interpolate(before + kept**2)
    return cases.energy(u), [control]


@pytest.mark.parametrize(
    "case, schedule, expected",
    [
        (next_step, "all on disk", [2, 2]),
        (next_step, "multistage, disk", [1, 1]),
        (later_step, "revolve", [2, 1]),
    ],
)
def test_state_that_is_used_again(case, schedule, expected, tape):
    report = report_of_case(case, schedule, tape)
    assert report.verdict == ("right" if expected == [2, 2] else "wrong"), report
    assert orders(report) == pytest.approx(expected, abs=0.1)


@pytest.mark.parallel(2)
@pytest.mark.parametrize(
    "case, schedule, verdict",
    [(cases.number, "all on disk", "right"), (cases.product_over_steps, "multistage, disk", "wrong")],
)
def test_two_ranks_find_what_one_finds(case, schedule, verdict, monkeypatch):
    found = []
    for comm in MPI.COMM_WORLD, MPI.COMM_SELF:
        square = UnitSquareMesh(4, 4, comm=comm)
        monkeypatch.setattr(cases, "space", functools.partial(FunctionSpace, square, "CG", 1))
        with bare_tape() as tape:
            found.append(report_of_case(case, schedule, tape))
    together, alone = found
    assert together.verdict == alone.verdict == verdict
    assert orders(together) == pytest.approx(orders(alone), abs=0.01)
    assert [test.slope for test in together.tests] == pytest.approx([test.slope for test in alone.tests])


def mixed(V, c):
    m = Function(FunctionSpace(V.mesh(), "R", 0) * V)
    with stop_annotating():
        m.sub(0).assign(2e3)
        m.sub(1).assign(c)
    return m, assemble(split(m)[0] ** 2 * split(m)[1] ** 4 * dx)


def real(V, c):
    m = Function(FunctionSpace(V.mesh(), "R", 0)).assign(2)
    return m, assemble(m**4 * c * dx)


def vector(V, c):
    m = Function(VectorFunctionSpace(V.mesh(), "CG", 2))
    with stop_annotating():
        m.interpolate(as_vector((1.5, 2)))
    return m, assemble(inner(m, m) ** 2 * dx)


def symmetric_tensor(V, c):
    m = Function(TensorFunctionSpace(V.mesh(), "DG", 0, symmetry=True))
    with stop_annotating():
        m.interpolate(as_tensor(((1.5, 2), (2, 3))))
    return m, assemble(inner(m, m) ** 2 * dx)


def on_a_line(V, c):
    m = Function(FunctionSpace(UnitIntervalMesh(5), "CG", 1)).assign(1.5)
    return m, assemble(m**4 * dx)


def normal_flux(V, c):
    m = Function(FunctionSpace(V.mesh(), "RT", 1)).assign(1.5)
    return m, assemble(inner(m, m) ** 2 * dx)


def smooth_element(V, c):
    m = Function(FunctionSpace(V.mesh(), "Argyris", 5)).assign(1.5)
    return m, assemble(m**4 * dx)


def on_points(V, c):
    m = Function(FunctionSpace(VertexOnlyMesh(V.mesh(), [[0.2, 0.3], [0.7, 0.1]]), "DG", 0)).assign(1.5)
    return m, assemble(m**4 * dx)


def zero(V, c):
    m = Function(V)
    return m, assemble((m + c) ** 4 * dx)


def number(V, c):
    m = AdjFloat(3.0)
    return m, m**4 * assemble(c**4 * dx)


@pytest.mark.parallel([1, 2])
@pytest.mark.parametrize(
    "make", [mixed, real, vector, symmetric_tensor, on_a_line, normal_flux, smooth_element, on_points, zero, number]
)
def test_controls_of_many_kinds(make, V, c):
    m, J = make(V, c)
    report = report_of(ReducedFunctional(J, Control(m)))
    assert report.verdict == "right" and orders(report) == pytest.approx([2, 2], abs=0.1), report


class Cube(Block):
    """A number's third power, and perhaps not its derivative."""

    def __init__(self, factor, noise):
        super().__init__()
        self.factor, self.noise = factor, noise

    def evaluate_adj_component(self, inputs, adj_inputs, block_variable, idx, prepared=None):
        return adj_inputs[0] * 3 * inputs[0] ** 2 * self.factor

    def recompute_component(self, inputs, block_variable, idx, prepared):
        return inputs[0] ** 3 * (1 + self.noise * random.random())


def cube(J, factor=1.0, noise=0.0):
    block, result = Cube(factor, noise), AdjFloat(float(J) ** 3)
    block.add_dependency(J)
    get_working_tape().add_block(block)
    block.add_output(result.block_variable)
    return result


@pytest.mark.parametrize("error", [0, 1e-4, 1e-2, 1])
def test_derivative_with_an_error(error, J, c):
    report = report_of(ReducedFunctional(cube(J, 1 + error), Control(c)))
    assert report.verdict == ("wrong" if error else "right"), report


def test_gradient_that_a_callback_changes_is_wrong(J, c):
    functional = ReducedFunctional(J, Control(c), derivative_cb_post=lambda J, parts, _: [p._ad_mul(2) for p in parts])
    assert report_of(functional).verdict == "wrong"


def test_scale_and_adjoint_input_count(J, c):
    assert report_of(ReducedFunctional(J, Control(c), scale=-3.0), adj_input=2.0).verdict == "right"


def test_each_control_is_tested_where_all_together_are_wrong(J, c):
    d = AdjFloat(2.0)
    report = report_of(ReducedFunctional(cube(J, 1.1) + d**4, [Control(c), Control(d)]))
    assert report.verdict == "wrong"
    assert [test.outcome for test in report.tests] == 2 * ["wrong", "wrong", "right"]


def test_an_error_does_not_hide_behind_a_more_important_control(J, c):
    d = AdjFloat(2.0)
    report = report_of(ReducedFunctional(cube(J, 1.1) + 1e3 * d**4, [Control(c), Control(d)]))
    assert report.verdict == "wrong"


def test_derivative_components_leave_the_others_alone(J, c):
    d = AdjFloat(2.0)
    functional = ReducedFunctional(J * d**4, [Control(c), Control(d)], derivative_components=(0,))
    report = report_of(functional)
    assert report.verdict == "right" and report.without_effect == [2]


def test_noise_is_no_evidence(J, c):
    report = report_of(ReducedFunctional(cube(J, noise=1e-2), Control(c)))
    assert report.verdict in ("wrong", "not shown") and report.noise > 1e-5


def test_a_little_noise_is_stepped_over(J, c):
    report = report_of(ReducedFunctional(cube(J, noise=1e-9), Control(c)))
    assert report.verdict == "right" and report.noise > 1e-12, report


def test_linear_functional(c):
    report = report_of(ReducedFunctional(assemble(c * dx), Control(c)))
    assert report.verdict == "right" and orders(report) == [None, None] and "linear" in report.why


def test_quadratic_functional(c):
    report = report_of(ReducedFunctional(assemble(c**2 * dx), Control(c)))
    assert report.verdict == "right" and orders(report) == pytest.approx([2, 2], abs=0.01)


def test_minimum_at_the_first_control(V, c):
    with stop_annotating():
        target = Function(V).assign(c)
    report = report_of(ReducedFunctional(assemble((c - target) ** 2 * dx), Control(c)))
    assert report.verdict == "right" and abs(report.tests[0].slope) < 1e-15


def test_functional_without_the_control(V, J):
    unused = Function(V).assign(1)
    assemble(unused * dx)
    report = report_of(ReducedFunctional(J, Control(unused)))
    assert report.verdict == "not shown" and "does not change" in report.why


def test_control_without_effect_is_named(V, J, c):
    unused = Function(V).assign(1)
    assemble(unused * dx)
    report = report_of(ReducedFunctional(J, [Control(c), Control(unused)]))
    assert report.verdict == "right" and report.why.endswith("the gradient is zero in control 2")


def test_functional_that_is_not_finite(J, c):
    report = report_of(ReducedFunctional(cube(J, noise=float("nan")), Control(c)))
    assert report.verdict == "not shown" and "not finite" in report.why


def test_evaluation_that_does_not_repeat_the_recording(J, c):
    J = cube(J)
    J.block_variable.checkpoint = AdjFloat(7.0)
    report = report_of(ReducedFunctional(J, Control(c)))
    assert report.verdict == "wrong" and report.why.startswith("the J as recorded differs")


@pytest.mark.parallel([1, 2])
@pytest.mark.parametrize("sign", [1, -1])
def test_steps_stay_within_bounds(sign, V, c):
    """The control is at its lower bound everywhere, or at its upper one."""
    bounds = (1.0, 1.2) if sign > 0 else (0.8, Function(V).assign(1.0))
    with stop_annotating():
        c.assign(1.0)
    seen = []
    functional = ReducedFunctional(
        assemble(c**4 * dx), Control(c), eval_cb_pre=lambda m: seen.append(sign * (m.dat.data_ro - 1))
    )
    report = report_of(functional, [bounds])
    assert report.verdict == "right", report
    assert min(array.min() for array in seen) >= 0 and max(array.max() for array in seen) <= 0.2


@pytest.mark.parallel(2)
@pytest.mark.parametrize("scatter", [True, False])
def test_members_of_an_ensemble_have_one_gradient(scatter):
    ensemble = Ensemble(COMM_WORLD, 1)
    c = Function(FunctionSpace(UnitSquareMesh(3, 3, comm=ensemble.comm), "CG", 1)).assign(1.5)
    J = assemble((1 + ensemble.ensemble_rank) * c**4 * dx)
    report = report_of(EnsembleReducedFunctional(J, Control(c), ensemble, scatter_control=scatter))
    assert report.verdict == "right" and report.tests[0].value == pytest.approx(3 * 1.5**4), report
