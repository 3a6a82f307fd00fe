"""An optimisation iteration (functional and gradient), divided by the same with memory checkpoints.

All contestants work in one process, their iterations interleaved: a noisy machine hits all
alike. The benchmarked function is localckpt's; what the others took is in extra_info.
Under mpiexec the slowest rank counts.
"""

import time
from statistics import median

import numpy as np
import pytest
from mpi4py import MPI
from problems import CONTESTANTS, advection, inside, square

ROUNDS, WARM_UP = 10, 2


def slowest(seconds):
    return MPI.COMM_WORLD.allreduce(seconds, MPI.MAX)


@pytest.mark.parametrize("cells, contestants", [(100, CONTESTANTS), (300, CONTESTANTS[:4])],
                         ids=["60k dofs", "540k dofs"])
def test_iteration(benchmark, cells, contestants):
    mesh = square(cells)
    iterations = {kind: advection(kind, mesh) for kind in contestants}
    seconds = {kind: [] for kind in contestants}
    spent = {kind: [] for kind in contestants}
    gradients = {}

    def timed(kind):
        MPI.COMM_WORLD.barrier()
        begin = time.perf_counter()
        gradients[kind] = iterations[kind]()
        seconds[kind].append(slowest(time.perf_counter() - begin))
        spent[kind].append(slowest(inside[kind]))

    def others():
        for kind in contestants:
            if kind != "localckpt" and not (kind == "shared" and len(seconds[kind]) > WARM_UP + 1):
                timed(kind)

    benchmark.pedantic(timed, args=("localckpt",), setup=others, rounds=ROUNDS, warmup_rounds=WARM_UP)
    for kind in contestants:
        # To rounding: a shared file's mesh is partitioned and numbered anew.
        if kind != "shared":
            for ours, memory in zip(gradients[kind], gradients["memory"]):
                assert np.allclose(ours.dat.data_ro, memory.dat.data_ro, rtol=1e-10, atol=1e-14)
        rounds = min(len(seconds[kind]), len(seconds["memory"]))
        ratios = [a/b for a, b in zip(seconds[kind][WARM_UP:rounds], seconds["memory"][WARM_UP:rounds])]
        benchmark.extra_info[kind] = {"seconds": median(seconds[kind][WARM_UP:]), "ratio": median(ratios),
                                      "store and restore": median(spent[kind][WARM_UP:])}
    if MPI.COMM_WORLD.rank == 0:
        print(f"\n{mesh.num_cells()*3} dofs on rank 0 of {MPI.COMM_WORLD.size}; seconds, ratio to memory, "
              "seconds in store and restore")
        for kind, info in benchmark.extra_info.items():
            print(f"  {kind:16}{info['seconds']:9.4f}{info['ratio']:8.3f}{info['store and restore']:9.4f}")
