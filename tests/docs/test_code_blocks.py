"""Every code block of the README and the manual runs.

The blocks of Python of a page are one script, in their order. A block that begins with ``# name.py`` is a file for
the page's blocks of shell, which run afterwards. A block of kind ``diff`` is the script after the change. Below a
command of a console block are lines that it prints ("..." stands for anything). For job scripts (``#!``) there are
stand-ins for the commands and variables of a scheduler. A block that cannot run has ``<!-- not run: why -->``
before it.
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
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCED = re.compile(
    r"(?:^<!-- not run: (?P<why>[^\n]+) -->\n)?"
    r"^```(?P<language>[^\n]*)\n(?P<code>.*?)^```$",
    re.M | re.S,
)
SHELL = "sh", "console"
PROSE = "", "text"  # and MyST's {directives}
DIRECTORIES = "SLURM_TMPDIR", "PBS_JOBFS", "SCRATCH"

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
# And the reader's own program in C, on the page that says how to give it options.
PROGRAM = """#!/bin/sh
case "$*" in *" -ts_trajectory_type localckpt "*) ;; *) exit 1 ;; esac
"""


@dataclass(frozen=True)
class Block:
    language: str
    code: str
    why: str | None
    line: int

    @property
    def file(self):
        """The name in the first line of a block of Python."""
        name = re.match(r"# (\S+\.py)\n", self.code)
        return name and name[1]

    @property
    def python(self):
        """The code of a block of Python, or of a diff after the change."""
        if self.language == "diff":
            return "".join(line[1:] for line in self.code.splitlines(keepends=True) if not line.startswith("-"))
        return self.code if self.language == "python" else None

    @property
    def runs(self):
        return self.language in ("python", "diff", *SHELL) and self.why is None


def name_of(page):
    return str(page.relative_to(ROOT))


def blocks(page):
    text = page.read_text()
    return [
        Block(found["language"], found["code"], found["why"], text.count("\n", 0, found.start("code")) + 1)
        for found in FENCED.finditer(text)
    ]


@pytest.fixture
def run(tmp_path):
    """run(command, ...): what the command prints, in a directory and an environment of its own."""
    tools, home = tmp_path / "tools", tmp_path / "home" / "localckpt" / "bin"
    for directory in (tools, home, *(tmp_path / name for name in DIRECTORIES)):
        directory.mkdir(parents=True)
    (home / "activate").touch()
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "program").write_text(PROGRAM)
    (tmp_path / "program").chmod(0o755)
    for name, code in (("mpiexec", LAUNCHER), ("srun", LAUNCHER), ("module", "#!/bin/sh\n")):
        (tools / name).write_text(code.format(mpiexec=shutil.which("mpiexec")))
        (tools / name).chmod(0o755)
    environment = {
        **os.environ,
        **{name: str(tmp_path / name) for name in DIRECTORIES},
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

    run.directory = tmp_path
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
        printed = bash(run, block.code, HOME=str(run.directory / "home"))
        assert f"checkpoints go to {run.directory}" in printed
    else:
        bash(run, block.code)


@pytest.mark.parametrize("page", [page for page in PAGES if any(block.runs for block in blocks(page))], ids=name_of)
def test_the_page_runs(page, run):
    found = [block for block in blocks(page) if block.runs]
    script = []
    for block in found:
        if block.file:
            (run.directory / block.file).write_text(block.code)
        elif block.python is not None:  # on the lines of the page, for tracebacks
            script += [""] * (block.line - 1 - len(script)) + block.python.splitlines()
    if script:
        (run.directory / "page.py").write_text("\n".join(script) + "\n")
        run(sys.executable, "page.py")
    for block in found:
        if block.language in SHELL:
            run_shell(run, block)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_block_escapes(page):
    text = page.read_text()
    languages = {block.language for block in blocks(page)}
    assert all(language in ("python", "diff", *SHELL, *PROSE) or language.startswith("{") for language in languages)
    assert len(re.findall(r"^\s*(?:```|~~~)", text, re.M)) == 2 * len(blocks(page))
    files = [block.file for block in blocks(page) if block.file]
    commands = "".join(block.code for block in blocks(page) if block.runs and block.language in SHELL)
    assert [name for name in files if name not in commands] == []


def test_few_blocks_are_not_run():
    excused = [block for page in PAGES for block in blocks(page) if block.why is not None]
    assert len(excused) <= 4
