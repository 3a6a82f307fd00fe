"""Adjoint checkpoints on node-local disks: run a script on localckpt, verify its gradient, measure disks, plan runs."""

import argparse
import os
import sys
from collections.abc import Sequence

import localckpt
from localckpt.commands import bench, clean, doctor, plan, run, status, trajectory, verify


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="localckpt" if os.path.basename(sys.argv[0]) == "localckpt" else "python -m localckpt",
        description=__doc__,
        epilog="Exit status: 2 if the command line is wrong, otherwise that of the command (see its --help).",
    )
    parser.add_argument("--version", action="version", version=f"localckpt {localckpt.__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")
    for command in (run, status, plan, verify, doctor, bench, clean, trajectory):
        command.add_parser(commands)
    options = parser.parse_args(arguments)
    sys.exit(options.main(options))


if __name__ == "__main__":
    main()
