"""``localckpt clean``: list, and remove, the directories that killed runs have left."""

import argparse
import json
import os
from dataclasses import asdict
from typing import Any

from localckpt.storage import run_directories
from localckpt.storage.run_directories import RunDirectory


def add_parser(commands: Any) -> None:
    default = [*run_directories.default_parents(), os.getcwd()]
    parser = commands.add_parser(
        "clean",
        help="remove what killed runs have left on this node",
        description="List the directories that runs have made, and remove those of killed runs if --yes is given. A "
        "directory stays if a live run uses it, if cleanup=False asked to keep it, or if it belongs to another user or "
        "host.",
        epilog="Exit status: 0, or 1 if something could not be removed.",
    )
    parser.add_argument(
        "directories",
        nargs="*",
        type=directory_name,
        metavar="directory",
        default=default,
        help=f"where to look (default: {' '.join(default)})".replace("%", "%%"),
    )
    parser.add_argument("--yes", action="store_true", help="remove them; without this option they are only listed")
    parser.add_argument("--json", action="store_true", help="print a JSON list")
    parser.set_defaults(main=main)


def directory_name(word: str) -> str:
    if os.path.exists(word) and not os.path.isdir(word):
        raise argparse.ArgumentTypeError(f"{word} is not a directory")
    return word


def main(options: argparse.Namespace) -> int:
    found = [directory for parent in options.directories for directory in run_directories.find(parent)]
    removed = run_directories.remove_dead(found) if options.yes else []
    if options.json:
        print(json.dumps([asdict(directory) | {"removed": directory in removed} for directory in found], indent=4))
    elif found:
        for directory in found:
            fate = describe(directory, directory in removed, options.yes)
            print(f"{directory.nbytes / 1e6:12.3f} MB {directory.age / 3600:9.1f} h  {directory.path}  {fate}")
    else:
        print(f"nothing in {', '.join(options.directories)}")
    remaining = [directory for directory in found if not (directory.reason_to_keep or directory in removed)]
    return 1 if options.yes and remaining else 0


def describe(directory: RunDirectory, removed: bool, yes: bool) -> str:
    """What happened, or would happen, to a directory."""
    if directory.reason_to_keep:
        return f"stays: {directory.reason_to_keep}"
    if removed:
        return "removed"
    return "could not be removed" if yes else "would be removed with --yes"
