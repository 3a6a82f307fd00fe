"""scripts/install-stack, with steps that install nothing."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "install-stack"
STUBS = """
missing() { :; }
for recipe in system_packages virtual_environment build_tools petsc h5py supermesh petsc4py needs \\
              tools firedrake localckpt; do
    eval "$recipe() { echo $recipe >>\\"\\$env/ran\\"; step_of $recipe; }"
done
step_of() {
    [ $1 != virtual_environment ] || { mkdir -p "$env/bin"; ln -sf /bin/true "$env/bin/python"; }
    [ $1 != localckpt ] || echo "$RANDOM" >"$root/localckpt/_core.so"
    [ "$1" != "${BREAK:-}" ] || { echo 'no more room'; return 1; }
    [ "$1" != "${HANG:-}" ] || sleep 1000
}
"""


class Stack:
    def __init__(self, directory):
        self.env = directory / "env"
        self.clones = [directory / "a clone", directory / "another"]
        for clone in self.clones:
            for path in ("scripts/install-stack", "src/core.pyx", "localckpt/core.pxd", "setup.py", "pyproject.toml"):
                (clone / path).parent.mkdir(parents=True, exist_ok=True)
                (clone / path).write_text(path)
            recipes, rule, rest = SCRIPT.read_text().partition("# The compiled modules")
            (clone / "scripts/install-stack").write_text(recipes + STUBS + rule + rest)
            shutil.copy(SCRIPT.parent / "common", clone / "scripts")

    def start(self, clone=0, **variables):
        return subprocess.Popen(
            ["bash", "scripts/install-stack"],
            cwd=self.clones[clone],
            text=True,
            env={**os.environ, **({"LOCALCKPT_ENV": str(self.env)} if self.env else {}), **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def run(self, *args, **variables):
        """Exit status, stdout, stderr, and the steps that were carried out."""
        (self.env / "ran").unlink(missing_ok=True)
        process = self.start(*args, **variables)
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err, self.ran()

    def ran(self):
        return (self.env / "ran").read_text().split() if (self.env / "ran").exists() else []


@pytest.fixture
def stack(tmp_path):
    return Stack(tmp_path)


def test_prints_the_interpreter_and_does_each_step_once(stack):
    status, out, err, ran = stack.run()
    assert (status, out, len(ran)) == (0, f"{stack.env}/bin/python\n", 11)
    assert ran.index("petsc") < ran.index("petsc4py") < ran.index("firedrake") < ran.index("localckpt")
    assert "[11/11] localckpt  done in 0:0" in err
    assert stack.run() == (0, out, "", [])


def test_goes_on_where_a_step_failed(stack):
    status, out, err, ran = stack.run(BREAK="h5py")
    assert (status, out) == (1, "")
    assert "[5/11] h5py" in err and "FAILED" in err and "no more room" in err
    ran = set(stack.run()[3]) - {"petsc"}  # which runs beside h5py, and was stopped with it or was done
    assert ran == {"h5py", "supermesh", "petsc4py", "needs", "tools", "firedrake", "localckpt"}


def test_a_changed_pin_undoes_the_step_and_what_stands_on_it(stack):
    stack.run()
    script = stack.clones[0] / "scripts/install-stack"
    before = script.read_text()
    for text in (before.replace("PETSC=3", "PETSC=9", 1), before):
        assert text != script.read_text()
        script.write_text(text)
        assert stack.run()[3] == ["petsc", "petsc4py", "firedrake"]


def test_each_combination_has_an_environment_of_its_own(stack, tmp_path):
    stack.env = None
    names = []
    for variables in ({}, {"FIREDRAKE": "2026.4.3"}, {"SCALAR": "complex"}):
        interpreter = Path(stack.start(XDG_CACHE_HOME=str(tmp_path), **variables).communicate(timeout=60)[0])
        names.append(interpreter.parents[1].name)
        assert len((interpreter.parents[1] / "ran").read_text().split()) == 11
    assert names == ["env", "env-2026.4.3-real", "env-2026.10.0-complex"]


@pytest.mark.parametrize("variable", ["FIREDRAKE", "SCALAR"])
def test_a_combination_that_it_does_not_know_is_named(stack, variable):
    status, out, err, ran = stack.run(**{variable: "2019"})
    assert (status, out, ran) == (2, "", [])
    assert err.startswith(f"{variable}=2019: ") and len(err.splitlines()) == 1


def test_a_demo_goes_without_the_tools_for_tests(stack):
    status, _, err, ran = stack.run(LOCALCKPT_TOOLS="no")
    assert (status, len(ran)) == (0, 10) and "tools" not in ran
    assert "[10/10] localckpt  done in 0:0" in err
    assert stack.run()[3] == ["tools"]


def test_the_last_checkout_takes_over(stack):
    stack.run()
    assert stack.run(1)[3] == ["localckpt"]
    assert stack.run(0)[3] == ["localckpt"]
    for path in ("src/core.pyx", "localckpt/core.pxd", "localckpt/_core.so"):
        (stack.clones[0] / path).write_text("changed")
        assert stack.run(0)[3] == ["localckpt"], path
    (stack.clones[0] / "localckpt/_core.so").unlink()
    assert stack.run(0)[3] == ["localckpt"]
    assert stack.run(0)[3] == []


def test_two_at_once(stack):
    both = [stack.start(), stack.start(1)]
    for process in both:
        assert process.communicate(timeout=60)[0] == f"{stack.env}/bin/python\n"
    assert sorted(stack.ran()).count("localckpt") == 2 and len(stack.ran()) == 12


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_stopping_it_stops_the_step(stack, sent):
    process = stack.start(HANG="petsc")
    end = time.monotonic() + 30
    while "supermesh" not in stack.ran() and time.monotonic() < end:
        time.sleep(0.1)
    process.send_signal(sent)
    said = process.communicate(timeout=10)[1]  # the step holds its pipes, too
    assert "[4/11] PETSc" in said and "stopped; the next call goes on from there" in said
    assert process.returncode != 0
    assert stack.run()[3][0] == "petsc"


def test_an_environment_whose_interpreter_is_gone_is_made_again(stack):
    stack.run()
    (stack.env / "bin/python").unlink()
    assert len(stack.run()[3]) == 11


def test_needs_a_path_without_spaces(stack):
    stack.env = stack.env.with_name("my env")
    status, out, err, _ = stack.run()
    assert (status, out) == (1, "") and "path without spaces" in err


def test_asks_for_system_packages_by_name(stack, tmp_path):
    """If they are missing and cannot be installed from here."""
    head = SCRIPT.read_text().partition("# The compiled modules")[0]
    for tool in ("apt-get", "sudo", "dpkg-query"):
        (tmp_path / tool).write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / tool).chmod(0o755)
    (tmp_path / "scripts").mkdir()
    shutil.copy(SCRIPT.parent / "common", tmp_path / "scripts")
    (tmp_path / "scripts/head").write_text(head + 'system_packages "${SYSTEM_PACKAGES[@]}"')
    asked = subprocess.run(
        ["bash", tmp_path / "scripts/head"],
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        timeout=20,
    )
    assert asked.returncode != 0
    assert "ask an administrator for:  apt-get install build-essential gfortran" in asked.stdout


def test_installs_system_packages_for_an_environment_from_another_machine(stack):
    stack.run()
    script = stack.clones[0] / "scripts/install-stack"
    script.write_text(script.read_text().replace("missing() { :; }", "missing() { echo gfortran; }"))
    assert stack.run()[3] == ["system_packages"]
