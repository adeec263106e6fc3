"""The pages of the documentation: their links lead somewhere, their lines are short, and an index names every
page.
"""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
GUIDE = sorted((ROOT / "docs" / "guide").glob("*.md"))
LOG = sorted((ROOT / "docs" / "log").glob("*.md"))
PAGES = [
    *(ROOT / page for page in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "clusters/README.md")),
    *GUIDE,
    *LOG,
]
COLUMNS = 100


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def prose(page: Path) -> str:
    """A page without its blocks of code, so that a comment is no heading and an index no link."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """What GitHub calls a page's headings: lower case, punctuation left out, a dash for each space."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_to_files_and_headings_that_are_there(page):
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if target.startswith(("https://", "http://")):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        if not found.exists() or (anchor and anchor not in anchors(found)):
            broken.append(target)
    assert not broken


@pytest.mark.parametrize("source", [path for path in PAGES if path.name != "CHANGELOG.md"], ids=name)
def test_files_that_a_page_names_are_there(source):
    """Paths in backquotes that begin with one of our folders; NAME stands for any name."""
    named = re.findall(r"`((?:beit|pipelines|tune|tests|docs|clusters)/[\w./*-]*\w)`", prose(source))
    assert not [path for path in named if not list(ROOT.glob(path.replace("NAME", "*")))]


def test_pages_that_source_files_name_are_there():
    files = [
        path
        for folder in ("beit", "pipelines", "tune", "tests", "clusters")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".yaml", ".sh", ".sbatch") or path.name == "Dockerfile"
    ]
    assert len(files) > 100
    broken = [
        f"{name(file)}: {page}"
        for file in files
        for page in re.findall(r"\bdocs/[\w/-]+\.(?:md|png)", file.read_text())
        if not (ROOT / page).exists()
    ]
    assert not broken


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_lines_are_short(page):
    """The limit holds for prose and for code to be typed; tables, pictures and output of programs have their
    own width.
    """
    typed = re.findall(r"^```(?:sh|bash|python|json)\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    lines = [line for block in (prose(page), *typed) for line in block.splitlines()]
    free = ("|", "![", "    '{")
    assert not [line for line in lines if len(line) > COLUMNS and not line.startswith(free)]


@pytest.mark.parametrize("pages", [GUIDE, LOG], ids=["guide", "log"])
def test_an_index_names_every_page(pages):
    index = (pages[0].parent / "README.md").read_text()
    named = set(re.findall(r"\]\(([\w-]+\.md)\)", index))
    assert named == {page.name for page in pages} - {"README.md"}


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_the_tree_names_every_folder(page):
    folders = {
        path.parent.name
        for package in ("beit", "pipelines")
        for path in ROOT.glob(f"{package}/*/__init__.py")
    }
    text = (ROOT / page).read_text()
    assert not {folder for folder in folders if f" {folder}/ " not in text}


def test_no_picture_lies_unused():
    shown = {
        (page.parent / target).resolve()
        for page in PAGES
        for target in re.findall(r"!\[[^]]*\]\(([^)\s]+)\)", page.read_text())
    }
    assert shown == set((ROOT / "docs").rglob("*.png"))
