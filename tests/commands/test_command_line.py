"""The command line that all commands share."""

from importlib.metadata import version

import pytest

import localckpt


@pytest.mark.parametrize("command", ["run", "status", "plan", "verify", "doctor", "bench", "clean"])
def test_help_explains_the_exit_status(run, command):
    done = run(command, "--help")
    assert done.returncode == 0 and "Exit status" in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["bench", "--timestep", "0"],
        ["bench", "--seconds", "soon"],
        ["verify", "--within", "soon"],
        ["doctor", "--loud"],
        ["run", "--resume-every", "-1", "script.py"],
    ],
    ids=" ".join,
)
def test_a_wrong_argument_is_status_2(run, arguments):
    done = run(*arguments)
    assert done.returncode == 2 and done.stderr.startswith("usage: python -m localckpt")


def test_version_is_that_of_the_installed_package(run):
    done = run("--version")
    assert done.returncode == 0 and done.stdout == f"localckpt {localckpt.__version__}\n"
    assert localckpt.__version__ == version("localckpt")
