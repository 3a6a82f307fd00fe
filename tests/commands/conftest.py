"""Commands are run as users run them, in processes of their own, but for most tests of verify."""

import os
import resource
import subprocess
import sys

import pytest


@pytest.fixture
def run():
    """run(*arguments, ranks=0, limits=(), **variables): the finished ``python -m localckpt``, whatever its status.

    On so many ranks of mpiexec (0: plain Python), with resource limits and environment variables.
    """

    def run(*arguments, ranks=0, limits=(), **variables):
        command = [sys.executable, "-m", "localckpt", *map(str, arguments)]
        if ranks:
            command = ["mpiexec", "-n", str(ranks), *command]
        return subprocess.run(
            command,
            env={**os.environ, "MPIEXEC_TIMEOUT": "60", **variables},
            text=True,
            timeout=90,
            capture_output=True,
            preexec_fn=lambda: [resource.setrlimit(which, (most, most)) for which, most in limits],
        )

    return run


@pytest.fixture
def missing(tmp_path):
    """missing(name): environment variables with which that package cannot be imported."""

    def hide(name):
        directory = tmp_path / "hidden"
        directory.mkdir(exist_ok=True)
        (directory / f"{name}.py").write_text(
            f"raise ModuleNotFoundError(\"No module named '{name}'\", name='{name}')\n"
        )
        return {"PYTHONPATH": os.pathsep.join([str(directory), os.environ.get("PYTHONPATH", "")])}

    return hide


@pytest.fixture
def claimed(tmp_path):
    """claimed(name, version): environment variables with which that version of a package seems to be installed."""

    def claim(name, version):
        directory = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
        directory.mkdir()
        (directory / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        return {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}

    return claim
