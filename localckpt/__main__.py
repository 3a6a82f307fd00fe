"""``python -m localckpt run script.py args…``: Firedrake's disk checkpointing on localckpt."""

import argparse
import os
import runpy
import sys


def run(target, arguments, module):
    """Run a script or module as ``python`` does, with Firedrake's own
    ``enable_disk_checkpointing`` making localckpt's checkpointers."""
    sys.argv = [target, *arguments]  # PETSc reads its options from here
    sys.path[0] = os.getcwd() if module else os.path.dirname(os.path.abspath(target))
    from localckpt import adjoint, seam
    seam.install(adjoint.DiskCheckpointer, adjoint.LocalCheckpoint, everywhere=True)
    if module:
        runpy.run_module(target, run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(target, run_name="__main__")


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m localckpt", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")
    command = commands.add_parser("run", help="run an unmodified script or module on localckpt",
                                  usage="%(prog)s (script.py | -m module) [arguments ...]")
    command.add_argument("-m", dest="module", action="store_true", help="the target is a module")
    command.add_argument("target", help="script or module that uses Firedrake's enable_disk_checkpointing")
    command.add_argument("arguments", nargs=argparse.REMAINDER, help="its own arguments")
    options = parser.parse_args(argv)
    run(options.target, options.arguments, options.module)


if __name__ == "__main__":
    main()
