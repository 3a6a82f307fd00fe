"""What every test here needs: a tape of its own, and nothing left switched on."""

import pytest
from firedrake.adjoint import (
    continue_annotation,
    pause_annotation,
    pause_disk_checkpointing,
    set_working_tape,
)

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
