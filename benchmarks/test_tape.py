"""What a tape does and nothing else: a forward sweep saves a state in every step, the reverse sweep reads them.

Repeated, since an optimiser does. `first`: the sweeps of a contestant that has just begun; `later`: those that
find files, and memory, that are already there.
"""

import gc
import itertools
import time
from functools import lru_cache, partial

from conftest import race
from contestants import FILES, TAPES, make, make_function
from mpi4py import MPI

KINDS = [*TAPES, *FILES, "memory", "memcpy"]
CASES = [(10**3, 10), (10**3, 100), (10**3, 1000), (10**3, 10000), (10**5, 20), (10**6, 10)]  # dofs per rank, steps
FULL = [*CASES, (10**6, 50), (10**7, 5)]
# A tenth of the steps that these do in a full run: each of their saves waits for the disk.
SLOW = {"shared": 20, "checkpoint_comm": 100, "viewer": 100, "held viewer": 100, "binary viewer": 100}
SWEEPS = list(itertools.product(["forward", "reverse"], ["first", "later"]))


def pytest_generate_tests(metafunc):
    full = metafunc.config.getoption("full")
    found = [
        (dofs, steps, *sweep, kind)
        for dofs, steps in (FULL if full else CASES)
        for sweep in SWEEPS
        for kind in kinds(steps, full)
    ]
    metafunc.parametrize(
        ("dofs", "steps", "way", "time", "kind"), found, ids=["{:.0e}-{}-{}-{}-{}".format(*case) for case in found]
    )


def kinds(steps, full):
    return [kind for kind in KINDS if steps <= SLOW.get(kind, steps) * (10 if full else 1)]


def sweeps(contestant, steps):
    """Seconds of a forward and of a reverse sweep on this rank."""
    contestant.reset()
    contestant.ready()
    data, save, restore = contestant.data, contestant.save, contestant.restore
    begin = time.perf_counter()
    tokens = []
    for _ in range(steps):
        data[0] += 1
        tokens.append(save())
    middle = time.perf_counter()
    contestant.rest()
    total = 0
    while tokens:
        total += restore(tokens.pop()).sum()
    return middle - begin, time.perf_counter() - middle


@lru_cache(maxsize=1)
def measured(dofs, steps, full, folder, seconds):
    """Of each kind: what its first sweeps took, and the later ones; forward and reverse."""
    found = {kind: {"first": [], "later": []} for kind in kinds(steps, full)}
    for _ in range(3):
        function = make_function(dofs)
        contestants = {kind: make(kind, function, MPI.COMM_SELF, folder) for kind in found}
        taken = race(
            {kind: partial(sweeps, contestant, steps) for kind, contestant in contestants.items()},
            seconds,
            least=2,
            most=10,
        )
        for kind, (first, *later) in taken.items():
            found[kind]["first"].append(first)
            found[kind]["later"] += later
        for contestant in contestants.values():
            contestant.close()
        del contestants, taken
        gc.collect()
    return found


def test(record, request, dofs, steps, way, time, kind):
    (filesystem, folder), *_ = request.config.folders.items()
    option = request.config.getoption
    found = measured(dofs, steps, option("full"), folder, option("seconds"))[kind][time]
    record(
        [pair[way == "reverse"] for pair in found],
        contestant=kind,
        dofs=dofs,
        steps=steps,
        sweep=f"{way} {time}",
        filesystem=filesystem,
    )
