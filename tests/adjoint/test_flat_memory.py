"""What waits for Python's garbage collector stays the same from one iteration to the next."""

import json

import pytest
from known_faults import TAPE_MAY_BE_KEPT

START = """
import gc, json, sys, tracemalloc, weakref
sys.path.insert(0, sys.argv[1])
from burgers import *
from localckpt.adjoint import garbage
import firedrake as fd

directory = sys.argv[2]


def recorded(schedule="all on disk", **arguments):
    '''A functional, recorded on a new working tape.'''
    set_working_tape()
    continue_annotation()
    enable_disk_checkpointing(checkpoint_dir=directory)
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


def test_functions_that_wait_stay_few_under_every_schedule(found):
    waiting = found(
        """
import burgers

burgers.STEPS = STEPS = 16
waiting = {}
for schedule in (None, *sys.argv[3:]):
    functional = recorded(schedule)
    numbers = []
    for i in range(5):
        iterate(functional, 1 + i / 8)
        numbers.append(sum(isinstance(thing, fd.Function) for thing in gc.get_objects()))
    gc.collect()
    alive = sum(isinstance(thing, fd.Function) for thing in gc.get_objects())
    waiting[schedule or "none"] = [number - alive for number in numbers]
report(**waiting)
""",
        "all on disk",
        "multistage, memory and disk",
        "mixed, disk",
        "hrevolve",
        "two levels, disk",
        "revolve",
        "all in memory",
        seconds=240,
    )
    assert len(waiting) == 8
    assert max(max(numbers) for numbers in waiting.values()) < 150, waiting  # left alone: hundreds after each sweep


def test_recording_is_over_where_a_gradient_comes_first(found):
    counts = found("""
functional = recorded()
counts = [frozen()]
with stop_annotating():
    functional.derivative()
counts.append(frozen())
report(counts=counts)
""")["counts"]
    assert counts[0] < 1000 < counts[1]


@pytest.mark.parametrize("switch", ["option", "gc.disable"])
def test_collector_is_left_alone_where_it_is_switched_off(found, switch):
    seen = found(
        """
if sys.argv[3] == "gc.disable":
    gc.disable()
full = []
gc.callbacks.append(lambda phase, info: full.append(sys._getframe(1).f_globals["__name__"]))
for _ in range(2):
    functional = recorded()
    iterate(functional)
report(collected=[name for name in full if name.startswith("localckpt")], frozen=frozen(), enabled=gc.isenabled())
""",
        switch,
        options="-localckpt_collect 0" if switch == "option" else "",
    )
    assert seen["frozen"] < 1000 and not seen["collected"]
    assert seen["enabled"] == (switch == "option")


def test_tape_collects_as_often_as_it_was_told_to(found):
    seen = found("""
asked = []
functional = recorded(gc_timestep_frequency=2)
iterate(functional)
gc.callbacks.append(lambda phase, info: phase == "start" and info["generation"] == 2
                    and sys._getframe(1).f_globals["__name__"] == "pyadjoint.checkpointing"
                    and asked.append(sys._getframe(1).f_code.co_name))
iterate(functional)
report(asked=len(asked), steps=STEPS)
""")
    assert seen["asked"] >= 2 * (seen["steps"] // 2)


@TAPE_MAY_BE_KEPT
def test_collection_that_a_script_asks_for_sees_everything(found):
    seen = found("""
functional, other = recorded(), recorded()
for tape in (functional, other):
    iterate(tape)
gone = weakref.ref(functional.tape._package_data["firedrake"])
functional.itself = functional
for _ in range(3):  # Python's own collections, of all generations, leave what is frozen
    many = [[i] for i in range(100_000)]
counts = [frozen()]
del functional, tape
gc.collect()
counts.append(frozen())
iterate(other)
report(gone=gone() is None, counts=[*counts, frozen()])
""")
    assert seen["gone"] and seen["counts"][0] > 1000 and seen["counts"][1] < 1000 and seen["counts"][2] > 1000


def test_what_is_frozen_thaws_when_the_tape_is_cleared(found):
    counts = found("""
functional = recorded()
iterate(functional)
counts = [frozen()]
get_working_tape().clear_tape()
counts.append(frozen())
report(counts=counts)
""")["counts"]
    assert counts[0] > 1000 and counts[1] < 1000


def test_what_is_frozen_thaws_when_the_last_checkpointer_goes(found):
    counts = found("""
first = recorded()
iterate(first)
second = recorded()
iterate(second)
counts = [frozen()]
for tape in (first.tape, second.tape):
    del tape._package_data["firedrake"]
    counts.append(frozen())
report(counts=counts)
""")["counts"]
    assert counts[0] > 1000 and counts[1] > 1000 and counts[2] < 1000


def test_one_tape_stays_frozen_when_another_is_cleared_and_goes_on(found):
    counts = found("""
first = recorded()
iterate(first)
second = recorded()
iterate(second)
second.tape.clear_tape()
iterate(first)
report(frozen=frozen())
""")
    assert counts["frozen"] > 1000


@pytest.mark.parametrize("when", ["before", "after"])
def test_what_a_script_has_frozen_itself_stays_frozen(found, when):
    seen = found(
        """
class Mine:
    pass


def frozen_cycle():
    mine = Mine()
    mine.itself = mine
    gc.freeze()
    return weakref.ref(mine)


if sys.argv[3] == "before":
    mine = frozen_cycle()
functional = recorded()
iterate(functional)
if sys.argv[3] == "after":
    mine = frozen_cycle()
iterate(functional)
recorded()
functional.tape.clear_tape()
del functional
set_working_tape()
gc.collect()
report(there=mine() is not None, frozen=frozen())
""",
        when,
    )
    assert seen["there"] and seen["frozen"] > 1000


@TAPE_MAY_BE_KEPT
def test_hundred_tapes_hold_no_more_than_a_few(found):
    seen = found(
        """
V = fd.FunctionSpace(square(), "CG", 1)


def one():
    set_working_tape()
    continue_annotation()
    enable_disk_checkpointing(checkpoint_dir=directory)
    get_working_tape().enable_checkpointing(SCHEDULES["all on disk"](3))
    m, u = fd.Function(V).assign(1.0), fd.Function(V)
    J = 0.0
    for _ in get_working_tape().timestepper(iter(range(3))):
        u.assign(u + m)
        J += fd.assemble(u * u * dx)
    functional = ReducedFunctional(J, Control(m))
    with stop_annotating():
        functional(m._ad_mul(1.1))
        functional.derivative()


held = []
for _ in range(100):
    one()
    everything = gc.get_objects()
    held.append((len(os.listdir("/proc/self/fd")), len(os.listdir(directory)),
                 sum(isinstance(thing, fd.Function) for thing in everything)))
gc.unfreeze()
gc.collect()
report(held=held, functions=sum(isinstance(thing, fd.Function) for thing in gc.get_objects()))
""",
        seconds=240,
    )
    descriptors, directories, waiting = zip(*seen["held"])
    assert max(descriptors) <= descriptors[0] + 8 and max(directories) <= 4
    assert max(waiting[10:]) <= max(waiting[:10]) + 50 and seen["functions"] < 100, seen
