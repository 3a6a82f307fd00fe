"""``localckpt run``: run an unmodified script or module on localckpt."""

import argparse
import os
import runpy
import sys
from importlib.util import find_spec
from typing import Any


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "run",
        help="run an unmodified script or module on localckpt",
        usage="%(prog)s (script.py | -m module) [arguments ...]",
        description="Run a script or module as python does, with the checkpoints of Firedrake's own "
        "enable_disk_checkpointing stored by localckpt.",
        epilog="Exit status: that of the script.",
    )
    parser.add_argument("-m", dest="module", action="store_true", help="the target is a module")
    parser.add_argument("target", help="a script or module that uses Firedrake's enable_disk_checkpointing")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="arguments of the script, PETSc options among them")
    parser.set_defaults(main=main)


def main(options: argparse.Namespace) -> int:
    target = options.target
    sys.argv = [target, *options.arguments]  # PETSc reads its options from here
    sys.path[0] = os.getcwd() if options.module else os.path.dirname(os.path.abspath(target))
    status = check_module(target) if options.module else check_script(target)
    if status:
        return status
    from localckpt.adjoint import patches

    patches.install("run")
    if options.module:
        runpy.run_module(target, run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(target, run_name="__main__")
    return 0


def check_module(name: str) -> int:
    """The exit status of ``python -m`` for a missing module, after its message, or 0."""
    package = name.partition(".")[0]
    if find_spec(package) is not None:
        return 0
    print(f"localckpt run: No module named {package}", file=sys.stderr)
    return 1


def check_script(path: str) -> int:
    """The exit status of ``python`` for a script that cannot be opened, after its message, or 0."""
    try:
        if not os.path.isdir(path):  # Python runs the __main__.py in a directory
            open(path, "rb").close()
    except OSError as exc:
        reason = f"[Errno {exc.errno}] {exc.strerror}"
        print(f"localckpt run: can't open file {os.path.abspath(path)!r}: {reason}", file=sys.stderr)
        return 2
    return 0
