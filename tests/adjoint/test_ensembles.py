"""Ensemble members with tapes of their own, on communicators of their own.

Members evaluate different numbers of times: a call on all ranks would leave some waiting.
"""

import functools

import firedrake as fd
import numpy as np
import pytest
from burgers import SCALES, arrays, assert_same, bare_tape, control, record, record_on_disk, sweep
from firedrake.adjoint import EnsembleReducedFunctional, stop_annotating
from firedrake.adjoint_utils.checkpointing import CheckpointFunction
from mpi4py import MPI

from localckpt.adjoint import checkpointable_mesh, enable_disk_checkpointing

WORLD = MPI.COMM_WORLD


@functools.cache
def ensemble():
    return fd.Ensemble(WORLD, 1)


@functools.cache
def mesh():
    return fd.UnitSquareMesh(4, 4, comm=ensemble().comm)


def sweeps(functional, times):
    return [sweep(functional, scale, mesh()) for scale in (SCALES * 3)[:times]]


def on_bare_tape(times):
    with bare_tape():
        return sweeps(record(mesh=mesh()), times)


LAYOUTS = {
    "tape on the world": lambda: {},
    "tape on the member": lambda: {"comm": ensemble().comm},
    "files on the member": lambda: {"comm": ensemble().comm, "checkpoint_comm": ensemble().comm},
    "tape on the world, files on the member": lambda: {"checkpoint_comm": ensemble().comm},
}


@pytest.mark.parallel(2)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_members_evaluate_different_numbers_of_times(layout, shared_tmp):
    times = 1 + 2 * WORLD.rank
    functional = record_on_disk(mesh(), checkpoint_dir=str(shared_tmp), **LAYOUTS[layout]())
    assert_same(sweeps(functional, times), on_bare_tape(times))


@pytest.mark.parallel(2)
def test_one_member_clears_its_tape_while_the_other_goes_on(shared_tmp, tape):
    functional = record_on_disk(mesh(), comm=ensemble().comm, checkpoint_dir=str(shared_tmp))
    found = sweeps(functional, 1)
    if WORLD.rank == 0:
        tape.clear_tape()
    else:
        found = sweeps(functional, 3)
    assert_same(found, on_bare_tape(len(found)))


@pytest.mark.parallel(2)
def test_one_member_alone_has_disk_checkpoints(shared_tmp):
    if WORLD.rank == 1:
        functional = record_on_disk(mesh(), comm=ensemble().comm, checkpoint_dir=str(shared_tmp))
    else:
        functional = record(mesh=mesh())
    assert_same(sweeps(functional, 2), on_bare_tape(2))


@pytest.mark.parallel(2)
def test_ensemble_functional_has_the_gradient_of_bare_tapes(shared_tmp):
    def results(functional):
        whole = EnsembleReducedFunctional(functional.functional, functional.controls, ensemble())
        with stop_annotating():
            value = whole([control(1.3, mesh())])
            (derivative,) = whole.derivative()
            return [np.concatenate([[value], *arrays(derivative)])]

    found = results(record_on_disk(mesh(), checkpoint_dir=str(shared_tmp)))
    with bare_tape():
        assert_same(found, results(record(mesh=mesh())))


@pytest.mark.parallel(2)
def test_members_meshes_go_through_files_of_their_own(shared_tmp):
    enable_disk_checkpointing(dirname=str(shared_tmp), comm=ensemble().comm)
    n = 2 + WORLD.rank
    stored = checkpointable_mesh(fd.UnitSquareMesh(n, n, comm=ensemble().comm))
    assert stored.num_cells() == 2 * n * n


@pytest.mark.parallel(2)
def test_files_of_the_world_are_refused_to_a_tape_of_a_member(shared_tmp):
    with pytest.raises(ValueError, match="checkpoint_comm has 1 ranks that are not in comm"):
        enable_disk_checkpointing(comm=ensemble().comm, checkpoint_comm=WORLD, checkpoint_dir=str(shared_tmp))


@pytest.mark.parallel(2)
def test_files_of_the_world_are_refused_to_a_mesh_of_a_member(shared_tmp):
    enable_disk_checkpointing(checkpoint_comm=WORLD, checkpoint_dir=str(shared_tmp))
    f = fd.Function(fd.FunctionSpace(mesh(), "CG", 1))
    with pytest.raises(ValueError, match="1 ranks that are not in the mesh's communicator"):
        CheckpointFunction(f)
