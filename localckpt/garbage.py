"""When Python's garbage collector runs, and what it looks at, while tapes are swept.

Functions refer to each other in cycles. A cycle that has lived through two collections waits until Python looks
at all old objects, which it does when those that wait exceed a quarter of them, and Firedrake alone is hundreds of
thousands: so every sweep in reverse leaves Functions, and their arrays, to wait. What is alive after a
recording is therefore frozen: taken out of the collector's sight. The collection after that tells Python
that little is old, and it then collects often, in milliseconds, and by itself. A ``gc.collect()`` that somebody
asks for sees everything, as ever: it thaws what is frozen, until the next sweep.

All is local to a rank: nothing here communicates, nor may any destructor that a collection calls.
"""

import gc
import weakref

from petsc4py import PETSc

# Python 3.12 starts with some hundreds of frozen objects; a script that freezes its own has thousands.
PYTHONS_OWN = 1000

_owners = 0  # that are alive
_frozen = 0  # how many objects there were after the last freeze of ours, or 0
_settled: weakref.WeakSet = weakref.WeakSet()  # owners for whom what is alive is frozen
_recorded: weakref.WeakSet = weakref.WeakSet()  # owners whose recording is over


def watch(owner):
    """Thaw what is frozen when the last of all owners goes."""
    global _owners
    if not _owners:
        gc.callbacks.append(_notice)
    _owners += 1
    weakref.finalize(owner, _leave).atexit = False


def settle(owner):
    """Freeze what is alive; once for each owner, after its recording, and again in the evaluation after a thaw."""
    if owner not in _settled:
        if _wanted():
            _thaw()
            gc.collect()
            _freeze()
        _settled.add(owner)
        _recorded.add(owner)


def settle_once(owner):
    """The same, but not again after a thaw: for what is called many times in an evaluation."""
    if owner not in _recorded:
        settle(owner)


def sweep():
    """Free what nobody needs any more, be it frozen."""
    if _wanted() and _owners:
        was_frozen = _thaw()
        gc.collect()
        if was_frozen and _owners:  # the last one may just have gone
            _freeze()


def thaw():
    """Let the collector see everything again, until the next :func:`settle` of any owner."""
    _settled.clear()
    _recorded.clear()
    _thaw()


def _wanted():
    return gc.isenabled() and PETSc.Options("localckpt_").getBool("collect", True)


def _freeze():
    global _frozen
    if gc.get_freeze_count() < PYTHONS_OWN:  # a script that has frozen objects decides itself when they thaw
        gc.freeze()
        gc.collect()
        _frozen = gc.get_freeze_count()


def _thaw():
    """Returns whether anything of ours was frozen."""
    global _frozen
    frozen, _frozen = _frozen, 0
    ours = 0 < gc.get_freeze_count() <= frozen  # if there are more, the script has frozen some
    if ours:
        gc.unfreeze()
    return ours


def _leave():
    global _owners
    _owners -= 1
    if not _owners:
        gc.callbacks.remove(_notice)
        _thaw()


def _notice(phase, info):
    # One that the script asks for is to see everything. Python's own come when there are more new objects than the
    # threshold says.
    if _frozen and phase == "start" and info["generation"] == 2 and gc.get_count()[0] <= gc.get_threshold()[0]:
        _settled.clear()
        _thaw()
