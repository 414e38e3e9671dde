"""Bank builds: which subjects, and what the report contains."""

import re
from pathlib import Path

import pytest
import torch
from hyperbooth.models.adapters import LiDBConfig
from hyperbooth.models.adapters.parameter_layout import ParameterLayout
from hyperbooth.models.adapters.stack import Adapter
from hyperbooth.models.adapters.targets import Target
from hyperbooth.models.subject_bank.bank import Bank
from hyperbooth.models.subject_bank.manifest import Manifest
from hyperbooth.models.subject_bank.shards import SubjectFit, write_shard
from hyperbooth.trainers.subject_bank.folders import subject_names
from hyperbooth.trainers.subject_bank.report import MOST_NAMED, BuildProgress, quality, report


def test_subjects_are_the_visible_folders_in_natural_order(tmp_path: Path) -> None:
    for name in ("p10", "p9", "P1", ".git"):
        (tmp_path / name).mkdir()
    (tmp_path / "readme.txt").write_text("no subject")
    assert subject_names(tmp_path) == ["P1", "p9", "p10"]
    with pytest.raises(ValueError, match=r"folder 'p9'.*sub-folder"):
        subject_names(tmp_path / "p9")


def bank(folder: Path, fits: dict[str, SubjectFit]) -> Bank:
    adapter = Adapter.create(
        "lidb", [Target("a", (4, 4))], LiDBConfig(rank=1, a=2, b=2), torch.Generator().manual_seed(0)
    )
    base = {"base": "SD15", "weights": {}}
    manifest = Manifest(ParameterLayout.of(adapter), {"prompt": "a sks face", "steps": 7}, base, {})
    manifest.save(folder)
    if fits:
        count = len(fits)
        write_shard(
            folder,
            manifest,
            fits=fits,
            image_counts=[1] * count,
            theta=torch.zeros(count, 4),
            images=torch.zeros(count, 2, 2, 3, dtype=torch.uint8),
            latents=torch.zeros(count, 4, 1, 1),
        )
    return Bank.open(folder)


def test_the_report_has_the_baselines_and_names_subjects_that_learned_nothing(tmp_path: Path) -> None:
    built = bank(tmp_path, {"anna": SubjectFit(0.2, 0.1, 0.3), "ben": SubjectFit(0.2, 0.2, 0.5)})
    progress = BuildProgress(total=3, left_out=["cleo: no photograph"])
    progress.add_batch(3, 3600.0)
    progress.learned = 2
    lines = report(built, progress, ["memory: much"], {"ben"}).splitlines()
    assert lines[0].startswith("2 subjects with 2 images in 1 shards (") and lines[0].endswith("2 of them new")
    assert lines[1].startswith("lidb of 4 ") and lines[1].endswith("7 steps on 'a sks face'")
    assert re.search(r"base 0\.2000.*own.* 0\.1500.*another.* 0\.4000", lines[2])
    assert "base: ben;" in lines[3]
    assert lines[4:] == [
        "2 subjects per hour, reading and encoding included", "memory: much",
        "kept although the folder no longer holds them: ben", "left out: cleo: no photograph",
    ]  # fmt: skip


def test_a_report_of_thousands_is_short(tmp_path: Path) -> None:
    names = {f"p{i:04}": SubjectFit(0.1, 0.2) for i in range(300)}
    progress = BuildProgress(total=600, left_out=[f"q{i}: broken" for i in range(300)])
    text = report(bank(tmp_path, names), progress, [], set(names))
    assert len(text.splitlines()) < 30 and "left out: 290 more" in text and "and 290 more;" in text
    assert text.count("p00") <= 3 * MOST_NAMED and "another subject" not in text


def test_an_empty_bank_has_no_quality(tmp_path: Path) -> None:
    assert quality(bank(tmp_path, {})) == []
