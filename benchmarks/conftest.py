"""How the benchmarks run and record: on every rank, the slowest one counts, rank 0 writes.

Contestants take turns (:func:`race`), so what is measured is known before pytest-benchmark
asks for it: it gets a clock that only :func:`record` moves on. Its statistics, JSON files and
comparisons across commits then work as always.
"""

import atexit
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version

import numpy as np
import psutil
import pytest
from mpi4py import MPI

from localckpt.storage.directories import Directory

WORLD = MPI.COMM_WORLD
HERE = os.path.dirname(os.path.abspath(__file__))
BEGIN = time.perf_counter()


def pytest_addoption(parser):
    group = parser.getgroup("localckpt")
    group.addoption(
        "--dir",
        action="append",
        help="a folder to write to; several: each in turn, the first one for "
        "everything, the others for saves and restores (the system's temporary folder, /dev/shm)",
    )
    group.addoption("--budget", type=float, default=float("inf"), help="seconds after which nothing new is begun")
    group.addoption("--full", action="store_true", help="all sizes and problems: hours")
    group.addoption("--seconds", type=float, default=1.5, help="about so long for each race of all contestants")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):
    if WORLD.rank:  # the others measure, too, but have nothing to say
        config.option.benchmark_json = None
        sys.stdout = open(os.devnull, "w")
    folders = config.getoption("dir") or [tempfile.gettempdir(), "/dev/shm"]
    scratch = None
    if WORLD.rank == 0:
        scratch = [
            (Directory.at(folder).filesystem, tempfile.mkdtemp(prefix="localckpt_bench_", dir=folder))
            for folder in folders
        ]
        for _, folder in scratch:
            atexit.register(shutil.rmtree, folder, ignore_errors=True)  # after all that begins later is done with it
    config.folders = dict(WORLD.bcast(scratch))  # by filesystem: names are to be the same everywhere


def pytest_collection_modifyitems(items):
    for item in items:  # the contestant comes last in every name
        item.add_marker(pytest.mark.benchmark(timer=slowest_rank, group=item.name.rpartition("-")[0] + "]"))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    if WORLD.bcast(time.perf_counter() - BEGIN) > item.config.getoption("budget"):
        pytest.skip("out of time")


def pytest_benchmark_update_machine_info(machine_info):
    machine_info["cpu"].pop("flags", None)  # a line for each, in every file
    machine_info["memory"] = psutil.virtual_memory().total
    machine_info["versions"] = {name: version(name) for name in ("firedrake", "petsc4py", "h5py", "mpi4py", "numpy")}


def pytest_benchmark_update_commit_info(commit_info):
    code = ["git", "status", "--porcelain", "--", "../src", "../localckpt", "*.py"]  # other results do not count
    commit_info["dirty"] = bool(subprocess.run(code, cwd=HERE, capture_output=True).stdout)


def pytest_benchmark_update_json(output_json):
    for benchmark in output_json["benchmarks"]:
        stats = benchmark["stats"]
        del stats["data"], benchmark["options"], benchmark["params"]
        for name in ("ld15iqr", "hd15iqr", "iqr_outliers", "stddev_outliers", "total"):  # nor does comparing need these
            del stats[name]
        stats.update({name: float(f"{value:.9g}") for name, value in stats.items() if isinstance(value, float)})


# ------------------------------------------------------------------------ measuring


class slowest_rank_clock:
    now = 0.0


def slowest_rank():
    return slowest_rank_clock.now


def advance(seconds):
    slowest_rank_clock.now += seconds


@pytest.fixture
def record(benchmark):
    """record(seconds, **info): what was measured, in each round, on the slowest rank."""

    def record(seconds, **info):
        node = WORLD.Split_type(MPI.COMM_TYPE_SHARED)
        benchmark.extra_info.update({"ranks": WORLD.size, "oversubscribed": node.size > os.cpu_count(), **info})
        node.Free()
        rounds = iter(seconds)
        benchmark.pedantic(lambda: advance(next(rounds)), rounds=len(seconds))

    return record


def race(turns, seconds, least=3, most=40):
    """What each turn took on the slowest rank, the turns interleaved. Collective on COMM_WORLD.

    Parameters
    ----------
    turns : dict of str to callable
        Each returns the seconds that it took on this rank, one number or several.
    seconds : float
        In all; who has had an equal share of it takes no more turns.
    least, most : int, optional
        Rounds.

    Returns
    -------
    dict of str to list
    """
    taken = {name: [] for name in turns}
    spent = dict.fromkeys(turns, 0.0)
    order = list(turns)
    shuffle = random.Random(1).shuffle  # nobody always follows the same one
    for number in range(most):
        shuffle(order)
        for name in order:
            if number >= least and spent[name] > seconds / len(turns):
                continue
            WORLD.barrier()
            begin = time.perf_counter()
            mine = np.append(turns[name](), 0.0)
            mine[-1] = time.perf_counter() - begin
            WORLD.Allreduce(MPI.IN_PLACE, mine, MPI.MAX)
            spent[name] += mine[-1]
            taken[name].append(mine[:-1].tolist() if len(mine) > 2 else float(mine[0]))
    return taken
