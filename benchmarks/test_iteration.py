"""An optimisation iteration (functional and gradient), divided by the same with memory checkpoints.

Two tapes in one process, their iterations interleaved: a noisy machine hits both alike. What
the memory checkpoints took, the ratio and its quartiles are in extra_info, and page faults: what memory
checkpoints take depends on whether the allocator gives memory back between iterations. Under mpiexec the
slowest rank counts. Pages of a mapped checkpoint that are first looked at by a solver count as the solver's time.
"""

import functools
import gc
import resource
import time
from statistics import median, quantiles

import flows
import numpy as np
from conftest import race
from mpi4py import MPI
from problems import CONTESTANTS, advection, inside, square

from localckpt.store import Store

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
    metafunc.parametrize(("problem", "kind"), [(name, kind) for name, (*_, kinds) in problems.items()
                                               for kind in kinds])


def counted(iteration):
    """Bytes that localckpt's tape saves in an iteration, those that differ, those written; the iteration's result."""
    saved, written, distinct = 0, 0, {}
    put = Store.put

    def counting(store, *args):
        nonlocal saved, written
        before = store.summary.written
        stored = put(store, *args)
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
    make, cells, steps, _ = (PROBLEMS | FULL)[problem]
    mesh = square(cells)
    folder = next(iter(request.config.folders.values()))
    iterations = {name: make(name, mesh, steps, folder) for name in ("memory", kind)}
    for iteration in iterations.values():  # to warm up
        iteration()
    counts, gradients = zip(*[counted(iteration) for iteration in iterations.values()])
    if kind != "shared":  # whose mesh is partitioned and numbered anew
        for memory, ours in zip(*gradients):
            assert np.allclose(ours.dat.data_ro, memory.dat.data_ro, rtol=1e-10, atol=1e-14)

    def timed(name):
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        begin = time.perf_counter()
        iterations[name]()
        seconds = time.perf_counter() - begin
        return seconds, inside[name], resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults

    taken = race({name: functools.partial(timed, name) for name in iterations},
                 8*request.config.getoption("seconds"), least=8)
    seconds = {name: [times[0] for times in taken[name]] for name in taken}
    _, stores, faults = map(median, zip(*taken[kind]))
    low, ratio, high = quantiles([a/b for a, b in zip(seconds[kind], seconds["memory"])], n=4)
    record(seconds[kind], contestant=kind, problem=problem, steps=steps, memory=median(seconds["memory"]),
           ratio=ratio, spread=[low, high], faults=faults, **counts[1],
           **{"store and restore": stores, "faults of memory": median(times[2] for times in taken["memory"])})
    print(f"\n{problem:26} {MPI.COMM_WORLD.size} ranks, {kind:16}{median(seconds[kind]):8.3f} s, {ratio:6.3f} of "
          f"memory; in store and restore {stores:7.4f} s")
    iterations.clear()
    del gradients
    gc.collect()
