"""How well 'localckpt plan' predicts an iteration, and how long schedules take to prepare themselves.

Tapes with different schedules take turns, and one of a shorter run that is measured as with -localckpt_view
:FILE:json. `predicted` is what plan says of the others by that one, and `ratio` is that divided by what was measured.
Memory holds all checkpoints.
"""

import functools
import gc
import time
from math import inf
from statistics import median

import checkpoint_schedules
import firedrake.adjoint as adjoint
import flows
import pytest
from conftest import race
from mpi4py import MPI
from petsc4py import PETSc
from problems import advection, square

from localckpt.commands.plan import Disk, Planner, Step
from localckpt.commands.schedules import LARGEST_PREPARATION, Candidate

PROBLEMS = {  # cells along each side, steps
    "burgers, 8k dofs (the demo)": (flows.burgers, 32, 20),
    "advection, 60k dofs": (advection, 100, 20),
    "convection, 21k dofs": (flows.convection, 40, 16),
    "wave, 88k dofs": (flows.wave, 70, 20),
}
SHORT = 8  # steps
SCHEDULES = {  # arguments after the number of steps
    "SingleDiskStorageSchedule": None,
    "MultistageCheckpointSchedule": (2, 4),
    "HRevolve": (2, 4),
    "Revolve": (4,),
}
SECONDS = "forward", "reverse", "saving", "restoring"
NOTHING = Disk([], inf, 0, 0, 0, 0, 1, [])  # the short run has measured what saves and restores take


def candidate(name, steps):
    further = SCHEDULES[name]
    costs = {"wd": 0.1, "rd": 0.1} if name == "HRevolve" else {}
    return Candidate(getattr(checkpoint_schedules, name), () if further is None else (steps, *further), costs)


def short_run(make, mesh, folder):
    """An iteration of a short run, and what its tape notes on rank 0. Collective on COMM_WORLD."""
    options = PETSc.Options("localckpt_")
    options["view"] = f":{folder}/run.json:json"
    iteration = make("localckpt", mesh, SHORT, folder)
    options.delValue("view")
    return iteration, adjoint.get_working_tape()._package_data["firedrake"].recorder


def planner(runs):
    """That of a short run, by the medians over its iterations. Collective on COMM_WORLD."""
    last = MPI.COMM_WORLD.bcast(runs and runs[-1])
    seconds = MPI.COMM_WORLD.bcast({name: median(run[name] for run in runs) for name in SECONDS} if runs else None)
    return Planner(Step(last["restart"]["stored"], last["adjoint"]["stored"], **seconds), NOTHING, inf, inf, inf)


@functools.lru_cache(maxsize=1)
def measured(problem, folder, seconds):
    """Seconds of each iteration with each schedule, and what was predicted."""
    make, cells, steps = PROBLEMS[problem]
    mesh = square(cells)
    candidates = {name: candidate(name, steps) for name in SCHEDULES}
    iterations = {name: make(f"localckpt with {one}", mesh, steps, folder) for name, one in candidates.items()}
    iterations["short run"], recorder = short_run(make, mesh, folder)
    for iteration in iterations.values():
        iteration()
    runs = []

    def turn(name):
        taken = timed(iterations[name])
        if name == "short run" and recorder:
            runs.append(recorder.as_dict())
        return taken

    taken = race({name: functools.partial(turn, name) for name in iterations}, 5 * seconds, least=4)
    predict = planner(runs)
    iterations.clear()
    adjoint.set_working_tape(adjoint.Tape())  # lets go of the last one
    gc.collect()
    return {name: (taken[name], predict.estimate(one, steps)) for name, one in candidates.items()}


def timed(call):
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("problem", PROBLEMS)
def test_prediction(record, request, problem, name):
    folder = next(iter(request.config.folders.values()))
    taken, estimate = measured(problem, folder, request.config.getoption("seconds"))[name]
    ratio = estimate.seconds / median(taken)
    record(
        taken,
        contestant=name,
        problem=problem,
        schedule=estimate.schedule,
        steps=estimate.steps,
        forward=estimate.forward,
        predicted=estimate.seconds,
        ratio=ratio,
    )
    print(
        f"\n{problem:28} {MPI.COMM_WORLD.size} ranks, {estimate.schedule:42}{median(taken):8.3f} s, "
        f"predicted {estimate.seconds:8.3f} s: {ratio:.2f}"
    )


PREPARED = [(100, 50), (200, 50), (200, 100), (400, 50)]  # steps, checkpoints
FULL = [*PREPARED, (400, 200), (800, 100), (2000, 10)]


def pytest_generate_tests(metafunc):
    if metafunc.function is test_preparation:
        cases = FULL if metafunc.config.getoption("full") else PREPARED
        kinds = "HRevolve", "Revolve", "MixedCheckpointSchedule"
        metafunc.parametrize(("steps", "checkpoints", "name"), [(*case, kind) for case in cases for kind in kinds])


def test_preparation(record, steps, checkpoints, name):
    divided = (checkpoints // 2, checkpoints - checkpoints // 2) if name == "HRevolve" else (checkpoints,)
    one = Candidate(getattr(checkpoint_schedules, name), (steps, *divided))
    seconds = timed(lambda: one.count(steps))
    share = steps**2 * checkpoints / LARGEST_PREPARATION
    record([seconds], contestant=name, prepared=f"{steps} steps, {checkpoints} checkpoints", share=share)
    print(f"\n{one!s:42}{seconds:8.3f} s, {share:.2f} of the largest that plan tries")
