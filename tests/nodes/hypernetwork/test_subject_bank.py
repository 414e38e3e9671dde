"""Banks of subjects, built on a loaded model."""

import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.sd
import folder_paths
import pytest
import torch
from helpers.reports import mentions
from helpers.training import interrupted_at, lora, noise, output, relative, untouched
from hyperbooth.models.adapters import LiDBConfig
from hyperbooth.models.adapters.stack import Adapter, AdapterStack
from hyperbooth.models.subject_bank.bank import Bank
from hyperbooth.nodes.adapters.save_load import Load
from hyperbooth.nodes.bridge.subject_banks import BANK_FOLDER, bank_backend, bank_names, new_bank_path
from hyperbooth.nodes.bridge.training_session import training_session
from hyperbooth.nodes.data.image_folder import ImagesFromFolder
from hyperbooth.nodes.hypernetwork.predict import LoadHyperNetwork
from hyperbooth.nodes.hypernetwork.subject_bank import BuildBank, LoadBank
from hyperbooth.trainers.config import Method, TrainingOptions
from hyperbooth.trainers.data.dataset import Example, Subject
from hyperbooth.trainers.engine.distributed import ProcessGroup
from hyperbooth.trainers.engine.memory_plan import MemoryPlan
from hyperbooth.trainers.engine.rng import generator_for
from hyperbooth.trainers.subject_bank.build import BankBuilder
from hyperbooth.trainers.subject_bank.config import BankConfig
from hyperbooth.trainers.subject_bank.trainer import BankTrainer
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

FAST = TrainingOptions(preview_every=0)
PROMPT = "a photo of sks face"


def lidb(**settings: Any) -> Method:
    """Return a LiDB of few parameters that trains fast."""
    given = {"learning_rate": 2e-2, "text_encoder": False, "text_encoder_lr": 5e-3, **settings}
    config = LiDBConfig(rank=1, a=16, b=8, basis_seed=given.pop("basis_seed", 0))
    return Method(family="lidb", config=config, targets="attention", text_targets="attention and feed-forward", **given)


def picture(seed: int, size: int = 64) -> Image.Image:
    """Return an image of blotches in a color of their own."""
    draw = torch.Generator().manual_seed(seed)
    blotches = torch.rand(4, 4, 3, generator=draw) * 0.4 + 0.6 * torch.rand(3, generator=draw)
    return Image.fromarray((blotches * 255).byte().numpy()).resize((size, size), Image.Resampling.BICUBIC)


def write_people(folder: Path, counts: dict[str, int]) -> None:
    """Write a sub-folder for each name, with so many images."""
    for index, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            picture(1000 * (index + len(name)) + number, 80).save(folder / name / f"{number}.png")


@pytest.fixture
def people(tmp_path: Path) -> Iterator[Path]:
    """Write ``input/people`` with three subjects, and return it."""
    before = folder_paths.get_input_directory()
    folder_paths.set_input_directory(str(tmp_path))
    write_people(tmp_path / "people", {"alice": 1, "bob": 3, "carol": 1})
    yield tmp_path / "people"
    folder_paths.set_input_directory(before)


def build(node: Any, quick: Any, **inputs: Any) -> tuple[Bank, str]:
    model, clip, vae = quick
    inputs = {"method": lidb(), "prompt": PROMPT, "steps": 3, "subjects_per_batch": 3, "seed": 0, "resolution": 32,
              "options": FAST, "folder": "people", **inputs}  # fmt: skip
    return node("BuildBank", model=model, clip=clip, vae=vae, **inputs)


def close(a: Tensor, b: Tensor) -> bool:
    return relative(a, b) < 1e-4


def test_each_subject_is_trained_and_the_model_is_unchanged(node: Any, quick: Any, people: Path) -> None:
    with untouched(*quick[:2]):
        bank, report = build(node, quick, steps=30, resolution=64, method=lidb(text_encoder=True))
    assert bank.names == ("alice", "bob", "carol") and bank.image_counts == (1, 3, 1)
    assert bank.prompt == PROMPT and bank.theta().shape == (3, bank.layout.parameter_count)
    for entry in bank.entries:
        assert entry.fit.own < 0.95 * entry.fit.base and entry.fit.own < entry.fit.other, entry
    assert re.search(r"3 subjects .*\b5 .*\b1 shard.*\b3 .*new", report, re.S)
    assert any(name.startswith("text_encoders.") for name in bank.layout.targets)


def test_a_batch_of_three_equals_three_batches_of_one(node: Any, quick: Any, people: Path) -> None:
    """The layers of the text encoder are trained too."""
    both = lidb(text_encoder=True)
    batched, _ = build(node, quick, method=both)
    alone, report = build(node, quick, method=both, subjects_per_batch=1, bank_name="alone")
    assert mentions(report, "3 shards")
    for i in range(3):
        assert close(alone.theta([i]), batched.theta([i])), batched.names[i]
        assert relative(batched.theta([i]), batched.theta([(i + 1) % 3])) > 1e-2
        assert alone.entries[i].fit.own == pytest.approx(batched.entries[i].fit.own, rel=1e-4)
    assert alone.entries[0].fit.other is None and batched.entries[0].fit.other is not None


def test_images_are_trained_on_their_captions(node: Any, quick: Any, people: Path) -> None:
    (people / "bob" / "1.txt").write_text("a photo of sks face\nin the snow", "utf-8")
    plain, _ = build(node, quick)
    captioned, report = build(node, quick, bank_name="told", captions=True)
    assert re.search(r"\bcaptions\b.*\b1 of 5\b", report)
    assert [plain.caption(1, image) for image in range(3)] == [PROMPT] * 3
    assert [captioned.caption(1, image) for image in range(3)] == [PROMPT, f"{PROMPT} in the snow", PROMPT]
    assert captioned.adapter(1).metadata["prompts"] == [PROMPT, f"{PROMPT} in the snow"]
    assert (
        close(captioned.theta([0, 2]), plain.theta([0, 2])) and relative(captioned.theta([1]), plain.theta([1])) > 1e-3
    )
    with pytest.raises(ValueError, match=r"^bank 'told'.*\bcaptions True\b"):
        build(node, quick, bank_name="told")


def test_a_caption_stays_with_its_image_where_others_are_left_out(node: Any, quick: Any, people: Path) -> None:
    (people / "bob" / "0.png").write_bytes(b"no picture")
    (people / "bob" / "1.txt").write_bytes(b"\0\1\2")
    (people / "bob" / "2.txt").write_text(f"{PROMPT} at sea")
    (people / "alice" / "0.txt").write_text("long" * 3000)
    bank, report = build(node, quick, captions=True)
    assert bank.names == ("bob", "carol") and bank.image_counts == (1, 1) and bank.caption(0, 0) == f"{PROMPT} at sea"
    for said in (r"bob/0\.png: ", r"bob/1\.png: .*1\.txt .*UTF-8", r"alice: .*0\.png.*0\.txt.*12000"):
        assert re.search(f"left out: {said}", report)


def header(bank: Bank) -> dict[str, tuple[int, int]]:
    """Return the shards by name, with what changes when they are rewritten."""
    return {path.name: (path.stat().st_mtime_ns, path.stat().st_ino) for path in bank.folder.glob("*.safetensors")}


def test_a_cancelled_build_keeps_finished_shards_and_resumes(
    node: Any, quick: Any, people: Path, output_folder: Path
) -> None:
    whole, _ = build(node, quick, subjects_per_batch=1, bank_name="whole")
    with untouched(*quick[:2]), interrupted_at(5):
        build(node, quick, subjects_per_batch=1)
    first = Bank.open(output_folder / "hyperbooth_banks" / "people")
    assert first.names == ("alice",)
    kept = header(first)
    bank, report = build(node, quick, subjects_per_batch=1)
    assert re.search(r"3 subjects.*\b2 .*new", report, re.S)
    assert bank.theta().equal(whole.theta()) and bank.names == whole.names
    assert kept.items() <= header(bank).items()
    again, report = build(node, quick, subjects_per_batch=1)
    assert re.search(r"none .*new", report) and header(again) == header(bank)


def test_new_folders_extend_the_bank(node: Any, quick: Any, people: Path) -> None:
    before, _ = build(node, quick)
    kept = header(before)
    write_people(people, {"dora": 1, "emil": 2})
    (people / "alice" / "0.png").unlink()
    (people / "alice").rmdir()
    bank, report = build(node, quick, subjects_per_batch=2)
    assert bank.names == ("alice", "bob", "carol", "dora", "emil") and bank.image_counts == (1, 3, 1, 1, 2)
    assert re.search(r"\b2 .*new", report) and re.search(r"\balice$", report, re.M)
    assert bank.theta([0, 1, 2]).equal(before.theta()) and kept.items() <= header(bank).items()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"steps": 5}, r"\bsteps 3\b.*\bsteps 5\b"),
        ({"prompt": "a sks person"}, "prompt 'a photo of sks face'.*prompt 'a sks person'"),
        ({"seed": 1}, r"\bseed 0\b.*\bseed 1\b"),
        ({"resolution": 72}, r"\bresolution 32\b.*\bresolution 72\b"),
        ({"shared_input": True}, r"\bshared_input False\b.*\bshared_input True\b"),
        ({"method": lidb(text_encoder=True, basis_seed=3)}, r"\bbasis seed 0\b.*\bbasis seed 3\b"),
        ({"method": lidb()}, r"\b\d+ layers\b.*\b\d+ layers\b"),
        (
            {"method": lidb(text_encoder=True, learning_rate=1e-3)},
            r"\bmethod\.learning_rate 0\.02\b.*\bmethod\.learning_rate 0\.001\b",
        ),
        (
            {"options": TrainingOptions(noise_offset=0.1)},
            r"\boptions\.noise_offset 0\.0\b.*\boptions\.noise_offset 0\.1\b",
        ),
    ],
)
def test_a_bank_is_not_extended_with_other_settings(
    node: Any, quick: Any, people: Path, built: Path, changed: dict[str, Any], message: str
) -> None:
    before = {path.name: path.read_bytes() for path in built.iterdir()}
    with pytest.raises(ValueError, match=rf"^bank 'built' .*{message}"):
        build(node, quick, **{"bank_name": "built", "method": lidb(text_encoder=True), **changed})
    assert {path.name: path.read_bytes() for path in built.iterdir()} == before


@pytest.fixture(scope="module")
def once(node: Any, quick: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a bank that is built once."""
    root = tmp_path_factory.mktemp("once")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder_paths, "input_directory", str(root / "input"))
        patch.setattr(folder_paths, "output_directory", str(root / "output"))
        write_people(root / "input" / "people", {"alice": 1})
        bank, _ = build(node, quick, bank_name="built", method=lidb(text_encoder=True))
    return bank.folder


@pytest.fixture
def built(once: Path, output_folder: Path) -> Path:
    """Return a copy of that bank in the test's output folder."""
    return Path(shutil.copytree(once, output_folder / "hyperbooth_banks" / "built"))


def test_another_model_is_refused(node: Any, quick: Any, people: Path, built: Path) -> None:
    model, clip, vae = quick
    patched = model.clone()
    name = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
    keys = [key for key in model.model_state_dict() if key.endswith(".weight")]
    assert name in keys
    patched.add_patches({key: ("diff", (torch.ones_like(model.model_state_dict()[key]),)) for key in keys}, 0.1)
    with pytest.raises(ValueError, match=r"\bmodel\b.*\b\d+\.\d ?% "):
        build(node, (patched, clip, vae), bank_name="built", method=lidb(text_encoder=True))


def test_two_builds_at_once_do_not_interfere(
    node: Any, quick: Any, people: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the first trains its first batch, another of that name and with other settings starts and ends."""
    real, found = BankTrainer.train, []

    def call(trainer: BankTrainer, *given: Any) -> Any:
        fitted = real(trainer, *given)
        if trainer.config.steps == 5:
            found.append(build(node, quick, steps=3)[0])
        return fitted

    monkeypatch.setattr(BankTrainer, "train", call)
    with pytest.raises(ValueError, match=r"^bank 'people' .*steps 3 .*steps 5 "):
        build(node, quick, steps=5)
    theta = found[0].theta()
    again, report = build(node, quick, steps=3)
    assert re.search(r"none .*new", report) and torch.equal(again.theta(), theta)


def test_linked_inputs_cannot_be_fingerprinted_and_the_warning_names_them() -> None:
    """ComfyUI gives None for it, shows the error as a warning, and runs the node."""
    with pytest.raises(ValueError, match=r"^folder .*\blinked\b"):
        BuildBank.fingerprint_inputs(folder=None)
    for node, name in (
        (ImagesFromFolder, "folder"), (LoadBank, "bank_name"), (Load, "adapter_name"),
        (LoadHyperNetwork, "hypernetwork_name"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=rf"^{name} .*\blinked\b"):
            node.fingerprint_inputs(**{name: None})


def test_a_bank_of_the_models_folder_is_not_hidden_by_a_new_one(
    node: Any, quick: Any, people: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Load Subject Bank would open the new one."""
    bank, _ = build(node, quick)
    shared = tmp_path / "models" / "people"
    monkeypatch.setitem(folder_paths.folder_names_and_paths, BANK_FOLDER, ([str(shared.parent)], set()))
    shutil.move(bank.entries[0].shard.parent, shared)
    with pytest.raises(ValueError, match=r"^bank_name 'people' .*models.*output/hyperbooth_banks"):
        build(node, quick)
    assert not new_bank_path("others").exists()
    other, _ = build(node, quick, bank_name="others")
    assert other.names == bank.names


def test_a_bank_that_lost_a_shard_is_rebuilt_and_reopened(node: Any, quick: Any, people: Path) -> None:
    """ComfyUI runs a node again whose fingerprint has changed."""
    asked, opened = (lambda: BuildBank.fingerprint_inputs(folder="people")), LoadBank.fingerprint_inputs
    before = asked()
    bank, _ = build(node, quick, subjects_per_batch=2)
    assert before == asked() == asked(), "built, and nothing has changed since"
    loaded = opened(bank_name="people")
    shard = bank.entries[0].shard
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-100])
    with pytest.raises(ValueError, match=rf"^bank 'people': {shard.name} "):
        bank.theta()
    shard.unlink()
    with pytest.raises(ValueError, match=rf"^bank 'people': {shard.name} "):
        bank.latents(0)
    lost = asked()
    assert lost != before and opened(bank_name="people") != loaded
    again, _ = build(node, quick, subjects_per_batch=2)
    assert again.names == bank.names and asked() == lost
    theta, loaded = again.theta([0]), opened(bank_name="people")
    picture(77).save(people / "alice" / "0.png")
    shard.unlink()
    other, _ = build(node, quick, subjects_per_batch=2)
    assert other.entries[0].shard == shard and not torch.equal(other.theta([0]), theta)
    assert opened(bank_name="people") != loaded, "the same names, and another shard"


def test_a_bank_is_named_after_the_folder_and_those_around_it(node: Any, quick: Any, people: Path) -> None:
    for whose in ("celebs", "friends"):
        write_people(people.parent / whose / "train", {"0001": 1})
        bank, report = build(node, quick, steps=1, folder=f"{whose}/train")
        assert bank.name == f"{whose}_train" and re.search(r"\b1 .*new", report)


def test_unreadable_files_are_reported_and_skipped(node: Any, quick: Any, people: Path) -> None:
    data = (people / "bob" / "0.png").read_bytes()
    (people / "bob" / "broken.png").write_bytes(data[: len(data) // 2])
    (people / "carol" / "0.png").write_text("no picture")
    (people / "empty").mkdir()
    (people / ".hidden").mkdir()
    (people / "two\nlines").mkdir()
    bank, report = build(node, quick)
    assert bank.names == ("alice", "bob") and bank.image_counts == (1, 3)
    assert re.search(r"left out: carol: .*carol.*; 0\.png: ", report)
    left_out = re.findall(r"^left out: (.*?): ", report, re.M)
    assert sorted(left_out) == [r"'two\nlines'", "bob/broken.png", "carol", "empty"]
    picture(5).save(people / "carol" / "0.png")
    bank, report = build(node, quick)
    assert bank.names == ("alice", "bob", "carol") and re.search(r"\b1 .*new", report)


def test_no_usable_subject_is_an_error_and_leaves_no_bank(
    node: Any, quick: Any, people: Path, output_folder: Path
) -> None:
    for path in people.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"\bpeople\b.*\n.*\balice: "):
        build(node, quick)
    assert not (output_folder / "hyperbooth_banks").exists()
    (people.parent / "flat").mkdir()
    with pytest.raises(ValueError, match=r"^folder 'flat' .*sub-folder"):
        build(node, quick, folder="flat")


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"method": lora()}, "^method .*lora.* lidb"),
        ({"prompt": " "}, "^prompt .*empty"),
        ({"steps": 0}, r"^steps .*\b0\b"),
        ({"subjects_per_batch": 0}, r"^subjects_per_batch .*\b0\b"),
        ({"bank_name": "../x"}, "^bank_name '../x'"),
        ({"bank_name": ".x"}, "^bank_name '.x'"),
        ({"folder": "nobody"}, "^folder 'nobody'"),
        ({"options": TrainingOptions(optimizer="adafactor")}, "optimizer 'adafactor'"),
        ({"options": TrainingOptions(prior_mode="prediction")}, "prior_mode 'prediction'"),
        ({"options": TrainingOptions(caption_dropout=0.1)}, "caption_dropout"),
    ],
)
def test_unusable_inputs_are_refused(node: Any, quick: Any, people: Path, inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(node, quick, **inputs)


def test_all_subjects_start_from_the_same_parameters(node: Any, quick: Any, people: Path) -> None:
    """A learning rate of zero leaves the start, another bank's mean goes into the next."""
    still, _ = build(node, quick, method=lidb(learning_rate=0.0, text_encoder_lr=0.0), bank_name="still")
    assert (still.theta() == still.theta([0])).all()
    learned, _ = build(node, quick, bank_name="learned")
    mean = AdapterStack((learned.layout.unpack(learned.theta().mean(0)),))
    on, _ = build(node, quick, start_from=mean, bank_name="on", method=lidb(learning_rate=0.0, text_encoder_lr=0.0))
    assert on.theta([1])[0].equal(learned.theta().mean(0))
    other = AdapterStack((learned.layout.unpack(learned.theta()[0]),) * 2)
    with pytest.raises(ValueError, match=r"^start_from .*\blidb\b.*\blidb\b"):
        build(node, quick, start_from=other, bank_name="no")
    with pytest.raises(ValueError, match=r"^start_from\b.*\bbasis seed 0\b.*\bbasis seed 1\b"):
        build(node, quick, start_from=mean, method=lidb(basis_seed=1), bank_name="no")


def test_with_a_shared_down_factor_only_the_up_factor_trains(node: Any, quick: Any, people: Path) -> None:
    bank, _ = build(node, quick, shared_input=True)
    start = Adapter.create("lidb", list(bank.layout.targets.values()), lidb().config, generator_for(0, 100))
    for name, parts in bank.layout.unflatten(bank.theta()).items():
        assert (parts["b_train"] == start.layers[name].b_train.detach()).all()
        assert parts["a_train"].flatten(1).norm(dim=1).min() > 0


def test_load_bank_opens_it(node: Any, quick: Any, people: Path, built: Path) -> None:
    (bank,) = node("LoadBank", bank_name="built")
    assert bank.names == ("alice",) and bank.folder == built
    assert "built" in bank_names()
    with pytest.raises(ValueError, match=r"^bank_name 'none'"):
        node("LoadBank", bank_name="none")
    with pytest.raises(ValueError, match=r"^bank_name '\.\./hyperbooth_banks/built'"):
        node("LoadBank", bank_name="../hyperbooth_banks/built")


def test_a_subjects_adapter_acts_in_the_graph_as_in_training(node: Any, quick: Any, people: Path, built: Path) -> None:
    bank = Bank.open(built)
    model, clip, _ = quick
    patched = node("Apply", model=model, adapter=bank.adapter(0), strength_model=1.0, clip=clip, strength_clip=1.0)
    layers = bank.adapter(0).targets()
    with training_session(model, FAST, pictures_of(bank, 0), batch_size=1, clip=clip) as session:
        stack = AdapterStack((bank.layout.unpack(bank.theta([0])),))
        with (
            session.injected(stack),
            torch.no_grad(),
        ):
            attached = session.denoiser(
                noise(), torch.tensor([5.0]), session.text.condition_per_subject(pictures_of(bank, 0).examples)
            )
    assert relative(attached, output(*patched, PROMPT)) < 1e-3 and len(layers) > 30
    assert relative(output(model, clip, PROMPT), output(*patched, PROMPT)) > 1e-3
    (path,) = node("Save", adapter=bank.adapter(0), filename_prefix="loras/alice", format="kohya", precision="float32",
                   model=model, clip=clip)  # fmt: skip
    with torch.inference_mode():
        stock = comfy.sd.load_lora_for_models(model, clip, load_file(built.parents[1] / path), 1.0, 1.0)
    assert relative(output(*stock, PROMPT), output(*patched, PROMPT)) < 1e-4


def pictures_of(bank: Bank, subject: int) -> Subject:
    cond = [[torch.zeros(1, 77, 768), {}]]
    return Subject(tuple(Example(latent[None], cond, PROMPT) for latent in bank.latents(subject)))


def test_processes_that_share_the_batches_build_the_same_bank(
    node: Any, quick: Any, people: Path, output_folder: Path
) -> None:
    """Each takes every third batch; the last one has none."""
    write_people(people, {"dora": 1})
    whole, _ = build(node, quick, subjects_per_batch=2, bank_name="whole")
    config = BankConfig(method=lidb(), prompt=PROMPT, steps=3, resolution=32, options=FAST)
    folder = output_folder / "hyperbooth_banks" / "shared"
    for rank in (2, 1, 0):
        with torch.inference_mode():
            builder = BankBuilder(
                config=config, source=people, folder=folder, subjects_per_batch=2, on_progress=lambda *_: None,
                backend=bank_backend(*quick, FAST, text_encoder=False), processes=ProcessGroup(rank, 3),
            )  # fmt: skip
            bank, _ = builder.build()
        assert len(bank) == {2: 0, 1: 2, 0: 4}[rank]
    assert bank.names == whole.names and bank.theta().equal(whole.theta())
    assert [entry.fit for entry in bank.entries] == [entry.fit for entry in whole.entries]


def example(seed: int, value: float = 1.0) -> Subject:
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed)) * value
    return Subject((Example(latents, None, PROMPT),))


@pytest.fixture
def session(quick: Any) -> Iterator[Any]:
    model, clip, _ = quick
    with training_session(model, FAST, pictures(example(0)), batch_size=4, clip=clip) as opened:
        yield opened


def pictures(subject: Subject) -> Subject:
    """Add the conditioning that a session inspects."""
    return Subject(tuple(replace(e, cond=[[torch.zeros(1, 77, 768), {}]]) for e in subject.examples))


def trainer(session: Any, subjects: int, **settings: Any) -> BankTrainer:
    config = BankConfig(
        method=lidb(text_encoder=True), prompt=PROMPT, steps=2, resolution=64, options=FAST, **settings
    )  # fmt: skip
    return BankTrainer(config=config, start=config.start(session.model.shapes), subjects_per_batch=subjects)


def unseen(_: int) -> Any:
    return lambda history: None


def test_a_diverging_subject_does_not_affect_the_others(session: Any) -> None:
    """With a latent of NaN, the batch is halved until that subject is alone."""
    subjects = [example(0), example(1), example(2, torch.nan)]
    first, second, third = trainer(session, 3).train(session, subjects, unseen)
    assert "loss" in third.reason and "nan" in third.reason
    alone = trainer(session, 1).train(session, subjects[:2], unseen)
    for one, batched in zip(alone, (first, second), strict=True):
        assert close(one.theta, batched.theta)


def test_a_batch_that_does_not_fit_is_split(session: Any, caplog: Any) -> None:
    """A batch of three runs out of memory once; the result is the same."""
    subjects, whole = [example(i) for i in range(3)], trainer(session, 3)
    expected = whole.train(session, subjects, unseen)
    assert MemoryPlan().describe(3) in whole.lines[0]

    def short(together: int) -> Any:
        if together > 2:
            raise torch.OutOfMemoryError("no room")
        return unseen(together)

    tight = trainer(session, 3)
    found = tight.train(session, subjects, short)
    assert tight.planner.plan == MemoryPlan(micro_batches=2) and tight.planner.plan.describe(3) in caplog.text
    assert all(close(one.theta, other.theta) for one, other in zip(found, expected, strict=True))

    def never(together: int) -> Any:
        raise torch.OutOfMemoryError("no room")

    with pytest.raises(torch.OutOfMemoryError, match=r"subjects_per_batch"):
        trainer(session, 2).train(session, subjects, never)
