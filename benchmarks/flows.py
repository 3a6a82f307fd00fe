"""More adjoint problems: what :func:`problems.advection` is to explicit transport, these are to others.

Each takes what that takes, and returns an iteration.
"""

import firedrake.adjoint as adjoint
from firedrake import (
    Constant,
    DirichletBC,
    FacetNormal,
    Function,
    FunctionSpace,
    LinearVariationalProblem,
    LinearVariationalSolver,
    MixedVectorSpaceBasis,
    NonlinearVariationalProblem,
    NonlinearVariationalSolver,
    SpatialCoordinate,
    TestFunction,
    TestFunctions,
    TrialFunction,
    VectorFunctionSpace,
    VectorSpaceBasis,
    as_vector,
    assemble,
    avg,
    cos,
    div,
    dot,
    dS,
    ds,
    dx,
    exp,
    grad,
    inner,
    jump,
    pi,
    sin,
    split,
    sym,
)
from problems import new_tape, repeated

DIRECT = {"mat_type": "aij", "ksp_type": "preonly", "pc_type": "lu", "pc_factor_mat_solver_type": "mumps"}
# The pressure's constant is free. Left to find that out, MUMPS's answers differ by percents on 2 ranks, time and again.
SINGULAR = {**DIRECT, "mat_mumps_icntl_24": 1}
BLOCKS = {"ksp_type": "preonly", "pc_type": "bjacobi", "sub_pc_type": "ilu"}  # exact for a DG mass matrix


def begin(kind, mesh, folder):
    tape = new_tape(kind, folder)
    return tape, adjoint.checkpointable_mesh(mesh) if kind == "shared" else mesh


def burgers(kind, mesh, steps=10, folder=None):
    """Viscous Burgers flow with a misfit at every step: the equations of examples/burgers.py."""
    tape, mesh = begin(kind, mesh, folder)
    V = VectorFunctionSpace(mesh, "CG", 2)
    x, y = SpatialCoordinate(mesh)
    initial = Function(V).interpolate(as_vector([sin(pi * x) * sin(2 * pi * y), x * (1 - x) * y * (1 - y)]))
    target = Function(V).interpolate(as_vector([sin(2 * pi * x) * sin(pi * y) / 2, 0 * x]))
    u, previous, v = Function(V), Function(V), TestFunction(V)
    nu, dt = Constant(0.01), Constant(0.02)
    F = (inner((u - previous) / dt, v) + inner(dot(u, grad(u)), v) + nu * inner(grad(u), grad(v))) * dx
    solver = NonlinearVariationalSolver(
        NonlinearVariationalProblem(F, u, bcs=DirichletBC(V, 0, "on_boundary")), solver_parameters=DIRECT
    )
    previous.assign(initial)
    u.assign(previous)
    J = 0.0
    for _ in tape.timestepper(iter(range(steps))):
        solver.solve()
        J += assemble(inner(u - target, u - target) * dx) * float(dt)
        previous.assign(u)
    return repeated(kind, J, [initial])


def wave(kind, mesh, steps=20, folder=None):
    """Acoustic waves: explicit DG1 for pressure and velocity, in turn; the controls are a pulse and the medium."""
    tape, mesh = begin(kind, mesh, folder)
    P, U = FunctionSpace(mesh, "DG", 1), VectorFunctionSpace(mesh, "DG", 1)
    x, y = SpatialCoordinate(mesh)
    pulse = Function(P).interpolate(exp(-100 * ((x - 0.4) ** 2 + (y - 0.5) ** 2)))
    stiffness = Function(P).interpolate(1 + x / 2)
    p, p_new, u, u_new = Function(P), Function(P), Function(U), Function(U)
    q, v, n = TestFunction(P), TestFunction(U), FacetNormal(mesh)
    dt = Constant(0.1 / mesh.num_cells() ** 0.5)
    # Central fluxes; nothing leaves through the boundary.
    move = inner(u, v) * dx + dt * (p * div(v) * dx - avg(p) * jump(v, n) * dS - p * dot(v, n) * ds)
    squeeze = p * q * dx + dt * (dot(u_new, grad(stiffness * q)) * dx - dot(avg(u_new), jump(stiffness * q, n)) * dS)
    solvers = [
        LinearVariationalSolver(LinearVariationalProblem(a, L, f, constant_jacobian=True), solver_parameters=BLOCKS)
        for a, L, f in [(inner(TrialFunction(U), v) * dx, move, u_new), (TrialFunction(P) * q * dx, squeeze, p_new)]
    ]
    p.assign(pulse)
    for _ in tape.timestepper(iter(range(steps))):
        for solver in solvers:
            solver.solve()
        u.assign(u_new)
        p.assign(p_new)
    return repeated(kind, assemble(p * p * dx), [pulse, stiffness])


def convection(kind, mesh, steps=5, folder=None):
    """Mantle convection: Stokes flow driven by a temperature that it carries along; which one was it at first?"""
    tape, mesh = begin(kind, mesh, folder)
    Z = VectorFunctionSpace(mesh, "CG", 2) * FunctionSpace(mesh, "CG", 1)
    Q = FunctionSpace(mesh, "CG", 2)
    x, y = SpatialCoordinate(mesh)
    initial = Function(Q).interpolate(1 - y + cos(pi * x) * sin(pi * y) / 20)
    z, T, T_new = Function(Z), Function(Q), Function(Q)
    u, p = split(z)
    (v, q), s = TestFunctions(Z), TestFunction(Q)
    viscosity = exp(-2 * T)
    stokes = (inner(2 * viscosity * sym(grad(u)), grad(v)) - p * div(v) - q * div(u) - Constant(1e5) * T * v[1]) * dx
    middle, dt = (T + T_new) / 2, Constant(2e-5)
    energy = ((T_new - T) / dt * s + s * dot(u, grad(middle)) + inner(grad(middle), grad(s))) * dx
    walls = [DirichletBC(Z.sub(0).sub(0), 0, (1, 2)), DirichletBC(Z.sub(0).sub(1), 0, (3, 4))]
    nullspace = MixedVectorSpaceBasis(Z, [Z.sub(0), VectorSpaceBasis(constant=True, comm=mesh.comm)])
    solvers = [
        NonlinearVariationalSolver(
            NonlinearVariationalProblem(stokes, z, bcs=walls),
            nullspace=nullspace,
            transpose_nullspace=nullspace,
            solver_parameters={**SINGULAR, "snes_type": "ksponly"},
        ),
        NonlinearVariationalSolver(
            NonlinearVariationalProblem(energy, T_new, bcs=[DirichletBC(Q, 1, 3), DirichletBC(Q, 0, 4)]),
            solver_parameters={**DIRECT, "snes_type": "ksponly"},
        ),
    ]
    T.assign(initial)
    for _ in tape.timestepper(iter(range(steps))):
        for solver in solvers:
            solver.solve()
        T.assign(T_new)
    return repeated(kind, assemble((T - (1 - y)) ** 2 * dx), [initial])
