"""Run a script on localckpt, measure disks, look for what will fail, clean up after dead runs."""

import argparse
import json
import os
import runpy
import sys
from dataclasses import asdict
from importlib.util import find_spec

import localckpt
from localckpt.commands import doctor as tools
from localckpt.storage import run_directories


def run(target, arguments, module):
    """Run a script or module as ``python`` does, with Firedrake's own
    ``enable_disk_checkpointing`` making localckpt's checkpointers."""
    sys.argv = [target, *arguments]  # PETSc reads its options from here
    sys.path[0] = os.getcwd() if module else os.path.dirname(os.path.abspath(target))
    refuse_missing(target, module)
    from localckpt import adjoint
    from localckpt.adjoint import patches

    patches.install(adjoint.DiskCheckpointer, adjoint.LocalCheckpoint, everywhere=True)
    if module:
        runpy.run_module(target, run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(target, run_name="__main__")


def refuse_missing(target, module):
    """End as ``python`` does if there is no such script or module."""
    package = target.partition(".")[0]
    if module and find_spec(package) is None:
        print(f"localckpt run: No module named {package}", file=sys.stderr)
        sys.exit(1)
    try:
        if not module and not os.path.isdir(target):
            open(target, "rb").close()
    except OSError as exc:
        print(
            f"localckpt run: can't open file {os.path.abspath(target)!r}: [Errno {exc.errno}] {exc.strerror}",
            file=sys.stderr,
        )
        sys.exit(2)


def clean(directories, really, as_json):
    """List what runs have left in these directories, and remove what nobody needs."""
    found = [directory for parent in directories for directory in run_directories.find(parent)]
    removed = run_directories.remove_dead(found) if really else []
    left = [directory for directory in found if really and not directory.reason_to_keep and directory not in removed]
    if as_json:
        print(json.dumps([asdict(directory) | {"removed": directory in removed} for directory in found], indent=4))
    else:
        for directory in found:
            what = (
                f"stays: {directory.reason_to_keep}"
                if directory.reason_to_keep
                else "removed"
                if directory in removed
                else "could not be removed"
                if really
                else "to be removed with --yes"
            )
            print(f"{directory.nbytes / 1e6:12.3f} MB {directory.age / 3600:9.1f} h  {directory.path}  {what}")
        if not found:
            print(f"nothing in {', '.join(directories)}")
    return 1 if left else 0


def directory(word):
    if os.path.exists(word) and not os.path.isdir(word):
        raise argparse.ArgumentTypeError(f"{word} is not a directory")
    return word


def positive(word):
    if not float(word) > 0:
        raise ValueError
    return float(word)


def main(argv=None):
    name = "localckpt" if os.path.basename(sys.argv[0]) == "localckpt" else "python -m localckpt"
    parser = argparse.ArgumentParser(
        prog=name,
        description=__doc__,
        epilog="Exit status: 2 for a command line that says nothing, else as each command's help says.",
    )
    parser.add_argument("--version", action="version", version=f"localckpt {localckpt.__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")
    command = commands.add_parser(
        "run",
        help="run an unmodified script or module on localckpt",
        usage="%(prog)s (script.py | -m module) [arguments ...]",
        epilog="Exit status: the script's.",
    )
    command.add_argument("-m", dest="module", action="store_true", help="the target is a module")
    command.add_argument("target", help="script or module that uses Firedrake's enable_disk_checkpointing")
    command.add_argument("arguments", nargs=argparse.REMAINDER, help="its own arguments, and PETSc's options")
    command.set_defaults(call=lambda given: run(given.target, given.arguments, given.module))

    command = commands.add_parser(
        "bench",
        help="measure what checkpoints cost on your disks, in about a minute",
        description="Save and restore small and large arrays in each directory, with both engines and plain calls; "
        "say what a timestep costs, and which directory to take. Under mpiexec all ranks do so at once.",
        epilog="Exit status: 0, or 1 if a directory could not be measured.",
    )
    command.add_argument("--dir", nargs="+", metavar="D", help="directories (default: those that a run may choose)")
    command.add_argument(
        "--timestep",
        type=positive,
        default=100,
        metavar="MB",
        help="what a rank stores in a timestep (default: %(default)s)",
    )
    command.add_argument("--seconds", type=positive, default=60, help="how long to measure (default: %(default)s)")
    command.add_argument("--json", action="store_true", help="print a JSON object")
    command.set_defaults(call=lambda given: tools.bench(given.dir, given.timestep * 1e6, given.seconds, given.json))
    command = commands.add_parser(
        "doctor",
        help="look for what will make a run fail, or slow",
        description="Say what is installed, how ranks are grouped, where checkpoints go on each node and where they "
        "could, what limits there are, and what to do about each. Under mpiexec: of all nodes.",
        epilog="Exit status: 0, or 1 if a run will fail.",
    )
    command.add_argument("--dir", nargs="+", metavar="D", default=[], help="further directories to look at")
    command.add_argument("--json", action="store_true", help="print a JSON object")
    command.set_defaults(call=lambda given: tools.doctor(given.dir, given.json))
    command = commands.add_parser(
        "clean",
        help="remove what killed runs have left on this node",
        description="List the directories that runs have made, and what becomes of each: one that a live run uses, "
        "that cleanup=False asked to keep, or that is another user's or host's, stays.",
        epilog="Exit status: 0, or 1 if something could not be removed.",
    )
    command.add_argument(
        "directories",
        nargs="*",
        type=directory,
        metavar="directory",
        default=[*run_directories.default_parents(), os.getcwd()],
        help="where to look (default: %(default)s)",
    )
    command.add_argument("--yes", action="store_true", help="remove them; without it they are only listed")
    command.add_argument("--json", action="store_true", help="print a JSON list")
    command.set_defaults(call=lambda given: clean(given.directories, given.yes, given.json))
    options = parser.parse_args(argv)
    sys.exit(options.call(options))


if __name__ == "__main__":
    main()
