"""What localckpt reads and writes of a Function's Dats: owned dofs, halos, and whether halos are valid."""

import firedrake as fd
import numpy as np
import pytest
from spaces import SPACES, bits, bits_with_halos, filled, memory, triangles

from localckpt.functions import (
    ComponentLayout,
    CopiedFunction,
    component_dats,
    fingerprint,
    halo_is_valid,
    local_array,
    mark_modified,
    overwrite,
    owned_array,
    set_halo_valid,
)

KINDS = ["CG1", "vector CG2", "mixed", "mixed with Real", "mixed of one", "Real", "restricted", "dual", "extruded"]


@pytest.fixture(params=KINDS)
def f(request):
    """A Function with stale halos."""
    return filled(SPACES[request.param]())


def versions(function):
    return [dat.dat_version for dat in component_dats(function)]


def stale(function):
    """Whether each component has a halo that may be stale: a Real has none."""
    return [V.ufl_element().family() != "Real" for V in function.function_space()]


@pytest.mark.parallel([1, 3])
def test_a_function_has_a_dat_for_each_component(f):
    assert list(component_dats(f)) == list(f.dat)


@pytest.mark.parallel([1, 3])
def test_local_arrays_are_the_values_with_halos_and_no_copies(f):
    bits_with_halos(f)  # which exchanges them
    for dat in component_dats(f):
        assert np.shares_memory(local_array(dat), dat.data_ro_with_halos)
        assert local_array(dat).shape == dat.data_ro_with_halos.shape


@pytest.mark.parallel([1, 3])
def test_reading_arrays_exchanges_no_halo(f):
    before = memory(f)
    for dat in component_dats(f):
        local_array(dat), owned_array(dat)
    assert [halo_is_valid(dat) for dat in component_dats(f)] == [not may_be for may_be in stale(f)]
    assert memory(f) == before


@pytest.mark.parallel([1, 3])
def test_owned_values_come_first(f):
    for dat, V in zip(component_dats(f), f.function_space()):
        size = ComponentLayout(V).owned_size
        assert np.array_equal(owned_array(dat), local_array(dat)[:size])


@pytest.mark.parallel([1, 3])
def test_owned_arrays_are_read_only(f):
    for dat in component_dats(f):
        with pytest.raises(ValueError, match="read-only"):
            owned_array(dat)[...] = 0


@pytest.mark.parallel([1, 3])
def test_a_layout_has_the_shape_of_the_array(f):
    for dat, V in zip(component_dats(f), f.function_space()):
        assert ComponentLayout(V).shape == local_array(dat).shape


@pytest.mark.parallel([1, 3])
def test_a_halo_is_exchanged_only_where_it_is_said_to_be_invalid(f):
    expected = bits_with_halos(f)
    for dat in component_dats(f):
        size = len(owned_array(dat))
        local_array(dat)[size:] = 7
        set_halo_valid(dat, True)
    wrong = [local_array(dat).tobytes() for dat in component_dats(f)]
    assert bits_with_halos(f) == wrong
    for dat in component_dats(f):
        set_halo_valid(dat, False)
    assert bits_with_halos(f) == expected


@pytest.mark.parallel([1, 3])
@pytest.mark.parametrize("valid", [True, False])
def test_overwriting_replaces_values_halos_and_their_state_and_is_a_modification(f, valid):
    before = versions(f)
    for dat in component_dats(f):
        overwrite(dat, np.full_like(local_array(dat), 3), valid)
    assert all((local_array(dat) == 3).all() for dat in component_dats(f))
    assert [halo_is_valid(dat) for dat in component_dats(f)] == [valid or not may_be for may_be in stale(f)]
    assert all(after > earlier for after, earlier in zip(versions(f), before))


@pytest.mark.parallel([1, 3])
def test_marking_as_modified_raises_the_version_and_leaves_the_values(f):
    values, before = bits(f), versions(f)
    mark_modified(f)
    assert bits(f) == values and all(after > earlier for after, earlier in zip(versions(f), before))


@pytest.mark.parallel([1, 3])
def test_a_fingerprint_is_that_of_a_copy(f):
    copy = fd.Function(f.function_space())
    CopiedFunction(f).load_into(copy)
    assert fingerprint(copy) == fingerprint(f)


@pytest.mark.parallel([1, 3])
def test_a_fingerprint_changes_with_an_owned_value(f):
    before = fingerprint(f)
    f.dat[0].data[...] += 1
    if owned_array(component_dats(f)[0]).size:
        assert fingerprint(f) != before


@pytest.mark.parallel([1, 3])
def test_a_fingerprint_changes_with_the_halo_only_while_that_is_valid():
    f = fd.Function(fd.FunctionSpace(triangles(), "CG", 1))
    (dat,) = component_dats(f)
    if len(local_array(dat)) == len(owned_array(dat)):
        return  # one rank has no halo
    for valid in True, False:
        set_halo_valid(dat, valid)
        before = fingerprint(f)
        local_array(dat)[-1] += 1
        assert (fingerprint(f) != before) == valid


@pytest.mark.parallel([1, 3])
def test_a_copied_function_keeps_values_halos_and_their_state(f):
    values, states = memory(f), [halo_is_valid(dat) for dat in component_dats(f)]
    copied = CopiedFunction(f)
    for dat in component_dats(f):
        overwrite(dat, np.zeros_like(local_array(dat)), True)
    copied.load_into(f)
    assert memory(f) == values and [halo_is_valid(dat) for dat in component_dats(f)] == states
