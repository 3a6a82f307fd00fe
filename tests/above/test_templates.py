"""Restored Functions are what their constructors, which did not make them, would have made."""

import gc
import os
import weakref

import firedrake as fd
import numpy as np
import pytest
from mpi4py import MPI
from spaces import SPACES, filled, triangles
from ufl.algorithms import replace

from localckpt import templates
from localckpt.functions import FunctionStore
from localckpt.store import MAP_FROM, Store
from localckpt.templates import Template

# What the constructor makes of these has other parts.
OTHERS = [name for name in SPACES if any(word in name for word in ("mixed", "dual", "meshes", "submesh and"))]
OTHERS += ["Real", "vector Real"]
SINGLE = [name for name in SPACES if name not in OTHERS]


@pytest.fixture
def functions(shared_tmp):
    return FunctionStore(Store(MPI.COMM_SELF, str(shared_tmp / f"{MPI.COMM_WORLD.rank}.h5")))


def attributes(f):
    """All that f is made of, by name; of what is its own, what kind of thing it is."""
    return [
        {name: type(value) if name in own else value for name, value in vars(link).items()}
        for link, own in zip(templates.chain(f), templates.OWN)
    ] + [hash(f), repr(f)]


def useful(saved):
    return Template.of(saved.function_space, saved.load().dat._data).useful


@pytest.mark.parallel([1, 3])
@pytest.mark.parametrize("space", SINGLE)
def test_restored_function_has_what_the_constructor_gives_it(space, functions):
    V = SPACES[space]()
    made = fd.Function(V)
    made.dat.data_with_halos  # noqa: B018  (allocates)
    made = fd.Function(V, made.dat._data.copy(), name="u", count=made.count())
    assert attributes(functions.save(made).load()) == attributes(made)


@pytest.mark.parametrize("space", SINGLE)
def test_constructor_is_not_called(space, functions, monkeypatch):
    saved = functions.save(filled(SPACES[space]()))
    saved.load()
    monkeypatch.delattr(fd.Function, "__init__")
    assert saved.load().function_space() == SPACES[space]()


@pytest.mark.parametrize("space", OTHERS)
def test_constructor_is_called_for_all_else(space, functions, monkeypatch):
    monkeypatch.setattr(Template, "function", lambda *args: pytest.fail("made by a template"))
    f = filled(SPACES[space]())
    assert repr(functions.save(f).load()) == repr(f)


def different(made, *_, init=fd.Function.__init__, **kwargs):
    init(made, *_, **kwargs)
    made.of_its_own = object()


def test_constructor_is_called_where_functions_have_something_unknown(functions, monkeypatch):
    monkeypatch.setattr(fd.Function, "__init__", different)
    saved = functions.save(filled(fd.FunctionSpace(triangles(), "CG", 3)))
    assert saved.load().of_its_own is not saved.load().of_its_own


def test_constructor_is_called_where_something_known_is_gone(functions, monkeypatch):
    monkeypatch.setattr(templates, "OWN", [own | {"_what_was"} for own in templates.OWN])
    assert not useful(functions.save(fd.Function(fd.FunctionSpace(triangles(), "CG", 3))))


def test_constructor_is_called_where_a_function_cannot_be_made_otherwise(functions, monkeypatch):
    monkeypatch.delattr(templates.utils, "_new_uid")
    assert not useful(functions.save(fd.Function(fd.FunctionSpace(triangles(), "CG", 3))))


class Mine(fd.Function):
    """Somebody's own."""


def test_class_of_a_users_own_comes_back(functions):
    assert type(functions.save(Mine(SPACES["CG1"]())).load()) is Mine


def test_restored_function_is_the_saved_one_to_ufl(functions):
    f = filled(SPACES["CG1"]())
    g = functions.save(f).load()
    assert (g, hash(g), repr(g)) == (f, hash(f), repr(f))


def test_functions_of_other_counts_are_others_to_ufl(functions):
    f, g = (functions.save(filled(SPACES["CG1"]())).load() for _ in range(2))
    assert replace(f * fd.dx, {f: g}) == g * fd.dx != f * fd.dx


def test_restored_functions_have_topological_functions_of_their_own(functions):
    saved = functions.save(filled(SPACES["CG1"]()))
    f, g = saved.load().topological, saved.load().topological
    assert f != g and f.uid != g.uid


def test_restored_functions_have_block_variables_of_their_own(functions):
    saved = functions.save(filled(SPACES["CG1"]()))
    f, g = saved.load(), saved.load()
    assert f.block_variable.output is f and g.block_variable.output is g


def test_restored_functions_have_names_of_their_own(functions):
    f, g = (functions.save(filled(SPACES["CG1"](), name=name)).load() for name in "fg")
    assert [(h.name(), h.dat.name) for h in (f, g)] == [("f", "f"), ("g", "g")]


def test_a_function_without_a_name_gets_one(functions):
    f = filled(SPACES["CG1"]())
    f.rename("")
    assert functions.save(f).load().name()


@pytest.mark.parallel([1, 3])
def test_restored_function_can_be_assembled_and_derived(functions):
    f = filled(SPACES["vector CG2"]())
    g = functions.save(f).load()
    ours, theirs = (fd.assemble(fd.derivative(fd.inner(h, h) ** 2 * fd.dx, h)) for h in (g, f))
    assert np.array_equal(ours.dat.data_ro, theirs.dat.data_ro)


def test_restored_functions_keep_no_space_alive(functions):
    V = fd.FunctionSpace(triangles(), "CG", 4)
    functions.save(fd.Function(V)).load()
    alive = weakref.ref(V)
    del V
    gc.collect()
    assert alive() is None


def test_nothing_keeps_a_restored_array(functions):
    V = fd.FunctionSpace(triangles(), "CG", 3)
    alive = weakref.ref(functions.save(fd.Function(V)).load().dat._data)
    gc.collect()
    assert alive() is None


def test_file_goes_with_its_last_function_while_the_space_lives(functions):
    V = fd.VectorFunctionSpace(
        fd.UnitIntervalMesh(100), "DG", 1, dim=MAP_FROM // 8 // 200 + 1
    )  # large enough to be mapped
    functions.save(fd.Function(V)).load()
    descriptor = functions.store._engine.file.descriptor.fileno()
    functions.store.retire()
    gc.collect()
    with pytest.raises(OSError):
        os.fstat(descriptor)


def test_integers_restored_first_do_not_spoil_what_follows(functions):
    V = fd.FunctionSpace(triangles(), "CG", 3)
    functions.save(fd.Function(V, dtype=np.int32)).load()
    assert useful(functions.save(fd.Function(V)))
