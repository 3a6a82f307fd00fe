"""``python -m localckpt status``: what a run has recorded, on a login node."""

import pytest

from localckpt.storage.journal_entries import NAME, as_line
from localckpt.storage.ownership import Owner

RUN = {"kind": "run", "number of ranks": 4}
JOB = {"kind": "job", "job": "slurm job 7", "time": 1.8e9, "script": "", "left": None}
FIRST = {"functional": 0, "key": "a"}
SECOND = {"functional": 0, "key": "b"}
ENTRIES = [
    RUN,
    JOB,
    {"kind": "control", **FIRST},
    {"kind": "value", **FIRST, "value": (0.1).hex(), "seconds": 12.0},
    {"kind": "derivative", **FIRST, "of": "", "norm": 2.5, "seconds": 20.0},
    {"kind": "control", **SECOND},
]


@pytest.fixture
def directory(tmp_path):
    (tmp_path / NAME).write_bytes(b"".join(map(as_line, ENTRIES)))
    return tmp_path


def lines(done):
    assert done.returncode == 0, done.stderr
    return [" ".join(line.split()) for line in done.stdout.splitlines()]


def test_shows_evaluations_without_mpi_petsc_and_firedrake(run, missing, directory):
    for name in ("mpi4py", "petsc4py", "firedrake"):
        variables = missing(name)
    found = lines(run("status", directory, **variables))
    assert found[0].startswith("run of 4 ranks, begun 2027-01-15") and found[0].endswith(", 1 job")
    assert found[1] == "no job has it"
    assert "1 0.1 2.500000e+00 12 + 20" in found and "2 not finished - - + -" in found


def test_names_the_job_that_has_the_directory(run, directory):
    owner = Owner(str(directory))
    assert f"in use by process {owner._process} on " in lines(run("status", directory))[1]
    owner.release()


def test_directory_without_a_run_is_an_error(run, tmp_path):
    done = run("status", tmp_path)
    assert done.returncode == 1 and done.stderr == f"localckpt status: no run in {tmp_path}\n"
