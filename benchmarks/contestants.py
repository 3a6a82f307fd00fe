"""Ways to keep a Function's numbers and to get them back.

Every contestant has the same two calls: `save()` returns a token for what its Function holds now,
whose space may be used again when nobody holds it any more; `restore(token)` returns an array.
All but the tape's ways know nothing of Functions: what they take is a limit for the others.
"""

import os
from contextlib import suppress

import firedrake.adjoint as adjoint
import h5py
import numpy as np
from firedrake import Function, UnitIntervalMesh, VectorFunctionSpace
from firedrake.adjoint_utils.checkpointing import CheckpointFunction
from mpi4py import MPI
from petsc4py import PETSc
from problems import new_tape
from xxhash import xxh3_128_digest

WORLD = MPI.COMM_WORLD


def make_function(dofs, mesh=None):
    """A Function with so many dofs on each rank; one number of it is enough to make it another."""
    mesh = mesh or UnitIntervalMesh(max(1, dofs * WORLD.size // 20), name=f"interval {dofs}")
    f = Function(VectorFunctionSpace(mesh, "DG", 1, dim=10))  # mesh and space are small beside the numbers
    f.dat.data[:] = np.random.default_rng(WORLD.rank).random(f.dat.data_ro.shape)
    return f


class Contestant:
    """A way to keep `function` in files on `comm` in `folder`. Collective on COMM_WORLD to make and to close."""

    def __init__(self, function, comm, folder):
        self.function, self.comm, self.folder = function, comm, folder
        self.data = function.dat._data[: function.dat.dataset.size].reshape(-1)
        self.start = comm.exscan(self.data.size) or 0
        self.size = comm.allreduce(self.data.size)
        self.path = os.path.join(folder, f"{type(self).__name__}-{comm.bcast(WORLD.rank)}")
        self.unused = []
        self.slots = 0

    def slot(self):
        """A number whose space nobody needs."""
        if not self.unused:
            self.unused.append(self.slots)
            self.slots += 1
        return Slot(self.unused.pop(), self.unused)

    def reset(self):
        """An evaluation begins."""

    def ready(self):
        """Before its turn."""

    def rest(self):
        """After its turn."""

    def close(self):
        """When all is done."""


class Slot:
    """A token that gives its number back."""

    __slots__ = ("number", "unused")

    def __init__(self, number, unused):
        self.number, self.unused = number, unused

    def __del__(self):
        self.unused.append(self.number)


class Tape(Contestant):
    """As the tape does it: what enable_disk_checkpointing was given is in `kind`."""

    def __init__(self, function, comm, folder, kind):
        self.tape = new_tape(kind, folder, comm)
        if kind == "shared":  # Firedrake's CheckpointFile wants a mesh that it has read itself
            function = make_function(function.dat.data_ro.size, adjoint.checkpointable_mesh(function.ufl_domain()))
        adjoint.pause_annotation()
        super().__init__(function, comm, folder)
        self.checkpointer = self.tape._package_data["firedrake"]

    def reset(self):
        self.checkpointer.reset()  # Firedrake's goes on in a new file

    def ready(self):
        adjoint.set_working_tape(self.tape)
        self.checkpointer.continue_checkpointing()

    def rest(self):
        self.checkpointer.pause_checkpointing()

    def save(self):
        return CheckpointFunction(self.function)

    def restore(self, token):
        return token.restore().dat._data


class HeldViewer(Contestant):
    """petsc4py, one HDF5 viewer for all, a dataset for each slot."""

    def __init__(self, *args):
        super().__init__(*args)
        self.viewer = PETSc.ViewerHDF5().create(self.path, "w", self.comm)
        self.vec = PETSc.Vec().createWithArray(self.data, size=(self.data.size, None), comm=self.comm)

    def save(self):
        slot = self.slot()
        self.vec.setName(str(slot.number))
        self.vec.view(self.viewer)
        return slot

    def restore(self, slot):
        vec = PETSc.Vec().createMPI((self.data.size, None), comm=self.comm)
        vec.setName(str(slot.number))
        vec.load(self.viewer)
        return vec.array

    def close(self):
        self.viewer.destroy()


class H5py(Contestant):
    """h5py, one file for all, a dataset for each slot; MPI-IO where ranks share it."""

    def __init__(self, *args):
        super().__init__(*args)
        self.file = h5py.File(self.path, "w", **({"driver": "mpio", "comm": self.comm} if self.comm.size > 1 else {}))
        self.mine = slice(self.start, self.start + self.data.size)

    def save(self):
        slot = self.slot()
        name = str(slot.number)
        dataset = self.file.get(name)
        if dataset is None:
            dataset = self.file.create_dataset(name, (self.size,), self.data.dtype)
        dataset[self.mine] = self.data
        return slot

    def restore(self, slot):
        return self.file[str(slot.number)][self.mine]

    def close(self):
        self.file.close()


class Binary(Contestant):
    """PETSc's binary viewer, a file for each slot, as TSTrajectory does it."""

    def __init__(self, *args):
        super().__init__(*args)
        self.vec = PETSc.Vec().createWithArray(self.data, size=(self.data.size, None), comm=self.comm)

    def viewer(self, slot, mode):
        return PETSc.Viewer().createBinary(f"{self.path}.{slot.number}", mode, self.comm)

    def save(self):
        slot = self.slot()
        viewer = self.viewer(slot, "w")
        self.vec.view(viewer)
        viewer.destroy()
        return slot

    def restore(self, slot):
        vec = PETSc.Vec().createMPI((self.data.size, None), comm=self.comm)
        viewer = self.viewer(slot, "r")
        vec.load(viewer)
        viewer.destroy()
        return vec.array


class Raw(Contestant):
    """A plain pwrite, and a pread into new memory."""

    def __init__(self, *args):
        super().__init__(*args)
        self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT)

    def save(self):
        slot = self.slot()
        os.pwrite(self.fd, self.data, (slot.number * self.size + self.start) * self.data.itemsize)
        return slot

    def restore(self, slot):
        array = np.empty_like(self.data)
        os.preadv(self.fd, [array], (slot.number * self.size + self.start) * self.data.itemsize)
        return array

    def close(self):
        os.close(self.fd)


class Hash(Contestant):
    """What it takes to see whether bytes are known, or right; nothing is kept."""

    def save(self):
        return xxh3_128_digest(self.data)

    def restore(self, token):
        xxh3_128_digest(self.data)
        return self.data


class Memory(Contestant):
    """A copy as the tape makes it where it checkpoints in memory."""

    def save(self):
        return self.function.copy(deepcopy=True)

    def restore(self, copy):
        return copy.dat._data


class Memcpy(Contestant):
    """A copy into, and out of, memory that was touched before."""

    def __init__(self, *args):
        super().__init__(*args)
        self.arrays = {}
        self.out = np.zeros_like(self.data)

    def save(self):
        slot = self.slot()
        if slot.number not in self.arrays:
            self.arrays[slot.number] = np.empty_like(self.data)
        np.copyto(self.arrays[slot.number], self.data)
        return slot

    def restore(self, slot):
        np.copyto(self.out, self.arrays[slot.number])
        return self.out


TAPES = ("localckpt", "viewer", "checkpoint_comm", "shared")
FILES = {"held viewer": HeldViewer, "h5py": H5py, "binary viewer": Binary, "pwrite": Raw}
OTHERS = {"hash": Hash, "memory": Memory, "memcpy": Memcpy}


def make(kind, function, comm, folder):
    """The contestant of that name, in a folder of its own."""
    folder = os.path.join(folder, kind.replace(" ", "_"))
    os.makedirs(folder, exist_ok=True)
    if kind in TAPES:
        return Tape(function, comm, folder, kind)
    return (FILES | OTHERS)[kind](function, comm, folder)


def drop_cache(folder):
    """Write what is in the folder's files to the disk, and take it out of the page cache."""
    for fd in os.listdir("/proc/self/fd"):  # files that are unlinked, too
        with suppress(FileNotFoundError):  # the listing's own
            if os.readlink(f"/proc/self/fd/{fd}").startswith(folder):
                forget(int(fd))
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError), open(os.path.join(parent, name), "rb") as file:  # another rank's, perhaps
                forget(file.fileno())


def forget(fd):
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
