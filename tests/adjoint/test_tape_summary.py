"""What a run says of its checkpoints: on request, when it ends, and beside each step."""

import io
import logging
import re
from pathlib import Path

import pytest
from burgers import STEPS, record_on_disk, sweep
from firedrake.adjoint import set_working_tape
from firedrake.adjoint_utils import checkpointing as firedrakes
from mpi4py import MPI

import localckpt.adjoint
from localckpt.adjoint import ProgressBar, summary

WORLD = MPI.COMM_WORLD

RUN = """
sys.path.insert(0, sys.argv[1])
from burgers import record_on_disk, sweep
from firedrake.adjoint import continue_annotation
continue_annotation()
functional = record_on_disk(checkpoint_dir=sys.argv[2])
sweep(functional, 1.0)
print("done", flush=True)
"""


@pytest.fixture
def checkpointer(tape, tmp_path):
    """Of a tape that was evaluated once."""
    sweep(record_on_disk(checkpoint_dir=str(tmp_path)), 1.0)
    return tape._package_data["firedrake"]


@pytest.mark.parallel([1, 3])
def test_summary_is_that_of_all_ranks(checkpointer, caplog):
    caplog.set_level(logging.INFO, logger="localckpt")
    summary = checkpointer.summary()
    assert summary.ranks == WORLD.size
    assert summary.saves >= WORLD.size * STEPS and summary.saves > summary.repeats > 0
    assert summary.restores > 0 and summary.written < summary.saved and summary.saving > 0
    assert 0 < summary.live == summary.peak
    assert len(set(WORLD.allgather(str(summary)))) == 1
    records = [record for record in caplog.records if record.getMessage() == str(summary)]
    assert [record.levelname for record in records] == ["INFO"] * (WORLD.rank == 0)


@pytest.mark.parametrize("ranks, end", [(0, "raise SystemExit(3)"), (2, "")])
def test_summary_is_printed_when_the_run_ends_if_asked_for(run_script, tmp_path, ranks, end, monkeypatch):
    monkeypatch.setenv("PETSC_OPTIONS", "-localckpt_view")
    done = run_script(RUN + end, Path(__file__).parent, tmp_path, ranks=ranks)
    said = done.stdout.partition("done")[2].split()
    assert said.count("saves") == 1 and str(tmp_path) in said, done.stderr
    assert (done.returncode != 0) == bool(end)


def test_summary_is_not_printed_otherwise(run_script, tmp_path):
    assert run_script(RUN, Path(__file__).parent, tmp_path).stdout == "done\n"


@pytest.mark.parallel([1, 2])
def test_progress_bar_shows_the_pace_of_checkpoints_on_rank_0(tape, tmp_path):
    class Bar(ProgressBar):
        file = io.StringIO()

    tape.progress_bar = Bar
    sweep(record_on_disk(checkpoint_dir=str(tmp_path)), 1.3)  # another control than was taped: new bytes
    lines = re.split(r"[\r\n]+", Bar.file.getvalue())
    if WORLD.rank == 0:
        assert any(re.search(rf"Evaluating Functional .* [1-9]/{STEPS} .* write \d+ read", line) for line in lines)
        assert any(re.search(rf"Evaluating Adjoint .* [1-9]/{STEPS} .* read \d+ MB/s", line) for line in lines)
        assert all("write - read - MB/s" in line for line in lines if " 0/" in line)  # nothing of an earlier one
    else:
        assert lines == [""]


@pytest.mark.parallel([1, 3])
def test_the_public_summary_is_that_of_the_working_tape(checkpointer):
    found = summary()
    assert found == checkpointer.summary() and found.ranks == WORLD.size


@pytest.mark.parallel([1, 2])
def test_the_summary_of_a_given_tape_is_not_that_of_the_working_one(checkpointer, tape):
    with set_working_tape():
        assert summary(tape) == checkpointer.summary()


@pytest.mark.parallel([1, 2])
@pytest.mark.parametrize("whose", ["nobody's", "Firedrake's"])
@pytest.mark.filterwarnings("ignore:this is Firedrake's:UserWarning")
def test_without_a_checkpointer_of_localckpts_the_summary_says_so(whose, tape, shared_tmp):
    if whose == "Firedrake's":
        firedrakes.enable_disk_checkpointing(dirname=str(shared_tmp))
    with pytest.raises(ValueError, match="^this tape has no checkpointer of localckpt's: call .*enable_disk_check"):
        summary()
    with set_working_tape(), pytest.raises(ValueError, match="this tape has no checkpointer of localckpt's"):
        summary(tape)


def test_without_a_tape_the_summary_says_so():
    with set_working_tape(None), pytest.raises(ValueError, match="no checkpointer of localckpt's"):
        summary()


def test_a_star_import_does_not_bring_the_summary():
    assert "summary" not in localckpt.adjoint.__all__
