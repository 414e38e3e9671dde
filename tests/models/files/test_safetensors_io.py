"""Files written tensor by tensor equal those of the safetensors library, and take no copy of a tensor."""

import json
from pathlib import Path

import pytest
import torch
from helpers.allocations import LargestTensor
from hyperbooth.models.files.safetensors_io import DTYPES, serialized_chunks, write_tensors
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save

NAMES = st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), min_size=1, max_size=8)
SHAPES = st.lists(st.integers(0, 3), max_size=3)
DTYPE = st.sampled_from(list(DTYPES))


@given(st.dictionaries(NAMES.filter(lambda n: n != "__metadata__"), st.tuples(DTYPE, SHAPES), max_size=6),
       st.dictionaries(NAMES, NAMES, max_size=3))  # fmt: skip
def test_bytes_equal_those_of_the_library(kinds: dict, metadata: dict) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.randint(0, 2, shape, generator=generator).to(dtype) for name, (dtype, shape) in kinds.items()
    }
    ours, theirs = b"".join(serialized_chunks(tensors, metadata)), save(tensors, metadata or None)
    assert split(ours) == split(theirs)
    again = load(ours)
    assert all(torch.equal(again[name].view(torch.uint8), t.view(torch.uint8)) for name, t in tensors.items() if t.ndim)
    assert again.keys() == tensors.keys()


def split(data: bytes) -> tuple[dict, bytes]:
    end = 8 + int.from_bytes(data[:8], "little")
    assert end % 8 == 0
    return json.loads(data[8:end]), data[end:]


def test_metadata_keeps_its_order_and_files_their_bytes(tmp_path: Path) -> None:
    """The library's own writer has the entries in the random order of a hash map."""
    metadata = {name: name.upper() for name in ("zebra", "apple", "hyperbooth", "mango", "é")}
    tensors = {"b": torch.ones(3), "a": torch.ones(2, dtype=torch.half)}
    for name in ("1", "2"):
        write_tensors(tensors, tmp_path / name, metadata)
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()
    header, _ = split((tmp_path / "1").read_bytes())
    assert list(header["__metadata__"]) == list(metadata)


def test_writing_copies_no_tensor(tmp_path: Path) -> None:
    tensors = {str(dtype): torch.ones(100_000, dtype=dtype) for dtype in (torch.float32, torch.half, torch.uint8)}
    with LargestTensor() as largest:
        write_tensors(tensors, tmp_path / "a.safetensors")
    assert largest.values <= 1


@pytest.mark.parametrize("dtype", [d for d in DTYPES if d.is_floating_point])
def test_nan_is_refused_in_every_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    good = {"x": torch.ones(2).to(dtype), "empty": torch.ones(0).to(dtype)}
    write_tensors(good, tmp_path / "good")
    with pytest.raises(ValueError, match=r"^y .*\bNaN\b"):
        write_tensors({**good, "y": torch.tensor([1.0, torch.nan]).to(dtype)}, tmp_path / "bad")
    assert [path.name for path in tmp_path.iterdir()] == ["good"]
