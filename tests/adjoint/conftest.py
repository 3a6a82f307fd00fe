"""What every test here needs: a tape of its own, and nothing left switched on."""

from contextlib import contextmanager

import firedrake as fd
import pytest
from firedrake.adjoint import (
    continue_annotation,
    pause_annotation,
    pause_disk_checkpointing,
    set_working_tape,
)
from mpi4py import MPI

from localckpt.adjoint import patches


@pytest.fixture(autouse=True)
def tape():
    """A new working tape that annotates."""
    with set_working_tape() as tape:
        continue_annotation()
        yield tape
    pause_annotation()
    pause_disk_checkpointing()


@pytest.fixture
def detached():
    """Firedrake without localckpt."""
    patches.uninstall()
    yield
    patches.uninstall()  # what the test has installed
    patches.install()


@pytest.fixture
def end_of_run():
    """No test leaves a run behind, or what it has replaced."""
    from jobs import uninstall  # it imports what other tests must not need

    yield
    uninstall()


@pytest.fixture
def solves(end_of_run, monkeypatch):
    from jobs import Solves, uninstall

    counted = Solves()
    monkeypatch.setattr(fd.NonlinearVariationalSolver, "solve", lambda *args, **kwargs: counted.solve(*args, **kwargs))
    yield counted
    uninstall()  # before what was there before is put back


@pytest.fixture
def warnings_on_rank_0(caplog):
    @contextmanager
    def check(match):
        yield
        assert any(match in record.getMessage() for record in caplog.records) == (MPI.COMM_WORLD.rank == 0)

    return check
