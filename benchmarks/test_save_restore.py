"""One save and one restore, as often as time allows; the contestants take turns.

`save`: numbers that were not stored before. `again`: numbers that are stored. `restore`: what has just
been stored, last first, and all of it read once. `restore again`: the same within a second. `cold`: after its
bytes went to the disk and out of the page cache.
"""

import functools
import gc
import itertools
import os
import time
from collections import deque

import psutil
import pytest
from conftest import race
from contestants import FILES, OTHERS, TAPES, WORLD, drop_cache, make, make_function
from mpi4py import MPI

SIZES = [10**3, 10**4, 10**5, 10**6, 10**7]
KEPT = 4  # checkpoints that are alive at a time
NEW = [*TAPES, *FILES, *OTHERS]
STORED = {"again": [*TAPES[:3], "hash"], "restore again": [*TAPES[:3], "memory"]}
ON_FILES = [*TAPES, *FILES]


def communicator(sharing):
    """Of the ranks that share a file: "rank", "group" (pairs), "shared"."""
    if sharing == "group":
        return WORLD.Split(WORLD.rank // 2)
    return WORLD if sharing == "shared" else MPI.COMM_SELF


def pytest_generate_tests(metafunc):
    folders = metafunc.config.folders
    sharings = ["rank", "group", "shared"] if WORLD.size > 2 else ["rank", "shared"][: WORLD.size]
    most = (
        psutil.virtual_memory().total / 2 / len(ON_FILES) / (KEPT + 1) / WORLD.size / 8
    )  # dofs: so many that caches hold
    full = metafunc.config.getoption("full")
    found, names = [], []
    for (filesystem, folder), sharing, dofs in itertools.product(folders.items(), sharings, SIZES):
        main = sharing == "rank" and folder == next(iter(folders.values()))
        if dofs > most or dofs > 10**6 and not full and (not main or WORLD.size > 1):
            continue
        operations = dict.fromkeys(["save", "restore"], NEW if sharing == "rank" else ON_FILES)
        if main:
            operations |= STORED | {"cold": ON_FILES}
        if dofs > 10**6 and not full:  # the shared file takes seconds
            operations = {
                operation: [kind for kind in kinds if kind != "shared"] for operation, kinds in operations.items()
            }
        case = dofs, sharing, filesystem, operations
        for operation, kinds in operations.items():
            found += [(case, operation, kind) for kind in kinds]
            names += [f"{dofs:.0e}-{sharing}-{filesystem}-{operation}-{kind}" for kind in kinds]
    metafunc.parametrize(("case", "operation", "kind"), found, ids=names, indirect=["case"], scope="module")


@pytest.fixture(scope="module")
def case(request):
    found = Case(request.config, *request.param)
    yield found
    found.close()


class Case:
    """The contestants of one size and place; an operation is measured for all of them at once."""

    def __init__(self, config, dofs, sharing, filesystem, operations):
        self.seconds, self.operations = config.getoption("seconds"), operations
        self.comm = communicator(sharing)
        function = make_function(dofs)
        kinds = dict.fromkeys(itertools.chain(*operations.values()))
        self.contestants = {kind: make(kind, function, self.comm, config.folders[filesystem]) for kind in kinds}
        self.warm = False
        self.alive = {kind: deque(maxlen=KEPT) for kind in kinds}
        self.info = {"dofs": dofs, "bytes": function.dat.data_ro.nbytes, "sharing": sharing, "filesystem": filesystem}

    @functools.cache  # noqa: B019 (the case goes soon)
    def race(self, operation):
        turns = {kind: Turn(self.contestants[kind], self.alive[kind], operation) for kind in self.operations[operation]}
        least = 2 if self.warm else KEPT + 2  # until files need not grow
        taken = {kind: min(seconds) for kind, seconds in race(turns, 0.5, least, least).items()}
        for kind, turn in turns.items() if operation != "cold" else ():
            # The limits as many as localckpt, which is to be compared with them: caches then help all alike.
            turn.batch = max(1, min(turn.most, int(5e-4 / max(taken[kind], taken["localckpt"]))))
        self.warm = True
        return race(turns, self.seconds)

    def close(self):
        self.alive.clear()
        for contestant in self.contestants.values():
            contestant.close()
        self.contestants.clear()
        Case.race.cache_clear()
        gc.collect()
        if self.comm not in (WORLD, MPI.COMM_SELF):
            self.comm.Free()


class Turn:
    """Seconds of one operation on this rank."""

    def __init__(self, contestant, alive, operation):
        self.contestant, self.alive, self.operation = contestant, alive, operation
        self.batch = KEPT if operation == "cold" else 1  # operations in a row
        self.most = 32 if operation in ("save", "again") else KEPT

    def __call__(self):
        if WORLD.rank == 0:
            os.sync()  # what others have left, which their fsync would wait for
        WORLD.barrier()
        self.contestant.ready()
        seconds = (self.saves if self.operation in ("save", "again") else self.restores)()
        self.contestant.rest()
        return seconds / self.batch

    def saves(self):
        data, save, keep = self.contestant.data, self.contestant.save, self.alive.append
        change = self.operation != "again"
        begin = time.perf_counter()
        for _ in range(self.batch):
            data[0] += change  # other numbers, in no time
            keep(save())
        return time.perf_counter() - begin

    def restores(self):
        restore = self.contestant.restore
        self.saves()
        tokens = list(self.alive)[: -self.batch - 1 : -1]  # as in a sweep in reverse
        if self.operation == "restore again":
            for token in tokens:
                restore(token).sum()
        if self.operation == "cold":
            drop_cache(self.contestant.folder)
            WORLD.barrier()
        begin = time.perf_counter()
        for token in tokens:
            restore(token).sum()
        return time.perf_counter() - begin


def test(record, case, operation, kind):
    record(case.race(operation)[kind], contestant=kind, operation=operation, **case.info)
