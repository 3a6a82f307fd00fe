"""An optimisation iteration (functional and gradient), divided by the same with memory checkpoints.

Two tapes in one process, their iterations interleaved: a noisy machine hits both alike. What
the memory checkpoints took, and the ratio, are in extra_info. Under mpiexec the slowest
rank counts.
"""

import time
from statistics import median

import numpy as np
import pytest
from mpi4py import MPI
from problems import CONTESTANTS, advection, inside, square

WARM_UP = 2
ROUNDS = {"shared": 3, "viewer": 6, "checkpoint_comm": 6}  # as long as they take


@pytest.mark.parametrize("kind", CONTESTANTS[1:])
@pytest.mark.parametrize("cells", [100, 300], ids=["60k dofs", "540k dofs"])
def test_iteration(benchmark, cells, kind):
    mesh = square(cells)
    iterations = {name: advection(name, mesh) for name in ("memory", kind)}
    seconds = {name: [] for name in iterations}
    spent = {name: [] for name in iterations}
    gradients = {}

    def timed(name):
        MPI.COMM_WORLD.barrier()
        begin = time.perf_counter()
        gradients[name] = iterations[name]()
        slowest = MPI.COMM_WORLD.allreduce(time.perf_counter() - begin, MPI.MAX)
        seconds[name].append(slowest)
        spent[name].append(MPI.COMM_WORLD.allreduce(inside[name], MPI.MAX))

    benchmark.pedantic(timed, args=(kind,), setup=lambda: timed("memory"), warmup_rounds=WARM_UP,
                       rounds=ROUNDS.get(kind, 30 if cells == 100 else 15))
    if kind != "shared":  # whose mesh is partitioned and numbered anew
        for ours, memory in zip(gradients[kind], gradients["memory"]):
            assert np.allclose(ours.dat.data_ro, memory.dat.data_ro, rtol=1e-10, atol=1e-14)
    ratio = median(a/b for a, b in zip(seconds[kind][WARM_UP:], seconds["memory"][WARM_UP:]))
    benchmark.extra_info.update({
        "ranks": MPI.COMM_WORLD.size, "memory": median(seconds["memory"][WARM_UP:]), "ratio": ratio,
        "store and restore": median(spent[kind][WARM_UP:])})
    if MPI.COMM_WORLD.rank == 0:
        print(f"\n{cells**2*6:7} dofs, {MPI.COMM_WORLD.size} ranks, {kind:16}"
              f"{median(seconds[kind][WARM_UP:]):8.3f} s, {ratio:6.3f} of memory; "
              f"in store and restore {median(spent[kind][WARM_UP:]):7.4f} s")
