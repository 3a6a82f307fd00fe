"""Opening, holding open, flushing, closing and dropping; what the process keeps of it."""

import ctypes
import gc
import os
import subprocess
import sys
import warnings

import h5py
import numpy as np
import pytest
from mpi4py import MPI
from petsc4py import PETSc

from localckpt import ClosedFileError, StorageError, TransferError, VecFile, _dataset

WORLD = MPI.COMM_WORLD


HDF5 = ctypes.CDLL(_dataset.__file__)  # finds the HDF5 that this uses: h5py may have one of its own
HDF5.H5Inmembers.argtypes = [ctypes.c_int, ctypes.POINTER(ctypes.c_ulonglong)]


def descriptors():
    gc.collect()  # what tests before this one left is not to go in the middle of it
    return len(os.listdir("/proc/self/fd"))


def hdf5_ids():
    """How many ids of each type HDF5 has given out: files, groups, types, spaces, lists, ..."""
    gc.collect()
    counts = []
    for kind in range(1, 16):
        n = ctypes.c_ulonglong(0)
        HDF5.H5Inmembers(kind, ctypes.byref(n))
        counts.append(n.value)
    return counts


@pytest.mark.parallel([1, 2])
def test_closing_an_unlinked_file_leaves_another_opening_of_it_alone(shared_tmp, make_vec):
    path, vec = shared_tmp / "one.h5", make_vec(WORLD, 600)
    writer = VecFile(WORLD, path, "w")
    writer.write("a", vec)
    writer.flush()
    reader = VecFile(WORLD, path)
    WORLD.barrier()
    if WORLD.rank == 0:
        path.unlink()
    WORLD.barrier()
    writer.close()
    found = vec.duplicate()
    reader.read("a", found)
    reader.close()
    np.testing.assert_array_equal(found.array_r, vec.array_r)


@pytest.mark.parallel([1, 2, 3])
def test_nothing_grows_in_a_file_held_open(shared_tmp, make_vec):
    vec, array = make_vec(WORLD, 6, 3), np.arange(4, dtype="c8")

    def use(file):
        file.write("u", vec)
        file.read("u", vec)
        file.write_array("a", array)
        file.read_array("a", array)
        assert "a" in file and "b" not in file and len(file.names()) == 2 and file.sizes("u")[0] == 6
        for failing in (lambda: file.read("missing", vec), lambda: file.write_array("u", array)):
            with pytest.raises(StorageError):
                failing()

    with VecFile(WORLD, shared_tmp / "w.h5", "w") as file:
        use(file)
        before = descriptors(), hdf5_ids()
        for _ in range(50):
            use(file)
        assert (descriptors(), hdf5_ids()) == before


@pytest.mark.parallel([1, 2, 3])
def test_nothing_is_left_of_closed_files(shared_tmp, make_vec):
    vec = make_vec(WORLD, 6)
    VecFile(WORLD, shared_tmp / "w.h5", "w").close()
    before = descriptors(), hdf5_ids()
    for collective in [False, True] * 10:
        with VecFile(WORLD, shared_tmp / "w.h5", "a", collective=collective) as file:
            file.write("u", vec)
            assert (descriptors(), hdf5_ids()) > before
        with pytest.raises(StorageError):
            VecFile(WORLD, shared_tmp)
    assert (descriptors(), hdf5_ids()) == before


@pytest.mark.parallel([1, 2, 3])
def test_flush_makes_bytes_visible_to_another_process(shared_tmp):
    with VecFile(WORLD, shared_tmp / "w.h5", "w") as file:
        file.write_array("a", np.arange(1000, dtype="i4"))
        file.flush()
        code = "import h5py, sys; print(h5py.File(sys.argv[1], 'r')['a'][:].sum())"
        if WORLD.rank == 0:
            result = subprocess.run(
                [sys.executable, "-c", code, shared_tmp / "w.h5"],
                timeout=60,
                text=True,
                capture_output=True,
                env={**os.environ, "HDF5_USE_FILE_LOCKING": "FALSE"},
            )
            assert (result.stdout, result.stderr) == (f"{499500 * WORLD.size}\n", "")
        WORLD.barrier()


@pytest.mark.parallel([1, 2, 3])
def test_context_manager_closes(shared_tmp):
    with VecFile(WORLD, shared_tmp / "w.h5", "w") as file:
        assert not file.closed
    assert file.closed and "closed" in repr(file)


@pytest.mark.parallel([1, 2, 3])
def test_context_manager_closes_after_an_exception(shared_tmp):
    with pytest.raises(ZeroDivisionError), VecFile(WORLD, shared_tmp / "w.h5", "w") as file:
        1 / 0  # noqa: B018
    assert file.closed


@pytest.mark.parallel([1, 2, 3])
def test_close_twice_is_no_error(shared_tmp):
    file = VecFile(WORLD, shared_tmp / "w.h5", "w")
    file.close()
    file.close()
    file.drop()
    assert file.closed


@pytest.mark.parallel([1, 2, 3])
def test_attributes_tell_what_was_opened(shared_tmp):
    with VecFile(WORLD, shared_tmp / "w.h5", "w") as file:
        assert (file.comm, file.path, file.mode) == (WORLD, str(shared_tmp / "w.h5"), "w")


@pytest.mark.parallel([1, 2, 3])
def test_mode_a_creates_appends_and_keeps(shared_tmp, make_vec):
    vec = make_vec(WORLD, 4)
    for name in "uvw":
        with VecFile(WORLD, shared_tmp / "w.h5", "a") as file:
            file.write(name, vec)
            assert file.names() == list("uvw"[: "uvw".index(name) + 1])
    with VecFile(WORLD, shared_tmp / "w.h5") as file:
        for name in "uvw":
            back = vec.duplicate()
            file.read(name, back)
            np.testing.assert_array_equal(back.array_r, vec.array_r)


@pytest.mark.parallel([1, 2, 3])
def test_mode_w_starts_afresh(shared_tmp, make_vec):
    for name in "uv":
        with VecFile(WORLD, shared_tmp / "w.h5", "w") as file:
            file.write(name, make_vec(WORLD, 4))
    with VecFile(WORLD, shared_tmp / "w.h5") as file:
        assert file.names() == ["v"]


@pytest.mark.parallel([1, 2, 3])
def test_mode_x_creates_a_file_of_its_owner_alone(shared_tmp, make_vec):
    vec = make_vec(WORLD, 4)
    with VecFile(WORLD, shared_tmp / "w.h5", "x") as file:
        file.write("u", vec)
        file.read("u", back := vec.duplicate())
    np.testing.assert_array_equal(back.array_r, vec.array_r)
    assert (shared_tmp / "w.h5").stat().st_mode & 0o777 == 0o600


@pytest.mark.parallel([1, 2, 3])
def test_drop_of_a_file_of_one_rank_closes_at_once(shared_tmp, make_vec):
    VecFile(MPI.COMM_SELF, shared_tmp / f"own{WORLD.rank}.h5", "w").close()
    before = descriptors()
    file = VecFile(MPI.COMM_SELF, shared_tmp / f"own{WORLD.rank}.h5", "w")
    file.write("u", make_vec(WORLD, 4))
    file.drop()
    assert file.closed and descriptors() == before


@pytest.mark.parallel([2, 3])
def test_dropped_file_closes_when_the_last_rank_has_dropped_it(shared_tmp, make_vec):
    vec, path = make_vec(WORLD, 4), shared_tmp / "w.h5"
    VecFile(WORLD, path, "w").close()
    before = descriptors()
    file = VecFile(WORLD, path, "w")
    opened = descriptors() - before
    file.write("u", vec)
    for late in range(WORLD.size):  # the ranks drop one after the other
        if WORLD.rank == late:
            file.drop()
            assert file.closed
        VecFile(WORLD, shared_tmp / "other.h5", "w").close()
        assert descriptors() - before == (0 if late == WORLD.size - 1 else opened)
    with VecFile(WORLD, path) as file:
        back = vec.duplicate()
        file.read("u", back)
    np.testing.assert_array_equal(back.array_r, vec.array_r)


@pytest.mark.parallel([2, 3])
def test_ranks_drop_in_different_order(shared_tmp):
    VecFile(WORLD, shared_tmp / "w.h5", "w").close()
    before = descriptors()
    files = [VecFile(WORLD, shared_tmp / f"{i}.h5", "w") for i in range(4)]
    for file in files if WORLD.rank else reversed(files):
        file.drop()
    VecFile(WORLD, shared_tmp / "w.h5", "w").close()
    assert descriptors() == before


@pytest.mark.parallel([1, 2, 3])
def test_use_after_drop(shared_tmp, raises_everywhere):
    file = VecFile(WORLD, path := shared_tmp / "w.h5", "w")
    file.drop()
    file.drop()
    with raises_everywhere(ClosedFileError, ValueError):
        file.flush()
    VecFile(WORLD, path, "w").close()


@pytest.mark.parallel([1, 2, 3])
@pytest.mark.parametrize("action", ["always", "error"])
def test_file_nobody_holds_is_dropped_with_a_warning(shared_tmp, action):
    VecFile(WORLD, shared_tmp / "w.h5", "w").close()
    before = descriptors()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter(action, ResourceWarning)
        hook, sys.unraisablehook = sys.unraisablehook, lambda raised: caught.append(raised.exc_value)
        file = VecFile(WORLD, shared_tmp / "w.h5", "w")
        del file
        gc.collect()
        sys.unraisablehook = hook
    (warning,) = caught
    assert "w.h5" in str(getattr(warning, "message", warning))
    VecFile(WORLD, shared_tmp / "w.h5", "w").close()
    assert descriptors() == before


@pytest.mark.parametrize("end", ["del file", "file.drop()", "pass"])
@pytest.mark.parametrize("ranks", [0, 2, 3])
def test_process_that_never_closed_ends_well(tmp_path, run_script, ranks, end):
    result = run_script(
        f"""
file = VecFile(comm, sys.argv[1], "w")
file.write_array("i", np.arange(3) + comm.rank)
file.write_array("u", np.arange(3.0) + comm.rank)
{end}
""",
        path := tmp_path / "w.h5",
        ranks=ranks,
    )
    assert (result.returncode, result.stderr) == (0, "")
    with h5py.File(path, "r") as file:
        expected = np.concatenate([np.arange(3) + rank for rank in range(ranks or 1)])
        np.testing.assert_array_equal(file["i"], expected)
        np.testing.assert_array_equal(file["u"], expected)


@pytest.mark.parallel([1, 2, 3])
def test_log_events_count_calls_and_bytes(shared_tmp, make_vec):
    vec, array = make_vec(WORLD, 100 + WORLD.rank), np.zeros(10, "i2")
    PETSc.Log.begin()

    def counted():
        return [PETSc.Log.Event(name).getPerfInfo() for name in ("localckptSave", "localckptLoad")]

    before = counted()
    with VecFile(WORLD, shared_tmp / "w.h5", "w") as file:
        for _ in range(3):
            file.write("u", vec)
        file.write_array("a", array)
        file.read("u", vec)
        file.read_array("a", array)
    save, load = ({key: new[key] - old[key] for key in new} for old, new in zip(before, counted(), strict=True))
    nbytes = vec.array_r.nbytes
    assert (save["count"], save["messageLength"]) == (4, 3 * nbytes + 20)
    assert (load["count"], load["messageLength"]) == (2, nbytes + 20)


@pytest.mark.parallel([1, 2, 3])
def test_hdf5s_error_handler_is_as_before(shared_tmp, make_vec):
    def installed():
        function, data = ctypes.c_void_p(), ctypes.c_void_p()
        HDF5.H5Eget_auto2(ctypes.c_int64(0), ctypes.byref(function), ctypes.byref(data))
        return function.value, data.value

    before = installed()
    with VecFile(WORLD, shared_tmp / "w.h5", "w") as file:
        assert installed() == before
        with pytest.raises(StorageError):
            file.read("u", make_vec(WORLD, 2))
    with pytest.raises(StorageError):
        VecFile(WORLD, shared_tmp)
    assert installed() == before


@pytest.mark.parametrize("first", ["_vecfile", "storage.store", "storage.run_directories"])
def test_files_are_closed_at_exit_before_their_directories_are_removed(first):
    # atexit calls last what was registered first.
    code = f"""if True:
        import atexit
        modules, register = [], atexit.register
        atexit.register = lambda function, *args: modules.append(function.__module__) or register(function, *args)
        import localckpt.{first}, localckpt._vecfile
        print(*[name for name in modules if name.startswith("localckpt.")])"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["localckpt.storage.run_directories", "localckpt._handle"], done.stderr


@pytest.mark.parametrize("ranks", [0, 2])
@pytest.mark.parametrize("comm", ["MPI.COMM_SELF", "MPI.COMM_WORLD"])
@pytest.mark.parametrize(
    ("end", "status"), [("sys.exit()", 0), ("del file; gc.collect()", 0), ("1 / 0", 1), ("os._exit(3)", 3)]
)
def test_forked_child_leaves_its_parents_file_alone(tmp_path, run_script, ranks, comm, end, status):
    result = run_script(
        f"""
import gc, pathlib
from localckpt import ClosedFileError
path = sys.argv[1] + (str(comm.rank) if {comm} == MPI.COMM_SELF else "")
file = VecFile({comm}, path, "w")
array = np.arange(1000.0)
file.write_array("u", array)
file.create_rows("rows", 3, array)  # metadata that HDF5 still holds
before = pathlib.Path(path).read_bytes()
comm.barrier()
if (child := os.fork()) == 0:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    for use in (lambda: file.write_array("u", -array), lambda: file.read_array("u", array), file.names, file.flush):
        try:
            use()
        except ClosedFileError as exc:
            assert "process that opened it" in str(exc)
        else:
            os._exit(7)
    file.close()
    {end}
else:
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == {status}
    comm.barrier()
    assert pathlib.Path(path).read_bytes() == before
    file.write_array("v", array)
    file.close()
    with VecFile({comm}, path) as file:
        file.read_array("v", back := np.empty(1000))
        assert file.names() == ["rows", "u", "v"] and (back == array).all()
""",
        tmp_path / "w.h5",
        ranks=ranks,
    )
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("ranks", [0, 2])
def test_threads_wait_for_each_other(tmp_path, run_script, ranks):
    result = run_script(
        """
from threading import Barrier, Thread
sys.setswitchinterval(1e-5)
start, failures = Barrier(4), []
shared = VecFile(MPI.COMM_SELF, f"{sys.argv[1]}-{comm.rank}", "w")


def work(me):
    try:
        start.wait()
        for turn in range(15):
            array = np.arange(2000.0) + 1000 * turn + me
            with VecFile(MPI.COMM_SELF, f"{sys.argv[1]}-{comm.rank}-{me}", "w") as own:
                for file in own, shared:
                    file.write_array(f"u{me}", array)
                    file.write_array(f"i{me}", array.astype(int))
                for file in own, shared:
                    file.read_array(f"u{me}", back := np.empty(2000))
                    assert (back == array).all() and f"i{me}" in file.names() and f"i{me}" in file
                    try:
                        file.sizes("missing")
                    except localckpt.MissingDatasetError as exc:
                        assert exc.file == file.path
    except BaseException as exc:
        failures.append(exc)


threads = [Thread(target=work, args=(me,)) for me in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert not failures, failures
shared.close()
""",
        tmp_path / "w.h5",
        ranks=ranks,
    )
    assert (result.returncode, result.stderr) == (0, "")


def test_file_closed_while_other_threads_use_it(tmp_path, run_script):
    result = run_script(
        """
from threading import Thread
sys.setswitchinterval(1e-5)
ends = []


def use(file):
    try:
        for turn in range(10**6):
            file.write_array("u", np.arange(3000.0) + turn)
    except localckpt.ClosedFileError:
        ends.append("closed")


for turn in range(10):
    file = VecFile(comm, sys.argv[1], "w")
    threads = [Thread(target=use, args=(file,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    file.write_array("v", np.arange(3000.0))
    file.close()
    for thread in threads:
        thread.join()
print(len(ends))
""",
        tmp_path / "w.h5",
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "20\n", "")


def test_a_file_is_closed_where_no_descriptors_are_left(run_script, tmp_path):
    done = run_script(
        """
import resource
file = VecFile(MPI.COMM_SELF, sys.argv[1], "x")
os.unlink(sys.argv[1])
listing = lambda: {os.readlink(f"/proc/self/fd/{n}") for n in range(100) if os.path.islink(f"/proc/self/fd/{n}")}
assert any("a.h5" in name for name in listing())
first, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
file.close()
resource.setrlimit(resource.RLIMIT_NOFILE, (first, hard))
assert not any("a.h5" in name for name in listing())
""",
        tmp_path / "a.h5",
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_descriptor_that_belongs_to_another_file_by_now_is_left_alone(run_script, tmp_path):
    # The numbers of MPI-IO's own descriptors, given to another file behind its back.
    done = run_script(
        """
file = VecFile(MPI.COMM_SELF, sys.argv[1] + "/a.h5", "x")
file.write_array("a", np.ones(10))
os.unlink(sys.argv[1] + "/a.h5")
mine = [n for n in range(200) if os.path.islink(f"/proc/self/fd/{n}") and "a.h5" in os.readlink(f"/proc/self/fd/{n}")
        and n != file.descriptor.fileno()]
with open(sys.argv[1] + "/other", "w+b") as other:
    for number in mine:
        os.dup2(other.fileno(), number)
    try:
        file.close()
    except localckpt.TransferError:
        pass
    listing = [os.readlink(f"/proc/self/fd/{n}") for n in range(200) if os.path.islink(f"/proc/self/fd/{n}")]
    print(len(mine), sum("nowhere" in name for name in listing))
""",
        tmp_path,
    )
    mine, nowhere = map(int, done.stdout.split())
    assert done.returncode == 0 and mine >= 1 and nowhere == 1, done.stderr  # the one of the process


@pytest.mark.parametrize("ranks", [0, 2])
def test_a_python_without_memfd_create_closes_files(run_script, tmp_path, ranks):
    done = run_script(
        """
del os.memfd_create
file = VecFile(comm, sys.argv[1], "x")
file.write_array("a", np.ones(10))
comm.barrier()
if comm.rank == 0:
    os.unlink(sys.argv[1])
comm.barrier()
file.close()
listing = [os.readlink(f"/proc/self/fd/{n}") for n in range(200) if os.path.islink(f"/proc/self/fd/{n}")]
assert not any("a.h5" in name for name in listing), listing
""",
        tmp_path / "a.h5",
        ranks=ranks,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("ranks", [0, 2])
def test_a_file_that_could_not_be_opened_leaves_no_name(run_script, tmp_path, ranks):
    done = run_script(
        """
import resource
first, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
number = os.dup(0)
os.close(number)
if comm.rank == comm.size - 1:
    resource.setrlimit(resource.RLIMIT_NOFILE, (number + 2, hard))
found = attempt(VecFile, comm, sys.argv[1], "x")
assert {kind for kind, words in found} == {"TransferError"} and "Too many open files" in found[0][1], found
assert not os.path.exists(sys.argv[1])
resource.setrlimit(resource.RLIMIT_NOFILE, (first, hard))
VecFile(comm, sys.argv[1], "x").close()
""",
        tmp_path / "a.h5",
        ranks=ranks,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_an_attribute_that_cannot_be_read_does_not_keep_a_file_open(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("a", data=np.zeros(3)).attrs["complex"] = "no"
    with VecFile(MPI.COMM_SELF, tmp_path / "a.h5") as file, pytest.raises(TransferError, match="conversion"):
        file.read_array("a", np.zeros(3))
