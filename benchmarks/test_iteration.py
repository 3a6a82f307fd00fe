"""An optimisation iteration (functional and gradient), divided by the same with memory checkpoints.

Two tapes in one process, their iterations interleaved: a noisy machine hits both alike. The tape that was made
first is one or two percent faster, whatever it is: the ratio is the geometric mean of the medians of both orders. What
the memory checkpoints took, the ratio and its quartiles are in extra_info, and page faults: what memory
checkpoints take depends on whether the allocator gives memory back between iterations. Under mpiexec the
slowest rank counts. Pages of a mapped checkpoint that are first looked at by a solver count as the solver's time.
"""

import functools
import gc
import itertools
import resource
import time
from statistics import geometric_mean, median, quantiles

import firedrake.adjoint as adjoint
import flows
import numpy as np
from conftest import race
from mpi4py import MPI
from problems import CONTESTANTS, advection, inside, square

from localckpt.storage.store import Store

PROBLEMS = {  # cells along each side, steps, contestants
    "burgers, 8k dofs (the demo)": (flows.burgers, 32, 10, CONTESTANTS[1:]),
    "advection, 60k dofs": (advection, 100, 20, CONTESTANTS[1:4]),
    "advection, 540k dofs": (advection, 300, 20, ("localckpt", "checkpoint_comm")),
    "convection, 21k dofs": (flows.convection, 40, 5, CONTESTANTS[1:4]),
    "wave, 88k dofs": (flows.wave, 70, 20, CONTESTANTS[1:4]),
}
FULL = {
    "advection, 60k dofs": (advection, 100, 20, CONTESTANTS[1:]),
    "burgers, 320k dofs": (flows.burgers, 200, 10, CONTESTANTS[1:4]),
    "wave, 1.4M dofs": (flows.wave, 280, 20, CONTESTANTS[1:4]),
    "convection, 330k dofs": (flows.convection, 160, 5, CONTESTANTS[1:4]),
}


def pytest_generate_tests(metafunc):
    problems = PROBLEMS | (FULL if metafunc.config.getoption("full") else {})
    metafunc.parametrize(
        ("problem", "kind"), [(name, kind) for name, (*_, kinds) in problems.items() for kind in kinds]
    )


def counted(iteration):
    """Bytes that localckpt's tape saves in an iteration, those that differ, those written; the iteration's result."""
    saved, written, distinct = 0, 0, {}
    put = Store.put

    def counting(store, *args, **kwargs):
        nonlocal saved, written
        before = store.summary.written
        stored = put(store, *args, **kwargs)
        saved += stored.nbytes
        written += store.summary.written - before
        distinct[stored.digest] = stored.nbytes
        return stored

    Store.put = counting
    result = iteration()
    Store.put = put
    counts = {"saved": saved, "distinct": sum(distinct.values()), "written": written} if saved else {}
    return {name: MPI.COMM_WORLD.allreduce(count) for name, count in counts.items()}, result


def test_iteration(record, request, problem, kind):
    _, cells, steps, _ = (PROBLEMS | FULL)[problem]
    mesh = square(cells)
    folder = next(iter(request.config.folders.values()))
    pairs, ratios, counts = [], [], {}
    for order in (("memory", kind), (kind, "memory")):
        iterations = both(problem, order, mesh, folder)
        if not pairs:
            (_, memory), (counts, ours) = counted(iterations["memory"]), counted(iterations[kind])
            assert kind == "shared" or all(  # whose mesh is partitioned and numbered anew
                np.allclose(a.dat.data_ro, b.dat.data_ro, rtol=1e-10, atol=1e-14) for a, b in zip(memory, ours)
            )
            del memory, ours
        taken = in_turns(iterations, 6 * request.config.getoption("seconds"))
        pairs += zip(taken["memory"], taken[kind])
        ratios.append([mine[0] / theirs[0] for theirs, mine in zip(taken["memory"], taken[kind])])
        del iterations
        adjoint.set_working_tape(adjoint.Tape())  # lets go of the last one
        gc.collect()

    theirs, mine = (list(map(list, zip(*times))) for times in zip(*pairs))  # of seconds, stores, page faults
    ratio = geometric_mean(map(median, ratios))
    low, _, high = quantiles(itertools.chain(*ratios), n=4)
    record(
        mine[0],
        contestant=kind,
        problem=problem,
        steps=steps,
        memory=median(theirs[0]),
        ratio=ratio,
        spread=[low, high],
        orders=list(map(median, ratios)),
        faults=median(mine[2]),
        **counts,
        **{"store and restore": median(mine[1]), "faults of memory": median(theirs[2])},
    )
    print(
        f"\n{problem:26} {MPI.COMM_WORLD.size} ranks, {kind:16}{median(mine[0]):8.3f} s, {ratio:6.3f} of "
        f"memory; in store and restore {median(mine[1]):7.4f} s"
    )


def both(problem, order, mesh, folder):
    """The iterations of two contestants, their tapes made in that order, warmed up."""
    make, _, steps, _ = (PROBLEMS | FULL)[problem]
    iterations = {kind: make(kind, mesh, steps, folder) for kind in order}
    for iteration in iterations.values():
        iteration()
    return iterations


def in_turns(iterations, seconds):
    """Seconds, seconds in store and restore, and page faults of each iteration of each."""
    return race(
        {name: functools.partial(timed, name, iteration) for name, iteration in iterations.items()}, seconds, least=4
    )


def timed(name, iteration):
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    begin = time.perf_counter()
    iteration()
    seconds = time.perf_counter() - begin
    return seconds, inside[name], resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
