"""A journal gives back whole records, and no others, whatever happened to the job that wrote it."""

import os
import resource
import shutil
from contextlib import closing, contextmanager
from threading import Event

import numpy as np
import pytest
from mpi4py import MPI

from localckpt.storage import journal as journal_module
from localckpt.storage.journal import DamagedRecord, Journal
from localckpt.storage.journal_entries import DAMAGED, NAME, as_line, parse, read_entries

WORLD = MPI.COMM_WORLD
LAST = WORLD.size - 1


def arrays_of(number, rank=WORLD.rank):
    """Those of a record: of several types, of other sizes on each rank, and none on rank 1 of some records."""
    random = np.random.default_rng([number, rank])
    if rank == 1 and number % 3 == 2:
        return []
    return [
        random.standard_normal((600 * number + 7 * rank, 2)).T,  # not contiguous
        np.float32(random.standard_normal(())),
        random.integers(0, 100, 0 if rank == 0 else 5),
    ]


def likes(number):
    return [np.empty_like(array) for array in arrays_of(number)]


def append(journal, *numbers):
    for number in numbers:
        journal.append({"kind": "record", "number": number}, arrays_of(number))


def numbers(journal):
    return [entry.get("number") for entry in journal.entries]


def is_whole(journal, entry, number=None):
    """Whether a record has the arrays that its number, or another one, would have. Raises DamagedRecord as read()."""
    number = entry["number"] if number is None else number
    found = journal.read(entry, likes(number))
    return all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in zip(found, arrays_of(number), strict=True))


@contextmanager
def damaged(path, at, size=1):
    """The file with other bytes there. All ranks wait for it."""
    WORLD.barrier()
    if WORLD.rank == 0:
        with open(path, "r+b") as file:
            file.seek(at)
            before = file.read(size)
            file.seek(at)
            file.write(bytes(byte ^ 0x55 for byte in before))
    WORLD.barrier()
    yield
    WORLD.barrier()
    if WORLD.rank == 0:
        with open(path, "r+b") as file:
            file.seek(at)
            file.write(before)
    WORLD.barrier()


@contextmanager
def files_no_larger_than(size):
    first, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))  # Python ignores the signal
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (first, hard))


@pytest.fixture
def opened(shared_tmp):
    """opened(...): a journal on all ranks, in one directory. Those before it are not closed, as in a killed job."""
    journals = []

    def make(check_owner=lambda: None, comm=WORLD):
        journals.append(Journal(str(shared_tmp), comm, check_owner))
        return journals[-1]

    yield make
    for journal in journals:
        journal.close()


@pytest.fixture(params=[64, 2, 1])
def ranks_per_file(request, monkeypatch):
    monkeypatch.setattr(journal_module, "RANKS_PER_FILE", request.param)
    return request.param


@pytest.mark.parallel([1, 2, 3])
def test_records_come_back_in_the_next_job(opened, shared_tmp, ranks_per_file):
    append(opened(), 0, 1)
    append(opened(), 2, 3)
    found = opened()
    assert numbers(found) == [0, 1, 2, 3]
    assert all(is_whole(found, entry) for entry in found.entries)
    files = -(-WORLD.size // ranks_per_file)
    assert sorted(os.listdir(shared_tmp)) == [*(f"arrays-{i:05d}" for i in range(files)), NAME]


@pytest.mark.parallel([1, 2])
def test_records_can_be_read_by_the_job_that_wrote_them(opened):
    journal = opened()
    append(journal, 1)
    assert is_whole(journal, journal.entries[-1])
    assert journal.bytes_written == sum(array.nbytes for array in arrays_of(1))


@pytest.mark.parallel([1, 2])
def test_entries_are_those_of_rank_0_on_all_ranks(opened):
    journal = opened()
    journal.append({"kind": "job", "time": WORLD.rank + 0.1})
    journal.append({"kind": "value", "of": WORLD.rank}, [np.ones(2)])
    found = opened()
    assert journal.entries == found.entries
    assert found.entries[0] == {"kind": "job", "time": 0.1}
    assert found.entries[1]["of"] == 0


def test_numbers_of_an_entry_come_back_exactly():
    entry = {"kind": "value", "numbers": [0.1, 5e-324, 1.7976931348623157e308, float("inf")], "text": "…\n\t"}
    assert parse(as_line(entry)) == ([entry], len(as_line(entry)))
    assert np.isnan(parse(as_line({"kind": "value", "norm": float("nan")}))[0][0]["norm"])


@pytest.mark.parallel([1, 2, 3])
def test_a_job_with_another_number_of_ranks_gets_the_entries(opened, ranks_per_file):
    if WORLD.rank == 0:
        alone = opened(comm=MPI.COMM_SELF)
        alone.append({"kind": "run", "ranks": 1}, [np.ones(3)])
    WORLD.barrier()
    assert opened().entries[0]["ranks"] == 1
    opened().append({"kind": "run", "ranks": WORLD.size}, [np.ones(3)])
    WORLD.barrier()
    if WORLD.rank == 0:
        assert [entry["ranks"] for entry in opened(comm=MPI.COMM_SELF).entries] == [1, WORLD.size]


# What cannot be written


@pytest.mark.parallel([1, 2, 3])
def test_a_rank_that_cannot_write_is_told_to_all_and_its_record_does_not_count(opened, raises_everywhere):
    journal = opened()
    append(journal, 0)
    with raises_everywhere(journal_module.TransferError, OSError, match="File too large", file=journal._path):
        with files_no_larger_than(10_000 if WORLD.rank == LAST else resource.RLIM_INFINITY):
            append(journal, 40)
    assert numbers(journal) == numbers(opened()) == [0]
    append(journal, 2)  # in its place
    found = opened()
    assert numbers(found) == [0, 2]
    assert all(is_whole(found, entry) for entry in found.entries)


@pytest.mark.parallel([1, 2])
def test_nobody_has_to_wait_for_the_disk(opened, monkeypatch):
    journal, held = opened(), Event()
    monkeypatch.setattr(journal_module, "flush", lambda *args: held.wait(60))
    journal.append({"kind": "record", "number": 1}, arrays_of(1), wait=False)
    found = opened()
    assert numbers(journal) == numbers(found) == [1] and is_whole(found, found.entries[0])
    held.set()
    append(journal, 2)
    assert numbers(opened()) == [1, 2]


@pytest.mark.parallel([1, 2])
def test_what_fails_in_the_background_is_raised_by_the_next_commit(opened, monkeypatch, raises_everywhere):
    journal = opened()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: os.close(-1))
        journal.append({"kind": "record", "number": 1}, arrays_of(1), wait=False)
        with raises_everywhere(journal_module.TransferError, OSError, match="Bad file descriptor", file=journal._path):
            append(journal, 2)
    append(journal, 3)
    assert numbers(journal) == numbers(opened()) == [1, 3]


@pytest.mark.parallel([1, 2])
def test_staged_records_count_from_the_next_commit_on(opened, ranks_per_file):
    journal = opened()
    for number in (0, 1):
        journal.stage({"kind": "record", "number": number}, arrays_of(number))
    assert numbers(journal) == numbers(opened()) == []
    journal.commit()
    found = opened()
    assert numbers(journal) == numbers(found) == [0, 1]
    assert all(is_whole(found, entry) for entry in found.entries)


@pytest.mark.parallel([1, 2])
def test_staged_records_whose_commit_fails_do_not_count(opened, shared_tmp, raises_everywhere):
    journal = opened()
    append(journal, 0)
    journal.stage({"kind": "record", "number": 1, "more": "x" * 100})
    with raises_everywhere(journal_module.TransferError, OSError, match="File too large", file=shared_tmp / NAME):
        with files_no_larger_than(os.path.getsize(shared_tmp / NAME) + 20):
            journal.commit()
    journal.commit()
    assert numbers(journal) == numbers(opened()) == [0]


@pytest.mark.parallel([1, 2])
def test_a_journal_that_was_cleared_uses_its_space_again(opened, ranks_per_file):
    journal = opened()
    append(journal, 0, 1, 2)
    WORLD.barrier()
    size = os.path.getsize(journal._path)
    journal.stage({"kind": "record", "number": 3}, arrays_of(3))
    journal.clear()
    journal.commit()
    assert numbers(journal) == numbers(opened()) == [] and os.path.getsize(journal._path) == 0
    append(journal, 0, 1, 2)
    WORLD.barrier()
    assert os.path.getsize(journal._path) == size
    found = opened()
    assert numbers(found) == [0, 1, 2] and all(is_whole(found, entry) for entry in found.entries)


@pytest.mark.parallel([1, 2])
def test_a_line_that_is_written_in_part_does_not_count(opened, shared_tmp, raises_everywhere):
    journal = opened()
    append(journal, 0)
    path = shared_tmp / NAME
    with raises_everywhere(journal_module.TransferError, OSError, match="File too large", file=path):
        with files_no_larger_than(os.path.getsize(path) + 20):
            journal.append({"kind": "record", "number": 1, "more": "x" * 100})
    assert numbers(opened()) == [0]
    append(journal, 2)
    assert numbers(opened()) == [0, 2]


@pytest.mark.parallel([1, 2])
def test_what_json_cannot_hold_is_raised_everywhere(opened, raises_everywhere):
    journal = opened()
    with raises_everywhere(TypeError, match="not JSON serializable"):
        journal.append({"kind": "record", "number": object() if WORLD.rank == 0 else 1}, [np.ones(3)])
    append(journal, 1)
    assert numbers(opened()) == [1]


@pytest.mark.parallel([1, 2])
def test_an_array_that_one_rank_cannot_write_is_raised_everywhere(opened, raises_everywhere):
    journal = opened()
    with raises_everywhere(TypeError):
        journal.append({"kind": "record"}, [np.array([None] if WORLD.rank == LAST else [1.0])])
    append(journal, 1)
    assert numbers(opened()) == [1]


@pytest.mark.parallel([1, 2])
def test_nothing_is_written_to_another_jobs_directory(opened, shared_tmp, raises_everywhere):
    def check_owner():
        raise BlockingIOError(16, "another job has taken it over", "here")

    append(opened(), 0)
    journal = opened(check_owner)
    WORLD.barrier()
    before = {name: os.path.getsize(shared_tmp / name) for name in os.listdir(shared_tmp)}
    for arrays in [np.ones(5)], []:
        with raises_everywhere(BlockingIOError, match="taken it over"):
            journal.append({"kind": "record"}, arrays)
    with raises_everywhere(BlockingIOError, match="taken it over"):
        journal.clear()
    assert {name: os.path.getsize(shared_tmp / name) for name in os.listdir(shared_tmp)} == before


@pytest.mark.parallel([1, 2])
def test_records_are_not_written_to_files_that_somebody_has_removed(opened, shared_tmp, raises_everywhere):
    journal = opened()
    append(journal, 0)
    WORLD.barrier()
    if WORLD.rank == 0:
        os.unlink(shared_tmp / NAME)
    with raises_everywhere(journal_module.TransferError, OSError, match="cut off or removed", file=shared_tmp / NAME):
        append(journal, 1)


@pytest.mark.parallel([1, 2])
def test_a_journal_that_cannot_be_opened_leaves_no_descriptor(shared_tmp, raises_everywhere):
    before = os.listdir("/proc/self/fd")
    WORLD.barrier()
    if WORLD.rank == 0:
        os.mkdir(shared_tmp / NAME)
    WORLD.barrier()
    with raises_everywhere(IsADirectoryError):
        Journal(str(shared_tmp), WORLD)
    with raises_everywhere(FileNotFoundError):
        Journal(str(shared_tmp / "missing"), WORLD)
    assert os.listdir("/proc/self/fd") == before


def test_a_full_or_read_only_directory_still_gives_back_its_records(run_script, tmp_path):
    directory = tmp_path / "small"
    directory.mkdir()
    root = [] if os.getuid() == 0 else ["--map-root-user"]
    mount = f'mount -t tmpfs -o size=400k none {directory} && exec "$@"'
    done = run_script(
        """
import errno, subprocess
from localckpt.storage.journal import Journal
directory = sys.argv[1]
journal, causes = Journal(directory, comm), []
for number in range(20):
    try:
        journal.append({"kind": "record", "number": number}, [np.full(8_000, number)])
    except OSError as exc:
        causes.append(exc.errno)
recorded = len(journal.entries)
assert recorded > 3 and set(causes) == {errno.ENOSPC} and len(causes) == 20 - recorded
journal.close()
subprocess.run(["mount", "-o", "remount,ro", directory], check=True)
journal = Journal(directory, comm)
assert [entry["number"] for entry in journal.entries] == list(range(recorded))
for entry in journal.entries:
    assert (journal.read(entry, [np.empty(8_000, int)])[0] == entry["number"]).all()
for arrays in [np.ones(3)], []:
    try:
        journal.append({"kind": "record"}, arrays)
    except OSError as exc:
        assert exc.errno == errno.EROFS and directory in str(exc), exc
    else:
        raise AssertionError("written to a read-only directory")
""",
        directory,
        before=["unshare", "--mount", *root, "sh", "-c", mount, "sh"],
    )
    assert (done.returncode, done.stderr) == (0, "")


# Damage


@pytest.mark.parallel([1, 2, 3])
def test_damage_in_one_ranks_arrays_is_told_to_all_ranks(opened, raises_everywhere, monkeypatch):
    monkeypatch.setattr(journal_module, "RANKS_PER_FILE", 2)
    journal = opened()
    append(journal, 0, 1)
    path, begin = WORLD.bcast((journal._path, journal.entries[1]["at"][LAST // 2][0]), LAST)
    own_page = 1 + (LAST % 2) * -(-sum(array.nbytes for array in arrays_of(1, 0)) // journal_module.PAGE)
    with damaged(path, begin + own_page * journal_module.PAGE + 30):
        with raises_everywhere(DamagedRecord, OSError, match="its checksum differs", file=path):
            is_whole(journal, journal.entries[1])
        assert is_whole(journal, journal.entries[0])
    assert is_whole(journal, journal.entries[1])
    with damaged(path, begin + 8):
        with raises_everywhere(DamagedRecord, OSError, match="checksum of its table", file=path):
            is_whole(journal, journal.entries[1])


@pytest.mark.parallel([1, 2])
def test_arrays_that_are_cut_off_are_damaged(opened, raises_everywhere):
    journal = opened()
    append(journal, 0, 1)
    WORLD.barrier()
    os.truncate(journal._path, journal.entries[1]["at"][0][0] + journal_module.PAGE + 10)
    with raises_everywhere(DamagedRecord, OSError, match="before the record does", file=journal._path):
        is_whole(journal, journal.entries[1])
    assert is_whole(journal, journal.entries[0])


@pytest.mark.parallel([1, 2])
def test_arrays_of_other_shapes_than_are_wanted_are_damaged(opened, raises_everywhere):
    journal = opened()
    append(journal, 1)
    with raises_everywhere(DamagedRecord, OSError, match="bytes of this rank, not"):
        journal.read(journal.entries[0], [np.empty(3)])


@pytest.mark.parallel([1, 2])
def test_a_damaged_line_costs_its_record_only(opened, shared_tmp):
    append(opened(), 0, 1, 2)
    with damaged(shared_tmp / NAME, len(as_line(opened().entries[0])) + 20):
        found = opened()
        assert numbers(found) == [0, None, 2]
        assert found.entries[1] == DAMAGED
        assert is_whole(found, found.entries[0]) and is_whole(found, found.entries[2])
        append(found, 3)
        assert is_whole(found, found.entries[3])
    assert numbers(opened()) == [0, 1, 2, 3]


def test_no_damaged_byte_changes_what_an_entry_says():
    line = as_line({"kind": "value", "key": "0123", "seconds": 0.5})
    for i in range(len(line)):
        for flipped in 0x01, 0x0A ^ line[i], 0x80:
            if flipped:
                found, _ = parse(
                    as_line({"n": 1}) + line[:i] + bytes([line[i] ^ flipped]) + line[i + 1 :] + as_line({})
                )
                assert [entry for entry in found if entry != DAMAGED] in ([{"n": 1}, {}], [{"n": 1}])


# Jobs that are killed, or lose the directory


def test_a_journal_that_is_cut_anywhere_has_the_records_before(tmp_path):
    """As by a filesystem that loses what was written last."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    with closing(Journal(str(whole), MPI.COMM_SELF)) as journal:
        append(journal, 0, 1, 2)
    content = (whole / NAME).read_bytes()
    ends = [i + 1 for i, byte in enumerate(content) if byte == ord("\n")]
    for length in range(0, len(content) + 1, 7):
        shutil.copytree(whole, cut, dirs_exist_ok=True)
        for tail in b"", b"\0" * 100:  # blocks that were allocated, and never written
            (cut / NAME).write_bytes(content[:length] + tail)
            kept = list(range(sum(end <= length for end in ends)))
            assert [entry["number"] for entry in read_entries(cut)] == kept
            with closing(Journal(str(cut), MPI.COMM_SELF)) as journal:
                assert numbers(journal) == kept
                append(journal, 9)
            with closing(Journal(str(cut), MPI.COMM_SELF)) as journal:
                assert numbers(journal) == [*kept, 9]
                assert all(is_whole(journal, entry) for entry in journal.entries)


def test_a_directory_without_a_journal_has_no_entries(tmp_path):
    assert read_entries(tmp_path) == read_entries(tmp_path / "missing") == []


@pytest.mark.parallel([1, 2])
def test_arrays_that_were_lost_are_never_those_of_a_later_record(opened, shared_tmp):
    """The line of record 1 has outlived a crash, its arrays have not, and record 2, of the same size, comes after."""
    journal = opened()
    append(journal, 0, 1)
    WORLD.barrier()
    os.truncate(journal._path, journal.entries[1]["at"][0][0])
    later = opened()
    later.append({"kind": "record", "number": 2}, arrays_of(1))
    found = opened()
    assert numbers(found) == [0, 1, 2]
    with pytest.raises(DamagedRecord):
        found.read(found.entries[1], likes(1))
    assert is_whole(found, found.entries[0]) and is_whole(found, found.entries[2], 1)


@pytest.mark.parallel([1, 2])
def test_a_record_of_a_job_that_lost_the_directory_is_not_mixed_with_those_of_the_new_one(opened):
    old = opened()
    append(old, 0)
    new = opened()
    old.append({"kind": "record", "number": 1}, arrays_of(5))  # it had looked for the owner just before
    stray = opened()
    assert numbers(stray) == [0, 1]
    new.append({"kind": "record", "number": 2}, arrays_of(6))
    found = opened()
    assert numbers(found) == numbers(new) == [0, 2]
    assert is_whole(found, found.entries[1], 6)
    with pytest.raises(DamagedRecord):
        stray.read(stray.entries[1], likes(5))


def test_a_job_that_is_killed_while_it_appends_leaves_whole_records(run_script, tmp_path):
    """Thirty jobs, one after the other in one directory; each goes on where the last one was killed."""
    done = run_script(
        """
import random, signal, time
from localckpt.storage.journal import Journal

directory, draw = sys.argv[1], random.Random(7)


def arrays(number):
    values = np.random.default_rng(number)
    return [values.standard_normal(1 + number * 797 % 20_000), values.integers(0, 9, number % 5)]


def job(pipe):
    '''Append one record after the other, and say so after each.'''
    journal = Journal(directory, MPI.COMM_SELF)
    for number in range(len(journal.entries), 10**6):
        journal.append({"kind": "record", "number": number}, arrays(number) if number % 4 else [])
        os.write(pipe, b".")


known = torn = 0
for kill in range(30):
    from_job, to_us = os.pipe()
    child = os.fork()
    if not child:
        job(to_us)
    os.close(to_us)
    for _ in range(draw.randrange(4)):
        os.read(from_job, 1)
    time.sleep(draw.uniform(0, 0.02))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    said = len(os.read(from_job, 10**6))
    os.close(from_job)
    journal = Journal(directory, MPI.COMM_SELF)
    assert [entry["number"] for entry in journal.entries] == list(range(len(journal.entries)))
    assert len(journal.entries) >= known + said, "a record that was on disk is gone"
    for entry in journal.entries[known:]:
        if "at" in entry:
            wanted = arrays(entry["number"])
            found = journal.read(entry, [np.empty_like(array) for array in wanted])
            assert all((a == b).all() for a, b in zip(found, wanted, strict=True))
    known = len(journal.entries)
    torn += os.path.getsize(journal._path) > journal._ends[0]
    journal.close()
print(known, torn)
""",
        tmp_path,
    )
    assert (done.returncode, done.stderr) == (0, "")
    known, torn = map(int, done.stdout.split())
    assert known >= 30 and torn > 0  # kills that came while arrays were written
