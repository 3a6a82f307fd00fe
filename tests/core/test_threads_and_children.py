"""Files that Python threads share wait for each other; a forked child leaves its parent's alone and has its own."""

import pytest

THREADS = """
from concurrent.futures import ThreadPoolExecutor

def use(number):
    with VecFile(MPI.COMM_SELF, f"{sys.argv[1]}/{number}.h5", "w") as file:
        for i in range(40):
            array = np.random.default_rng([number, i]).standard_normal(500 + number)
            file.write_array(f"{i}", array)
            try:
                file.read_array("missing", array)
            except localckpt.MissingDatasetError:
                pass
            back = np.empty_like(array)
            file.read_array(f"{i}", back)
            assert (back == array).all()
        assert len(file.names()) == 40
    return True

with ThreadPoolExecutor(6) as threads:
    assert all(threads.map(use, range(6)))
"""


def test_threads_with_a_file_each(tmp_path, run_script):
    done = run_script(THREADS, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_threads_with_one_file(tmp_path, run_script):
    done = run_script(
        """
from concurrent.futures import ThreadPoolExecutor
with VecFile(MPI.COMM_SELF, sys.argv[1] + "/one.h5", "w") as file, ThreadPoolExecutor(6) as threads:
    list(threads.map(lambda i: file.write_array(f"{i}", np.full(100, i)), range(60)))
    for i in range(60):
        file.read_array(f"{i}", back := np.empty(100, int))
        assert (back == i).all()
""",
        tmp_path,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_forked_child_cannot_use_its_parents_file(tmp_path, run_script):
    done = run_script(
        """
path = sys.argv[1] + "/parent.h5"
file = VecFile(MPI.COMM_SELF, path, "w")
file.write_array("a", np.ones(100))
before = os.stat(path)
if os.fork() == 0:
    try:
        file.write_array("a", np.zeros(100))
    except localckpt.ClosedFileError as exc:
        assert "the process that opened it" in str(exc), exc
        sys.exit()
    os._exit(7)
assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
after = os.stat(path)
assert (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)
file.write_array("b", 2*np.ones(100))
file.close()
with VecFile(MPI.COMM_SELF, path) as file:
    for name, value in (("a", 1), ("b", 2)):
        file.read_array(name, back := np.empty(100))
        assert (back == value).all()
""",
        tmp_path,
    )
    assert (done.returncode, done.stderr) == (0, "")


# A child that opens a file looks after MPI's messages, and can take those for its parent, which then never get there
# (shared memory of Open MPI 4.1). So while there are children, nobody sends any.
MEET = """
import time

def meet():
    '''Wait until the children of all ranks are over, without a message.'''
    open(f"{sys.argv[1]}/over-{comm.rank}", "w").close()
    while not all(os.path.exists(f"{sys.argv[1]}/over-{rank}") for rank in range(comm.size)):
        time.sleep(0.01)

"""


@pytest.mark.parametrize("ranks", [0, 2])
def test_a_forked_childs_own_file_is_whole_when_the_child_ends(tmp_path, run_script, ranks):
    done = run_script(
        MEET
        + """
path = f"{sys.argv[1]}/{comm.rank}"
parents = VecFile(MPI.COMM_SELF, path + "-parent.h5", "w")
array = np.arange(1000.0)
if os.fork() == 0:
    childs = VecFile(MPI.COMM_SELF, path + "-child.h5", "x")
    childs.write_array("a", array)
    childs.create_rows("rows", 3, array)  # metadata that HDF5 still holds
    sys.exit()  # without having closed it
assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
meet()
with VecFile(MPI.COMM_SELF, path + "-child.h5") as file:
    file.read_array("a", back := np.empty(1000))
    assert file.names() == ["a", "rows"] and (back == array).all()
parents.write_array("b", array)
""",
        tmp_path,
        ranks=ranks,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("ranks", [0, 2])
def test_a_forked_child_has_a_store_of_its_own(tmp_path, run_script, ranks):
    done = run_script(
        MEET
        + """
from localckpt.storage.store import Store
array = np.arange(1000.0)
parents = Store.temporary(MPI.COMM_SELF, sys.argv[1])
stored = parents.put("a", array)

def use(generation):
    own = Store.temporary(MPI.COMM_SELF, sys.argv[1])
    assert (own.get(own.put("a", -array), array.shape, array.dtype) == -array).all()
    try:
        parents.put("a", array + generation)
    except localckpt.ClosedFileError as exc:
        assert "the process that opened it" in str(exc), exc
    else:
        os._exit(7)
    if generation == 1:
        if os.fork() == 0:
            use(2)
            sys.exit()
        assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
        own.put("a", 2*array)

if os.fork() == 0:
    use(1)
    sys.exit()
assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
meet()
assert (parents.get(stored, array.shape, array.dtype) == array).all()
assert (parents.get(parents.put("a", 3*array), array.shape, array.dtype) == 3*array).all()
""",
        tmp_path,
        ranks=ranks,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_an_exception_of_its_parent_is_not_a_forked_childs(tmp_path, run_script):
    done = run_script(
        """
file = VecFile(MPI.COMM_SELF, sys.argv[1] + "/parent.h5", "w")
sys.last_value = ValueError("shown before")  # as interactive sessions and debuggers leave it
if os.fork() == 0:
    sys.exit()
assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
""",
        tmp_path,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("end", "status", "text"),
    [
        ("sys.exit(3)", 3, ""),
        ("sys.exit('no')", 1, "no\n"),
        ("os._exit(4)", 4, ""),
        ("1 / 0", 1, None),
        ("pass", 0, ""),
    ],
)
def test_a_multiprocessing_child_exits_as_it_asked_for(tmp_path, run_script, end, status, text):
    done = run_script(
        f"""
from multiprocessing import get_context
file = VecFile(MPI.COMM_SELF, sys.argv[1] + "/parent.h5", "w")

def work():
    {end}

child = get_context("fork").Process(target=work)
child.start()
child.join(20)
assert child.exitcode == {status}, child.exitcode
""",
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == text if text is not None else "ZeroDivisionError" in done.stderr
