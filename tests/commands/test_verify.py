"""``python -m localckpt verify``: its verdict, what it prints, how it ends.

Where it does not matter that it is a process of its own, it runs in this one, which has imported Firedrake already.
Which gradients are right and which are wrong: tests/adjoint/test_gradient_tests.py.
"""

import contextlib
import json
import math
import sys
import time

import pytest
from firedrake.adjoint import pause_annotation, set_working_tape
from mpi4py import MPI

from localckpt.__main__ import main
from localckpt.adjoint import derivatives, patches

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
def verify(shared_tmp, monkeypatch, capsys):
    """verify(code, *options): exit status, lines of output and standard error of the command, in this process."""
    monkeypatch.setattr(derivatives, "_receivers", [])
    monkeypatch.setattr(derivatives, "_bounds", [])

    def verify(code, *options):
        script = shared_tmp / f"script-{MPI.COMM_WORLD.rank}.py"
        script.write_text(code)
        monkeypatch.setattr(sys, "argv", sys.argv)
        monkeypatch.setattr(sys, "path", [str(shared_tmp), *sys.path])
        with set_working_tape(), pytest.raises(SystemExit) as ended:
            main(["verify", *options, str(script)])
        printed = capsys.readouterr()
        return ended.value.code, printed.out.splitlines(), printed.err

    yield verify
    pause_annotation()
    patches.uninstall()
    patches.install()


@pytest.fixture
def launch(run, tmp_path):
    """launch(code, ranks=0): status, JSON report and the finished process."""

    def launch(code, ranks=0):
        script = tmp_path / "script.py"
        script.write_text(code)
        done = run("verify", "--json", script, ranks=ranks)
        with contextlib.suppress(ValueError):
            return done.returncode, json.loads(done.stdout), done
        return done.returncode, {}, done

    return launch


def verdict(lines):
    """The first word of the last line, on the rank that prints it."""
    return lines[-1].partition(":")[0] if MPI.COMM_WORLD.rank == 0 else None


def on_one_rank(word):
    return word if MPI.COMM_WORLD.rank == 0 else None


def test_text_is_a_plan_a_table_and_a_verdict(verify):
    status, lines, _ = verify(SHORT + "ReducedFunctional(J, Control(c), scale=3).derivative()\n")
    assert status == 0
    assert lines[0].startswith("localckpt verify: 16 evaluations and 4 gradients, ")
    assert lines[2].startswith("first control") and lines[2].endswith("2.00")
    assert lines[-1].startswith("right: a Taylor test of order 2.00")


OPTIMISERS = {
    "minimize, free": "minimize(ReducedFunctional(J, Control(c)))",
    "minimize": "minimize(f, bounds=(1.0, upper))",
    "minimize, two": "minimize(f, bounds=[[1.0, 1.0], [upper, upper]])",
    "maximize": "from pyadjoint import maximize; maximize(f, bounds=(1.0, upper))",
    "TAO": "problem = MinimizationProblem(f, bounds=[(Function(V).assign(1.0), upper)]);"
    "TAOSolver(problem, {'tao_type': 'blmvm'}).solve()",
}


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_optimisers_are_stopped_and_their_bounds_are_kept(optimiser, verify):
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
    code += f"f = ReducedFunctional(J, controls, eval_cb_pre=check)\n{OPTIMISERS[optimiser]}\nprint('NOT ENDED')\n"
    status, lines, err = verify(code)
    assert (status, verdict(lines)) == (0, "right") and "NOT ENDED" not in lines, err


@pytest.mark.parallel([1, 2])
@pytest.mark.parametrize("ending", ["", "sys.exit()", "sys.exit(7)"])
def test_script_without_a_derivative(ending, verify):
    status, lines, _ = verify(f"import sys\n{ending}\n")
    assert (status, verdict(lines)) == (3, on_one_rank("not reached"))


def test_last_words_of_a_script_are_printed(verify):
    status, _, err = verify("import sys; sys.exit('no mesh')\n")
    assert status == 3 and "no mesh" in err.splitlines()


def test_without_firedrake(run, missing):
    assert run("verify", "-m", "this", **missing("firedrake")).returncode == 3


def test_script_that_fails(verify):
    status, lines, err = verify("raise LookupError('nothing there')\n")
    assert (status, verdict(lines)) == (3, "failed")
    assert "LookupError: nothing there" in err and "Traceback" in err


def test_evaluation_that_fails(verify):
    code = SHORT + "def fail(*_): raise LookupError('here')\n"
    status, lines, err = verify(code + "ReducedFunctional(J, Control(c), eval_cb_post=fail).derivative()\n")
    assert status == 3 and lines[-1] == "failed: the tests ended with LookupError: here" and "Traceback" in err


@pytest.mark.parametrize("where", ["before", "within"])
def test_rank_that_fails_alone_ends_all(where, launch):
    code = SHORT + (
        "def fail(*_):\n    if mesh.comm.rank == 1: raise LookupError('here')\n"
        "f = ReducedFunctional(J, Control(c), eval_cb_pre=fail)\n"
    )
    code += "fail(); mesh.comm.Barrier()\n" if where == "before" else "f.derivative()\n"
    start = time.monotonic()
    status, _, done = launch(code, ranks=2)
    assert status == 3 and "LookupError: here" in done.stderr and time.monotonic() - start < 55


def test_script_that_catches_exceptions_ends_nevertheless(verify):
    code = SHORT + (
        "try:\n    ReducedFunctional(J, Control(c)).derivative()\nexcept Exception:\n    pass\nprint('NOT ENDED')\n"
    )
    status, lines, _ = verify(code)
    assert status == 0 and "NOT ENDED" not in lines


def test_verdict_stands_if_the_script_catches_even_that(verify):
    code = SHORT + (
        "for _ in range(3):\n    try:\n        ReducedFunctional(J, Control(c)).derivative()\n"
        "    except BaseException:\n        pass\n"
    )
    status, lines, _ = verify(code + "raise LookupError\n")
    assert (status, verdict(lines)) == (0, "right")


@pytest.mark.parallel([1, 2])
@pytest.mark.parametrize("limit", ["within", "end of the job"])
def test_it_stops_if_there_is_not_enough_time(limit, verify, monkeypatch):
    code = SHORT + "f = ReducedFunctional(J, Control(c), eval_cb_pre=lambda *_: print('EVALUATED'))\nf.derivative()\n"
    if limit == "end of the job":
        monkeypatch.setenv("SLURM_JOB_END_TIME", "12345")
    status, lines, err = verify(code, *(["--within", "0"] if limit == "within" else []))
    assert (status, verdict(lines)) == (1, on_one_rank("not shown")), err
    assert "EVALUATED" not in lines and all("the tests would take" in line for line in lines[1:])


def test_there_is_enough_time(verify, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(math.ceil(time.time()) + 3600))
    assert verify(SHORT + "ReducedFunctional(J, Control(c)).derivative()\n", "--within", "600")[0] == 0


def test_known_faults_are_named_with_a_wrong_gradient(verify, claimed):
    claimed("pyadjoint-ad", "2026.4.0")  # in the directory of the script, which Python searches first
    status, lines, _ = verify(SHORT + BLOCK + "ReducedFunctional(cube(J), Control(c)).derivative()\n")
    named = [line for line in lines if line.startswith("known fault: ")]
    assert status == 1 and len(named) == 2 and "pyadjoint#257" in named[0]
    assert "wrong: " in lines[-3]


def test_standard_output_of_a_process_has_nothing_but_json(launch):
    code = (
        SHORT + "import os; print('mine'); os.system('echo also mine')\nReducedFunctional(J, Control(c)).derivative()\n"
    )
    status, report, done = launch(code)
    assert (status, report.get("verdict")) == (0, "right"), done.stderr
    assert {"mine", "also mine"} <= set(done.stderr.splitlines())


@pytest.mark.parametrize("target", [["not_there.py"], ["-m", "not_there"]], ids=" ".join)
def test_a_missing_target_is_a_wrong_command_line(target, run):
    done = run("verify", *target)
    assert done.returncode == 2 and done.stderr.startswith("localckpt verify: ")
