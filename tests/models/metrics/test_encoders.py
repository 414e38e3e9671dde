"""Encoders from untrusted folders: damaged or foreign files are refused, code is never run."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hyperbooth.models.metrics.encoders import CLIP, DINO, Encoder, load_encoder
from safetensors.torch import load_file, save_file

from tools.comfy_harness.tiny_encoders import write_clip, write_dino

CPU = torch.device("cpu")


@pytest.fixture
def dino(tmp_path: Path) -> Path:
    return write_dino(tmp_path / "dino")


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def shard(folder: Path, name: str) -> None:
    """Replace the weights by an index in which all are in the file ``name``."""
    weights = folder / "model.safetensors"
    index = {"metadata": {}, "weight_map": dict.fromkeys(load_file(weights), name)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    weights.rename(folder / "whole")


def test_missing_weights_are_not_drawn_at_random(dino: Path, tmp_path: Path) -> None:
    weights = load_file(dino / "model.safetensors")
    gone = next(name for name in weights if name.endswith("key.weight"))
    save_file({name: weight for name, weight in weights.items() if name != gone}, dino / "model.safetensors")
    with pytest.raises(ValueError, match=r"\bdino\b.*config\.json.*\battention\b.*\bk\w*\.weight$"):
        load_encoder(dino, DINO, with_texts=False)
    clip = write_clip(tmp_path / "clip")
    (clip / "model.safetensors").replace(dino / "model.safetensors")
    with pytest.raises(ValueError, match=r"\bdino\b.*config\.json.*\bembeddings\."):
        load_encoder(dino, DINO, with_texts=False)


def test_shards_are_read_if_they_are_safetensors(dino: Path) -> None:
    image = torch.rand(40, 40, 3, generator=torch.Generator().manual_seed(0))
    whole = load_encoder(dino, DINO, with_texts=False).embed_images([image], CPU, print)
    shard(dino, "model-00001-of-00001.safetensors")
    with pytest.raises(ValueError, match=r"\bdino\b.*model-00001-of-00001\.safetensors"):
        load_encoder(dino, DINO, with_texts=False)
    (dino / "whole").rename(dino / "model-00001-of-00001.safetensors")
    assert torch.equal(load_encoder(dino, DINO, with_texts=False).embed_images([image], CPU, print), whole)


@pytest.mark.parametrize("name", ["pytorch_model-00001.bin", "../dino/whole", "../other/model.safetensors"])
def test_shards_that_are_pickled_or_elsewhere_are_refused(dino: Path, name: str) -> None:
    weights = load_file(dino / "model.safetensors")
    shard(dino, name)
    torch.save(weights, dino / "pytorch_model-00001.bin")
    (dino.parent / "other").mkdir()
    save_file(weights, dino.parent / "other" / "model.safetensors")
    with pytest.raises(ValueError, match=rf"\bdino/model\.safetensors\.index\.json\b.*{re.escape(name)}"):
        load_encoder(dino, DINO, with_texts=False)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("model.safetensors.index.json", "[]", r"\bmodel\.safetensors\.index\.json\b"),
        ("model.safetensors.index.json", '{"weight_map": {}}', r"\bmodel\.safetensors\.index\.json\b"),
        ("preprocessor_config.json", "[]", r"\blist\b"),
        ("config.json", '{"model_type": "vit", "num_attention_heads": 0}', r"\bzero\b"),
        ("config.json", '{"model_type": "vit", "hidden_size": "wide"}', r"\bhidden_size\b"),
        ("config.json", '{"model_type": "vit", "dtype": "nope"}', r"\bnope\b"),
    ],
)
def test_malformed_files_are_named(dino: Path, file: str, text: str, message: str) -> None:
    (dino / file).write_text(text)
    if file.endswith("index.json"):
        (dino / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=rf"\bdino\b.*{message}"):
        load_encoder(dino, DINO, with_texts=False)


def test_code_in_the_folder_is_never_run(dino: Path, tmp_path: Path) -> None:
    clip, ran = write_clip(tmp_path / "clip"), tmp_path / "ran"
    for folder in (dino, clip):
        (folder / "own.py").write_text(f"open({str(ran)!r}, 'w')\nclass Own: pass\n")
        change(folder / "config.json", auto_map={"AutoModel": "own.Own", "AutoConfig": "own.Own"})
        change(folder / "preprocessor_config.json", auto_map={"AutoImageProcessor": "own.Own"})
    change(clip / "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.Own", None]})
    assert load_encoder(dino, DINO, with_texts=False) and load_encoder(clip, CLIP, with_texts=True)
    change(dino / "preprocessor_config.json", image_processor_type="Own")
    with pytest.raises(ValueError, match=r"\bdino\b.*\bcustom code\b"):
        load_encoder(dino, DINO, with_texts=False)
    assert not ran.exists()


def test_an_adapter_in_the_folder_is_refused(dino: Path) -> None:
    """transformers would load its weights into the model, from a pickle if there is no other file."""
    (dino / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(ValueError, match=r"dino.*adapter_config\.json"):
        load_encoder(dino, DINO, with_texts=False)


@pytest.mark.parametrize("name", ["transformers_weights", "quantization_config"])
def test_a_configuration_that_names_other_files_is_refused(dino: Path, name: str) -> None:
    change(dino / "config.json", **{name: "other.safetensors.index.json"})
    with pytest.raises(ValueError, match=rf"\bdino\b.*config\.json\b.*\b{name}\b"):
        load_encoder(dino, DINO, with_texts=False)


def test_weights_of_a_larger_model_are_refused(dino: Path) -> None:
    weights = load_file(dino / "model.safetensors")
    more = {"pooler.dense.weight": torch.zeros(2, 2), "embeddings.position_ids": torch.arange(5)[None]}
    save_file(weights | more, dino / "model.safetensors")
    assert load_encoder(dino, DINO, with_texts=False)
    save_file(weights | {"classifier.weight": torch.zeros(2, 2)}, dino / "model.safetensors")
    with pytest.raises(ValueError, match=r"\bdino\b.*config\.json.*\bclassifier\.weight$"):
        load_encoder(dino, DINO, with_texts=False)


def test_an_incomplete_tokenizer_is_refused(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip")
    for path in clip.glob("*token*"):
        path.unlink()
    (clip / "vocab.json").write_text("{}")
    (clip / "merges.txt").unlink(missing_ok=True)
    with pytest.raises(ValueError, match=r"\bclip\b.*\btokenizer\.json"):
        load_encoder(clip, CLIP, with_texts=True)


def test_a_folder_cannot_ask_for_kernels_of_the_hub(dino: Path, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip")
    for folder, kinds in ((dino, DINO), (clip, CLIP)):
        change(folder / "config.json", attn_implementation="someone/attention")
        network = load_encoder(folder, kinds, with_texts=False).network
        assert network.config._attn_implementation == "sdpa"


def test_networks_are_float32_whatever_the_file_holds(dino: Path) -> None:
    weights = load_file(dino / "model.safetensors")
    save_file({name: weight.half() for name, weight in weights.items()}, dino / "model.safetensors")
    change(dino / "config.json", dtype="float16", torch_dtype="float16")
    assert {p.dtype for p in load_encoder(dino, DINO, with_texts=False).network.parameters()} == {torch.float32}


@pytest.mark.parametrize("height", [1, 3])
def test_an_image_of_one_or_three_rows_is_channels_last(dino: Path, height: int) -> None:
    encoder = load_encoder(dino, DINO, with_texts=False)
    strip = torch.tensor([1.0, 0.5, 0]).expand(height, 40, 3)
    flat, same = (
        encoder.embed_images([strip], CPU, print),
        encoder.embed_images([strip[:1].expand(40, -1, -1)], CPU, print),
    )
    assert torch.allclose(flat, same, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(150, 200), (200, 150), (160, 160)])
def test_a_disc_stays_round(dino: Path, monkeypatch: pytest.MonkeyPatch, height: int, width: int) -> None:
    """The short side is resized and the center cropped, as in DINO's own evaluation."""
    encoder, seen = load_encoder(dino, DINO, with_texts=False), []
    embed = Encoder._embed_pixels
    monkeypatch.setattr(Encoder, "_embed_pixels", lambda self, pixels: seen.append(pixels) or embed(self, pixels))
    y, x = torch.meshgrid(torch.arange(height) - height / 2, torch.arange(width) - width / 2, indexing="ij")
    disc = ((x**2 + y**2).sqrt() < 40).float()[..., None].expand(-1, -1, 3)
    encoder.embed_images([disc], torch.device("cpu"), lambda _: None)
    bright = seen[0][0, 0] > seen[0].mean()
    tall, wide = bright.any(1).sum().item(), bright.any(0).sum().item()
    side = seen[0].shape[-1]
    assert abs(tall - wide) <= 2 and tall == pytest.approx(80 / (min(height, width) * 224 / 256) * side, rel=0.1)
