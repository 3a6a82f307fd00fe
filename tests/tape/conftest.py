"""What every test here needs: a tape of its own, and nothing left switched on."""

import pytest
from firedrake.adjoint import (
    continue_annotation,
    pause_annotation,
    pause_disk_checkpointing,
    set_working_tape,
)

from localckpt import seam
from localckpt.adjoint import DiskCheckpointer, LocalCheckpoint


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
    seam.uninstall()
    yield
    seam.install(DiskCheckpointer, LocalCheckpoint)
