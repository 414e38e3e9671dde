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
    assert re.search(r"\b2 subjects\b.*\b2 images\b.*\b1 shards\b.*\b2 .*\bnew\b", lines[0])
    assert re.search(r"\blidb\b.*\b4\b.*\b7 steps\b.*'a sks face'", lines[1])
    assert re.findall(r"\b\d\.\d{4}\b", lines[2]) == ["0.2000", "0.1500", "0.4000"]
    assert re.search(r"\bben\b", lines[3]) and not re.search(r"\banna\b", lines[3])
    assert re.search(r"\b2 subjects per hour\b", lines[4]) and lines[5] == "memory: much"
    assert re.search(r"\bben$", lines[6]) and lines[7:] == ["left out: cleo: no photograph"]


def test_a_report_of_thousands_is_short(tmp_path: Path) -> None:
    names = {f"p{i:04}": SubjectFit(0.1, 0.2) for i in range(300)}
    progress = BuildProgress(total=600, left_out=[f"q{i}: broken" for i in range(300)])
    text = report(bank(tmp_path, names), progress, [], set(names))
    assert len(text.splitlines()) < 30 and len(re.findall(r"\b290 more\b", text)) == 3
    assert text.count("p00") <= 3 * MOST_NAMED
    assert re.findall(r"\b\d\.\d{4}\b", text) == ["0.1000", "0.2000"], "no loss with another subject's adapter"


def test_an_empty_bank_has_no_quality(tmp_path: Path) -> None:
    assert quality(bank(tmp_path, {})) == []
