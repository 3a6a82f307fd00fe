"""Firedrake Functions and Cofunctions as arrays with names.

Everything here reads and writes a dat's own arrays and never its Vec: a Vec's set-up is
collective on the mesh's communicator, a mixed one's is a copy, and a restricted
space's leaves out dofs.
"""

import weakref
from collections import defaultdict
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
from firedrake import Function, MixedElement
from firedrake.utils import ScalarType
from mpi4py import MPI
from pyop2.op2 import Dat
from xxhash import xxh3_128_digest

from localckpt import _petsc  # noqa: F401  (before what would not load with another PETSc)
from localckpt._collective import interrupts_held, raise_everywhere
from localckpt._errors import LostCheckpointError, StorageError, TransferError
from localckpt._vecfile import VecFile
from localckpt.storage.nodes import check_ranks

SCALAR = np.dtype(ScalarType)

__all__ = ["FunctionStore", "SavedFunction", "TemporaryFunctionCheckpointFile", "content"]


def component_names(V):
    """A name for each component of V, made of its mesh and its element."""
    return [f"{Vi.mesh().unique().name}_{Vi.ufl_element().shortstr()}" for Vi in V]


def owned_arrays(function):
    """The array of each component that holds this rank's dofs. Not collective.

    A copy only of what ``sub`` gives of a vector. A Real space has a full copy on every rank.
    """
    return [np.ascontiguousarray(dat.data_ro) for dat in function.dat]


class ComponentLayout:
    """What a component of a space needs in memory and is called on disk."""

    __slots__ = ("key", "shape", "owned")

    def __init__(self, V, key=""):
        self.key = key
        if V.ufl_element().family() == "Real":
            self.shape = (V.block_size,)
            self.owned = V.block_size
        else:
            dofs = V.dof_dset
            self.shape = (dofs.total_size, *dofs.dim) if dofs.cdim > 1 else (dofs.total_size,)
            self.owned = dofs.size


def new_function(V, cls, arrays, halos, **kwargs):
    """A Function on V with these arrays, whose halos are valid or not. Not collective."""
    mixed = type(V.ufl_element()) is MixedElement  # of one space, perhaps
    f = cls(V, val=arrays if mixed else arrays[0], dtype=arrays[0].dtype, **kwargs)
    for dat, valid in zip(f.dat, halos):
        dat.halo_valid = valid
    return f


def overwrite(function, arrays, halos):
    """Give a Function these values, its halos valid or not. Not collective."""
    for dat, array, valid in zip(function.dat, arrays, halos):
        dat.data_wo_with_halos[...] = array
        dat.halo_valid = valid


class CopiedFunction:
    """What a Function holds, in memory. Not collective."""

    def __init__(self, function):
        self._arrays = [dat._data.copy() for dat in function.dat]
        self._halos = [dat.halo_valid for dat in function.dat]

    def load_into(self, function):
        """Give a Function of the same space these values. Not collective."""
        overwrite(function, self._arrays, self._halos)


def content(dat):
    """What a Dat holds, as something to compare: its halo counts while it is valid. Not collective."""
    halo = dat.halo_valid
    return halo, xxh3_128_digest(dat._data if halo else dat._data[: dat.dataset.size])


@dataclass(slots=True)
class SavedFunction:
    """A stored Function: all that it takes to make it again."""

    store: Any
    rows: list
    parts: list[ComponentLayout]
    halos: list[bool]
    dtype: np.dtype
    function_space: Any
    cls: type
    name: str
    count: int

    @property
    def content(self):
        """What :func:`content` says of the saved Function's first dat."""
        return self.halos[0], self.rows[0].digest

    def _arrays(self):
        return [self.store.get(row, part.shape, self.dtype) for row, part in zip(self.rows, self.parts)]

    def load_into(self, function):
        """Give a Function of the saved one's space its values.

        What cannot be read leaves it as it is. Communicates on the store's communicator, if at all.
        """
        overwrite(function, self._arrays(), self.halos)

    def load(self):
        """A new Function with the values, name and count of the saved one.

        Communicates on the store's communicator, if at all.

        Returns
        -------
        firedrake.Function or firedrake.Cofunction
        """
        return new_function(self.function_space, self.cls, self._arrays(), self.halos, name=self.name, count=self.count)


class FunctionStore:
    """Functions in a :class:`~localckpt.storage.store.Store`.

    Parameters
    ----------
    store : localckpt.storage.store.Store
    """

    def __init__(self, store):
        self.store = store
        # By the space's id, with what forgets it when the space goes: hashing a space takes longer than a save.
        self._parts: dict[int, tuple[list[ComponentLayout], weakref.ref]] = {}
        # Keys are held by their mesh: they go when the mesh goes.
        self._keys: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
        self._taken: defaultdict[str, int] = defaultdict(int)

    def save(self, function):
        """Store a Function or Cofunction, with each component's halo if it is valid.

        Communicates on the store's communicator, if at all.

        Returns
        -------
        SavedFunction

        Raises
        ------
        LostCheckpointError
            If there is no place left for it, and at every use of the store from then on.
        ValueError
            If the store's communicator has ranks that the mesh's lacks.
        """
        V = function.function_space()
        parts, _ = self._parts.get(id(V)) or self._learn(V)
        inner = getattr(function, "topological", function)  # what a Function looks up slowly
        dat = inner.dat
        dtype = dat.dtype
        rows, halos, lost = [], [], None
        with interrupts_held():
            for part, d in zip(parts, [dat] if type(dat) is Dat else dat):  # which is slow to iterate over itself
                halo = d.halo_valid  # the same on every rank
                halos.append(halo)
                try:
                    # Not data_ro_with_halos, which would exchange stale halos. A stale halo is written all the same:
                    # the array can then be mapped whole.
                    rows.append(
                        self.store.put(
                            part.key if dtype == SCALAR else f"{part.key}~{dtype}",
                            d._data,
                            None if halo else part.owned,
                        )
                    )
                except Exception as exc:
                    if lost is None:  # the other components have their turn, as on the other ranks of the file
                        lost = self._lost(function, dat, exc)
        if lost is not None:
            raise lost
        return SavedFunction(self.store, rows, parts, halos, dtype, V, type(function), inner.name(), function.count())

    def _lost(self, function, dat, exc):
        """The LostCheckpointError that says why a Function could not be stored, and that the store keeps."""
        if not isinstance(exc, LostCheckpointError):
            why = (
                exc
                if isinstance(exc, StorageError)
                else TransferError(
                    str(exc) or type(exc).__name__, getattr(exc, "filename", None), errno=getattr(exc, "errno", None)
                )
            )
            exc = LostCheckpointError(
                f"rank {function.function_space().comm.rank} on {MPI.Get_processor_name()} cannot store a checkpoint "
                f"of {function.name()!r}: {why.cause}; {sum(d._data.nbytes for d in dat)} bytes wanted, "
                f"{self.store.current_file.free_bytes} free",
                why.file,
                why.dataset,
                why.rank,
                why.errno,
            )
        self.store.failure = copy(exc)  # without what its frames hold
        return copy(exc)

    def sync(self):
        """Find out whether a checkpoint was lost (:meth:`localckpt.storage.store.Store.sync`). Not collective."""
        self.store.sync()

    def _learn(self, V):
        known, number = self._parts, id(V)
        parts = [ComponentLayout(Vi, key) for Vi, key in zip(V, self.keys(V))]
        known[number] = parts, weakref.ref(V, lambda _: known.pop(number))
        return known[number]

    def keys(self, V):
        """The keys of V's components: what two spaces would share gets a number."""
        keys = []
        for Vi, name in zip(V, component_names(V)):
            mesh = Vi.mesh().unique()
            identity = Vi.ufl_element(), Vi.boundary_set
            known = self._keys.setdefault(mesh, {})
            if identity not in known:
                check_ranks(self.store.comm, mesh.comm, "the mesh's communicator")
                self._taken[name] += 1
                known[identity] = name if self._taken[name] == 1 else f"{name}~{self._taken[name]}"
            keys.append(known[identity])
        return keys


class TemporaryFunctionCheckpointFile:
    """An HDF5 file for saving and loading Function data on any communicator.

    It holds the owned values of Functions and nothing else: no mesh, no partition. What is
    loaded was saved in the same run, on the same communicator, from a space on the same
    mesh. One file and one mode for each object. Follows
    ``firedrake.checkpointing.TemporaryFunctionCheckpointFile``.

    Parameters
    ----------
    comm : mpi4py.MPI.Intracomm
        All that this object does is collective on it and on no other communicator.
    filepath : str
        The file.
    mode : {"r", "w", "a"}
        Read; create or truncate; append.

    Raises
    ------
    StorageError
        On every rank of `comm`.
    """

    def __init__(self, comm, filepath, mode):
        self.comm = comm
        self.filepath = filepath
        self._file = VecFile(comm, filepath, mode)

    def save_function(self, function, name=None, idx=None):
        """Save a Function's values. Collective on the file's communicator.

        Parameters
        ----------
        function : firedrake.Function or firedrake.Cofunction
        name : str
            With `idx`, and the function's mesh and element, the dataset's name.
        idx : int
        """
        error = None
        try:
            datasets, arrays = self._datasets(function.function_space(), name, idx), owned_arrays(function)
        except Exception as exc:
            error = exc
        raise_everywhere(self.comm, error)
        for dataset, array in zip(datasets, arrays):
            self._file.write_array(dataset, array)

    def load_function(self, function_space, name, idx=None):
        """Load a Function. Collective on the file's communicator.

        Its halos are updated when they are next needed.

        Parameters
        ----------
        function_space : firedrake.FunctionSpace
            The space of the Function that was saved.
        name : str
        idx : int

        Returns
        -------
        firedrake.Function or firedrake.Cofunction
        """
        error = None
        try:
            datasets, parts = self._datasets(function_space, name, idx), [ComponentLayout(Vi) for Vi in function_space]
            arrays = [np.zeros(part.shape, SCALAR) for part in parts]
        except Exception as exc:
            error = exc
        raise_everywhere(self.comm, error)
        for dataset, array, part in zip(datasets, arrays, parts):
            self._file.read_array(dataset, array[: part.owned])
        return new_function(function_space, Function, arrays, [False] * len(arrays))

    def _datasets(self, V, name, idx):
        return [f"{name}_{idx}_{component}_{i}" for i, component in enumerate(component_names(V))]

    def close(self):
        """Close the file; again is no error. Collective on the file's communicator."""
        self._file.close()

    def __enter__(self):
        return self

    def __exit__(self, *args):
        self.close()
