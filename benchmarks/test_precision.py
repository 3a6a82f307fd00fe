"""Checkpoints in single precision: how far gradients move, how many bytes they save, what an iteration takes.

`test_iteration`: iterations with single and with exact checkpoints, two tapes in one process that take turns, in both
orders, as in test_iteration.py.
`test_gradient`: the gradient at another control than that of the recording, compared with exact checkpoints, for each
problem and schedule, and a Taylor test there. Where the gradient is wrong with exact checkpoints, too (pyadjoint has
known faults with schedules that compute steps again), `error of the exact gradient` shows it. The seconds are those of
one iteration, and not to be compared.
"""

import functools
import gc
import itertools
from statistics import geometric_mean, median, quantiles
from time import perf_counter

import firedrake.adjoint as adjoint
import flows
import numpy as np
import pytest
from mpi4py import MPI
from problems import advection, square
from test_iteration import in_turns

from localckpt.adjoint import summary

PROBLEMS = {  # cells along each side, steps
    "burgers, 8k dofs": (flows.burgers, 32, 10),
    "advection, 15k dofs": (advection, 50, 20),
    "convection, 6k dofs": (flows.convection, 20, 5),
    "wave, 16k dofs": (flows.wave, 30, 20),
}
SCHEDULES = {  # STEPS is how many there are
    "SingleDiskStorageSchedule": "SingleDiskStorageSchedule()",
    "MultistageCheckpointSchedule, disk": "MultistageCheckpointSchedule(STEPS, 0, 3)",
    "MultistageCheckpointSchedule, memory and disk": "MultistageCheckpointSchedule(STEPS, 1, 2)",
    "MixedCheckpointSchedule": "MixedCheckpointSchedule(STEPS, 3, storage=StorageType.DISK)",
    "HRevolve": "HRevolve(STEPS, 1, 2, wd=0.1, rd=0.1)",
    "TwoLevelCheckpointSchedule": "TwoLevelCheckpointSchedule(2, 1, binomial_storage=StorageType.DISK)",
    "Revolve": "Revolve(STEPS, 3)",
}
TIMED = {"advection, 60k dofs": (advection, 100, 20), "advection, 540k dofs": (advection, 300, 20)}


def folder(request):
    return next(iter(request.config.folders.values()))


def dropped():
    """Let go of the last tape."""
    adjoint.set_working_tape(adjoint.Tape())
    gc.collect()


def relative_difference(found, expected):
    pairs = [(a.dat.data_ro, b.dat.data_ro) for a, b in zip(found, expected)]
    sums = [sum(np.sum((a - b) ** 2) for a, b in pairs), sum(np.sum(b**2) for _, b in pairs)]
    of_difference, of_expected = MPI.COMM_WORLD.allreduce(np.array(sums))
    return float(np.sqrt(of_difference / of_expected))


@pytest.mark.parametrize("problem", TIMED)
def test_iteration(record, request, problem):
    make, cells, steps = TIMED[problem]
    mesh, pairs, ratios = square(cells), [], []
    for order in (("localckpt", "single"), ("single", "localckpt")):
        iterations = {kind: make(kind, mesh, steps, folder(request)) for kind in order}
        for iteration in iterations.values():
            iteration()
        taken = in_turns(iterations, 6 * request.config.getoption("seconds"))
        pairs += zip(taken["localckpt"], taken["single"])
        ratios.append([mine[0] / theirs[0] for theirs, mine in zip(taken["localckpt"], taken["single"])])
        del iterations, iteration
        dropped()
    exact, single = (list(map(list, zip(*times))) for times in zip(*pairs))  # of seconds, stores, page faults
    ratio = geometric_mean(map(median, ratios))
    low, _, high = quantiles(itertools.chain(*ratios), n=4)
    record(
        single[0],
        contestant="single",
        problem=problem,
        steps=steps,
        exact=median(exact[0]),
        ratio=ratio,
        spread=[low, high],
        orders=list(map(median, ratios)),
        **{"store and restore": median(single[1]), "store and restore, exact": median(exact[1])},
    )
    print(f"\n{problem:26} {MPI.COMM_WORLD.size} ranks, single {median(single[0]):8.3f} s, {ratio:6.3f} of exact")


def value_and_gradient(iteration):
    """Of the first iteration, which is at another control than the recording."""
    functional, value = iteration.functional.functional.block_variable, []
    gradient = iteration(lambda: value.append(float(functional.saved_output)))
    return value[0], gradient


@functools.lru_cache(maxsize=1)
def in_memory(problem):
    """The mesh, and the gradient with all checkpoints in memory."""
    make, cells, steps = PROBLEMS[problem]
    mesh = square(cells)
    _, gradient = value_and_gradient(make("memory", mesh, steps))
    dropped()
    return mesh, gradient


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("problem", PROBLEMS)
def test_gradient(record, request, problem, schedule):
    mesh, right = in_memory(problem)
    make, _, steps = PROBLEMS[problem]
    way = SCHEDULES[schedule].replace("STEPS", str(steps))
    exact_value, exact_gradient = value_and_gradient(make(f"localckpt with {way}", mesh, steps, folder(request)))
    exact_bytes = summary().written
    dropped()
    iteration = make(f"single with {way}", mesh, steps, folder(request))
    begin = perf_counter()
    value, gradient = value_and_gradient(iteration)
    seconds = perf_counter() - begin
    single = summary()
    # Of the bytes that an exact run writes, those that a single one writes rounded
    to_round = exact_bytes - (single.written - single.rounded)
    functional = iteration.functional
    controls = [control.tape_value().copy(deepcopy=True) for control in functional.controls]
    order = adjoint.taylor_test(functional, controls, [control._ad_mul(0.1) for control in controls])
    record(
        [seconds],
        contestant="single",
        problem=problem,
        schedule=schedule,
        order=order,
        bytes={"exact": exact_bytes, "single": single.written, "rounded": single.rounded},
        share=single.rounded / to_round if single.rounded else None,
        **{
            "error of the gradient": relative_difference(gradient, exact_gradient),
            "error of the exact gradient": relative_difference(exact_gradient, right),
            "error of J": abs(value / exact_value - 1),
        },
    )
    del iteration, functional
    dropped()
