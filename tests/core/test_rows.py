"""Rows of a file: whole, free again when nobody holds them, and what PETSc and h5py read."""

import os
import time
from concurrent.futures import ThreadPoolExecutor

import h5py
import numpy as np
import pytest
from mpi4py import MPI
from petsc4py import PETSc

from localckpt import ChecksumError, LayoutError, TransferError, VecFile
from localckpt._descriptor import Descriptor
from localckpt._rows import Pool, Row

WORLD = MPI.COMM_WORLD
PAGE = os.sysconf("SC_PAGESIZE")
DOUBLE = np.dtype(float)


def random(n, seed=0):
    return np.random.default_rng([seed, WORLD.rank]).standard_normal(n)


@pytest.fixture
def file(tmp_path):
    """A file of zeros, large enough for the rows here."""
    path = tmp_path / "rows"
    path.write_bytes(bytes(64 * PAGE))
    return path


@pytest.fixture
def make_pool(file):
    """make_pool(...): a pool of rows in that file."""

    def make(first=0, stride=800, count=3, recycle=True):
        pool = Pool(Descriptor(str(file), os.O_RDWR), recycle)
        pool.add(first, stride, count)
        return pool

    return make


def open_files(path):
    """How many descriptors this process has of that file."""
    links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
    # One of them was the listing's own.
    return [os.readlink(link) for link in links if os.path.lexists(link)].count(path)


def test_rows_come_only_from_a_pool():
    with pytest.raises(TypeError, match="Pool.claim"):
        Row()


def test_rows_are_claimed_in_the_order_of_the_file(make_pool):
    pool = make_pool(8, 100, 2)
    pool.add(5000, 100, 1)
    rows = [pool.claim() for _ in range(3)]
    assert [row.offset for row in rows] == [8, 108, 5000]
    assert (pool.claim(), pool.free, pool.rows) == (None, 0, 3)


def test_a_dropped_row_is_claimed_again(make_pool):
    pool = make_pool()
    rows = [pool.claim() for _ in range(3)]
    dropped = rows.pop(1).offset
    assert pool.free == 1 and pool.claim().offset == dropped


def test_without_recycling_no_row_is_claimed_again(make_pool):
    pool = make_pool(count=2, recycle=False)
    assert [pool.claim().offset for _ in range(2)] == [0, 800]
    assert pool.claim() is None


@pytest.mark.parametrize("first", [0, 7, PAGE - 1, PAGE, PAGE + 8])
@pytest.mark.parametrize("n", [0, 1, 100, 3000])
def test_rows_come_back(make_pool, first, n):
    pool = make_pool(first, 8 * n)
    rows = [pool.claim() for _ in range(3)]
    for seed, row in enumerate(rows):
        row.write(random(n, seed))
    for seed, row in enumerate(rows):
        found = np.empty(n)
        row.read(found)
        np.testing.assert_array_equal(found, random(n, seed))


@pytest.mark.parametrize("array", [np.frombuffer(bytes(80)), np.empty(4)[::2]], ids=["read-only", "strided"])
def test_an_array_that_cannot_be_filled_is_refused(make_pool, array):
    with pytest.raises((BufferError, ValueError)):
        make_pool().claim().read(array)


@pytest.mark.parametrize("first", [0, 8, PAGE - 8, PAGE, 3 * PAGE + 24])
@pytest.mark.parametrize("shape", [(1,), (1000,), (500, 2), (10, 10, 10)])
def test_a_mapped_array_shows_the_row(make_pool, first, shape):
    row = make_pool(first).claim()
    expected = random(shape)
    row.write(expected)
    array = row.map(shape, DOUBLE)
    assert (array.shape, array.dtype) == (shape, DOUBLE)
    np.testing.assert_array_equal(array, expected)


def test_a_mapped_array_is_nobody_elses(make_pool, file):
    row = make_pool(PAGE - 8).claim()
    expected = random(100)
    row.write(expected)
    before = file.read_bytes()
    mine, other = (row.map((100,), DOUBLE) for _ in range(2))
    assert mine.flags.writeable and mine.flags.c_contiguous and mine.flags.aligned
    mine[:] = -1
    np.testing.assert_array_equal(other, expected)
    assert file.read_bytes() == before


@pytest.mark.parametrize("part", [lambda a: a, lambda a: a.reshape(50, 2)[3:].T], ids=["array", "view"])
def test_a_row_is_not_free_while_it_is_mapped(make_pool, part):
    pool = make_pool(count=1)
    row = pool.claim()
    row.write(random(100))
    held = part(row.map((100,), DOUBLE))
    del row
    assert pool.free == 0
    np.testing.assert_array_equal(held, part(random(100)))
    del held
    assert pool.free == 1


def test_the_descriptor_is_open_as_long_as_a_row_or_a_mapping_needs_it(make_pool, file):
    pool = make_pool()
    held = [pool.claim(), pool.claim()]
    held.append(held[0].map((10,), DOUBLE))
    del pool
    os.unlink(file)
    counts = []
    while held:
        counts.append(open_files(f"{file} (deleted)"))
        del held[0]
    assert [*counts, open_files(f"{file} (deleted)")] == [1, 1, 1, 0]


def test_reading_past_the_end_of_the_file_is_an_error(make_pool, file):
    row = make_pool(os.path.getsize(file) - 40).claim()
    with pytest.raises(TransferError, match="reading 80 bytes") as error:
        row.read(np.empty(10))
    assert (error.value.errno, error.value.file) == (5, str(file)) and repr(str(file)) in str(error.value)


def test_a_file_that_may_grow_no_more_is_an_error(run_script, file):
    result = run_script(
        """
import errno, resource, signal
from localckpt import TransferError
from localckpt._descriptor import Descriptor
from localckpt._rows import Pool
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
path, size = sys.argv[1], os.path.getsize(sys.argv[1])
pool = Pool(Descriptor(path, os.O_RDWR), True)
pool.add(size - 4000, 8000, 1)
row = pool.claim()
resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
try:
    row.write(np.ones(1000))
except TransferError as error:
    assert error.errno == errno.EFBIG and error.file == path and "writing 8000 bytes" in str(error), error
    row.write(np.ones(500))
else:
    raise AssertionError("no error")
""",
        file,
    )
    assert (result.returncode, result.stderr) == (0, "")


def written_rows(path, count, own, checksums=False, unused=0):
    """A closed file in which each rank wrote its part of `count` rows by itself."""
    parts = [random(own, seed).astype(PETSc.ScalarType) for seed in range(count)]
    with VecFile(WORLD, str(path), "w") as file:
        first, stride, rows, where = file.create_rows("rows", count + unused, parts[0], checksums=checksums)
        assert rows == count + unused and (where is not None) == checksums
        reserved = os.stat(path).st_blocks * 512
        WORLD.barrier()  # nobody writes before all have looked
        pool = Pool(file.descriptor, True)
        pool.add(first, stride, rows, where, 8 * WORLD.size)
        for row, part in zip([pool.claim() for _ in parts], parts):
            row.write(part)
        file.flush()
    return parts, reserved


@pytest.mark.parallel([1, 2, 3])
def test_disk_space_is_reserved_when_rows_are_made(shared_tmp):
    own = 10_000 * (WORLD.rank + 1)
    parts, reserved = written_rows(shared_tmp / "rows.h5", 4, own)
    assert reserved >= 4 * WORLD.allreduce(parts[0].nbytes)


@pytest.mark.parallel([1, 2, 3])
def test_rows_beyond_the_room_are_an_error_on_every_rank(shared_tmp, raises_everywhere):
    path, array = shared_tmp / "rows.h5", np.ones(10 + WORLD.rank)
    row = WORLD.allreduce(array.nbytes)
    with VecFile(WORLD, str(path), "w") as file:
        with raises_everywhere(TransferError, match="Disk quota exceeded"):
            file.create_rows("none", 5, array, room=row - 1)
        assert file.create_rows("two", 5, array, room=3 * row - 1)[2] == 2
        assert file.names() == ["two"]


@pytest.mark.parallel([1, 2, 3])
@pytest.mark.parametrize("own", [5 + WORLD.rank, 7 * (WORLD.rank == 0)], ids=["all", "rank 0 alone"])
def test_a_row_is_a_timestep_to_petsc(shared_tmp, own):
    path = str(shared_tmp / "rows.h5")
    parts, _ = written_rows(path, 3, own)
    vec = PETSc.Vec().createMPI((own, None), comm=WORLD)
    vec.setName("rows")
    viewer = PETSc.ViewerHDF5().create(path, "r", comm=WORLD)
    viewer.pushTimestepping()
    for step, part in enumerate(parts):
        viewer.setTimestep(step)
        vec.load(viewer)
        np.testing.assert_array_equal(vec.array_r, part)
    viewer.destroy()
    with h5py.File(path, driver="sec2") as file:
        assert file["rows"].shape[:2] == (3, vec.size)


@pytest.mark.parallel([1, 2, 3])
@pytest.mark.parametrize("checksums", [False, True])
@pytest.mark.parametrize("own", [5 + WORLD.rank, 7 * (WORLD.rank == 0)], ids=["all", "rank 0 alone"])
def test_a_timestep_is_read_back(shared_tmp, own, checksums, raises_everywhere):
    path = shared_tmp / "rows.h5"
    parts, _ = written_rows(path, 3, own, checksums)
    vec = PETSc.Vec().createMPI((own, None), comm=WORLD)
    with VecFile(WORLD, path) as file:
        assert file.names() == ["rows"]
        for step in (2, 0, 1):
            file.read("rows", vec, timestep=step)
            np.testing.assert_array_equal(vec.array_r, parts[step])
        with raises_everywhere(LayoutError, match="no timestep 3 among 3"):
            file.read("rows", vec, timestep=3)
        with raises_everywhere(LayoutError, match="to be read are"):
            file.read("rows", vec)


@pytest.mark.parallel([1, 2, 3])
@pytest.mark.parametrize("blocks", [1, 3])
def test_a_timestep_that_petsc_wrote_is_read(shared_tmp, blocks):
    path = str(shared_tmp / "petsc.h5")
    vec = PETSc.Vec().createMPI((blocks * (4 + WORLD.rank), None), bsize=blocks, comm=WORLD)
    vec.setName("state")
    viewer = PETSc.ViewerHDF5().create(path, "w", comm=WORLD)
    viewer.pushTimestepping()
    for step in range(3):
        viewer.setTimestep(step)
        vec.array = random(vec.local_size, step)
        vec.view(viewer)
    viewer.destroy()
    with VecFile(WORLD, path) as file:
        for step in range(3):
            file.read("state", vec, timestep=step)
            np.testing.assert_array_equal(vec.array_r, random(vec.local_size, step))


@pytest.mark.parallel([1, 2, 3])
def test_a_timestep_of_a_dataset_without_timesteps_is_an_error(shared_tmp, raises_everywhere):
    with VecFile(WORLD, shared_tmp / "plain.h5", "w") as file:
        file.write_array("plain", np.ones(5))
        with raises_everywhere(LayoutError, match="no timesteps"):
            file.read_array("plain", np.ones(5), timestep=0)


@pytest.mark.parallel([1, 2, 3])
def test_rows_without_entries_have_nothing_to_verify(shared_tmp):
    n = 5 * (WORLD.rank == 1)
    written_rows(shared_tmp / "rows.h5", 3, n, checksums=True)
    with VecFile(WORLD, shared_tmp / "rows.h5") as file:
        array = np.empty(n, PETSc.ScalarType)
        for step in range(3):
            file.read_array("rows", array, timestep=step)
            assert n == 0 or len(set(array)) > 1


@pytest.mark.parallel([1, 2, 3])
def test_a_damaged_row_is_an_error_on_every_rank(shared_tmp, raises_everywhere):
    path, own = shared_tmp / "rows.h5", 5 + WORLD.rank
    written_rows(path, 3, own, checksums=True)
    if WORLD.rank == 0:
        with h5py.File(path, "r", driver="sec2") as file:
            offset = file["rows"].id.get_offset() + file["rows"][0].nbytes + 3
        with open(path, "r+b") as file:
            file.seek(offset)
            byte = file.read(1)[0]
            file.seek(offset)
            file.write(bytes([byte ^ 4]))
    WORLD.barrier()
    array = np.empty(own, PETSc.ScalarType)
    with VecFile(WORLD, path) as file:
        file.read_array("rows", array, timestep=0)
        with raises_everywhere(ChecksumError, match="timestep 1 is not what was stored"):
            file.read_array("rows", array, timestep=1)


@pytest.mark.parallel([1, 2, 3])
def test_a_row_that_nobody_wrote_is_an_error(shared_tmp, raises_everywhere):
    written_rows(shared_tmp / "rows.h5", 3, 5, checksums=True, unused=2)
    with VecFile(WORLD, shared_tmp / "rows.h5") as file:
        with raises_everywhere(ChecksumError, match="nothing was stored as timestep 4"):
            file.read_array("rows", np.empty(5, PETSc.ScalarType), timestep=4)


def test_what_a_forked_child_may_still_read_is_not_written_over(file, run_script):
    done = run_script(
        """
from localckpt._descriptor import Descriptor
from localckpt._rows import Pool
pool = Pool(Descriptor(sys.argv[1], os.O_RDWR), True, "a")
pool.add(0, 8*2**16, 2)
row = pool.claim()
row.write(np.ones(2**16))
array = row.map((2**16,), np.dtype(float))
parent, child = os.pipe()
if os.fork() == 0:
    os.read(parent, 1)
    os._exit(int(array.min() == array.max() == 1.0))
del row, array
for _ in range(2):
    row = pool.claim()
    if row is not None:
        row.write(np.zeros(2**16))
os.write(child, b"!")
assert os.waitstatus_to_exitcode(os.wait()[1]) == 1
""",
        file,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_forked_child_reads_but_does_not_write(file, run_script):
    done = run_script(
        """
from localckpt._descriptor import Descriptor
from localckpt._rows import Pool
pool = Pool(Descriptor(sys.argv[1], os.O_RDWR), True, "a")
pool.add(0, 80, 1)
row = pool.claim()
row.write(np.ones(10))
if os.fork() == 0:
    array = np.zeros(10)
    row.read(array)
    try:
        row.write(array)
    except localckpt.ClosedFileError as exc:
        os._exit(array.sum() == 10 and "the process that opened it" in str(exc))
    os._exit(7)
assert os.waitstatus_to_exitcode(os.wait()[1]) == 1
row.write(2*np.ones(10))
""",
        file,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_forked_child_writes_rows_of_its_own(file, run_script):
    done = run_script(
        """
from localckpt._descriptor import Descriptor
from localckpt._rows import Pool
if os.fork() == 0:
    pool = Pool(Descriptor(sys.argv[1], os.O_RDWR), True, "a")
    pool.add(0, 80, 1)
    row = pool.claim()
    row.write(np.ones(10))
    row.read(array := np.zeros(10))
    os._exit(int(array.sum()))
assert os.waitstatus_to_exitcode(os.wait()[1]) == 10
""",
        file,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_what_is_expected_comes_from_the_disk_by_itself(make_pool, file):
    pool = make_pool(stride=4 * PAGE, count=1)
    row, n = pool.claim(), 4 * PAGE
    row.write(random(n // 8))
    assert not row.on_disk(n)  # but in the page cache
    with open(file, "rb") as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    row.prefetch(n)
    for _ in range(500):
        if not row.on_disk(n):
            break
        time.sleep(0.01)
    assert not row.on_disk(n)
    array = np.empty(n // 8)
    row.read(array)
    np.testing.assert_array_equal(array, random(n // 8))


def test_threads_do_not_get_into_each_others_rows(make_pool):
    pool = make_pool(stride=8000, count=16)

    def use(seed):
        for i in range(300):
            row, array = pool.claim(), np.empty(1000)
            row.write(random(1000, 1000 * seed + i))
            row.read(array)
            assert (array == random(1000, 1000 * seed + i)).all()
        return True

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(use, range(8)))
