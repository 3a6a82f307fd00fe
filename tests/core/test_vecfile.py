"""Vecs written and read back, on every kind of communicator."""

import os

import numpy as np
import pytest
from mpi4py import MPI
from petsc4py import PETSc

from localckpt import TransferError, VecFile

WORLD = MPI.COMM_WORLD


def round_trip(comm, path, vec, **options):
    """What is read, into a Vec of NaNs, after `vec` was written and the file opened again."""
    with VecFile(comm, path, "w", **options) as file:
        file.write("u", vec)
    back = vec.duplicate()
    back.set(np.nan)
    with VecFile(comm, path, **options) as file:
        file.read("u", back)
    return back.array_r


@pytest.mark.parallel([1, 2, 3])
@pytest.mark.parametrize("bs", [1, 3])
def test_world_vec_round_trip(shared_tmp, make_vec, bs):
    vec = make_vec(WORLD, 3 * (WORLD.rank + 2), bs)
    np.testing.assert_array_equal(round_trip(WORLD, shared_tmp / "w.h5", vec), vec.array_r)


@pytest.mark.parallel([1, 2, 3])
@pytest.mark.parametrize("bs", [1, 3])
def test_world_vec_in_a_file_per_rank(shared_tmp, make_vec, bs):
    vec = make_vec(WORLD, 3 * (WORLD.rank + 2), bs)
    back = round_trip(MPI.COMM_SELF, shared_tmp / f"own{WORLD.rank}.h5", vec)
    np.testing.assert_array_equal(back, vec.array_r)


@pytest.mark.parallel([1, 2, 3])
def test_world_vec_in_a_file_per_half_of_the_ranks(shared_tmp, make_vec):
    half = WORLD.rank % 2
    comm = WORLD.Split(half)
    vec = make_vec(WORLD, 4 + WORLD.rank)
    np.testing.assert_array_equal(round_trip(comm, shared_tmp / f"half{half}.h5", vec), vec.array_r)
    comm.Free()


@pytest.mark.parallel([1, 2, 3])
def test_self_vec_in_a_world_file(shared_tmp, make_vec):
    vec = make_vec(MPI.COMM_SELF, 4 + WORLD.rank)
    np.testing.assert_array_equal(round_trip(WORLD, shared_tmp / "w.h5", vec), vec.array_r)


@pytest.mark.parallel([2, 3])
@pytest.mark.parametrize("empty", ["first", "last"])
def test_ranks_that_own_nothing(shared_tmp, make_vec, empty):
    vec = make_vec(WORLD, 0 if WORLD.rank == (0 if empty == "first" else WORLD.size - 1) else 6, 3)
    np.testing.assert_array_equal(round_trip(WORLD, shared_tmp / "w.h5", vec), vec.array_r)


@pytest.mark.parallel([1, 2, 3])
def test_empty_vec(shared_tmp, make_vec):
    vec = make_vec(WORLD, 0)
    assert round_trip(WORLD, shared_tmp / "w.h5", vec).size == 0
    with VecFile(WORLD, shared_tmp / "w.h5") as file:
        assert file.sizes("u") == (0, 0)


@pytest.mark.parallel([1, 2, 3])
def test_data_lie_in_rank_order(shared_tmp, make_vec):
    vec = make_vec(WORLD, 2 + WORLD.rank)
    with VecFile(WORLD, shared_tmp / "w.h5", "w") as file:
        file.write("u", vec)
    everything = np.concatenate(WORLD.allgather(vec.array_r))
    with VecFile(MPI.COMM_SELF, shared_tmp / "w.h5") as file:
        assert file.sizes("u") == ((None if WORLD.size > 1 else 2), everything.size)
        whole = PETSc.Vec().createSeq(everything.size)
        if WORLD.size == 1:  # other numbers of ranks are refused: see test_vecfile_errors
            file.read("u", whole)
            np.testing.assert_array_equal(whole.array_r, everything)


@pytest.mark.parallel([1, 2, 3])
def test_reading_lands_in_the_vecs_own_memory(shared_tmp, make_vec):
    vec = make_vec(WORLD, 5)
    with VecFile(WORLD, shared_tmp / "w.h5", "w") as file:
        file.write("u", vec)
        address = vec.array_r.ctypes.data
        vec.set(0)
        file.read("u", vec)
    assert vec.array_r.ctypes.data == address
    np.testing.assert_allclose(vec.array_r.real, np.arange(5) + 1000 * WORLD.rank + 1 / 3)


@pytest.mark.parallel([1, 2, 3])
def test_reading_drops_petscs_cached_norm(shared_tmp, make_vec):
    vec, zero = make_vec(WORLD, 5), make_vec(WORLD, 5)
    zero.set(0)
    with VecFile(WORLD, shared_tmp / "w.h5", "w") as file:
        file.write("zero", zero)
        assert vec.norm() > 0
        file.read("zero", vec)
    assert vec.norm() == 0


@pytest.mark.parallel([1, 2, 3])
def test_sizes_are_local_and_global(shared_tmp, make_vec):
    with VecFile(WORLD, shared_tmp / "w.h5", "w") as file:
        file.write("u", make_vec(WORLD, 3 * (WORLD.rank + 1), 3))
        mine = 3 * (WORLD.rank + 1)
        assert file.sizes("u") == (mine, WORLD.allreduce(mine))


@pytest.mark.parallel([1, 2, 3])
def test_writing_again_replaces(shared_tmp, make_vec):
    vec = make_vec(WORLD, 4)
    with VecFile(WORLD, shared_tmp / "w.h5", "w") as file:
        file.write("u", vec)
        vec.scale(2)
        file.write("u", vec)
        assert file.names() == ["u"]
    np.testing.assert_array_equal(round_trip(WORLD, shared_tmp / "w.h5", vec), vec.array_r)


@pytest.mark.parallel([2, 3])
def test_writing_again_with_another_partition_replaces_that_too(shared_tmp, make_vec):
    first, last = WORLD.rank == 0, WORLD.rank == WORLD.size - 1
    with VecFile(WORLD, shared_tmp / "w.h5", "w") as file:
        file.write("u", make_vec(WORLD, 5 if first else 2))
        vec = make_vec(WORLD, 2 if first else 5 if last else 2)
        file.write("u", vec)
        back = vec.duplicate()
        file.read("u", back)
    np.testing.assert_array_equal(back.array_r, vec.array_r)


@pytest.mark.parallel([1, 2, 3])
def test_many_layouts_in_one_file(shared_tmp, make_vec):
    vecs = {f"u{n}": make_vec(WORLD, n + (n % 5) * WORLD.rank) for n in range(12)}
    with VecFile(WORLD, shared_tmp / "w.h5", "w") as file:
        for name, vec in vecs.items():
            file.write(name, vec)
    with VecFile(WORLD, shared_tmp / "w.h5", "a") as file:
        file.write("again", vecs["u7"])
        for name, vec in vecs.items():
            back = vec.duplicate()
            file.read(name, back)
            np.testing.assert_array_equal(back.array_r, vec.array_r)


@pytest.mark.parallel([1, 2, 3])
def test_petsc_comm_is_a_communicator(shared_tmp, make_vec):
    vec = make_vec(PETSc.COMM_WORLD, 4)
    np.testing.assert_array_equal(round_trip(PETSc.COMM_WORLD, shared_tmp / "w.h5", vec), vec.array_r)


@pytest.mark.parallel([1, 2, 3])
def test_file_outlives_the_communicator_it_was_opened_on(shared_tmp, make_vec):
    comm, vec = WORLD.Dup(), make_vec(WORLD, 4)
    file = VecFile(comm, shared_tmp / "w.h5", "w")
    comm.Free()
    file.write("u", vec)
    back = vec.duplicate()
    file.read("u", back)
    file.close()
    np.testing.assert_array_equal(back.array_r, vec.array_r)


@pytest.fixture
def option():
    """Set PETSc options for one test."""
    options = PETSc.Options()
    names = []

    def set_option(name):
        options[name] = "true"
        names.append(name)

    yield set_option
    for name in names:
        options.delValue(name)


@pytest.mark.parallel([1, 2, 3])
@pytest.mark.parametrize("how", ["keyword", "option"])
def test_collective_transfers_store_the_same_numbers(shared_tmp, make_vec, option, how):
    vec = make_vec(WORLD, 6 if WORLD.rank else 0, 3)
    plain = round_trip(WORLD, shared_tmp / "plain.h5", vec)
    if how == "option":
        option("localckpt_collective")
    collective = round_trip(WORLD, shared_tmp / "c.h5", vec, collective=True if how == "keyword" else None)
    assert collective.tobytes() == plain.tobytes() == vec.array_r.tobytes()
    array = np.arange(4, dtype="i2") + WORLD.rank
    with VecFile(WORLD, shared_tmp / "c.h5", "a", collective=True if how == "keyword" else None) as file:
        file.write_array("i", array)
        file.read_array("i", back := np.empty_like(array))
    np.testing.assert_array_equal(back, array)


@pytest.mark.parallel([1, 2, 3])
@pytest.mark.parametrize("name", ["sp_output", "collective", "compress", "base_dimension2", "default_timestepping"])
def test_options_for_the_users_own_viewers_change_nothing(shared_tmp, make_vec, option, name):
    option(f"viewer_hdf5_{name}")
    vec = make_vec(WORLD, 4)
    np.testing.assert_array_equal(round_trip(WORLD, shared_tmp / "w.h5", vec), vec.array_r)
    with VecFile(WORLD, shared_tmp / "w.h5", "a") as file:
        file.write("u", vec)  # the same shape again
        assert file.names() == ["u"]


@pytest.mark.parallel([1, 2, 3])
@pytest.mark.parametrize("leaf", ["with space.h5", "ünï.h5", "50%.h5", "\udcff.h5"])
def test_awkward_paths(shared_tmp, make_vec, leaf):
    path = os.path.join(shared_tmp, leaf)
    vec = make_vec(WORLD, 4)
    np.testing.assert_array_equal(round_trip(WORLD, path, vec), vec.array_r)
    assert os.path.getsize(path) > 0


@pytest.mark.parallel([1, 2, 3])
@pytest.mark.parametrize("leaf", ["a:b.h5", "ufs:c.h5"])
def test_path_with_a_colon(shared_tmp, make_vec, raises_everywhere, leaf):
    path, vec = os.path.join(shared_tmp, leaf), make_vec(WORLD, 4)
    if MPI.Get_library_version().startswith("MPICH"):
        with raises_everywhere(TransferError, OSError, file=path, match="before a colon"):
            VecFile(WORLD, path, "w")
    else:
        np.testing.assert_array_equal(round_trip(WORLD, path, vec), vec.array_r)
        assert os.path.getsize(path) > 0
