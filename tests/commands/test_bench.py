"""``python -m localckpt bench``."""

import json
import os

import pytest


def test_measures_a_directory_and_leaves_nothing(run, tmp_path):
    (tmp_path / "disk").mkdir()
    done = run("bench", "--seconds", 0.5, "--timestep", 10, "--dir", tmp_path / "disk", "--json")
    result = json.loads(done.stdout)["directories"][str(tmp_path / "disk")]
    times = {(timing["operation"], timing["nbytes"]): timing["seconds"] for timing in result["times"]}
    assert json.loads(done.stdout)["ranks_per_node"] == 1 and result["room"] == result["free"] // 10**7
    assert done.returncode == 0 and result["error"] is None and all(seconds > 0 for seconds in times.values())
    for size in 8_000, 32_000_000:
        assert {operation for operation, nbytes in times if nbytes == size} >= {
            "save, direct engine",
            "restore, direct engine",
            "save, viewer engine",
            "restore, viewer engine",
            "pwrite",
            "pread",
            "memcpy",
        }
    assert result["timestep"]["nbytes"] == 10**7
    assert result["timestep"]["save"] == pytest.approx(times["save, direct engine", 32_000_000] / 3.2)
    assert result["timestep"]["restore_from_disk"] == pytest.approx(times["read from disk", 32_000_000] / 3.2)
    assert os.listdir(tmp_path / "disk") == []


def test_on_several_ranks_prints_once_and_goes_on_after_an_error(run, tmp_path):
    done = run("bench", "--seconds", 0.5, "--dir", tmp_path / "not", tmp_path, ranks=2)
    lines = done.stdout.splitlines()
    assert done.returncode == 1
    assert lines[0].startswith(f"{tmp_path}/not: ") and "No such file" in lines[0]
    assert lines[1].startswith(f"{tmp_path}: ") and " 16 MB " in lines[9] and lines[-1].startswith(("use ", "none "))
    assert len(lines) == 23


@pytest.mark.parametrize("ranks", [0, 2])
def test_a_malformed_limit_is_reported_once(run, ranks):
    done = run("bench", "--seconds", 0.5, ranks=ranks, PETSC_OPTIONS="-localckpt_dir_limit 1,2,3")
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.count("-localckpt_dir_limit is one number") == 1 and "Traceback" not in done.stderr
