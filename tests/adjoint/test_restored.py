"""What a checkpoint gives back."""

import firedrake as fd
import pytest
from firedrake.adjoint_utils.checkpointing import CheckpointFunction

from localckpt.adjoint import enable_disk_checkpointing


@pytest.fixture
def saved(shared_tmp):
    """A Function and its checkpoint."""
    enable_disk_checkpointing(checkpoint_dir=str(shared_tmp))
    f = fd.Function(fd.FunctionSpace(fd.UnitSquareMesh(4, 4), "CG", 1), name="of this name")
    f.interpolate(fd.SpatialCoordinate(f.function_space().mesh())[0])
    return f, CheckpointFunction(f)


@pytest.mark.parametrize("what", ["name", "count", "function_space"])
def test_restored_function_is_like_the_saved_one(saved, what):
    f, checkpoint = saved
    assert getattr(checkpoint.restore(), what)() == getattr(f, what)()


@pytest.mark.parallel([1, 3])
def test_restored_values_are_the_saved_ones(saved):
    f, checkpoint = saved
    values = f.dat.data_ro.copy()
    f.assign(7.0)
    assert (checkpoint.restore().dat.data_ro == values).all()


def test_restoring_twice_makes_two_functions(saved):
    _, checkpoint = saved
    first, second = checkpoint.restore(), checkpoint.restore()
    first.assign(7.0)
    assert (second.dat.data_ro == checkpoint.restore().dat.data_ro).all()


def test_checkpoint_knows_name_count_and_mesh(saved):
    f, checkpoint = saved
    assert (checkpoint.name, checkpoint.count, checkpoint.mesh) == (f.name(), f.count(), f.function_space().mesh())
