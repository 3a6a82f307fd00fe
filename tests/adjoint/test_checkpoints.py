"""What the tape has of a Function or a mesh on disk is what it has in memory."""

import pytest
import spaces
from burgers import kind
from firedrake.adjoint import (
    continue_disk_checkpointing,
    pause_disk_checkpointing,
    set_working_tape,
    stop_annotating,
)
from spaces import SPACES, bits, bits_with_halos, filled, memory

from localckpt.adjoint import LocalCheckpoint, enable_disk_checkpointing

MESHES = [
    "interval",
    "triangles",
    "squares",
    "tetrahedra",
    "hexahedra",
    "prisms",
    "bricks",
    "stairs",
    "ring",
    "torus",
    "sphere",
    "circle",
    "curved",
    "half",
    "side",
    "points",
    "few_cells",
]


@pytest.fixture(autouse=True)
def on_disk(shared_tmp):
    """A tape whose checkpoints go to disk."""
    with set_working_tape(), stop_annotating():
        enable_disk_checkpointing(checkpoint_dir=str(shared_tmp))
        continue_disk_checkpointing()
        yield
        pause_disk_checkpointing()


def in_memory(f):
    pause_disk_checkpointing()
    copy = f._ad_create_checkpoint()
    continue_disk_checkpointing()
    return copy


def on_disk_and_back(f):
    checkpoint = f._ad_create_checkpoint()
    assert kind(checkpoint) is LocalCheckpoint
    return f._ad_restore_at_checkpoint(checkpoint)


@pytest.mark.parallel([1, 3])
@pytest.mark.parametrize("halos", ["valid", "stale"])
@pytest.mark.parametrize("space", [space for space in SPACES if space != "component"])
def test_a_functions_checkpoint_is_that_in_memory(space, halos):
    f = filled(SPACES[space]())
    if halos == "valid":
        bits_with_halos(f)
    found, expected = on_disk_and_back(f), in_memory(f)
    assert (type(found), found.function_space(), found.name()) == (type(expected), f.function_space(), f.name())
    assert [dat.halo_valid for dat in found.dat] == [dat.halo_valid for dat in expected.dat]
    read = memory if halos == "valid" else bits
    assert read(found) == read(expected)


@pytest.mark.parallel([1, 3])
@pytest.mark.parametrize("where", ["disk", "memory"])
@pytest.mark.parametrize("mesh", MESHES)
def test_a_mesh_that_moved_gets_its_coordinates_back(mesh, where):
    mesh = getattr(spaces, mesh)()
    expected = bits_with_halos(mesh.coordinates)
    checkpoint = mesh._ad_create_checkpoint() if where == "disk" else in_memory(mesh)
    mesh.coordinates.dat.data[...] += 1
    mesh._ad_restore_at_checkpoint(checkpoint)
    assert bits_with_halos(mesh.coordinates) == expected
