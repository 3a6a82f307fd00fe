"""Real faults: system calls that fail, disks that are full."""

import os
import subprocess
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    """system_calls.c, compiled."""
    path = tmp_path_factory.mktemp("shim") / "system_calls.so"
    source = Path(__file__).with_name("system_calls.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-Wall", "-Werror", "-o", path, source, "-ldl"], check=True)
    return path


@pytest.fixture
def faulty(library):
    """faulty(fault, ranks, rank=None, least=0): the beginning of a command in which system calls fail."""

    def command(fault, ranks=0, rank=None, least=0):
        only = [f"FAULT_LEAST={least}"] + ([] if rank is None else [f"FAULT_RANK={rank}"])
        env = ["env", f"LD_PRELOAD={library}", f"FAULT={fault}", *only]
        return ["mpiexec", "-n", str(ranks), *env] if ranks else env

    return command


@pytest.fixture
def small_disk(tmp_path):
    """small_disk(size): a folder, and the beginning of a command that sees a disk of that size there."""

    def make(size):
        folder = tmp_path / "small"
        folder.mkdir()
        root = [] if os.getuid() == 0 else ["--map-root-user"]
        return folder, [
            "unshare",
            "--mount",
            *root,
            "sh",
            "-c",
            f'mount -t tmpfs -o size={size} none {folder} && exec "$@"',
            "sh",
        ]

    return make
