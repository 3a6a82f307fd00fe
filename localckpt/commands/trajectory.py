"""``localckpt trajectory``: the options with which a program in C or Fortran stores its trajectory by localckpt."""

import argparse
import os
import shlex
import sys
import sysconfig
from importlib.util import find_spec
from typing import Any

import localckpt

PACKAGE = os.path.dirname(localckpt.__file__)


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "trajectory",
        help="print the options for a C or Fortran program with TSAdjoint",
        description="Print the PETSc options with which an unmodified program in C or Fortran stores the trajectory of "
        "TSAdjoint by localckpt, for the PETSc that localckpt was compiled for.",
        epilog="Exit status: 0, or 1 if this Python cannot be used from such a program.",
    )
    parser.add_argument(
        "--env", action="store_true", help="print the environment variables that it needs instead, for env(1)"
    )
    parser.set_defaults(main=main)


def main(options: argparse.Namespace) -> int:
    library = os.path.join(PACKAGE, "liblocalckpt.so")
    reason = ""
    if not os.path.exists(library):
        reason = f"there is no {library}: compile localckpt again"
    elif not sysconfig.get_config_var("Py_ENABLE_SHARED"):
        reason = f"{sys.executable} has no shared library: use a Python that was configured with --enable-shared"
    if reason:
        print(f"localckpt trajectory: {reason}", file=sys.stderr)
        return 1
    if options.env:
        print(shlex.join(f"{name}={value}" for name, value in environment().items()))
    else:
        print(shlex.join(["-dll_append", library, "-python", sys.executable, "-ts_trajectory_type", "localckpt"]))
    return 0


def environment() -> dict[str, str]:
    """Environment variables without which PETSc does not start this Python inside a program."""
    import petsc4py  # the other commands work without it

    variables = {}
    if find_spec("petsc"):  # pip's PETSc does not know where it is
        variables["PETSC_DIR"] = petsc4py.get_config()["PETSC_DIR"]
    if tuple(map(int, petsc4py.__version__.split(".")[:2])) < (3, 26):  # it looks for Python along PATH
        variables["PYTHONHOME"] = sys.base_prefix
        variables["PYTHONPATH"] = os.pathsep.join([os.path.dirname(PACKAGE), *filter(os.path.isdir, sys.path[1:])])
    return variables
