"""``python -m localckpt run``: scripts that know nothing of localckpt."""

import json
import os
import subprocess
import sys

import pytest

# No word of localckpt in it.
SCRIPT = """
import json, os, sys, warnings
warnings.simplefilter("error", UserWarning)
from firedrake import *
from firedrake.adjoint import *
from firedrake.petsc import PETSc
from checkpoint_schedules import SingleDiskStorageSchedule

continue_annotation()
tape = get_working_tape()
enable_disk_checkpointing()
checkpointable_mesh(UnitSquareMesh(2, 2))
mesh_files = [name for name in os.listdir() if name.startswith("localckpt_")]
tape.enable_checkpointing(SingleDiskStorageSchedule())
c = Function(FunctionSpace(UnitSquareMesh(2, 2), "CG", 1)).assign(2.0)
u = Function(c.function_space())
for _ in tape.timestepper(iter(range(3))):
    u.assign(u + c)
J = ReducedFunctional(assemble(u * u * dx), Control(c))
J(c)
checkpointer = tape._package_data["firedrake"]
checkpoints = [value for step in tape.timesteps for value in step._checkpoint.values()]
kinds = {type(getattr(checkpoint, "local", checkpoint)).__module__ for checkpoint in checkpoints}
facts = {
    "name": __name__,
    "argv": sys.argv,
    "path": sys.path[0],
    "checkpointer": type(checkpointer).__module__,
    "kinds": sorted(kinds & {"localckpt.adjoint.checkpoints", "firedrake.adjoint_utils.checkpointing"}),
    "directory": os.path.dirname(checkpointer.dirname),
    "mesh function": checkpointable_mesh.__module__ + " " + checkpointable_mesh.__globals__["__name__"],
    "mesh files": mesh_files,
    "option": PETSc.Options().getInt("mine", 0),
    "slope": float(J.derivative().dat.data_ro.sum()),
}
print("FACTS", json.dumps(facts), flush=True)
"""


def run(directory, *arguments):
    """The finished process and what the script found out."""
    done = subprocess.run(
        [sys.executable, "-m", "localckpt", "run", *map(str, arguments)],
        cwd=directory,
        env=dict(os.environ),
        capture_output=True,
        text=True,
        timeout=120,
    )
    facts = [line for line in done.stdout.splitlines() if line.startswith("FACTS ")]
    return done, json.loads(facts[0].removeprefix("FACTS ")) if facts else {}


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    """A script run with arguments of its own, from another directory; it exits with status 7."""
    directory, scratch, elsewhere = map(tmp_path_factory.mktemp, ("script", "scratch", "elsewhere"))
    path = directory / "its own.py"
    path.write_text(SCRIPT + "sys.exit(7)\n")
    arguments = ["first", "--run", "-m", "-mine", "3", "-localckpt_dir", str(scratch)]
    done, facts = run(elsewhere, path, *arguments)
    return done, facts, path, arguments, scratch


@pytest.fixture(scope="module")
def module(tmp_path_factory):
    """A module run from the directory that it is in; it raises in the end."""
    directory = tmp_path_factory.mktemp("module")
    (directory / "of_mine.py").write_text(SCRIPT + "raise LookupError('nothing there')\n")
    done, facts = run(directory, "-m", "of_mine", "--verbose")
    return done, facts, directory


def test_scripts_tape_has_our_checkpointer(script):
    done, facts, *_ = script
    assert facts.get("checkpointer") == "localckpt.adjoint.checkpointer", done.stderr


def test_scripts_mesh_leaves_no_file(script):
    assert script[1]["mesh files"] == [] and script[1]["mesh function"].endswith("localckpt.adjoint.patches")


def test_scripts_checkpoints_are_ours(script):
    assert script[1]["kinds"] == ["localckpt.adjoint.checkpoints"]


def test_script_has_the_right_gradient(script):
    # J is the integral of (3c)^2, so its derivative in the direction 1 is 18c.
    assert script[1]["slope"] == pytest.approx(36)


def test_script_is_main(script):
    assert script[1]["name"] == "__main__"


def test_script_sees_its_own_arguments(script):
    _, facts, path, arguments, _ = script
    assert facts["argv"] == [str(path), *arguments]


def test_script_imports_from_its_own_directory(script):
    assert os.path.samefile(script[1]["path"], script[2].parent)


def test_scripts_options_reach_petsc(script):
    assert script[1]["option"] == 3


def test_localckpts_option_on_the_scripts_command_line_counts(script):
    assert os.path.samefile(script[1]["directory"], script[4])


def test_scripts_exit_status_is_passed_on(script):
    assert script[0].returncode == 7


def test_modules_tape_has_our_checkpointer(module):
    done, facts, _ = module
    assert facts.get("checkpointer") == "localckpt.adjoint.checkpointer", done.stderr


def test_module_is_main(module):
    assert module[1]["name"] == "__main__"


def test_module_sees_its_own_arguments(module):
    _, facts, directory = module
    assert facts["argv"] == [str(directory / "of_mine.py"), "--verbose"]


def test_module_imports_from_the_current_directory(module):
    # Python itself has the directory's full path there.
    assert os.path.samefile(module[1]["path"], module[2])


def test_modules_exception_ends_the_run_with_its_traceback(module):
    assert module[0].returncode == 1 and "LookupError: nothing there" in module[0].stderr


@pytest.mark.parametrize("arguments", [[], ["run"], ["walk"]], ids=" ".join)
def test_a_command_line_without_a_target_says_how_to_use_it(arguments, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "localckpt", *arguments],
        cwd=tmp_path,
        env=dict(os.environ),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2 and done.stderr.startswith("usage: python -m localckpt")


@pytest.mark.parametrize(
    "arguments, status, sentence",
    [
        (["not_there.py"], 2, "can't open file '{}/not_there.py': [Errno 2] No such file or directory"),
        (["-m", "not_there.at_all"], 1, "No module named not_there"),
    ],
    ids=["script", "module"],
)
def test_a_missing_target_is_one_sentence_with_pythons_exit_status(arguments, status, sentence, tmp_path):
    python = subprocess.run([sys.executable, *arguments], cwd=tmp_path, capture_output=True, timeout=60)
    done, _ = run(tmp_path, *arguments)
    assert (done.returncode, python.returncode) == (status, status)
    assert done.stderr == f"localckpt run: {sentence.format(tmp_path)}\n"
