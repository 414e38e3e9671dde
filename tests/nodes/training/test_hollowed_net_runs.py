"""Runs on a hollow network: texts of different lengths, resumed runs, too little memory."""

import re
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.model_management
import pytest
import torch
from helpers.reports import mentions, resumed_at
from helpers.training import QUIET, interrupted_at, lora, same, train, untouched
from hyperbooth.models.hollowed_net.activation_cache import DiskStore, MemoryStore
from hyperbooth.models.textual_inversion.embeddings import FAMILY, TextualInversionConfig
from hyperbooth.nodes.bridge.model.block_spans import choose_removed_blocks
from hyperbooth.nodes.bridge.training_session import training_session
from hyperbooth.trainers.config import Method
from hyperbooth.trainers.engine.memory_plan import HEADROOM
from hyperbooth.trainers.hollowed_net.config import HollowedNetConfig

FRACTION = 0.7


def subject_of(node: Any, loaded: Any, prompt: str, images: int = 1) -> Any:
    pictures = torch.rand(images, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    (made,) = node(
        "Subject", images=[pictures], vae=[loaded[2]], clip=[loaded[1]], prompt=[prompt], resolution=[64],
        bucket=[True], flip=[False],
    )  # fmt: skip
    return made


def test_texts_that_do_not_fit_into_one_pass_are_recorded_singly(node: Any, loaded: Any) -> None:
    short, long = (subject_of(node, loaded, prompt) for prompt in ("a photo of sks dog", "very big " * 180 + "dog"))
    subject, still = replace(short, examples=short.examples + long.examples), lora(learning_rate=1e-12)
    hollow = HollowedNetConfig(fraction=FRACTION, samples=4, storage="ram")
    _, hollowed, _ = train(node, loaded, subject, still, hollow=hollow, steps=4, batch_size=2)
    _, whole, _ = train(node, loaded, subject, still, steps=2, batch_size=2)
    assert hollowed["loss"] == pytest.approx(whole["loss"] * 2, rel=1e-5)


def goes_on_as_if_nothing_had_been(
    node: Any, loaded: Any, subject: Any, method: Method, output_folder: Path, **settings: Any
) -> bool:
    """Return whether four steps and then two more give what six steps give."""
    settings = {"hollow": HollowedNetConfig(fraction=FRACTION, samples=10, storage="ram"), "seed": 5, **settings}
    whole, _, _ = train(node, loaded, subject, method, **settings, steps=6)
    for file in output_folder.rglob("*.safetensors"):
        file.unlink()
    train(node, loaded, subject, method, **settings, steps=4)
    again, _, report = train(node, loaded, subject, method, **settings, steps=6)
    return resumed_at(report) == 4 and same(whole, again)


def test_cached_activations_of_a_resumed_run_are_of_its_start(
    node: Any, loaded: Any, subject: Any, output_folder: Path
) -> None:
    method = lora(learning_rate=1e-2, targets="all linear")
    before, _, _ = train(
        node, loaded, subject, method, hollow=HollowedNetConfig(fraction=FRACTION, samples=4, storage="ram"), steps=4
    )
    assert goes_on_as_if_nothing_had_been(node, loaded, subject, method, output_folder, start_from=before)


def test_cached_activations_of_a_resumed_embedding_are_of_its_start(node: Any, quick: Any, output_folder: Path) -> None:
    method = Method(
        family=FAMILY,
        config=TextualInversionConfig(token="sks-x", initializer_word="dog", vectors=1),
        learning_rate=0.1,
    )
    subject = subject_of(node, quick, "a photo of sks-x")
    assert goes_on_as_if_nothing_had_been(node, quick, subject, method, output_folder, clip=quick[1])


def test_another_storage_goes_on_with_the_same_run(node: Any, loaded: Any, subject: Any) -> None:
    train(node, loaded, subject, lora(), hollow=HollowedNetConfig(fraction=FRACTION, samples=4, storage="ram"), steps=4)
    _, _, report = train(
        node, loaded, subject, lora(), hollow=HollowedNetConfig(fraction=FRACTION, samples=4, storage="disk"), steps=6
    )
    assert resumed_at(report) == 4


def test_what_a_cancelled_run_recorded_on_disk_goes_with_the_run_that_ends_in_memory(
    node: Any, loaded: Any, subject: Any, output_folder: Path
) -> None:
    with interrupted_at(3):
        train(
            node,
            loaded,
            subject,
            lora(),
            hollow=HollowedNetConfig(fraction=FRACTION, samples=4, storage="disk"),
            steps=6,
        )
    assert list(output_folder.rglob("*.records"))
    train(node, loaded, subject, lora(), hollow=HollowedNetConfig(fraction=FRACTION, samples=4, storage="ram"), steps=6)
    assert not list(output_folder.rglob("*.records"))


def test_after_a_recording_that_ran_out_of_memory_its_memory_is_free(
    node: Any, loaded: Any, subject: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, held = MemoryStore.write, []

    def short_of_memory(self: MemoryStore, name: str, records: Any) -> None:
        if not held:
            activations = torch.zeros(4)
            held.append(weakref.ref(activations))
            raise MemoryError
        assert held[0]() is None
        write(self, name, records)

    monkeypatch.setattr(MemoryStore, "write", short_of_memory)
    settings = {"hollow": HollowedNetConfig(fraction=FRACTION, samples=4, storage="ram"), "steps": 2, "batch_size": 2}
    _, losses, report = train(node, loaded, subject, lora(learning_rate=1e-12), **settings)
    _, whole, _ = train(node, loaded, subject, lora(learning_rate=1e-12), steps=2, batch_size=2)
    assert mentions(report, "2 batches of 2") and losses["loss"] == pytest.approx(whole["loss"], rel=1e-5)


def test_the_teacher_of_a_run_from_an_adapter_is_the_model_without_it(node: Any, loaded: Any) -> None:
    """Without learning, losses on cached activations are those with storage 'none', which runs the whole network."""
    (subject,) = node(
        "Subject", images=[torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(0))], vae=[loaded[2]],
        clip=[loaded[1]], prompt=["a photo of sks dog"], resolution=[64], bucket=[True], flip=[False],
        class_prompt=["a photo of a dog"],
    )  # fmt: skip
    strong, still = (lora(learning_rate=rate, targets="all linear") for rate in (1e-2, 1e-12))
    ram, none = (HollowedNetConfig(fraction=FRACTION, samples=4, storage=storage) for storage in ("ram", "none"))
    before, _, _ = train(node, loaded, subject, strong, hollow=ram, steps=6)
    settings = {"start_from": before, "steps": 3, "options": replace(QUIET, prior_mode="prediction")}
    _, recorded, _ = train(node, loaded, subject, still, hollow=ram, **settings)
    _, whole, _ = train(node, loaded, subject, still, hollow=none, **settings)
    assert recorded["loss"] == pytest.approx(whole["loss"], rel=1e-5)


def test_a_recording_that_does_not_fit_names_the_setting_to_lower(
    node: Any, loaded: Any, subject: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(MemoryStore, "write", full)
    with untouched(loaded[0]), pytest.raises(torch.OutOfMemoryError, match=r"\bsamples\b.*\bstorage\b"):
        train(
            node,
            loaded,
            subject,
            lora(),
            hollow=HollowedNetConfig(fraction=FRACTION, samples=4, storage="ram"),
            steps=2,
            batch_size=2,
        )


@pytest.mark.parametrize(
    ("storage", "kind", "else_"), [("ram", MemoryStore, "'disk' or 'none'"), ("disk", DiskStore, "'none'")]
)
def test_a_recording_that_there_is_no_room_for_ends_after_its_first_batch(
    node: Any, loaded: Any, subject: Any, output_folder: Path, monkeypatch: pytest.MonkeyPatch, storage: str,
    kind: type, else_: str,
) -> None:  # fmt: skip
    """There is room for seven batches of two and a half more than the first."""
    monkeypatch.setattr(kind, "free_bytes", lambda self: round(7.5 * self.total_bytes / HEADROOM))
    settings = {"steps": 100, "batch_size": 2}
    with untouched(loaded[0]), pytest.raises(ValueError, match=rf"\b16 samples\b.*\bstorage {else_}"):
        train(
            node,
            loaded,
            subject,
            lora(),
            hollow=HollowedNetConfig(fraction=FRACTION, samples=200, storage=storage),
            **settings,
        )
    assert not list(output_folder.rglob("*.records")), "it would take the room of the next try"
    _, _, report = train(
        node,
        loaded,
        subject,
        lora(),
        hollow=HollowedNetConfig(fraction=FRACTION, samples=16, storage=storage),
        **settings,
    )
    assert mentions(report, "8 batches of 2")


def test_a_disk_that_is_full_is_left_as_it_was(
    node: Any, loaded: Any, subject: Any, output_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = DiskStore.write

    def fills_up(self: DiskStore, name: str, records: Any) -> None:
        if self.total_bytes:
            raise OSError(28, "No space left on device")
        write(self, name, records)

    monkeypatch.setattr(DiskStore, "write", fills_up)
    with (
        untouched(loaded[0]),
        pytest.raises(OSError, match=r"No space left.*\bsamples\b.*\bstorage 'ram'"),
    ):
        train(
            node,
            loaded,
            subject,
            lora(),
            hollow=HollowedNetConfig(fraction=FRACTION, samples=4, storage="disk"),
            steps=4,
        )
    assert not list(output_folder.rglob("*.records"))


def test_missing_cache_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"3\.safetensors"):
        DiskStore(tmp_path).read("3")


@pytest.mark.parametrize(("samples", "steps", "said"), [(2, 8, True), (4, 8, False), (2, 2, False)])
def test_images_that_no_sample_shows_are_warned_of(
    node: Any, loaded: Any, samples: int, steps: int, said: bool
) -> None:
    subject = subject_of(node, loaded, "a photo of sks dog", images=3)
    _, _, report = train(
        node,
        loaded,
        subject,
        lora(),
        hollow=HollowedNetConfig(fraction=FRACTION, samples=samples, storage="ram"),
        steps=steps,
    )
    assert bool(re.search(r"^warning: .*\b2 samples\b.*\b2 of 3\b", report, re.M)) == said


def test_main_memory_that_weights_are_still_to_take_is_not_free(
    loaded: Any, subject: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere, hollow = loaded[0].clone(), choose_removed_blocks(loaded[0].model.diffusion_model, FRACTION).hollow
    elsewhere.offload_device = torch.device("meta")
    free = []
    for model in (loaded[0], elsewhere):
        with (
            training_session(model, QUIET, subject, batch_size=1, hollow=hollow) as session,
            monkeypatch.context() as patch,
        ):
            patch.setattr(comfy.model_management, "get_free_memory", lambda *_: 10**9)
            free.append(session.memory.free_main_memory())
    assert free == [10**9, 10**9 - sum(parameter.nbytes for parameter in hollow.parameters())]
