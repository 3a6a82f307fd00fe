"""Arguments that make no sense, or are not the same on all ranks: one sentence, on every rank, and no waiting."""

import json
import re
import warnings

import pytest
from firedrake.adjoint import set_working_tape
from mpi4py import MPI

from localckpt.adjoint import enable_disk_checkpointing

# One run tries all: starting takes longer than they do.
RUN = """
import json
from firedrake.adjoint import get_working_tape, set_working_tape
from localckpt.adjoint import DiskCheckpointer, enable_disk_checkpointing
options, directory, elsewhere = PETSc.Options("localckpt_"), sys.argv[1], sys.argv[2]
first = comm.rank == 0
lone = comm.Split(comm.rank)
pairs = comm.Split(comm.rank // 2)
crossed = comm.Split(comm.rank % 2)


def outcome(option=None, value=None, **arguments):
    with set_working_tape() as tape:
        if option:
            options[option] = value
        kind, words = attempt(lambda: enable_disk_checkpointing(**{"checkpoint_dir": directory} | arguments))[comm.rank]
        if option:
            options.delValue(option)
        return comm.allgather((kind, words, "firedrake" in tape._package_data))


def half_there():
    with set_working_tape() as tape:
        if first:
            tape._package_data["firedrake"] = DiskCheckpointer(comm=MPI.COMM_SELF, checkpoint_dir=directory)
        return [(kind, words, False) for kind, words in attempt(enable_disk_checkpointing)]


one = "viewer" if first else "direct"
found = {
    "checkpoint_comm": outcome(checkpoint_comm=MPI.COMM_SELF if first else comm),
    "checkpoint_comm, sizes alike": outcome(checkpoint_comm=pairs if comm.rank < 2 else crossed),
    "checkpoint_comm, null": outcome(checkpoint_comm=MPI.COMM_NULL if first else lone),
    "engine": outcome(checkpoint_comm=comm, engine=one),
    "-localckpt_engine": outcome("engine", one, checkpoint_comm=comm),
    "engine of files of one rank": outcome(engine=one),
    "cleanup": outcome(cleanup=first),
    "checkpoint_dir": outcome(checkpoint_comm=comm, checkpoint_dir=directory if first else elsewhere),
    "checkpoint_dir of files of one rank": outcome(checkpoint_dir=directory if first else elsewhere),
    "number of directories": outcome(checkpoint_comm=comm, checkpoint_dir=[directory] * (1 + first)),
    "-localckpt_dir_limit": outcome("dir_limit", "1e9" if first else "2e9", checkpoint_comm=comm),
    "-localckpt_dir_limit of files of one rank": outcome("dir_limit", "1e9" if first else "2e9"),
    "-localckpt_view": outcome("view", "ascii:x" if first else "true"),
    "-localckpt_view, no directory": outcome("view", ":/nonexistent/run.json:json" if first else "false"),
    "tape": half_there(),
    "wrong on one rank": outcome(checkpoint_dir=3 if first else directory),
    "nothing": outcome(checkpoint_comm=comm),
}
if first:
    print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def known():
    return {}


@pytest.fixture
def outcomes(known, run_script, tmp_path):
    """On each of four ranks: the exception, its words, whether the tape then has a checkpointer."""
    if not known:
        (tmp_path / "elsewhere").mkdir()
        done = run_script(RUN, tmp_path, tmp_path / "elsewhere", ranks=4, seconds=100)
        assert done.returncode == 0, done.stderr[-4000:]
        known.update(json.loads(done.stdout))
    return known


@pytest.mark.parametrize(
    "what, kind, words",
    [
        (
            "checkpoint_comm",
            "ValueError",
            "checkpoint_comm is not the same on all ranks: of size 1 on rank 0; of size 4 on ranks 1, 2, 3$",
        ),
        (
            "checkpoint_comm, sizes alike",
            "ValueError",
            "checkpoint_comm is .* on ranks 0, 1; .* on rank 2; .* on rank 3$",
        ),
        ("checkpoint_comm, null", "TypeError", "checkpoint_comm is an mpi4py.MPI.Intracomm, not COMM_NULL$"),
        (
            "engine",
            "ValueError",
            r"engine \(or -localckpt_engine\) is not .*: viewer on rank 0; direct on ranks 1, 2, 3$",
        ),
        ("-localckpt_engine", "ValueError", r"engine .* is not .*: viewer on rank 0; direct on ranks 1, 2, 3$"),
        ("cleanup", "ValueError", "cleanup is not the same on all ranks: True on rank 0; False on ranks 1, 2, 3$"),
        ("checkpoint_dir", "ValueError", r"_dir='\S+' on rank 0; checkpoint_dir='\S+/elsewhere' on ranks 1, 2, 3$"),
        ("number of directories", "ValueError", r"the directory for checkpoints is not the same .* on ranks 1, 2, 3$"),
        ("-localckpt_dir_limit", "ValueError", r"_dir_limit is not .*: 1e\+09 on rank 0; 2e\+09 on ranks 1, 2, 3$"),
        (
            "-localckpt_view",
            "ValueError",
            "-localckpt_view is empty, a Boolean or :FILE:json, not 'ascii:x'$",
        ),
        ("-localckpt_view, no directory", "OSError", "-localckpt_view cannot write /nonexistent/run.json: name a file"),
        (
            "tape",
            "ValueError",
            "the working tape .*: has one already on rank 0; has no checkpointer yet on ranks 1, 2, 3$",
        ),
        ("wrong on one rank", "TypeError", "checkpoint_dir is the path of a directory or a sequence of paths, not 3$"),
    ],
)
def test_a_difference_is_one_sentence_on_every_rank_that_names_it(outcomes, what, kind, words):
    assert {(found_kind, there) for found_kind, _, there in outcomes[what]} == {(kind, False)}
    (sentence,) = {said for _, said, _ in outcomes[what]}
    assert re.search(words, sentence), sentence


@pytest.mark.parametrize(
    "what",
    [
        "engine of files of one rank",
        "checkpoint_dir of files of one rank",
        "-localckpt_dir_limit of files of one rank",
        "nothing",
    ],
)
def test_a_difference_that_does_no_harm_is_allowed(outcomes, what):
    assert outcomes[what] == [["nothing", "", True]] * 4


@pytest.mark.parallel([1, 2])
@pytest.mark.parametrize(
    "argument, kind, words",
    [
        (
            {"checkpoint_dir": "/nonexistent"},
            FileNotFoundError,
            "checkpoint_dir='/nonexistent' on .*: name a directory",
        ),
        ({"dirname": "/nonexistent"}, FileNotFoundError, "dirname='/nonexistent' on .*: name a directory"),
        ({"checkpoint_dir": "$NOT_SET/x"}, FileNotFoundError, r"checkpoint_dir='\$NOT_SET/x' .* NOT_SET is not set"),
        ({"checkpoint_dir": "/dev/null"}, NotADirectoryError, "checkpoint_dir='/dev/null' .*: name a directory"),
        ({"checkpoint_dir": 3}, TypeError, "checkpoint_dir is the path of a directory or a sequence of paths, not 3"),
        ({"dirname": 3}, TypeError, "dirname is the path of a directory, not 3"),
        ({"checkpoint_comm": "x"}, TypeError, "checkpoint_comm is an mpi4py.MPI.Intracomm, not 'x'"),
        ({"comm": "x"}, TypeError, "comm is an mpi4py.MPI.Intracomm, not 'x'"),
    ],
    ids=str,
)
def test_bad_input_names_the_argument_and_says_what_to_do(argument, kind, words, tape):
    with pytest.raises(kind, match=words), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the current directory is taken
        enable_disk_checkpointing(**argument)
    assert not tape._package_data


@pytest.mark.parallel([1, 2])
def test_a_second_call_with_other_arguments_warns_of_what_is_ignored(shared_tmp, tape):
    enable_disk_checkpointing(checkpoint_dir=str(shared_tmp))
    there = tape._package_data["firedrake"]
    with pytest.warns(UserWarning, match="keeps the checkpointer that it has; ignored: cleanup, engine$") as found:
        enable_disk_checkpointing(checkpoint_dir=str(shared_tmp), cleanup=False, engine="viewer")
    assert tape._package_data["firedrake"] is there and found[0].filename == __file__


@pytest.mark.parallel([1, 2])
def test_a_second_call_with_equal_arguments_or_none_says_nothing(shared_tmp, recwarn):
    arguments = {"checkpoint_dir": [str(shared_tmp)], "checkpoint_comm": MPI.COMM_SELF, "cleanup": False}
    enable_disk_checkpointing(**arguments)
    enable_disk_checkpointing(**arguments)
    enable_disk_checkpointing()
    assert not [warning for warning in recwarn if "keeps" in str(warning.message)]


@pytest.mark.parallel([1, 2])
@pytest.mark.filterwarnings("error")
def test_a_warning_that_is_an_error_is_one_on_every_rank(raises_everywhere):
    with set_working_tape(), raises_everywhere(UserWarning, match="defaults to cwd"):
        enable_disk_checkpointing(checkpoint_comm=MPI.COMM_SELF)
