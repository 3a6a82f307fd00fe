"""Function spaces of every kind, tiny, and Functions on them without two equal values."""

import functools

import firedrake as fd
import numpy as np
from mpi4py import MPI


@functools.cache
def triangles():
    return fd.UnitSquareMesh(4, 4, name="triangles")


@functools.cache
def squares():
    return fd.UnitSquareMesh(3, 4, quadrilateral=True, name="squares")


@functools.cache
def prisms():
    return fd.ExtrudedMesh(triangles(), 2, name="prisms")


@functools.cache
def torus():
    return fd.PeriodicUnitSquareMesh(4, 4, name="torus")


@functools.cache
def few_cells():
    """Fewer cells than ranks where there are three."""
    return fd.UnitSquareMesh(1, 1, name="few cells")


def plain(*arguments):
    return lambda: fd.FunctionSpace(triangles(), *arguments)


SPACES = {
    "CG1": plain("CG", 1),
    "DG1": plain("DG", 1),
    "Q2": lambda: fd.FunctionSpace(squares(), "Q", 2),
    "RT1": plain("RT", 1),
    "vector CG2": lambda: fd.VectorFunctionSpace(triangles(), "CG", 2),
    "tensor DG1": lambda: fd.TensorFunctionSpace(triangles(), "DG", 1),
    "mixed": lambda: plain("CG", 2)() * plain("DG", 0)(),
    "mixed of one space twice": lambda: plain("CG", 1)() * plain("CG", 1)(),
    "mixed with Real": lambda: plain("CG", 1)() * plain("R", 0)(),
    "Real": plain("R", 0),
    "vector Real": lambda: fd.VectorFunctionSpace(triangles(), "R", 0, dim=3),
    "extruded": lambda: fd.FunctionSpace(prisms(), "CG", 2),
    "periodic": lambda: fd.FunctionSpace(torus(), "CG", 1),
    "few cells": lambda: fd.FunctionSpace(few_cells(), "DG", 0),
    "restricted": lambda: fd.RestrictedFunctionSpace(plain("CG", 2)(), boundary_set=["on_boundary"]),
    "dual": lambda: plain("CG", 1)().dual(),
    "mixed dual": lambda: (plain("CG", 2)() * plain("R", 0)()).dual(),
}

# What has neighbours across ranks: an integral over the facets in between reads halos.
WITH_FACETS = ["CG1", "DG1", "Q2", "RT1", "vector CG2", "mixed", "mixed with Real", "extruded",
               "periodic", "restricted"]


def filled(V, seed=0, **kwargs):
    """A Function or Cofunction with other values in every dof and on every rank."""
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
