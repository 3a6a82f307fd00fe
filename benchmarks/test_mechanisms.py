"""What each mechanism of the data path takes or gives: iterations without it, beside those with all of them.

`ratio` is to those with all. "arrays in memory" keeps copies and neither hashes nor writes: what is left then
is the copies, the restored Functions and the tape's own work for disk checkpoints.
"""

import contextlib
import gc
import itertools
import time
from functools import cache, partial
from math import inf
from statistics import median, quantiles

import pytest
from conftest import race
from problems import advection, inside, square
from xxhash import xxh3_128_digest

from localckpt.functions import SavedFunction
from localckpt.storage import store, stored
from localckpt.storage.store import Store

PROBLEMS = {"advection, 60k dofs": 100, "advection, 540k dofs": 300}  # cells along each side
STEPS = 20


@contextlib.contextmanager
def patched(owner, **values):
    old = {name: getattr(owner, name) for name in values}
    for name, value in values.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for name, value in old.items():
            setattr(owner, name, value)


def forgetting(store, *args, put=Store.put, **kwargs):
    store._index.clear()
    return put(store, *args, **kwargs)


class Kept:
    def __init__(self, array):
        self.array = array

    @property
    def digest(self):  # that of a mesh's coordinates is looked at
        return xxh3_128_digest(self.array)


def stale(saved, load=SavedFunction.load):
    function = load(saved)
    for dat in function.dat:
        dat.halo_valid = False
    return function


numbers = itertools.count()


@contextlib.contextmanager
def without_hashes():
    with patched(stored, VERIFIED_FOR=inf), patched(store, xxh3_128_digest=lambda array: next(numbers)):
        yield


WITHOUT = {
    "all": contextlib.nullcontext,
    "restores by pread, none mapped": partial(patched, stored, MAP_FROM=inf),
    "no verification": partial(patched, stored, VERIFIED_FOR=inf),
    "every restore verified": partial(patched, stored, VERIFIED_FOR=-1),
    "no repeats sought": partial(patched, Store, put=forgetting),
    "no hash: neither repeats nor verification": without_hashes,
    "halos exchanged after a restore": partial(patched, SavedFunction, load=stale),
    "arrays in memory": partial(
        patched,
        Store,
        put=lambda self, key, array, valid=None: Kept(array.copy()),
        get=lambda self, kept, shape, dtype: kept.array.copy(),
    ),
}


def timed(kind, iteration):
    with WITHOUT.get(kind, contextlib.nullcontext)():
        begin = time.perf_counter()
        iteration()
        return time.perf_counter() - begin, inside["memory" if kind == "memory" else "localckpt"]


@cache
def measured(problem, folder, seconds):
    iterations = {}
    for kind in ["memory", *WITHOUT]:
        mesh = square(PROBLEMS[problem])  # its own: a mesh keeps its checkpoint, which others could not verify
        with WITHOUT.get(kind, contextlib.nullcontext)():
            iterations[kind] = advection("memory" if kind == "memory" else "localckpt", mesh, STEPS, folder)
            iterations[kind]()
    gc.collect()
    return race(
        {kind: partial(timed, kind, iteration) for kind, iteration in iterations.items()}, 40 * seconds, least=5
    )


@pytest.mark.parametrize("kind", ["memory", *WITHOUT])
@pytest.mark.parametrize("problem", PROBLEMS)
def test_without(record, request, problem, kind):
    taken = measured(problem, next(iter(request.config.folders.values())), request.config.getoption("seconds"))
    ratios = [mine[0] / all_[0] for mine, all_ in zip(taken[kind], taken["all"])]
    low, ratio, high = quantiles(ratios, n=4)
    record(
        [times[0] for times in taken[kind]],
        contestant=kind,
        problem=problem,
        ratio=ratio,
        spread=[low, high],
        **{"store and restore": median(times[1] for times in taken[kind])},
    )
