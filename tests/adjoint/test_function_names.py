"""Functions on different meshes and elements never take each other's place."""

import itertools

import firedrake as fd
import pytest
from mpi4py import MPI
from spaces import SPACES, bits, filled

from localckpt import LayoutError, TemporaryFunctionCheckpointFile
from localckpt.functions import FunctionStore
from localckpt.storage.store import Store

# PETSc gives datasets of complex numbers an attribute, and finds no dataset whose path exceeds 4095 bytes.
LONGEST = 1000 if fd.utils.complex_mode else 100_000

# Names that make groups, or one name, where '/' and '%' are not kept apart; and what else a name may be.
NAMES = [
    "a/b",
    "a%2Fb",
    "a_b",
    "/",
    "%",
    ".",
    "..",
    "a/b/",
    "ä",
    "\N{SNOWMAN}\N{SLIGHTLY SMILING FACE}",
    "",
    " ",
    "two\nlines",
    "\t",
    "%layouts",
    "n" * LONGEST,
]


def spaces_on(meshes, element=("CG", 1)):
    return [fd.FunctionSpace(mesh, *element) for mesh in meshes]


def all_come_back(functions, spaces):
    made = [filled(V, seed) for seed, V in enumerate(spaces)]
    saved = [functions.save(f) for f in made]
    return [bits(s.load()) for s in saved] == [bits(f) for f in made]


@pytest.fixture
def functions(store):
    return FunctionStore(store)


@pytest.mark.parallel([1, 3])
def test_meshes_of_one_name_and_different_size_are_kept_apart(functions):
    meshes = [fd.UnitSquareMesh(n, n, name="one name") for n in (2, 4, 3)]
    assert all_come_back(functions, spaces_on(meshes) * 2)


@pytest.mark.parallel([1, 3])
def test_meshes_of_any_names_are_kept_apart(functions):
    meshes = [fd.UnitSquareMesh(2, i + 2, name=name) for i, name in enumerate(NAMES)]
    assert all_come_back(functions, spaces_on(meshes))


@pytest.mark.parallel([1, 3])
def test_partitions_of_one_mesh_are_kept_apart(functions):
    meshes = [
        fd.UnitSquareMesh(4, 4, name="one name", distribution_parameters=how)
        for how in (
            {"partitioner_type": "simple"},
            {},
            {"overlap_type": (fd.DistributedMeshOverlapType.NONE, 0)},
            {"overlap_type": (fd.DistributedMeshOverlapType.VERTEX, 1)},
        )
    ]
    assert all_come_back(functions, spaces_on(meshes) * 2)


@pytest.mark.parallel([1, 3])
def test_meshes_of_one_name_and_different_cells_are_kept_apart(functions):
    meshes = [
        fd.UnitSquareMesh(2, 2, name="one name"),
        fd.UnitSquareMesh(2, 2, quadrilateral=True, name="one name"),
        fd.UnitIntervalMesh(2, name="one name"),
        fd.UnitCubeMesh(1, 1, 1, name="one name"),
    ]
    assert all_come_back(functions, spaces_on(meshes) * 2)


@pytest.mark.parallel([1, 3])
def test_mixed_spaces_of_meshes_of_one_name_are_kept_apart(functions):
    V, W = spaces_on(fd.UnitSquareMesh(n, n, name="one name") for n in (2, 3))
    assert all_come_back(functions, [V * W, W * V, V * V])


@pytest.mark.parametrize("comm, store", [("own", "direct")], indirect=True)
@pytest.mark.parametrize("name", NAMES)
def test_a_function_of_any_name_comes_back(name, functions):
    f = filled(SPACES["CG1"](), name=name)
    g = functions.save(f).load()
    assert (g.name(), bits(g)) == (f.name(), bits(f))


@pytest.mark.parallel([1, 3])
def test_variants_of_one_element_are_kept_apart(functions):
    mesh = fd.UnitSquareMesh(2, 2)
    assert all_come_back(
        functions,
        [fd.FunctionSpace(mesh, "DG", 2, variant=variant) for variant in ("equispaced", "spectral", "integral")],
    )


@pytest.mark.parallel([1, 3])
def test_vectors_of_different_length_are_kept_apart(functions):
    mesh = fd.UnitSquareMesh(2, 2)
    assert all_come_back(
        functions,
        [fd.FunctionSpace(mesh, "CG", 1), *(fd.VectorFunctionSpace(mesh, "CG", 1, dim=dim) for dim in (2, 3, 4))],
    )


@pytest.mark.parallel([1, 3])
def test_restrictions_of_one_space_are_kept_apart(functions):
    V = fd.FunctionSpace(fd.UnitSquareMesh(2, 2), "CG", 1)
    assert all_come_back(
        functions, [V, *(fd.RestrictedFunctionSpace(V, boundary_set=[part]) for part in (1, 2, "on_boundary"))]
    )


@pytest.mark.parallel([1, 3])
def test_a_file_keeps_meshes_of_any_names_apart(comm, path):
    spaces = spaces_on(fd.UnitSquareMesh(2, i + 2, name=name) for i, name in enumerate(NAMES))
    made = [filled(V, seed) for seed, V in enumerate(spaces)]
    with TemporaryFunctionCheckpointFile(comm, path, "w") as file:
        for f in made:
            file.save_function(f, "f", 1)
        assert [bits(file.load_function(V, "f", 1)) for V in spaces] == [bits(f) for f in made]


@pytest.mark.parallel([1, 3])
def test_a_file_keeps_names_and_indices_apart(comm, path):
    V = fd.FunctionSpace(fd.UnitSquareMesh(2, 2), "CG", 1)
    keys = itertools.product(NAMES, [0, 1, None])
    made = {key: filled(V, seed) for seed, key in enumerate(keys)}
    with TemporaryFunctionCheckpointFile(comm, path, "w") as file:
        for key, f in made.items():
            file.save_function(f, *key)
        assert [bits(file.load_function(V, *key)) for key in made] == [bits(f) for f in made.values()]


@pytest.mark.parallel([1, 3])
def test_a_file_refuses_another_size_under_the_same_names(comm, path):
    f, g = (filled(fd.FunctionSpace(fd.UnitSquareMesh(n, n, name="one name"), "CG", 1)) for n in (2, 5))
    with TemporaryFunctionCheckpointFile(comm, path, "w") as file:
        file.save_function(f, "f", 1)
        with pytest.raises(LayoutError, match="does not replace it"):
            file.save_function(g, "f", 1)
        assert bits(file.load_function(f.function_space(), "f", 1)) == bits(f)


@pytest.mark.parallel([1, 3])
def test_a_file_appended_to_keeps_what_it_has(comm, path):
    V = fd.FunctionSpace(fd.UnitSquareMesh(2, 2), "CG", 1)
    made = [filled(V, seed) for seed in range(3)]
    for index, f in enumerate(made):
        with TemporaryFunctionCheckpointFile(comm, path, "a") as file:
            file.save_function(f, "f", index)
    with TemporaryFunctionCheckpointFile(comm, path, "r") as file:
        assert [bits(file.load_function(V, "f", index)) for index in range(3)] == [bits(f) for f in made]


def test_a_file_closed_twice_is_no_error(comm, path):
    file = TemporaryFunctionCheckpointFile(comm, path, "w")
    file.close()
    file.close()


@pytest.mark.parallel(2)
def test_a_mesh_without_some_of_the_files_ranks_is_refused(shared_tmp):
    functions = FunctionStore(Store(MPI.COMM_WORLD, str(shared_tmp / "all.h5")))
    V = fd.FunctionSpace(fd.UnitSquareMesh(2, 2, comm=MPI.COMM_SELF), "CG", 1)
    with pytest.raises(ValueError, match="1 ranks that are not in the mesh's communicator"):
        functions.save(fd.Function(V))
