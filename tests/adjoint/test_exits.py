"""What is left on disk when the process ends, whichever way: each run is a process of its own."""

import os
import signal
from pathlib import Path

import pytest
from known_faults import TAPE_MAY_BE_KEPT
from test_files import files_below

RUN = """
sys.path.insert(0, sys.argv[1])
directory, cleanup, layout, end = sys.argv[2], sys.argv[3] == "cleanup", sys.argv[4], sys.argv[5]
import signal
import firedrake as fd
from firedrake.adjoint import continue_annotation
from burgers import record_on_disk, sweep
from localckpt.adjoint import checkpointable_mesh


def die(step):
    if end == "killed" and step == 3 and comm.rank == comm.size - 1:
        os.kill(os.getpid(), signal.SIGKILL)


continue_annotation()
functional = record_on_disk(dirname=directory, checkpoint_dir=directory, cleanup=cleanup, in_step=die,
                            checkpoint_comm=MPI.COMM_SELF if layout == "own" else comm)
if end == "mesh fails":
    checkpointable_mesh("no mesh")
checkpointable_mesh(fd.UnitSquareMesh(2, 2))
sweep(functional, 1.3)
if end == "raises":
    raise RuntimeError("the end of this run")
if end == "exits":
    sys.exit(3)
if end == "aborts":
    comm.Abort(3)
if end.startswith("SIG"):
    os.kill(os.getpid(), getattr(signal, end))
if end == "forgets":
    import gc
    from firedrake.adjoint import get_working_tape, set_working_tape, Tape
    get_working_tape()._package_data["firedrake"].tape = get_working_tape()
    del functional
    set_working_tape(Tape())
    gc.collect()
    assert not os.listdir(directory), os.listdir(directory)
"""


@pytest.fixture
def run(run_script, tmp_path):
    """run(ranks, how it ends, cleanup, layout): the finished process and its directory."""

    def run(ranks, end, cleanup="cleanup", layout="own"):
        directory = tmp_path / "checkpoints"
        directory.mkdir()
        done = run_script(RUN, Path(__file__).parent, directory, cleanup, layout, end, ranks=ranks, seconds=120)
        return done, directory

    return run


@pytest.mark.parametrize("ranks, layout", [(0, "own"), (2, "own"), (2, "world")])
def test_nothing_is_left_after_the_end(run, ranks, layout):
    done, directory = run(ranks, "returns", layout=layout)
    assert (done.returncode, os.listdir(directory)) == (0, []), done.stderr


def test_nothing_is_left_after_an_exception(run):
    done, directory = run(0, "raises")
    assert (done.returncode, os.listdir(directory)) == (1, []), done.stderr


@pytest.mark.parametrize("end", ["exits", "SIGINT"])
def test_nothing_is_left_after(run, end):
    done, directory = run(0, end)
    assert done.returncode != 0 and os.listdir(directory) == [], done.stderr
    assert "Exception ignored" not in done.stderr


@pytest.mark.parametrize("end", ["aborts", "SIGTERM", "SIGKILL"])
def test_no_bytes_are_left_after(run, end):
    done, directory = run(0, end)
    assert done.returncode != 0
    assert sum(files_below(directory).values()) == 0


@pytest.mark.parametrize("ranks", [0, 2])
def test_no_bytes_are_left_after_a_mesh_that_could_not_be_written(run, ranks):
    done, directory = run(ranks, "mesh fails")
    assert done.returncode != 0 and "Error" in done.stderr
    assert sum(files_below(directory).values()) == 0


@TAPE_MAY_BE_KEPT
def test_a_tape_in_a_reference_cycle_is_cleaned_up_with_it(run):
    done, directory = run(0, "forgets")
    assert (done.returncode, os.listdir(directory)) == (0, []), done.stderr


def test_no_bytes_are_left_after_a_kill(run):
    done, directory = run(0, "killed")
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert sum(files_below(directory).values()) == 0


@pytest.mark.parametrize("layout", ["own", "world"])
def test_no_bytes_are_left_after_one_rank_was_killed(run, layout):
    done, directory = run(2, "killed", layout=layout)
    assert done.returncode != 0
    assert sum(files_below(directory).values()) == 0


def test_without_cleanup_the_data_is_left(run):
    done, directory = run(0, "returns", cleanup="keep")
    sizes = {Path(path).name: size for path, size in files_below(directory).items()}
    assert done.returncode == 0 and sizes["current.h5"] > 0, done.stderr


def test_nothing_is_said_at_the_end(run):
    done, _ = run(0, "returns")
    assert "Exception ignored" not in done.stderr and "Traceback" not in done.stderr
