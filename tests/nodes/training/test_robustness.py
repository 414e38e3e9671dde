"""A trainer one can trust: resume, stopping before harm, validation, memory, on ComfyUI's loaded objects."""

import re
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete
from helpers.reports import line_of, mentions, resumed_at
from helpers.training import QUIET, interrupted_at, lora, same, train, untouched
from hyperbooth.models.files.adapter_file import load_adapter
from hyperbooth.nodes.bridge.training_session import training_session
from hyperbooth.trainers.config import TrainingOptions
from hyperbooth.trainers.dreambooth.loss import DreamBoothLoss
from hyperbooth.trainers.engine import divergence, loop
from hyperbooth.trainers.engine.divergence import Diverged
from hyperbooth.trainers.engine.memory_plan import MemoryPlan, choose_plan, measure_needs

from tools.small_world.base.model import load as load_small_world
from tools.small_world.scene import task

OPTIONS = replace(QUIET, checkpoint_every=2)


CHANGES = {
    "plain": {},
    "average, accumulation": {"options": replace(OPTIONS, ema_decay=0.9, gradient_accumulation=2)},
    "text encoder": {"method": lora(text_encoder=True)},
    "validation, dropout": {"options": replace(OPTIONS, validation=10, caption_dropout=0.5)},
}


class TestCancelledAndQueuedAgain:
    """Cancelled runs, with a text encoder that trains fast."""

    @pytest.fixture
    def loaded(self, quick: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
        return quick

    @pytest.mark.parametrize("case", list(CHANGES))
    def test_it_gives_the_adapter_of_the_run_never_cancelled(
        self, node: Any, loaded: Any, subject: Any, output_folder: Path, case: str
    ) -> None:
        inputs = {"options": OPTIONS, "clip": loaded[1], **CHANGES[case]}
        method = inputs.pop("method", lora())
        whole, losses, _ = train(node, loaded, subject, method, 11, **inputs, resume="start over")
        for state in (output_folder / "hyperbooth_states").iterdir():  # with a validation, the best one too
            state.unlink()
        with untouched(*loaded[:2]):
            for stop in (3, 7):
                with interrupted_at(stop):
                    train(node, loaded, subject, method, 11, **inputs)
            again, losses_again, report = train(node, loaded, subject, method, 11, **inputs)
        assert same(whole, again) and losses == losses_again
        assert resumed_at(report) > 0


def test_a_longer_run_goes_on_from_a_shorter_one_and_another_seed_does_not(
    node: Any, loaded: Any, subject: Any, shown_images: dict[int, Any]
) -> None:
    train(node, loaded, subject, lora(), 3)
    _, _, longer = train(node, loaded, subject, lora(), 6)
    assert resumed_at(longer) == 3
    assert resumed_at(train(node, loaded, subject, lora(), 6, options=replace(QUIET, preview_every=3))[2]) == 6
    for changed in ({"seed": 1}, {"batch_size": 2}, {"options": replace(QUIET, prior_weight=0.5)}):
        assert resumed_at(train(node, loaded, subject, lora(), 6, **changed)[2]) == 0
    assert resumed_at(train(node, loaded, subject, lora(learning_rate=2e-3), 6)[2]) == 0
    assert resumed_at(train(node, loaded, subject, lora(), 6, resume="start over")[2]) == 0


def test_a_run_belongs_to_its_model(node: Any, loaded: Any, subject: Any) -> None:
    model = loaded[0]
    adapter, _, _ = train(node, loaded, subject, lora(), 3)
    patched, _ = node("Apply", model=model, adapter=adapter, strength_model=1.0)
    assert resumed_at(train(node, (patched, *loaded[1:]), subject, lora(), 3)[2]) == 0
    assert resumed_at(train(node, (patched, *loaded[1:]), subject, lora(), 3)[2]) == 3
    assert resumed_at(train(node, loaded, subject, lora(), 3)[2]) == 3


def test_a_run_belongs_to_its_sampling_equations(node: Any, loaded: Any, subject: Any, output_folder: Path) -> None:
    with torch.inference_mode():
        (v, zero), eps = (
            [ModelSamplingDiscrete().patch(loaded[0], "v_prediction", zsnr)[0] for zsnr in (False, True)],
            ModelSamplingDiscrete().patch(loaded[0], "eps", False)[0],
        )
    for model in (v, zero, eps):
        assert resumed_at(train(node, (model, *loaded[1:]), subject, lora(), 2)[2]) == 0
    states = {path.name.split(".")[0] for path in (output_folder / "hyperbooth_states").glob("*.safetensors")}
    assert len(states) == 3, "each has a state of its own"


def test_a_heavy_prior_that_starts_at_nothing_is_no_divergence(
    node: Any, loaded: Any, subject: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checked as in a long run: with windows of 8 steps, where a run has 64."""
    for module in (divergence, loop):
        monkeypatch.setattr(module, "WINDOW", 8)
    options = replace(QUIET, prior_mode="prediction", prior_weight=100.0)
    classy = replace(subject, class_cond=subject.examples[0].cond, class_prompt="a photo of a dog")
    _, loss_map, _ = train(node, loaded, classy, lora(learning_rate=3e-3), 32, options=options)
    assert len(loss_map["loss"]) == 32


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Any]:
    """Return the small world's base, which has learned its task, so that a ruined one is far worse than before."""
    base = load_small_world(tmp_path_factory.mktemp("world") / "world.safetensors")
    return base.model, base.clip, base.vae


@pytest.mark.all_noise_levels
class TestRuined:
    """Runs that ruin a trained model, as a user's is; an untrained one survives a rate far too high by chance."""

    @pytest.fixture
    def loaded(self, trained: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
        return trained

    @pytest.fixture
    def pictures(self) -> torch.Tensor:
        return task.references(task.subjects(1)[0], 3)

    def test_a_diverging_run_stops_names_the_step_and_rescues_the_last_good_state(
        self, node: Any, loaded: Any, subject: Any, output_folder: Path
    ) -> None:
        options = replace(QUIET, max_grad_norm=0, checkpoint_every=1, warmup_steps=299)
        with untouched(loaded[0]), pytest.raises(Diverged) as caught:
            train(node, loaded, subject, lora(learning_rate=0.1), 300, options=options)
        message = str(caught.value)
        (rescued,) = (output_folder / "loras").glob("*.safetensors")
        assert rescued.name in message
        adapter = load_adapter(rescued)
        good = adapter.metadata["steps"]
        assert good in (64, 128, 256) and all(torch.isfinite(p).all() for p in adapter.parameters())
        assert re.search(rf"\bstep \d+\b.*\blearning rate\b.*\bstep {good}\b", message)

    def test_a_run_that_diverges_at_once_fails_at_its_end_at_the_latest(
        self, node: Any, loaded: Any, subject: Any, output_folder: Path
    ) -> None:
        with pytest.raises(Diverged, match=r"\b(loss|gradient)\b.*\bstep \d+\b"):
            train(node, loaded, subject, lora(learning_rate=0.8), 40, options=replace(QUIET, max_grad_norm=0))
        assert not list((output_folder / "loras").glob("*"))


def test_a_run_that_breaks_at_once_writes_nothing(node: Any, loaded: Any, subject: Any, output_folder: Path) -> None:
    broken = replace(subject, examples=tuple(replace(e, latents=e.latents * torch.inf) for e in subject.examples))
    with untouched(loaded[0]), pytest.raises(Diverged, match=r"\bloss\b.*\bnan\b.*\bstep 0\b"):
        train(node, loaded, broken, lora(), 3)
    assert not list(output_folder.rglob("*.safetensors"))


def test_validation_is_on_the_held_out_image_and_repeats(node: Any, loaded: Any, subject: Any) -> None:
    four = replace(subject, examples=(*subject.examples, subject.examples[0]))
    options = replace(QUIET, validation=5)
    _, _, report = train(node, loaded, four, lora(learning_rate=3e-3), 10, options=options)
    line = line_of(report, "validation")
    assert mentions(report, "3 images") == 1
    assert line in train(node, loaded, four, lora(learning_rate=3e-3), 10, options=options, resume="start over")[2]
    _, _, few = train(node, loaded, subject, lora(), 3, options=options)
    assert ["held-out" in text for text in (line, line_of(few, "validation"))] == [True, False]


def loss_of(session: Any, subject: Any, options: TrainingOptions, without: Any, **more: Any) -> DreamBoothLoss:
    settings = {"subject": subject, "options": options, "batch_size": 3, "without_adapter": without, **more}
    return DreamBoothLoss.for_session(session, **settings)


def test_prior_prediction_is_nothing_before_training_and_the_drift_of_the_class_after(
    node: Any, loaded: Any, subject: Any
) -> None:
    options = replace(QUIET, prior_mode="prediction")
    classy = replace(subject, class_cond=subject.examples[0].cond, class_prompt="a photo of a dog")
    adapter, _, _ = train(node, loaded, subject, lora(learning_rate=3e-3), 20)
    with training_session(loaded[0], options, classy, batch_size=3) as session, torch.no_grad():
        with adapter.injected(session.model.layers) as without:
            loss = loss_of(session, classy, options, without)
            own, prior = (term.item() for term in loss(0))
            (alone,) = (term.item() for term in loss_of(session, classy, QUIET, without)(0))
            with without():
                assert [term.item() for term in loss(0)][1] == 0.0
                base = next(iter(loss(0))).item()
        (never,) = (term.item() for term in loss_of(session, classy, QUIET, nullcontext)(0))
    assert prior > 0 and own == alone and base == never != own


def test_prior_prediction_preserves_the_class(node: Any, loaded: Any, pictures: Any) -> None:
    _, clip, vae = loaded
    (subject,) = node(
        "Subject", images=[pictures], vae=[vae], clip=[clip], prompt=["a photo of sks dog"],
        class_prompt=["a photo of a dog"], resolution=[64], bucket=[True], flip=[False],
    )  # fmt: skip
    drift = {}
    for mode, weight in (("none", 0.0), ("prediction", 10.0)):
        options = replace(QUIET, prior_mode=mode, prior_weight=weight)
        adapter, _, _ = train(node, loaded, subject, lora(learning_rate=3e-3), 16, options=options)
        measured = replace(QUIET, prior_mode="prediction")
        with (
            training_session(loaded[0], measured, subject, batch_size=3) as session,
            adapter.injected(session.model.layers) as without,
            torch.no_grad(),
        ):
            drift[mode] = list(loss_of(session, subject, measured, without)(1000))[1].item()
    assert drift["prediction"] < 0.7 * drift["none"]


def test_prediction_without_a_class_prompt_is_refused(node: Any, loaded: Any, subject: Any) -> None:
    with pytest.raises(ValueError, match=r"^prior_mode .*'prediction'.*\bclass_prompt\b"):
        train(node, loaded, subject, lora(), options=replace(QUIET, prior_mode="prediction"))


def test_caption_dropout_trains_on_the_empty_prompt(loaded: Any, subject: Any) -> None:
    options = replace(QUIET, caption_dropout=1.0)
    blank = replace(
        subject, examples=tuple(replace(e, cond=subject.unconditional, prompt="") for e in subject.examples)
    )
    with training_session(loaded[0], options, subject, batch_size=3) as session, torch.no_grad():
        dropped = [t.item() for t in loss_of(session, subject, options, nullcontext)(0)]
        never = [t.item() for t in loss_of(session, subject, QUIET, nullcontext)(0)]
        on_blank = [t.item() for t in loss_of(session, blank, options, nullcontext)(0)]
    assert dropped == on_blank != never


def gradients(adapter: Any, terms: Any) -> torch.Tensor:
    for parameter in adapter.parameters():
        parameter.grad = None
    for term in terms:
        term.backward()
    return torch.cat([parameter.grad.flatten() for parameter in adapter.parameters()])


def test_a_batch_in_parts_has_the_gradient_of_the_whole(node: Any, loaded: Any, subject: Any) -> None:
    masked = (replace(subject.examples[0], mask=torch.rand(1, 1, 4, 4)), *subject.examples[1:])
    uneven = replace(subject, examples=masked)
    adapter, _, _ = train(node, loaded, subject, lora(), 2)
    with (
        training_session(loaded[0], QUIET, uneven, batch_size=3) as session,
        adapter.injected(session.model.layers) as without,
    ):
        whole = gradients(adapter, loss_of(session, uneven, QUIET, without, batch_size=5)(0))
        for pieces in (2, 5):
            split = replace(loss_of(session, uneven, QUIET, without, batch_size=5), micro_batches=pieces)
            parts = gradients(adapter, split(0))
            torch.testing.assert_close(parts, whole, rtol=1e-3, atol=1e-6)


def test_what_training_keeps_is_measured(node: Any, loaded: Any, subject: Any) -> None:
    """Compare with what autograd keeps when the same step is kept alive."""
    adapter, _, _ = train(node, loaded, subject, lora(), 2)
    with (
        training_session(loaded[0], QUIET, subject, batch_size=3) as session,
        adapter.injected(session.model.layers) as without,
    ):
        loss = loss_of(session, subject, QUIET, without)
        needs = measure_needs(
            loss.largest_sample,
            blocks=session.model.blocks,
            parameters=adapter.parameters(),
            inference_bytes=0,
            bytes_per_parameter=12,
        )
        kept: dict[int, torch.Tensor] = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: kept.setdefault(t.untyped_storage().data_ptr(), t), lambda t: t
        ):
            term = loss.largest_sample()
        parameters = {p.data_ptr() for p in adapter.parameters()}
        actual = sum(t.untyped_storage().nbytes() for pointer, t in kept.items() if pointer not in parameters)
        assert torch.isfinite(term)
    assert needs.kept == pytest.approx(actual, rel=0.01)
    assert needs.kept_checkpointed < 0.7 * needs.kept
    assert needs.fixed == 12 * sum(p.numel() for p in adapter.parameters())
    tight = needs.of(MemoryPlan(3, True), 3) / 0.9
    assert choose_plan(needs, int(1e12), 3, MemoryPlan()) == MemoryPlan()
    assert choose_plan(needs, int(needs.of(MemoryPlan(), 3)), 3, MemoryPlan()) == MemoryPlan(2)
    assert (
        choose_plan(needs, int(tight) + 1, 3, MemoryPlan())
        == MemoryPlan(3, True)
        == choose_plan(needs, 0, 3, MemoryPlan())
    )


def test_the_report_names_the_memory_plan(node: Any, loaded: Any, subject: Any) -> None:
    _, _, report = train(node, loaded, subject, lora(), 1, batch_size=2)
    assert re.search(rf"\bfloat32\b.*{MemoryPlan().describe(2)}.*\bGiB\b", line_of(report, "memory"))
    options = replace(QUIET, memory="as set", gradient_checkpointing=True)
    _, _, report = train(node, loaded, subject, lora(), 1, options=options, seed=1)
    assert re.search(rf"\bfloat32\b.*{MemoryPlan(1, True).describe(1)}.*\bas set\b", line_of(report, "memory"))
