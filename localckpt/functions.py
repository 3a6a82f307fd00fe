"""Firedrake Functions and Cofunctions as arrays with names.

Everything here reads and writes a dat's own arrays and never its Vec: a Vec's set-up is
collective on the mesh's communicator, a mixed one's is a copy, and a restricted
space's leaves out dofs.
"""

import weakref
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
from firedrake import Function
from firedrake.utils import ScalarType
from mpi4py import MPI
from pyop2 import op2

from localckpt._vecfile import VecFile

__all__ = ["FunctionStore", "SavedFunction", "TemporaryFunctionCheckpointFile"]


def component_names(V):
    """A name for each component of V, made of its mesh and its element."""
    return [f"{Vi.mesh().unique().name}_{Vi.ufl_element().shortstr()}" for Vi in V]


def owned_arrays(function):
    """The array of each component that holds this rank's dofs. Not collective, not a copy.

    A Real space has a full copy on every rank.
    """
    return [dat.data_ro for dat in function.dat]


def new_function(V, cls, fill, dtype, **kwargs):
    """A Function on V whose component i is filled by ``fill(i, owned part)``. Not collective."""
    arrays = []
    for i, Vi in enumerate(V):
        if Vi.ufl_element().family() == "Real":
            owned = array = np.empty(Vi.block_size, dtype=dtype)
        else:
            dofs = Vi.dof_dset
            array = np.empty((dofs.total_size, *dofs.dim) if dofs.cdim > 1 else dofs.total_size, dtype=dtype)
            owned = array[:dofs.size]
            array[dofs.size:] = 0
        fill(i, owned)
        arrays.append(array)
    f = cls(V, val=arrays if len(V) > 1 else arrays[0], dtype=dtype, **kwargs)
    for dat in f.dat:
        if isinstance(dat, op2.Dat):
            dat.halo_valid = False  # on every rank alike, or the next exchange hangs
    return f


@dataclass(frozen=True)
class SavedFunction:
    """A stored Function: all that it takes to make it again, and its arrays' tokens."""

    tokens: tuple
    function_space: Any
    cls: type
    name: str
    count: int
    dtype: np.dtype

    def load(self):
        """A new Function with the values, name and count of the saved one.

        Collective on the store's communicator.
        """
        return new_function(self.function_space, self.cls, lambda i, array: self.tokens[i].get(array),
                            self.dtype, name=self.name, count=self.count)


class FunctionStore:
    """Functions in a :class:`~localckpt.store.Store`.

    Parameters
    ----------
    store : localckpt.store.Store
    """

    def __init__(self, store):
        self.store = store
        # The keys of a space, held by its mesh: they go when the mesh goes.
        self._keys = weakref.WeakKeyDictionary()
        self._taken = defaultdict(int)

    def save(self, function):
        """Store a Function or Cofunction. Collective on the store's communicator.

        Returns
        -------
        SavedFunction

        Raises
        ------
        StorageError
            On every rank of the store's communicator.
        ValueError
            If the store's communicator has ranks that the mesh's lacks.
        """
        V = function.function_space()
        dtype = function.dat.dtype
        tokens = tuple(self.store.put(key, array)
                       for key, array in zip(self.keys(V, dtype), owned_arrays(function)))
        return SavedFunction(tokens, V, type(function), function.name(), function.count(), dtype)

    def keys(self, V, dtype):
        """The keys of V's components: what two spaces would share gets a number."""
        keys = []
        for Vi, name in zip(V, component_names(V)):
            mesh = Vi.mesh().unique()
            identity = Vi.ufl_element(), Vi.boundary_set, dtype
            known = self._keys.setdefault(mesh, {})
            if identity not in known:
                check_ranks(self.store.comm, mesh.comm, "the mesh's communicator")
                self._taken[name] += 1
                known[identity] = name if self._taken[name] == 1 else f"{name}~{self._taken[name]}"
            keys.append(known[identity])
        return keys


def check_ranks(checkpoint_comm, comm, what):
    """Raise ValueError if checkpoint_comm has ranks that comm lacks. Not collective."""
    missing = MPI.Group.Difference(checkpoint_comm.group, comm.group)
    if missing.size:
        raise ValueError(f"checkpoint_comm has {missing.size} ranks that are not in {what}")


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
        for dataset, array in zip(self._datasets(function.function_space(), name, idx), owned_arrays(function)):
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
        datasets = self._datasets(function_space, name, idx)
        return new_function(function_space, Function, lambda i, array: self._file.read_array(datasets[i], array),
                            ScalarType)

    def _datasets(self, V, name, idx):
        return [f"{name}_{idx}_{component}_{i}" for i, component in enumerate(component_names(V))]

    def close(self):
        """Close the file; again is no error. Collective on the file's communicator."""
        self._file.close()

    def __enter__(self):
        return self

    def __exit__(self, *args):
        self.close()
