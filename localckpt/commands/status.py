"""``localckpt status``: what a run that resumes has recorded. Needs neither MPI nor Firedrake."""

import argparse
import contextlib
import glob
import os
import sys
import time
from typing import Any

from localckpt.storage.journal_entries import NAME, SWEEP, Entry, read_entries
from localckpt.storage.ownership import read_owner


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "status",
        help="show what a run that resumes has recorded",
        description="Show which evaluations 'run --resume' has recorded in a directory, and which job has it.",
        epilog="Exit status: 0, or 1 if there is no run in the directory.",
    )
    parser.add_argument("directory", help="the one that --resume was given")
    parser.set_defaults(main=main)


def main(options: argparse.Namespace) -> int:
    try:
        entries = read_entries(options.directory)
        parts = sorted(glob.glob(os.path.join(glob.escape(options.directory), "*", NAME)))
        journals = [("", entries)] + [
            (os.path.basename(os.path.dirname(part)), read_entries(os.path.dirname(part)))
            for part in parts
            if os.path.basename(os.path.dirname(part)) != SWEEP
        ]
        sweep = read_entries(os.path.join(options.directory, SWEEP))
        slots = [read_entries(os.path.join(options.directory, SWEEP, f"adjoint-{i}")) for i in range(2)]
    except OSError as exc:
        print(f"localckpt status: {exc}", file=sys.stderr)
        return 1
    first = next((entry for entry in entries if entry["kind"] == "run"), None)
    if first is None:
        print(f"localckpt status: no run in {options.directory}", file=sys.stderr)
        return 1
    jobs = [entry for entry in entries if entry["kind"] == "job"]
    began = time.strftime("%Y-%m-%d %H:%M", time.localtime(jobs[0]["time"])) if jobs else "?"
    print(f"run of {first['number of ranks']} ranks, begun {began}, {len(jobs)} job{'s' * (len(jobs) != 1)}")
    owner = read_owner(options.directory)
    print(f"in use by {owner}" if owner else "no job has it")
    print(f"{nbytes_in(options.directory) / 1e6:.1f} MB in {options.directory}")
    for name, found in journals:
        show(name, found)
    show_sweep(entries, sweep, [entry for slot in slots for entry in slot])
    return 0


def show(name: str, entries: list[Entry]) -> None:
    """Print a table of the evaluations in one journal."""
    damaged = sum(entry["kind"] == "damaged" for entry in entries)
    if damaged:
        print(f"{damaged} damaged lines")
    for number in sorted({entry["functional"] for entry in entries if "functional" in entry}):
        mine = [entry for entry in entries if entry.get("functional") == number]
        values = {entry["key"]: entry for entry in mine if entry["kind"] == "value"}
        derivatives = {entry["key"]: entry for entry in mine if entry["kind"] == "derivative"}
        print(f"\nfunctional {number + 1}{' of ' + name if name else ''}")
        print(f"{'evaluation':>10} {'value':>24} {'derivative norm':>16} {'seconds':>18}")
        for i, control in enumerate((entry for entry in mine if entry["kind"] == "control"), 1):
            value, derivative = values.get(control["key"]), derivatives.get(control["key"])
            times = [f"{entry['seconds']:.3g}" if entry else "-" for entry in (value, derivative)]
            norm = f"{derivative['norm']:.6e}" if derivative else "-"
            print(f"{i:>10} {value_of(value):>24} {norm:>16} {' + '.join(times):>18}")


def show_sweep(entries: list[Entry], sweep: list[Entry], adjoint: list[Entry]) -> None:
    """Print where the evaluation stands that is recorded in parts, if its derivative is not recorded yet."""
    of = next((entry["of"] for entry in sweep if entry["kind"] == "sweep"), None)
    if of is None:
        return
    mine = [entry for entry in entries if (entry.get("functional"), entry.get("key")) == (of["functional"], of["key"])]
    if any(entry["kind"] == "derivative" for entry in mine):
        return
    controls = [e["key"] for e in entries if e["kind"] == "control" and e["functional"] == of["functional"]]
    number = controls.index(of["key"]) + 1 if of["key"] in controls else "?"
    print(f"\nin progress: evaluation {number} of functional {of['functional'] + 1}")
    print(f"{sum(entry['kind'] == 'solve' for entry in sweep)} solves of its forward sweep are recorded")
    lefts = [entry["left"] for entry in adjoint if entry["kind"] == "adjoint" and entry["of"] == of]
    if lefts:
        print(f"{of['blocks'] - min(lefts)} of {of['blocks']} blocks of the tape are done in reverse")


def value_of(entry: Entry | None) -> str:
    """A recorded value in words."""
    if entry is None:
        return "not finished"
    return f"{float.fromhex(entry['value']):.15g}" if "value" in entry else "(no number)"


def nbytes_in(directory: str) -> int:
    """The bytes of all files in a directory."""
    nbytes = 0
    for path, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # a job may replace it meanwhile
                nbytes += os.path.getsize(os.path.join(path, name))
    return nbytes
