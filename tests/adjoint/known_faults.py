"""Marks for tests of what a fault of another package prevents."""

import functools
import gc
import weakref

import pytest


def keeps_objects_with_singledispatchmethods():
    """Whether this Python has the fault cpython#127750: it keeps pyadjoint's CheckpointManager, and its tape, alive."""

    class Dispatcher:
        @functools.singledispatchmethod
        def method(self, argument):
            pass

    dispatcher = Dispatcher()
    dispatcher.method(0)
    seen = weakref.ref(dispatcher)
    del dispatcher
    gc.collect()
    return seen() is not None


TAPE_MAY_BE_KEPT = pytest.mark.xfail(keeps_objects_with_singledispatchmethods(), reason="cpython#127750")
