"""``localckpt trajectory``: the options with which a program in C or Fortran stores its trajectory by localckpt."""

import argparse
import os
import shlex
import sys
import sysconfig
from importlib.util import find_spec
from typing import Any

import petsc4py

import localckpt


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "trajectory",
        help="print the options for a C or Fortran program with TSAdjoint",
        description="Print the PETSc options with which an unmodified program in C or Fortran stores the trajectory of "
        "TSAdjoint by localckpt, for the PETSc that localckpt was compiled for.",
        epilog="Exit status: 0, or 1 if this Python cannot be used from such a program.",
    )
    parser.set_defaults(main=main)


def main(options: argparse.Namespace) -> int:
    library = os.path.join(os.path.dirname(localckpt.__file__), "liblocalckpt.so")
    reason = ""
    if not os.path.exists(library):
        reason = f"there is no {library}: compile localckpt again"
    elif not sysconfig.get_config_var("Py_ENABLE_SHARED"):
        reason = f"{sys.executable} has no shared library: use a Python that was configured with --enable-shared"
    if reason:
        print(f"localckpt trajectory: {reason}", file=sys.stderr)
        return 1
    petsc = petsc4py.get_config()["PETSC_DIR"]
    if find_spec("petsc") and os.environ.get("PETSC_DIR") != petsc:  # pip's PETSc does not know where it is
        print(f"localckpt trajectory: PETSc starts Python only with PETSC_DIR={petsc}", file=sys.stderr)
    print(shlex.join(["-dll_append", library, "-python", sys.executable, "-ts_trajectory_type", "localckpt"]))
    return 0
