"""``localckpt run``: run an unmodified script or module on localckpt."""

import argparse
import os
import runpy
import sys
from importlib.util import find_spec
from typing import Any

from localckpt.commands.units import interval, walltime


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "run",
        help="run an unmodified script or module on localckpt",
        usage="%(prog)s [--resume DIR ...] (script.py | -m module) [arguments ...]",
        description="Run a script or module as python does, with the checkpoints of Firedrake's own "
        "enable_disk_checkpointing stored by localckpt.",
        epilog="Exit status: that of the script. With --resume: 75 if the job has to be run again to go on, 1 if it "
        "cannot go on.",
    )
    parser.add_argument("--resume", metavar="DIR", help="go on where the last job with this directory ended")
    parser.add_argument(
        "--resume-recording",
        action="store_true",
        help="with --resume: also write the solves of the recording, which later jobs read instead",
    )
    parser.add_argument(
        "--resume-sweeps",
        action="store_true",
        help="with --resume: also write the solves and adjoint values of the evaluation in progress, so that the next "
        "job goes on in that timestep (includes --resume-recording)",
    )
    parser.add_argument(
        "--resume-every",
        type=interval,
        default=600.0,
        metavar="TIME",
        help="with --resume-sweeps: between two such records, at least; 0 is every timestep (default: 10min)",
    )
    parser.add_argument(
        "--walltime",
        type=walltime,
        metavar="TIME",
        help="with --resume: from the start to the end of the job: H:MM, D-HH:MM:SS or seconds (default: what Slurm or "
        "PBS says)",
    )
    parser.add_argument(
        "--take-over", action="store_true", help="with --resume: even if another job has, or may have, the directory"
    )
    parser.add_argument(
        "--resume-strict",
        action="store_true",
        help="with --resume: stop where a recorded evaluation is due and the control is another one",
    )
    add_target(parser)
    parser.set_defaults(main=main)


def add_target(parser: argparse.ArgumentParser) -> None:
    """The arguments that say what to run."""
    parser.add_argument("-m", dest="module", action="store_true", help="the target is a module")
    parser.add_argument("target", help="a script or module that uses Firedrake's enable_disk_checkpointing")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="arguments of the script, PETSc options among them")


def main(options: argparse.Namespace) -> int:
    status = prepare(options, "run")
    if status:
        return status
    if options.resume:
        return execute_and_resume(options)
    execute(options)
    return 0


def execute_and_resume(options: argparse.Namespace) -> int:
    """Run the target where its last job ended: the exit status. Collective on COMM_WORLD."""
    os.environ.setdefault("SCOTCH_PTHREAD_NUMBER", "1")  # with several threads each partition is another one
    from mpi4py import MPI

    from localckpt.adjoint import patches, runs

    run = None
    try:
        patches.install("run")
        run = runs.resume(
            options.resume,
            recording=options.resume_recording,
            sweeps=options.resume_sweeps,
            every=options.resume_every,
            walltime=options.walltime,
            take_over=options.take_over,
            strict=options.resume_strict,
        )
        execute(options)
        status = 0
    except (runs.ResumeError, OSError) as exc:
        if run is not None and isinstance(exc, OSError):  # it is the script's
            raise
        if MPI.COMM_WORLD.rank == 0:
            print(f"localckpt run: {exc}", file=sys.stderr)
        status = 1
    except SystemExit as exc:
        if isinstance(exc.code, str):
            print(exc.code, file=sys.stderr)
        status = exc.code if isinstance(exc.code, int) else int(exc.code is not None)
    except Exception:
        if run is None or not run.leaving:  # a library may have made another exception of the one that ends the job
            raise
        status = runs.AGAIN
    if run is not None:
        run.finish(status, at_exit=True)
    return status


def prepare(options: argparse.Namespace, command: str) -> int:
    """Give the target its arguments and its path: 0, or Python's exit status if it is missing, after a message."""
    target = options.target
    sys.argv = [target, *options.arguments]  # PETSc reads its options from here
    sys.path[0] = os.getcwd() if options.module else os.path.dirname(os.path.abspath(target))
    return check_module(target, command) if options.module else check_script(target, command)


def execute(options: argparse.Namespace) -> None:
    """Run the target on localckpt."""
    from localckpt.adjoint import patches

    patches.install("run")
    if options.module:
        runpy.run_module(options.target, run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(options.target, run_name="__main__")


def check_module(name: str, command: str) -> int:
    """The exit status of ``python -m`` for a missing module, after its message, or 0."""
    package = name.partition(".")[0]
    if find_spec(package) is not None:
        return 0
    print(f"localckpt {command}: No module named {package}", file=sys.stderr)
    return 1


def check_script(path: str, command: str) -> int:
    """The exit status of ``python`` for a script that cannot be opened, after its message, or 0."""
    try:
        if not os.path.isdir(path):  # Python runs the __main__.py in a directory
            open(path, "rb").close()
    except OSError as exc:
        reason = f"[Errno {exc.errno}] {exc.strerror}"
        print(f"localckpt {command}: can't open file {os.path.abspath(path)!r}: {reason}", file=sys.stderr)
        return 2
    return 0
