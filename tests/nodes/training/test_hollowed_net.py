"""Training on a hollow network, through the nodes."""

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from comfy.model_management import load_models_gpu, unload_all_models
from helpers.reports import mentions, resumed_at
from helpers.training import QUIET, interrupted_at, lora, same, train, untouched
from hyperbooth.models.adapters import LiDBConfig, PaRaConfig
from hyperbooth.nodes.bridge.model.block_spans import choose_removed_blocks
from hyperbooth.nodes.bridge.training_session import training_session
from hyperbooth.nodes.training.hollowed_net import MAX_FRACTION
from hyperbooth.nodes.training.hollowed_net import report as report_of
from hyperbooth.trainers.config import Method
from hyperbooth.trainers.dreambooth.config import DreamBoothConfig
from hyperbooth.trainers.dreambooth.loss import DreamBoothLoss
from hyperbooth.trainers.dreambooth.notes import whole_network_notes
from hyperbooth.trainers.dreambooth.validation import ValidationLoss
from hyperbooth.trainers.engine.state import History
from hyperbooth.trainers.hollowed_net.config import HollowedNetConfig

FRACTION = 0.7
METHODS = {
    "lora": lora(), "lidb": Method(family="lidb", config=LiDBConfig(), learning_rate=1e-3),
    "para": Method(family="para", config=PaRaConfig(rank=2), learning_rate=1e-3),
}  # fmt: skip


WARNING = "warning: "
SIZES = re.compile(r"^(\S.*?) +([\d.]+) MiB +[\d.]+ x$", re.M)
"""A row of the report's table of sizes, which takes a subject."""
TARGETS: dict[str, set[str]] = {}
"""Names of the targets in the whole network, by family."""


def removed_layers(model: Any, fraction: float = FRACTION) -> set[str]:
    """Return the names of the layers in the removed blocks."""
    inside = {
        id(m) for b in choose_removed_blocks(model.model.diffusion_model, fraction).hollow.blocks for m in b.modules()
    }
    return {name for name, module in model.model.named_modules() if id(module) in inside}


@pytest.mark.parametrize("storage", ["ram", "disk", "none"])
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_trains_what_is_left_and_leaves_the_model_alone(
    node: Any, loaded: Any, subject: Any, method: Method, storage: str
) -> None:
    with untouched(loaded[0]):
        adapter, losses, report = train(
            node,
            loaded,
            subject,
            method,
            hollow=HollowedNetConfig(fraction=FRACTION, samples=4, storage=storage),
            steps=12,
            batch_size=2,
        )
    assert len(losses["loss"]) == 12 and re.search(r"^hollow: .*input block", report, re.M)
    assert re.search(r"\bwhole network\b.*\b\d\.\d{4}\b", report)
    assert mentions(report, "2 batches of 2") == (storage != "none")
    if method.family not in TARGETS:
        TARGETS[method.family] = set(train(node, loaded, subject, method, steps=1)[0].targets())
    assert set(adapter.targets()) == TARGETS[method.family] - removed_layers(loaded[0])
    changed = [link.layers[name] for link in adapter.adapters for name in link.layers]
    assert all(parameter.isfinite().all() for a in changed for parameter in a.parameters())


def test_apply_changes_the_weights_of_what_was_kept_and_of_nothing_else(node: Any, loaded: Any, subject: Any) -> None:
    method = lora(targets="all linear and convolution")
    adapter, _, _ = train(
        node, loaded, subject, method, hollow=HollowedNetConfig(fraction=FRACTION, samples=4, storage="ram"), steps=4
    )
    before = {name: weight.clone() for name, weight in loaded[0].model.state_dict().items()}
    applied, _ = node("Apply", model=loaded[0], adapter=adapter, strength_model=1.0)
    with torch.inference_mode():
        load_models_gpu([applied], force_patch_weights=True)
        after = applied.model.state_dict()
        changed = {name for name, weight in before.items() if not torch.equal(weight, after[name])}
        unload_all_models()
    whole, _, _ = train(node, loaded, subject, method, steps=1)
    assert changed == {f"{name}.weight" for name in whole.targets() if name not in removed_layers(loaded[0])}


@pytest.mark.parametrize("storage", ["ram", "none"])
def test_the_loss_in_the_report_is_the_whole_networks(node: Any, loaded: Any, subject: Any, storage: str) -> None:
    hollow = HollowedNetConfig(fraction=FRACTION, samples=4, storage=storage)
    adapter, _, report = train(node, loaded, subject, lora(learning_rate=1e-2), steps=8, hollow=hollow)
    with training_session(loaded[0], QUIET, subject, batch_size=1) as session, torch.no_grad():
        objective = DreamBoothLoss.for_session(session, subject=subject, options=QUIET).objective
        whole = ValidationLoss(objective=objective, noise_levels=QUIET.noise_levels, seed=0)
        before = whole.first_image(subject.examples)
        with adapter.injected(session.model.layers):
            after = whole.first_image(subject.examples)
    assert re.search(rf"\bwhole network\b.*\b{after:.4f}\b.*\b{before:.4f}\b", report)


@pytest.mark.parametrize(("last", "warned"), [(0.4, False), (0.5, True), (0.6, True)])
def test_no_gain_of_the_whole_network_is_warned_of(last: float, warned: bool, subject: Any) -> None:
    run = DreamBoothConfig(
        subject=subject, method=lora(), options=QUIET, steps=4, hollow=HollowedNetConfig(fraction=0.9)
    )
    (line,) = whole_network_notes(run, History(divergence_checks=[(0, 0.5), (4, last)]))
    assert line.startswith("warning: ") == ("fraction" in line) == warned
    assert whole_network_notes(replace(run, hollow=None), History(divergence_checks=[(0, 0.5), (4, last)])) == []


def test_recorded_samples_come_in_turn(node: Any, loaded: Any, subject: Any) -> None:
    """Without learning, losses repeat with the recorded batches, and are those of the whole network."""
    still = lora(learning_rate=1e-12)
    _, hollow, _ = train(
        node,
        loaded,
        subject,
        still,
        hollow=HollowedNetConfig(fraction=FRACTION, samples=4, storage="ram"),
        steps=8,
        batch_size=2,
    )
    _, whole, _ = train(node, loaded, subject, still, steps=2, batch_size=2)
    assert hollow["loss"] == pytest.approx(whole["loss"] * 4, rel=1e-5)


def test_fresh_noise_without_records_is_the_whole_networks(node: Any, loaded: Any, subject: Any) -> None:
    still = lora(learning_rate=1e-12)
    _, hollow, _ = train(
        node, loaded, subject, still, hollow=HollowedNetConfig(fraction=FRACTION, samples=4, storage="none"), steps=6
    )
    _, whole, _ = train(node, loaded, subject, still, steps=6)
    assert hollow["loss"] == pytest.approx(whole["loss"], rel=1e-5)


@pytest.mark.parametrize("storage", ["ram", "disk"])
def test_cancelled_it_goes_on_as_if_nothing_had_been(
    node: Any, loaded: Any, subject: Any, storage: str, output_folder: Any
) -> None:
    settings = {
        "hollow": HollowedNetConfig(fraction=FRACTION, samples=6, storage=storage),
        "steps": 10,
        "batch_size": 2,
    }
    whole, _, _ = train(node, loaded, subject, lora(), **settings, seed=3)
    for file in output_folder.rglob("*.safetensors"):
        file.unlink()
    with interrupted_at(6):
        train(node, loaded, subject, lora(), **settings, seed=3)
    again, _, report = train(node, loaded, subject, lora(), **settings, seed=3)
    assert resumed_at(report) > 0
    assert same(whole, again)
    assert not list(output_folder.rglob("*.records"))


def test_a_cancel_while_recording_keeps_what_is_on_disk(
    node: Any, loaded: Any, subject: Any, output_folder: Any
) -> None:
    settings = {"hollow": HollowedNetConfig(fraction=FRACTION, samples=40, storage="disk"), "steps": 40}
    with untouched(loaded[0]), interrupted_at(20):
        train(node, loaded, subject, lora(), **settings)
    assert len(list(output_folder.rglob("*.records/*.safetensors"))) >= 19
    train(node, loaded, subject, lora(), **settings)


def test_with_checkpointing_it_is_the_same(node: Any, loaded: Any, subject: Any) -> None:
    settings = {"hollow": HollowedNetConfig(fraction=FRACTION, samples=2, storage="ram"), "steps": 4}
    plain, _, _ = train(node, loaded, subject, lora(), **settings)
    spared, _, _ = train(
        node, loaded, subject, lora(), **settings, options=replace(QUIET, gradient_checkpointing=True, memory="as set")
    )
    pairs = zip(plain.parameters(), spared.parameters(), strict=True)
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-6) for a, b in pairs)


@pytest.mark.parametrize("prior_mode", ["class images", "prediction"])
def test_with_masks_buckets_and_a_prior_each_batch_finds_its_records(
    node: Any, loaded: Any, prior_mode: str
) -> None:  # fmt: skip
    """Without learning, the losses of the first epoch are the whole network's."""
    pictures = torch.rand(4, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    masks = torch.ones(4, 64, 64)
    masks[:, :, :20] = 0
    (subject,) = node(
        "Subject", images=[pictures[:2], pictures[2:, :, :48]], vae=[loaded[2]], clip=[loaded[1]],
        prompt=["a photo of sks dog"], resolution=[64], bucket=[True], flip=[False],
        masks=[masks[:2], masks[2:, :, :48]], class_images=[pictures[:3]], class_prompt=["a photo of a dog"],
    )  # fmt: skip
    options = replace(QUIET, prior_mode=prior_mode, caption_dropout=0.3)
    settings = {"steps": 6, "batch_size": 2, "options": options}
    still = lora(learning_rate=1e-12)
    _, hollow, _ = train(
        node, loaded, subject, still, hollow=HollowedNetConfig(fraction=FRACTION, samples=12, storage="ram"), **settings
    )
    _, whole, _ = train(node, loaded, subject, still, **settings)
    assert hollow["loss"] == pytest.approx(whole["loss"], rel=1e-5)


def test_train_further_from_an_adapter_of_the_whole_network(node: Any, loaded: Any, subject: Any) -> None:
    """Its deep layers are cached as they are, and stay so."""
    hollow = HollowedNetConfig(fraction=FRACTION, samples=4, storage="ram")
    before, _, _ = train(node, loaded, subject, lora(), hollow=hollow, steps=6)
    after, _, _ = train(node, loaded, subject, lora(), hollow=hollow, steps=6, start_from=before)
    assert after.targets() == before.targets() and not same(before, after)
    whole, _, _ = train(node, loaded, subject, lora(), steps=2)
    with pytest.raises(ValueError, match=r"^start_from .*\blora\b.*\bfraction\b"):
        train(node, loaded, subject, lora(), hollow=hollow, start_from=whole)


def test_targets_in_removed_blocks_alone_are_put_down_to_the_fraction(subject: Any) -> None:
    left, fraction = {"diffusion_model.out.2": (4, 32, 3, 3)}, "fraction"
    run = DreamBoothConfig(
        subject=subject, method=lora(), options=QUIET, steps=4, hollow=HollowedNetConfig(fraction=1.0)
    )
    with pytest.raises(ValueError, match=rf"^targets 'attention'.*{fraction}"):
        run.targets(left)
    with pytest.raises(ValueError, match=rf"^targets 'attention'(?!.*{fraction})"):
        replace(run, hollow=None).targets(left)


def test_the_report_names_the_removed_blocks(node: Any, loaded: Any, subject: Any) -> None:
    hollow, report = node(
        "HollowedNet", model=loaded[0], fraction=0.7, samples=100, storage="ram", subject=subject
    )  # fmt: skip
    assert hollow == HollowedNetConfig(fraction=0.7, samples=100, storage="ram")
    for part in (r"\bremoved blocks\b.*\binput block \d", r"\b100 samples\b", r"\bhollow LoRA\b"):
        assert re.search(part, report), report
    _, short = node("HollowedNet", model=loaded[0], fraction=0.4, samples=100, storage="ram")
    assert [bool(SIZES.search(text)) for text in (report, short)] == [True, False] and WARNING not in short


@pytest.mark.parametrize("more", [0.0, 0.01])
def test_a_removed_share_that_is_too_large_is_warned_of(
    more: float, loaded: Any, caplog: pytest.LogCaptureFixture
) -> None:  # fmt: skip
    cut = replace(choose_removed_blocks(loaded[0].model.diffusion_model, FRACTION), fraction=MAX_FRACTION + more)
    said = re.compile(r"\b86%.*\bfraction\b.*\b0\.8")
    report = report_of(loaded[0], HollowedNetConfig(fraction=0.9), cut, None)
    assert bool(said.search(report)) == bool(said.search(caplog.text)) == (WARNING in report) == bool(more)


def test_weights_that_are_not_offloaded_save_nothing(node: Any, loaded: Any, subject: Any) -> None:
    """Without cached activations the removed blocks run, and a CPU keeps what does not run in main memory.

    What a device holds is at least what the recording takes, which runs the whole network.
    """
    elsewhere = loaded[0].clone()
    elsewhere.offload_device = torch.device("meta")
    inputs = {"fraction": 0.7, "samples": 100, "subject": subject}
    lora_in, sampling = {}, 0.0
    for model, storage in ((elsewhere, "ram"), (elsewhere, "none"), (loaded[0], "ram")):
        _, report = node("HollowedNet", model=model, storage=storage, **inputs)
        rows = {name: float(size) for name, size in SIZES.findall(report)}
        lora_in[model is elsewhere, storage], sampling = rows["hollow LoRA"], rows["sampling"]
    whole = (
        sum(p.nbytes for p in choose_removed_blocks(loaded[0].model.diffusion_model, 0.7).hollow.parameters()) / 2**20
    )
    assert lora_in[True, "none"] == lora_in[False, "ram"] > sampling
    assert lora_in[True, "ram"] == pytest.approx(max(sampling, lora_in[True, "none"] - whole), abs=0.02)
    assert re.search(r"\bmain memory\b.*\bweights\b", report)
