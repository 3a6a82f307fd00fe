"""When Python's garbage collector runs, and which objects it looks at, while a tape is evaluated.

Functions refer to each other in cycles, which only the garbage collector frees. A cycle that has survived two
collections is looked at again in a full collection, and Python starts one when the objects that have survived since
the last one exceed a quarter of all old objects. Firedrake alone has hundreds of thousands of those. So a sweep in
reverse leaves Functions and their arrays in memory, waiting for a full collection.

The remedy: after a recording, all objects that are alive are frozen, which hides them from the collector. The
collection after that tells Python that there are few old objects, and from then on it starts full collections by
itself, often, and each takes milliseconds. If somebody calls ``gc.collect()``, everything is unfrozen first, so that
this sees all objects as always; they are frozen again in the next evaluation.

All of this is local to a rank. Nothing here communicates, and no destructor that a collection calls may communicate.
"""

import gc
import weakref
from typing import Any

from petsc4py import PETSc

# Python 3.12 itself freezes some hundreds of objects when it starts. A script that freezes its own has thousands.
FROZEN_BY_PYTHON = 1000

# An owner is a checkpointer: objects are frozen for it.
_owners_alive = 0
_frozen_count = 0  # the number of frozen objects after localckpt last froze any, or 0 if it has none frozen
_frozen_for: weakref.WeakSet[Any] = weakref.WeakSet()  # owners for which all is frozen that was alive
_recorded: weakref.WeakSet[Any] = weakref.WeakSet()  # owners whose recording is over


def watch(owner: Any) -> None:
    """Begin to work for an owner. What is frozen is unfrozen when the last owner goes."""
    global _owners_alive
    if not _owners_alive:
        gc.callbacks.append(_unfreeze_for_full_collection)
    _owners_alive += 1
    weakref.finalize(owner, _forget_owner).atexit = False


def freeze(owner: Any) -> None:
    """Freeze all objects that are alive, unless that was done for this owner and nothing was unfrozen since.

    Called at the beginning of each evaluation.
    """
    if owner not in _frozen_for:
        if _is_enabled():
            _unfreeze()
            gc.collect()
            _freeze()
        _frozen_for.add(owner)
        _recorded.add(owner)


def freeze_once(owner: Any) -> None:
    """The same, but only after this owner's recording: for what is called many times in an evaluation."""
    if owner not in _recorded:
        freeze(owner)


def collect_all() -> None:
    """Free all objects that nobody refers to, those that are frozen included."""
    if _is_enabled() and _owners_alive:
        was_frozen = _unfreeze()
        gc.collect()
        if was_frozen and _owners_alive:  # the last owner may just have gone
            _freeze()


def unfreeze() -> None:
    """Let the collector see all objects again, until the next :func:`freeze` for any owner."""
    _frozen_for.clear()
    _recorded.clear()
    _unfreeze()


def _is_enabled() -> bool:
    return gc.isenabled() and PETSc.Options("localckpt_").getBool("collect", True)


def _freeze() -> None:
    global _frozen_count
    if gc.get_freeze_count() < FROZEN_BY_PYTHON:  # otherwise the script has frozen objects, and decides itself
        gc.freeze()
        gc.collect()
        _frozen_count = gc.get_freeze_count()


def _unfreeze() -> bool:
    """Unfreeze what localckpt has frozen. Returns whether there was anything."""
    global _frozen_count
    frozen, _frozen_count = _frozen_count, 0
    is_ours = 0 < gc.get_freeze_count() <= frozen  # if there are more by now, the script has frozen some
    if is_ours:
        gc.unfreeze()
    return is_ours


def _forget_owner() -> None:
    global _owners_alive
    _owners_alive -= 1
    if not _owners_alive:
        gc.callbacks.remove(_unfreeze_for_full_collection)
        _unfreeze()


def _unfreeze_for_full_collection(phase: str, info: dict[str, int]) -> None:
    """Unfreeze before a full collection that somebody asked for."""
    # Python starts one by itself only when there are more new objects than the threshold.
    if _frozen_count and phase == "start" and info["generation"] == 2 and gc.get_count()[0] <= gc.get_threshold()[0]:
        _frozen_for.clear()
        _unfreeze()
