"""Files written tensor by tensor are the library's own."""

import json

import torch
from hyperbooth.models.files.safetensors_io import DTYPES, serialized_chunks
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save

NAMES = st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), min_size=1, max_size=8)
SHAPES = st.lists(st.integers(0, 3), max_size=3)
DTYPE = st.sampled_from(list(DTYPES))


@given(st.dictionaries(NAMES.filter(lambda n: n != "__metadata__"), st.tuples(DTYPE, SHAPES), max_size=6),
       st.dictionaries(NAMES, NAMES, max_size=3))  # fmt: skip
def test_the_bytes_are_the_librarys(kinds: dict, metadata: dict) -> None:
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
