"""``python -m localckpt verify``: right and wrong gradients, told apart in processes of their own."""

import json
import math
import time
from pathlib import Path

import pytest

ADJOINT_TESTS = Path(__file__).parents[1] / "adjoint"

# A script with a schedule, or None, and one case of tests/adjoint/test_controls.py.
CASE = f"""
import sys
sys.path.insert(0, {str(ADJOINT_TESTS)!r})
import test_controls as cases
from firedrake.adjoint import *

case, schedule = sys.argv[1:]
continue_annotation()
enable_disk_checkpointing()
if schedule != "none":
    get_working_tape().enable_checkpointing((cases.ON_DISK | cases.IN_MEMORY)[schedule](cases.STEPS))
functional = cases.functional_of(getattr(cases, case))
functional.derivative(**({{"adj_input": cases.field()}} if "cofunction" in case else {{}}))
print("NOT ENDED")
"""

# A script without a schedule: J of a control c in V on a mesh with coordinates x, y; the rest is the test's.
SHORT = """
import sys
from firedrake import *
from firedrake.adjoint import *
from pyadjoint import AdjFloat, Block

continue_annotation()
mesh = UnitSquareMesh(3, 3)
x, y = SpatialCoordinate(mesh)
V = FunctionSpace(mesh, "CG", 1)
c = Function(V).interpolate(1 + x * y)
J = assemble(c**4 * dx)
"""

# J**3 by a block with a handwritten derivative, which is wrong.
BLOCK = """
class Cube(Block):
    def evaluate_adj_component(self, inputs, adj_inputs, block_variable, idx, prepared=None):
        return adj_inputs[0] * 2 * inputs[0]**2

    def recompute_component(self, inputs, block_variable, idx, prepared):
        return inputs[0]**3

def cube(J):
    block, result = Cube(), AdjFloat(float(J)**3)
    block.add_dependency(J)
    get_working_tape().add_block(block)
    block.add_output(result.block_variable)
    return result
"""


@pytest.fixture
def verify(run, tmp_path):
    """verify(code, *arguments, options=(), ranks=0, ...): status, JSON report and the finished process."""

    def verify(code, *arguments, options=(), ranks=0, **variables):
        script = tmp_path / "script.py"
        script.write_text(code)
        done = run("verify", "--json", *options, script, *arguments, ranks=ranks, **variables)
        try:
            report = json.loads(done.stdout)
        except ValueError:
            report = {}
        return done.returncode, report, done

    return verify


def orders(report):
    return [test["order"] for test in report["tests"]]


@pytest.mark.parametrize(
    "case, schedule",
    [
        ("source_of_each_step", "none"),
        ("initial_condition", "all on disk"),
        ("number", "multistage, disk"),
        ("state_that_each_step_overwrites", "revolve"),
        ("source_as_it_is_in_one_step", "mixed, disk"),
        ("functional_that_is_a_cofunction", "multistage, memory and disk"),
        ("shape", "all on disk"),
        ("product_over_steps", "all in memory"),
    ],
)
def test_right_gradient(case, schedule, verify):
    status, report, done = verify(CASE, case, schedule)
    assert (status, report.get("verdict")) == (0, "right"), done.stdout + done.stderr
    assert orders(report) == pytest.approx([2, 2], abs=0.1) and "NOT ENDED" not in done.stderr


@pytest.mark.parametrize("schedule", ["revolve", "multistage, disk"])
@pytest.mark.parametrize("case, first", [("shape", 1), ("product_over_steps", 2)])
def test_known_wrong_gradient(case, first, schedule, verify):
    status, report, done = verify(CASE, case, schedule)
    assert (status, report.get("verdict")) == (1, "wrong"), done.stdout + done.stderr
    assert orders(report) == pytest.approx([first, 1], abs=0.1)


# A state of one timestep is used again in a later one. With schedules that compute steps again, pyadjoint-ad 2026.10.0
# has a wrong gradient at other controls than the recorded one.
USED_AGAIN = """
import sys
from firedrake import *
from firedrake.adjoint import *
from checkpoint_schedules import Revolve, SingleDiskStorageSchedule

continue_annotation()
enable_disk_checkpointing()
get_working_tape().enable_checkpointing(eval(sys.argv[1]))
V = FunctionSpace(UnitSquareMesh(4, 4), "CG", 1)
x, y = SpatialCoordinate(V.mesh())
c = Function(V).interpolate(1 + x * y)
u, before, kept, v = Function(V), Function(V), Function(V), TestFunction(V)
F = (8 * (u - before) + u**3 - c) * v * dx
solver = NonlinearVariationalSolver(NonlinearVariationalProblem(F, u))
for step in get_working_tape().timestepper(iter(range(6))):
    solver.solve()
    before.assign(u)
    if step == 1:
        kept.assign(u)
    if step == 4:
        before.interpolate(before + kept**2)
ReducedFunctional(assemble(u**2 * dx), Control(c)).derivative()
"""


@pytest.mark.parametrize("schedule, verdict", [("SingleDiskStorageSchedule()", "right"), ("Revolve(6, 2)", "wrong")])
def test_state_that_is_used_again_later(schedule, verdict, verify):
    _, report, done = verify(USED_AGAIN, schedule)
    assert report.get("verdict") == verdict, done.stdout + done.stderr
    assert orders(report) == pytest.approx([2, 2 if verdict == "right" else 1], abs=0.1)


@pytest.mark.parametrize(
    "case, schedule, status",
    [
        ("number", "all on disk", 0),
        ("product_over_steps", "multistage, disk", 1),
    ],
)
def test_two_ranks_find_what_one_finds(case, schedule, status, verify):
    alone, here, _ = verify(CASE, case, schedule)
    together, there, done = verify(CASE, case, schedule, ranks=2)
    assert (alone, together) == (status, status), done.stdout + done.stderr
    assert orders(there) == pytest.approx(orders(here), abs=0.01)
    assert [test["slope"] for test in there["tests"]] == pytest.approx([test["slope"] for test in here["tests"]])


def test_text_is_a_plan_a_table_and_a_verdict(run, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SHORT + "ReducedFunctional(J, Control(c), scale=3).derivative()\n")
    done = run("verify", script)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert lines[0].startswith("localckpt verify: 16 evaluations and 4 gradients, ")
    assert lines[2].startswith("first control") and lines[2].endswith("2.00")
    assert lines[-1].startswith("right: a Taylor test of order 2.00")


OPTIMISERS = {
    "minimize": "minimize(f, bounds=(1.0, upper))",
    "minimize, two": "minimize(f, bounds=[[1.0, 1.0], [upper, upper]])",
    "maximize": "from pyadjoint import maximize; maximize(f, bounds=(1.0, upper))",
    "TAO": "problem = MinimizationProblem(f, bounds=[(Function(V).assign(1.0), upper)]);"
    "TAOSolver(problem, {'tao_type': 'blmvm'}).solve()",
}


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_optimisers_bounds_are_kept(optimiser, verify):
    code = SHORT + (
        "upper = Function(V).interpolate(1.5 + x)\n"
        "def check(values):\n"
        "    for value in values if isinstance(values, list) else [values]:\n"
        "        assert 1 <= value.dat.data_ro.min() and (upper.dat.data_ro - value.dat.data_ro).min() >= 0\n"
    )
    if "two" in optimiser:
        code += "d = Function(V).assign(1.2); J += assemble(d**4 * dx); controls = [Control(c), Control(d)]\n"
    else:
        code += "controls = Control(c)\n"
    code += f"f = ReducedFunctional(J, controls, eval_cb_pre=check)\n{OPTIMISERS[optimiser]}\n"
    status, report, done = verify(code)
    assert (status, report.get("verdict")) == (0, "right"), done.stdout + done.stderr


def test_optimiser_without_bounds(verify):
    status, report, done = verify(SHORT + "minimize(ReducedFunctional(J, Control(c)))\n")
    assert (status, report.get("verdict")) == (0, "right"), done.stdout + done.stderr


def test_handwritten_derivative_that_is_wrong(verify):
    code = SHORT + BLOCK + "ReducedFunctional(cube(J), Control(c)).derivative()\n"
    status, report, done = verify(code)
    assert (status, report.get("verdict")) == (1, "wrong"), done.stdout + done.stderr


@pytest.mark.parametrize("ranks", [0, 2])
@pytest.mark.parametrize("ending", ["", "sys.exit()", "sys.exit(7)"])
def test_script_without_a_derivative(ending, ranks, verify):
    status, report, _ = verify(f"import sys\nprint('mine')\n{ending}\n", ranks=ranks)
    assert (status, report["verdict"]) == (3, "not reached")


def test_last_words_of_a_script_are_printed(verify):
    status, _, done = verify("import sys; sys.exit('no mesh')\n")
    assert status == 3 and "no mesh" in done.stderr.splitlines()


def test_without_firedrake(run, missing):
    assert run("verify", "-m", "this", **missing("firedrake")).returncode == 3


def test_script_that_fails(verify):
    status, report, done = verify("raise LookupError('nothing there')\n")
    assert (status, report["verdict"]) == (3, "failed")
    assert "LookupError: nothing there" in done.stderr and "Traceback" in done.stderr


@pytest.mark.parametrize("where", ["before", "within"])
def test_rank_that_fails_alone_ends_all(where, verify):
    code = SHORT + (
        "def fail(*_):\n    if mesh.comm.rank == 1: raise LookupError('here')\n"
        "f = ReducedFunctional(J, Control(c), eval_cb_pre=fail)\n"
    )
    code += "fail(); mesh.comm.Barrier()\n" if where == "before" else "f.derivative()\n"
    start = time.monotonic()
    status, _, done = verify(code, ranks=2)
    assert status == 3 and "LookupError: here" in done.stderr and time.monotonic() - start < 55


def test_script_that_catches_exceptions_ends_nevertheless(verify):
    code = SHORT + (
        "try:\n    ReducedFunctional(J, Control(c)).derivative()\nexcept Exception:\n    pass\nprint('NOT ENDED')\n"
    )
    status, _, done = verify(code)
    assert status == 0 and "NOT ENDED" not in done.stderr


def test_verdict_stands_if_the_script_catches_even_that(verify):
    code = SHORT + (
        "for _ in range(3):\n    try:\n        ReducedFunctional(J, Control(c)).derivative()\n"
        "    except BaseException:\n        pass\n"
    )
    status, report, _ = verify(code + "raise LookupError\n")
    assert (status, report["verdict"]) == (0, "right")


@pytest.mark.parametrize(
    "options, variables",
    [(["--within", "0"], {}), ([], {"SLURM_JOB_END_TIME": "12345"})],
    ids=["within", "end of the job"],
)
@pytest.mark.parametrize("ranks", [0, 2])
def test_it_stops_if_there_is_not_enough_time(options, variables, ranks, verify):
    code = SHORT + "f = ReducedFunctional(J, Control(c), eval_cb_pre=lambda *_: print('EVALUATED'))\nf.derivative()\n"
    status, report, done = verify(code, options=options, ranks=ranks, **variables)
    assert (status, report["verdict"], report["tests"]) == (1, "not shown", []), done.stderr
    assert "the tests would take" in report["why"] and "EVALUATED" not in done.stderr


def test_there_is_enough_time(verify):
    end = str(math.ceil(time.time()) + 3600)
    code = SHORT + "ReducedFunctional(J, Control(c)).derivative()\n"
    assert verify(code, options=["--within", "600"], SLURM_JOB_END_TIME=end)[0] == 0


def test_known_faults_are_named_with_a_wrong_gradient(verify, claimed):
    code = SHORT + BLOCK + "ReducedFunctional(cube(J), Control(c)).derivative()\n"
    status, report, _ = verify(code, **claimed("pyadjoint-ad", "2026.4.0"))
    assert status == 1 and len(report["known_faults"]) == 2 and "pyadjoint#257" in report["known_faults"][0]


def test_standard_output_has_nothing_but_json(verify):
    code = (
        SHORT + "import os; print('mine'); os.system('echo also mine')\nReducedFunctional(J, Control(c)).derivative()\n"
    )
    _, report, done = verify(code)
    assert report["verdict"] == "right" and {"mine", "also mine"} <= set(done.stderr.splitlines())


@pytest.mark.parametrize("target", [["not_there.py"], ["-m", "not_there"]], ids=" ".join)
def test_a_missing_target_is_a_wrong_command_line(target, run):
    done = run("verify", *target)
    assert done.returncode == 2 and done.stderr.startswith("localckpt verify: ")
