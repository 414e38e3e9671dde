"""Learned embeddings as values: their tokens in prompts, their files, and their combination."""

import json
import re
from pathlib import Path

import pytest
import torch
from hyperbooth.models.adapters import LoRAConfig
from hyperbooth.models.adapters.stack import Adapter, AdapterStack
from hyperbooth.models.adapters.targets import Target
from hyperbooth.models.files.adapter_file import adapter_tensors, load_adapter, save_adapter
from hyperbooth.models.files.adapter_header import HEADER, encode_header
from hyperbooth.models.files.safetensors_io import write_tensors
from hyperbooth.models.metadata.combine import combine_adapters
from hyperbooth.models.metadata.summary import summary
from hyperbooth.models.textual_inversion.embedding_files import comfyui_embedding_tensors
from hyperbooth.models.textual_inversion.embeddings import (
    LearnedEmbedding,
    TextualInversionConfig,
    expand_placeholders,
    mentions_token,
    vectors_from_rows,
)

LAYER = Target("diffusion_model.a.attn1.to_q", (6, 4))


def word(token: str = "sks-dog", seed: int = 0, **widths: int) -> LearnedEmbedding:
    generator = torch.Generator().manual_seed(seed)
    return LearnedEmbedding(
        token, {key: torch.randn(2, w, generator=generator) for key, w in (widths or {"clip_l": 8}).items()}
    )


def lora() -> AdapterStack:
    return AdapterStack(
        (Adapter.create("lora", [LAYER], LoRAConfig(rank=2, alpha=2.0), torch.Generator()),), {"base": "SD15"}
    )


PROMPTS = {
    "a photo of sks-dog": "a photo of embedding:sks-dog",
    "a photo of embedding:sks-dog": "a photo of embedding:sks-dog",
    "sks-dog, sitting.": "embedding:sks-dog, sitting.",
    "a photo of sks-dog.": "a photo of embedding:sks-dog .",
    "(sks-dog:1.3) here": "( embedding:sks-dog :1.3) here",
    "sks-dog,outdoors": "embedding:sks-dog ,outdoors",
    "sks-dog: a portrait": "embedding:sks-dog : a portrait",
    "(sks-dog,beach:1.2)": "( embedding:sks-dog ,beach:1.2)",
    "one,sks-dog,": "one, embedding:sks-dog ,",
    'the "sks-dog"': 'the " embedding:sks-dog "',
    "sks-dog and sks-dog": "embedding:sks-dog and embedding:sks-dog",
}
OTHERS = (
    "a photo of sks dog", "a sks-dogs", "my-sks-dog", "embedding:sks-dog_00001_", "embedding:x/sks-dog", "SKS-dog",
    "embedding:sks-dog.safetensors", "",
)  # fmt: skip


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_word_is_named_plainly_or_as_an_embedding(prompt: str) -> None:
    assert mentions_token(prompt, "sks-dog")
    assert expand_placeholders(prompt, ["sks-dog"]) == PROMPTS[prompt]


@pytest.mark.parametrize("prompt", OTHERS)
def test_other_words_are_not_it(prompt: str) -> None:
    assert not mentions_token(prompt, "sks-dog")
    assert expand_placeholders(prompt, ["sks-dog"]) == prompt


def test_vectors_start_at_the_words_tokens() -> None:
    rows = torch.tensor([[1.0, 0.0], [3.0, 2.0], [8.0, 4.0]])
    assert vectors_from_rows(rows, 1).tolist() == [[4.0, 2.0]]
    assert vectors_from_rows(rows, 2).tolist() == [[2.0, 1.0], [8.0, 4.0]]
    assert torch.equal(vectors_from_rows(rows, 3), rows)
    assert torch.equal(vectors_from_rows(rows, 5), torch.cat([rows, rows[:2]]))


BAD = {
    "no token": ({"token": ""}, "^token .*''"),
    "a space": ({"token": "sks dog"}, "^token .*'sks dog'"),
    "a path": ({"token": "../dog"}, r"^token .*'\.\./dog'"),
    "a colon": ({"token": "a:b"}, "^token .*'a:b'"),
    "a dot": ({"token": "dog.pt"}, r"^token .*'dog\.pt'"),
    "very long": ({"token": "a" * 300}, r"^token .*\b100\b"),
    "no initializer": ({"initializer_word": " "}, "^initializer_word "),
    "no vectors": ({"vectors": 0}, r"^vectors .*\b0\b.*\b75\b"),
    "too many vectors": ({"vectors": 76}, r"^vectors .*\b76\b.*\b75\b"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_settings_are_named(case: str) -> None:
    settings, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        TextualInversionConfig(**settings)


@pytest.mark.parametrize("shapes", [{}, {"clip_l": (3,)}, {"clip_l": (0, 8)}, {"clip_l": (1, 8), "clip_g": (2, 8)},
                                    {"clip_l": (76, 8)}])  # fmt: skip
def test_vectors_of_other_shapes_are_refused(shapes: dict[str, tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match=rf"'dog'.*{re.escape(str(shapes))}.*\[n, width\]"):
        LearnedEmbedding("dog", {key: torch.zeros(shape) for key, shape in shapes.items()})


@pytest.mark.parametrize("chain", [False, True])
def test_a_file_gives_the_words_back_bit_for_bit(tmp_path: Path, chain: bool) -> None:
    words = (word(clip_l=8, clip_g=12), word("other", 1, clip_l=8, clip_g=12))
    adapter = AdapterStack(lora().adapters if chain else (), {"steps": 3}, words)
    save_adapter(adapter, tmp_path / "a.safetensors")
    again = load_adapter(tmp_path / "a.safetensors")
    assert [w.token for w in again.embeddings] == ["sks-dog", "other"] and len(again.adapters) == chain
    assert all(w.equals(a) for w, a in zip(words, again.embeddings, strict=True))
    save_adapter(again, tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_a_file_without_words_says_nothing_of_them() -> None:
    with_words = AdapterStack(lora().adapters, lora().metadata, (word(),))
    assert json.loads(encode_header(with_words)).keys() - json.loads(encode_header(lora())).keys() == {"words"}


DAMAGED = {
    "a tensor is missing": (lambda t, h: t.pop("embedding/sks-dog/clip_l"), "embedding/sks-dog/clip_l"),
    "other token": (lambda t, h: h["words"][0].update(token="x"), "embedding/x/clip_l"),
    "twice": (lambda t, h: h["words"].append(h["words"][0]), "embedding/sks-dog/clip_l"),
    "no token": (lambda t, h: h["words"][0].pop("token"), r"'hyperbooth'.*'words\.0\.token'"),
    "a number": (lambda t, h: h.update(words=3), r"'hyperbooth'.*\b3\b.*'words'"),
    "no words": (lambda t, h: h.update(words=[]), "no adapter"),
    "a flat tensor": (lambda t, h: t.update({"embedding/sks-dog/clip_l": torch.zeros(8)}), r"'sks-dog'.*\(8,\)"),
    "no encoders": (lambda t, h: h["words"][0].update(encoders=[]), r"'sks-dog'.*\{\}"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_files_are_refused(tmp_path: Path, case: str) -> None:
    change, message = DAMAGED[case]
    adapter = AdapterStack((), embeddings=(word(),))
    tensors, header = adapter_tensors(adapter), json.loads(encode_header(adapter))
    change(tensors, header)
    write_tensors(tensors, tmp_path / "a.safetensors", {HEADER: json.dumps(header)})
    with pytest.raises(ValueError, match=message):
        load_adapter(tmp_path / "a.safetensors")


def test_combine_joins_words() -> None:
    first, second = (
        AdapterStack((), embeddings=(word(),)),
        AdapterStack(lora().adapters, embeddings=(word(), word("cat", 1))),
    )
    both = combine_adapters(first, second)
    assert [w.token for w in both.embeddings] == ["sks-dog", "cat"] and len(both.adapters) == 1
    with pytest.raises(ValueError, match=r"first\b.*second\b.*'sks-dog'"):
        combine_adapters(first, AdapterStack((), embeddings=(word(seed=5),)))


def test_the_report_names_them() -> None:
    text = summary(AdapterStack((), {"base": "SD15"}, (word(),)))
    assert re.search(r"textual_inversion\b.*embedding:sks-dog\b.*\b2 .*clip_l\b.*\b16 .*\b0\.1 KiB", text)


def test_an_embedding_file_holds_one_word() -> None:
    one, two = word(), word("cat", clip_l=8, clip_g=12)
    assert list(comfyui_embedding_tensors([one])) == ["emb_params"]
    assert list(comfyui_embedding_tensors([two])) == ["clip_l", "clip_g"]
    with pytest.raises(ValueError, match=r"\b2\b.*\bsks-dog\b.*\bcat\b"):
        comfyui_embedding_tensors([one, two])
