"""Functions without their constructors, which take longer than reading what a Function holds.

A Function is a chain of three: the Function, its CoordinatelessFunction, a Dat.  In nearly all of their attributes
the Functions of a space are the same.
"""

from firedrake import Function, MixedElement, utils
from firedrake.function import CoordinatelessFunction
from pyop2.op2 import Dat
from ufl import Coefficient
from ufl.utils.counted import Counted

__all__ = ["Template"]

CHAIN = [Function, CoordinatelessFunction, Dat]
# The attributes that each Function has of its own.
OWN = [{"_data", "_count", "_repr", "_block_variable", "_ad_kwargs", "_ad_output_kwargs"},
       {"dat", "_count", "_repr", "_name", "uid"},
       {"_data", "_numpy_data", "_name"}]


class Template:
    """What the Functions of a space have in common, of which :meth:`function` makes more of them.

    Two specimens of the constructor's tell what that is. Where they differ in anything that is not
    known here, or there is nothing to compare (mixed and Real spaces), the template is of no use.

    Parameters
    ----------
    V : firedrake.FunctionSpace
    array : numpy.ndarray
        A Function's, halos included. Neither is kept.

    Attributes
    ----------
    useful : bool
    dtype : numpy.dtype
    """

    __slots__ = ("useful", "dtype", "common", "reprs")

    def __init__(self, V, array):
        self.dtype = array.dtype
        self.useful = False
        if type(V.ufl_element()) is MixedElement:
            return
        one, two = (Function(V, array[:], name, self.dtype, count) for count, name in enumerate("ab"))
        one, two = ([f, f.topological, f.dat] for f in (one, two))
        self.useful = ([type(link) for link in one] == CHAIN and all(map(alike, one, two, OWN)) and
                       all(link._repr.endswith(f"{link.count()})") for link in one[:2]))
        if not self.useful:
            return
        # A space would keep itself alive through what is kept as long as it lives.
        self.common = [{name: value for name, value in vars(link).items() if value is not V} for link in one]
        self.common[2].update(_data=None, _numpy_data=None)
        self.reprs = [link._repr.removesuffix(f"{link.count()})") for link in one[:2]]

    def function(self, V, array, halo, name, count):
        """What ``Function(V, array, name, dtype, count)`` would be, with a valid halo or not. Not collective."""
        f, data, dat = map(object.__new__, CHAIN)
        vars(dat).update(self.common[2], _data=array, _numpy_data=array, _name=name, halo_valid=halo)
        vars(data).update(self.common[1], dat=dat, _name=name, uid=utils._new_uid(V.comm))
        vars(f).update(self.common[0], _data=data, _function_space=V, _ufl_function_space=V.ufl_function_space(),
                       _ad_kwargs={}, _ad_output_kwargs={})
        for link, number, start in ((data, None, self.reprs[1]), (f, count, self.reprs[0])):
            Counted.__init__(link, number, Coefficient)
            link._repr = f"{start}{link._count})"
            link._hash = None
        f.clear_block_variable()
        return f


def alike(one, other, own):
    """Whether two objects have the same attributes and differ in none but their own."""
    slots = {name for cls in type(one).__mro__ for name in getattr(cls, "__slots__", ())}
    return (vars(one).keys() == vars(other).keys() >= own and slots <= {"__weakref__", "_hash"} and
            all(value is vars(other)[name] or isinstance(value, tuple) and value == vars(other)[name]
                for name, value in vars(one).items() if name not in own))
