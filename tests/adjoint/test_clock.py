"""When a job ends, by its scheduler, by its user, or by a signal."""

import math
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from localckpt.adjoint import clock as clock_module
from localckpt.adjoint.clock import Clock

BEGAN = psutil.Process().create_time()


@pytest.fixture(autouse=True)
def no_job(monkeypatch):
    for name in ("SLURM_JOB_END_TIME", "PBS_WALLTIME", "PBS_JOBID"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def started():
    """started(...): a Clock, which gives the signals back in the end."""
    clocks = []

    def make(walltime=None):
        clocks.append(Clock(walltime))
        return clocks[-1]

    yield make
    for clock in reversed(clocks):
        clock.stop()


def end(clock):
    """The time at which the job ends, as the clock knows it, to a minute or so."""
    return pytest.approx(time.time() + clock.left(), abs=60)


def test_without_any_word_a_job_does_not_end(started):
    assert started().left() == math.inf
    assert not started().is_short_of(1e9)


def test_slurm_says_when_a_job_ends(started, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) + 5000))
    monkeypatch.setenv("PBS_WALLTIME", "100")
    assert time.time() + 5000 == end(started())


def test_pbs_says_how_long_a_job_may_run(started, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_END_TIME", "")
    monkeypatch.setenv("PBS_WALLTIME", "7200")
    assert BEGAN + 7200 == end(started())


def test_pbs_counts_from_the_beginning_of_the_job():
    """Not of this process: the job's script may have done other things before."""
    code = f"""
import importlib.util, psutil
spec = importlib.util.spec_from_file_location("clock", {clock_module.__file__!r})  # without Firedrake
clock = importlib.util.module_from_spec(spec)
spec.loader.exec_module(clock)
script = psutil.Process().parent().parent()
print(script.create_time() == clock.start_of_pbs_job() == clock.end_of_job(None) - 500)
"""
    env = {**os.environ, "PBS_JOBID": "17.server", "PBS_WALLTIME": "500", "PYTHON": sys.executable, "CODE": code}
    inner = 'sleep 0.05; "$PYTHON" -c "$CODE"; exit'  # each shell stays, and begins a little after the one above it
    script = ["sh", "-c", f"sleep 0.05; sh -c '{inner}'; exit"]
    done = subprocess.run(script, env=env, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("True\n", "")


@pytest.mark.parametrize("variable", ["SLURM_JOB_END_TIME", "PBS_WALLTIME"])
def test_a_variable_that_is_no_number_says_nothing(started, monkeypatch, variable):
    monkeypatch.setenv(variable, "UNLIMITED")
    assert started().left() == math.inf


def test_the_users_walltime_counts_from_the_start_of_the_process(started, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_END_TIME", "17")
    assert BEGAN + 3600 == end(started(3600.0))


def test_what_has_taken_longer_than_is_left_cannot_be_finished(started):
    clock = started(time.time() - BEGAN + 1000.0)
    assert not clock.is_short_of(800)
    assert clock.is_short_of(950)  # the next one may take a little longer
    assert started(0.0).is_short_of(0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_ends_the_time_and_not_the_process(started, number):
    clock = started()
    os.kill(os.getpid(), number)
    assert (clock.signalled, clock.left()) == (number.name, 0)
    assert clock.is_short_of(0)


def test_signals_are_given_back(started):
    before = [signal.getsignal(number) for number in clock_module.SIGNALS]
    clock = started()
    assert [signal.getsignal(number) for number in clock_module.SIGNALS] != before
    clock.stop()
    assert [signal.getsignal(number) for number in clock_module.SIGNALS] == before


def test_signals_that_the_script_has_taken_meanwhile_stay_the_scripts(started):
    def own(number, frame):
        pass

    clock = started()
    mine = signal.signal(signal.SIGUSR1, own)
    clock.stop()
    assert signal.getsignal(signal.SIGUSR1) is own
    signal.signal(signal.SIGUSR1, mine)
    clock.stop()
    assert signal.getsignal(signal.SIGUSR1) != mine
