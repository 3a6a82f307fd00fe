"""An optimiser evaluates as often as it likes, and finds what it finds on a tape without a schedule."""

import functools

import numpy as np
import pytest
from burgers import ON_DISK, arrays, assert_same, bare_tape
from firedrake import assemble, dx
from firedrake.adjoint import MinimizationProblem, TAOSolver, minimize
from test_controls import STEPS, decay, energy, field, functional_of, steps

from localckpt.adjoint import enable_disk_checkpointing


def tracking():
    """Two controls; the functional is not far from a quadratic one."""
    first, source = field(0.4), field(-0.5)
    u, before, solver = decay(source)
    J = 4 * assemble((first - 0.5) ** 2 * dx + (source - 0.3) ** 2 * dx)
    before.assign(first)
    for _ in steps():
        solver.solve()
        before.assign(u)
        J += 0.1 * energy(u)
    return J, [first, source]


def scipy(functional):
    return minimize(functional, method="L-BFGS-B", options={"maxiter": 30, "ftol": 1e-4})


def tao(functional):
    bounds = [(field(0.0)._ad_mul(0.4), field(0.0)._ad_mul(3.0)) for _ in functional.controls]
    problem = MinimizationProblem(functional, bounds=bounds)
    return TAOSolver(problem, {"tao_type": "blmvm", "tao_max_it": 30, "tao_gatol": 1e-2}).solve()


OPTIMISERS = {
    "scipy L-BFGS-B": scipy,
    "TAO blmvm": tao,
}


@functools.cache
def on_bare_tape(optimiser):
    with bare_tape():
        return found(optimiser, functional_of(tracking))


def found(optimiser, functional):
    return [array for part in OPTIMISERS[optimiser](functional) for array in arrays(part)]


@pytest.mark.parallel([1, 2])
@pytest.mark.parametrize("optimiser, schedule", [("scipy L-BFGS-B", "all on disk"), ("TAO blmvm", "multistage, disk")])
def test_optimiser_finds_what_it_finds_on_a_bare_tape(optimiser, schedule, tape, shared_tmp):
    enable_disk_checkpointing(checkpoint_dir=str(shared_tmp))
    tape.enable_checkpointing(ON_DISK[schedule](STEPS))
    functional = functional_of(tracking)
    start = [array.copy() for c in functional.controls for array in arrays(c.control)]
    end = found(optimiser, functional)
    assert_same(end, on_bare_tape(optimiser))
    assert max(np.abs(one - other).max() for one, other in zip(start, end)) > 0.1
