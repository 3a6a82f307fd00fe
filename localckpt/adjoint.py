"""Drop-in replacement for Firedrake's disk checkpointing of the adjoint tape.

After ``from firedrake.adjoint import *``, ``from localckpt.adjoint import *`` is all that
a script needs: :func:`enable_disk_checkpointing` then stores the tape's checkpoints
through localckpt, in a file per rank on a node-local disk unless told otherwise.  The
other names are Firedrake's own, but for :func:`checkpointable_mesh`, which leaves no file.

Firedrake makes every disk checkpoint by calling ``CheckpointFunction``; importing this
module puts the question which checkpointer it belongs to in front of that
(:mod:`localckpt.seam`).
"""

import contextlib
import os
import warnings
import weakref
from dataclasses import dataclass, replace
from typing import Any

import firedrake
from firedrake.adjoint_utils import checkpointing as fd
from firedrake.adjoint_utils.checkpointing import (
    continue_disk_checkpointing,
    disk_checkpointing,
    pause_disk_checkpointing,
    stop_disk_checkpointing,
)
from mpi4py import MPI
from petsc4py import PETSc
from pyadjoint import OverloadedType, get_working_tape
from pyadjoint.tape import TapePackageData
from pyop2.mpi import COMM_WORLD

from localckpt import garbage, leftovers, node_comm, seam
from localckpt._collective import interrupts_held
from localckpt.arguments import Arguments, agree, require_comm
from localckpt.functions import CopiedFunction, FunctionStore, content
from localckpt.places import (
    Place,
    Watch,
    announce,
    log,
    make_folder,
    named_folders,
    next_folder,
    raise_everywhere,
)
from localckpt.seam import checkpointable_mesh
from localckpt.store import Store

__all__ = [
    "checkpointable_mesh",
    "continue_disk_checkpointing",
    "disk_checkpointing",
    "enable_disk_checkpointing",
    "pause_disk_checkpointing",
    "stop_disk_checkpointing",
]


def enable_disk_checkpointing(
    dirname=None, comm=COMM_WORLD, cleanup=True, checkpoint_comm=None, checkpoint_dir=None, *, engine=None
):
    """Add a :class:`DiskCheckpointer` to the working tape. Collective on `comm`.

    A tape that has a checkpointer keeps it, with a warning if other arguments are given. Follows
    ``firedrake.adjoint.enable_disk_checkpointing``; what differs is where files go.

    Parameters
    ----------
    dirname : str, optional
        Folder for the checkpoints where `checkpoint_dir` is not given, and for the shared
        file of ``checkpointable_mesh`` (else the current one).
    comm : mpi4py.MPI.Intracomm, optional
        The communicator of the computation.
    cleanup : bool, optional
        False keeps every file, for debugging.
    checkpoint_comm : mpi4py.MPI.Intracomm, optional
        The ranks that share a file: ``MPI.COMM_SELF``, the default, gives each rank its
        own, :func:`localckpt.node_comm` one to each node or to groups of its ranks; saving and
        restoring is collective on this communicator and on no other.
    checkpoint_dir : str or sequence of str, optional
        Folder for the checkpoints, visible to all ranks of a `checkpoint_comm`. Where several
        are given, a rank whose checkpoints no longer fit into one goes on in the next;
        environment variables in them are expanded. Default: `dirname`, else a node-local
        folder (:func:`localckpt.places.choose_place`). With `checkpoint_comm`: the PETSc option
        ``-localckpt_dir``, else, with a warning, the current folder, as in Firedrake.
    engine : {"direct", "viewer"}, optional
        How bytes move (:mod:`localckpt.engines`). Default: the PETSc option
        ``-localckpt_engine``, else what the folder can be trusted with
        (:func:`localckpt.places.choose_engine`).

    Raises
    ------
    OSError
        If no file can be made there, or ranks of a `checkpoint_comm` do not see the same folder.
    TypeError
        If `checkpoint_comm` is no communicator, or a folder no path.
    ValueError
        If `checkpoint_comm` has ranks that `comm` lacks, `engine` or ``-localckpt_engine`` is none of the two,
        ``-localckpt_dir_limit`` does not fit the folders; or if ranks differ in `cleanup`, in whether the tape
        has a checkpointer, or, within a `checkpoint_comm`, in that communicator, `engine`, folders or limits.

    Notes
    -----
    All of these are raised on every rank of `comm`, before ranks could wait for each other. Ranks must pass
    the same `comm`, which nothing can check.

    A checkpoint that fits nowhere is a :class:`localckpt.CheckpointError` on its rank, and so
    is every later use of the tape there: what is lost cannot be made good. Uncaught, it ends
    the whole job. A script that catches it has to end the other ranks, which know nothing of it.

    The PETSc option ``-localckpt_dir_limit`` gives the bytes that checkpoints may take on each
    node in each of the folders: one number for all, or one for each, separated by commas.
    With ``-localckpt_view`` rank 0 prints its part of :meth:`DiskCheckpointer.summary` in the end.

    After a recording, what is alive is frozen (``gc.freeze``), so that Python's garbage collector runs often and
    cheaply. ``-localckpt_collect 0`` leaves the collector alone, as does ``gc.disable()``; see *Disk checkpoints
    and memory* in the manual.
    """
    tape = get_working_tape()
    there = tape._package_data.get("firedrake")
    given = {
        "dirname": dirname,
        "comm": comm,
        "cleanup": cleanup,
        "checkpoint_comm": checkpoint_comm,
        "checkpoint_dir": checkpoint_dir,
        "engine": engine,
    }
    if there is None:
        there = tape._package_data["firedrake"] = DiskCheckpointer(
            dirname, comm, cleanup, checkpoint_comm, checkpoint_dir, engine=engine
        )
        there._arguments = given
        return
    require_comm("comm", comm)
    agree(comm, None)
    first = getattr(there, "_arguments", {})
    ignored = [name for name, value in given.items() if value not in (DEFAULTS[name], first.get(name))]
    if ignored:
        warnings.warn(
            f"the working tape keeps the checkpointer that it has; ignored: {', '.join(ignored)}",
            UserWarning,
            stacklevel=2,
        )


DEFAULTS = {"comm": COMM_WORLD, "cleanup": True} | dict.fromkeys(
    ("dirname", "checkpoint_comm", "checkpoint_dir", "engine")
)  # nobody has given these
_living: weakref.WeakSet = weakref.WeakSet()  # checkpointers


@dataclass(frozen=True)
class CheckpointFileName:
    """The name of an existing file and the communicator that it is on."""

    name: str
    comm: Any
    checkpoint_comm: Any = None


class DiskCheckpointer(TapePackageData):
    """What a tape knows of its disk checkpoints. Collective on `comm` to make.

    Parameters are those of :func:`enable_disk_checkpointing`. Saving communicates on
    `checkpoint_comm`, if at all; the file that ``checkpointable_mesh`` asks for and
    :meth:`summary` are collective on `comm`, restoring an EnsembleFunction on its ensemble; nothing
    else communicates.
    """

    def __init__(
        self, dirname=None, comm=COMM_WORLD, cleanup=True, checkpoint_comm=None, checkpoint_dir=None, *, engine=None
    ):
        require_comm("comm", comm)
        with interrupts_held():
            given: Any = None
            error: Exception | None = None
            try:
                garbage.sweep()  # tapes that nobody needs any more hold files
                if checkpoint_dir is None and checkpoint_comm is not None and not any(named_folders()):
                    warnings.warn(
                        "checkpoint_comm without checkpoint_dir defaults to cwd, which is usually on the shared "
                        "filesystem. Consider setting checkpoint_dir to a node-local path.",
                        UserWarning,
                        stacklevel=3,
                    )
                    checkpoint_dir = os.getcwd()
                given = Arguments.checked(comm, dirname, cleanup, checkpoint_comm, checkpoint_dir, engine)
            except Exception as exc:  # warnings may be errors
                error = exc
            agree(comm, given, error)
            self.comm = comm
            self.cleanup = given.cleanup
            self.checkpoint_comm = given.checkpoint_comm
            self._parent = given.parent
            self._mesh_file: weakref.finalize | None = None
            self._new_files = 0
            self._mesh_copies: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # of their coordinates
            self._set_up(given)
            _living.add(self)

    def _set_up(self, given):
        """Make the directory and the store. Collective on `comm`."""
        comm = self.comm
        node = node_comm(comm)
        most = comm.allreduce(node.size, MPI.MAX)
        self.dirname, error = "", None
        try:
            tiers = [replace(tier, limit=tier.limit / most) for tier in given.tiers]
        except Exception as exc:
            error = exc
        raise_everywhere(comm, error)
        try:
            self.dirname, tier = next_folder(self.checkpoint_comm, tiers, ["init.h5", "current.h5"], not self.cleanup)
            store = Store.inside(self.dirname, self.checkpoint_comm, tier, tiers, self.cleanup, given.engine)
            place = Place.at(os.path.dirname(self.dirname))
        except Exception as exc:
            error = exc
        try:
            raise_everywhere(comm, error)
            first = comm.bcast(place)
            try:
                announce(place, first, comm, node)
                self.init_checkpoint_file = self._file("init.h5")
                self.current_checkpoint_file = self._file("current.h5")
                self._watch = Watch(store, node.size, comm.rank)
                self._functions = FunctionStore(store)
                folder = self.dirname if self.cleanup and self.checkpoint_comm.rank == 0 else None
                view = comm.rank == 0 and PETSc.Options("localckpt_").getBool("view", False)
                garbage.watch(self)
                self._finalizer = weakref.finalize(self, _finish, store, folder, os.getpid(), view)
            except Exception as exc:
                error = exc
            raise_everywhere(comm, error)
        except BaseException:
            if self.dirname and self.checkpoint_comm.rank == 0:
                leftovers.remove(self.dirname)
            raise

    def _file(self, name):
        return CheckpointFileName(os.path.join(self.dirname, name), self.checkpoint_comm, self.checkpoint_comm)

    def new_checkpoint_file(self):
        """Make a file that nothing is written to. Not collective. Deprecated."""
        warnings.warn(
            "'new_checkpoint_file' is deprecated and will be removed in a future release. Checkpoint file "
            "management is handled internally; call 'reset()' on the DiskCheckpointer instead.",
            FutureWarning,
            stacklevel=2,
        )
        self._new_files += 1
        file = self._file(f"new-{self._new_files}.h5")
        if self.checkpoint_comm.rank == 0:
            open(file.name, "xb").close()
        return file

    def save(self, function):
        """Store a Function. Collective on `checkpoint_comm`.

        Returns
        -------
        localckpt.functions.SavedFunction

        Raises
        ------
        CheckpointError
            If there is no place left for it, and from then on.
        """
        try:
            return self._functions.save(function)
        except Exception:
            seam.end(self)  # the tape will not get to do it
            raise

    def save_mesh(self, mesh):
        """A checkpoint of a mesh's coordinates. Firedrake's tape makes one in every timestep.

        On disk like any Function; in memory the same one as long as they do not change.
        Communicates on `checkpoint_comm`, if at all.
        """
        coordinates = mesh.coordinates
        if disk_checkpointing():
            saved = self.save(coordinates)
            return MeshCheckpoint(saved, saved.content, self._functions.store.collective)
        now = content(coordinates.dat)
        last = self._mesh_copies.get(coordinates, lambda: None)()
        if last is None or last.content != now:
            last = MeshCheckpoint(CopiedFunction(coordinates), now)
            self._mesh_copies[coordinates] = weakref.ref(last)
        return last

    def save_ensemble(self, function):
        """A checkpoint of this member's part of an EnsembleFunction or EnsembleCofunction.

        Collective on `checkpoint_comm`.
        """
        return EnsembleCheckpoint(self.save(function._full_local_function), type(function), function.function_space())

    def shared_mesh_file(self):
        """The file that ``checkpointable_mesh`` goes through. Collective on `comm`.

        Returns
        -------
        CheckpointFileName
        """
        folder = make_folder(self.comm, self._parent, keep=not self.cleanup)
        file = CheckpointFileName(os.path.join(folder, "mesh.h5"), self.comm)
        if self.cleanup and self.comm.rank == 0:
            # Firedrake's checkpointable_mesh, whoever calls it, holds this until it returns.
            self._mesh_file = weakref.finalize(file, leftovers.remove, folder)
        with firedrake.CheckpointFile(file.name, "w", comm=self.comm):
            pass
        return file

    def forget_mesh_file(self):
        """Remove the file that a mesh was read back from, if `cleanup` says so. Not collective."""
        if self._mesh_file is not None:
            self._mesh_file()

    def summary(self):
        """What was saved and restored so far. Collective on `comm`.

        Rank 0 also logs it (logger ``localckpt``, level INFO).

        Returns
        -------
        localckpt.store.Summary
            The same on every rank.
        """
        summary = self._functions.store.summary.over(self.comm)
        if self.comm.rank == 0:
            log.info("%s", summary)
        return summary

    # What the tape calls

    def clear(self, init=True):
        """Let go of what is stored: it goes with the last checkpoint. Not collective.

        Parameters
        ----------
        init : bool, optional
            As in Firedrake, of no consequence: a mesh's file is gone once the mesh was read from it.
        """
        garbage.thaw()
        if not self.cleanup:
            return
        self._functions.store.retire()

    def reset(self):
        """A new evaluation begins. Not collective.

        Old checkpoints are still read after this: it frees nothing.
        """
        garbage.settle(self)
        if self.cleanup and self.checkpoint_comm.rank == 0:
            with contextlib.suppress(OSError):  # a cleaner of temporary folders was here, or the disk has failed
                os.utime(self.current_checkpoint_file.name)

    def copy(self):
        """Not available, as in Firedrake."""
        raise NotImplementedError()

    def checkpoint(self):
        """What :meth:`restore_from_checkpoint` takes. Not collective."""
        return {"init": self.init_checkpoint_file, "current": self.current_checkpoint_file}

    def restore_from_checkpoint(self, state):
        """Return to an earlier state: checkpoints know where they are. Not collective."""
        self.init_checkpoint_file = state["init"]
        self.current_checkpoint_file = state["current"]

    def continue_checkpointing(self):
        """From now on this checkpointer's tape saves. Not collective."""
        seam.begin(self)

    def pause_checkpointing(self):
        """The tape has saved its timestep. Not collective.

        Raises
        ------
        CheckpointError
            If a checkpoint was lost (:meth:`localckpt.store.Store.sync`), and from then on.
        """
        seam.end(self)
        self._functions.sync()
        self._watch.step()


def _finish(store, folder, process, view):
    if os.getpid() != process:  # a forked child has no part in it
        return
    summary = str(store.summary)
    store.retire()
    if folder is not None:
        leftovers.remove(folder)
    if view:  # of this rank alone: others may have ended already
        print(summary, flush=True)


class ProgressBar(firedrake.ProgressBar):
    """Firedrake's progress bar, for ``tape.progress_bar``, with the pace of checkpoints beside the step.

    It shows how many MB a second rank 0 has written while it saved, and read while it restored, since the
    last step. Parameters are Firedrake's.
    """

    width = 24
    suffix = firedrake.ProgressBar.suffix + "%(pace)s"
    _last = None

    @property
    def pace(self):
        stores = [checkpointer._functions.store.summary for checkpointer in _living]
        now = tuple(sum(getattr(s, name) for s in stores) for name in ("written", "saving", "read", "restoring"))
        moved, self._last = [after - before for after, before in zip(now, self._last or now)], now
        write, read = (f"{n / 1e6 / s:.0f}" if n > 0 and s > 0 else "-" for n, s in (moved[:2], moved[2:]))
        return f" write {write} read {read} MB/s"


class LocalCheckpoint(fd.CheckpointFunction):
    """A Function in localckpt's store, in place of Firedrake's ``CheckpointFunction``.

    Making and restoring one communicates on the `checkpoint_comm`, if at all.
    """

    def __init__(self, function, checkpointer):
        self._saved = checkpointer.save(function)
        self._checkpointer = weakref.ref(checkpointer)

    @property
    def name(self):
        return self._saved.name

    @property
    def count(self):
        return self._saved.count

    @property
    def mesh(self):
        return self._saved.function_space.mesh()

    def restore(self):
        """Read the Function back, with the name and count of the saved one."""
        checkpointer = self._checkpointer()
        if checkpointer is not None:
            garbage.settle_once(checkpointer)  # a gradient without an evaluation before it
        return self._saved.load()


class MeshCheckpoint(OverloadedType):
    """The coordinates of a mesh, in localckpt's store or in memory.

    The tape asks for a mesh's checkpoint far more often than the mesh has moved since. A mesh may
    have moved on some ranks only: no Function is made, or ranks would go on to number theirs differently.

    Parameters
    ----------
    values : localckpt.functions.SavedFunction or localckpt.functions.CopiedFunction
        The coordinates.
    content : object
        What :func:`localckpt.functions.content` says of them.
    collective : bool, optional
        Whether reading `values` is collective.
    """

    def __init__(self, values, content, collective=False):
        self._values = values
        self.content = content
        self._collective = collective

    def restore_to(self, mesh):
        """Give the mesh these coordinates, unless it has them. As collective as reading `values`."""
        dat = mesh.coordinates.dat
        if not self._collective and content(dat) == self.content:
            dat.increment_dat_version()  # as on the ranks where the mesh has moved
        else:
            self._values.load_into(mesh.coordinates)

    def _ad_restore_at_checkpoint(self, checkpoint):
        return checkpoint  # for the mesh to take when a block needs it


class EnsembleCheckpoint(fd.CheckpointBase, OverloadedType):
    """An EnsembleFunction or EnsembleCofunction in localckpt's store.

    Parameters
    ----------
    saved : localckpt.functions.SavedFunction
        The member's own part.
    cls : type
    function_space : firedrake.EnsembleFunctionSpace or firedrake.EnsembleDualSpace
    """

    def __init__(self, saved, cls, function_space):
        self._saved = saved
        self._cls = cls
        self._function_space = function_space

    def restore(self):
        """Read it back. Collective on the whole ensemble, as is making any EnsembleFunction."""
        function = self._cls(self._function_space)
        self._saved.load().dat.copy(function._full_local_function.dat)
        return function

    def _ad_restore_at_checkpoint(self, checkpoint):
        return checkpoint.restore()


seam.install(DiskCheckpointer, LocalCheckpoint)
