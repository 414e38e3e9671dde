"""Banks of subjects, built on a loaded model."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import folder_paths
import pytest
import torch
from hyperbooth.models.adapters import LiDBConfig
from hyperbooth.models.bank import Bank
from hyperbooth.trainers.options import Method, TrainingOptions
from PIL import Image
from rig import interrupted_at, lora, quick_sd15, relative, untouched
from torch import Tensor

FAST = TrainingOptions(preview_every=0)
PROMPT = "a photo of sks face"


def lidb(**settings: Any) -> Method:
    """LiDB of few numbers that learns fast."""
    given = {"learning_rate": 2e-2, "text_encoder": True, "text_encoder_lr": 5e-3, **settings}
    config = LiDBConfig(1, 16, 8, given.pop("basis_seed", 0))
    return Method("lidb", config, "attention", text_targets="attention and feed-forward", **given)


def picture(seed: int, size: int = 64) -> Image.Image:
    """Blotches in a colour of their own."""
    draw = torch.Generator().manual_seed(seed)
    blotches = torch.rand(4, 4, 3, generator=draw) * 0.4 + 0.6 * torch.rand(3, generator=draw)
    return Image.fromarray((blotches * 255).byte().numpy()).resize((size, size), Image.Resampling.BICUBIC)


def write_people(folder: Path, counts: dict[str, int]) -> None:
    """Sub-folders by name, each with so many pictures."""
    for index, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            picture(1000 * (index + len(name)) + number, 80).save(folder / name / f"{number}.png")


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """MODEL, CLIP, VAE with a text encoder of three layers."""
    return quick_sd15(tmp_path_factory.mktemp("quick"))


@pytest.fixture
def people(tmp_path: Path) -> Iterator[Path]:
    """``input/people`` with three subjects."""
    before = folder_paths.get_input_directory()
    folder_paths.set_input_directory(str(tmp_path))
    write_people(tmp_path / "people", {"alice": 1, "bob": 3, "carol": 1})
    yield tmp_path / "people"
    folder_paths.set_input_directory(before)


def build(node: Any, quick: Any, **inputs: Any) -> tuple[Bank, str]:
    model, clip, vae = quick
    inputs = {"method": lidb(), "prompt": PROMPT, "steps": 4, "subjects_per_batch": 3, "seed": 0, "resolution": 64,
              "options": FAST, "folder": "people", **inputs}  # fmt: skip
    return node("BuildBank", model=model, clip=clip, vae=vae, **inputs)


def close(a: Tensor, b: Tensor) -> bool:
    return relative(a, b) < 1e-4


def test_each_subject_is_learnt_and_the_model_stays(node: Any, quick: Any, people: Path) -> None:
    with untouched(*quick[:2]):
        bank, report = build(node, quick, steps=30)
    assert bank.names == ("alice", "bob", "carol") and bank.counts == (1, 3, 1)
    assert bank.prompt == PROMPT and bank.theta().shape == (3, bank.layout.numbers)
    for entry in bank.entries:
        assert entry.fit.own < 0.95 * entry.fit.base and entry.fit.own < entry.fit.other, entry
    assert "3 subjects with 5 pictures in 1 shards" in report and "3 of them new" in report
    assert any(name.startswith("text_encoders.") for name in bank.layout.targets)


def test_a_batch_of_three_equals_three_alone(node: Any, quick: Any, people: Path) -> None:
    together, _ = build(node, quick, steps=6)
    alone, report = build(node, quick, steps=6, subjects_per_batch=1, bank_name="alone")
    assert "in 3 shards" in report
    for i in range(3):
        assert close(alone.theta([i]), together.theta([i])), together.names[i]
        assert relative(together.theta([i]), together.theta([(i + 1) % 3])) > 1e-2
        assert alone.entries[i].fit.own == pytest.approx(together.entries[i].fit.own, rel=1e-4)
    assert alone.entries[0].fit.other is None and together.entries[0].fit.other is not None
