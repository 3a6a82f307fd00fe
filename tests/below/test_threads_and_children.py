"""Files that Python threads share wait for each other; a forked child leaves its parent's alone."""

THREADS = """
from concurrent.futures import ThreadPoolExecutor

def use(number):
    with VecFile(MPI.COMM_SELF, f"{sys.argv[1]}/{number}.h5", "w") as file:
        for i in range(40):
            array = np.random.default_rng([number, i]).standard_normal(500 + number)
            file.write_array(f"{i}", array)
            try:
                file.read_array("missing", array)
            except localckpt.UnknownDataset:
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
    done = run_script("""
from concurrent.futures import ThreadPoolExecutor
with VecFile(MPI.COMM_SELF, sys.argv[1] + "/one.h5", "w") as file, ThreadPoolExecutor(6) as threads:
    list(threads.map(lambda i: file.write_array(f"{i}", np.full(100, i)), range(60)))
    for i in range(60):
        file.read_array(f"{i}", back := np.empty(100, int))
        assert (back == i).all()
""", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_forked_child_cannot_use_its_parents_file(tmp_path, run_script):
    done = run_script("""
path = sys.argv[1] + "/parent.h5"
file = VecFile(MPI.COMM_SELF, path, "w")
file.write_array("a", np.ones(100))
before = os.stat(path)
if os.fork() == 0:
    try:
        file.write_array("a", np.zeros(100))
    except localckpt.ClosedFile as exc:
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
""", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
