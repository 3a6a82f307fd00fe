"""Functions come back bit for bit, in every kind of space."""

import gc
import weakref

import firedrake as fd
import numpy as np
import pytest
from firedrake import avg, dS, dS_h, dS_v, inner, jump
from mpi4py import MPI
from spaces import (
    ELEMENTS,
    SPACES,
    WITH_FACETS,
    bits,
    bits_with_halos,
    filled,
    memory,
    random_like,
    triangles,
)

from localckpt import TemporaryFunctionCheckpointFile
from localckpt.functions import FunctionStore
from localckpt.storage.nodes import check_ranks
from localckpt.storage.store import Store


@pytest.fixture
def functions(store):
    return FunctionStore(store)


def through_file(comm, path, f):
    """f, saved to a file and loaded from it when it was opened again."""
    with TemporaryFunctionCheckpointFile(comm, path, "w") as file:
        file.save_function(f, "f", 3)
    with TemporaryFunctionCheckpointFile(comm, path, "r") as file:
        return file.load_function(f.function_space(), "f", 3)


@pytest.mark.parallel([1, 3])
@pytest.mark.parametrize("space", SPACES)
def test_function_comes_back_from_the_store(space, functions):
    f = filled(SPACES[space]())
    assert bits(functions.save(f).load()) == bits(f)


@pytest.mark.parallel([1, 3])
@pytest.mark.parametrize("space", SPACES)
def test_function_comes_back_from_a_file(space, comm, path):
    f = filled(SPACES[space]())
    assert bits(through_file(comm, path, f)) == bits(f)


@pytest.mark.parallel([1, 3])
@pytest.mark.parametrize("comm", ["world"], indirect=True)
@pytest.mark.parametrize("element", ELEMENTS)
def test_every_element_comes_back_from_the_store(element, functions):
    f = filled(ELEMENTS[element]())
    expected = bits_with_halos(f)
    assert memory(functions.save(f).load()) == expected


@pytest.mark.parallel([1, 3])
@pytest.mark.parametrize("store", ["direct"], indirect=True)
@pytest.mark.parametrize("space", SPACES)
def test_valid_halos_come_back_from_the_store(space, functions):
    f = filled(SPACES[space]())
    expected = bits_with_halos(f)  # which exchanges them
    g = functions.save(f).load()
    assert (g.dat.halo_valid, memory(g)) == (True, expected)


@pytest.mark.parallel([1, 3])
@pytest.mark.parametrize("space", WITH_FACETS)
def test_stale_halos_are_exchanged_when_they_are_needed(space, functions):
    f = filled(SPACES[space]())
    assert bits_with_halos(functions.save(f).load()) == bits_with_halos(f)


@pytest.mark.parallel([1, 3])
@pytest.mark.parametrize("stale", [0, 1])
def test_each_component_has_a_halo_of_its_own(stale, functions):
    f = filled(SPACES["mixed of vectors and tensors"]())
    bits_with_halos(f)
    f.subfunctions[stale].assign(1.0)
    assert [dat.halo_valid for dat in functions.save(f).load().dat] == [dat.halo_valid for dat in f.dat]


@pytest.mark.parallel([1, 3])
@pytest.mark.parametrize("space", ["CG1", "mixed with Real", "dual"])
def test_class_and_space_come_back(space, functions):
    f = filled(SPACES[space]())
    g = functions.save(f).load()
    assert (type(g), g.function_space()) == (type(f), f.function_space())


@pytest.mark.parametrize("space", ["CG1", "mixed with Real", "dual"])
def test_class_comes_back_from_a_file(space, comm, path):
    f = filled(SPACES[space]())
    assert type(through_file(comm, path, f)) is type(f)


@pytest.mark.parametrize("what", ["name", "count"])
def test_name_and_count_come_back(what, functions):
    f = filled(SPACES["CG1"](), name="of this name")
    assert getattr(functions.save(f).load(), what)() == getattr(f, what)()


@pytest.mark.parallel([1, 3])
@pytest.mark.parametrize("comm", ["world"], indirect=True)
@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.float32, np.uint8, np.complex64, np.complex128])
@pytest.mark.parametrize("space", ["CG1", "vector CG2", "Real", "mixed with Real", "dual"])
def test_other_numbers_come_back(space, dtype, functions):
    f = fd.Function(SPACES[space](), dtype=dtype)
    for i, dat in enumerate(f.dat):
        numbers = (random_like(dat.data_ro.real, i) % 100).astype(dtype)
        dat.data[...] = numbers * 1j + 3 if numbers.dtype.kind == "c" else numbers
    g = functions.save(f).load()
    assert (g.dat.dtype, bits(g)) == (dtype, bits(f))


@pytest.mark.parallel([1, 3])
def test_numbers_of_several_kinds_in_one_space_are_kept_apart(functions):
    V = SPACES["CG1"]()
    made = [
        fd.Function(V, val=np.ones(V.dof_dset.total_size, dtype), dtype=dtype)
        for dtype in (np.float64, np.complex128, np.float32, np.complex64)
    ]
    saved = [functions.save(f) for f in made]
    assert [bits(s.load()) for s in saved] == [bits(f) for f in made]


@pytest.mark.parallel([1, 3])
def test_special_values_come_back(functions):
    f = filled(SPACES["CG1"]())
    special = [np.nan, np.inf, -np.inf, -0.0, np.nextafter(0, 1)]
    f.dat.data[: len(special)] = special[: f.dat.data_ro.size]
    assert bits(functions.save(f).load()) == bits(f)


def facet_integral(f):
    """Reads f on both sides of every facet between two cells."""
    measure = dS_h + dS_v if f.function_space().mesh().extruded else dS
    return fd.assemble(inner(avg(f), avg(f)) * measure + inner(jump(f), jump(f)) * measure)


@pytest.mark.parallel([1, 3])
@pytest.mark.parametrize("space", WITH_FACETS)
def test_facets_between_ranks_see_restored_values(space, functions):
    f = filled(SPACES[space]())
    assert facet_integral(functions.save(f).load()) == facet_integral(f)


@pytest.mark.parallel([1, 3])
def test_restored_function_can_be_worked_with(functions):
    f = filled(SPACES["vector CG2"]())
    g = functions.save(f).load()
    g.assign(2 * g)
    with g.dat.vec as v:
        v.scale(0.5)
    assert bits_with_halos(g) == bits_with_halos(f)


@pytest.mark.parallel([1, 3])
def test_store_that_goes_leaves_nothing_on_a_space(tmp_path):
    V = fd.FunctionSpace(triangles(), "CG", 1)
    f = fd.Function(V)
    FunctionStore(Store(MPI.COMM_SELF, str(tmp_path / "one"))).save(f)
    gc.collect()
    before = weakref.getweakrefcount(V), len(weakref.finalize._registry)
    FunctionStore(Store(MPI.COMM_SELF, str(tmp_path / "other"))).save(f)
    gc.collect()
    assert (weakref.getweakrefcount(V), len(weakref.finalize._registry)) == before


def test_restored_functions_share_no_memory(functions):
    saved = functions.save(filled(SPACES["mixed"]()))
    expected = bits(saved.load())
    saved.load().assign(1.0)
    assert bits(saved.load()) == expected


@pytest.mark.parallel([1, 3])
def test_saving_again_keeps_what_was_saved_before(functions):
    f, g = filled(SPACES["mixed with Real"](), 1), filled(SPACES["mixed with Real"](), 2)
    first, second = functions.save(f), functions.save(g)
    assert (bits(first.load()), bits(second.load())) == (bits(f), bits(g))


def parts(f):
    """The Functions that share f's data."""
    if len(f.function_space()) > 1:
        return f.subfunctions
    return [f.sub(i) for i in range(f.function_space().block_size)]


SHARING = [
    "mixed of vectors and tensors",
    "mixed with Real",
    "restricted, mixed",
    "submesh and mesh",
    "mixed dual",
    "vector CG2",
    "vector RT",
    "vector of one",
    "tensor DG1",
    "symmetric tensor",
    "vector quadrature",
    "vectors on points",
    "vectors on different layers",
    "restricted vectors",
]


@pytest.mark.parallel([1, 3])
@pytest.mark.parametrize("comm", ["world"], indirect=True)
@pytest.mark.parametrize("space", SHARING)
def test_parts_of_functions_come_back(space, functions):
    f = filled(SPACES[space]())
    expected = bits_with_halos(f)
    found = [functions.save(part).load() for part in parts(f)]
    assert [bits_with_halos(part) for part in found] == [bits_with_halos(part) for part in parts(f)]
    assert bits_with_halos(f) == expected


@pytest.mark.parallel([1, 3])
@pytest.mark.parametrize("comm", ["world"], indirect=True)
@pytest.mark.parametrize("space", SHARING)
def test_parts_of_functions_come_back_from_a_file(space, comm, path):
    f = filled(SPACES[space]())
    assert [bits(through_file(comm, path, part)) for part in parts(f)] == [bits(part) for part in parts(f)]


@pytest.mark.parallel([1, 3])
@pytest.mark.parametrize("space", ["mixed of vectors and tensors", "vector CG2"])
def test_restored_parts_share_no_memory_with_the_whole(space, functions):
    f = filled(SPACES[space]())
    expected = bits(f)
    for part in parts(f):
        functions.save(part).load().assign(7.0)
    assert bits(f) == expected


@pytest.mark.parallel([1, 3])
@pytest.mark.parametrize("space", ["mixed of vectors and tensors", "vector CG2"])
def test_a_part_is_saved_as_it_is_at_that_moment(space, functions):
    f = filled(SPACES[space]())
    expected = bits(parts(f)[1])
    saved = functions.save(parts(f)[1])
    f.assign(7.0)
    assert bits(saved.load()) == expected


@pytest.mark.parallel([1, 3])
def test_saving_needs_no_other_rank_than_the_files(shared_tmp):
    """One rank saves and restores alone, in a space that no other rank has used yet."""
    f = fd.Function(fd.FunctionSpace(triangles(), "DG", 2)).assign(2.0)
    if MPI.COMM_WORLD.rank == 0:
        alone = FunctionStore(Store(MPI.COMM_SELF, str(shared_tmp / "alone.h5")))
        assert bits(alone.save(f).load()) == bits(f)


@pytest.mark.parallel(2)
def test_a_check_of_ranks_leaves_no_groups():
    def next_handle():
        everyone = MPI.COMM_WORLD.Get_group()
        group = everyone.Incl([0])
        number = group.py2f()
        group.Free()
        everyone.Free()
        return number

    before = next_handle()
    for _ in range(3):
        with pytest.raises(ValueError, match="checkpoint_comm has 1 ranks that are not in here"):
            check_ranks(MPI.COMM_WORLD, MPI.COMM_SELF, "here")
    assert next_handle() == before
