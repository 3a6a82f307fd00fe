"""Function spaces of every kind, tiny, and Functions on them without two equal values."""

import functools
import re
from importlib.metadata import version

import firedrake as fd
import numpy as np
from mpi4py import MPI
from packaging.version import Version


@functools.cache
def interval():
    return fd.UnitIntervalMesh(5, name="interval")


@functools.cache
def triangles():
    return fd.UnitSquareMesh(4, 4, name="triangles")


@functools.cache
def squares():
    return fd.UnitSquareMesh(3, 4, quadrilateral=True, name="squares")


@functools.cache
def tetrahedra():
    return fd.UnitCubeMesh(2, 2, 2, name="tetrahedra")


@functools.cache
def hexahedra():
    return fd.UnitCubeMesh(2, 2, 2, hexahedral=True, name="hexahedra")


@functools.cache
def prisms():
    return fd.ExtrudedMesh(triangles(), 2, name="prisms")


@functools.cache
def bricks():
    return fd.ExtrudedMesh(squares(), 2, name="bricks")


@functools.cache
def stairs():
    """Columns of one and of two layers."""
    base = fd.UnitSquareMesh(4, 4, quadrilateral=True, name="stairs")
    x, _ = fd.SpatialCoordinate(base)
    high = fd.Function(fd.FunctionSpace(base, "DG", 0)).interpolate(fd.conditional(x > 0.5, 2, 1))
    layers = [(0, n) for n in high.dat.data_ro_with_halos.astype(int)]
    return fd.ExtrudedMesh(base, np.array(layers, dtype=np.int32).reshape(-1, 2), layer_height=0.5)


@functools.cache
def ring():
    """Its layers are periodic."""
    return fd.ExtrudedMesh(interval(), 4, extrusion_type="uniform", periodic=True, name="ring")


@functools.cache
def torus():
    return fd.PeriodicUnitSquareMesh(4, 4, name="torus")


@functools.cache
def sphere():
    return fd.UnitIcosahedralSphereMesh(1, degree=2, name="sphere")


@functools.cache
def circle():
    return fd.CircleManifoldMesh(7, name="circle")


@functools.cache
def curved():
    """Triangles with cubic coordinates."""
    X = fd.Function(fd.VectorFunctionSpace(triangles(), "CG", 3)).interpolate(fd.SpatialCoordinate(triangles()))
    return fd.Mesh(X, name="curved")


@functools.cache
def marked():
    """Its left half is 1; it has halos enough for submeshes of facets."""
    mesh = fd.UnitSquareMesh(
        4, 4, name="marked", distribution_parameters={"overlap_type": (fd.DistributedMeshOverlapType.VERTEX, 1)}
    )
    x, _ = fd.SpatialCoordinate(mesh)
    left = fd.Function(fd.FunctionSpace(mesh, "DG", 0)).interpolate(fd.conditional(x < 0.5, 1, 0))
    mesh.mark_entities(left, 1)
    return mesh


@functools.cache
def half():
    return fd.Submesh(marked(), 2, 1, name="half")


@functools.cache
def side():
    return fd.Submesh(marked(), 1, 1, name="side")


@functools.cache
def points():
    return fd.VertexOnlyMesh(triangles(), [[0.1, 0.2], [0.3, 0.9], [0.8, 0.7], [0.2, 0.1], [0.6, 0.4]], name="points")


@functools.cache
def few_cells():
    """Fewer cells than ranks where there are three."""
    return fd.UnitSquareMesh(1, 1, name="few cells")


def on(mesh, *arguments, make=fd.FunctionSpace, **options):
    return functools.cache(lambda: make(mesh(), *arguments, **options))


vectors_on = functools.partial(on, make=fd.VectorFunctionSpace)
tensors_on = functools.partial(on, make=fd.TensorFunctionSpace)


def mixed(*spaces):
    return lambda: fd.MixedFunctionSpace([space() for space in spaces])


def dual(space):
    return lambda: space().dual()


def restricted(space, *boundary):
    return lambda: fd.RestrictedFunctionSpace(space(), boundary_set=boundary)


def with_element(mesh, element):
    return functools.cache(lambda: fd.FunctionSpace(mesh(), element(mesh().ufl_cell())))


def mini(cell):
    return fd.FiniteElement("CG", cell, 1) + fd.FiniteElement("B", cell, 3)


def quadrature(cell):
    return fd.FiniteElement("Quadrature", cell, degree=3, quad_scheme="default")


def product(cell):
    horizontal, vertical = cell.sub_cells
    return fd.HDiv(fd.TensorProductElement(fd.FiniteElement("RT", horizontal, 1), fd.FiniteElement("DG", vertical, 0)))


CG1, CG2, DG0, REAL = (on(triangles, family, degree) for family, degree in (("CG", 1), ("CG", 2), ("DG", 0), ("R", 0)))

SPACES = {
    "CG1": CG1,
    "DG1": on(triangles, "DG", 1),
    "Q2": on(squares, "Q", 2),
    "RT1": on(triangles, "RT", 1),
    "vector CG2": vectors_on(triangles, "CG", 2),
    "vector RT": vectors_on(triangles, "RT", 1, dim=3),
    "vector of one": vectors_on(triangles, "CG", 1, dim=1),
    "tensor DG1": tensors_on(triangles, "DG", 1),
    "symmetric tensor": tensors_on(triangles, "CG", 1, symmetry=True),
    "tensor of three indices": tensors_on(triangles, "DG", 0, shape=(2, 3, 4)),
    "mixed": mixed(CG2, DG0),
    "mixed of one": mixed(CG2),
    "mixed of one space twice": mixed(CG1, CG1),
    "mixed of vectors and tensors": mixed(vectors_on(triangles, "CG", 2), tensors_on(triangles, "DG", 0), CG1),
    "nested mixed": mixed(mixed(CG2, DG0), mixed(CG1, REAL)),
    "mixed with Real": mixed(CG1, REAL),
    "Real": REAL,
    "vector Real": vectors_on(triangles, "R", 0, dim=3),
    "quadrature": with_element(triangles, quadrature),
    "vector quadrature": with_element(triangles, lambda cell: fd.VectorElement(quadrature(cell))),
    "enriched": with_element(triangles, mini),
    "vector enriched": with_element(triangles, lambda cell: fd.VectorElement(mini(cell))),
    "broken": with_element(triangles, lambda cell: fd.BrokenElement(fd.FiniteElement("RT", cell, 2))),
    "interior": with_element(triangles, lambda cell: fd.FiniteElement("CG", cell, 3)["interior"]),
    "facets": with_element(squares, lambda cell: fd.FiniteElement("Q", cell, 3)["facet"]),
    "spectral": on(squares, "Q", 3, variant="spectral"),
    "diagonalised": on(squares, "Q", 3, variant="fdm"),
    "macro": on(triangles, "CG", 1, variant="alfeld"),
    "extruded": on(prisms, "CG", 2),
    "extruded tensor product": with_element(prisms, product),
    "extruded, Real in its layers": on(prisms, "CG", 1, vfamily="R", vdegree=0),
    "extruded squares": on(bricks, "Q", 2),
    "extruded by different layers": on(stairs, "Q", 2),
    "vectors on different layers": vectors_on(stairs, "DQ", 1),
    "extruded periodically": on(ring, "CG", 2),
    "periodic": on(torus, "CG", 1),
    "sphere": on(sphere, "CG", 2),
    "RT on a sphere": on(sphere, "RT", 1),
    "circle": on(circle, "DG", 1),
    "curved": on(curved, "CG", 2),
    "coordinates": lambda: curved().coordinates.function_space(),
    "submesh": on(half, "CG", 2),
    "submesh of facets": on(side, "CG", 2),
    "submesh and mesh": mixed(on(half, "CG", 1), on(marked, "CG", 2)),
    "meshes of three kinds": mixed(on(triangles, "RT", 1), on(squares, "Q", 1), on(circle, "DG", 0), REAL),
    "meshes of volumes and surfaces": mixed(on(prisms, "DG", 0), on(tetrahedra, "CG", 1), on(sphere, "CG", 2)),
    "points": on(points, "DG", 0),
    "vectors on points": vectors_on(points, "DG", 0),
    "input points": lambda: fd.FunctionSpace(points().input_ordering, "DG", 0),
    "few cells": on(few_cells, "DG", 0),
    "restricted": restricted(CG2, "on_boundary"),
    "restricted vectors": restricted(vectors_on(triangles, "CG", 1), 1, 3),
    "restricted, extruded": restricted(on(prisms, "CG", 2), "bottom"),
    "restricted, mixed": mixed(restricted(CG2, 1), REAL, restricted(CG1, "on_boundary")),
    "component": lambda: vectors_on(triangles, "CG", 2)().sub(1),
    "dual": dual(CG1),
    "mixed dual": dual(mixed(CG2, REAL)),
    "restricted dual": dual(restricted(CG2, "on_boundary")),
}

# Each family of the element registry, of about the lowest degree that there is.
FAMILIES = {
    interval: "CG 1, DG 0, HER 3, GL 1, GL L2 1, GLL 2, B 2, TDG 1, Regge 0",
    triangles: """CG 3, DG 0, DG L2 1, TDG 1, Bernstein 2, CR 1, KMV 2, B 3, FB 2, DGT 1,
        RT 2, DRT 1, N1curl 2, N2curl 1, BDM 1, BDFM 2, Regge 0, HHJ 0, GLS 1, GLS2 1, AWnc 2, AWc 3, HZ 3, JM 1,
        HER 3, ARG 5, BELL 5, MOR 2, WXnc 4, WXncr 7, BZ-C2 9, PS6 2, PS12 2, HCT 3, HCT-red 3, ALF-C2 5,
        BR 1, BRB 2, MTW 1, AQ 2, AQ-red 2, CH 1, AS 2, GN 1, GN2 1, GNH1div 2, GNB 2, BQ 2""",
    squares: """Q 1, DQ 0, DQ L2 1, S 2, DPC 1, DPC L2 1, RTCE 1, RTCF 1, BDMCE 1, BDMCF 1, SminusE 1, SminusF 1,
        SminusDiv 1, SminusCurl 1, Sdirect 2, DGT 0""",
    tetrahedra: "CG 2, DG 0, RT 1, N1curl 1, N2curl 1, BDM 1, BDFM 2, CR 1, MOR 2, MTW 1, WALK 5, Regge 0, HHJ 0",
    hexahedra: "Q 2, DQ 0, R 0",
    bricks: "NCE 1, NCF 1",
}
ELEMENTS = {
    f"{element} on {mesh.__name__}": on(mesh, family, int(degree))
    for mesh, elements in FAMILIES.items()
    for element in re.split(r",\s+", elements)
    for family, degree in [element.rsplit(" ", 1)]
}
if Version(version("firedrake")) < Version("2026.10"):  # which does not make these
    del ELEMENTS["SminusE 1 on squares"], ELEMENTS["SminusF 1 on squares"]

# What has neighbours across ranks: an integral over the facets in between reads halos.
WITH_FACETS = [
    "CG1",
    "DG1",
    "Q2",
    "RT1",
    "vector CG2",
    "mixed",
    "mixed with Real",
    "extruded",
    "periodic",
    "restricted",
]


def filled(V, seed=0, **kwargs):
    """A Function or Cofunction with other values in every dof and on every rank, its halos stale."""
    f = fd.Function(V, **kwargs)
    for i, (Vi, dat) in enumerate(zip(V, f.dat, strict=True)):
        # All ranks hold one and the same Real.
        rank = 0 if Vi.ufl_element().family() == "Real" else MPI.COMM_WORLD.rank
        dat.data[...] = random_like(dat.data_ro, seed, i, rank)
    return f


def random_like(array, *seed):
    values = np.random.default_rng(seed).standard_normal(array.shape) * 1000
    return values.astype(array.dtype)


def bits(function):
    """Every byte of the dofs that this rank owns."""
    return [dat.data_ro.tobytes() for dat in function.dat]


def bits_with_halos(function):
    return [dat.data_ro_with_halos.tobytes() for dat in function.dat]


def memory(function):
    """What there is in memory, halos included, valid or not: no exchange."""
    return [dat._data.tobytes() for dat in function.dat]
