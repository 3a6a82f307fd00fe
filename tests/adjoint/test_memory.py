"""What stays in memory does not grow with the number of timesteps, mesh coordinates included."""

import json
import os

import firedrake as fd
import numpy as np
import pytest
from burgers import LU, assert_same, bare_tape
from checkpoint_schedules import SingleDiskStorageSchedule, SingleMemoryStorageSchedule
from firedrake import dx, grad, inner
from firedrake.adjoint import Control, ReducedFunctional, get_working_tape, stop_annotating, taylor_test
from mpi4py import MPI

from localckpt import ChecksumError
from localckpt.adjoint import enable_disk_checkpointing
from localckpt.adjoint.saving import begin_saving, current_checkpointer, end_saving

# A coefficient that changes in every step, so that every step has something of its own to keep.
SCRIPT = """
import gc, json
import firedrake as fd
from checkpoint_schedules import SingleDiskStorageSchedule
from firedrake import dx, grad, inner
from firedrake.adjoint import *
from localckpt.adjoint import *
from pyop2 import op2

steps, directory = int(sys.argv[1]), sys.argv[2]
tape = get_working_tape()
continue_annotation()
enable_disk_checkpointing(checkpoint_dir=directory)
tape.enable_checkpointing(SingleDiskStorageSchedule())
mesh = fd.UnitSquareMesh(4, 4)
V, Q = fd.FunctionSpace(mesh, "CG", 1), fd.FunctionSpace(mesh, "DG", 0)
c, k, rate = fd.Function(V).assign(1.0), fd.Function(Q).assign(1.0), fd.Function(Q).assign(0.1)
u, before, v = fd.Function(V), fd.Function(V), fd.TestFunction(V)
F = (10 * (u - before) * v + k * inner(grad(u), grad(v)) - c * v) * dx
solver = fd.NonlinearVariationalSolver(fd.NonlinearVariationalProblem(F, u),
                                       solver_parameters={"ksp_type": "preonly", "pc_type": "lu"})


def live():
    '''How many Dats there are, and how many of them are of the size and shape of the mesh's coordinates.'''
    gc.collect()
    dats = [thing for thing in gc.get_objects() if isinstance(thing, op2.Dat)]
    return len(dats), sum(dat.dataset == mesh.coordinates.dof_dset for dat in dats)


J = 0.0
for _ in tape.timestepper(iter(range(steps))):
    k.assign(k + rate)
    solver.solve()
    before.assign(u)
    J += fd.assemble(u * u * dx)
counts = {"recorded": live()}
functional = ReducedFunctional(J, Control(c))
with stop_annotating():
    functional(c._ad_mul(1.1))
    functional.derivative()
counts["replayed"] = live()
print("LIVE", json.dumps(counts))
"""


@pytest.fixture
def live_dats(run_script, tmp_path):
    """live_dats(steps): numbers of live Dats, all and of coordinates, after sweeps of so many steps."""

    def run(steps):
        result = run_script(SCRIPT, steps, tmp_path, seconds=120)
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout.partition("LIVE ")[2])

    return run


def test_dats_in_memory_do_not_grow_with_the_number_of_timesteps(live_dats):
    few, many = live_dats(20), live_dats(120)
    for sweep, (total, coordinates) in many.items():
        assert total <= few[sweep][0] + 2, (few, many)
        assert coordinates <= 2, (few, many)  # the mesh's own and one copy


def moving_mesh_functional(cells=4, displacement=lambda x, y: (0.02 * x * x, 0.03 * x * y)):
    """A nonlinear problem on a mesh that the control moves in every step."""
    mesh = fd.UnitSquareMesh(cells, cells)
    V, X = fd.FunctionSpace(mesh, "CG", 1), mesh.coordinates.function_space()
    x, y = fd.SpatialCoordinate(mesh)
    with stop_annotating():
        c = fd.Function(X).interpolate(fd.as_vector(displacement(x, y)))
        f = fd.Function(V).interpolate(1 + x * y)
    u, before, v = fd.Function(V), fd.Function(V), fd.TestFunction(V)
    F = (10 * (u - before) * v + (1 + u * u) * inner(grad(u), grad(v)) - f * v) * dx
    solver = fd.NonlinearVariationalSolver(fd.NonlinearVariationalProblem(F, u), solver_parameters=LU)
    J = 0.0
    for _ in get_working_tape().timestepper(iter(range(4))):
        mesh.coordinates.assign(mesh.coordinates + c)
        solver.solve()
        before.assign(u)
        J += fd.assemble(u * u * dx)
    return ReducedFunctional(J, Control(c)), c


def replay(functional, control):
    """Values and gradients at two controls."""
    results = []
    with stop_annotating():
        for scale in (1.2, 0.7):
            value = functional(control._ad_mul(scale))
            gradient = MPI.COMM_WORLD.allgather(functional.derivative().dat.data_ro.ravel())
            # Two meshes are not always partitioned alike.
            results.append(np.append(np.sort(np.concatenate(gradient)), value))
    return results


@pytest.mark.parallel([1, 3])
def test_gradient_on_a_mesh_that_moves_is_that_of_a_bare_tape(tape, shared_tmp):
    enable_disk_checkpointing(checkpoint_dir=str(shared_tmp))
    tape.enable_checkpointing(SingleDiskStorageSchedule())
    found = replay(*moving_mesh_functional())
    with bare_tape():
        expected = replay(*moving_mesh_functional())
    assert_same(found, expected)
    assert all(abs(result[:-1]).max() > 1e-3 for result in found)


def test_gradient_on_a_mesh_that_moves_converges(tape, tmp_path):
    enable_disk_checkpointing(checkpoint_dir=str(tmp_path))
    tape.enable_checkpointing(SingleDiskStorageSchedule())
    functional, control = moving_mesh_functional()
    with stop_annotating():
        assert taylor_test(functional, control._ad_mul(1.1), control._ad_mul(0.5)) > 1.9


@pytest.mark.parallel(2)
@pytest.mark.parametrize("engine", ["direct", "viewer"])
@pytest.mark.parametrize("schedule", [SingleDiskStorageSchedule, SingleMemoryStorageSchedule])
def test_mesh_that_moves_on_some_ranks_only_leaves_all_with_the_same_names(tape, shared_tmp, schedule, engine):
    enable_disk_checkpointing(checkpoint_dir=str(shared_tmp), engine=engine)
    tape.enable_checkpointing(schedule())
    functional, control = moving_mesh_functional(12, lambda x, y: (fd.conditional(x + y > 1.95, 0.01, 0.0), 0))
    replay(functional, control)
    everywhere = MPI.COMM_WORLD.allgather(
        (bool(control.dat.data_ro_with_halos.any()), fd.Function(control.function_space()).name())
    )
    (one_moves, one), (other_moves, other) = everywhere
    assert one_moves != other_moves and one == other, everywhere


@pytest.mark.parallel([1, 3])
def test_checkpoints_of_a_mesh_are_one_until_it_moves(shared_tmp):
    enable_disk_checkpointing(checkpoint_dir=str(shared_tmp))
    mesh = fd.UnitSquareMesh(4, 4)
    mine = mesh.coordinates.dat.data_ro.copy()
    save = current_checkpointer().save_mesh
    first, second = save(mesh), save(mesh)
    with stop_annotating():
        mesh.coordinates.assign(2 * mesh.coordinates)
    moved = save(mesh)
    assert first is second and first is not moved
    first.restore_to(mesh)
    np.testing.assert_array_equal(mesh.coordinates.dat.data_ro, mine)
    moved.restore_to(mesh)
    np.testing.assert_array_equal(mesh.coordinates.dat.data_ro, 2 * mine)


@pytest.mark.parallel([1, 3])
def test_coordinates_that_cannot_be_read_leave_the_mesh_as_it_is(tape, shared_tmp):
    enable_disk_checkpointing(checkpoint_dir=str(shared_tmp))
    mesh = fd.UnitSquareMesh(8, 8)
    begin_saving(current_checkpointer())
    saved = current_checkpointer().save_mesh(mesh)
    end_saving(current_checkpointer())
    with stop_annotating():
        mesh.coordinates.assign(2 * mesh.coordinates)
    mine = mesh.coordinates.dat.data_ro_with_halos.copy()
    os.pwrite(
        current_checkpointer()._functions.store.current_file.engine.file.descriptor.fileno(),
        b"?" * 8,
        saved._values.stored[0].row.offset,
    )
    with pytest.raises(ChecksumError):
        saved.restore_to(mesh)
    np.testing.assert_array_equal(mesh.coordinates.dat.data_ro_with_halos, mine)
