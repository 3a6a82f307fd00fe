"""Functions without their constructors, which take longer than reading what a Function holds.

A Function is a chain of three: the Function, its CoordinatelessFunction, a Dat.  In nearly all of their attributes
the Functions of a space are the same.
"""

from firedrake import Function, MixedElement, utils
from pyop2.op2 import Dat
from ufl import Coefficient

__all__ = ["Template"]

# The attributes that each Function has of its own.
OWN = [
    {"_data", "_count", "_repr", "_block_variable", "_ad_kwargs", "_ad_output_kwargs"},
    {"dat", "_count", "_repr", "_name", "uid"},
    {"_data", "_numpy_data", "_name"},
]


class Template:
    """What the Functions of a space have in common, of which :meth:`function` makes more of them.

    Two specimens of the constructor's tell what that is. Where they differ in anything that is not
    known here, or there is nothing to compare (mixed and Real spaces), the template is of no use.

    Parameters
    ----------
    V : firedrake.FunctionSpace
    array : numpy.ndarray
        To try it with: a Function's, halos included, of Firedrake's ``ScalarType``. Not kept.

    Attributes
    ----------
    useful : bool
    """

    __slots__ = ("useful", "classes", "common", "reprs")

    def __init__(self, V, array):
        self.useful = False
        if type(V.ufl_element()) is MixedElement:
            return
        try:
            self.useful = self._learn(V, array)
        except (AttributeError, TypeError):  # another Firedrake
            pass

    def _learn(self, V, array):
        one, two = (chain(Function(V, array[:], name, count=count)) for count, name in enumerate("ab"))
        self.classes = [type(link) for link in one]
        if self.classes[::2] != [Function, Dat] or not all(map(alike, one, two, OWN)):
            return False
        self.common = [
            {name: value for name, value in vars(link).items() if name not in own} for link, own in zip(one, OWN)
        ]
        self.reprs = [link._repr.removesuffix(f"{link.count()})") for link in one[:2]]
        made = chain(self.function(V, array[:], True, "a", 0))
        return all(map(alike, made, one, OWN)) and repr(made[0]) == repr(one[0])

    @classmethod
    def of(cls, V, array):
        """The template of V, which keeps it: anywhere else it would keep V alive, or V's mesh. Not collective."""
        found = vars(V).get("_localckpt_template")
        if found is None:
            found = V._localckpt_template = cls(V, array)
        return found

    def function(self, V, array, halo, name, count):
        """What ``Function(V, array, name, count=count)`` would be, with a valid halo or not. Not collective."""
        f, data, dat = map(object.__new__, self.classes)
        vars(dat).update(self.common[2], _data=array, _numpy_data=array, _name=name, halo_valid=halo)
        vars(data).update(self.common[1], dat=dat, _name=name, uid=utils._new_uid(V.comm))
        vars(f).update(self.common[0], _data=data, _ad_kwargs={}, _ad_output_kwargs={})
        counts = next(Coefficient._counter), count  # type: ignore[call-overload]
        for link, number, start in zip((data, f), counts, self.reprs[::-1]):
            link._count = number
            link._repr = f"{start}{number})"
            link._hash = None
        f.clear_block_variable()
        return f


def chain(function):
    """What a Function consists of."""
    return [function, function.topological, function.dat]


def alike(one, other, own):
    """Whether two objects have the same attributes and differ in none but their own."""
    slots = {name for cls in type(one).__mro__ for name in getattr(cls, "__slots__", ())}
    return (
        vars(one).keys() == vars(other).keys() >= own
        and slots <= {"__weakref__", "_hash"}
        and all(
            type(value) is type(vars(other)[name])
            if name in own
            else value is vars(other)[name] or isinstance(value, tuple) and value == vars(other)[name]
            for name, value in vars(one).items()
        )
    )
