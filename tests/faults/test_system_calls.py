"""System calls that fail, in a store: resumed, or answered by the next tier, or one clear error."""

import errno
import os

import pytest

STORE = """
import logging
from localckpt.storage.directories import Tier
from localckpt.storage.store import Store

directory, layout, engine, tiers = sys.argv[1:5]
logging.basicConfig(format="%(message)s", stream=sys.stdout)
c = MPI.COMM_SELF if layout == "own" else comm
for name in ("first", "second"):
    os.makedirs(os.path.join(directory, name), exist_ok=True)
comm.barrier()
store = Store(c, os.path.join(directory, "first", f"{comm.rank if layout == 'own' else 'all'}.h5"), engine=engine,
              tiers=[Tier(os.path.join(directory, "second"))] * (tiers == "two"))


def values(i):
    return np.random.default_rng([i, comm.rank]).standard_normal(SIZE)


def save(n=20):
    return [store.put("a", values(i)) for i in range(n)]


def check(rows):
    for i, row in enumerate(rows):
        assert (store.get(row, (SIZE,), np.dtype(float)) == values(i)).all(), i

"""
SIZE = 1000
EVERY = 10**6
WHEN = {"pwrite": 12, "fallocate": 3}  # after so many calls, most of them HDF5's, the store has begun to save
LAYOUTS = [(0, "own"), (2, "own"), (2, "world")]
FAILURES = [
    ("pwrite", "ENOSPC"),
    ("pwrite", "EIO"),
    ("pwrite", "EDQUOT"),
    ("pwrite", "EROFS"),
    ("pwrite", "EFBIG"),
    ("pwrite", "EAGAIN"),
    ("fallocate", "ENOSPC"),
    ("fallocate", "EDQUOT"),
]


@pytest.fixture
def run(tmp_path, run_script, faulty):
    """run(code, fault, …): what `code` says after STORE in which the system fails so."""

    def run(code, fault, ranks=0, layout="own", engine="direct", tiers="one", rank=None, waits=False):
        done = run_script(
            f"SIZE = {SIZE}\n" + STORE + code,
            tmp_path,
            layout,
            engine,
            tiers,
            before=[*faulty(fault, ranks, rank), *["FAULT_WAITS=1"] * waits],
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        return done.stdout

    return run


ROWS = """
from localckpt._descriptor import Descriptor
from localckpt._rows import Pool
pool = Pool(Descriptor(sys.argv[1] + "/first", os.O_RDWR | os.O_CREAT), True)
pool.add(24, 8*SIZE, 20)
rows = [pool.claim() for i in range(20)]
for i, row in enumerate(rows):
    row.write(np.random.default_rng(i).standard_normal(SIZE))
array = np.empty(SIZE)
for i, row in enumerate(rows):
    row.read(array)
    assert (array == np.random.default_rng(i).standard_normal(SIZE)).all()
"""


@pytest.mark.parametrize("size", [1, 10, 1000, 300000])
@pytest.mark.parametrize(
    "call, error, count",
    [("pwrite", 0, EVERY), ("pread", 0, EVERY), ("pwrite", errno.EINTR, 7), ("pread", errno.EINTR, 7)],
)
def test_what_was_cut_short_goes_on(tmp_path, run_script, faulty, call, error, count, size):
    done = run_script(f"SIZE = {size}\n" + ROWS, tmp_path, before=faulty(f"{call} {error} 3 {count} first"))
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("ranks, layout", LAYOUTS)
@pytest.mark.parametrize("files, mapped", [("first", False), ("elsewhere", True)])
def test_what_cannot_be_mapped_is_read(run, files, mapped, ranks, layout):
    run(
        f"""
SIZE = 100_000
rows = save(3)
held = [store.get(row, (SIZE,), np.dtype(float)) for row in rows]
with open("/proc/self/maps") as maps:
    assert ("first" in maps.read()) == {mapped}
check(rows)
""",
        f"mmap {errno.ENOMEM} 0 {EVERY} {files}",
        ranks,
        layout,
    )


@pytest.mark.parametrize("ranks, layout", LAYOUTS)
@pytest.mark.parametrize("call, error", FAILURES)
def test_a_store_goes_on_in_the_next_tier(run, call, error, ranks, layout):
    said = run(
        """
rows = save()
assert len(store._files) == 2 and store.current_file.tier == os.path.join(directory, "second")
check(rows)
again = save()
check(again)
""",
        f"{call} {getattr(errno, error)} {WHEN[call]} {EVERY} first",
        ranks,
        layout,
        tiers="two",
    )
    assert said.count("second") == max(1, ranks)


@pytest.mark.parametrize("ranks", [0, 2])
def test_a_next_tier_that_fails_too_leaves_no_directory(run, ranks):
    said = run(
        """
found = attempt(save)
assert {kind for kind, words in found} == {"TransferError"}, found
assert all("/second/" in words for kind, words in found), found
assert os.listdir(os.path.join(directory, "second")) == []
""",
        f"pwrite {errno.EIO} {WHEN['pwrite']} {EVERY} .data",
        ranks,
        tiers="two",
    )
    assert said.count("no checkpoints to") == max(1, ranks)


def test_one_rank_alone_goes_on_in_the_next_tier(run):
    said = run(
        """
rows = save()
assert len(store._files) == comm.rank + 1
check(rows)
check(save())
""",
        f"pwrite {errno.EIO} 12 {EVERY} first",
        2,
        "world",
        tiers="two",
        rank=1,
    )
    assert said.count("Input/output error") == 1


def test_ranks_with_a_viewer_go_on_in_the_next_tier_together(run_script, tmp_path, faulty):
    done = run_script(
        f"SIZE = {SIZE}\n"
        + STORE
        + """
rows = save()
assert len(store._files) == 2
check(rows)  # those of before the failure, too
store.retire()
check(save())
print("done")
""",
        tmp_path,
        "world",
        "viewer",
        "two",
        before=faulty(f"pwrite {errno.EIO} 5 {EVERY} first", 2, rank=1, least=8 * SIZE),
    )
    assert done.stdout.count("done") == 2 and "file write failed" in done.stdout
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("collective", [False, True])
def test_a_transfer_that_fails_on_one_rank_fails_on_all(run_script, tmp_path, faulty, collective):
    done = run_script(
        f"""
with VecFile(comm, sys.argv[1], "w", collective={collective}) as file:
    file.write_array("before", np.full(1000, comm.rank + 0.5))
    found = attempt(file.write_array, "a", np.ones(1000))
    assert found[0] == found[1] and found[0][0] == "TransferError" and "rank 1" in found[0][1], found
    back = np.empty(1000)
    file.read_array("before", back)
    assert (back == comm.rank + 0.5).all()
""",
        tmp_path / "all.h5",
        before=faulty(f"pwrite {errno.EIO} 1 {EVERY} all.h5", 2, rank=1, least=8000),
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("ranks, comm", [(2, "comm"), (2, "MPI.COMM_SELF"), (0, "comm")])
@pytest.mark.parametrize("unlinked", [False, True])
def test_a_file_about_which_the_system_can_say_nothing_is_closed(run_script, tmp_path, faulty, ranks, comm, unlinked):
    done = run_script(
        f"""
path = sys.argv[1] + (str(comm.rank) if {comm!r} != "comm" else "")
file = VecFile({comm}, path, "x")
file.write_array("before", np.ones(10))
comm.barrier()
if {unlinked} and (comm.rank == 0 or {comm!r} != "comm"):
    os.unlink(path)
os.environ["FAULT_NOW"] = "1"
found = attempt(file.write_array, "a", np.ones(1000)), attempt(file.close)
assert {{kind for kind, words in found[1]}} <= {{"TransferError", "nothing"}}, found
assert file.closed
mine = [f"/proc/self/fd/{{n}}" for n in range(200) if os.path.islink(f"/proc/self/fd/{{n}}")]
assert not any("all.h5" in os.readlink(link) for link in mine), mine
""",
        tmp_path / "all.h5",
        before=[*faulty(f"fstat {errno.ESTALE} 0 {EVERY} all.h5", ranks, max(0, ranks - 1)), "FAULT_WAITS=1"],
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("ranks, layout", LAYOUTS)
@pytest.mark.parametrize("engine", ["direct", "viewer"])
def test_a_store_about_whose_file_the_system_can_say_nothing_goes_on(run, ranks, layout, engine):
    run(
        """
rows = save(3)
os.environ["FAULT_NOW"] = "1"
store.retire()
check(save(3))
""",
        f"fstat {errno.ESTALE} 0 6 first",
        ranks,
        layout,
        engine,
        tiers="two",
        waits=True,
    )


@pytest.mark.parametrize("engine", ["direct", "viewer"])
def test_a_shared_file_that_cannot_be_unlinked_is_used_by_all_ranks(run, engine):
    said = run(
        """
check(save())
assert len(store._files) == 1
store.retire()
check(save())
""",
        f"unlink {errno.EIO} 0 {EVERY} first",
        2,
        "world",
        engine,
        tiers="two",
        rank=0,
    )
    assert said.count("cannot unlink") == 2


@pytest.mark.parametrize("ranks, layout", LAYOUTS)
def test_bytes_that_the_system_could_not_write_back_are_missed_in_the_forward_sweep(run, ranks, layout):
    run(
        """
rows = save()
found = attempt(store.sync)
assert {kind for kind, words in found} == {"LostCheckpointError"}, found
assert all("lost" in words and "Input/output error" in words and "first" in words for kind, words in found), found
found = attempt(save), attempt(check, rows)
assert {kind for kinds in found for kind, words in kinds} == {"LostCheckpointError"}, found
""",
        f"sync_file_range {errno.EIO} 0 1 first",
        ranks,
        layout,
    )


def test_a_mapped_array_whose_bytes_were_not_written_back_is_not_handed_out(run):
    run(
        """
SIZE = 100_000
rows = save(3)
found = attempt(store.get, rows[1], (SIZE,), np.dtype(float))
assert found[0][0] == "LostCheckpointError" and "lost" in found[0][1], found
""",
        f"sync_file_range {errno.EIO} 0 1 first",
    )


@pytest.mark.parametrize("ranks, layout", LAYOUTS)
def test_where_space_cannot_be_reserved_the_disk_is_waited_for(run_script, tmp_path, faulty, ranks, layout):
    # Both at once: no space can be reserved, and what is written does not get to the disk.
    done = run_script(
        f"SIZE = {SIZE}\n"
        + STORE
        + """
rows = save()
os.environ["FAULT"] = "fsync 5 0 1 first"
found = attempt(store.sync)
assert {kind for kind, words in found} == {"LostCheckpointError"}, found
""",
        tmp_path,
        layout,
        "direct",
        "one",
        before=faulty(f"fallocate {errno.EOPNOTSUPP} 0 {EVERY} first", ranks),
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("comm", ["MPI.COMM_SELF", "comm"])
def test_on_a_network_filesystem_the_disk_is_waited_for_once_per_timestep(run_script, tmp_path, faulty, comm):
    # A filesystem of the node that is taken for one: a file of one node's ranks gets the direct engine on any.
    done = run_script(
        f"""
import logging
from localckpt.storage import directories
from localckpt.storage.engines import DirectEngine
from localckpt.storage.store import Store
directories.NETWORK.add(directories.Directory.at(sys.argv[1]).filesystem)
logging.basicConfig(format="%(message)s")
store = Store.temporary({comm}, sys.argv[1])
for step in range(3):
    held = [store.put("a", np.full(1000, 10.0*step + i)) for i in range(5)]
    if step < 2:
        store.sync()
        store.sync()  # nothing new: not waited for
assert type(store.current_file.engine) is DirectEngine
found = attempt(store.sync)
assert {{kind for kind, words in found}} == {{"LostCheckpointError"}}, found
""",
        tmp_path,
        before=faulty(f"fsync {errno.EIO} 2 {EVERY} current", 2),
    )
    assert done.returncode == 0, done.stderr


def test_on_a_disk_of_the_node_nothing_waits_for_the_disk(run):
    run(
        """
for i in range(5):
    save(3)
    store.sync()
""",
        f"fsync {errno.EIO} 0 {EVERY} first",
    )


@pytest.mark.parametrize(
    "call, error, ranks, layout",
    [(*failure, *where) for failure in FAILURES for where in LAYOUTS if failure[0] == "fallocate" or where[1] == "own"],
)
def test_without_a_next_tier_the_error_names_its_cause(run, call, error, ranks, layout):
    words = "Resource temporarily unavailable" if error == "EAGAIN" else ""
    run(
        f"""
found = attempt(save)
words = {words!r} or os.strerror({getattr(errno, error)})
for rank, (kind, said) in enumerate(found):
    assert kind == "TransferError" and words in said and "first" in said and "dataset 'a" in said, found
""",
        f"{call} {getattr(errno, error)} {WHEN[call]} {EVERY} first",
        ranks,
        layout,
    )


@pytest.mark.parametrize("error", ["EIO", "ENOSPC"])
def test_a_rank_that_fails_alone_and_aborts_ends_the_others(run_script, tmp_path, faulty, error):
    done = run_script(
        f"SIZE = {SIZE}\n"
        + STORE
        + """
try:
    save(200)
except localckpt.TransferError as exc:
    print("lost:", exc, flush=True)
    comm.Abort(3)
""",
        tmp_path,
        "world",
        "direct",
        "one",
        before=faulty(f"pwrite {getattr(errno, error)} 12 {EVERY} first", 2, rank=1),
    )
    assert done.returncode == 3 and os.strerror(getattr(errno, error)) in done.stdout, done.stderr


def test_the_others_learn_at_the_next_agreement(run):
    # Rank 1 goes on asking its store, as a script that catches the exception would.
    run(
        """
store.failure = localckpt.LostCheckpointError("lost") if comm.rank == 1 else None
kinds = set()
for i in range(40):
    try:
        store.put("a", values(i))
    except localckpt.LostCheckpointError as exc:
        kinds.add(str(exc).partition(" [")[0])
        if i and "another rank" in str(exc):
            break
assert "another rank could not store a checkpoint" in kinds, kinds
""",
        f"pread {errno.EIO} {EVERY} 0 nothing",
        2,
        "world",
    )


def test_a_disk_that_cannot_reserve_is_used_all_the_same(run):
    assert run("check(save())", f"fallocate {errno.EOPNOTSUPP} 0 {EVERY} first") == ""


@pytest.mark.parametrize("ranks, layout", LAYOUTS)
def test_a_read_that_fails_names_its_cause(run, ranks, layout):
    run(
        """
rows = save()
found = attempt(check, rows)
assert all(kind == "TransferError" and "Input/output error" in said and "dataset 'a'" in said
           for kind, said in found), found
""",
        f"pread {errno.EIO} 12 {EVERY} .data",
        ranks,
        layout,
    )


@pytest.mark.parametrize("ranks, call", [(0, "fsync"), (2, "fsync"), (0, "pwrite")])
def test_a_file_whose_writes_fail_late_is_an_error_and_no_crash(tmp_path, run_script, faulty, ranks, call):
    # Found by the flush that ends a write, or by the closing of the file.
    done = run_script(
        """
file = VecFile(comm, sys.argv[1], "w")
found = attempt(file.write_array, "a", np.ones(1000)), attempt(file.close)
assert any(set(kinds) == {"TransferError"} for kinds in [[kind for kind, words in each] for each in found]), found
assert file.closed
""",
        tmp_path / "late.h5",
        before=faulty(f"{call} {errno.EIO} {6 if call == 'pwrite' else 0} {EVERY} late", ranks),
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("error", ["EIO", "EROFS"])
def test_an_evaluation_begins_whatever_became_of_the_first_directory(tmp_path, run_script, faulty, error):
    done = run_script(
        """
from localckpt.adjoint import DiskCheckpointer
checkpointer = DiskCheckpointer(checkpoint_dir=sys.argv[1])
try:
    os.utime(checkpointer.current_checkpoint_file.name)
except OSError as exc:
    print(exc.strerror)
checkpointer.reset()
""",
        tmp_path,
        before=faulty(f"utimensat {getattr(errno, error)} 0 {EVERY} current.h5"),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == os.strerror(getattr(errno, error)) + "\n"


def test_a_directory_that_cannot_be_removed_yet_is_removed_at_exit(tmp_path, run_script, faulty):
    # As where an unlinked file keeps a name until it is closed.
    done = run_script(
        """
from localckpt.storage import run_directories
path = run_directories.make(sys.argv[1])
run_directories.remove(path)
print(os.path.isdir(path))
""",
        tmp_path,
        before=faulty(f"rmdir {errno.ENOTEMPTY} 0 2 localckpt_"),
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")
    assert not list(tmp_path.glob("localckpt_*"))
