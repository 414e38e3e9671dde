"""Test second names of files and folders, with and without symbolic links."""

import os
from pathlib import Path

import pytest

from tools.comfy_harness.symlinks import link, unlink


@pytest.fixture(params=["symbolic", "hard", "copies"])
def allowed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("a required privilege is not held by the client")

    if request.param != "symbolic":
        monkeypatch.setattr(Path, "symlink_to", refuse)
    if request.param == "copies":
        monkeypatch.setattr(os, "link", refuse)
    return request.param


@pytest.mark.parametrize("folder", [True, False])
def test_what_a_second_name_shows_outlives_it(tmp_path: Path, allowed: str, folder: bool) -> None:
    name = tmp_path / "second"
    for text in ("one", "two"):
        source = tmp_path / text
        if folder:
            source.mkdir()
        (source / "mark" if folder else source).write_text(text)
        link(source, name)
        assert (name / "mark" if folder else name).read_text() == text
        unlink(name)
        assert not name.exists() and (source / "mark" if folder else source).read_text() == text
    assert name.is_symlink() is False


def test_a_name_that_is_taken_stays(tmp_path: Path) -> None:
    for name in ("source", "taken"):
        (tmp_path / name).write_text(name)
    link(tmp_path / "source", tmp_path / "taken")
    assert (tmp_path / "taken").read_text() == "taken"
    unlink(tmp_path / "nothing")
