"""Tests of a gradient, for ``localckpt verify``: at two controls, and at the first one again."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import firedrake as fd
import numpy as np
from mpi4py import MPI
from pyadjoint import stop_annotating

from localckpt.adjoint.derivatives import Request
from localckpt.adjoint.values import comm_of, values, with_values

__all__ = ["GradientTests", "Report", "Test", "comm_of_functional"]

# Steps and distances are relative to the largest entry of each control.
PROBE = 1e-3  # the step that says which steps to take
TARGET = 1e-4  # the remainder to aim at, at the smallest step, relative to the change of J that the gradient predicts
HALVINGS = 3  # from the largest step to the smallest
FACTOR = 8  # between these steps and others, if these say nothing
LARGEST_STEP = 0.512  # all steps up to this one stay within the bounds
HAIR = 1e-9  # a step whose remainder can only be noise
AWAY = 0.03  # from the first control to the second
ORDER = 1.9  # of the remainders, at least, if the gradient is right
LINEAR = 1e-6  # remainders as small as this, relative to the change of J, need no order
ABOVE_NOISE = 100  # times the noise: remainders that count
SAME = 1e-6  # relative difference of two gradients that are the same
EVALUATIONS, GRADIENTS = 16, 4  # more if an order is too low at first

RIGHT, WRONG, NOT_SHOWN = "right", "wrong", "not shown"


@dataclass(frozen=True)
class Test:
    """A Taylor test.

    Attributes
    ----------
    where : str
        The control, and which of several was varied.
    value : float
        J there.
    slope : float
        The derivative of J in the direction of the test, by the gradient.
    steps, remainders : list of float
        Remainders are ``abs(J(m + step*d) - J(m) - step*slope)``.
    order : float or None
        The lowest order at which the remainders fall, or None if there is none.
    outcome : str
        ``right``, ``wrong``, or ``not shown``.
    why : str
        In words.
    """

    where: str
    value: float
    slope: float
    steps: list[float]
    remainders: list[float]
    order: float | None
    outcome: str
    why: str

    @property
    def relative_remainder(self) -> float:
        """At the smallest step, relative to the change of J that the gradient predicts."""
        change = abs(self.slope) * self.steps[-1]
        return self.remainders[-1] / change if change else math.inf


@dataclass
class Report:
    """What was found.

    Attributes
    ----------
    verdict : str
        ``right``, ``wrong``, ``not shown``, ``not reached`` or ``failed``.
    why : str
        In words.
    noise : float or None
        Of J; None if it was not measured.
    tests : list of Test
    differences : dict
        Of gradients and values that should be the same, relative to their size at both controls.
    without_effect : list of int
        The controls, counted from 1, in which the gradient is zero.
    known_faults : list of str
        Of installed packages.
    """

    verdict: str
    why: str
    noise: float | None = None
    tests: list[Test] = field(default_factory=list)
    differences: dict[str, float] = field(default_factory=dict)
    without_effect: list[int] = field(default_factory=list)
    known_faults: list[str] = field(default_factory=list)


class TooLong(Exception):
    """The tests would take longer than there is time."""


class GradientTests:
    """The tests of one gradient.

    Parameters
    ----------
    request : Request
        The derivative that the script wants.
    comm : mpi4py.MPI.Intracomm
        Everything here is collective on it.
    seconds : float, optional
        That the tests may take.
    announce : callable, optional
        Is told, on rank 0, what they will take.
    """

    def __init__(
        self,
        request: Request,
        comm: MPI.Intracomm,
        seconds: float = math.inf,
        announce: Callable[[str], None] = lambda message: None,
    ) -> None:
        self.functional, self.adj_input, self.comm = request.functional, request.adj_input, comm
        self.controls = list(self.functional.controls)
        self.bounds = request.bounds or [(None, None)] * len(self.controls)
        self.recording = request.recording
        self._end, self._announce = time.monotonic() + seconds, announce

    def report(self) -> Report:
        """Make all tests."""
        report = Report(RIGHT, "")
        try:
            with stop_annotating():
                self._test(report)
        except TooLong as exc:
            report.verdict, report.why = NOT_SHOWN, str(exc)
        else:
            report.verdict, report.why = judge(report)
        return report

    def _test(self, report: Report) -> None:
        self._require_time_of_recording()
        first = [control.tape_value()._ad_copy() for control in self.controls]
        # Otherwise tape_value() may be another one than that of the recording.
        as_recorded = all(control.block_variable.checkpoint is not None for control in self.controls)
        recorded, recorded_gradient = self._recorded_value(), self.gradient()
        start = time.monotonic()
        value = self.evaluate(first)
        evaluated = time.monotonic()
        gradient = self.gradient()
        measured = (EVALUATIONS - 1) * (evaluated - start) + (GRADIENTS - 2) * (time.monotonic() - evaluated)
        self._require_time(self.comm.bcast(measured))
        directions, slopes = self._balanced(self._directions(first, seed=1), gradient)
        report.without_effect = [i + 1 for i, slope in enumerate(slopes) if slope == 0]
        repeated = abs(self.evaluate(first) - value)
        noise = max(repeated, self._noise(first, directions, sum(slopes), value))
        report.tests += self._taylor("first control", first, directions, slopes, value, noise)

        second = moved(first, self._directions(first, seed=2), AWAY)
        there = self.evaluate(second)
        gradient_there = self.gradient()
        directions, slopes = self._balanced(self._directions(second, seed=3), gradient_there)
        report.noise = noise = max(noise, self._noise(second, directions, sum(slopes), there))
        report.tests += self._taylor("second control", second, directions, slopes, there, noise)

        again = self.evaluate(first)
        size = max(abs(value), abs(there)) or 1.0
        report.differences["J at the first control again"] = abs(again - value) / size
        report.differences["gradient at the first control again"] = self._difference(
            self.gradient(), gradient, gradient_there
        )
        if as_recorded and recorded is not None:
            report.differences["J as recorded"] = abs(recorded - value) / size
        if as_recorded:
            report.differences["gradient before any evaluation"] = self._difference(
                recorded_gradient, gradient, gradient_there
            )

    def _noise(self, at: list[Any], directions: list[Any], slope: float, value: float) -> float:
        """The remainder of a tiny step."""
        remainder = abs(self.evaluate(moved(at, directions, HAIR)) - value - HAIR * slope)
        return max(remainder, 4 * np.finfo(float).eps * abs(value))

    def _require_time_of_recording(self) -> None:
        seconds = self.comm.bcast((EVALUATIONS + 2 * GRADIENTS) * self.recording)
        if self.comm.rank == 0:
            how_long = (
                f"about {seconds:.3g} s at the pace of the recording ({self.recording:.3g} s), "
                "a gradient counted as two evaluations"
            )
            self._announce(f"{EVALUATIONS} evaluations and {GRADIENTS} gradients, {how_long}")
        self._require_time(seconds)

    def _require_time(self, seconds: float) -> None:
        left = self.comm.bcast(self._end - time.monotonic())
        if seconds > left:
            raise TooLong(
                f"the tests would take {seconds:.3g} s, and there are {max(left, 0):.3g} s left: "
                "take a coarser mesh, or allow more time"
            )

    def _recorded_value(self) -> float | None:
        output = getattr(getattr(self.functional, "functional", None), "block_variable", None)
        value = output and output.saved_output
        if not isinstance(value, float) or not isinstance(self.adj_input, (int, float)):
            return None
        return float(self.comm.bcast(float(value) * self.functional.scale * self.adj_input))

    def evaluate(self, controls: list[Any]) -> float:
        """The functional, or what it is tested against if it is no number."""
        value = self.functional(controls)
        if isinstance(value, (int, float)):
            value = value * self.adj_input
        else:
            value = self.adj_input._ad_dot(value)
        return float(self.comm.bcast(float(np.real(value))))

    def gradient(self) -> list[Any]:
        """At the control that was evaluated last, one part for each control."""
        plain = isinstance(self.adj_input, (int, float)) and self.adj_input == 1
        found = self.functional.derivative() if plain else self.functional.derivative(adj_input=self.adj_input)
        parts = found if isinstance(found, (list, tuple)) else [found]
        return [part._ad_copy() if hasattr(part, "_ad_copy") else part for part in parts]

    def _difference(self, one: list[Any], other: list[Any], elsewhere: list[Any]) -> float:
        """The largest difference of two gradients, in any control, relative to the largest entry there or elsewhere."""
        sizes = [max(self._largest(values(b)), self._largest(values(c))) or 1.0 for b, c in zip(other, elsewhere)]
        return max(self._largest(values(a) - values(b)) / size for a, b, size in zip(one, other, sizes))

    def _largest(self, array: Any) -> float:
        return self.comm.allreduce(float(np.max(np.abs(array), initial=0.0)), max_of_two)

    def _directions(self, controls: list[Any], seed: int) -> list[Any]:
        """A direction for each control, of its size and within its bounds; zero if the derivative leaves it out."""
        derived = getattr(self.functional, "derivative_components", None) or range(len(controls))
        directions = []
        for i, (control, bounds) in enumerate(zip(controls, self.bounds)):
            direction = self._within(bounds, control, smooth(control, np.random.default_rng([seed, i]), self))
            directions.append(direction if i in derived else direction._ad_mul(0.0))
        return directions

    def _balanced(self, directions: list[Any], gradient: list[Any]) -> tuple[list[Any], list[float]]:
        """The directions, and the derivative of J in each.

        If these derivatives differ, the larger ones are brought closer to the smallest by shorter directions, so that
        an error in one control does not hide behind another control. They do not cancel each other.
        """
        slopes = [self._slope(direction, part) for direction, part in zip(directions, gradient)]
        least = min((abs(slope) for slope in slopes if slope), default=0.0)
        weights = [max(least / abs(slope), 1e-2) if slope else 1.0 for slope in slopes]
        total = sum(weight * slope for weight, slope in zip(weights, slopes))
        against = -1.0 if total >= 0 else 1.0  # the sign of those that would cancel the others
        weights = [weight / 2 if slope * against > 0 else weight for weight, slope in zip(weights, slopes)]
        return (
            [direction._ad_mul(weight) for direction, weight in zip(directions, weights)],
            [weight * slope for weight, slope in zip(weights, slopes)],
        )

    def _slope(self, direction: Any, derivative: Any) -> float:
        slope = float(np.real(direction._ad_dot(derivative)))
        if not getattr(self.functional, "scatter_control", True):  # each member of the ensemble has its own control
            slope = self.functional.ensemble.ensemble_comm.allreduce(slope)
        return self.comm.bcast(slope)

    def scaled(self, direction: Any, like: Any) -> Any:
        """With a largest entry as that of another, unless one of them is zero."""
        size, wanted = self._largest(values(direction)), self._largest(values(like))
        return direction._ad_mul(wanted / size) if size and wanted else direction

    def _within(self, bounds: tuple[Any, Any], control: Any, direction: Any) -> Any:
        """The direction, or its opposite, shortened where the largest step would leave the bounds."""
        if bounds[0] is None and bounds[1] is None:
            return direction
        at, along = np.real(values(control)), np.real(values(direction))
        lower, upper = (
            limit if bound is None else np.real(bound if isinstance(bound, (int, float)) else values(bound))
            for bound, limit in zip(bounds, (-math.inf, math.inf))
        )
        inside = [
            (np.clip(at + sign * LARGEST_STEP * along, np.minimum(lower, at), np.maximum(upper, at)) - at)
            / LARGEST_STEP
            for sign in (1, -1)
        ]
        sizes = [self._largest(one) for one in inside]
        return with_values(direction, inside[int(np.argmax(sizes))])

    def _taylor(
        self, where: str, at: list[Any], directions: list[Any], slopes: list[float], value: float, noise: float
    ) -> list[Test]:
        """A test of all controls together and, if that is not right, of each one."""
        tests = [self._taylor_test(where, at, directions, sum(slopes), value, noise)]
        if tests[0].outcome != RIGHT and len(at) > 1:
            for i in range(len(at)):
                alone = [direction._ad_mul(float(i == j)) for j, direction in enumerate(directions)]
                name = f"{where}, {i + 1} of {len(at)}"
                tests.append(self._taylor_test(name, at, alone, slopes[i], value, noise))
        return tests

    def _taylor_test(
        self, where: str, at: list[Any], directions: list[Any], slope: float, value: float, noise: float
    ) -> Test:
        remainders: dict[float, float] = {}

        def remainder(step: float) -> float:
            if step not in remainders:
                remainders[step] = abs(self.evaluate(moved(at, directions, step)) - value - step * slope)
            return remainders[step]

        def test(smallest: float) -> Test:
            steps = [smallest * 2**i for i in range(HALVINGS, -1, -1)]
            return classify(Test(where, value, slope, steps, [remainder(step) for step in steps], None, "", ""), noise)

        smallest = PROBE * 2.0 ** scale_of_steps(remainder(PROBE), value, slope, noise)
        best = test(smallest)
        if best.outcome == WRONG:  # steps may be so large that other terms than the second one count
            finer = test(smallest / FACTOR)
            return best if finer.outcome == NOT_SHOWN else finer
        if best.outcome == NOT_SHOWN and best.steps[0] * FACTOR <= LARGEST_STEP:
            return test(smallest * FACTOR)
        return best


def floor_of_remainders(remainder: float, change: float, value: float, noise: float) -> float:
    """The remainder of a step that can be told from noise."""
    rounding = 4 * np.finfo(float).eps * (abs(value) + change + remainder)
    return ABOVE_NOISE * max(noise, rounding)


def scale_of_steps(remainder: float, value: float, slope: float, noise: float) -> int:
    """The smallest step, as a power of two times ``PROBE``: small, but with remainders above the noise."""
    change = PROBE * abs(slope)
    largest = int(math.log2(LARGEST_STEP / PROBE)) - HALVINGS
    if not math.isfinite(remainder + change):
        return 0
    floor = floor_of_remainders(remainder, change, value, noise)
    if remainder <= floor / 2**largest:
        return largest
    scale = max(math.sqrt(4 * floor / remainder), TARGET * change / remainder)  # the remainder is quadratic in the step
    return min(max(math.ceil(math.log2(scale)), -10), largest)


def classify(test: Test, noise: float) -> Test:
    """The test with its order and outcome."""
    steps, remainders = test.steps, test.remainders
    if not all(math.isfinite(number) for number in (*remainders, test.value, test.slope, noise)):
        return replace(test, outcome=NOT_SHOWN, why="J or its derivative is not finite")
    changes = [step * abs(test.slope) for step in steps]
    floor = floor_of_remainders(remainders[0], changes[0], test.value, noise)
    if changes[-1] > floor and all(remainder <= LINEAR * change for remainder, change in zip(remainders, changes)):
        return replace(test, outcome=RIGHT, why="J is linear and changes as the gradient says")
    if min(remainders) <= floor:
        if changes[-1] > floor:
            return replace(test, outcome=NOT_SHOWN, why="the noise of J is as large as the remainders")
        return replace(test, outcome=NOT_SHOWN, why="J does not change by more than its noise")
    order = min(math.log2(larger / smaller) for larger, smaller in zip(remainders, remainders[1:]))
    return replace(
        test, order=order, outcome=RIGHT if order > ORDER else WRONG, why=f"a Taylor test of order {order:.2f}"
    )


def judge(report: Report) -> tuple[str, str]:
    """The verdict, and why: right only if a test has shown it at each of the two controls."""
    if not all(math.isfinite(test.value + test.slope) for test in report.tests):
        return NOT_SHOWN, "J or its derivative is not finite"
    size = max(abs(test.value) for test in report.tests)
    tolerance = max(SAME, ABOVE_NOISE * (report.noise or 0) / size) if size else SAME
    wrong = [test for test in report.tests if test.outcome == WRONG]
    if wrong:
        return WRONG, f"{wrong[0].why} at the {wrong[0].where}, below {ORDER}"
    for name, difference in report.differences.items():
        if not difference <= tolerance:
            return WRONG, f"the {name} differs by {difference:.1e} of its size"
    unclear = [test for test in report.tests if test.outcome == NOT_SHOWN]
    if unclear:
        return NOT_SHOWN, f"{unclear[0].why} at the {unclear[0].where}"
    if report.tests[-1].relative_remainder > 1:
        return NOT_SHOWN, "the derivative at the second control is too small to be tested"
    why = f"{report.tests[0].why} at the first control, {report.tests[-1].why} at the second"
    why += ", and the same gradient again at the first"
    if report.without_effect:
        why += f"; the gradient is zero in control {', '.join(map(str, report.without_effect))}"
    return RIGHT, why


def moved(controls: list[Any], directions: list[Any], step: float) -> list[Any]:
    return [control._ad_add(direction._ad_mul(step)) for control, direction in zip(controls, directions)]


def smooth(control: Any, random: np.random.Generator, tests: GradientTests) -> Any:
    """A direction for a control: smooth and the same on any number of ranks where its space allows that."""
    if not isinstance(control, fd.Function):
        array = values(control)
        return tests.scaled(with_values(control, random.uniform(-1, 1, array.shape)), control)
    direction = fd.Function(control.function_space())
    for part, like in zip(direction.subfunctions, control.subfunctions):
        fill(part, random, tests.comm.rank)
        part.assign(tests.scaled(part, like))
    return direction


def fill(part: Any, random: np.random.Generator, rank: int) -> None:
    """Give a Function in a space that is not mixed a few waves as values, or random ones if it has no interpolation."""
    V = part.function_space()
    shape = V.value_shape
    own = np.random.default_rng(int(random.integers(1 << 30)))  # ranks may have different numbers of entries
    if V.ufl_element().family() == "Real":
        part.assign(with_values(part, own.uniform(0.5, 1, values(part).shape)))
        return
    x = fd.SpatialCoordinate(V.mesh())
    coordinates = V.mesh().coordinates._ad_to_petsc()
    length = coordinates.max()[1] - coordinates.min()[1] or 1.0

    def wave() -> Any:
        frequencies = random.uniform(-1, 1, len(x)) * 2 * math.pi / length
        phase, amplitude = random.uniform(0, 2 * math.pi), random.uniform(0.5, 1)
        return fd.Constant(amplitude) * fd.sin(fd.dot(fd.Constant(frequencies), x) + fd.Constant(phase))

    components = [sum(wave() for _ in range(3)) for _ in range(math.prod(shape))]
    expression = (
        fd.as_tensor(np.reshape(np.array(components, dtype=object), shape).tolist()) if shape else components[0]
    )
    try:
        part.interpolate(expression)
    except Exception:  # not all elements have an interpolation
        own = np.random.default_rng([rank, int(own.integers(1 << 30))])
        part.assign(with_values(part, own.uniform(-1, 1, values(part).shape)))


def max_of_two(one: float, other: float) -> float:
    """Of all ranks: NaN if one of them has that."""
    return math.nan if math.isnan(one) or math.isnan(other) else max(one, other)


def comm_of_functional(functional: Any) -> MPI.Intracomm:
    """The communicator of a functional: its ensemble's, its controls', its checkpoints', or that of all ranks."""
    ensemble = getattr(functional, "ensemble", None)
    if ensemble is not None:
        return ensemble.global_comm
    checkpointer = getattr(functional.tape, "_package_data", {}).get("firedrake")
    objects = [*(control.control for control in functional.controls), checkpointer]
    return comm_of(objects) or MPI.COMM_WORLD
