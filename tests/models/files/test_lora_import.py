"""LoRA files of other programs are read, or refused with a clear message."""

import re
import zipfile
from pathlib import Path

import pytest
import torch
from hyperbooth.models.files.adapter_file import load_adapter
from hyperbooth.models.files.lora_import import KeyNames
from hyperbooth.models.files.lora_key_formats import KeyTarget, comfyui_tensors
from safetensors.torch import save_file
from torch import Tensor

UP, DOWN = ".lora_up.weight", ".lora_down.weight"
KOHYA = KeyNames({"lora_unet_a": KeyTarget("diffusion_model.a")}, {"diffusion_model.a": (6, 4)}, "SD15", False)

PART = KeyNames({"lora_unet_a": KeyTarget("diffusion_model.a", (2, 3))}, KOHYA.shapes, "x")


def pair(stem: str = "lora_unet_a", rank: int = 2, rows: int = 6, **more: Tensor) -> dict[str, Tensor]:
    return {stem + UP: torch.ones(rows, rank), stem + DOWN: torch.ones(rank, 4)} | {
        f"{stem}.{name.replace('__', '.')}": tensor for name, tensor in more.items()
    }


def written(folder: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    save_file(tensors, folder / "theirs.safetensors", metadata)
    return folder / "theirs.safetensors"


def test_alpha_may_be_missing_and_any_number(tmp_path: Path) -> None:
    for alpha, scale in ((None, 1.0), (torch.tensor(1.0), 0.5), (torch.tensor(4), 2.0), (torch.tensor([1.0]), 0.5)):
        tensors = pair() if alpha is None else pair(alpha=alpha)
        adapter = load_adapter(written(tmp_path, tensors), KOHYA).adapters[0].layers["diffusion_model.a"]
        assert torch.equal(adapter.delta(), torch.full((6, 4), 2 * scale))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float64])
def test_every_precision_is_read(tmp_path: Path, dtype: torch.dtype) -> None:
    path = written(tmp_path, {name: tensor.to(dtype) for name, tensor in pair().items()})
    assert all(p.dtype == torch.float32 and p.all() for p in load_adapter(path, KOHYA).parameters())


def test_metadata_of_the_file_is_kept(tmp_path: Path) -> None:
    datasets = '[{"subsets": [{"class_tokens": "sks dog"}]}]'
    said = {"ss_base_model_version": "sdxl_base_v1-0", "ss_steps": "120", "ss_datasets": datasets}
    assert load_adapter(written(tmp_path, pair(), said), KOHYA).metadata == {
        "base": "SDXL", "steps": 120, "trigger": "sks dog",
    }  # fmt: skip
    nonsense = {"ss_base_model_version": "?", "ss_steps": "many", "ss_datasets": "[{"}
    assert load_adapter(written(tmp_path, pair(), nonsense), KOHYA).metadata == {"base": "SD15"}
    kohya = {"ss_base_model_version": "sd_v1", "modelspec.trigger_phrase": "ohwx"}
    assert load_adapter(written(tmp_path, pair(), kohya), KOHYA).metadata == {"base": "SD15", "trigger": "ohwx"}


@pytest.mark.parametrize(
    ("tensors", "names", "message"),
    [
        ({}, KOHYA, "no tensors"),
        (
            {"model.diffusion_model.out.2.weight": torch.ones(2)},
            KOHYA,
            r"\b1 .*model\.diffusion_model\.out\.2\.weight.*Load Checkpoint",
        ),
        ({"model.diffusion_model.transformer_norm.weight": torch.ones(2)}, KOHYA, r"transformer_norm\.weight"),
        ({**pair(), "emb_params": torch.ones(2)}, KOHYA, r"\b1 .*\bemb_params\b"),
        (pair(dora_scale=torch.ones(6, 1)), KOHYA, r"\bDoRA\b.*lora_unet_a\.dora_scale.*Load LoRA"),
        (pair(lora_mid__weight=torch.ones(2, 2, 3, 3)), KOHYA, r"\bLoCon\b.*lora_unet_a\.lora_mid\.weight"),
        ({"lora_unet_a.hada_w1_a": torch.ones(2, 2)}, KOHYA, r"\bLoHa\b.*lora_unet_a\.hada_w1_a"),
        ({"lora_unet_a.lokr_w1": torch.ones(2, 2)}, KOHYA, r"\bLoKr\b.*lora_unet_a\.lokr_w1"),
        ({"diffusion_model.a.diff_b": torch.ones(2)}, KOHYA, r"\bwhole-weight\b.*diffusion_model\.a\.diff_b"),
        ({"diffusion_model.a.diff": torch.ones(2)}, None, r"diffusion_model\.a\b.*\(2,\)"),
        ({"lora_unet_a.diff": torch.ones(2, 2)}, None, r"\blora_unet_a\b.*\bmodel\b"),
        ({"lora_unet_a.diff": torch.ones(2, 2)}, KOHYA, r"lora_unet_a\.diff\b.*\b2 x 2\b.*\b6 x 4\b"),
        ({"lora_unet_a.diff": torch.ones(2, 4)}, PART, r"lora_unet_a\.diff\b.*\bpart\b.*diffusion_model\.a\b"),
        ({"transformer.a.lora_B.bias": torch.ones(2)}, KOHYA, r"\bbiased\b.*transformer\.a\.lora_B\.bias"),
        ({"lora_unet_a" + UP: torch.ones(6, 2)}, KOHYA, r"\bdown\b.*\blora_unet_a\b"),
        ({"lora_unet_a.alpha": torch.ones(())}, KOHYA, r"\bup\b.*\bdown\b.*\blora_unet_a\b"),
        ({**pair(), "lora_unet_a" + DOWN: torch.ones(3, 4)}, KOHYA, r"\blora_unet_a\b.*\(6, 2\).*\(3, 4\)"),
        ({**pair(), "lora_unet_a" + UP: torch.ones(6)}, KOHYA, r"\blora_unet_a\b.*\(6,\).*\(2, 4\)"),
        (pair(alpha=torch.ones(2)), KOHYA, r"\blora_unet_a\b.*\balpha \(2,\)"),
        (pair(rows=0), KOHYA, r"\blora_unet_a\.lora_up\.weight.*\(0, 2\)"),
        (pair(rank=0), KOHYA, r"\(0, 4\)"),
        ({**pair(), "lora_unet_a.lora_B.weight": torch.ones(6, 2)}, KOHYA, r"\bup\b.*\blora_unet_a\b.*\btwice\b"),
        (
            {**pair(), "lora_unet_a" + UP: torch.full((6, 2), torch.nan)},
            KOHYA,
            rf"\bNaN\b.*lora_unet_a{UP}",
        ),
        (
            {**pair(), "lora_unet_a" + UP: torch.ones(6, 2, dtype=torch.int8)},
            KOHYA,
            rf"\bint8\b.*lora_unet_a{UP}",
        ),
        (pair(rows=8), KOHYA, r"diffusion_model\.a\b.*\b8 x 4\b.*\b6 x 4\b"),
        (pair("lora_unet_b"), KOHYA, r"\b1 layers\b.*\bSD15\b.*\blora_unet_b\b"),
        (pair("lora_te_b"), KOHYA, r"\blora_te_b\b.*\bclip\b"),
        (pair(), None, r"\blora_unet_a\b.*\bmodel and clip\b"),
        (
            {**pair(), **pair("unet.a")},
            KeyNames({**KOHYA.targets, "unet.a": KeyTarget("diffusion_model.a")}, KOHYA.shapes, "x"),
            r"\blora_unet_a, unet\.a\b",
        ),
        (pair(), PART, r"\blora_unet_a\b.*\b6 x 4\b.*\b3 x 4\b"),
    ],
)
def test_unreadable_files_are_refused(tmp_path: Path, tensors, names, message: str) -> None:
    with pytest.raises(ValueError, match=rf"^theirs\.safetensors.*{message}"):
        load_adapter(written(tmp_path, tensors), names)


@pytest.mark.parametrize("keep", [0, 7, 60, 0.9])
def test_a_truncated_file_is_refused(tmp_path: Path, keep: float) -> None:
    path = written(tmp_path, pair())
    data = path.read_bytes()
    path.write_bytes(data[: keep if isinstance(keep, int) else int(len(data) * keep)])
    with pytest.raises(ValueError, match=r"^theirs\.safetensors .*\bdamaged\b"):
        load_adapter(path, KOHYA)


@pytest.mark.parametrize("suffix", [".pt", ".ckpt", ".bin"])
def test_a_pickle_is_never_opened(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"theirs{suffix}"
    torch.save(pair(), path)
    assert zipfile.is_zipfile(path)
    with pytest.raises(ValueError, match=rf"^theirs\{suffix} .*\brun code\b"):
        load_adapter(path, KOHYA)
    with pytest.raises(ValueError, match=r"^theirs\.safetensors .*\bdamaged\b"):
        load_adapter(path.rename(tmp_path / "theirs.safetensors"), KOHYA)


def test_full_differences_are_read_as_the_full_family_after_a_lora(tmp_path: Path) -> None:
    """Format 'comfyui' writes such files for a stack with layers that have no low rank."""
    kernel = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    native = {"diffusion_model.c.diff": kernel, **pair("diffusion_model.a")}
    adapter = load_adapter(written(tmp_path, native))
    assert [link.family for link in adapter.adapters] == ["lora", "full"]
    assert adapter.adapters[1].targets["diffusion_model.c"].shape == (6, 4, 3, 3)
    assert torch.equal(adapter.adapters[1].layers["diffusion_model.c"].delta(), kernel.flatten(1))
    again = load_adapter(written(tmp_path, comfyui_tensors(adapter)))
    assert again.targets() == adapter.targets()
    (theirs,) = load_adapter(written(tmp_path, {"lora_unet_a.diff": torch.ones(6, 4)}), KOHYA).adapters
    assert theirs.family == "full" and theirs.layers["diffusion_model.a"].delta().sum() == 24


def test_native_names_need_no_model_and_take_their_shapes_from_the_factors(tmp_path: Path) -> None:
    conv = {"diffusion_model.c" + UP: torch.ones(6, 2, 1, 1), "diffusion_model.c" + DOWN: torch.ones(2, 4, 3, 3)}
    adapter = load_adapter(written(tmp_path, conv | pair("text_encoders.clip_l.b")))
    assert {name: target.shape for name, target in adapter.targets().items()} == {
        "diffusion_model.c": (6, 4, 3, 3), "text_encoders.clip_l.b": (6, 4),
    }  # fmt: skip


SEVERAL = KeyNames(
    {f"lora_unet_{name}": KeyTarget(f"diffusion_model.{name}") for name in "abc"},
    {f"diffusion_model.{name}": (6, 4) for name in "abc"},
    "SD15",
)


def test_a_few_unknown_layers_are_left_out_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Like the stock loader: one unknown layer among many does not make it a file for another architecture."""
    known = {**pair("lora_unet_a"), **pair("lora_unet_b"), **pair("lora_unet_c")}
    found = load_adapter(written(tmp_path, {**known, **pair("lora_unet_z")}), SEVERAL)
    assert [*found.adapters[0].layers] == ["diffusion_model.a", "diffusion_model.b", "diffusion_model.c"]
    assert re.search(r"theirs\.safetensors.*\b1 of 4\b.*\bSD15\b.*\blora_unet_z\b", caplog.text)
    with pytest.raises(ValueError, match=r"\b3 layers\b.*\bSD15\b.*\bx, y, z\b"):
        load_adapter(written(tmp_path, {**known, **pair("x"), **pair("y"), **pair("z")}), SEVERAL)


def test_layers_of_a_text_encoder_that_is_not_connected_are_not_left_out(tmp_path: Path) -> None:
    known = {**pair("lora_unet_a"), **pair("lora_unet_b"), **pair("lora_unet_c")}
    with pytest.raises(ValueError, match=r"\blora_te_z\b.*\bclip\b"):
        load_adapter(written(tmp_path, {**known, **pair("lora_te_z")}), SEVERAL)


@pytest.mark.parametrize("key", ["bundle_emb.sks.clip_l", "bundle_emb.sks.string_to_param.*"])
def test_a_bundled_embedding_is_left_out_and_named(tmp_path: Path, key: str, caplog: pytest.LogCaptureFixture) -> None:
    found = load_adapter(written(tmp_path, {**pair(), key: torch.ones(2, 768)}), KOHYA)
    assert [*found.adapters[0].layers] == ["diffusion_model.a"]
    assert re.search(r"theirs\.safetensors.*\bembedding sks\b", caplog.text)
    with pytest.raises(ValueError, match=r"^theirs\.safetensors .*\bno tensors\b"):
        load_adapter(written(tmp_path, {key: torch.ones(2, 768)}), KOHYA)
