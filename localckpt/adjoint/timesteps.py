"""What the timesteps of a run store and how long they take, for ``localckpt plan``.

With the PETSc option ``-localckpt_view :FILE:json``, :mod:`localckpt.adjoint.patches` puts the first two functions into
pyadjoint. On rank 0 of a checkpointer's `comm` they look at the clock before and after each timestep is saved or
restored, and at what it is made of. Ranks do not communicate for this.
"""

import json
import logging
import os
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from checkpoint_schedules import StorageType
from firedrake.adjoint_utils.checkpointing import CheckpointBase, disk_checkpointing
from pyadjoint.tape import TimeStep

from localckpt.adjoint.checkpoints import saved_function
from localckpt.adjoint.saving import current_checkpointer
from localckpt.functions import SavedFunction
from localckpt.storage.store import Store
from localckpt.storage.summary import Summary

__all__ = ["TimestepRecorder", "restore_timestep", "save_timestep"]

log = logging.getLogger("localckpt")
_recorders: "weakref.WeakKeyDictionary[Store, TimestepRecorder]" = weakref.WeakKeyDictionary()


def save_timestep(
    original: Callable[..., None], self: TimeStep, checkpointable_state: bool, adj_dependencies: bool, *global_deps: Any
) -> None:
    """Save a timestep, and have the recorder of its checkpointer note that if it goes to disk."""
    recorder = getattr(current_checkpointer(), "recorder", None) if disk_checkpointing() else None
    if recorder is None:
        original(self, checkpointable_state, adj_dependencies, *global_deps)
    else:
        recorder.save(
            lambda: original(self, checkpointable_state, adj_dependencies, *global_deps),
            self,
            checkpointable_state,
            global_deps[0] if global_deps else (),
        )


def restore_timestep(original: Callable[..., None], self: TimeStep, from_storage: StorageType) -> None:
    """Restore a timestep, and have the recorder of its store note that if it comes from the disk."""
    saved = saved_functions(self, self._checkpoint) if from_storage == StorageType.DISK else []
    recorder = _recorders.get(saved[0].store) if saved else None
    if recorder is None:
        original(self, from_storage)
    else:
        recorder.restore(lambda: original(self, from_storage), self)


def saved_functions(step: TimeStep, variables: Iterable[Any]) -> list[SavedFunction]:
    """What a timestep has of these variables on disk."""
    found = (saved_function(step._checkpoint.get(variable)) for variable in variables)
    return [saved for saved in found if saved is not None]


def contents(step: TimeStep, variables: Iterable[Any]) -> dict[bytes, int]:
    """Hash and bytes of each array on disk that a timestep has of these variables; equal arrays are one."""
    return {stored.digest: stored.nbytes for saved in saved_functions(step, variables) for stored in saved.stored}


@dataclass
class Sweep:
    """One pass over the timesteps, forward or in reverse.

    Attributes
    ----------
    between : list of float
        Seconds from the end of a save or restore to the beginning of the next: what the timestep itself takes.
    moving : list of float
        Seconds of each save or restore.
    nbytes : list of int
        Bytes that each timestep then held on disk and no earlier one of the sweep, or that its restore brought back.
    known : set of bytes
        Hashes of the arrays that were saved.
    """

    between: list[float] = field(default_factory=list)
    moving: list[float] = field(default_factory=list)
    nbytes: list[int] = field(default_factory=list)
    known: set[bytes] = field(default_factory=set)
    ended: float | None = None

    def move(self, call: Callable[[], None]) -> None:
        """Save or restore a timestep."""
        began = perf_counter()
        if self.ended is not None:
            self.between.append(began - self.ended)
        call()
        self.ended = perf_counter()
        self.moving.append(self.ended - began)


class TimestepRecorder:
    """Notes the saves and restores of the timesteps of a tape, and writes a file about them.

    Seconds and adjoint data are those of the last complete sweeps in which the tape saved, and restored, the adjoint
    data of every timestep: with ``SingleDiskStorageSchedule``. Restart data is that of the recording: after a gradient,
    the tape saves only what the functional depends on.

    Parameters
    ----------
    path : str
        Of the file.
    ranks : int
        On this rank's node. What a node stores is taken to be so many times what this rank stores.
    store : localckpt.storage.store.Store
        That of the checkpointer.
    """

    def __init__(self, path: str, ranks: int, store: Store) -> None:
        _recorders[store] = self
        self.path = path
        self.ranks = ranks
        self._forward, self._last_forward = Sweep(), Sweep()
        self._reverse, self._last_reverse = Sweep(), Sweep()
        self._restored: set[int] = set()  # the timesteps of this sweep in reverse, by id
        self._is_recording = True
        self._restart: list[int] = []  # bytes of each timestep's restart data
        self._stores_restart = False

    def begin_evaluation(self) -> None:
        """Note that the tape begins an evaluation."""
        self._is_recording = False
        self._end_sweeps()

    def save(self, call: Callable[[], None], step: TimeStep, restart: bool, global_dependencies: Any) -> None:
        """Save a timestep.

        Parameters
        ----------
        call : callable
            Does it.
        step : pyadjoint.tape.TimeStep
        restart : bool
            Whether restart data is saved, or adjoint data alone.
        global_dependencies : set of pyadjoint.block_variable.BlockVariable
            What all timesteps need: no part of the restart data, because it is in memory.
        """
        self._stores_restart |= restart
        sweep = self._forward
        sweep.move(call)
        # Not what the store has written: the last evaluation may have had the same values.
        found = contents(step, step._checkpoint)
        sweep.nbytes.append(sum(nbytes for digest, nbytes in found.items() if digest not in sweep.known))
        sweep.known.update(found)
        if self._is_recording:
            state = (variable for variable in step.checkpointable_state if variable not in global_dependencies)
            self._restart.append(sum(contents(step, state).values()))

    def restore(self, call: Callable[[], None], step: TimeStep) -> None:
        """Restore a timestep, which `call` does."""
        if not self._forward.moving and not self._reverse.moving:  # an evaluation begins with restoring its first one
            call()
            return
        self._is_recording = False
        if id(step) in self._restored:  # another gradient
            self._end_reverse()
        self._restored.add(id(step))
        self._reverse.move(call)
        functions = (name for name, one in step._checkpoint.items() if isinstance(one, CheckpointBase))
        self._reverse.nbytes.append(sum(contents(step, functions).values()))  # meshes come when they are needed

    def _end_sweeps(self) -> None:
        self._last_forward, self._forward = longer(self._forward, self._last_forward), Sweep()
        self._end_reverse()

    def _end_reverse(self) -> None:
        self._last_reverse, self._reverse = longer(self._reverse, self._last_reverse), Sweep()
        self._restored.clear()

    def as_dict(self) -> dict[str, Any]:
        """What is known by now: bytes of a node, and seconds; None is unknown. Not collective."""
        forward = longer(self._forward, self._last_forward)
        reverse = longer(self._reverse, self._last_reverse)
        restart = self._on_a_node(self._restart[1:])  # the first timestep cannot know what all others need, too
        is_complete = 2 < len(forward.moving) == len(reverse.moving) and not self._stores_restart
        if not is_complete:
            forward = reverse = Sweep()
        return {
            "ranks_per_node": self.ranks,
            "timesteps": len(forward.moving) or None,
            "restart": {"stored": restart, "restored": restart},
            "adjoint": {"stored": self._on_a_node(forward.nbytes[1:]), "restored": self._on_a_node(reverse.nbytes)},
            "forward": mean(forward.between[:-1]),  # the script may do other things before the last save
            "reverse": mean(reverse.between[1:]),  # the first one compiles the adjoint
            "saving": mean(forward.moving[1:]),
            "restoring": mean(reverse.moving),
        }

    def _on_a_node(self, nbytes: list[int]) -> float | None:
        average = mean(nbytes)
        return average and average * self.ranks

    def write(self, summary: Summary) -> None:
        """Write the file at exit, unless nothing was saved. Not collective. A failure is logged."""
        if not summary.saves:
            return
        part = f"{self.path}.{os.uname().nodename}-{os.getpid()}"  # another member of an ensemble may write one, too
        try:
            with open(part, "w", encoding="utf-8") as file:
                json.dump(self.as_dict(), file, indent=4)
                file.write("\n")
            os.replace(part, self.path)
        except OSError as exc:
            log.warning("-localckpt_view cannot write %s: %s", self.path, exc)


def longer(one: Sweep, earlier: Sweep) -> Sweep:
    """The later of two sweeps, unless it is the shorter one, which was not completed."""
    return one if len(one.moving) >= len(earlier.moving) else earlier


def mean(numbers: list[Any]) -> float | None:
    return sum(numbers) / len(numbers) if numbers else None
