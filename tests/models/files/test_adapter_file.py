"""Adapter files round-trip; damaged ones are refused."""

import json
from pathlib import Path

import pytest
import torch
from hyperbooth.models.adapters import LoRAConfig
from hyperbooth.models.adapters.stack import Adapter, AdapterStack
from hyperbooth.models.adapters.targets import Target
from hyperbooth.models.files.adapter_file import load_adapter, save_adapter
from hyperbooth.models.files.safetensors_io import write_tensors
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

TARGETS = [Target("diffusion_model.a.to_q", (12, 10)), Target("diffusion_model.b.conv", (12, 3, 3, 3))]


def adapter(links: int = 1, targets: list[Target] = TARGETS, rank: int = 2) -> AdapterStack:
    generator = torch.Generator().manual_seed(0)
    chain = tuple(Adapter.create("lora", targets, LoRAConfig(rank=rank, alpha=1.5), generator) for _ in range(links))
    for link in chain:
        for parameter in link.parameters():
            parameter.data.normal_(generator=generator)
    return AdapterStack(chain, {"steps": 7, "prompts": ["a photo of sks dog"]})


def same(a: AdapterStack, b: AdapterStack) -> bool:
    ours, theirs = a.as_lora(), b.as_lora()
    return ours.keys() == theirs.keys() and all(
        torch.equal(x, y) for name in ours for x, y in zip(ours[name], theirs[name], strict=True)
    )


@pytest.mark.parametrize("links", [1, 2, 3])
def test_round_trip(tmp_path: Path, links: int) -> None:
    path = tmp_path / "a.safetensors"
    save_adapter(adapter(links), path)
    again = load_adapter(path)
    assert same(again, adapter(links))
    assert again.metadata == adapter().metadata
    assert again.targets() == adapter().targets()


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=4),
    st.text(min_size=0, max_size=20),
)
def test_round_trip_of_any_shapes_and_metadata(tmp_path_factory, shapes, text) -> None:
    path = tmp_path_factory.mktemp("files") / "a.safetensors"
    made = adapter(1, [Target(f"diffusion_model.{i}", shape) for i, shape in enumerate(shapes)], rank=1)
    save_adapter(AdapterStack(made.adapters, {"prompt": text}), path)
    again = load_adapter(path)
    assert same(again, made) and again.metadata == {"prompt": text}


def test_a_single_lora_has_the_names_and_shapes_stock_loaders_read(tmp_path: Path) -> None:
    save_adapter(adapter(), tmp_path / "a.safetensors")
    tensors = load_file(tmp_path / "a.safetensors")
    assert {name: tuple(t.shape) for name, t in tensors.items()} == {
        "diffusion_model.a.to_q.lora_up.weight": (12, 2),
        "diffusion_model.a.to_q.lora_down.weight": (2, 10),
        "diffusion_model.a.to_q.alpha": (),
        "diffusion_model.b.conv.lora_up.weight": (12, 2, 1, 1),
        "diffusion_model.b.conv.lora_down.weight": (2, 3, 3, 3),
        "diffusion_model.b.conv.alpha": (),
    }


def test_a_stack_is_the_sum_of_its_loras() -> None:
    chain = adapter(2)
    for name, (up, down) in chain.as_lora().items():
        first, second = (link.layers[name].delta() for link in chain.adapters)
        torch.testing.assert_close(up @ down, first + second)


def test_nan_never_reaches_a_file(tmp_path: Path) -> None:
    broken = adapter()
    broken.adapters[0].parameters()[0].data[0, 0] = float("nan")
    path = tmp_path / "a.safetensors"
    save_adapter(adapter(), path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"diffusion_model\.a\.to_q.*\bNaN\b"):
        save_adapter(broken, path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_failing_disk_leaves_the_former_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    save_adapter(adapter(), path)
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_adapter(adapter(2), path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, 0.99])
def test_a_truncated_file_is_refused(tmp_path: Path, keep: float) -> None:
    path = tmp_path / "a.safetensors"
    save_adapter(adapter(), path)
    data = path.read_bytes()
    path.write_bytes(data[: keep if isinstance(keep, int) else int(len(data) * keep)])
    with pytest.raises(ValueError, match=r"^a\.safetensors .*\bdamaged\b"):
        load_adapter(path)


def edited(path: Path, change) -> Path:
    """Return the file after changing its header and tensors."""
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["hyperbooth"])
    tensors = load_file(path)
    change(header, tensors)
    save_file(tensors, path, {"hyperbooth": json.dumps(header)})
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h, t: h.update(version=99), r"\bversion 99\b.*\b1\b"),
        (lambda h, t: h["chain"][0].update(family="magic"), r"'magic'.*\blora\b"),
        (lambda h, t: t.pop("diffusion_model.a.to_q.alpha"), r"diffusion_model\.a\.to_q\.alpha"),
        (lambda h, t: t.update(extra=torch.zeros(1)), r"\bextra$"),
        (lambda h, t: h.pop("chain"), "'hyperbooth'.*'chain'"),
        (lambda h, t: h.update(chain=7), r"'hyperbooth'.*\b7\b.*'chain'"),
        (lambda h, t: (h.update(chain=[]), t.clear()), "no adapter"),
        (
            lambda h, t: t.update({"diffusion_model.a.to_q.lora_up.weight": torch.zeros(5, 2)}),
            r"\bto_q\b.*\b5 x 10\b.*\b12 x 10\b",
        ),
    ],
)
def test_what_does_not_fit_the_header_is_refused(tmp_path: Path, change, message: str) -> None:
    path = tmp_path / "a.safetensors"
    save_adapter(adapter(), path)
    with pytest.raises(ValueError, match=message):
        load_adapter(edited(path, change))


def test_half_precision_files_load(tmp_path: Path) -> None:
    save_adapter(adapter(), tmp_path / "a.safetensors", torch.float16)
    for name, (up, down) in load_adapter(tmp_path / "a.safetensors").as_lora().items():
        expected_up, expected_down = adapter().as_lora()[name]
        torch.testing.assert_close(up @ down, expected_up @ expected_down, rtol=1e-2, atol=1e-2)


def test_write_creates_missing_folders(tmp_path: Path) -> None:
    write_tensors({"x": torch.ones(2)}, tmp_path / "new" / "folder" / "x.safetensors")
    assert load_file(tmp_path / "new" / "folder" / "x.safetensors")["x"].tolist() == [1, 1]


@pytest.mark.parametrize("header", ['{"version":1', "{}", "[]", "null", '"x"'])
def test_a_damaged_header_is_refused_by_the_files_name(tmp_path: Path, header: str) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "a.safetensors", {"hyperbooth": header})
    with pytest.raises(ValueError, match=r"^a\.safetensors .*'hyperbooth'"):
        load_adapter(tmp_path / "a.safetensors")
