"""``python -m localckpt``: run a script on localckpt, clean up after dead runs."""

import argparse
import json
import os
import runpy
import sys
from dataclasses import asdict

from localckpt import leftovers


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


def clean(folders, really, as_json):
    """List what runs have left in these folders, and remove what nobody needs."""
    found = [folder for parent in folders for folder in leftovers.find(parent)]
    removed = leftovers.remove_dead(found) if really else []
    left = [folder for folder in found if really and not folder.why and folder not in removed]
    if as_json:
        print(json.dumps([asdict(folder) | {"removed": folder in removed} for folder in found], indent=4))
    else:
        for folder in found:
            what = (f"stays: {folder.why}" if folder.why else "removed" if folder in removed else
                    "could not be removed" if really else "to be removed with --yes")
            print(f"{folder.nbytes / 1e6:12.3f} MB {folder.age / 3600:9.1f} h  {folder.path}  {what}")
        if not found:
            print(f"nothing in {', '.join(folders)}")
    return 1 if left else 0


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m localckpt", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")
    command = commands.add_parser("run", help="run an unmodified script or module on localckpt",
                                  usage="%(prog)s (script.py | -m module) [arguments ...]")
    command.add_argument("-m", dest="module", action="store_true", help="the target is a module")
    command.add_argument("target", help="script or module that uses Firedrake's enable_disk_checkpointing")
    command.add_argument("arguments", nargs=argparse.REMAINDER, help="its own arguments")
    command.set_defaults(call=lambda given: run(given.target, given.arguments, given.module))
    command = commands.add_parser(
        "clean", help="remove what killed runs have left on this node",
        description="List the folders that runs have made, and what becomes of each: one that a live run uses, "
                    "that cleanup=False asked to keep, or that is another user's or host's, stays.",
        epilog="Exit status: 0, or 1 if something could not be removed.")
    command.add_argument("folders", nargs="*", metavar="folder", default=[*leftovers.usual(), os.getcwd()],
                         help="where to look (default: %(default)s)")
    command.add_argument("--yes", action="store_true", help="remove them; without it they are only listed")
    command.add_argument("--json", action="store_true", help="print a JSON list")
    command.set_defaults(call=lambda given: clean(given.folders, given.yes, given.json))
    options = parser.parse_args(argv)
    sys.exit(options.call(options))


if __name__ == "__main__":
    main()
