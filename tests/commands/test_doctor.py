"""``python -m localckpt doctor``."""

import json
import os
import resource
from pathlib import Path

import numpy as np
import pytest
from mpi4py import MPI
from petsc4py import PETSc

import localckpt
from localckpt.commands import versions
from localckpt.commands.doctor import memory_limits, version_advice


def findings(done):
    """By subject."""
    return {finding["subject"]: finding for finding in json.loads(done.stdout)["findings"]}


def test_prints_what_is_installed_and_nothing_of_versions_that_were_tried(run):
    done = run("doctor", "--json")
    found = findings(done)
    assert done.returncode == 0, done.stdout
    assert os.path.dirname(localckpt.__file__) + "," in found["localckpt"]["message"]
    assert str(PETSc.ScalarType.__name__) in found["PETSc"]["message"]
    assert np.dtype(PETSc.IntType).name in found["PETSc"]["message"]
    assert found["HDF5"]["message"].endswith(", parallel") and found["HDF5"]["message"][0].isdigit()
    assert "pyadjoint" in found["Firedrake"]["message"] and "mpi4py" in found
    assert "versions" not in found


def test_works_without_firedrake(run, missing):
    done = run("doctor", **missing("firedrake"))
    (line,) = (line for line in done.stdout.splitlines() if "Firedrake" in line)
    assert done.returncode == 0 and line.split() == ["note", "Firedrake", "not", "installed"]
    assert "VecFile" in done.stdout and done.stderr == ""


def test_says_that_a_version_was_never_tried(run, claimed):
    done = run("doctor", "--json", **claimed("firedrake", "2031.4.0"))
    found = findings(done)["versions"]
    assert done.returncode == 0 and not found["fatal"]
    assert "never tried with Firedrake 2031.4.0, PETSc" in found["message"]
    assert "Firedrake 2026.10.0, PETSc 3.26.0" in found["advice"]


@pytest.mark.parametrize(
    "version, issues",
    [
        ("2026.4.1", ["pyadjoint#257, firedrake#5082", "pyadjoint#211, pyadjoint#260, pyadjoint#248"]),
        ("2026.9.0", ["pyadjoint#211, pyadjoint#260, pyadjoint#248"]),
        ("2026.10.1", []),
    ],
)
def test_names_known_faults_of_what_is_installed(monkeypatch, tmp_path, claimed, version, issues):
    claimed("pyadjoint-ad", version)
    monkeypatch.syspath_prepend(tmp_path)
    faults = [finding for finding in version_advice() if finding.subject == f"pyadjoint-ad {version}"]
    assert [fault.message.partition("(")[2] for fault in faults] == [f"{names})" for names in issues]


@pytest.mark.parametrize("combination", versions.TRIED, ids=str)
def test_the_manual_lists_the_versions_that_were_tried(combination):
    text = (Path(__file__).parents[2] / "docs/reference/versions.md").read_text()
    row = f"| {combination.firedrake} | {combination.petsc}, {combination.scalars} | {combination.pyadjoint} |"
    assert any(line.startswith(f"{row} {combination.python} |") for line in text.splitlines())


@pytest.mark.parametrize("name", ["petsc4py", "mpi4py"])
def test_fails_if_a_package_is_missing(run, missing, name):
    done = run("doctor", **missing(name))
    assert done.returncode == 1 and done.stderr == ""
    lines = done.stdout.splitlines()
    at = next(i for i, line in enumerate(lines) if f"No module named '{name}'" in line)
    assert lines[at].startswith("FAILS") and f"-> install {name}" in lines[at + 1]


def test_examines_the_directories_that_options_name(run, missing, tmp_path):
    (tmp_path / "here").mkdir()
    (tmp_path / "too").mkdir()
    done = run(
        "doctor",
        "--json",
        "--dir",
        tmp_path / "too",
        **missing("firedrake"),
        PETSC_OPTIONS="-localckpt_dir $SCRATCH/here",
        SCRATCH=str(tmp_path),
    )
    found = findings(done)
    assert found[str(tmp_path / "here")]["message"].startswith("checkpoints go here")
    assert found[str(tmp_path / "too")]["message"].split(",")[0] in found[str(tmp_path / "here")]["message"]
    assert os.listdir(tmp_path / "here") == []


def test_a_missing_directory_of_several_is_a_note(run, missing, tmp_path):
    done = run("doctor", "--json", **missing("firedrake"), PETSC_OPTIONS=f"-localckpt_dir {tmp_path}/not,{tmp_path}")
    found = findings(done)
    assert done.returncode == 0
    assert "No such file" in found[f"{tmp_path}/not"]["message"] and found[f"{tmp_path}/not"]["advice"]


def test_fails_if_no_directory_can_be_used(run, missing, tmp_path):
    done = run("doctor", **missing("firedrake"), PETSC_OPTIONS=f"-localckpt_dir {tmp_path}/not,{tmp_path}/neither")
    assert done.returncode == 1 and "no directory can be written to" in done.stdout


def test_fails_if_the_limit_of_directories_is_malformed(run, missing):
    done = run("doctor", **missing("firedrake"), PETSC_OPTIONS="-localckpt_dir_limit 1,2,3")
    assert done.returncode == 1 and "FAILS  -localckpt_dir_limit" in done.stdout


def test_finds_the_limits_of_processes_and_jobs(run, missing):
    done = run(
        "doctor",
        "--json",
        **missing("firedrake"),
        PBS_NCI_JOBFS="10GB",
        limits=[(resource.RLIMIT_NOFILE, 100), (resource.RLIMIT_FSIZE, 10**8)],
    )
    found = findings(done)
    assert done.returncode == 0
    assert "100 open files" in found["RLIMIT_NOFILE"]["message"] and "ulimit -n" in found["RLIMIT_NOFILE"]["advice"]
    assert "100000000 bytes" in found["RLIMIT_FSIZE"]["message"]
    assert "10GB" in found["PBS_NCI_JOBFS"]["message"] and "-localckpt_dir_limit" in found["PBS_NCI_JOBFS"]["advice"]


def test_one_rank_prints_for_all(run, missing):
    done = run("doctor", "--json", ranks=3, **missing("firedrake"))
    assert json.loads(done.stdout)["nodes"] == [{"name": MPI.Get_processor_name(), "ranks": 3}]


V1, V2 = ("memory.limit_in_bytes", "memory.usage_in_bytes"), ("memory.max", "memory.current")


@pytest.mark.parametrize(
    "cgroup, mount, names, groups, expected",
    [
        ("0::/job/step", "", V2, {"job": ("8000", 70), "job/step": ("max", 60)}, (8000, 70)),
        ("0::/job/step", "", V2, {"job": ("8000", 70), "job/step": ("500", 60)}, (500, 60)),
        ("0::/", "", V2, {"": ("3000", 1)}, (3000, 1)),
        ("0::/job", "", V2, {"job": ("max", 60)}, None),
        ("5:memory:/slurm/job\n0::/", "memory", V1, {"slurm/job": ("900", 8), "": (str(2**63 - 4096), 9)}, (900, 8)),
        ("5:cpu,memory:/docker/long/name", "memory", V1, {"": ("900", 8)}, (900, 8)),
        ("5:cpuset:/slurm/job", "memory", V1, {"slurm/job": ("900", 8)}, None),
    ],
    ids=["v2, of a parent", "v2, its own", "v2, in a container", "v2, none", "v1", "v1, in a container", "v1, none"],
)
def test_memory_cgroups(tmp_path, cgroup, mount, names, groups, expected):
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "self" / "cgroup").write_text(cgroup + "\n")
    for group, numbers in groups.items():
        directory = tmp_path / "sys" / "fs" / "cgroup" / mount / group
        directory.mkdir(parents=True, exist_ok=True)
        for name, number in zip(names, numbers):
            (directory / name).write_text(f"{number}\n")
    assert min(memory_limits(tmp_path), default=None) == expected


def test_measures_a_directory_for_resumed_runs_on_all_ranks(run, tmp_path):
    done = run("doctor", "--json", "--resume", tmp_path, "--record", "0.1", ranks=2)
    message = findings(done)[str(tmp_path)]["message"]
    assert message.startswith("for --resume: ") and "0.2 MB of 2 ranks" in message
    assert list(tmp_path.iterdir()) == []


def test_directory_for_resumed_runs_that_cannot_be_used_fails(run, tmp_path):
    done = run("doctor", "--json", "--resume", tmp_path / "missing")
    assert done.returncode == 1
    assert findings(done)[str(tmp_path / "missing")]["fatal"]


@pytest.mark.parametrize("ranks", [0, 2])
def test_records_that_do_not_fit_into_memory_are_said_on_any_number_of_ranks(run, tmp_path, ranks):
    done = run("doctor", "--json", "--resume", tmp_path, "--record", "1e12", ranks=ranks)
    assert done.returncode == 1
    assert findings(done)[str(tmp_path)]["advice"] == "name fewer MB with --record"
    assert list(tmp_path.iterdir()) == []
