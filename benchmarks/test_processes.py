"""An optimisation iteration against memory checkpoints, in processes that have nothing but these two tapes.

What memory checkpoints take depends on whether the C library keeps what was freed. That differs from one process to
the next, and is another thing where other tapes have been before (`test_iteration.py`). So there are several
processes, half of them with the one tape made first and half with the other: `ratio` is the median of their medians.
What each took, and page faults on its slowest rank, are in extra_info.
"""

import json
import os
import subprocess
import sys
from statistics import median, quantiles

import pytest
from conftest import WORLD
from problems import square
from test_iteration import PROBLEMS, both, in_turns

PROCESSES = 6
SECONDS = 18  # of each process's iterations
ADVECTION = [problem for problem in PROBLEMS if problem.startswith("advection")]


def measure(folder, problem, *order):
    """What the child does: prints what the iterations of both tapes took, on the slowest rank."""
    taken = in_turns(both(problem, order, square(PROBLEMS[problem][1]), folder), SECONDS)
    if WORLD.rank == 0:
        print(json.dumps(taken))


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("problem", ADVECTION)
def test_iteration_in_its_own_process(record, request, problem, n):
    folder = next(iter(request.config.folders.values()))
    processes = []
    for number in range(PROCESSES):
        order = ["memory", "localckpt"][:: (-1) ** number]
        run = subprocess.run(
            ["mpiexec", "-n", str(n), sys.executable, __file__, folder, problem, *order],
            check=True,
            env={**os.environ, "MPIEXEC_TIMEOUT": "300"},
            stdout=subprocess.PIPE,
            text=True,
        )
        taken = json.loads(run.stdout.splitlines()[-1])
        theirs, mine = (list(zip(*taken[kind])) for kind in ("memory", "localckpt"))  # seconds, stores, page faults
        processes.append(
            {
                "order": order,
                "memory": median(theirs[0]),
                "localckpt": median(mine[0]),
                "ratio": median(own / other for own, other in zip(mine[0], theirs[0])),
                "store and restore": median(mine[1]),
                "faults of memory": median(theirs[2]),
                "faults": median(mine[2]),
            }
        )
    ratios = [process["ratio"] for process in processes]
    low, middle, high = quantiles(ratios, n=4)
    record(
        [process["localckpt"] for process in processes],
        contestant="localckpt",
        problem=problem,
        ranks=n,
        oversubscribed=n > os.cpu_count(),
        ratio=middle,
        spread=[low, high],
        processes=processes,
    )
    print(f"\n{problem:26} {n} ranks, {middle:6.3f} of memory; {', '.join(f'{ratio:.3f}' for ratio in sorted(ratios))}")


if __name__ == "__main__":
    arguments = sys.argv[1:]
    sys.argv[1:] = []  # PETSc reads them, too
    measure(*arguments)
