"""The checkpointer that a tape carries, and the function that gives it one."""

import contextlib
import os
import warnings
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import firedrake
from firedrake import Cofunction, Function
from firedrake.adjoint_utils.checkpointing import disk_checkpointing
from mpi4py import MPI
from pyadjoint import Tape, get_working_tape
from pyadjoint.tape import TapePackageData
from pyop2.mpi import COMM_WORLD

from localckpt._collective import interrupts_held, raise_everywhere
from localckpt.adjoint import garbage
from localckpt.adjoint.arguments import Arguments, Precision, check_on_all_ranks, require_comm
from localckpt.adjoint.checkpoints import EnsembleCheckpoint, MeshCheckpoint
from localckpt.adjoint.saving import begin_saving, end_saving, is_computed
from localckpt.adjoint.timesteps import TimestepRecorder
from localckpt.functions import CopiedFunction, FunctionStore, SavedFunction, fingerprint
from localckpt.storage import run_directories
from localckpt.storage.directories import Directory, log, named_directories
from localckpt.storage.engines import EngineName
from localckpt.storage.nodes import node_comm
from localckpt.storage.room import RoomMonitor, announce
from localckpt.storage.shared_directories import make_next_directory, make_shared_directory
from localckpt.storage.store import Store
from localckpt.storage.summary import Summary

__all__ = ["DiskCheckpointer", "enable_disk_checkpointing", "summary"]

# The path of a directory, or of several
Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


def enable_disk_checkpointing(
    dirname: str | os.PathLike[str] | None = None,
    comm: MPI.Intracomm = COMM_WORLD,
    cleanup: bool = True,
    checkpoint_comm: MPI.Intracomm | None = None,
    checkpoint_dir: Paths | None = None,
    *,
    engine: EngineName | None = None,
    precision: Precision | None = None,
) -> None:
    """Add a :class:`DiskCheckpointer` to the working tape. Collective on `comm`.

    Has the signature of ``firedrake.adjoint.enable_disk_checkpointing``, and `engine` and `precision`. A tape that has
    a checkpointer keeps it, with a warning if other arguments are given.

    Parameters
    ----------
    dirname : str, optional
        The directory for checkpoints if `checkpoint_dir` is not given, and for the shared file of
        ``checkpointable_mesh``, which is in the current directory by default.
    comm : mpi4py.MPI.Intracomm, optional
        The communicator of the computation.
    cleanup : bool, optional
        False keeps every file, for debugging.
    checkpoint_comm : mpi4py.MPI.Intracomm, optional
        The ranks that share a file. ``MPI.COMM_SELF``, the default, gives each rank its own file;
        :func:`localckpt.node_comm` gives one to each node, or to each group of its ranks. Saving and restoring
        are collective on this communicator and on no other.
    checkpoint_dir : str or sequence of str, optional
        The directory for checkpoints, which all ranks of a `checkpoint_comm` must see. If several are given, a rank
        whose checkpoints no longer fit into one continues in the next. Environment variables are expanded, on each
        rank. By default `dirname`, or else a node-local directory
        (:func:`localckpt.storage.directories.choose_directory`). With `checkpoint_comm`, by default the one in the
        PETSc option ``-localckpt_dir``, or else, with a warning, the current directory, as in Firedrake.
    engine : {"direct", "viewer"}, optional
        How bytes are moved (:mod:`localckpt.storage.engines`). By default the PETSc option ``-localckpt_engine``, or
        else "direct" where all ranks of a file are on one node, and "viewer" where they are not
        (:func:`localckpt.storage.engines.choose_engine`).
    precision : {"single"}, optional
        Round what blocks of the tape have computed to single precision when a schedule stores it, so that it takes half
        the bytes. All other checkpoints are exact: controls, initial conditions, coefficients, coordinates of meshes,
        Reals, integers, and arrays with values beyond the range of single precision. By default the PETSc
        option ``-localckpt_precision``, or else all checkpoints are exact. See *Store half the bytes* in the manual.

    Raises
    ------
    ImportError
        With `precision`, if this Firedrake has not what localckpt replaces for it.
    OSError
        If no file can be made in any of the directories, if ranks of a `checkpoint_comm` do not see the same
        directory, or if the directory of the file in ``-localckpt_view`` is not writeable on rank 0.
    ImportError
        With ``-localckpt_view :FILE:json``, if this Firedrake lacks what it takes.
    TypeError
        If `comm` or `checkpoint_comm` is not a communicator, or a directory is not a path.
    ValueError
        If `checkpoint_comm` has ranks that `comm` lacks; if `engine` or ``-localckpt_engine`` is neither of the two;
        if `precision` or ``-localckpt_precision`` is not "single"; if ``-localckpt_dir_limit`` does not fit the
        directories; if ``-localckpt_view`` is neither a Boolean nor ``:FILE:json``; or if ranks differ in `cleanup`, in
        `precision`, in whether the tape has a checkpointer, or, within a `checkpoint_comm`, in that communicator, the
        engine, the directories or the limits.

    Notes
    -----
    All of these are raised on every rank of `comm`, before any rank could wait for another. All ranks must pass the
    same `comm`; this cannot be checked.

    If a checkpoint fits nowhere, saving it raises :class:`localckpt.LostCheckpointError` on its rank, and so does
    every later use of the tape there, because the checkpoint cannot be recovered. If nobody catches it, it ends the
    whole job. A script that catches it must end the other ranks, which do not know of it.

    The PETSc option ``-localckpt_dir_limit`` limits the bytes that checkpoints may take on each node in each of the
    directories: one number for all directories, or one for each, separated by commas. With ``-localckpt_view``, rank
    0 prints its part of :func:`summary` at exit; with ``-localckpt_view :FILE:json`` it writes what a timestep stored
    and took, for ``localckpt plan``.

    After a recording, all objects that are alive are frozen (``gc.freeze``), so that Python's garbage collector runs
    often and takes little time. ``-localckpt_collect 0`` leaves the collector alone, as ``gc.disable()`` does; see
    *Disk checkpoints and memory* in the manual.
    """
    tape = get_working_tape()
    checkpointer = tape._package_data.get("firedrake")
    arguments: dict[str, Any] = {
        "dirname": dirname,
        "comm": comm,
        "cleanup": cleanup,
        "checkpoint_comm": checkpoint_comm,
        "checkpoint_dir": checkpoint_dir,
        "engine": engine,
        "precision": precision,
    }
    if checkpointer is None:
        checkpointer = DiskCheckpointer(**arguments)
        checkpointer._arguments = arguments
        tape._package_data["firedrake"] = checkpointer
        return
    require_comm("comm", comm)
    check_on_all_ranks(comm, None)
    earlier = getattr(checkpointer, "_arguments", {})
    ignored = [name for name, value in arguments.items() if value not in (DEFAULTS[name], earlier.get(name))]
    if ignored:
        warnings.warn(
            f"the working tape keeps the checkpointer that it has; ignored: {', '.join(ignored)}",
            UserWarning,
            stacklevel=2,
        )


DEFAULTS = {
    "dirname": None,
    "comm": COMM_WORLD,
    "cleanup": True,
    "checkpoint_comm": None,
    "checkpoint_dir": None,
    "engine": None,
    "precision": None,
}
living_checkpointers: "weakref.WeakSet[DiskCheckpointer]" = weakref.WeakSet()


def summary(tape: Tape | None = None) -> Summary:
    """What the checkpoints of a tape took so far, on all ranks. Collective on the `comm` of its checkpointer.

    Rank 0 also logs it (logger ``localckpt``, level INFO).

    Parameters
    ----------
    tape : pyadjoint.Tape, optional
        The working tape by default.

    Returns
    -------
    localckpt.storage.store.Summary
        The same on every rank. ``print`` shows it as a table.

    Raises
    ------
    ValueError
        If the tape has no checkpointer, or one of Firedrake's.
    """
    checkpointer = getattr(tape or get_working_tape(), "_package_data", {}).get("firedrake")
    if not isinstance(checkpointer, DiskCheckpointer):
        raise ValueError(
            "this tape has no checkpointer of localckpt's: call localckpt.adjoint.enable_disk_checkpointing() "
            "while it is the working tape"
        )
    return checkpointer.summary()


@dataclass(frozen=True)
class CheckpointFileName:
    """The name of a file that exists, and the communicators that it is on."""

    name: str
    comm: MPI.Intracomm
    checkpoint_comm: MPI.Intracomm | None = None


class DiskCheckpointer(TapePackageData):
    """Saves the checkpoints of one tape. Making one is collective on `comm`.

    The parameters are those of :func:`enable_disk_checkpointing`. Saving is collective on `checkpoint_comm` where that
    has several ranks; :meth:`shared_mesh_file` and :meth:`summary` are collective on `comm`; restoring an
    EnsembleFunction is collective on its ensemble. No other operation communicates.
    """

    def __init__(
        self,
        dirname: str | os.PathLike[str] | None = None,
        comm: MPI.Intracomm = COMM_WORLD,
        cleanup: bool = True,
        checkpoint_comm: MPI.Intracomm | None = None,
        checkpoint_dir: Paths | None = None,
        *,
        engine: EngineName | None = None,
        precision: Precision | None = None,
    ) -> None:
        require_comm("comm", comm)
        with interrupts_held():
            arguments: Arguments | None = None
            error: Exception | None = None
            try:
                garbage.collect_all()  # tapes that nobody refers to any more hold files
                if checkpoint_dir is None and checkpoint_comm is not None and not any(named_directories()):
                    warnings.warn(
                        "checkpoint_comm without checkpoint_dir defaults to cwd, which is usually on the shared "
                        "filesystem. Consider setting checkpoint_dir to a node-local path.",
                        UserWarning,
                        stacklevel=3,
                    )
                    checkpoint_dir = os.getcwd()
                arguments = Arguments.checked(
                    comm, dirname, cleanup, checkpoint_comm, checkpoint_dir, engine, precision
                )
                if arguments.precision is not None:
                    from localckpt.adjoint import patches  # here, because it imports this module

                    patches.install("precision")
            except Exception as exc:  # a filter may turn the warning into an exception
                error = exc
            check_on_all_ranks(comm, arguments, error)
            assert arguments is not None
            self.comm = comm
            self.cleanup = arguments.cleanup
            self.checkpoint_comm = arguments.checkpoint_comm
            self.precision = arguments.precision
            self._mesh_parent = arguments.mesh_parent
            self._remove_mesh_file: weakref.finalize[Any, Any] | None = None
            self._new_files = 0
            self.recorder: TimestepRecorder | None = None  # with -localckpt_view :FILE:json, on rank 0
            # The last checkpoint in memory of each mesh, by the mesh's coordinates
            self._mesh_copies: weakref.WeakKeyDictionary[Function, weakref.ref[MeshCheckpoint]] = (
                weakref.WeakKeyDictionary()
            )
            self._set_up(arguments)

    def _set_up(self, arguments: Arguments) -> None:
        """Make the directory and the store. Collective on `comm`."""
        comm = self.comm
        node = node_comm(comm)
        most_ranks = comm.allreduce(node.size, MPI.MAX)  # on any node
        self.dirname = ""
        error: Exception | None = None
        try:
            tiers = [replace(tier, limit=tier.limit / most_ranks) for tier in arguments.tiers]
        except Exception as exc:
            error = exc
        raise_everywhere(comm, error)
        try:
            self.dirname, tier = make_next_directory(
                self.checkpoint_comm, tiers, ["init.h5", "current.h5"], not self.cleanup
            )
            store = Store.inside(
                self.dirname,
                self.checkpoint_comm,
                tier,
                tiers,
                self.cleanup,
                arguments.engine,
                collect=garbage.collect_all,
            )
            directory = Directory.at(os.path.dirname(self.dirname))
        except Exception as exc:
            error = exc
        try:
            raise_everywhere(comm, error)
            directory_of_rank_0 = comm.bcast(directory)
            try:
                announce(directory, directory_of_rank_0, comm, node)
                self.init_checkpoint_file = self._file("init.h5")
                self.current_checkpoint_file = self._file("current.h5")
                self._room_monitor = RoomMonitor(store, node.size, comm.rank)
                self._functions = FunctionStore(store)
                to_remove = self.dirname if self.cleanup and self.checkpoint_comm.rank == 0 else None
                at_exit = self._view(arguments.view, store, node.size) if comm.rank == 0 else None
                self._finalizer = weakref.finalize(self, _close, store, to_remove, os.getpid(), at_exit)
                living_checkpointers.add(self)
                garbage.watch(self)
            except Exception as exc:
                error = exc
            raise_everywhere(comm, error)
        except BaseException:
            if self.dirname and self.checkpoint_comm.rank == 0:
                run_directories.remove(self.dirname)
            raise

    def _view(self, view: str | None, store: Store, ranks: int) -> Callable[[Summary], None] | None:
        """What to do with the store's summary at exit, with so many ranks on this node. Not collective."""
        if not view:
            return None if view is None else _print_summary
        from localckpt.adjoint import patches  # which need this module

        patches.install("view")
        self.recorder = TimestepRecorder(view, ranks, store)
        return self.recorder.write

    def _file(self, name: str) -> CheckpointFileName:
        return CheckpointFileName(os.path.join(self.dirname, name), self.checkpoint_comm, self.checkpoint_comm)

    def new_checkpoint_file(self) -> CheckpointFileName:
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

    def save(self, function: Function | Cofunction, *, computed: bool = False) -> SavedFunction:
        """Store a Function. Collective on `checkpoint_comm` where that has several ranks.

        Parameters
        ----------
        function : firedrake.Function or firedrake.Cofunction
        computed : bool, optional
            Whether a block of the tape has computed it: with `precision`, only that is rounded.

        Raises
        ------
        LostCheckpointError
            If the Function cannot be stored anywhere, and at every use of the store from then on.
        """
        try:
            return self._functions.save(function, single=computed and self.precision == "single")
        except Exception:
            end_saving(self)  # the tape will not come to pause_checkpointing
            raise

    def save_mesh(self, mesh: firedrake.MeshGeometry) -> MeshCheckpoint:
        """A checkpoint of the coordinates of a mesh, of which Firedrake's tape makes one in every timestep.

        On disk it is like that of any Function. In memory it is the same object as long as the coordinates do not
        change. Collective on `checkpoint_comm` on disk where that has several ranks, and not collective in memory.
        """
        coordinates = mesh.coordinates
        if disk_checkpointing():
            saved = self.save(coordinates)
            return MeshCheckpoint(saved, saved.fingerprint, self._functions.store.collective)
        now = fingerprint(coordinates)
        last = self._mesh_copies.get(coordinates, lambda: None)()
        if last is None or last.fingerprint != now:
            last = MeshCheckpoint(CopiedFunction(coordinates), now)
            self._mesh_copies[coordinates] = weakref.ref(last)
        return last

    def save_ensemble(self, function: firedrake.EnsembleFunction | firedrake.EnsembleCofunction) -> EnsembleCheckpoint:
        """A checkpoint of this member's part of an EnsembleFunction or EnsembleCofunction.

        Collective on `checkpoint_comm` where that has several ranks.
        """
        saved = self.save(function._full_local_function, computed=is_computed())
        return EnsembleCheckpoint(saved, type(function), function.function_space())

    def shared_mesh_file(self) -> CheckpointFileName:
        """A new file for ``checkpointable_mesh`` to write a mesh to and read it from. Collective on `comm`.

        With `cleanup` it is removed when the returned object goes.
        """
        directory = make_shared_directory(self.comm, self._mesh_parent, keep=not self.cleanup)
        file = CheckpointFileName(os.path.join(directory, "mesh.h5"), self.comm)
        if self.cleanup and self.comm.rank == 0:
            # Firedrake's checkpointable_mesh refers to it until it returns.
            self._remove_mesh_file = weakref.finalize(file, run_directories.remove, directory)
        with firedrake.CheckpointFile(file.name, "w", comm=self.comm):
            pass
        return file

    def forget_mesh_file(self) -> None:
        """Remove the last :meth:`shared_mesh_file` now, with `cleanup`. Not collective."""
        if self._remove_mesh_file is not None:
            self._remove_mesh_file()

    @property
    def local_summary(self) -> Summary:
        """What was saved and restored so far on this rank. Not collective."""
        return self._functions.store.summary

    def summary(self) -> Summary:
        """What was saved and restored so far on all ranks. Collective on `comm`.

        Rank 0 also logs it (logger ``localckpt``, level INFO).

        Returns
        -------
        localckpt.storage.summary.Summary
            The same on every rank.
        """
        summary = self.local_summary.over(self.comm)
        if self.comm.rank == 0:
            log.info("%s", summary)
        return summary

    # The tape calls these.

    def clear(self, init: bool = True) -> None:
        """Begin a new file. The old one goes with the last checkpoint in it. Not collective.

        Parameters
        ----------
        init : bool, optional
            As in Firedrake, and without effect: the file of a mesh goes as soon as the mesh was read from it.
        """
        garbage.unfreeze()
        if self.recorder is not None:
            self.recorder.begin_evaluation()
        if self.cleanup:
            self._functions.store.retire()

    def reset(self) -> None:
        """Begin a new evaluation. Not collective.

        Frees nothing, because the tape still restores old checkpoints after this.
        """
        garbage.freeze(self)
        if self.recorder is not None:
            self.recorder.begin_evaluation()
        if self.cleanup and self.checkpoint_comm.rank == 0:
            # It may be gone: something else may have removed old temporary files, or the disk may have failed.
            with contextlib.suppress(OSError):
                os.utime(self.current_checkpoint_file.name)

    def copy(self) -> None:
        """Raises NotImplementedError, as in Firedrake."""
        raise NotImplementedError()

    def checkpoint(self) -> dict[str, CheckpointFileName]:
        """The state for :meth:`restore_from_checkpoint`. Not collective."""
        return {"init": self.init_checkpoint_file, "current": self.current_checkpoint_file}

    def restore_from_checkpoint(self, state: dict[str, CheckpointFileName]) -> None:
        """Return to an earlier state. Not collective. Checkpoints do not depend on it: each knows where it is."""
        self.init_checkpoint_file = state["init"]
        self.current_checkpoint_file = state["current"]

    def continue_checkpointing(self) -> None:
        """Begin to save a timestep of this checkpointer's tape. Not collective."""
        begin_saving(self)

    def pause_checkpointing(self) -> None:
        """End the saving of a timestep. Not collective.

        Raises
        ------
        LostCheckpointError
            If a checkpoint was lost (:meth:`localckpt.storage.store.Store.sync`), and from then on.
        """
        end_saving(self)
        self._functions.sync()
        self._room_monitor.step()


def _close(store: Store, directory: str | None, process: int, at_exit: Callable[[Summary], None] | None) -> None:
    """Let go of a checkpointer's files when it goes, or at exit. Not collective."""
    if os.getpid() != process:  # a forked child must leave its parent's files alone
        return
    summary = store.summary
    store.retire()
    if directory is not None:
        run_directories.remove(directory)
    if at_exit is not None:  # on this rank alone: the others may have ended already
        at_exit(summary)


def _print_summary(summary: Summary) -> None:
    print(summary, flush=True)
