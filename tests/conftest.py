"""Fixtures for tests that run on any number of ranks.

A test that other ranks could be left waiting in (one rank alone goes wrong, a full disk)
runs as a script of its own under mpiexec: what hangs there ends at its time limit as one
failed test, not as a stuck session.
"""

import os
import signal
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pytest
from mpi4py import MPI
from petsc4py import PETSc

from localckpt.storage.store import Store

WORLD = MPI.COMM_WORLD

PRELUDE = """\
import os, sys
import numpy as np
from mpi4py import MPI
from petsc4py import PETSc
import localckpt
from localckpt import VecFile
comm = MPI.COMM_WORLD


def attempt(call, *args):
    '''Class and words of what a call raises on each rank.'''
    try:
        call(*args)
    except Exception as exc:
        result = type(exc).__name__, str(exc)
    else:
        result = "nothing", ""
    return comm.allgather(result)

"""


def pytest_addoption(parser):
    parser.addoption("--soak", type=int, default=12, metavar="N", help="optimisation iterations of the soak test")


@pytest.fixture
def shared_tmp(tmp_path):
    """One fresh folder for all ranks."""
    return WORLD.bcast(tmp_path)


@pytest.fixture
def make_vec():
    """make_vec(comm, n, bs=1): a Vec with n own entries, different in every entry and rank."""

    def make(comm, n, bs=1):
        vec = PETSc.Vec().create(comm)
        vec.setSizes((n, None), bs)
        vec.setUp()
        values = np.arange(n) + 1000 * WORLD.rank + 1 / 3  # no float32 is a third
        vec.array[:] = values * (1 + 2j) if vec.array.dtype.kind == "c" else values
        return vec

    return make


@pytest.fixture
def raises_everywhere():
    """raises_everywhere(kind, ...): the block raises one and the same exception on every rank.

    With `file` and `dataset` its message has to name them and, on several ranks, the rank.
    """

    @contextmanager
    def check(kind, builtin=Exception, *, file=None, dataset=None, match="", rank=None):
        error = None
        try:
            yield
        except Exception as exc:
            error = exc
        everywhere = WORLD.allgather((type(error).__name__, str(error)))
        assert type(error) is kind and isinstance(error, builtin), everywhere
        assert set(everywhere) == {everywhere[0]}
        assert match in str(error)
        if file is not None:
            assert error.file == str(file) and repr(str(file)) in str(error)
            if WORLD.size > 1:
                assert error.rank in range(WORLD.size) and f"rank {error.rank}" in str(error)
        if rank is not None:
            assert error.rank == rank
        if dataset is not None:
            assert error.dataset == dataset and repr(dataset) in str(error)

    return check


@pytest.fixture
def run_script(tmp_path):
    """run_script(code, *args, ranks=0, before=(), seconds=60): run `code` after PRELUDE.

    On `ranks` ranks of mpiexec (0: plain Python), all of it as last arguments of the
    command `before`.  Returns the CompletedProcess, whatever its return code.
    """

    def run(code, *args, ranks=0, before=(), seconds=60):
        script = tmp_path / "script.py"
        script.write_text(PRELUDE + code)
        command = [sys.executable, str(script), *map(str, args)]
        if ranks:
            command = ["mpiexec", "-n", str(ranks), *command]
        command = [*before, *command]
        # mpiexec itself ends ranks that hang; were it alone killed, they would live on.
        env = {**os.environ, "MPIEXEC_TIMEOUT": str(seconds)}
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, start_new_session=True
        )
        try:
            out, err = process.communicate(timeout=seconds + 15)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate(timeout=10)
            raise
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    return run


@pytest.fixture(params=["own", "world"])
def comm(request):
    """The communicator of a file: of this rank alone, or of all ranks."""
    return MPI.COMM_SELF if request.param == "own" else MPI.COMM_WORLD


@pytest.fixture
def path(comm, shared_tmp):
    """A path for a file on `comm`."""
    return str(shared_tmp / (f"{MPI.COMM_WORLD.rank}.h5" if comm == MPI.COMM_SELF else "all.h5"))


@pytest.fixture(params=["direct", "viewer"])
def store(comm, path, request):
    """A store on `comm`, with one engine after the other."""
    return Store(comm, path, engine=request.param)
