"""Rank-relaxed fast fine-tuning: a frozen adapter, a new LoRA on its layers, one stack."""

import logging
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.sd
import comfy.utils
import pytest
import torch
from helpers.adapters import link, literal, stack_of
from helpers.reports import pack_warnings, resumed_at
from helpers.training import PROMPT, QUIET, interrupted_at, noise, output, relative, same, train, untouched
from hyperbooth.models.adapters import LiDBConfig, LoRAConfig
from hyperbooth.models.adapters.stack import AdapterStack
from hyperbooth.models.files.adapter_file import load_adapter, save_adapter
from hyperbooth.models.metadata.base_fingerprint import with_fingerprint
from hyperbooth.models.textual_inversion.embeddings import LearnedEmbedding
from hyperbooth.nodes.bridge.adapters.patching import base_weights
from hyperbooth.nodes.bridge.training_session import training_session
from hyperbooth.trainers.config import Method, TrainingOptions
from hyperbooth.trainers.dreambooth.config import DreamBoothConfig
from hyperbooth.trainers.dreambooth.initial_adapter import initial_adapter

FAMILIES = [("lidb",), ("para",), ("lidb", "para", "lora")]
by_families = pytest.mark.parametrize("families", FAMILIES, ids=", ".join)
METHOD = Method(family="lora", config=LoRAConfig(rank=3, alpha=3.0), learning_rate=1e-3, text_encoder=True)


@pytest.fixture(scope="module")
def loaded(quick: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
    return quick


def tuned(node: Any, loaded: Any, subject: Any, adapter: AdapterStack, **inputs: Any) -> tuple[Any, Any, str]:
    inputs = {
        "rank": 3, "steps": 3, "learning_rate": 1e-3, "seed": 0, "clip": loaded[1], "options": QUIET, **inputs
    }  # fmt: skip
    return node("FastFinetune", model=loaded[0], subject=subject, adapter=adapter, **inputs)


@by_families
def test_before_the_first_step_the_output_is_the_given_adapters(
    loaded: Any, subject: Any, families: tuple[str, ...]
) -> None:
    given = stack_of(families, loaded, text=True)
    run = DreamBoothConfig(subject=subject, method=METHOD, options=TrainingOptions(), steps=40, on_top_of=given)
    estimates = []
    with training_session(loaded[0], QUIET, subject, batch_size=1, clip=loaded[1]) as session:
        for adapter in (given, initial_adapter(run, session)):
            with adapter.injected(session.model.layers, session.model.access_weight), torch.no_grad():
                condition = session.text.condition(subject.examples[:1])
                estimates.append(session.denoiser(noise(), torch.tensor([5.0]), condition))
    assert torch.equal(*estimates)
    assert len(adapter.adapters) == len(families) + 1
    assert adapter.adapters[-1].targets.keys() <= given.targets().keys()
    assert all(parameter.requires_grad for parameter in adapter.adapters[-1].parameters())
    assert not any(parameter.requires_grad for before in adapter.adapters[:-1] for parameter in before.parameters())


def test_trains_on_top_and_leaves_the_rest_unchanged(node: Any, loaded: Any, subject: Any) -> None:
    given = stack_of(("lidb",), loaded, text=True)
    with untouched(*loaded[:2]):
        adapter, loss_map, report = tuned(node, loaded, subject, given, steps=18, learning_rate=3e-3, batch_size=2)
    losses = loss_map["loss"]
    assert len(losses) == 18 and sum(losses[-6:]) < 0.97 * sum(losses[:6])
    assert [one.family for one in adapter.adapters] == ["lidb", "lora"]
    assert same(AdapterStack(adapter.adapters[:1]), given)
    layers = adapter.adapters[1].targets
    assert any(name.startswith("text_encoders.") for name in layers)
    assert all(adapter.adapters[1].layers[name].up.abs().max() > 0 for name in layers)
    assert report.startswith(adapter.adapters[1].describe().split(" on ")[0]) and "18 steps of 2" in report
    assert report.endswith(given.adapters[0].describe())


def test_the_first_loss_is_the_given_adapters(node: Any, loaded: Any, subject: Any) -> None:
    """Training starts from the same model, whether the adapter is patched into the weights or injected."""
    given = stack_of(("lidb",), loaded)
    applied, _ = node("Apply", model=loaded[0], adapter=given, strength_model=1.0)
    _, on_top, _ = tuned(node, loaded, subject, given, steps=1)
    _, merged, _ = train(node, (applied,), subject, replace(METHOD, text_encoder=False), 1)
    _, plain, _ = train(node, loaded, subject, replace(METHOD, text_encoder=False), 1)
    assert on_top["loss"] == pytest.approx(merged["loss"], rel=1e-4)
    assert on_top["loss"] != pytest.approx(plain["loss"], rel=3e-4)


def test_one_file_holds_the_stack_and_its_metadata(node: Any, loaded: Any, subject: Any, output_folder: Path) -> None:
    given, _, _ = train(
        node, loaded, subject, Method(family="lidb", config=LiDBConfig(), targets="attention", learning_rate=1e-2), 2
    )
    adapter, _, _ = tuned(node, loaded, subject, given)
    (path,) = node("Save", adapter=adapter, filename_prefix="loras/a", format="hyperbooth", precision="float32")
    again = load_adapter(output_folder / path)
    assert [one.family for one in again.adapters] == ["lidb", "lora"] and same(adapter, again)
    assert [part["steps"] for part in again.metadata["parts"]] == [2, 3]
    assert again.metadata["base"] == "SD15" and again.metadata["prompts"] == [PROMPT]


@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_exported_as_one_plain_lora_it_is_what_apply_gives(
    node: Any, loaded: Any, subject: Any, output_folder: Path, strength: float
) -> None:
    model, clip, _ = loaded
    adapter, _, _ = tuned(node, loaded, subject, stack_of(("lidb",), loaded, text=True), learning_rate=3e-2)
    (path,) = node("Save", adapter=adapter, filename_prefix="loras/a", format="kohya", precision="float32", model=model)
    file = comfy.utils.load_torch_file(str(output_folder / path), safe_load=True)
    ranks = {tensor.shape[0] for name, tensor in file.items() if name.endswith("lora_down.weight")}
    assert ranks == {1 + 3}
    ours = node(
        "Apply", model=model, adapter=adapter, strength_model=strength, clip=clip, strength_clip=strength
    )  # fmt: skip
    with torch.inference_mode():
        stock = comfy.sd.load_lora_for_models(model, clip, file, strength, strength)
    assert relative(output(*ours), output(*stock)) < 1e-4
    before, after = base_weights(model, clip), base_weights(*ours)
    for name in list(adapter.adapters[1].targets)[::7]:
        expected = literal(adapter, name, before(name), strength)
        tolerance = 1e-3 if name.startswith("text_encoders.") else 1e-6  # those are kept in float16
        assert relative(after(name).flatten(1).double(), expected) < tolerance, name


def test_a_cancelled_and_resumed_run_gives_the_same_stack(
    node: Any, loaded: Any, subject: Any, output_folder: Path
) -> None:
    options = {"options": replace(QUIET, checkpoint_every=2), "steps": 8}
    given = stack_of(("lidb",), loaded, text=True)
    whole, losses, _ = tuned(node, loaded, subject, given, **options)
    (state,) = (output_folder / "hyperbooth_states").iterdir()
    state.unlink()
    with untouched(*loaded[:2]):
        with interrupted_at(4):
            tuned(node, loaded, subject, given, **options)
        again, losses_again, report_again = tuned(node, loaded, subject, given, **options)
    assert same(whole, again) and losses == losses_again
    other = AdapterStack((link("lidb", loaded, 1, text=True),), given.metadata)
    _, losses_of_other, report = tuned(node, loaded, subject, other, **options)
    assert losses_of_other != losses and resumed_at(report_again) > 0 == resumed_at(report)


def test_what_does_not_fit_is_refused_or_said(
    node: Any, loaded: Any, subject: Any, caplog: pytest.LogCaptureFixture
) -> None:
    given = stack_of(("lidb",), loaded, text=True)
    with pytest.raises(ValueError, match=r"^clip .*\badapter\b"):
        tuned(node, loaded, subject, given, clip=None)
    with pytest.raises(ValueError, match=r"^adapter .*\bembeddings\b"):
        tuned(
            node,
            loaded,
            subject,
            AdapterStack((), embeddings=(LearnedEmbedding("a", {"clip_l": torch.zeros(1, 768)}),)),
        )
    with pytest.raises(ValueError, match=r"\brank 4000\b.*\b\d+ x \d+\b.*\b\d+\b"):
        tuned(node, loaded, subject, given, rank=4000)
    other = AdapterStack(given.adapters, {"base": "SDXL"})
    with pytest.raises(ValueError, match=r"^first .*SDXL.*second .*SD15"):
        tuned(node, loaded, subject, other)
    foreign = with_fingerprint(stack_of(("para",), loaded), lambda name: 2 * base_weights(loaded[0])(name))
    with caplog.at_level(logging.WARNING):
        tuned(node, loaded, subject, foreign, steps=1)
    assert any(re.search(r"\b\d+\.\d %", message) for message in pack_warnings(caplog))


def test_a_saved_stack_is_fine_tuned_again(node: Any, loaded: Any, subject: Any, tmp_path: Path) -> None:
    save_adapter(tuned(node, loaded, subject, stack_of(("lidb",), loaded))[0], tmp_path / "a.safetensors")
    again, _, _ = tuned(node, loaded, subject, load_adapter(tmp_path / "a.safetensors"), rank=2)
    assert [one.describe().split(" on ")[0] for one in again.adapters[1:]] == [
        "lora (rank 3, alpha 3)", "lora (rank 2, alpha 2)"
    ]  # fmt: skip
