"""Every code block of the README and the manual runs as it stands there.

A page's blocks of Python are one script, in their order; one that begins with ``# name.py`` is a file for the page's
blocks of shell, which run after that. Below a command of a console block stand lines that it prints ("..." is
anything). Job scripts (``#!``) find stand-ins for what a scheduler has. Before a block that cannot run stands
``<!-- not run: why -->``.
"""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCED = re.compile(
    r"(?:^<!-- not run: (?P<why>[^\n]+) -->\n)?"
    r"^```(?P<language>[^\n]*)\n(?P<code>.*?)^```$",
    re.M | re.S,
)
SHELL = "sh", "console"
PROSE = "", "text"  # and MyST's {directives}
FOLDERS = "SLURM_TMPDIR", "PBS_JOBFS", "SCRATCH"

LAUNCHER = """#!/bin/sh
ranks=1  # where more are asked for than run quickly
while [ "${{1#-}}" != "$1" ]; do
    [ "$1" != -n ] || {{ shift; [ "$1" -gt 2 ] || ranks=$1; }}
    shift
done
exec {mpiexec} -n $ranks "$@"
"""
# The reader's own script, on pages that say how to run one.
SCRIPT = """
from localckpt.storage.directories import choose_tiers
print("checkpoints go to", *[tier.path for tier in choose_tiers(None, 1)])
"""


@dataclass(frozen=True)
class Block:
    language: str
    code: str
    why: str | None
    line: int

    @property
    def file(self):
        """The name that a block of Python gives itself."""
        name = re.match(r"# (\S+\.py)\n", self.code)
        return name and name[1]

    @property
    def runs(self):
        return self.language in ("python", *SHELL) and self.why is None


def blocks(page):
    text = page.read_text()
    return [
        Block(found["language"], found["code"], found["why"], text.count("\n", 0, found.start("code")) + 1)
        for found in FENCED.finditer(text)
    ]


@pytest.fixture
def run(tmp_path):
    """run(command, ...): what it prints, in a folder and an environment of its own."""
    tools, home = tmp_path / "tools", tmp_path / "home" / "localckpt" / "bin"
    for folder in (tools, home, *(tmp_path / name for name in FOLDERS)):
        folder.mkdir(parents=True)
    (home / "activate").touch()
    (tmp_path / "script.py").write_text(SCRIPT)
    for name, code in (("mpiexec", LAUNCHER), ("srun", LAUNCHER), ("module", "#!/bin/sh\n")):
        (tools / name).write_text(code.format(mpiexec=shutil.which("mpiexec")))
        (tools / name).chmod(0o755)
    environment = {
        **os.environ,
        **{name: str(tmp_path / name) for name in FOLDERS},
        "MPIEXEC_TIMEOUT": "180",
        "PATH": os.pathsep.join([str(tools), os.path.dirname(sys.executable), os.environ["PATH"]]),
    }

    def run(*command, **variables):
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env={**environment, **variables},
            text=True,
            timeout=200,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert done.returncode == 0, f"{command[-1]}\nexit status {done.returncode}:\n{done.stdout}"
        return done.stdout

    run.folder = tmp_path
    return run


def bash(run, code, **variables):
    return run("bash", "-euo", "pipefail", "-c", code, **variables)


def run_shell(run, block):
    if block.language == "console":
        for command in re.split(r"^\$ ", block.code, flags=re.M)[1:]:
            command, _, expected = command.partition("\n")
            printed = bash(run, command).splitlines()
            for line in expected.splitlines():
                pattern = re.escape(line).replace(r"\.\.\.", ".*")
                assert any(re.fullmatch(pattern, found) for found in printed), (line, printed)
    elif block.code.startswith("#!"):
        printed = bash(run, block.code, HOME=str(run.folder / "home"))
        assert f"checkpoints go to {run.folder}" in printed
    else:
        bash(run, block.code)


@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(block.runs for block in blocks(page))], ids=lambda page: page.name
)
def test_the_page_runs(page, run):
    found = [block for block in blocks(page) if block.runs]
    script = []
    for block in found:
        if block.file:
            (run.folder / block.file).write_text(block.code)
        elif block.language == "python":  # on the page's own lines, for tracebacks
            script += [""] * (block.line - 1 - len(script)) + block.code.splitlines()
    if script:
        (run.folder / "page.py").write_text("\n".join(script) + "\n")
        run(sys.executable, "page.py")
    for block in found:
        if block.language in SHELL:
            run_shell(run, block)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_block_escapes(page):
    text = page.read_text()
    languages = {block.language for block in blocks(page)}
    assert all(language in ("python", *SHELL, *PROSE) or language.startswith("{") for language in languages)
    assert len(re.findall(r"^\s*(?:```|~~~)", text, re.M)) == 2 * len(blocks(page))
    files = [block.file for block in blocks(page) if block.file]
    commands = "".join(block.code for block in blocks(page) if block.runs and block.language in SHELL)
    assert [name for name in files if name not in commands] == []


def test_few_blocks_are_not_run():
    excused = [block for page in PAGES for block in blocks(page) if block.why is not None]
    assert len(excused) <= 4


def test_options_exist():
    sources = "".join(path.read_text() for path in [*ROOT.glob("localckpt/*.py"), *ROOT.glob("src/*.p[yx][xi]")])
    known = set(re.findall(r'Options\("localckpt_"\)\.get\w+\("(\w+)"', sources))
    named = {name for page in PAGES for name in re.findall(r"(?<!\w)-localckpt_(\w+)", page.read_text())}
    assert named <= known
