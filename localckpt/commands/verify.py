"""``localckpt verify``: test the gradient of a script where it computes its first derivative."""

import argparse
import json
import math
import os
import sys
import time
import traceback
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TextIO

from localckpt.commands import run, versions

if TYPE_CHECKING:
    from mpi4py import MPI

    from localckpt.adjoint.derivatives import Request
    from localckpt.adjoint.gradient_tests import Report

STATUS = {"right": 0, "wrong": 1, "not shown": 1, "not reached": 3, "failed": 3}


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "verify",
        help="test the gradient of an unmodified script at two controls",
        usage="%(prog)s [--json] [--within SECONDS] (script.py | -m module) [arguments ...]",
        description="Run a script or module as 'run' does, up to its first derivative. There, with its own tape, "
        "schedule and checkpoints, make a Taylor test at its control and at a second one, compute the gradient at the "
        "first one again, and end the script.",
        epilog="Exit status: 0 if the gradient is right, 1 if it is wrong or could not be shown to be right, 3 if the "
        "script failed or computed no derivative.",
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object, and the script's output as errors")
    parser.add_argument(
        "--within", type=float, metavar="SECONDS", help="stop if it would take longer (default: what the job has left)"
    )
    run.add_target(parser)
    parser.set_defaults(main=main)


class Stop(BaseException):
    """Ends the script. No Exception, because scripts catch those."""


def main(options: argparse.Namespace) -> int:
    """Run the script up to its first derivative, and test that. Collective on COMM_WORLD."""
    if run.prepare(options, "verify"):
        return 2
    out = sys.stdout
    if options.json:  # whatever the script and its libraries print goes to standard error
        out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
    try:
        from mpi4py import MPI

        from localckpt.adjoint import derivatives, patches
        from localckpt.adjoint.gradient_tests import Report

        patches.install("run")
        patches.install("verify")
    except ImportError:
        traceback.print_exc()
        return STATUS["failed"]
    command = Command(options.within, out, options.json)
    derivatives.on_derivative(command.verify)
    report = Report("not reached", "the script computed no derivative of a ReducedFunctional")
    try:
        run.execute(options)
    except Stop:
        pass
    except SystemExit as exc:
        if isinstance(exc.code, str):
            print(exc.code, file=sys.stderr)
    except Exception as exc:
        report = Report("failed", f"the script raised {type(exc).__name__} before its first derivative")
        if command.report is None:
            traceback.print_exc()
    if command.report is None:
        command.finish(report, MPI.COMM_WORLD)
        return STATUS[report.verdict]
    return STATUS[command.report.verdict]


class Command:
    """What the command does when the script computes its first derivative.

    Parameters
    ----------
    within : float or None
        Seconds that the tests may take.
    out : file
        For the report.
    as_json : bool
        Whether it is JSON.
    """

    def __init__(self, within: float | None, out: TextIO, as_json: bool) -> None:
        self.within, self.out, self.as_json = within, out, as_json
        self.report: Report | None = None
        self._running = False

    def verify(self, request: "Request") -> None:
        """Test the gradient, and end the script. Collective on the communicator of the controls."""
        if self._running:  # one of the derivatives that the tests compute
            return
        if self.report is None:
            from localckpt.adjoint.gradient_tests import GradientTests, Report, comm_of_functional

            self._running = True
            comm = comm_of_functional(request.functional)
            try:
                report = GradientTests(request, comm, seconds_left(self.within), announce).report()
            except Exception as exc:
                traceback.print_exc()
                report = Report("failed", f"the tests ended with {type(exc).__name__}: {exc}")
            if report.verdict == "wrong":
                report.known_faults = [describe(fault) for fault in versions.known_faults()]
            self._running = False
            self.finish(report, comm)
        raise Stop  # at each derivative, in case the script caught the first one

    def finish(self, report: "Report", comm: "MPI.Intracomm") -> None:
        """Print the report. Collective on `comm` if there is a verdict; ends all ranks if something has failed."""
        from mpi4py import MPI

        self.report = report
        if comm.rank == 0:
            print(as_json(report) if self.as_json else as_text(report), file=self.out, flush=True)
        if report.verdict == "failed" and MPI.COMM_WORLD.size > 1:  # perhaps here alone, and others wait for this rank
            sys.stderr.flush()
            MPI.COMM_WORLD.Abort(STATUS[report.verdict])
        if report.verdict != "not reached":
            comm.Barrier()  # mpiexec ends all ranks when the first one exits with an error


def announce(plan: str) -> None:
    print(f"localckpt verify: {plan}", flush=True)


def seconds_left(within: float | None) -> float:
    """That the tests may take, by the command line and the scheduler."""
    try:
        job = float(os.environ["SLURM_JOB_END_TIME"]) - time.time()
    except (KeyError, ValueError):
        job = math.inf
    return job if within is None else min(within, job)


def describe(fault: versions.Fault) -> str:
    return f"{fault.package} {versions.version(fault.package)}: {fault.summary} ({fault.issues}); {fault.advice}"


def as_json(report: "Report") -> str:
    return json.dumps(asdict(report), indent=4)


def as_text(report: "Report") -> str:
    lines = []
    if report.tests:
        lines.append(f"{'':24}{'J':>16}{'slope':>12}{'smallest step':>15}{'remainder':>11}{'order':>7}")
    for test in report.tests:
        order = "" if test.order is None else f"{test.order:.2f}"
        lines.append(
            f"{test.where:24}{test.value:16.8e}{test.slope:12.2e}{test.steps[-1]:15.1e}"
            f"{test.relative_remainder:11.1e}{order:>7}"
        )
    if report.tests:
        lines.append(f"noise of J: {report.noise:.1e}")
        lines += [f"{name}: differs by {difference:.1e}" for name, difference in report.differences.items()]
    lines.append(f"{report.verdict}: {report.why}")
    lines += [f"known fault: {fault}" for fault in report.known_faults]
    return "\n".join(lines)
