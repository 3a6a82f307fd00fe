"""What is stored besides a state in a plain space: each gradient is that of a tape without a schedule."""

import firedrake as fd
import numpy as np
import pytest
from burgers import LU, arrays, assert_same, bare_tape, disk_checkpoints
from checkpoint_schedules import SingleDiskStorageSchedule
from firedrake import dot, dx, grad, inner, pi, sin
from firedrake.adjoint import Control, ReducedFunctional, get_working_tape, stop_annotating, taylor_test
from mpi4py import MPI

from localckpt.adjoint import checkpointable_mesh, enable_disk_checkpointing

STEPS = 4


def bump(V, scale):
    x = fd.SpatialCoordinate(V.mesh())
    with stop_annotating():
        return fd.Function(V, name="control").interpolate(1 + scale * sin(pi * x[0]) * sin(2 * x[1]))


def steps():
    return get_working_tape().timestepper(iter(range(STEPS)))


def decay(c):
    """The state, the one before it, and a solver for an implicit step of a nonlinear decay."""
    V = c.function_space()
    u, v = fd.Function(V), fd.TestFunction(V)
    before = fd.Function(V)
    F = inner(8 * (u - before) + u**3 - c, v) * dx
    problem = fd.NonlinearVariationalProblem(F, u)
    return u, before, fd.NonlinearVariationalSolver(problem, solver_parameters=LU)


def cofunction_right_hand_side(mesh):
    V = fd.FunctionSpace(mesh, "CG", 1)
    c = bump(V, 1.0)
    u, v = fd.Function(V), fd.TestFunction(V)
    a = inner(fd.TrialFunction(V), v) * dx + 0.1 * inner(grad(fd.TrialFunction(V)), grad(v)) * dx
    b = fd.Cofunction(V.dual(), name="b")
    J = 0.0
    for _ in steps():
        b.assign(fd.assemble((u + c * c) * v * dx))
        fd.solve(a == b, u, solver_parameters=LU)
        J += fd.assemble(u * u * dx)
    return J, [c]


def mixed_state(mesh):
    """A wave in mixed form: the whole of the state is one Function."""
    W = fd.FunctionSpace(mesh, "RT", 1) * fd.FunctionSpace(mesh, "DG", 0)
    c = bump(W.sub(1).collapse(), 0.5)
    w, before, (s, q) = fd.Function(W, name="w"), fd.Function(W), fd.TestFunctions(W)
    velocity, pressure = fd.split(w)
    v0, p0 = fd.split(before)
    F = (
        dot(velocity - v0, s)
        - 0.1 * pressure * fd.div(s)
        + (pressure - p0) * q
        + 0.1 * c * fd.div(velocity) * q
        + 0.1 * (pressure**2 - c) * q
    ) * dx
    solver = fd.NonlinearVariationalSolver(fd.NonlinearVariationalProblem(F, w), solver_parameters=LU)
    J = 0.0
    for _ in steps():
        solver.solve()
        before.assign(w)
        J += fd.assemble((dot(velocity, velocity) + pressure**2) * dx)
    return J, [c]


def real_state(mesh):
    """The state is one number, of which every rank has its own copy."""
    R = fd.FunctionSpace(mesh, "R", 0)
    c = bump(fd.FunctionSpace(mesh, "CG", 1), 1.0)
    r, before, v = fd.Function(R, name="r"), fd.Function(R), fd.TestFunction(R)
    F = (r - before) * v * dx + 0.2 * r * c * v * dx - c * c * v * dx
    J = 0.0
    for _ in steps():
        fd.solve(F == 0, r)
        before.assign(r)
        J += fd.assemble(r * r * c * dx)
    return J, [c]


def vector_state(mesh):
    V = fd.VectorFunctionSpace(mesh, "CG", 2)
    x, y = fd.SpatialCoordinate(mesh)
    with stop_annotating():
        c = fd.Function(V, name="control").interpolate(fd.as_vector((1 + x * y, sin(y))))
    u, before, v = fd.Function(V), fd.Function(V), fd.TestFunction(V)
    F = inner(8 * (u - before) + dot(u, u) * u - c, v) * dx
    J = 0.0
    for _ in steps():
        fd.solve(F == 0, u, solver_parameters=LU)
        before.assign(u)
        J += fd.assemble(dot(u, u) ** 2 * dx)
    return J, [c]


def two_meshes_of_one_name(mesh):
    """Their spaces have one name and one element, but not one size."""
    other = larger_of_the_same_name()
    assert other.name == mesh.name
    c, d = (bump(fd.FunctionSpace(m, "CG", 1), 1.0) for m in (mesh, other))
    J = 0.0
    (u, u0, first), (w, w0, second) = decay(c), decay(d)
    for _ in steps():
        first.solve()
        u0.assign(u)
        second.solve()
        w0.assign(w)
        J += fd.assemble(u * u * dx) * fd.assemble(w**4 * dx)
    return J, [c, d]


KINDS = [cofunction_right_hand_side, mixed_state, real_state, vector_state, two_meshes_of_one_name]
MESHES = {}


def larger_of_the_same_name():
    return MESHES.setdefault("larger", fd.UnitSquareMesh(6, 5, name="square"))


def mesh():
    return MESHES.setdefault("mesh", fd.UnitSquareMesh(4, 4, name="square"))


def functional_of(kind, mesh):
    J, controls = kind(mesh)
    return ReducedFunctional(J, [Control(c) for c in controls])


def replay(functional):
    """Values and gradients at two controls."""
    results = []
    with stop_annotating():
        for scale in (1.2, 0.8):
            value = functional([c.control._ad_mul(scale) for c in functional.controls])
            results.append(
                np.concatenate([[value], *(array for part in functional.derivative() for array in arrays(part))])
            )
    return results


def on_bare_tape(kind, mesh):
    with bare_tape():
        return replay(functional_of(kind, mesh))


@pytest.mark.parallel([1, 3])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_gradient_is_that_of_a_bare_tape(kind, tape, shared_tmp):
    enable_disk_checkpointing(checkpoint_dir=str(shared_tmp))
    tape.enable_checkpointing(SingleDiskStorageSchedule())
    assert_same(replay(functional_of(kind, mesh())), on_bare_tape(kind, mesh()))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_gradient_converges(kind, tape, shared_tmp):
    enable_disk_checkpointing(checkpoint_comm=MPI.COMM_WORLD, checkpoint_dir=str(shared_tmp))
    tape.enable_checkpointing(SingleDiskStorageSchedule())
    functional = functional_of(kind, mesh())
    with stop_annotating():
        controls = [c.control.copy(deepcopy=True) for c in functional.controls]
        steps = [c._ad_mul(0.3) for c in controls]
        assert taylor_test(functional, controls, steps) > 1.9


def test_cofunctions_come_back_as_cofunctions(tape, shared_tmp):
    enable_disk_checkpointing(checkpoint_dir=str(shared_tmp))
    tape.enable_checkpointing(SingleDiskStorageSchedule())
    functional = functional_of(cofunction_right_hand_side, mesh())
    replay(functional)
    kinds = {type(checkpoint.restore()) for checkpoint in disk_checkpoints(tape)}
    assert kinds == {fd.Function, fd.Cofunction}


@pytest.mark.parallel([1, 3])
def test_mesh_that_went_through_a_file_gives_the_gradient_of_a_bare_tape(tape, shared_tmp):
    enable_disk_checkpointing(dirname=str(shared_tmp))
    tape.enable_checkpointing(SingleDiskStorageSchedule())
    stored = checkpointable_mesh(fd.UnitSquareMesh(4, 4))
    assert_same(replay(functional_of(vector_state, stored)), on_bare_tape(vector_state, stored))
