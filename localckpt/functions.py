"""Firedrake Functions and Cofunctions as named arrays.

This module reads and writes the array of a Function's Dat itself and never its Vec: setting up a Vec is
collective on the mesh's communicator, the Vec of a mixed Function is a copy, and the Vec of a Function in a
restricted space lacks the constrained dofs.
"""

import weakref
from collections import defaultdict
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from firedrake import Cofunction, Function, MixedElement
from firedrake.utils import ScalarType
from mpi4py import MPI
from numpy.typing import NDArray
from pyop2.op2 import Dat
from xxhash import xxh3_128, xxh3_128_digest

from localckpt import _petsc  # noqa: F401  (before what would not load with another PETSc)
from localckpt._collective import interrupts_held, raise_everywhere
from localckpt._errors import LostCheckpointError, StorageError, TransferError
from localckpt._vecfile import VecFile
from localckpt.storage.nodes import check_ranks
from localckpt.storage.store import Store, Stored

if TYPE_CHECKING:
    from firedrake.functionspaceimpl import WithGeometryBase as FunctionSpace

SCALAR = np.dtype(ScalarType)

__all__ = [
    "CopiedFunction",
    "FunctionStore",
    "SavedFunction",
    "TemporaryFunctionCheckpointFile",
    "fingerprint",
    "mark_modified",
    "numbering_digest",
]


# Dats: how Firedrake keeps the values of Functions. Only what is between here and component_names knows it, so that a
# Firedrake that keeps them otherwise needs changes here and nowhere else. Nothing of this is collective or exchanges
# a halo.


def component_dats(function: Function | Cofunction) -> Sequence[Any]:
    """The Dat of each component of a Function; a single one where the space is not mixed."""
    dat = getattr(function, "topological", function).dat  # a Function itself takes longer to look it up
    return (dat,) if type(dat) is Dat else tuple(dat)


def local_array(dat: Any) -> NDArray[Any]:
    """All values on this rank, not copied: those of the owned dofs, then those of the halo, valid or not."""
    return dat._data


def owned_array(dat: Any) -> NDArray[Any]:
    """The values of the dofs that this rank owns, read-only and not copied. A rank owns all of a Real."""
    return dat.data_ro


def halo_is_valid(dat: Any) -> bool:
    """Whether the values of the halo are those of the ranks that own them. The same on every rank."""
    return dat.halo_valid


def set_halo_valid(dat: Any, valid: bool) -> None:
    """Say whether the values of the halo are up to date: Firedrake exchanges those that are not before it uses them."""
    dat.halo_valid = valid


def overwrite(dat: Any, array: NDArray[Any], halo_valid: bool) -> None:
    """Replace all values on this rank, those of the halo included."""
    dat.data_wo_with_halos[...] = array
    dat.halo_valid = halo_valid


def mark_modified(function: Function | Cofunction) -> None:
    """Tell Firedrake that the values of a Function may have changed, as writing them would."""
    for dat in component_dats(function):
        dat.increment_dat_version()


def numbering_digest(function: Any) -> bytes:
    """A hash of how the dofs of a Function's space are numbered and distributed, on this rank. Not collective.

    Empty for what is no Function.
    """
    if not hasattr(function, "function_space"):
        return b""
    digest = xxh3_128()
    for V in function.function_space():
        if V.ufl_element().family() != "Real":
            digest.update(np.ascontiguousarray(V.cell_node_list).data)
            digest.update(np.ascontiguousarray(V.dof_dset.lgmap.indices).data)
    return digest.digest()


class ComponentLayout:
    """The array that a component of a function space needs on this rank, and the key that it is stored under."""

    __slots__ = ("key", "shape", "owned_size", "is_real")

    def __init__(self, V: "FunctionSpace", key: str = "") -> None:
        self.key = key
        self.shape: tuple[int, ...]
        self.owned_size: int
        self.is_real = V.ufl_element().family() == "Real"
        if self.is_real:  # every rank has all of it
            self.shape = (V.block_size,)
            self.owned_size = V.block_size
        else:
            dofs = V.dof_dset
            self.shape = (dofs.total_size, *dofs.dim) if dofs.cdim > 1 else (dofs.total_size,)
            self.owned_size = dofs.size


def component_names(V: "FunctionSpace") -> list[str]:
    """A name for each component of V, made of the names of its mesh and its element."""
    return [f"{Vi.mesh().unique().name}_{Vi.ufl_element().shortstr()}" for Vi in V]


def new_function(
    V: "FunctionSpace", cls: type, arrays: list[NDArray[Any]], halos_valid: list[bool], **kwargs: Any
) -> Function | Cofunction:
    """A Function on V that uses these arrays, one for each component, without copying them. Not collective.

    Parameters
    ----------
    V : firedrake.FunctionSpace
    cls : type
        ``Function`` or ``Cofunction``.
    arrays : list of numpy.ndarray
    halos_valid : list of bool
        For each component, whether the halo in its array is up to date.
    **kwargs
        For the constructor of `cls`: ``name``, ``count``.
    """
    mixed = type(V.ufl_element()) is MixedElement  # a mixed space may have one component
    function = cls(V, val=arrays if mixed else arrays[0], dtype=arrays[0].dtype, **kwargs)
    for dat, valid in zip(component_dats(function), halos_valid):
        set_halo_valid(dat, valid)
    return function


Fingerprint = list[tuple[bool, bytes]]


def fingerprint(function: Function | Cofunction) -> Fingerprint:
    """A value that two Functions of one space share if and only if they hold the same on this rank. Not collective.

    For each component: whether its halo is valid, and a hash of its values, with those of the halo if that is valid.
    """
    found = []
    for dat in component_dats(function):
        valid = halo_is_valid(dat)
        values: Any = np.ascontiguousarray(local_array(dat) if valid else owned_array(dat))
        found.append((valid, xxh3_128_digest(values)))
    return found


class CopiedFunction:
    """A copy in memory of the values of a Function. Making one is not collective."""

    def __init__(self, function: Function | Cofunction) -> None:
        dats = component_dats(function)
        self._arrays = [local_array(dat).copy() for dat in dats]
        self._halos_valid = [halo_is_valid(dat) for dat in dats]

    def load_into(self, function: Function | Cofunction) -> None:
        """Give a Function of the same space the copied values. Not collective."""
        for dat, array, valid in zip(component_dats(function), self._arrays, self._halos_valid):
            overwrite(dat, array, valid)


@dataclass(slots=True)
class SavedFunction:
    """A Function in a store, with all that it takes to make it again.

    Its values stay on disk as long as this object lives.

    Attributes
    ----------
    store : localckpt.storage.store.Store
    stored : list of localckpt.storage.store.Stored
        The array of each component.
    layouts : list of ComponentLayout
    halos_valid : list of bool
        For each component, whether its halo was valid, and so was stored.
    dtype : numpy.dtype
    function_space : firedrake.FunctionSpace
    cls : type
        ``Function`` or ``Cofunction``.
    name : str
    count : int
    """

    store: Store
    stored: list[Stored]
    layouts: list[ComponentLayout]
    halos_valid: list[bool]
    dtype: np.dtype[Any]
    function_space: "FunctionSpace"
    cls: type
    name: str
    count: int

    @property
    def fingerprint(self) -> Fingerprint:
        """The :func:`fingerprint` of the Function that was saved, if that was not rounded."""
        return [(valid, stored.digest) for valid, stored in zip(self.halos_valid, self.stored)]

    def _read_arrays(self) -> list[NDArray[Any]]:
        return [self.store.get(stored, layout.shape, self.dtype) for stored, layout in zip(self.stored, self.layouts)]

    def load_into(self, function: Function | Cofunction) -> None:
        """Give a Function of the same space the saved values.

        If they cannot be read, the Function is left as it is. Collective on the store's communicator if reading
        from the store is, and not collective otherwise.
        """
        arrays = self._read_arrays()
        for dat, array, valid in zip(component_dats(function), arrays, self.halos_valid):
            overwrite(dat, array, valid)

    def load(self) -> Function | Cofunction:
        """A new Function with the values, name and count of the saved one.

        Collective on the store's communicator if reading from the store is, and not collective otherwise.
        """
        return new_function(
            self.function_space, self.cls, self._read_arrays(), self.halos_valid, name=self.name, count=self.count
        )


class FunctionStore:
    """Saves Functions in a :class:`~localckpt.storage.store.Store`.

    Parameters
    ----------
    store : localckpt.storage.store.Store
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        # The layouts of a space's components. The dictionary's key is the id of the space, because hashing a space
        # takes longer than a save; the weak reference removes the entry when the space goes.
        self._layouts: dict[int, tuple[list[ComponentLayout], weakref.ref[Any]]] = {}
        # For each mesh, the key of each element and boundary set. They go when the mesh goes.
        self._keys: weakref.WeakKeyDictionary[Any, dict[Any, str]] = weakref.WeakKeyDictionary()
        self._keys_made: defaultdict[str, int] = defaultdict(int)  # from each name

    def save(self, function: Function | Cofunction, *, single: bool = False) -> SavedFunction:
        """Store a Function or Cofunction, with the halo of each component if it is valid.

        Collective on the store's communicator where that has several ranks.

        Parameters
        ----------
        function : firedrake.Function or firedrake.Cofunction
        single : bool, optional
            Round all components but Reals to single precision (:meth:`localckpt.storage.store.Store.put`). A halo is
            rounded as its owners' values are.

        Raises
        ------
        LostCheckpointError
            If the function cannot be stored anywhere, and at every use of the store from then on.
        ValueError
            If the store's communicator has ranks that the mesh's lacks.
        """
        V = function.function_space()
        layouts, _ = self._layouts.get(id(V)) or self._remember_layouts(V)
        dats = component_dats(function)
        dtype = dats[0].dtype
        stored: list[Stored] = []
        halos_valid: list[bool] = []
        lost: LostCheckpointError | None = None
        with interrupts_held():
            for layout, dat in zip(layouts, dats):
                valid = halo_is_valid(dat)
                halos_valid.append(valid)
                try:
                    # An invalid halo is neither exchanged nor left out: with it, the array can be mapped whole.
                    stored.append(
                        self.store.put(
                            layout.key if dtype == SCALAR else f"{layout.key}~{dtype}",
                            local_array(dat),
                            None if valid else layout.owned_size,
                            single=single and not layout.is_real,
                        )
                    )
                except Exception as exc:
                    if lost is None:  # the other components have their turn, as on the other ranks of the file
                        lost = self._fail(function, exc)
        if lost is not None:
            raise lost
        name = getattr(function, "topological", function).name()  # a Function itself takes longer to look it up
        return SavedFunction(self.store, stored, layouts, halos_valid, dtype, V, type(function), name, function.count())

    def _fail(self, function: Function | Cofunction, error: Exception) -> LostCheckpointError:
        """The LostCheckpointError to raise because a Function could not be stored. The store keeps it, too."""
        if isinstance(error, LostCheckpointError):
            lost = error
        else:
            reason = error if isinstance(error, StorageError) else as_transfer_error(error)
            nbytes = sum(local_array(dat).nbytes for dat in component_dats(function))
            lost = LostCheckpointError(
                f"rank {function.function_space().comm.rank} on {MPI.Get_processor_name()} cannot store a checkpoint "
                f"of {function.name()!r}: {reason.cause}; {nbytes} bytes wanted, "
                f"{self.store.current_file.free_bytes} free",
                reason.file,
                reason.dataset,
                reason.rank,
                reason.errno,
            )
        self.store.failure = copy(lost)  # a copy has no traceback, which would keep the frames and all that they hold
        return copy(lost)

    def sync(self) -> None:
        """Find out whether a checkpoint was lost (:meth:`localckpt.storage.store.Store.sync`). Not collective."""
        self.store.sync()

    def _remember_layouts(self, V: "FunctionSpace") -> tuple[list[ComponentLayout], "weakref.ref[Any]"]:
        known, number = self._layouts, id(V)
        layouts = [ComponentLayout(Vi, key) for Vi, key in zip(V, self._component_keys(V))]
        known[number] = layouts, weakref.ref(V, lambda _: known.pop(number))
        return known[number]

    def _component_keys(self, V: "FunctionSpace") -> list[str]:
        """The key of each component of V: its name, with a number if another space has that name."""
        keys = []
        for Vi, name in zip(V, component_names(V)):
            mesh = Vi.mesh().unique()
            identity = Vi.ufl_element(), Vi.boundary_set
            keys_on_mesh = self._keys.setdefault(mesh, {})
            if identity not in keys_on_mesh:
                check_ranks(self.store.comm, mesh.comm, "the mesh's communicator")
                self._keys_made[name] += 1
                made = self._keys_made[name]
                keys_on_mesh[identity] = name if made == 1 else f"{name}~{made}"
            keys.append(keys_on_mesh[identity])
        return keys


def as_transfer_error(error: Exception) -> TransferError:
    """An error that is none of localckpt's as one of them."""
    return TransferError(
        str(error) or type(error).__name__, getattr(error, "filename", None), errno=getattr(error, "errno", None)
    )


class TemporaryFunctionCheckpointFile:
    """An HDF5 file for saving and loading the values of Functions on any communicator.

    The file holds the values of owned dofs and nothing else: no mesh, no partition. A Function can be loaded only
    in the run that saved it, on the same communicator and in a space on the same mesh. Each object has one file
    and one mode. The interface is that of ``firedrake.checkpointing.TemporaryFunctionCheckpointFile``.

    Parameters
    ----------
    comm : mpi4py.MPI.Intracomm
        All operations are collective on this communicator and on no other.
    filepath : str
        The path of the file.
    mode : {"r", "w", "a"}
        Read; create or truncate; append.

    Raises
    ------
    StorageError
        On every rank of `comm`.
    """

    def __init__(self, comm: MPI.Intracomm, filepath: str, mode: Literal["r", "w", "a"]) -> None:
        self.comm = comm
        self.filepath = filepath
        self._file = VecFile(comm, filepath, mode)

    def save_function(self, function: Function | Cofunction, name: str | None = None, idx: int | None = None) -> None:
        """Save the values of a Function. Collective on the file's communicator.

        Parameters
        ----------
        function : firedrake.Function or firedrake.Cofunction
        name : str
            The name of the dataset is made of this, of `idx`, and of the function's mesh and element.
        idx : int
        """
        error = None
        try:
            datasets = self._datasets(function.function_space(), name, idx)
            # Copied only if the component of a vector-valued Function was taken with sub()
            arrays = [np.ascontiguousarray(owned_array(dat)) for dat in component_dats(function)]
        except Exception as exc:
            error = exc
        raise_everywhere(self.comm, error)
        for dataset, array in zip(datasets, arrays):
            self._file.write_array(dataset, array)

    def load_function(
        self, function_space: "FunctionSpace", name: str, idx: int | None = None
    ) -> Function | Cofunction:
        """Load a Function. Collective on the file's communicator.

        Its halos are exchanged when they are next needed.

        Parameters
        ----------
        function_space : firedrake.FunctionSpace
            The space of the Function that was saved.
        name : str
        idx : int
        """
        error = None
        try:
            datasets = self._datasets(function_space, name, idx)
            layouts = [ComponentLayout(Vi) for Vi in function_space]
            arrays = [np.zeros(layout.shape, SCALAR) for layout in layouts]
        except Exception as exc:
            error = exc
        raise_everywhere(self.comm, error)
        for dataset, array, layout in zip(datasets, arrays, layouts):
            self._file.read_array(dataset, array[: layout.owned_size])
        return new_function(function_space, Function, arrays, [False] * len(arrays))

    def _datasets(self, V: "FunctionSpace", name: str | None, idx: int | None) -> list[str]:
        return [f"{name}_{idx}_{component}_{i}" for i, component in enumerate(component_names(V))]

    def close(self) -> None:
        """Close the file; closing it again does nothing. Collective on the file's communicator."""
        self._file.close()

    def __enter__(self) -> "TemporaryFunctionCheckpointFile":
        return self

    def __exit__(self, *args: Any) -> None:
        self.close()
