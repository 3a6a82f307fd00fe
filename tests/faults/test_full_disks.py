"""Disks that are full, and what a tape makes of it: real small disks, limits and descriptors."""

from pathlib import Path

import pytest

TAPE = """
sys.path.insert(0, sys.argv[1])
small, big = sys.argv[2:4]
os.makedirs(big, exist_ok=True)
import logging, resource
logging.basicConfig(format="%(message)s", stream=sys.stdout, level=logging.INFO)
import functools, gc
import firedrake as fd
from burgers import assert_same, bare_tape, record, record_on_disk, sweep
mesh = fd.UnitSquareMesh(40, 40)


@functools.cache
def expected():
    with bare_tape():
        return sweep(record(mesh=mesh), 1.3, mesh)


def recorded(**arguments):
    with bare_tape():
        functional = record_on_disk(mesh=mesh, **arguments)
        return functional.tape._package_data["firedrake"], functional


def evaluate(functional):
    for _ in range(2):
        assert_same([sweep(functional, 1.3, mesh)], [expected()])
    print("right", flush=True)

"""
LAYOUTS = [(0, "own"), (2, "own"), (2, "world")]


@pytest.fixture
def run(tmp_path, run_script, small_disk):
    """run(code, ranks, size=…): what became of `code` after TAPE, with a disk of that size."""

    def run(code, ranks=0, size="500k", env=()):
        directory, before = small_disk(size)
        return run_script(
            TAPE + code,
            Path(__file__).parents[1] / "adjoint",
            directory,
            tmp_path / "big",
            ranks=ranks,
            before=[*before, "env", *env],
            seconds=200,
        )

    return run


@pytest.mark.parametrize("ranks, layout", LAYOUTS)
def test_a_run_goes_on_in_the_next_directory(run, ranks, layout):
    done = run(
        f"""
def go_on(engine):
    checkpointer, functional = recorded(checkpoint_dir=[small, big], engine=engine,
                                        checkpoint_comm=MPI.COMM_SELF if {layout!r} == "own" else comm)
    evaluate(functional)
    store = checkpointer._functions.store
    assert any(comm.allgather(len(store._files) == 2))
    assert any(comm.allgather(store._files[0].bytes_taken > 0))
    assert type(store.current_file.engine).__name__ == engine.capitalize() + "Engine"


for engine in "direct", "viewer":
    go_on(engine)
    gc.collect()
""",
        ranks,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("right") == 2 * max(1, ranks) and done.stdout.count("No space left on device") > 1


def test_a_directory_that_is_not_there_is_passed_over_and_names_may_have_environment_variables(run):
    done = run("""
os.environ["ELSEWHERE"] = big
checkpointer, functional = recorded(checkpoint_dir=["/no/such/directory", "$ELSEWHERE"])
assert checkpointer.dirname.startswith(big)
evaluate(functional)
""")
    assert done.returncode == 0, done.stderr
    assert "no checkpoints to /no/such/directory" in done.stdout


@pytest.mark.parametrize("ranks, layout", LAYOUTS)
def test_a_limit_is_kept(run, ranks, layout):
    done = run(
        f"""
for engine in "direct", "viewer":
    checkpointer, functional = recorded(checkpoint_dir=[small, big], engine=engine,
                                        checkpoint_comm=MPI.COMM_SELF if {layout!r} == "own" else comm)
    evaluate(functional)
    store = checkpointer._functions.store
    assert len(store._files) == 2 and 0 <= store._files[0].limit_left, store._files[0].limit_left
""",
        ranks,
        size="100m",
        env=["PETSC_OPTIONS=-localckpt_dir_limit 300e3,1e9"],
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("right") == 2 * max(1, ranks) and done.stdout.count("Disk quota exceeded") > 1
    assert done.stdout.count("the first timestep takes") == 2  # once for each tape


LOST = """
try:
    checkpointer, functional = recorded(checkpoint_dir=small)
except localckpt.LostCheckpointError as exc:
    assert "CAUSE" in str(exc) and repr(small)[1:-1] in str(exc) and "bytes wanted" in str(exc), exc
    print("lost:", exc)
else:
    sys.exit("nothing happened")
"""


def test_without_a_next_directory_the_error_says_what_is_missing(run):
    done = run(LOST.replace("CAUSE", "No space left on device"), size="300k")
    assert done.returncode == 0, done.stderr
    assert "rank 0" in done.stdout and " free" in done.stdout


def test_a_disk_full_of_tapes_that_nobody_needs_is_swept(run):
    done = run("""
import gc
from localckpt.adjoint import DiskCheckpointer
V = fd.FunctionSpace(mesh, "CG", 2)


def fill(checkpointer):
    return [checkpointer.save(fd.Function(V).assign(i)) for i in range(6)]


first, second = DiskCheckpointer(checkpoint_dir=small), DiskCheckpointer(checkpoint_dir=small)
held = [first, fill(first)]
held.append(held)
gc.collect()  # it is old now: no collection of young objects will find it
del first, held
assert len(fill(second)) == 6
assert len(second._functions.store._files) == 1
print("right")
""")
    assert done.returncode == 0, done.stderr
    assert "right" in done.stdout and "No space left" not in done.stdout


def test_a_script_that_makes_tape_after_tape_does_not_fill_the_disk(run):
    done = run(
        """
for i in range(5):
    functional = recorded(checkpoint_dir=small)[1]
    functional.itself = functional
    sweep(functional, 1.3, mesh)
print("right")
""",
        size="1500k",
    )
    assert done.returncode == 0, done.stderr
    assert "right" in done.stdout


def test_files_that_may_not_grow(run):
    done = run(
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10**5, 10**5))\n" + LOST.replace("CAUSE", "File too large"),
        size="100m",
    )
    assert done.returncode == 0, done.stderr


def test_no_descriptors_left(run):
    done = run("""
first, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
with bare_tape():
    localckpt.adjoint.enable_disk_checkpointing(checkpoint_dir=big)
    checkpointer = fd.adjoint.get_working_tape()._package_data["firedrake"]
resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))), hard))
try:
    checkpointer.save(fd.Function(fd.FunctionSpace(mesh, "DG", 0)))
except localckpt.LostCheckpointError as exc:
    words = str(exc)
resource.setrlimit(resource.RLIMIT_NOFILE, (first, hard))
assert "Too many open files" in words, words
""")
    assert done.returncode == 0, done.stderr


def test_a_tape_that_lost_a_checkpoint_says_so_whenever_it_is_used(run):
    done = run("""
import pickle
from localckpt.adjoint import DiskCheckpointer
checkpointer = DiskCheckpointer(checkpoint_dir=small)
V = fd.FunctionSpace(mesh, "CG", 2)
saved, error = [], None
while error is None:
    try:
        saved.append(checkpointer.save(fd.Function(V).assign(len(saved))))
    except localckpt.LostCheckpointError as exc:
        error = exc
for use in (saved[0].load, lambda: checkpointer.save(fd.Function(V))):
    found = attempt(use)
    assert found == [("LostCheckpointError", str(error))], found
""")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("layout", ["own", "world"])
def test_an_uncaught_loss_on_one_rank_ends_the_job_with_one_message(run, layout):
    # Rank 1 alone has a small disk, and nowhere else to go.
    done = run(
        f"""
own = {layout!r} == "own"
resource.setrlimit(resource.RLIMIT_FSIZE, (10**5, 10**5)) if comm.rank == 1 else None
recorded(checkpoint_dir=big, checkpoint_comm=MPI.COMM_SELF if own else comm)
""",
        2,
    )
    assert done.returncode not in (0, 110), done.stderr
    messages = [line for line in done.stderr.splitlines() if line.startswith("localckpt._errors.LostCheckpointError")]
    assert len(messages) == (1 if layout == "own" else len(messages)) and messages
    assert "rank 1" in done.stderr and "File too large" in done.stderr


def test_a_disk_that_is_nearly_full_is_a_warning(run):
    done = run(
        """
from localckpt.adjoint import DiskCheckpointer
checkpointer = DiskCheckpointer(checkpoint_dir=small)
f = fd.Function(fd.FunctionSpace(mesh, "DG", 0))
saved = []
try:
    while True:
        checkpointer.continue_checkpointing()
        saved.append(checkpointer.save(f.assign(len(saved))))
        checkpointer.pause_checkpointing()
except localckpt.LostCheckpointError:
    print("lost")
""",
        size="5m",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("are left for each rank in") == 1
    assert done.stdout.index("are left for each rank in") < done.stdout.index("lost")


@pytest.mark.parametrize("left", [0, 1, 2, 5])
def test_no_descriptors_left_on_one_rank_of_a_file(run_script, tmp_path, left):
    done = run_script(
        """
import resource
held = []
if comm.rank == 1:
    first, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
    try:
        while True:
            held.append(os.open("/", os.O_RDONLY))
    except OSError:
        for _ in range(int(sys.argv[2])):
            os.close(held.pop())
what = attempt(lambda: VecFile(comm, sys.argv[1], "x"))
assert what[0] == what[1] and what[0][0] == "TransferError" and "Too many open files" in what[0][1], what
for number in held:
    os.close(number)
""",
        tmp_path / "a.h5",
        left,
        ranks=2,
    )
    assert done.returncode == 0, done.stderr


def test_a_next_directory_that_takes_nothing_is_the_first_ones_error(run):
    done = run("""
mesh = fd.UnitSquareMesh(40, 40)
with bare_tape():
    localckpt.adjoint.enable_disk_checkpointing(checkpoint_dir=[small, "/no/such/directory"])
    checkpointer = fd.adjoint.get_working_tape()._package_data["firedrake"]
held = []
for use in range(2):
    try:
        for _ in range(100):
            held.append(checkpointer.save(fd.Function(fd.FunctionSpace(mesh, "DG", 2)).assign(len(held))))
    except localckpt.LostCheckpointError as exc:
        print("No space" in str(exc))
""")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("True") == 2


def test_after_a_lost_checkpoint_another_tape_has_its_own(run):
    done = run("""
from firedrake.adjoint_utils.checkpointing import CheckpointFunction
V, held = fd.FunctionSpace(mesh, "DG", 2), []
with bare_tape():
    localckpt.adjoint.enable_disk_checkpointing(checkpoint_dir=small)
    fd.adjoint.get_working_tape()._package_data["firedrake"].continue_checkpointing()
    try:
        while True:
            held.append(CheckpointFunction(fd.Function(V).assign(len(held))))
    except localckpt.LostCheckpointError:
        print("lost")
with bare_tape():
    localckpt.adjoint.enable_disk_checkpointing(checkpoint_dir=big)
    localckpt.adjoint.continue_disk_checkpointing()
    assert (CheckpointFunction(fd.Function(V).assign(7)).restore().dat.data_ro == 7).all()
""")
    assert done.returncode == 0, done.stderr
    assert "lost" in done.stdout
