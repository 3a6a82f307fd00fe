"""What killed runs leave behind: found, and removed by the next run or by hand; nothing else is touched."""

import json
import os
import resource
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from localckpt.storage import run_directories

RUN = """
from localckpt.adjoint import DiskCheckpointer
checkpointer = DiskCheckpointer(checkpoint_dir=sys.argv[1])
print(checkpointer.dirname, flush=True)
"""
HOLDER = """
import sys
import tempfile
from localckpt.storage import run_directories
print(run_directories.make(sys.argv[1]), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """holder(*before): a live process that has a directory, and the directory."""
    started = []

    def start(*before):
        process = subprocess.Popen(
            [*before, sys.executable, "-c", HOLDER, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process, Path(process.stdout.readline().strip())

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def dead(holder):
    """The directory of a process that was killed."""
    process, directory = holder()
    process.kill()
    process.wait()
    return directory


def clean(directory, *options):
    done = subprocess.run(
        [sys.executable, "-m", "localckpt", "clean", str(directory), *options],
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout


def test_a_dry_run_lists_what_a_killed_run_has_left(tmp_path, dead):
    status, said = clean(tmp_path)
    assert status == 0 and str(dead) in said and "--yes" in said and dead.exists()


def test_what_a_killed_run_has_left_is_removed(tmp_path, dead):
    (dead / "current.h5").write_bytes(b"x" * 10**6)
    status, said = clean(tmp_path, "--yes", "--json")
    (found,) = json.loads(said)
    assert status == 0 and found["removed"] and found["nbytes"] >= 10**6 and not dead.exists()


def test_a_live_runs_directory_stays(tmp_path, holder):
    _, directory = holder()
    status, said = clean(tmp_path, "--yes")
    assert status == 0 and "in use" in said and directory.exists()


def test_a_directory_that_was_to_be_kept_stays(tmp_path):
    directory = run_directories.make(str(tmp_path), keep=True)
    os.close(run_directories._locks.pop(directory)[0])
    assert "kept" in clean(tmp_path, "--yes")[1] and os.path.exists(directory)


def test_another_hosts_directory_stays(tmp_path):
    (tmp_path / "localckpt_not-this-host_abcdefgh").mkdir()
    assert "another host" in clean(tmp_path, "--yes")[1]
    assert (tmp_path / "localckpt_not-this-host_abcdefgh").exists()


def test_directory_of_a_host_whose_name_goes_on_after_this_ones_stays(tmp_path):
    directory = tmp_path / f"localckpt_{socket.gethostname()}_2_abcdefgh"
    directory.mkdir()
    assert "another host" in clean(tmp_path, "--yes")[1]
    assert directory.exists()


def test_a_start_does_not_look_into_what_other_hosts_have(tmp_path):
    (tmp_path / "localckpt_not-this-host_abcdefgh").mkdir()
    own = run_directories.make(str(tmp_path))
    assert [directory.path for directory in run_directories.find(tmp_path, run_directories.host_prefix())] == [own]
    run_directories.remove(own)


def test_another_users_directory_stays(tmp_path):
    directory = tmp_path / f"localckpt_{socket.gethostname()}_abcdefgh"
    directory.mkdir()
    # Who may make a directory look like another user's? Root; anybody else finds one in a user namespace.
    found = run_directories.find(tmp_path)[0]
    if os.getuid() == 0:
        os.chown(directory, 12345, 12345)
        found = run_directories.find(tmp_path)[0]
        assert found.reason_to_keep == "of another user"
    assert run_directories.remove_dead(run_directories.find(tmp_path)) == ([] if os.getuid() == 0 else [found])


def test_a_link_is_not_followed(tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.tex").touch()
    (tmp_path / f"localckpt_{socket.gethostname()}_abcdefgh").symlink_to(precious)
    clean(tmp_path, "--yes")
    assert (precious / "thesis.tex").exists()


def test_other_directories_stay(tmp_path):
    (tmp_path / "mine").mkdir()
    assert clean(tmp_path, "--yes") == (0, f"nothing in {tmp_path}\n") and (tmp_path / "mine").exists()


def test_the_next_run_removes_what_a_killed_one_has_left(tmp_path, run_script):
    killed = run_script(RUN + "os.kill(os.getpid(), 9)", tmp_path)
    assert killed.returncode == -signal.SIGKILL
    left = Path(killed.stdout.strip())
    assert left.exists()
    done = run_script(RUN, tmp_path)
    assert done.returncode == 0 and not left.exists()
    assert "removed 1 directories that dead runs had left" in done.stderr


def test_the_next_run_leaves_a_live_one_alone(tmp_path, run_script, holder):
    _, directory = holder()
    assert run_script(RUN, tmp_path).returncode == 0 and directory.exists()


def test_ranks_of_one_run_leave_each_other_alone(tmp_path, run_script):
    done = run_script(
        RUN
        + """
comm.barrier()
assert os.path.exists(checkpointer.dirname)
comm.barrier()
""",
        tmp_path,
        ranks=3,
    )
    assert done.returncode == 0, done.stderr
    assert os.listdir(tmp_path) == ["script.py"]


def test_runs_that_start_while_others_clean_keep_their_directories(tmp_path, run_script):
    code = """
import time
from localckpt.storage import run_directories
mine = []
end = time.monotonic() + 4
while time.monotonic() < end:
    mine.append(run_directories.make(sys.argv[1], ["init.h5"]))
    assert os.path.exists(mine[-1] + "/init.h5")
    run_directories.remove_dead(run_directories.find(sys.argv[1]))
    assert all(map(os.path.exists, mine))
    if len(mine) > 5:
        run_directories.remove(mine.pop(0))
"""
    done = run_script(code, tmp_path, ranks=4)
    assert done.returncode == 0, done.stderr


def test_a_directory_that_could_not_be_locked_is_not_left(tmp_path):
    first, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))), hard))
    used = []
    try:
        while len(used) < first:  # there may be gaps
            used.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        with pytest.raises(OSError, match="Too many open files"):
            run_directories.make(str(tmp_path))
    finally:
        for number in used:
            os.close(number)
        resource.setrlimit(resource.RLIMIT_NOFILE, (first, hard))
    assert os.listdir(tmp_path) == []


def test_where_nobody_can_look_there_is_nothing_to_remove(tmp_path):
    assert clean(tmp_path / "missing", "--yes") == (0, f"nothing in {tmp_path / 'missing'}\n")


@pytest.mark.parametrize("umask", [0, 0o77])
def test_nobody_else_can_look_in(tmp_path, umask):
    old = os.umask(umask)
    try:
        directory = run_directories.make(str(tmp_path), ["init.h5"])
    finally:
        os.umask(old)
    modes = [stat.S_IMODE(os.stat(path).st_mode) for path in (directory, directory + "/init.h5")]
    run_directories.remove(directory)
    assert modes == [0o700, 0o600]


def test_a_forked_child_removes_nothing(tmp_path, run_script):
    done = run_script(
        RUN
        + """
if os.fork() == 0:
    del checkpointer
    import gc; gc.collect()
    os._exit(0)
os.wait()
assert os.path.exists(checkpointer.dirname + "/init.h5")
""",
        tmp_path,
    )
    assert done.returncode == 0, done.stderr


def test_a_run_whose_directory_was_removed_by_a_cleaner_goes_on(tmp_path, run_script):
    done = run_script(
        "sys.path.insert(0, sys.argv[2])\n"
        + """
import shutil
from burgers import assert_same, reference, record_on_disk, replay
from firedrake.adjoint import continue_annotation, get_working_tape
expected = reference()
continue_annotation()
functional = record_on_disk(checkpoint_dir=sys.argv[1])
shutil.rmtree(get_working_tape()._package_data["firedrake"].dirname)
assert_same(replay(functional), expected)
""",
        tmp_path,
        Path(__file__).parents[1] / "adjoint",
    )
    assert done.returncode == 0, done.stderr


def test_a_relative_directory_stays_where_it_was_when_the_current_one_changes(tmp_path, run_script):
    (tmp_path / "mine").mkdir()
    done = run_script(
        """
from localckpt.storage.store import Store
from localckpt.storage.directories import choose_tiers
os.chdir(sys.argv[1])
store = Store.temporary(directories="mine")
assert [tier.path for tier in choose_tiers("mine", 1)] == [sys.argv[1] + "/mine"]
os.chdir("/")
stored = store.put("a", np.arange(5.0))
assert (store.get(stored, (5,), np.dtype(float)) == np.arange(5.0)).all()
""",
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert os.listdir(tmp_path / "mine") == []


def test_a_directory_that_cannot_be_looked_at_stays_with_the_reason():
    parent = Path(tempfile.mkdtemp())  # pytest's own are for nobody else
    (parent / f"localckpt_{socket.gethostname()}_abcdefgh").mkdir()
    parent.chmod(0o444)  # names can be read, and nothing else
    user = os.geteuid()
    try:
        if user == 0:
            os.seteuid(65534)
        (found,) = run_directories.find(parent)
    finally:
        os.seteuid(user)
        parent.chmod(0o700)
        shutil.rmtree(parent)
    assert "Permission denied" in found.reason_to_keep and found.age == 0
