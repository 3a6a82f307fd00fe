"""One job has a directory: none while another one lives, and the next one as soon as it is dead."""

import os
import re
import signal
import socket
import stat
import time
from contextlib import contextmanager

import pytest

from localckpt.storage import ownership
from localckpt.storage.journal_entries import as_line
from localckpt.storage.ownership import LOCK, NAME, Owned, Owner, job_name, read_owner, require_owner

pytestmark = pytest.mark.usefixtures("no_job")
SCHEDULER = ("SLURM_JOB_ID", "SLURM_CLUSTER_NAME", "SLURM_RESTART_COUNT", "PBS_JOBID")
NO_LOCKS = {"rw"}  # as an option of filesystems whose locks hold on one host only: all are mounted with it


@pytest.fixture
def no_job(monkeypatch):
    for name in SCHEDULER:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def owned():
    """owned(directory, take_over=False): an Owner, released in the end."""
    owners = []

    def make(*args):
        owners.append(Owner(*args))
        return owners[-1]

    yield make
    for owner in owners:
        owner.release()


@contextmanager
def another_job(directory, before=lambda: None, meanwhile=lambda owner: time.sleep(0.01)):
    """A process that owns the directory and does not end by itself: its number."""
    from_job, to_us = os.pipe()
    child = os.fork()
    if not child:
        try:
            before()
            owner = Owner(directory)
            os.write(to_us, b".")
            while True:
                meanwhile(owner)
        finally:
            os._exit(1)
    os.close(to_us)
    try:
        assert os.read(from_job, 1) == b".", "the other job does not own the directory"
        yield child
    finally:
        os.close(from_job)
        kill(child)


def kill(process):
    try:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    except (ProcessLookupError, ChildProcessError):
        pass  # it was killed already


def leave(directory, quiet=0.0, **changes):
    """The file of an owner that ended without a word, on a host that cannot be looked into."""
    Owner(directory, True).release()
    owner = ownership.read(directory)
    owner.update(host="elsewhere", locked=False, alive=True)
    owner.update(changes)
    with open(os.path.join(directory, NAME), "wb") as file:
        file.write(as_line(owner))
    os.utime(file.name, (time.time() - quiet,) * 2)


@pytest.fixture
def command(tmp_path, monkeypatch):
    """command(name, says, status, complains): the only command that there is."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "bin").mkdir()

    def make(name, says="", status=0, complains=""):
        path = tmp_path / "bin" / name
        path.write_text(
            f"#!/bin/sh\necho \"$@\" > {tmp_path}/asked\necho '{says}'\necho '{complains}' >&2\nexit {status}\n"
        )
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    return make


# Where locks work


def test_a_job_is_refused_while_another_one_lives_and_goes_on_once_it_was_killed(tmp_path, owned):
    with another_job(tmp_path) as process:
        for _ in range(2):
            with pytest.raises(Owned, match=rf"process {process} on {socket.gethostname()} \(since .* runs: .* lock"):
                Owner(tmp_path)
        assert f"process {process} on" in read_owner(tmp_path)
        os.kill(process, signal.SIGKILL)
        os.waitid(os.P_PID, process, os.WEXITED | os.WNOWAIT)  # nobody has asked yet how it ended
        owned(tmp_path).check()


def test_a_job_that_has_ended_leaves_the_directory_to_the_next_one(tmp_path, owned):
    first = owned(tmp_path)
    assert f"process {os.getpid()} on" in read_owner(tmp_path)
    first.release()
    assert read_owner(tmp_path) == ""
    second = owned(tmp_path)
    first.release()
    second.check()
    assert first.token != second.token
    assert sorted(os.listdir(tmp_path)) == [LOCK, NAME]


def test_nobody_owns_a_new_directory(tmp_path):
    assert read_owner(tmp_path) == read_owner(tmp_path / "missing") == ""
    with pytest.raises(Owned, match="another job has taken it over"):
        require_owner(tmp_path, "token")


def test_looking_who_the_owner_is_does_not_give_up_the_lock(tmp_path, owned):
    owner = owned(tmp_path)
    owner.check()
    require_owner(tmp_path, owner.token)
    assert read_owner(tmp_path)
    child = os.fork()
    if not child:
        try:
            Owner(tmp_path)
        except Owned as exc:
            os._exit(7 if "holds the lock" in str(exc) else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_a_forked_child_does_not_release_the_directory_of_its_parent(tmp_path, owned):
    owner = owned(tmp_path)
    child = os.fork()
    if not child:
        owner.release()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert read_owner(tmp_path)
    with pytest.raises(AssertionError, match="does not own"), another_job(tmp_path):
        pass


def test_a_job_that_is_refused_leaves_no_descriptor_and_changes_nothing(tmp_path):
    with another_job(tmp_path):
        before = os.listdir("/proc/self/fd"), (tmp_path / NAME).read_bytes(), os.stat(tmp_path / NAME).st_mtime
        with pytest.raises(Owned):
            Owner(tmp_path)
        assert before == (
            os.listdir("/proc/self/fd"),
            (tmp_path / NAME).read_bytes(),
            os.stat(tmp_path / NAME).st_mtime,
        )


def test_a_directory_that_cannot_be_used_is_an_error_of_the_system(tmp_path):
    with pytest.raises(FileNotFoundError):
        Owner(tmp_path / "missing")
    (tmp_path / NAME).mkdir()
    before = os.listdir("/proc/self/fd")
    with pytest.raises(IsADirectoryError):
        Owner(tmp_path)
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize("content", [b"", b"\0" * 300, b'{"token":"0', b"5\n", as_line({"token": "0"})[:-4] + b"\n"])
def test_a_file_that_is_not_whole_belongs_to_nobody(tmp_path, owned, content):
    owner = owned(tmp_path)
    (tmp_path / NAME).write_bytes(content)
    assert read_owner(tmp_path) == ""
    with pytest.raises(Owned):
        owner.check()
    owner.release()
    owned(tmp_path).check()


def test_the_file_of_the_owner_can_be_read_while_it_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(ownership, "BEAT", 0.0)
    with another_job(tmp_path, meanwhile=Owner.beat):
        token, seen = ownership.read(tmp_path)["token"], set()
        while len(seen) < 20:  # it has been written so often
            require_owner(tmp_path, token)
            seen.add(os.stat(tmp_path / NAME).st_mtime_ns)
        assert ownership.read(tmp_path)["longest"] > 0


# Taking over


def test_a_job_that_was_taken_over_learns_of_it_and_leaves_the_directory_to_the_other(tmp_path, owned, monkeypatch):
    monkeypatch.setattr(ownership, "BEAT", 0.0)
    old = owned(tmp_path)
    new = owned(tmp_path, True)
    with pytest.raises(Owned, match=rf"process {os.getpid()} on .* has taken it over.*{tmp_path}"):
        old.check()
    old.beat()
    new.check()
    old.release()
    new.check()
    assert read_owner(tmp_path)


def test_a_job_that_took_over_is_not_disowned_whether_the_old_one_lives_or_not(tmp_path, owned):
    with another_job(tmp_path) as process:
        new = owned(tmp_path, True)
        for _ in range(2):
            with pytest.raises(AssertionError, match="does not own"), another_job(tmp_path):
                pass
            kill(process)  # and with it the lock
        new.check()


def test_the_lock_of_a_job_that_was_taken_over_stops_nobody(tmp_path, owned):
    with another_job(tmp_path):
        owned(tmp_path, True).release()
        owned(tmp_path).check()


# Where the lock says nothing


@pytest.mark.parametrize("local_locks", [NO_LOCKS, set()], ids=["no locks", "locks"])
def test_on_the_same_host_the_process_is_looked_for_where_the_lock_says_nothing(
    tmp_path, owned, monkeypatch, local_locks
):
    monkeypatch.setattr(ownership, "LOCAL_LOCKS", local_locks)
    with another_job(tmp_path) as process:
        assert ownership.read(tmp_path)["locked"] == (not local_locks)
        (tmp_path / LOCK).unlink()
        with pytest.raises(Owned, match="runs"):
            Owner(tmp_path)
        os.kill(process, signal.SIGKILL)
        os.waitid(os.P_PID, process, os.WEXITED | os.WNOWAIT)
        owned(tmp_path).check()


def test_a_process_with_the_number_of_a_dead_one_is_another(tmp_path, owned):
    leave(tmp_path, host=socket.gethostname(), process=os.getppid(), started="1")
    owned(tmp_path).check()


def test_a_lock_that_the_last_owner_did_not_have_says_nothing_about_it(tmp_path):
    leave(tmp_path, locked=False)
    with pytest.raises(Owned, match="may run"):
        Owner(tmp_path)
    leave(tmp_path, locked=True)
    Owner(tmp_path).release()


SLURM = {"scheduler": "slurm", "job": "17", "restarts": "0"}
PBS = {"scheduler": "pbs", "job": "17.server", "restarts": ""}


@pytest.mark.parametrize(
    "job, answer, verdict",
    [
        (SLURM, {"says": "RUNNING"}, "runs, as its scheduler says"),
        (SLURM, {"says": "COMPLETING"}, "runs, as its scheduler says"),
        (SLURM, {"says": "PENDING"}, ""),
        (SLURM, {}, ""),
        (SLURM, {"status": 1, "complains": "slurm_load_jobs error: Invalid job id specified"}, ""),
        (SLURM, {"status": 1, "complains": "slurm_load_jobs error: Unable to contact slurm controller"}, "may run"),
        (PBS, {"says": "Job Id: 17.server\n    Job_Name = R\n    job_state = R"}, "runs, as its scheduler says"),
        (PBS, {"says": "Job Id: 17.server\n    job_state = Q"}, ""),
        (PBS, {"status": 35, "complains": "qstat: 17.server Job has finished, use -x"}, ""),
        (PBS, {"status": 153, "complains": "qstat: Unknown Job Id 17.server"}, ""),
        (PBS, {"status": 111, "complains": "qstat: cannot connect to server"}, "may run"),
    ],
)
def test_a_job_on_another_host_lives_if_its_scheduler_says_so(tmp_path, owned, command, job, answer, verdict):
    command("squeue" if job is SLURM else "qstat", **answer)
    leave(tmp_path, **job)
    if verdict:
        with pytest.raises(Owned, match=f"{job['scheduler']} job {job['job']} .*{verdict}"):
            Owner(tmp_path)
    else:
        owned(tmp_path).check()
    assert (tmp_path / "asked").read_text().rstrip().endswith(job["job"])


def test_a_lock_that_outlives_its_host_does_not_stop_the_next_job(tmp_path, owned, command):
    command("squeue", "RUNNING")
    with another_job(tmp_path):
        leave(tmp_path, **SLURM, locked=True)
        with pytest.raises(Owned, match="slurm job 17 .* holds the lock"):
            Owner(tmp_path)
        command("squeue")
        owned(tmp_path).check()


def test_a_job_of_another_cluster_is_not_asked_after_here(tmp_path, command, monkeypatch):
    command("squeue", status=1, complains="Invalid job id specified")
    monkeypatch.setenv("SLURM_JOB_ID", "5")
    monkeypatch.setenv("SLURM_CLUSTER_NAME", "here")
    leave(tmp_path, **SLURM, cluster="there")
    with pytest.raises(Owned, match="may run"):
        Owner(tmp_path)


def test_a_requeued_job_goes_on_at_once(tmp_path, owned, command, monkeypatch):
    command("squeue", "RUNNING")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    leave(tmp_path, **SLURM)
    with pytest.raises(Owned, match="may run"):  # another step of the same job
        Owner(tmp_path)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    owned(tmp_path).check()


def test_without_any_word_the_last_owner_is_waited_for(tmp_path, owned, command):
    leave(tmp_path, quiet=500)
    with pytest.raises(Owned, match=r"may run: .* again in (\d+) s, or give --take-over") as found:
        Owner(tmp_path)
    assert 0 < int(re.search(r"in (\d+) s", str(found.value))[1]) <= 100
    leave(tmp_path, quiet=700)
    owned(tmp_path).check()


def test_a_job_that_was_quiet_for_longer_before_is_waited_for_longer(tmp_path, owned):
    leave(tmp_path, quiet=1500, longest=1000.0)
    with pytest.raises(Owned, match="may run"):
        Owner(tmp_path)
    leave(tmp_path, quiet=2100, longest=1000.0)
    owned(tmp_path).check()


def test_a_sign_of_life_raises_nothing_where_the_directory_is_gone(tmp_path, monkeypatch):
    monkeypatch.setattr(ownership, "BEAT", 0.0)
    directory = tmp_path / "run"
    directory.mkdir()
    owner = Owner(directory)
    for name in NAME, LOCK:
        (directory / name).unlink()
    directory.rmdir()
    owner.beat()
    owner.release()


def test_the_job_is_named_by_its_scheduler(monkeypatch):
    assert job_name() == f"process {os.getpid()} on {socket.gethostname()}"
    monkeypatch.setenv("PBS_JOBID", "3.server")
    assert job_name() == "pbs job 3.server"
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    assert job_name() == "slurm job 17"
