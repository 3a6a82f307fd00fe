"""The README and the manual name only what exists: files, tests, options, messages."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SOURCES = [*ROOT.glob("localckpt/**/*.py"), *ROOT.glob("src/*.p[yx][xi]"), *ROOT.glob("src/*.[ch]"), ROOT / "setup.py"]
TABLE = ROOT / "docs" / "reference" / "options.md"
DESIGN = ROOT / "docs" / "explanation" / "design.md"
MESSAGES = ROOT / "docs" / "reference" / "messages.md"
PARTS = "|".join(path.name for path in (ROOT / "tests").iterdir() if path.is_dir())


def options_in_the_code():
    sources = "".join(path.read_text() for path in SOURCES)
    return set(re.findall(r'Options\("localckpt_"\)\s*\.get\w+\(\s*"(\w+)"', sources))


def test_options_of_the_manual_exist():
    named = {name for page in PAGES for name in re.findall(r"(?<!\w)-localckpt_(\w+)", page.read_text())}
    assert named - options_in_the_code() == set()


def test_options_are_in_the_table():
    assert options_in_the_code() - set(re.findall(r"`-localckpt_(\w+)`", TABLE.read_text())) == set()


def test_readme_is_short():
    before, reference, _ = (ROOT / "README.md").read_text().partition("\n## Reference\n")
    assert reference and len(before.split()) <= 600


@pytest.mark.parametrize(
    "page", [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"], ids=lambda page: str(page.relative_to(ROOT))
)
def test_links_to_files_lead_somewhere(page):
    targets = re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text())  # those between pages: Sphinx looks at them
    assert [target for target in targets if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_tests_that_a_page_names_exist(page):
    named = set(re.findall(rf"`(?:tests/)?((?:(?:{PARTS})/)?test_\w+\.py)`", page.read_text()))
    assert {name for name in named if not [*(ROOT / "tests").rglob(name)]} == set()


def test_files_of_the_page_on_the_design_exist():
    named = set(re.findall(r"[\w/]+\.pyx?\b", DESIGN.read_text()))
    assert len(named) > 30
    assert {name for name in named if not [*ROOT.rglob(name)]} == set()


def written_as_one(source):
    """The text of a source, adjacent strings joined, with "…" for what is filled in."""
    joined = re.sub(r"""["']\s*(?:\\\n\s*|\n\s*)?(?:#.*\n\s*)?f?["']""", "", source)
    return re.sub(r"\{[^{}\n]*\}|%\S*[a-z]", "…", joined)


def test_messages_of_the_manual_are_in_the_code():
    code = "\n".join(written_as_one(path.read_text()) for path in SOURCES)
    messages = re.findall(r"^(?:### |\| )`(?:localckpt: )?(.+?)`(?:: .*| \|.*)?$", MESSAGES.read_text(), re.M)
    assert len(messages) > 40
    parts = {message: [part.strip() for part in message.split("…") if part.strip()] for message in messages}
    assert {message for message in parts if not all(part in code for part in parts[message])} == set()
