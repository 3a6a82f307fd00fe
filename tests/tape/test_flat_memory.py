"""What waits for Python's garbage collector stays the same from one iteration to the next."""

import json

import pytest

START = """
import gc, json, sys, tracemalloc, weakref
sys.path.insert(0, sys.argv[1])
from burgers import *
from localckpt import garbage
import firedrake as fd

folder = sys.argv[2]


def recorded(schedule="all on disk", **arguments):
    '''A functional, recorded on a new working tape.'''
    set_working_tape()
    continue_annotation()
    enable_disk_checkpointing(checkpoint_dir=folder)
    if arguments:
        get_working_tape().enable_checkpointing(SCHEDULES[schedule](STEPS), **arguments)
        schedule = None
    return record(SCHEDULES[schedule](STEPS) if schedule else None)


def frozen():
    return gc.get_freeze_count()


def iterate(functional, scale=1.3):
    sweep(functional, scale)


def report(**found):
    print("FOUND", json.dumps(found))

"""


@pytest.fixture
def found(run_script, tmp_path, request):
    """found(code, *args, options="", seconds=120): what a script reports, run by itself: freezing is everybody's."""
    def run(code, *args, options="", seconds=120):
        before = ["env", f"PETSC_OPTIONS={options}"]
        result = run_script(START + code, request.path.parent, tmp_path, *args, before=before, seconds=seconds)
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout.partition("FOUND ")[2])
    return run


ITERATIONS = """
import burgers

burgers.STEPS = STEPS = 16
schedules = {"no schedule": None} | {name: name for name in sys.argv[3:]}
peaks = {}
for name, schedule in schedules.items():
    functional = recorded(schedule)
    V = functional.controls[0].control.function_space()
    scales = [control(1 + i / 8) for i in range(6)]
    peaks[name] = []
    tracemalloc.start()
    for c in scales:
        tracemalloc.reset_peak()
        with stop_annotating():
            functional(c)
            functional.derivative()
        waiting = sum(isinstance(thing, fd.Function) for thing in gc.get_objects())
        peaks[name].append((tracemalloc.get_traced_memory()[1], waiting))
    tracemalloc.stop()
report(**peaks)
"""
