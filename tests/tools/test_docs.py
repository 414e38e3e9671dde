"""Test that files and links in the documentation exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "benchmarks").glob("*.md")])
HISTORY = ROOT / "docs" / "changelog.md"
"""The changelog names files as they were at the time."""
PATH = re.compile(r"`((?:models|trainers|nodes|tools|tests|commands|benchmarks|docs|workflows|web)/[\w./-]+)`")


@pytest.mark.parametrize("document", [path for path in DOCUMENTS if path != HISTORY], ids=lambda path: path.name)
def test_named_files_exist(document: Path) -> None:
    assert [name for name in PATH.findall(document.read_text()) if not (ROOT / name).exists()] == []


def test_the_walk_has_many_hops() -> None:
    walk = (ROOT / "docs" / "design.md").read_text().split("## A reader's walk")[1].split("## Decisions")[0]
    assert len(set(PATH.findall(walk))) >= 30


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text())
    assert [link for link in links if not (document.parent / link).exists()] == []
