"""Subject banks: lazy and exact round trip, and refusal of damaged or foreign files."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hyperbooth.models.adapters import LiDBConfig
from hyperbooth.models.adapters.parameter_layout import ParameterLayout
from hyperbooth.models.adapters.stack import Adapter
from hyperbooth.models.adapters.targets import Target
from hyperbooth.models.files.adapter_file import load_adapter, save_adapter
from hyperbooth.models.files.digest import DIGEST, file_digest
from hyperbooth.models.subject_bank.bank import Bank
from hyperbooth.models.subject_bank.manifest import MANIFEST, Manifest
from hyperbooth.models.subject_bank.shards import HEADER, SubjectFit, write_shard
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

TARGETS = [Target("diffusion_model.a.to_q", (12, 9)), Target("text_encoders.b", (8, 8))]


def layout(**config: int) -> ParameterLayout:
    return ParameterLayout.of(Adapter.create("lidb", TARGETS, LiDBConfig(**config), torch.Generator().manual_seed(0)))


def manifest(**settings: Any) -> Manifest:
    base = {"base": "SD15", "prediction": "eps", "weights": {"diffusion_model.a.to_q": [0.5, -0.25]}}
    return Manifest(layout(), {"prompt": "a sks face", "steps": 7, "seed": 3, **settings}, base, {"hyperbooth": "0"})


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def images_and_latents(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    images = torch.randint(0, 256, (count, 6, 5, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return images, normal(count, 4, 3, 2, seed=seed)


def write(folder: Path, counts: dict[str, int], seed: int = 0) -> Path:
    """Write a shard of subjects (name -> number of images)."""
    shared = manifest()
    fits = {name: SubjectFit(0.1, 0.05, 0.2 if len(counts) > 1 else None) for name in counts}
    images, latents = images_and_latents(sum(counts.values()), seed)
    theta = normal(len(counts), shared.layout.parameter_count, seed=seed)
    return write_shard(
        folder,
        shared,
        fits=fits,
        image_counts=list(counts.values()),
        theta=theta,
        images=images,
        latents=latents,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A bank of three subjects in two shards."""
    manifest().save(tmp_path / "people")
    write(tmp_path / "people", {"carol": 1, "alice": 3}, seed=1)
    write(tmp_path / "people", {"bob": 2}, seed=2)
    return tmp_path / "people"


def test_round_trip(folder: Path) -> None:
    bank = Bank.open(folder)
    assert bank.names == ("alice", "bob", "carol") and bank.image_counts == (3, 2, 1) and len(bank) == 3
    assert (bank.name, bank.prompt, bank.layout) == ("people", "a sks face", layout())
    first, second = normal(2, bank.layout.parameter_count, seed=1), normal(1, bank.layout.parameter_count, seed=2)
    assert bank.theta().equal(torch.stack([first[1], second[0], first[0]]))
    assert bank.theta([2, 1, 2]).equal(torch.stack([first[0], second[0], first[0]]))
    images, latents = images_and_latents(4, seed=1)
    assert bank.images(0).equal(images[1:].float() / 255) and bank.latents(0).equal(latents[1:])
    assert bank.images(2).equal(images[:1].float() / 255)
    assert bank.latent_batch([(0, 2), (2, 0)]).equal(latents[[3, 0]])
    assert bank.images(1).equal(images_and_latents(2, seed=2)[0].float() / 255)
    assert [entry.fit for entry in bank.entries] == [
        SubjectFit(0.1, 0.05, 0.2),
        SubjectFit(0.1, 0.05),
        SubjectFit(0.1, 0.05, 0.2),
    ]


def test_images_have_captions_or_the_prompt_of_the_bank(folder: Path) -> None:
    shared, captions = manifest(captions=True), [["a sks face at sea", "a sks face"], ["a sks face at sea"]]
    assert Bank.open(folder).prompts == ("a sks face",) and Bank.open(folder).caption(0, 2) == "a sks face"
    shared.save(folder.parent / "captions")
    fits = {"dora": SubjectFit(0.1, 0.05), "emil": SubjectFit(0.1, 0.05)}
    images, latents = images_and_latents(3)
    write_shard(
        folder.parent / "captions",
        shared,
        fits=fits,
        image_counts=[2, 1],
        theta=normal(2, shared.layout.parameter_count),
        images=images,
        latents=latents,
        prompts=captions,
    )
    bank = Bank.open(folder.parent / "captions")
    assert [[bank.caption(i, p) for p in range(count)] for i, count in enumerate(bank.image_counts)] == captions
    assert bank.prompts == ("a sks face", "a sks face at sea") and bank.prompt == "a sks face"
    assert [bank.metadata(i)["prompts"] for i in range(2)] == captions


def test_the_adapter_of_a_subject_can_be_saved_and_loaded(folder: Path, tmp_path: Path) -> None:
    bank = Bank.open(folder)
    adapter = bank.adapter(1)
    assert bank.layout.pack(adapter.adapters[0]).equal(bank.theta([1])[0])
    save_adapter(adapter, tmp_path / "bob.safetensors")
    again = load_adapter(tmp_path / "bob.safetensors")
    assert bank.layout.pack(again.adapters[0]).equal(bank.theta([1])[0])
    assert again.metadata["subject"] == "bob" and again.metadata["steps"] == 7 and again.metadata["images"] == 2


def test_a_subject_in_two_shards_counts_once(folder: Path) -> None:
    write(folder, {"bob": 2, "dora": 1}, seed=5)
    bank = Bank.open(folder)
    assert bank.names == ("alice", "bob", "carol", "dora")
    assert bank.entries[1].shard == min(p for p in folder.glob("*.safetensors") if "bob" in header(p))


def header(path: Path) -> str:
    with safe_open(path, "pt") as file:
        return file.metadata()[HEADER]


def test_partial_and_other_files_are_ignored(folder: Path) -> None:
    (folder / ".0123.part").write_bytes(b"half")
    (folder / "notes.txt").write_text("mine")
    assert len(Bank.open(folder)) == 3


def test_an_empty_bank_opens(tmp_path: Path) -> None:
    manifest().save(tmp_path)
    assert len(Bank.open(tmp_path)) == 0


def damaged_header(change: Any) -> Any:
    def damage(path: Path) -> None:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        content = json.loads(header(path))
        change(content, tensors)
        text = json.dumps(content)
        save_file(tensors, path, {HEADER: text, DIGEST: file_digest(text, {})})

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: p.write_bytes(p.read_bytes()[:100]), "header"),
        (lambda p: p.write_bytes(b""), "header"),
        (lambda p: save_file({"theta": torch.zeros(1, 2)}, p), "images"),
        (damaged_header(lambda content, _: content.update(version=2)), r"\bversion 2\b"),
        (damaged_header(lambda content, _: content.update(bank="0" * 32)), "other settings"),
        (damaged_header(lambda content, _: content["subjects"].pop()), "1 subjects"),
        (damaged_header(lambda content, _: content["subjects"][0].update(pictures=2)), r"\b2 subjects\b.*\b5 images\b"),
        (damaged_header(lambda content, _: content["subjects"][0].update(pictures=-1)), "-1"),
        (damaged_header(lambda content, _: content["subjects"][0].pop("own")), r"'subjects\.0\.own'"),
        (damaged_header(lambda content, _: content["subjects"][0].update(prompts=["a", "b"])),
         r"\b2 prompts\b.*\b1 images\b.*'\w+'"),
        (damaged_header(lambda content, _: content["subjects"][0].update(prompts=[3])), "3.*prompts"),
        (damaged_header(lambda content, _: content["subjects"][0].update(prompts="a")), "'a'.*prompts"),
        (damaged_header(lambda content, t: t.update(theta=t["theta"][:, :-1].clone())), 
         rf"\btheta\b.*\b{layout().parameter_count - 1}\b"),
        (damaged_header(lambda content, t: t.update(images=t["images"].float())), r"'images': 'F32'"),
        (damaged_header(lambda content, t: t.update(latents=t["latents"][0].clone())), r"\blatents\b.*\("),
    ],
)  # fmt: skip
def test_a_damaged_shard_is_refused_by_name(folder: Path, damage: Any, message: str) -> None:
    path = next(p for p in folder.glob("*.safetensors") if "alice" in header(p))
    damage(path)
    with pytest.raises(ValueError, match=message) as refused:
        Bank.open(folder)
    assert path.name in str(refused.value)


def test_infinite_parameters_are_refused(folder: Path) -> None:
    for path in folder.glob("*.safetensors"):
        damaged_header(lambda content, tensors: (content.pop("checksums"), tensors["theta"].fill_(torch.inf)))(path)
    with pytest.raises(ValueError, match=r"\bNaN\b.*\btheta of \w+\.safetensors\b"):
        Bank.open(folder).theta()


def test_every_flipped_bit_of_a_shard_is_noticed(folder: Path) -> None:
    bank = Bank.open(folder)
    path = bank.entries[0].shard
    subjects = [index for index, entry in enumerate(bank.entries) if entry.shard == path]
    whole = path.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    for position in range(start, len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1 << position % 8]) + whole[position + 1 :])
        with pytest.raises(ValueError, match=path.name):
            bank.theta(subjects)
            for subject in subjects:
                bank.images(subject)
                bank.latents(subject)
    text = json.loads(whole[8:start])["__metadata__"][HEADER].encode()
    name = whole.index(json.dumps(text.decode()).encode()[1:20])
    path.write_bytes(whole[: name + 40] + bytes([whole[name + 40] ^ 1]) + whole[name + 41 :])
    with pytest.raises(ValueError, match=path.name):
        Bank.open(folder)


def test_a_shard_of_before_without_checksums_is_read(folder: Path) -> None:
    before = Bank.open(folder).theta()
    for path in folder.glob("*.safetensors"):
        damaged_header(lambda content, _: content.pop("checksums"))(path)
    assert torch.equal(Bank.open(folder).theta(), before)


@pytest.mark.parametrize("sums", [{}, {"theta": [1]}, {"theta": ["1"]}, [], {"theta": [], "images": [], "latents": []}])
def test_checksums_that_are_not_one_for_each_row_are_refused(folder: Path, sums: Any) -> None:
    for path in folder.glob("*.safetensors"):
        damaged_header(lambda content, _: content.update(checksums=sums))(path)
    with pytest.raises(ValueError, match=r"\.safetensors.*\bchecksums\b"):
        Bank.open(folder)


def test_a_shard_that_holds_nan_is_not_written(tmp_path: Path) -> None:
    theta = torch.full((1, layout().parameter_count), torch.nan)
    images, latents = images_and_latents(1)
    with pytest.raises(ValueError, match=r"theta.*NaN"):
        write_shard(
            tmp_path,
            manifest(),
            fits={"a": SubjectFit(1, 1)},
            image_counts=[1],
            theta=theta,
            images=images,
            latents=latents,
        )
    assert list(tmp_path.iterdir()) == []


def edit(folder: Path, change: Any) -> None:
    content = json.loads((folder / MANIFEST).read_text())
    change(content)
    (folder / MANIFEST).write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.update(version=9), r"\bversion 9\b.*\b1\b"),
        (lambda content: content.pop("layout"), "layout"),
        (lambda content: content["layout"]["kinds"][0][1].__setitem__(1, 2**63), "layout"),
        (lambda content: content["layout"].update(family="lora"), r"'lora'.*\blidb\b"),
        (lambda content: content["layout"]["facts"].update(basis_seed=5), r"\bseed 5\b.*\b(out|in) \d+ \d+\b"),
        (lambda content: content["settings"].pop("prompt"), "settings.prompt"),
        (lambda content: content["settings"].update(prompt=3), "3.*settings.prompt"),
        (lambda content: content["base"].update(weights=3), "3.*base.weights"),
        (lambda content: content["base"].update(base=None), "None.*base.base"),
    ],
)
def test_a_damaged_manifest_is_refused(folder: Path, change: Any, message: str) -> None:
    edit(folder, change)
    with pytest.raises(ValueError, match=f"bank 'people': manifest.json.*{message}"):
        Bank.open(folder)


@pytest.mark.parametrize("text", ["", "{", "[" * 10**5, "\ud800".encode("utf-8", "surrogatepass").decode("latin1")])
def test_invalid_json_is_refused(folder: Path, text: str) -> None:
    (folder / MANIFEST).write_text(text)
    with pytest.raises(ValueError, match=r"bank 'people': manifest.json"):
        Bank.open(folder)


def test_a_folder_without_a_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"manifest.json"):
        Bank.open(tmp_path)


def test_difference_describes_what_differs(folder: Path) -> None:
    ours = Manifest.load(folder)
    assert ours.difference(manifest()) is None and ours.digest == manifest().digest
    assert ours.difference(replace(manifest(), versions={})) is None
    assert ours.difference(manifest(steps=8)) == ("steps 7", "steps 8")
    assert ours.difference(manifest(extra=1)) == ("no extra", "extra 1")
    other = replace(manifest(), layout=layout(basis_seed=1))
    assert "basis seed 1" in ours.difference(other)[1] and other.digest != ours.digest
    base = {**manifest().base, "weights": {"diffusion_model.a.to_q": [0.4, -0.25]}}
    assert "17.9% off" in ours.difference(replace(manifest(), base=base))[1]
    rounded = {**manifest().base, "weights": {"diffusion_model.a.to_q": [0.5005, -0.25]}}
    assert ours.difference(replace(manifest(), base=rounded)) is None
    assert ours.difference(replace(manifest(), base={**base, "base": "SDXL"})) == ("a SD15", "a SDXL")
    other = replace(manifest(), base={**manifest().base, "prediction": "v"})
    assert [text.split()[-1] for text in ours.difference(other)] == [manifest().base["prediction"], "v"]
