"""EnsembleFunctions and EnsembleCofunctions on disk, which Firedrake's own disk checkpoints refuse."""

import functools

import firedrake as fd
import numpy as np
import pytest
from burgers import assert_same, bare_tape
from checkpoint_schedules import SingleDiskStorageSchedule
from firedrake.adjoint import Control, ReducedFunctional, get_working_tape, pause_disk_checkpointing, stop_annotating
from firedrake.adjoint_utils import checkpointing as firedrakes
from mpi4py import MPI
from pyadjoint import AdjFloat, Block

from localckpt.adjoint import continue_disk_checkpointing, enable_disk_checkpointing
from localckpt.adjoint.checkpoints import EnsembleCheckpoint

WORLD = MPI.COMM_WORLD
CLASSES = {"EnsembleFunction": lambda V: V, "EnsembleCofunction": lambda V: V.dual()}


@functools.cache
def space():
    """Members of a rank each, with two spaces, one of them mixed."""
    ensemble = fd.Ensemble(WORLD, 1)
    mesh = fd.UnitSquareMesh(2, 2, comm=ensemble.comm)
    V, W = fd.VectorFunctionSpace(mesh, "CG", 1), fd.FunctionSpace(mesh, "DG", 0)
    return fd.EnsembleFunctionSpace([V, V * W], ensemble)


@functools.cache
def single():
    """Members with one space, whose data an EnsembleFunction shares with its Vec."""
    ensemble = fd.Ensemble(WORLD, 1)
    mesh = fd.UnitSquareMesh(2, 2, comm=ensemble.comm)
    return fd.EnsembleFunctionSpace([fd.FunctionSpace(mesh, "CG", 1)], ensemble)


@functools.cache
def spread():
    """One member of all ranks."""
    ensemble = fd.Ensemble(WORLD, WORLD.size)
    mesh = fd.UnitSquareMesh(3, 3, comm=ensemble.comm)
    return fd.EnsembleFunctionSpace([fd.FunctionSpace(mesh, "CG", 2)], ensemble)


SPACES = {"a mixed space": space, "one space": single, "one member": spread}


def filled(V, seed=0):
    f = fd.EnsembleFunction(V)
    for i, part in enumerate(f.subfunctions):
        for j, dat in enumerate(part.dat):
            dat.data[...] = np.random.default_rng([seed, i, j, WORLD.rank]).uniform(0.5, 1, dat.data_ro.shape)
    return f


def arrays(f):
    return [dat.data_ro_with_halos.copy() for part in f.subfunctions for dat in part.dat]


@pytest.mark.parallel([1, 3])
@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("cls", CLASSES)
def test_what_comes_back_is_what_a_memory_checkpoint_has(cls, space, shared_tmp):
    enable_disk_checkpointing(checkpoint_dir=str(shared_tmp))
    f = filled(CLASSES[cls](SPACES[space]()))
    copy = f._ad_create_checkpoint()
    continue_disk_checkpointing()
    checkpoint = f._ad_create_checkpoint()
    expected = arrays(f)
    f.zero()
    found = f._ad_restore_at_checkpoint(checkpoint)
    assert isinstance(checkpoint, firedrakes.CheckpointBase)
    assert (type(found), found.function_space()) == (type(copy), copy.function_space())
    np.testing.assert_equal(arrays(found), arrays(copy))
    np.testing.assert_equal(arrays(found), expected)


@pytest.mark.parallel([1, 3])
@pytest.mark.parametrize("space", SPACES)
def test_the_vec_of_what_comes_back_has_its_values(space, shared_tmp):
    enable_disk_checkpointing(checkpoint_dir=str(shared_tmp))
    continue_disk_checkpointing()
    f = filled(SPACES[space]())
    found = f._ad_restore_at_checkpoint(f._ad_create_checkpoint())
    with f.vec_ro() as one, found.vec_ro() as other:
        assert (one.array_r == other.array_r).all()


def test_a_tape_of_firedrakes_own_refuses_them_as_before(detached, tape, shared_tmp):
    firedrakes.enable_disk_checkpointing(str(shared_tmp))
    continue_disk_checkpointing()
    with pytest.raises(NotImplementedError, match="Disk checkpointing not implemented for EnsembleFunction"):
        filled(space())._ad_create_checkpoint()


def dot(x, y):
    return x._ad_dot(y, options={"riesz_representation": "l2"})


class Grow(Block):
    """x, and a little more the larger it is."""

    def __init__(self, x):
        super().__init__()
        self.add_dependency(x)

    def recompute_component(self, inputs, block_variable, idx, prepared):
        return (1 + 0.01 * dot(inputs[0], inputs[0])) * inputs[0]

    def evaluate_adj_component(self, inputs, adj_inputs, block_variable, idx, prepared=None):
        x, a = inputs[0], adj_inputs[0]
        return (1 + 0.01 * dot(x, x)) * a + 0.02 * dot(x, a) * x


class Start(Grow):
    """An EnsembleFunction, times a number."""

    def recompute_component(self, inputs, block_variable, idx, prepared):
        return inputs[0] * filled(space())

    def evaluate_adj_component(self, inputs, adj_inputs, block_variable, idx, prepared=None):
        return dot(filled(space()), adj_inputs[0])


class SquaredNorm(Grow):
    """The sum of the squares of all dofs."""

    def recompute_component(self, inputs, block_variable, idx, prepared):
        return AdjFloat(dot(inputs[0], inputs[0]))

    def evaluate_adj_component(self, inputs, adj_inputs, block_variable, idx, prepared=None):
        return 2 * adj_inputs[0] * inputs[0]


def apply(block_class, x):
    block = block_class(x)
    with stop_annotating():
        y = block.recompute_component([x], None, 0, None)
    get_working_tape().add_block(block)
    block.add_output(y.create_block_variable())
    return y


def value_and_gradient(schedule=None):
    """Of four timesteps, at another control than that of the record."""
    tape = get_working_tape()
    if schedule is not None:
        tape.enable_checkpointing(schedule)
    c, J = AdjFloat(1.0), AdjFloat(0.0)
    x = apply(Start, c)
    for _ in tape.timestepper(iter(range(4))):
        x = apply(Grow, x)
        J += apply(SquaredNorm, x)
    functional = ReducedFunctional(J, Control(c))
    with stop_annotating():
        return functional(AdjFloat(0.9)), functional.derivative()


@pytest.mark.parallel([1, 3])
def test_gradient_is_that_of_a_bare_tape(shared_tmp, tape):
    enable_disk_checkpointing(checkpoint_dir=str(shared_tmp))
    found = value_and_gradient(SingleDiskStorageSchedule())
    pause_disk_checkpointing()
    assert any(
        isinstance(checkpoint, EnsembleCheckpoint)
        for step in tape.timesteps
        for checkpoint in step._checkpoint.values()
    )
    with bare_tape():
        assert_same(found, value_and_gradient())
