"""``python -m localckpt doctor`` and ``bench``, run as users run them."""

import json
import os
import resource
import subprocess
import sys
from importlib.metadata import version

import numpy as np
import pytest
from mpi4py import MPI
from petsc4py import PETSc

import localckpt
from localckpt.commands import doctor as tools


@pytest.fixture
def missing(tmp_path):
    """missing(name): an environment in which that package cannot be imported."""

    def hide(name):
        folder = tmp_path / "hidden"
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.py").write_text(f"raise ModuleNotFoundError(\"No module named '{name}'\", name='{name}')\n")
        return {"PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}

    return hide


def run(*arguments, ranks=0, limits=(), **variables):
    command = [sys.executable, "-m", "localckpt", *map(str, arguments)]
    if ranks:
        command = ["mpiexec", "-n", str(ranks), *command]
    return subprocess.run(
        command,
        env={**os.environ, "MPIEXEC_TIMEOUT": "60", **variables},
        text=True,
        timeout=90,
        capture_output=True,
        preexec_fn=lambda: [resource.setrlimit(which, (most, most)) for which, most in limits],
    )


def findings(done):
    """By subject."""
    return {finding["subject"]: finding for finding in json.loads(done.stdout)["findings"]}


# ------------------------------------------------------------------------------ doctor


def test_doctor_says_what_is_installed():
    done = run("doctor", "--json")
    found = findings(done)
    assert done.returncode == 0, done.stdout
    assert str(PETSc.ScalarType.__name__) in found["PETSc"]["said"]
    assert np.dtype(PETSc.IntType).name in found["PETSc"]["said"]
    assert found["HDF5"]["said"].endswith(", parallel") and found["HDF5"]["said"][0].isdigit()
    assert "pyadjoint" in found["Firedrake"]["said"] and "mpi4py" in found and "localckpt" in found


def test_doctor_works_without_firedrake(missing):
    done = run("doctor", **missing("firedrake"))
    (line,) = (line for line in done.stdout.splitlines() if "Firedrake" in line)
    assert done.returncode == 0 and line.split() == ["note", "Firedrake", "not", "installed"]
    assert "VecFile" in done.stdout and done.stderr == ""


@pytest.mark.parametrize("name", ["petsc4py", "mpi4py"])
def test_doctor_says_what_is_missing(missing, name):
    done = run("doctor", **missing(name))
    assert done.returncode == 1 and done.stderr == ""
    lines = done.stdout.splitlines()
    at = next(i for i, line in enumerate(lines) if f"No module named '{name}'" in line)
    assert lines[at].startswith("FAILS") and f"-> install {name}" in lines[at + 1]


def test_doctor_looks_at_the_folders_that_options_name(missing, tmp_path):
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
    assert found[str(tmp_path / "here")]["said"].startswith("checkpoints go here")
    assert found[str(tmp_path / "too")]["said"].split(",")[0] in found[str(tmp_path / "here")]["said"]
    assert os.listdir(tmp_path / "here") == []


def test_a_folder_that_is_passed_over_is_a_note(missing, tmp_path):
    done = run("doctor", "--json", **missing("firedrake"), PETSC_OPTIONS=f"-localckpt_dir {tmp_path}/not,{tmp_path}")
    found = findings(done)
    assert done.returncode == 0
    assert "No such file" in found[f"{tmp_path}/not"]["said"] and found[f"{tmp_path}/not"]["todo"]


def test_doctor_fails_if_no_folder_can_be_used(missing, tmp_path):
    done = run("doctor", **missing("firedrake"), PETSC_OPTIONS=f"-localckpt_dir {tmp_path}/not,{tmp_path}/neither")
    assert done.returncode == 1 and "have no folder to go to" in done.stdout


def test_doctor_fails_if_the_limit_of_folders_cannot_be_understood(missing):
    done = run("doctor", **missing("firedrake"), PETSC_OPTIONS="-localckpt_dir_limit 1,2,3")
    assert done.returncode == 1 and "FAILS  -localckpt_dir_limit" in done.stdout


def test_doctor_finds_the_limits_of_processes_and_jobs(missing):
    done = run(
        "doctor",
        "--json",
        **missing("firedrake"),
        PBS_NCI_JOBFS="10GB",
        limits=[(resource.RLIMIT_NOFILE, 100), (resource.RLIMIT_FSIZE, 10**8)],
    )
    found = findings(done)
    assert done.returncode == 0
    assert "100 open files" in found["RLIMIT_NOFILE"]["said"] and "ulimit -n" in found["RLIMIT_NOFILE"]["todo"]
    assert "100000000 bytes" in found["RLIMIT_FSIZE"]["said"]
    assert "10GB" in found["PBS_NCI_JOBFS"]["said"] and "-localckpt_dir_limit" in found["PBS_NCI_JOBFS"]["todo"]


def test_one_rank_prints_for_all(missing):
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
        folder = tmp_path / "sys" / "fs" / "cgroup" / mount / group
        folder.mkdir(parents=True, exist_ok=True)
        for name, number in zip(names, numbers):
            (folder / name).write_text(f"{number}\n")
    assert min(tools.memory_limits(tmp_path), default=None) == expected


# ------------------------------------------------------------------------------ bench


def test_bench_measures_a_folder_and_leaves_nothing(tmp_path):
    (tmp_path / "disk").mkdir()
    done = run("bench", "--seconds", 0.5, "--timestep", 10, "--dir", tmp_path / "disk", "--json")
    result = json.loads(done.stdout)["folders"][str(tmp_path / "disk")]
    times = {(what, nbytes): seconds for what, nbytes, seconds in result["times"]}
    assert done.returncode == 0 and all(seconds > 0 for seconds in times.values())
    for size in 8_000, 32_000_000:
        assert {what for what, nbytes in times if nbytes == size} >= {
            "save, direct engine",
            "restore, direct engine",
            "save, viewer engine",
            "restore, viewer engine",
            "pwrite",
            "pread",
            "memcpy",
        }
    assert times["a timestep stored", 10**7] == pytest.approx(
        times[f"save, {'viewer' if result['filesystem'].startswith('nfs') else 'direct'} engine", 32_000_000] / 3.2
    )
    assert os.listdir(tmp_path / "disk") == []


def test_bench_on_several_ranks_prints_once_and_passes_over_what_it_cannot_measure(tmp_path):
    done = run("bench", "--seconds", 0.5, "--dir", tmp_path / "not", tmp_path, ranks=2)
    lines = done.stdout.splitlines()
    assert done.returncode == 1
    assert lines[0].startswith(f"{tmp_path}/not: ") and "No such file" in lines[0]
    assert lines[1].startswith(f"{tmp_path}: ") and " 16 MB " in lines[9] and lines[-1].startswith(("take ", "none "))
    assert len(lines) == 23


@pytest.mark.parametrize("ranks", [0, 2])
def test_bench_says_once_what_is_wrong_with_a_limit(ranks):
    done = run("bench", "--seconds", 0.5, ranks=ranks, PETSC_OPTIONS="-localckpt_dir_limit 1,2,3")
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.count("-localckpt_dir_limit is one number") == 1 and "Traceback" not in done.stderr


# ------------------------------------------------------------------------------ the command line


@pytest.mark.parametrize("command", ["run", "bench", "doctor", "clean"])
def test_help_says_what_the_exit_status_means(command):
    done = run(command, "--help")
    assert done.returncode == 0 and "Exit status" in done.stdout


@pytest.mark.parametrize(
    "arguments", [["bench", "--timestep", "0"], ["bench", "--seconds", "soon"], ["doctor", "--loud"]], ids=" ".join
)
def test_what_is_not_understood_is_status_2(arguments):
    done = run(*arguments)
    assert done.returncode == 2 and done.stderr.startswith("usage: python -m localckpt")


def test_version_is_that_of_the_installed_package():
    done = run("--version")
    assert done.returncode == 0 and done.stdout == f"localckpt {localckpt.__version__}\n"
    assert localckpt.__version__ == version("localckpt")


def test_clean_of_a_file_says_that_it_is_no_directory(tmp_path):
    (tmp_path / "file").touch()
    done = run("clean", tmp_path / "file")
    assert done.returncode == 2 and done.stderr.endswith(f"argument folder: {tmp_path}/file is not a directory\n")
