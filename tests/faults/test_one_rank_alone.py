"""Whatever fails on one rank only, no other rank waits for it.

Each call that the code makes of something that can fail (the system, NumPy, a hash, an allocation, ...) fails in
its turn, on rank 1 of 2, while both ranks go through a sequence of collective calls. They have to stay in step.
Ranks that wait for each other end after a minute, and say where they are.
"""

import pytest

pytestmark = pytest.mark.timeout(900)  # of a busy machine; a minute or two as a rule

FAULTS = """
import errno, faulthandler, functools, importlib, itertools, signal
from types import ModuleType

# The compiled modules in which an operation on a file makes calls of Python.
CORE = ["localckpt._checksum", "localckpt._collective", "localckpt._dataset", "localckpt._descriptor",
        "localckpt._handle", "localckpt._transfer", "localckpt._vecfile"]

# The names in a module that are not made to fail: what is collective is made of others that are, and an exception is
# raised whatever it is.
SPARED = {
    "raise_everywhere", "interrupts_held", "monotonic", "nullcontext", "suppress", "choose_engine",
    "make_next_directory", "node_comm", "log", "sys", "atexit", "threading", "weakref", "errno", "_errno",
    "warnings", "MPI", "make_shared_directory", "check_on_all_ranks", "_require_all_see", "can_open", "rows_to_add",
    "require_comm", "require_equal", "join_first",
}  # arithmetic


class Faults:
    '''Counts the calls that modules make, and has one of them fail.'''

    def __init__(self, *modules):
        self.arm(None, None)
        for module in map(importlib.import_module, modules):
            for name, value in list(vars(module).items()):
                if name not in SPARED and not name.startswith("__") and self.fails(value):
                    vars(module)[name] = self.wrapped(value, f"{module.__name__}: {name}")

    @staticmethod
    def fails(value):
        '''Whether it is called for what it does: classes are asked for what they are, too.'''
        return isinstance(value, ModuleType) or callable(value) and not isinstance(value, type)

    def wrapped(self, value, name):
        if isinstance(value, ModuleType):
            class Module(ModuleType):
                def __getattr__(module, attribute):
                    found = getattr(value, attribute)
                    return self.wrapped(found, f"{name}.{attribute}") if self.fails(found) else found
            return Module(value.__name__)

        def call(*args, **kwargs):
            self.streak = self.streak + 1 if name == self.previous else 0
            self.previous = name
            self.count += self.streak < 3  # in a loop one fails like the other
            if self.count == self.at and self.fired is None:
                self.fired = name
                if self.what == "interrupt":
                    os.kill(os.getpid(), signal.SIGINT)
                else:
                    raise self.what()
            return value(*args, **kwargs)
        return call

    def arm(self, at, what):
        self.count, self.fired, self.what, self.streak, self.previous = 0, None, what, 0, None
        self.at = at if comm.rank == 1 else None


def outcome(call, *args):
    try:
        return "", call(*args)
    except (Exception, KeyboardInterrupt) as exc:
        return type(exc).__name__, None


def in_turn(faults, scenario, check):
    '''Go through a scenario again and again, each time with another fault, until there is none left.'''
    kinds = [lambda: OSError(errno.EIO, "as if"), MemoryError] if sys.argv[-1] == "raise" else ["interrupt"]
    points = set()
    for at in itertools.count(1):
        faulthandler.dump_traceback_later(60, exit=True)
        faults.arm(at, kinds[at % len(kinds)])  # most points come several times in a scenario
        found = scenario(at)
        name, found = comm.bcast(faults.fired, root=1), comm.allgather(found)
        if name is None:
            break
        points.add(name)
        if comm.rank == 0:
            with open(sys.argv[1] + "/last", "w") as last:
                last.write(f"{at} {name} {found}")
        check(name, found)
    faulthandler.cancel_dump_traceback_later()
    faults.arm(None, None)  # what is called at exit does not fail
    if comm.rank == 0:
        print(len(points), "points")

"""

VECFILE = (
    FAULTS
    + """
faults = Faults(*CORE)
x = PETSc.Vec().createSeq(6 + comm.rank)
x.setBlockSize(1)


def scenario(at):
    path = sys.argv[1] + f"/{at}.h5"
    results = []
    for mode in "xa":
        opened = []  # in one call of C: an interrupt that comes with its end does not lose the file
        results.append(outcome(opened.extend, map(functools.partial(VecFile, comm, path), [mode]))[0])
        if not opened:
            continue
        file, = opened
        for call in (lambda: file.write("x", x), lambda: file.read("x", x),
                     lambda: file.write_array("f", np.ones(5 + comm.rank)),
                     lambda: file.write_array("i", np.ones((2, 3), int)),
                     lambda: file.read_array("i", np.ones((2, 3), int)),
                     lambda: file.create_rows("rows" + mode, 4, np.ones(3), checksums=True),
                     lambda: file.agree(bytearray(3)), file.flush, file.close):
            results.append(outcome(call)[0])
        if not file.closed:
            results.append(outcome(file.close)[0])
    comm.barrier()
    if comm.rank == 0 and os.path.exists(path):
        os.unlink(path)
    return results


def check(name, found):
    if sys.argv[-1] == "raise":  # what fails on one rank is raised on both
        assert found[0] == found[1], (name, found)
    else:
        assert set(found[0]) == {""} and set(found[1]) <= {"", "KeyboardInterrupt"}, (name, found)
        assert "KeyboardInterrupt" in found[1], (name, found)


in_turn(faults, scenario, check)
"""
)

STORE = (
    FAULTS
    + """
from localckpt.storage.store import Store
faults = Faults(*CORE, "localckpt.storage.engines", "localckpt.storage.store", "localckpt.storage.store_file",
                "localckpt.storage.stored", "localckpt.storage.content_index")
arrays = [np.full(40_000 * (i % 3 > 1) + 10 + comm.rank, float(i)) for i in range(5)]


def get(store, stored, i):
    found = store.get(stored, arrays[i].shape, arrays[i].dtype)
    assert (found == arrays[i]).all(), "other numbers than were stored"


def scenario(at):
    engine, cleanup = sys.argv[2], sys.argv[3] == "unlinked"
    os.makedirs(sys.argv[1] + f"/{at}", exist_ok=True)
    comm.barrier()
    store = Store(comm, sys.argv[1] + f"/{at}/all.h5", cleanup, engine)
    results = []
    for sweep in range(2):
        held = []
        for i, array in enumerate(arrays):
            kind, stored = outcome(store.put, f"key{i % 3}", array)
            results.append(kind)
            held.append((i, stored))
        results.append(outcome(store.sync)[0])
        for i, stored in held:
            there = comm.allgather(stored is not None) if store.collective else [stored is not None]
            if all(there):
                results.append(outcome(get, store, stored, i)[0])
        results.append(outcome(store.flush)[0])
        del held, stored
        results.append(outcome(store.retire)[0])
    assert "AssertionError" not in results, results
    return results


def check(name, found):
    if sys.argv[-1] != "raise":
        assert set(found[0]) == {""} and set(found[1]) <= {"", "KeyboardInterrupt"}, (name, found)


in_turn(faults, scenario, check)
"""
)

JOURNAL = (
    FAULTS
    + """
from localckpt.storage import journal
from localckpt.storage.journal import Journal
journal.RANKS_PER_FILE = 1
faults = Faults("localckpt._collective", "localckpt.storage.journal", "localckpt.storage.journal_entries")
arrays = [np.full(1000 + comm.rank, 0.5), np.arange(comm.rank)]


def read(records, entry):
    found = records.read(entry, [np.empty_like(array) for array in arrays])
    assert all((a == b).all() for a, b in zip(found, arrays)), "other numbers than were stored"


def scenario(at):
    directory = sys.argv[1] + f"/{at}"
    os.makedirs(directory, exist_ok=True)
    comm.barrier()
    results, entries = [], []
    for job in range(2):
        opened = []
        results.append(outcome(opened.extend, map(functools.partial(Journal, directory), [comm]))[0])
        if not all(comm.allgather(len(opened))):  # an interrupt that comes with its end loses the journal
            continue
        records, = opened
        for each in [] if job else [arrays, []]:
            append = functools.partial(records.append, wait=not each)
            results.append(outcome(append, {"kind": "record"}, each)[0])
        for entry in records.entries:
            if "at" in entry:
                results.append(outcome(read, records, entry)[0])
        entries.append(len(records.entries))
        if job:
            results.append(outcome(records.clear)[0])
            results.append(outcome(records.append, {"kind": "record"}, arrays)[0])
        results.append(outcome(records.close)[0])
    assert "AssertionError" not in results, results
    return [*results, entries]


def check(name, found):
    if sys.argv[-1] == "raise":
        assert found[0] == found[1] or "os.close" in name, (name, found)  # closing is not collective
    else:
        assert found[0][-1] == found[1][-1], (name, found)
        assert set(found[0][:-1]) == {""} and set(found[1][:-1]) <= {"", "KeyboardInterrupt"}, (name, found)


in_turn(faults, scenario, check)
"""
)

SETUP = (
    FAULTS
    + """
import logging
import firedrake
from localckpt.adjoint import DiskCheckpointer
faults = Faults("localckpt._collective", "localckpt.storage.directories", "localckpt.storage.engines",
                "localckpt.storage.nodes", "localckpt.storage.room", "localckpt.storage.run_directories",
                "localckpt.storage.shared_directories", "localckpt.storage.store", "localckpt.storage.store_file",
                "localckpt.adjoint.arguments", "localckpt.adjoint.checkpointer")
logging.getLogger("localckpt").addHandler(logging.NullHandler())
checkpoint_comm = {"own": MPI.COMM_SELF, "world": comm}[sys.argv[2]]


def scenario(at):
    made = []
    kind = outcome(made.extend, map(functools.partial(
        DiskCheckpointer, None, comm, True, checkpoint_comm), [sys.argv[1]]))[0]
    return [kind, bool(made)]


def check(name, found):
    if sys.argv[-1] == "raise":
        assert found[0] == found[1], (name, found)
    else:
        assert found[0] == ["", True] and found[1][0] in ("", "KeyboardInterrupt"), (name, found)


DiskCheckpointer(None, comm, True, comm, sys.argv[1])  # imports what is imported when it is first needed
in_turn(faults, scenario, check)
"""
)


def run(run_script, tmp_path, code, *args):
    before = ["env", "OMPI_MCA_mpi_yield_when_idle=1"]  # who waits leaves the cores to who works
    done = run_script(code, tmp_path, *args, ranks=2, before=before, seconds=800)
    last = (tmp_path / "last").read_text() if (tmp_path / "last").exists() else ""
    assert done.returncode == 0, f"after {last}\n{done.stderr}"
    return int(done.stdout.split()[-2])


@pytest.mark.parametrize("what", ["raise", "interrupt"])
def test_ranks_of_a_file_stay_in_step(run_script, tmp_path, what):
    assert run(run_script, tmp_path, VECFILE, what) > 10


@pytest.mark.parametrize("what", ["raise", "interrupt"])
@pytest.mark.parametrize("engine, file", [("direct", "unlinked"), ("direct", "kept"), ("viewer", "unlinked")])
def test_ranks_of_a_store_stay_in_step(run_script, tmp_path, engine, file, what):
    assert run(run_script, tmp_path, STORE, engine, file, what) > 15


@pytest.mark.parametrize("what", ["raise", "interrupt"])
def test_ranks_of_a_journal_stay_in_step(run_script, tmp_path, what):
    assert run(run_script, tmp_path, JOURNAL, what) > 15


@pytest.mark.parametrize("what", ["raise", "interrupt"])
@pytest.mark.parametrize("file", ["own", "world"])
def test_ranks_stay_in_step_while_a_checkpointer_is_made(run_script, tmp_path, file, what):
    assert run(run_script, tmp_path, SETUP, file, what) > 15


def test_an_error_that_cannot_be_pickled_is_told_to_all_ranks(run_script, tmp_path):
    done = run_script(
        """
from localckpt._collective import raise_everywhere


class Local(ValueError):
    def __init__(self, a, b):
        super().__init__(a)
        self.file = open(os.devnull)


class Wordless(Local):
    def __str__(self):
        raise RuntimeError


for kind, words in (Local, "Local: lost"), (Wordless, "cannot be described"):
    found = attempt(raise_everywhere, comm, kind("lost", 2) if comm.rank == 1 else None)
    assert all(words in said for kind, said in found), found
error = MemoryError("none left")
found = attempt(raise_everywhere, comm, error if comm.rank == 1 else None)
assert set(found) == {("MemoryError", "none left")}, found
""",
        ranks=3,
    )
    assert (done.returncode, done.stderr) == (0, "")
