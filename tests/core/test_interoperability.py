"""PETSc, h5py, h5dump and Cython code on the same files, in both directions."""

import shutil
import subprocess

import h5py
import numpy as np
import pytest
from mpi4py import MPI
from petsc4py import PETSc

from localckpt import MissingDatasetError, VecFile

WORLD = MPI.COMM_WORLD
COMPLEX = np.dtype(PETSc.ScalarType).kind == "c"


def numbers(dataset):
    """A dataset of PETSc's in the order of the Vec, whose complex numbers are pairs."""
    values = dataset[:]
    return (values[..., 0] + 1j * values[..., 1] if COMPLEX else values).ravel()


@pytest.mark.parallel([1, 2, 3])
@pytest.mark.parametrize("bs", [1, 3])
def test_vecload_reads_our_file(shared_tmp, make_vec, bs):
    vec = make_vec(WORLD, 3 * (WORLD.rank + 1), bs)
    with VecFile(WORLD, shared_tmp / "w.h5", "w") as file:
        file.write("u", vec)
    viewer = PETSc.Viewer().createHDF5(str(shared_tmp / "w.h5"), "r", comm=WORLD)
    back = vec.duplicate()
    back.setName("u")
    back.load(viewer)
    viewer.destroy()
    np.testing.assert_array_equal(back.array_r, vec.array_r)


@pytest.mark.parallel([1, 2, 3])
@pytest.mark.parametrize("bs", [1, 3])
def test_vecload_learns_size_and_block_size_from_our_file(shared_tmp, make_vec, bs):
    vec = make_vec(WORLD, 6, bs)
    with VecFile(WORLD, shared_tmp / "w.h5", "w") as file:
        file.write("u", vec)
    viewer = PETSc.Viewer().createHDF5(str(shared_tmp / "w.h5"), "r", comm=WORLD)
    back = PETSc.Vec().create(WORLD)
    back.setName("u")
    back.load(viewer)
    viewer.destroy()
    assert (back.getSize(), back.getBlockSize()) == (vec.getSize(), bs)
    np.testing.assert_array_equal(
        np.concatenate(WORLD.allgather(back.array_r)), np.concatenate(WORLD.allgather(vec.array_r))
    )


@pytest.mark.parallel([1, 2, 3])
@pytest.mark.parametrize("bs", [1, 3])
def test_vecview_appends_to_our_file(shared_tmp, make_vec, bs):
    vec = make_vec(WORLD, 6, bs)
    with VecFile(WORLD, shared_tmp / "w.h5", "w") as file:
        file.write("u", vec)
    viewer = PETSc.Viewer().createHDF5(str(shared_tmp / "w.h5"), "a", comm=WORLD)
    vec.scale(2)
    vec.setName("v")
    vec.view(viewer)
    viewer.destroy()
    with VecFile(WORLD, shared_tmp / "w.h5") as file:
        back = vec.duplicate()
        file.read("v", back)
        np.testing.assert_array_equal(back.array_r, vec.array_r)
        file.read("u", back)
        np.testing.assert_array_equal(2 * back.array_r, vec.array_r)


@pytest.mark.parallel([1, 2, 3])
@pytest.mark.parametrize("bs", [1, 3])
@pytest.mark.parametrize("group", ["", "/group", "/deep/group"])
def test_file_of_petscs_is_read(shared_tmp, make_vec, bs, group):
    vec = make_vec(WORLD, 3 * (WORLD.rank + 1), bs)
    viewer = PETSc.ViewerHDF5().create(str(shared_tmp / "w.h5"), "w", comm=WORLD)
    if group:
        viewer.pushGroup(group)
    vec.setName("u")
    vec.view(viewer)
    viewer.destroy()
    name = f"{group}/u".lstrip("/")
    with VecFile(WORLD, shared_tmp / "w.h5") as file:
        assert file.names() == [name] and name in file
        assert file.sizes(name) == (None, vec.getSize())  # whose part is whose was not recorded
        back = vec.duplicate()
        file.read(name, back)
        np.testing.assert_array_equal(back.array_r, vec.array_r)


@pytest.mark.parallel([1, 2, 3])
def test_groups_of_petscs_are_no_datasets(shared_tmp, make_vec, raises_everywhere):
    vec = make_vec(WORLD, 3)
    viewer = PETSc.ViewerHDF5().create(str(shared_tmp / "w.h5"), "w", comm=WORLD)
    viewer.pushGroup("/deep/group")
    vec.setName("u")
    vec.view(viewer)
    viewer.destroy()
    with VecFile(WORLD, path := shared_tmp / "w.h5") as file:
        for name in ("deep", "deep/group", "/deep/group/"):
            assert name not in file
            with raises_everywhere(MissingDatasetError, KeyError, file=path, dataset=name):
                file.read(name, vec)


@pytest.mark.parallel([1, 2, 3])
def test_file_of_petscs_is_read_in_any_partition(shared_tmp, make_vec):
    vec = make_vec(WORLD, 4)
    viewer = PETSc.Viewer().createHDF5(str(shared_tmp / "w.h5"), "w", comm=WORLD)
    vec.setName("u")
    vec.view(viewer)
    viewer.destroy()
    back = make_vec(WORLD, vec.getSize() if WORLD.rank == WORLD.size - 1 else 0)
    with VecFile(WORLD, shared_tmp / "w.h5") as file:
        file.read("u", back)
    np.testing.assert_array_equal(
        np.concatenate(WORLD.allgather(back.array_r)), np.concatenate(WORLD.allgather(vec.array_r))
    )


@pytest.mark.parallel([1, 2, 3])
def test_single_precision_file_of_petscs_is_read(shared_tmp, make_vec):
    vec = make_vec(WORLD, 4)
    options = PETSc.Options()
    options["viewer_hdf5_sp_output"] = "true"
    viewer = PETSc.Viewer().createHDF5(str(shared_tmp / "w.h5"), "w", comm=WORLD)
    viewer.setFromOptions()
    options.delValue("viewer_hdf5_sp_output")
    vec.setName("u")
    vec.view(viewer)
    viewer.destroy()
    with h5py.File(shared_tmp / "w.h5", "r") as file:
        single = file["u"].dtype == "f4"
    assert single or PETSc.Sys.getVersion() < (3, 19)  # 3.18 does not heed the option
    with VecFile(WORLD, shared_tmp / "w.h5") as file:
        back = vec.duplicate()
        file.read("u", back)
    stored = vec.array_r.astype("c8" if COMPLEX else "f4") if single else vec.array_r
    np.testing.assert_array_equal(back.array_r, stored)


@pytest.mark.parallel([1, 2, 3])
@pytest.mark.parametrize("bs", [1, 3])
def test_h5py_reads_our_vecs(shared_tmp, make_vec, bs):
    vec = make_vec(WORLD, 3 * (WORLD.rank + 1), bs)
    with VecFile(WORLD, shared_tmp / "w.h5", "w") as file:
        file.write("u", vec)
    WORLD.barrier()
    with h5py.File(shared_tmp / "w.h5", "r") as file:
        shape = (vec.getSize() // bs,) + (bs,) * (bs > 1) + (2,) * COMPLEX
        assert file["u"].shape == shape
        np.testing.assert_array_equal(numbers(file["u"]), np.concatenate(WORLD.allgather(vec.array_r)))


@pytest.mark.parallel([1, 2, 3])
@pytest.mark.parametrize("dtype", ["f4", "f8", "i1", "i8", "u2", "u8"])
def test_h5py_reads_our_arrays_in_their_type(shared_tmp, dtype):
    array = (np.arange(6) + WORLD.rank).reshape(3, 2).astype(dtype)
    with VecFile(WORLD, shared_tmp / "w.h5", "w") as file:
        file.write_array("a", array)
    WORLD.barrier()
    with h5py.File(shared_tmp / "w.h5", "r") as file:
        assert file["a"].shape[:2] == (3 * WORLD.size, 2)
        assert file["a"].dtype == dtype
        if not (COMPLEX and dtype == "f8"):
            np.testing.assert_array_equal(file["a"][:], np.concatenate(WORLD.allgather(array)))


@pytest.mark.parallel([1, 2, 3])
def test_arrays_of_h5pys_are_read(shared_tmp):
    array = np.arange(12 * WORLD.size, dtype="i4").reshape(-1, 3)
    if WORLD.rank == 0:
        with h5py.File(shared_tmp / "w.h5", "w") as file:
            file["group/a"] = array
            file["chunked"] = array / 3
            file.create_dataset("packed", data=array, chunks=(2, 3), compression="gzip")
    WORLD.barrier()
    mine = slice(4 * WORLD.rank, 4 * (WORLD.rank + 1))
    with VecFile(WORLD, shared_tmp / "w.h5") as file:
        for name, expected in {"group/a": array, "chunked": array / 3, "packed": array}.items():
            back = np.zeros((4, 3), expected.dtype)
            file.read_array(name, back)
            np.testing.assert_array_equal(back, expected[mine])


@pytest.mark.parallel([1, 2, 3])
@pytest.mark.parametrize("mode", ["w", "x", "a"])
def test_our_files_are_of_a_format_whose_metadata_carry_checksums(shared_tmp, make_vec, mode):
    for turn, how in enumerate((mode, "a")):  # PETSc and HDF5 themselves would go on in an older one
        with VecFile(WORLD, shared_tmp / "w.h5", how) as file:
            file.write(f"vec{turn}", make_vec(WORLD, 6))
            file.write_array(f"array{turn}", np.arange(6))
    content = (shared_tmp / "w.h5").read_bytes()
    assert content[8] >= 2  # the superblock's version
    assert content.count(b"OHDR") >= 6  # object headers with a checksum; those without have no signature
    assert not any(old in content for old in (b"SNOD", b"HEAP"))  # groups without


@pytest.mark.skipif(shutil.which("h5dump") is None, reason="HDF5's tools are not installed")
def test_h5dump_reads_our_file(tmp_path):
    with VecFile(MPI.COMM_SELF, tmp_path / "w.h5", "w") as file:
        file.write_array("i", np.array([3, 1, 4], "i2"))
        file.write_array("u", np.array([0.5, 0.25]))
    result = subprocess.run(
        ["h5dump", "-y", "-d", "/i", "-d", "/u", tmp_path / "w.h5"], timeout=60, text=True, capture_output=True
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert "H5T_STD_I16LE" in result.stdout and "3, 1, 4" in result.stdout and "0.5" in result.stdout


def test_importing_localckpt_does_not_import_firedrake(run_script):
    result = run_script("print(*(m for m in ('firedrake', 'pyop2', 'ufl', 'h5py') if m in sys.modules))")
    assert (result.returncode, result.stdout, result.stderr) == (0, "\n", "")
