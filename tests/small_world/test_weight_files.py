"""Test that networks are written atomically, and that the message for a missing one tells how to train it."""

from pathlib import Path

import pytest
import torch

from tools.small_world.weight_files import digest, halved, read, write


def test_what_is_written_is_read_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    write(halved({"a": torch.ones(3, 2).mT, "n": torch.tensor(7)}), path)
    found = read(path)
    assert found["a"].shape == (2, 3) and found["a"].dtype == torch.float16 and found["n"].item() == 7
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_what_is_not_trained_yet_says_how(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"weights.safetensors of 'oracle' is missing; .*FOLDER oracle"):
        read(tmp_path / "oracle" / "weights.safetensors")


def test_other_numbers_have_another_name() -> None:
    one, other = torch.arange(6.0).view(2, 3), torch.arange(6.0).view(2, 3).mT
    assert digest({"a": one, "b": one}) == digest({"b": one, "a": one.clone()})
    assert len({digest({"a": one}), digest({"b": one}), digest({"a": other}), digest({"a": one.half()})}) == 4
