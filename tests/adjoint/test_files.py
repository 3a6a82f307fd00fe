"""Which files there are, under which names, and what is left of them and when."""

import gc
import os
import shutil

import firedrake as fd
import h5py
import pytest
from burgers import SCALES, assert_same, control, record_on_disk, reference, replay, sweep
from firedrake.adjoint import stop_annotating
from firedrake.adjoint_utils.checkpointing import CheckpointFunction
from firedrake.adjoint_utils.checkpointing import checkpointable_mesh as firedrakes_mesh
from firedrake.utils import ScalarType
from known_faults import TAPE_MAY_BE_KEPT
from mpi4py import MPI
from petsc4py import PETSc

from localckpt.adjoint import checkpointable_mesh, enable_disk_checkpointing


def files_below(directory):
    """The size of every file below the directory."""
    return {
        os.path.join(where, name): os.path.getsize(os.path.join(where, name))
        for where, _, names in os.walk(directory)
        for name in names
    }


def open_data(directory):
    """The sizes of this process's open files below the directory that have no name any more."""
    sizes = []
    for fd_ in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{fd_}")
            if target.startswith(os.path.realpath(directory)) and target.endswith("(deleted)"):
                sizes.append(os.fstat(int(fd_)).st_size)
        except OSError:
            pass  # the listing's own descriptor
    return sizes


def names(tape):
    checkpointer = tape._package_data["firedrake"]
    return checkpointer.init_checkpoint_file.name, checkpointer.current_checkpoint_file.name


def exist(tape):
    return [os.path.exists(name) for name in names(tape)] == [True, True]


def test_named_files_exist_once_enabled(shared_tmp, tape):
    enable_disk_checkpointing(checkpoint_dir=str(shared_tmp))
    assert exist(tape)


@pytest.mark.parallel([1, 3])
def test_named_files_exist_after_evaluations(shared_tmp, tape):
    replay(record_on_disk(checkpoint_dir=str(shared_tmp)))
    assert exist(tape)


def test_named_files_exist_after_the_tape_was_cleared(shared_tmp, tape):
    replay(record_on_disk(checkpoint_dir=str(shared_tmp)))
    tape.clear_tape()
    assert exist(tape)


@pytest.fixture
def times_after_evaluation(shared_tmp, tape):
    """Modification times of both files, 0 before an evaluation."""
    functional = record_on_disk(checkpoint_dir=str(shared_tmp))
    for name in names(tape):
        os.utime(name, (0, 0))
    functional(control(1.0))
    return dict(zip(("init", "current"), (os.stat(name).st_mtime for name in names(tape)), strict=True))


def test_evaluation_touches_the_current_file(times_after_evaluation):
    assert times_after_evaluation["current"] > 0


def test_evaluation_leaves_the_init_file_alone(times_after_evaluation):
    assert times_after_evaluation["init"] == 0


@pytest.mark.parallel([1, 2])
@pytest.mark.parametrize("comm", [MPI.COMM_SELF, MPI.COMM_WORLD], ids=["self", "world"])
def test_no_named_file_has_bytes_during_the_run(comm, shared_tmp):
    seen = []

    def look(step):
        MPI.COMM_WORLD.barrier()  # the first save, in which a file has a name, is over on all ranks
        seen.append(files_below(shared_tmp))
        MPI.COMM_WORLD.barrier()  # and none begins while another rank looks

    functional = record_on_disk(checkpoint_comm=comm, checkpoint_dir=str(shared_tmp), in_step=look)
    sweep(functional, SCALES[0])
    look(None)
    groups = 1 if comm == MPI.COMM_WORLD else MPI.COMM_WORLD.size
    assert all(len(files) == 2 * groups and not any(files.values()) for files in seen), seen


@pytest.mark.parallel([1, 2])
@pytest.mark.parametrize("comm", [MPI.COMM_SELF, MPI.COMM_WORLD], ids=["self", "world"])
def test_many_sweeps_take_no_more_room_than_a_few(comm, shared_tmp):
    functional = record_on_disk(checkpoint_comm=comm, checkpoint_dir=str(shared_tmp))
    sizes = []
    for _ in range(8):
        sweep(functional, SCALES[0])
        sizes.append(open_data(shared_tmp))
    # Ranks that share a file agree at other saves in each sweep, so that it takes some to settle.
    assert max(sizes[7]) <= 1.5 * max(sizes[1]), sizes


@pytest.mark.parallel([1, 2])
def test_many_sweeps_keep_no_more_files_open_than_two(shared_tmp):
    functional = record_on_disk(checkpoint_dir=str(shared_tmp))
    replay(functional)
    before = len(os.listdir("/proc/self/fd"))
    replay(functional, SCALES * 2)
    # Files that tests before this one left open may close meanwhile.
    assert len(os.listdir("/proc/self/fd")) <= before


@TAPE_MAY_BE_KEPT
@pytest.mark.parallel([1, 2])
def test_clearing_the_tape_closes_the_data_at_once(shared_tmp, tape):
    functional = record_on_disk(checkpoint_dir=str(shared_tmp))
    sweep(functional, SCALES[0])
    tape.clear_tape()
    del functional
    gc.collect()
    assert open_data(shared_tmp) == []


def test_checkpoints_outlive_the_clearing_of_their_tape(shared_tmp, tape):
    enable_disk_checkpointing(checkpoint_dir=str(shared_tmp))
    f = control(1.0).sub(0)
    checkpoint = CheckpointFunction(f)
    tape.clear_tape()
    assert (checkpoint.restore().dat.data_ro == f.dat.data_ro).all()


def test_a_cleared_tape_can_be_recorded_again(shared_tmp, tape):
    replay(record_on_disk(checkpoint_dir=str(shared_tmp)))
    tape.clear_tape()
    assert_same(replay(record_on_disk()), reference())


@pytest.mark.parallel([1, 2])
def test_directories_go_with_the_tape(shared_tmp, tape):
    enable_disk_checkpointing(dirname=str(shared_tmp))
    checkpointable_mesh(fd.UnitSquareMesh(2, 2))
    MPI.COMM_WORLD.barrier()
    tape._package_data.clear()
    gc.collect()
    MPI.COMM_WORLD.barrier()
    assert list(os.walk(shared_tmp)) == [(str(shared_tmp), [], [])]


def stored(name, directory):
    """Every dataset in the file, which this process may still have open: HDF5 would refuse it."""
    copy = shutil.copy(name, os.path.join(directory, "copy.h5"))
    with h5py.File(copy, "r") as file:
        return {key: file[key][...] for key in file if not key.startswith("%")}


def test_without_cleanup_the_values_are_in_an_hdf5_file(shared_tmp, tmp_path, tape):
    enable_disk_checkpointing(checkpoint_dir=str(shared_tmp), cleanup=False)
    f = control(1.0).sub(0)
    checkpoint = CheckpointFunction(f)
    (values,) = stored(names(tape)[1], tmp_path).values()
    numbers = values[0].reshape(-1).view(ScalarType)  # HDF5 has complex ones in pairs
    assert (numbers == checkpoint.restore().dat.data_ro).all()


def test_without_cleanup_nothing_stored_is_overwritten(shared_tmp, tmp_path, tape):
    functional = record_on_disk(checkpoint_dir=str(shared_tmp), cleanup=False)
    with stop_annotating():
        functional(control(1.3))
        before = stored(names(tape)[1], tmp_path)
        functional(control(0.7))
        after = stored(names(tape)[1], tmp_path)
    written = {name: rows.any(axis=1) for name, rows in before.items()}  # rows begin as holes
    assert any(rows.any() for rows in written.values())
    assert all((after[name][rows] == before[name][rows]).all() for name, rows in written.items())


def test_without_cleanup_the_files_stay(shared_tmp, tape):
    replay(record_on_disk(checkpoint_dir=str(shared_tmp), cleanup=False))
    tape.clear_tape()
    tape._package_data.clear()
    gc.collect()
    assert any(files_below(shared_tmp).values())


def meshes_below(directory):
    """The sizes of the files of meshes that there are, as rank 0 sees them, who removes them."""
    files = files_below(directory) if MPI.COMM_WORLD.rank == 0 else {}
    return MPI.COMM_WORLD.bcast([size for path, size in files.items() if path.endswith("mesh.h5")])


@pytest.mark.parallel([1, 2])
@pytest.mark.parametrize("function", [checkpointable_mesh, firedrakes_mesh], ids=["localckpt's", "Firedrake's"])
def test_a_mesh_that_was_read_back_leaves_no_file(function, shared_tmp, tape):
    enable_disk_checkpointing(dirname=str(shared_tmp))
    for n in 2, 3:
        mesh = function(fd.UnitSquareMesh(n, n))
        assert meshes_below(shared_tmp) == []
        assert fd.assemble(1 * fd.dx(mesh)) == pytest.approx(1)
    assert exist(tape)


@pytest.mark.parallel([1, 2])
def test_without_cleanup_the_file_of_a_mesh_stays(shared_tmp, tape):
    enable_disk_checkpointing(dirname=str(shared_tmp), cleanup=False)
    checkpointable_mesh(fd.UnitSquareMesh(2, 2))
    (size,) = meshes_below(shared_tmp)
    assert size > 0


@pytest.mark.parallel([1, 2])
def test_a_mesh_that_cannot_be_written_leaves_no_file(shared_tmp):
    enable_disk_checkpointing(dirname=str(shared_tmp))
    with pytest.raises(AttributeError) as error:
        checkpointable_mesh("no mesh")
    assert error.tb is not None and meshes_below(shared_tmp) == []


def test_with_a_checkpoint_comm_the_option_names_the_directory(shared_tmp, tape, recwarn):
    options = PETSc.Options()
    options["localckpt_dir"] = str(shared_tmp)
    enable_disk_checkpointing(checkpoint_comm=MPI.COMM_SELF)
    options.delValue("localckpt_dir")
    assert os.path.dirname(os.path.dirname(names(tape)[1])) == str(shared_tmp)
    assert not [warning for warning in recwarn if "checkpoint_dir" in str(warning.message)]
