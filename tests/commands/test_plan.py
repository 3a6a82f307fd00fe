"""``python -m localckpt plan``."""

import json
import os
import re
import sys

import pytest

from localckpt.adjoint.sweeps import SHARE
from localckpt.commands import bench
from localckpt.commands.plan import Disk, Planner, Step, disk_of
from localckpt.commands.schedules import Candidate, Room, candidates, count, fewer
from localckpt.commands.units import duration, size, walltime

HAND = "--step-bytes", "100M", "--restart-bytes", "50M", "--forward", "1s", "--reverse", "2s"
# Of a timestep of 1 MB on each of 4 ranks.
COST = bench.TimestepCost(1e6, save=0.004, restore=0.002, save_to_disk=0.04, restore_from_disk=0.02)


@pytest.fixture
def disk(tmp_path):
    """What bench has found on a node of 4 ranks with 10 GB free in one directory, and another one in memory."""
    results = [
        bench.Result("/scratch", None, "ext4", False, 10**10, 2500, [], COST),
        bench.Result("/dev/shm", None, "tmpfs", True, 10**11, 25000, [], COST),
    ]
    path = tmp_path / "bench.json"
    with open(path, "w") as file, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", file)
        bench.print_json(8, 4, results, "/scratch")
    return path


@pytest.fixture
def plan(run, disk):
    """plan(*arguments): exit status and report of a plan for that disk."""

    def plan(*arguments, **variables):
        done = run("plan", "--disk", disk, "--json", *arguments, **variables)
        return done.returncode, json.loads(done.stdout)

    return plan


@pytest.mark.parametrize(
    "word, nbytes",
    [("12", 12), ("180M", 180e6), ("1.5T", 1.5e12), ("60GB", 60e9), ("4e9", 4e9), ("2KiB", 2048), ("1g", 1e9)],
)
def test_sizes_have_units(word, nbytes):
    assert size(word) == nbytes


@pytest.mark.parametrize(
    "word, seconds", [("12", 12), ("12s", 12), ("200ms", 0.2), ("1.5h", 5400), ("3min", 180), ("1e-3", 0.001)]
)
def test_times_have_units(word, seconds):
    assert duration(word) == pytest.approx(seconds) and walltime(word) == pytest.approx(seconds)


@pytest.mark.parametrize("word, seconds", [("24:00", 86400), ("0:30:05", 1805), ("1-12:00", 129600)])
def test_walltimes_are_written_as_schedulers_do(word, seconds):
    assert walltime(word) == seconds


@pytest.mark.parametrize(
    "call, word", [(size, "12X"), (size, ""), (duration, "0s"), (duration, "1m"), (walltime, "1:2")]
)
def test_other_words_are_refused(call, word):
    with pytest.raises(ValueError):
        call(word)


def test_no_candidate_needs_more_than_there_is_room_for():
    for steps in (1, 2, 3, 5, 9, 40):
        for disk, memory in ((0, 0), (0, 1), (1, 0), (1, 1), (2, 3), (8, 2), (100, 100)):
            for one in candidates(steps, Room(disk, memory, disk // 2, memory // 2), 0.1, 0.1):
                counts = one.count(steps)
                assert counts.forward >= steps
                if not one.kind.__name__.startswith("Single"):
                    assert counts.disk_peak <= disk and counts.memory_peak <= memory, one


def test_the_number_of_tries_is_bounded():
    assert len(list(fewer(10**6, 10**6, 7))) == 7 and len(list(fewer(3, 0, 100))) == 2
    assert list(fewer(1, 1, 9)) == [(1, 1), (0, 1), (1, 0)]


def test_peaks_are_bytes_of_both_kinds():
    from checkpoint_schedules import MixedCheckpointSchedule, SingleDiskStorageSchedule, SingleMemoryStorageSchedule

    assert count(SingleDiskStorageSchedule(), 10, restart=1, adjoint=7).disk_peak == 70
    assert count(SingleMemoryStorageSchedule(), 10, restart=1, adjoint=7).memory_peak == 63
    mixed = Candidate(MixedCheckpointSchedule, (10, 3))
    assert mixed.count(10, 1, 1).disk_peak == 3 < mixed.count(10, 1, 7).disk_peak <= 21


def estimated(memory, kind="SingleDiskStorageSchedule", saving=None, write=0.01):
    """What 10 timesteps of 100 bytes take, of which reading takes twice as long as writing them."""
    disk = Disk(["/scratch"], 1e9, 0.001, 0.002, write, 0.02, 1, [])
    planner = Planner(Step(100, 100, 1, 2, saving, saving), disk, 1e9, memory, 1e9)
    every = planner.for_steps(10, Room.of(1e9, memory, 100, 100))
    (estimate,) = (estimate for candidate, estimate in every if candidate.kind.__name__ == kind)
    return estimate


def test_an_iteration_takes_its_steps_its_saves_and_its_restores():
    # 10 steps, 10 saves; 10 restores of the reverse sweep, and one at the beginning of the next evaluation
    assert estimated(1e4).seconds == pytest.approx(10 * (1 + 2) + 1000 * 0.001 + 1100 * 0.002)
    assert estimated(1e4).waiting == 0
    assert estimated(1e4, saving=0.5).seconds == pytest.approx(10 * (1 + 2) + 10 * 0.5 + 11 * 0.5)


def test_what_memory_does_not_hold_waits_for_the_disk():
    assert estimated(0).waiting == pytest.approx(1100 * 0.02)  # writing takes 10 s, during which the steps are computed
    assert estimated(500).waiting == pytest.approx(1100 * 0.02 / 2)
    assert estimated(0, write=0.05).waiting == pytest.approx(1100 * 0.02 + 1000 * 0.05 - 10)
    assert estimated(0).seconds == pytest.approx(estimated(1e4).seconds + estimated(0).waiting)


def test_steps_that_are_computed_again_count():
    one = estimated(300, "Revolve")
    assert one.recomputed > 0 and one.seconds == pytest.approx(10 * 2 + one.forward + one.memory / 100 * 0.1, rel=0.1)


def test_room_is_what_is_free_and_allowed(tmp_path):
    here = bench.Result(str(tmp_path), None, "ext4", False, 1000, 1, [], COST)
    there = bench.Result("/elsewhere", None, "ext4", False, 500, 1, [], COST)
    in_memory = bench.Result("/dev/shm", None, "tmpfs", True, 10**9, 1, [], COST)
    failed = bench.Result("/not", "No such file")
    inf = float("inf")
    assert disk_of([(here, inf), (there, 100)], 4).room == 1100
    assert disk_of([(here, 300), (here, 300)], 4).room == 600  # two directories of one disk
    assert disk_of([(here, inf), (here, inf)], 4).room == 1000
    assert disk_of([(in_memory, inf), (failed, inf)], 4).room == 0
    assert disk_of([(in_memory, inf), (failed, inf)], 4).notes == [
        "/dev/shm: in memory, not on a disk",
        "/not: No such file",
    ]
    assert disk_of([(here, inf)], 4).save == pytest.approx(0.004 / 4e6)


def test_the_best_schedule_is_a_line_to_paste(plan):
    status, report = plan("--steps", 60, *HAND, "--memory", "1G", "--room", "2G")
    best, everyone = report["best"], report["schedules"]
    assert status == 0 and best["schedule"] == everyone[0]["schedule"]
    names = {}
    exec(best["import"], names)
    assert eval(best["schedule"], names).max_n in (60, None)
    seconds = [one["seconds"] for one in everyone if not one["problem"]]
    assert seconds == sorted(seconds)
    problems = {one["schedule"]: one["problem"] for one in everyone}
    assert problems["SingleDiskStorageSchedule()"] == "disk" and problems["SingleMemoryStorageSchedule()"] == "memory"
    kinds = {one["schedule"].partition("(")[0] for one in everyone}
    assert kinds >= {"MultistageCheckpointSchedule", "HRevolve", "Revolve", "TwoLevelCheckpointSchedule"}
    assert all(one["disk"] <= 2e9 and one["memory"] <= 1e9 for one in everyone if not one["problem"])


@pytest.mark.parametrize(
    "arguments, problem",
    [
        (["--room", "10M"], "disk"),
        (["--walltime", "0:05"], "time"),
        (["--dir", "/dev/shm"], "disk"),
        (["--dir", "/nowhere"], "disk"),
    ],
    ids=str,
)
def test_if_nothing_fits_the_status_is_1(plan, arguments, problem):
    status, report = plan("--steps", 200, *HAND, *arguments)
    assert status == 1 and report["best"] is None
    assert {one["problem"] for one in report["schedules"]} <= {problem, "disk", "memory"}
    assert problem in {one["problem"] for one in report["schedules"]}


def test_the_text_says_what_to_ask_for_and_what_to_write(run, disk):
    done = run("plan", "--disk", disk, "--steps", 2000, *HAND, "--ranks-per-node", 48, "--walltime", "24:00")
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert lines[0].startswith("a timestep, on a node: 100 MB of adjoint data, 50 MB of restart data; 1 s forward, 2 s")
    assert "room for 10 GB in /scratch; 100 MB/s written, 200 MB/s read" in lines[1]
    assert any(
        line.startswith("note: ") and "measured the disk together: 4; that are to use it: 48" in line for line in lines
    )
    assert any("tried with at most 2 checkpoints" in line for line in lines)  # of those that take long to prepare
    assert any(re.match("yes +MultistageCheckpointSchedule", line) for line in lines)
    assert lines[-5].startswith("ask for, on each node: ") and " of local disk" in lines[-5]
    assert lines[-4].startswith("ask for ") and lines[-4].endswith(" for each iteration")
    assert lines[-3].startswith("'run --resume-sweeps' adds at most ")
    assert lines[-2].startswith("from checkpoint_schedules import ")
    assert lines[-1].startswith("tape.enable_checkpointing(") and lines[-1].endswith(")")


def test_it_says_what_resume_adds(plan):
    _, report = plan("--steps", 60, *HAND, "--memory", "1G", "--room", "2G")
    seconds = report["schedules"][0]["seconds"]
    assert report["resume"] == {"seconds": pytest.approx(SHARE * seconds), "nbytes": 60 * 100e6}


def test_without_steps_it_says_how_many_fit(plan):
    status, report = plan(*HAND, "--memory", "1G", "--walltime", "1:00")
    assert status == 0
    steps = {one["schedule"]: one["steps"] for one in report["schedules"]}
    assert steps["SingleDiskStorageSchedule()"] == 100 and steps["SingleMemoryStorageSchedule()"] == 11
    assert {name.partition("(")[0] for name in steps} == {
        "SingleDiskStorageSchedule",
        "SingleMemoryStorageSchedule",
        "TwoLevelCheckpointSchedule",
    }
    assert all(one["seconds"] <= 3600 and not one["problem"] for one in report["schedules"])


def test_a_short_run_stands_for_a_node_with_more_ranks(plan, tmp_path):
    kind = {"stored": 1e6, "restored": 2e6}
    found = {"ranks_per_node": 2, "restart": kind, "adjoint": kind, "saving": 0.1, "restoring": 0.2}
    (tmp_path / "run.json").write_text(json.dumps(found | {"forward": 1.5, "reverse": 2.5}))
    arguments = "--steps", 20, "--from", tmp_path / "run.json"
    _, report = plan(*arguments)
    assert report["step"] == {
        "restart": 1e6,
        "adjoint": 1e6,
        "forward": 1.5,
        "reverse": 2.5,
        "saving": 0.1,
        "restoring": 0.2,
    }
    _, report = plan(*arguments, "--ranks-per-node", 8, "--forward", "1s")
    assert (report["step"]["adjoint"], report["step"]["forward"], report["step"]["reverse"]) == (4e6, 1, 2.5)


@pytest.mark.parametrize(
    "found, words",
    [
        (None, "cannot read"),
        ("no JSON", "cannot read"),
        ("[]", "is not what -localckpt_view :FILE:json writes"),
        ('{"ranks_per_node": 0}', "is not what -localckpt_view :FILE:json writes"),
        (
            '{"ranks_per_node": 1, "restart": {"stored": 5}, "adjoint": {"stored": null}, "forward": null, '
            '"reverse": null, "saving": null, "restoring": null}',
            "the short run has not measured what --step-bytes and --forward and --reverse would say: let it use Single",
        ),
    ],
)
def test_a_file_that_does_not_say_it_is_status_2(run, tmp_path, found, words):
    if found is not None:
        (tmp_path / "run.json").write_text(found)
    done = run("plan", "--steps", 5, "--from", tmp_path / "run.json")
    assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--steps", "5"], "--from FILE, or --step-bytes and --forward and --reverse, is required"),
        (["--steps", "0", *HAND], "argument --steps"),
        (["--steps", "5", *HAND, "--disk", "/dev/null"], "argument --disk: cannot read /dev/null"),
    ],
    ids=str,
)
def test_a_wrong_command_line_is_status_2(run, arguments, words):
    done = run("plan", *arguments)
    assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr


def test_a_measured_disk_needs_neither_mpi_nor_firedrake(plan, missing):
    status, _ = plan("--steps", 5, *HAND, **missing("firedrake") | missing("mpi4py"))
    assert status == 0


def test_without_checkpoint_schedules_it_says_so(run, disk, missing):
    done = run("plan", "--disk", disk, "--steps", 5, *HAND, **missing("checkpoint_schedules"))
    assert done.returncode == 1 and "checkpoint_schedules comes with Firedrake" in done.stderr
    assert "Traceback" not in done.stderr


def test_all_ranks_measure_and_one_prints(run, tmp_path):
    (tmp_path / "disk").mkdir()
    arguments = "--steps", 5, *HAND, "--dir", tmp_path / "disk", "--seconds", 0.3, "--json"
    done = run("plan", *arguments, ranks=2, PETSC_OPTIONS="-localckpt_dir_limit 1e6", PBS_NCI_JOBFS="100GB")
    report = json.loads(done.stdout)
    assert done.returncode == 1, done.stderr  # 1 MB holds nothing
    assert "the scheduler's limit is PBS_NCI_JOBFS=100GB: give a node's share of it with --room" in report["notes"]
    assert (report["disk"]["room"], report["disk"]["ranks"]) == (1e6, 2)
    assert 0 < report["disk"]["save"] and 0 < report["disk"]["write"] and os.listdir(tmp_path / "disk") == []
