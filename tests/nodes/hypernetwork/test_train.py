"""Training a hypernetwork on a bank: predictions generalize, losses are the formulas, and runs resume."""

import itertools
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import comfy.utils
import folder_paths
import pytest
import torch
from comfy.model_management import InterruptProcessingException
from helpers.banks import PROMPT, images_of, theta_of, write_bank
from helpers.reports import resumed_at
from helpers.training import interrupted_at, quick_sd15, relative, small_vision, untouched
from hyperbooth.models.adapters import LiDBConfig
from hyperbooth.models.hypernetwork.checkpoint import load_predictor, save_predictor
from hyperbooth.models.hypernetwork.delta_distance import LayerDeltas, delta_distance
from hyperbooth.models.hypernetwork.network import HyperNetwork
from hyperbooth.models.hypernetwork.predictor import BaseModelRef, Predictor, is_predicted
from hyperbooth.models.subject_bank.bank import Bank
from hyperbooth.nodes.bridge.text.conditioning import encode_prompt
from hyperbooth.nodes.hypernetwork.train import train, training_config
from hyperbooth.trainers.config import Method, TrainingOptions
from hyperbooth.trainers.diffusion.objective import Draw
from hyperbooth.trainers.engine import checkpoints
from hyperbooth.trainers.engine.distributed import ProcessGroup
from hyperbooth.trainers.engine.state import History
from hyperbooth.trainers.hypernetwork import loss as hypernetwork_loss
from hyperbooth.trainers.hypernetwork.batches import SubjectBatches
from hyperbooth.trainers.hypernetwork.config import HyperNetworkTrainingConfig
from hyperbooth.trainers.hypernetwork.evaluation import Evaluator
from hyperbooth.trainers.hypernetwork.feature_cache import FeatureCache
from hyperbooth.trainers.hypernetwork.loss import PredictedAdapterLoss
from hyperbooth.trainers.hypernetwork.selection import ModelSelection
from hyperbooth.trainers.hypernetwork.trainer import HyperNetworkTrainer
from hyperbooth.trainers.reporting.live_view import LiveView
from PIL import Image
from torch import Tensor

QUIET = TrainingOptions(preview_every=0, validation=1000)


@pytest.fixture(scope="module")
def loaded(quick: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
    return quick


@pytest.fixture
def bank(loaded: Any, tmp_path: Path) -> Bank:
    return write_bank(tmp_path / "bank", loaded)


@pytest.fixture
def small_bank(loaded: Any, tmp_path: Path) -> Bank:
    """Return a bank of twelve people, of whom two are held out."""
    return write_bank(tmp_path / "bank", loaded, range(12), per_shard=4)


def trained(node: Any, loaded: Any, bank: Bank, **inputs: Any) -> tuple[Predictor, Any, str]:
    inputs = {
        "steps": 3, "learning_rate": 1e-3, "batch_size": 4, "refinements": 2, "weight_loss": 1.0,
        "denoising_loss": 0.0, "seed": 0, "resume": "continue", "width": 32, "options": QUIET,
        "clip_vision": small_vision(), **inputs,
    }  # fmt: skip
    model, clip, _ = loaded
    return node("TrainHyperNetwork", model=model, clip=clip, bank=bank, **inputs)


def config_of(bank: Bank, **inputs: Any) -> HyperNetworkTrainingConfig:
    values = {
        "steps": 3, "learning_rate": 1e-3, "batch_size": 4, "refinements": 2, "weight_loss": 1.0, "denoising_loss": 0.0,
        "seed": 0, "options": QUIET, "width": 32, "start_from": None,
    }  # fmt: skip
    return training_config(bank, **(values | inputs))


def relative_error(network: HyperNetwork, predicted: Tensor, fitted: Tensor) -> float:
    """Return the squared error of predicted weight changes, as a share of that of the mean."""
    split = LayerDeltas(network.layout)
    mean = split(network.mean.expand_as(fitted))
    far = delta_distance(mean, split(fitted)).sum()
    return (delta_distance(split(predicted), split(fitted)).sum() / far).item()


def evaluation(report: str, step: int) -> str:
    """Return the line of a report with the evaluation at ``step``."""
    (line,) = (line for line in report.splitlines() if re.search(rf"\bat step {step}:", line))
    return line


def predicted(node: Any, hypernetwork: Predictor, people: range) -> Tensor:
    rows = []
    for person in people:
        image = images_of(person).float() / 255
        (adapter,) = node("Predict", hypernetwork=hypernetwork, clip_vision=small_vision(), image=image)
        rows.append(hypernetwork.network.layout.pack(adapter.adapters[0]))
    return torch.stack(rows)


def test_predictions_generalize_to_new_people_and_the_report_shows_it(node: Any, loaded: Any, bank: Bank) -> None:
    with untouched(*loaded[:2]):
        hypernetwork, loss_map, report = trained(node, loaded, bank, steps=60, batch_size=8)
    assert len(loss_map["loss"]) == 60 and sum(loss_map["loss"][-10:]) < 0.8 * sum(loss_map["loss"][:10])
    new = range(1000, 1008)
    fitted = torch.stack([theta_of(person, bank.layout.parameter_count) for person in new])
    own = predicted(node, hypernetwork, new)
    assert relative_error(hypernetwork.network, own, fitted) < 0.4
    assert relative_error(hypernetwork.network, own.roll(1, 0), fitted) > 1.1
    assert hypernetwork.metadata["people"] == 36 and hypernetwork.metadata["people_held_out"] == 4
    assert hypernetwork.metadata["explained"] > 0.6 and hypernetwork.metadata["explained_wrong"] < 0
    for said in ("60 steps of 8", "36 people", "mean", "shuffled", "own", "fitted", "linear regression"):
        assert said in report
    assert all("%" in evaluation(report, step) for step in (0, 60)), "the explained variance of the weights"
    assert hypernetwork.prompt == bank.prompt and hypernetwork.base.kind == "SD15"


def test_the_baselines_are_shown_before_the_first_step(
    node: Any, loaded: Any, small_bank: Bank, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Previews go through ComfyUI's own hook, which its server uses."""
    shown: list[tuple[int, Any]] = []
    hook = lambda value, total, preview, node_id=None: shown.append((value, preview))  # noqa: E731
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", hook)
    trained(node, loaded, small_bank, steps=2, batch_size=2)
    pictures = [step for step, preview in shown if preview is not None]
    assert pictures[0] == 0 and pictures[-1] == 2


def test_the_linear_initialization_alone_depends_on_the_person(node: Any, loaded: Any, bank: Bank) -> None:
    hypernetwork, _, _ = trained(node, loaded, bank, steps=1, learning_rate=0.0)
    new = range(1000, 1008)
    fitted = torch.stack([theta_of(person, bank.layout.parameter_count) for person in new])
    own = predicted(node, hypernetwork, new)
    assert relative_error(hypernetwork.network, own, fitted) < 0.6
    assert relative_error(hypernetwork.network, own.roll(1, 0), fitted) > 1.1


@pytest.mark.parametrize("text", [False, True])
def test_the_denoising_loss_and_its_gradient_are_those_of_the_model(
    node: Any, loaded: Any, tmp_path: Path, text: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each sample has its own adapter: the loss of a batch is the mean of singles, its gradient the difference."""
    found: dict[str, Any] = {}

    def inspect(trainer: HyperNetworkTrainer, *_: Any) -> None:
        loss = trainer.loss().denoising
        draw = lambda: torch.Generator().manual_seed(3)  # noqa: E731
        images = [(0, 0), (2, 1), (5, 0)]
        theta = trainer.network(trainer.batches.features(images).float()).detach() + 0.05
        theta.requires_grad_()
        whole = loss(theta, images, draw())
        (gradient,) = torch.autograd.grad(whole, theta)
        along = gradient / gradient.norm()
        ahead, behind = (loss(theta.detach() + s * along, images, draw()) for s in (0.2, -0.2))
        found["slope"] = ((ahead - behind) / 0.4).item(), (gradient * along).sum().item()
        parts = trainer.loss(micro_batches=3).denoising(theta, images, draw())
        found["micro-batches"] = whole.item(), parts.item()
        found["gradients"] = gradient, torch.autograd.grad(parts, theta)[0]
        raise InterruptedError

    monkeypatch.setattr(HyperNetworkTrainer, "fit", inspect)
    bank = write_bank(tmp_path / "bank", loaded, range(20), images=2, text=text)
    assert any(name.startswith("text_encoders.") for name in bank.layout.targets) == text
    with pytest.raises(InterruptedError):
        trained(node, loaded, bank, denoising_loss=1.0)
    assert found["slope"][0] == pytest.approx(found["slope"][1], rel=0.02)
    assert found["micro-batches"][0] == pytest.approx(found["micro-batches"][1], rel=1e-4)
    assert relative(*found["gradients"]) < (1e-2 if text else 1e-3)


def test_the_denoising_loss_trains(node: Any, loaded: Any, small_bank: Bank) -> None:
    options = TrainingOptions(preview_every=0, validation=4)
    with untouched(*loaded[:2]):
        hypernetwork, loss_map, report = trained(
            node, loaded, small_bank, weight_loss=0.0, denoising_loss=1.0, steps=4, options=options
        )
    assert len(loss_map["loss"]) == 4 and hypernetwork.metadata["loss_own"] > 0
    assert "%" not in evaluation(report, 4), "there was no weight loss"


def test_a_batch_that_does_not_fit_is_split(
    node: Any, loaded: Any, small_bank: Bank, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory runs out with more than two samples in the model; the result is the same but for rounding."""
    real = PredictedAdapterLoss._backward

    def short(loss: PredictedAdapterLoss, theta: Tensor, draw: Draw) -> Any:
        if len(draw.examples) > 2:
            raise torch.OutOfMemoryError("no room")
        return real(loss, theta, draw)

    inputs = {"steps": 2, "denoising_loss": 1.0, "resume": "start over"}
    whole, losses, _ = trained(node, loaded, small_bank, **inputs)
    monkeypatch.setattr(PredictedAdapterLoss, "_backward", short)
    split, losses_split, report = trained(node, loaded, small_bank, **inputs)
    assert "micro-batches of 2" in report
    assert losses_split["loss"] == pytest.approx(losses["loss"], rel=1e-4)
    assert relative(split.network.heads, whole.network.heads) < 1e-3


def test_a_loss_scale_that_overflows_float16_is_lowered(
    node: Any, loaded: Any, small_bank: Bank, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = {"steps": 2, "weight_loss": 0.0, "denoising_loss": 1.0, "resume": "start over"}
    inputs["options"] = replace(QUIET, precision="float16")
    expected, losses, _ = trained(node, loaded, small_bank, **inputs)
    monkeypatch.setattr(hypernetwork_loss, "FLOAT16_SCALE", 2.0**30)
    found, losses_found, _ = trained(node, loaded, small_bank, **inputs)
    assert losses_found["loss"] == pytest.approx(losses["loss"], rel=1e-2)
    assert relative(found.network.heads, expected.network.heads) < 2e-2, "but for rounding"


@pytest.mark.parametrize("losses", [(1.0, 0.0), (0.0, 1.0)], ids=["weights", "images"])
def test_a_shared_down_factor_is_the_same_for_all_and_learned(
    node: Any, loaded: Any, tmp_path: Path, losses: tuple[float, float]
) -> None:
    bank = write_bank(tmp_path / "bank", loaded, range(8), shared_input=True)
    weight, denoising = losses
    hypernetwork, _, report = trained(
        node, loaded, bank, steps=20, learning_rate=1e-3, weight_loss=weight, denoising_loss=denoising
    )
    means = re.findall(r"base [\d.]+, mean ([\d.]+),", report)
    assert len(means) == 2
    if denoising:
        assert means[0] != means[1], "the learned shared factor is part of the mean"
    network = hypernetwork.network
    first, second = (network.layout.unflatten(row) for row in predicted(node, hypernetwork, range(2)))
    mean = network.layout.unflatten(network.mean)
    for name, tensors in first.items():
        assert torch.equal(tensors["b_train"], second[name]["b_train"])
        assert not torch.equal(tensors["b_train"], mean[name]["b_train"])
        assert not torch.equal(tensors["a_train"], second[name]["a_train"])


def test_each_image_is_denoised_under_its_own_caption(
    node: Any, loaded: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss is that of the same images with the encoded captions."""
    found: dict[str, Any] = {}

    def inspect(trainer: HyperNetworkTrainer, *_: Any) -> None:
        loss, images = trainer.loss().denoising, [(0, 0), (2, 2), (5, 1)]
        draw, theta = torch.Generator().manual_seed(3), trainer.network.mean.expand(3, -1)
        examples = trainer.batches.examples(images)
        assert [example.prompt for example in examples] == [PROMPT, f"{PROMPT} in place 2", f"{PROMPT} in place 1"]
        plain = [replace(example, cond=examples[0].cond, prompt=PROMPT) for example in examples]
        encoded = [replace(e, cond=encode_prompt(loaded[1], e.prompt)) for e in examples]
        for name, given in (("own", examples), ("plain", plain), ("encoded", encoded)):
            changed = replace(loss, examples=lambda _, given=given: given)
            found[name] = changed(theta.clone().requires_grad_(), images, draw.manual_seed(3)).item()
        raise InterruptedError

    monkeypatch.setattr(HyperNetworkTrainer, "fit", inspect)
    bank = write_bank(tmp_path / "bank", loaded, range(20), images=3, captions=True)
    with pytest.raises(InterruptedError):
        trained(node, loaded, bank, denoising_loss=1.0)
    assert found["own"] == found["encoded"] != found["plain"]


@pytest.mark.parametrize(("inputs", "shown"), [(0, {0, 1, 2}), (1, {0}), (2, {0, 1}), (9, {0, 1, 2})])
def test_predictions_are_made_from_the_first_images_and_evaluated_on_others(
    node: Any, loaded: Any, tmp_path: Path, inputs: int, shown: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, target, encoded = set(), set(), set()
    draw, features = SubjectBatches.draw, FeatureCache.__call__

    def recorded(*given: Any) -> Any:
        inputs, targets = draw(*given)
        assert all(a[0] == b[0] and a[1] != b[1] for a, b in zip(inputs, targets, strict=True)), "another image"
        seen.update(image for _, image in inputs)
        target.update(image for _, image in targets)
        return inputs, targets

    def recorded_features(cache: FeatureCache, images: Any) -> Tensor:
        encoded.update(image for _, image in images)
        return features(cache, images)

    monkeypatch.setattr(SubjectBatches, "draw", recorded)
    monkeypatch.setattr(FeatureCache, "__call__", recorded_features)
    bank = write_bank(tmp_path / "bank", loaded, range(8), images=3)
    hypernetwork, _, _ = trained(node, loaded, bank, steps=12, input_pictures=inputs)
    assert seen == encoded == shown and hypernetwork.metadata["input_pictures"] == inputs
    assert target == ({1, 2} if inputs == 1 else {0, 1, 2})
    run = config_of(bank, denoising_loss=0.0, input_pictures=inputs)
    assert run.evaluated_images(5) == ((5, max(shown)), (5, 0 if shown == {0, 1, 2} else 2))


def test_the_run_hash_depends_on_captions_and_inputs(loaded: Any, tmp_path: Path) -> None:
    """Without the denoising loss only the captions of the evaluated images are needed."""
    plain, captioned = (
        write_bank(tmp_path / str(captions), loaded, range(8), images=3, captions=captions)
        for captions in (False, True)
    )  # fmt: skip
    captioned = replace(captioned, manifest=plain.manifest)
    runs = [config_of(bank, denoising_loss=1.0, input_pictures=n) for bank in (plain, captioned) for n in (0, 1)]
    assert len({run.key("model", "encoder") for run in runs}) == 4
    assert runs[0].prompts == (PROMPT,) and len(runs[2].prompts) == 3
    assert replace(runs[3], denoising_loss=0.0).prompts == (PROMPT, f"{PROMPT} in place 2")


def test_from_a_folder_of_people_to_a_fine_tuned_prediction(
    node: Any, loaded: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Build a bank, train a hypernetwork, predict from one image, train two steps on top, and save one file."""
    model, clip, vae = loaded
    monkeypatch.setattr(folder_paths, "input_directory", str(tmp_path))
    for person in range(5):
        (tmp_path / "people" / f"{person}").mkdir(parents=True)
        for number, image in enumerate(images_of(person, 2, 64)):
            Image.fromarray(image.numpy()).save(tmp_path / "people" / f"{person}" / f"{number}.png")
    method = Method(
        family="lidb",
        config=LiDBConfig(rank=1, a=16, b=8),
        targets="attention",
        learning_rate=1e-2,
        text_encoder=True,
        text_encoder_lr=1e-3,
    )
    bank, _ = node(
        "BuildBank", model=model, clip=clip, vae=vae, folder="people", method=method, prompt="a photo of sks face",
        steps=3, subjects_per_batch=5, seed=0, resolution=64, options=QUIET,
    )  # fmt: skip
    hypernetwork, _, _ = trained(node, loaded, bank, denoising_loss=1.0, steps=2)
    save_predictor(hypernetwork, tmp_path / "a.safetensors")
    hypernetwork = load_predictor(tmp_path / "a.safetensors")
    image = images_of(99, 1, 64).float() / 255
    (adapter,) = node("Predict", hypernetwork=hypernetwork, clip_vision=small_vision(), image=image, model=model)
    (subject,) = node(
        "Subject", images=[image], vae=[vae], clip=[clip], prompt=[hypernetwork.prompt], resolution=[64],
        bucket=[False], flip=[False],
    )  # fmt: skip
    tuned, losses, _ = node(
        "FastFinetune", model=model, subject=subject, adapter=adapter, rank=2, steps=2, learning_rate=1e-3, seed=0,
        clip=clip, options=QUIET,
    )  # fmt: skip
    assert [link.family for link in tuned.adapters] == ["lidb", "lora"] and len(losses["loss"]) == 2
    assert tuned.adapters[0].targets.keys() == tuned.adapters[1].targets.keys() == bank.layout.targets.keys()
    assert tuned.metadata["prompts"] == ["a photo of sks face"] and is_predicted(tuned.metadata)


def test_a_cancelled_and_resumed_run_gives_the_same_hypernetwork(
    node: Any, loaded: Any, small_bank: Bank, output_folder: Path
) -> None:
    options = TrainingOptions(preview_every=0, checkpoint_every=2, ema_decay=0.9, validation=1000)
    whole, losses, _ = trained(node, loaded, small_bank, steps=8, options=options, resume="start over")
    states = [*(output_folder / "hyperbooth_states").iterdir()]  # the last one, and the best if it is another
    assert states
    for state in states:
        state.unlink()
    with untouched(*loaded[:2]):
        with interrupted_at(5):
            trained(node, loaded, small_bank, steps=8, options=options)
        again, losses_again, report = trained(node, loaded, small_bank, steps=8, options=options)
    ours, theirs = whole.network.state_dict(), again.network.state_dict()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert losses == losses_again and resumed_at(report) > 0


def test_a_state_of_another_format_is_another_run(
    node: Any, loaded: Any, small_bank: Bank, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """Its parameters would have the same shapes and other meanings."""
    assert resumed_at(trained(node, loaded, small_bank)[2]) == 0
    assert resumed_at(trained(node, loaded, small_bank)[2]) == 3
    monkeypatch.setattr("hyperbooth.trainers.hypernetwork.config.VERSION", 99)
    assert resumed_at(trained(node, loaded, small_bank)[2]) == 0


def test_the_result_is_the_best_evaluated_state(node: Any, loaded: Any, small_bank: Bank) -> None:
    """The learning rate is so high that each step makes it worse: the start is kept, the history has all steps."""
    options = TrainingOptions(preview_every=0, validation=1, ema_decay=0.5)
    start, _, _ = trained(node, loaded, small_bank, steps=1, learning_rate=0.0)
    spoilt, loss_map, report = trained(node, loaded, small_bank, steps=3, learning_rate=0.3, options=options)
    assert all(torch.equal(a, b) for a, b in zip(start.network.parameters(), spoilt.network.parameters(), strict=True))
    assert len(loss_map["loss"]) == 3 and spoilt.metadata["taken_at_step"] == 0
    assert re.search(r"\bstep 0\b.*\bbest\b", report)


def test_a_best_state_before_the_last_step_is_chosen(
    node: Any, loaded: Any, small_bank: Bank, monkeypatch: pytest.MonkeyPatch
) -> None:
    options, real, found = TrainingOptions(preview_every=0, validation=1), Evaluator.evaluate, []
    for steps in (1, 3):
        order = itertools.count()
        monkeypatch.setattr(
            Evaluator,
            "evaluate",
            lambda self, order=order: replace(real(self), explained=0.9 if next(order) == 1 else 0.1),
        )
        inputs = {"steps": steps, "options": options, "resume": "start over"}
        found.append(trained(node, loaded, small_bank, **inputs)[0])
    one, three = found
    assert (one.metadata["taken_at_step"], three.metadata["taken_at_step"], three.metadata["steps"]) == (1, 1, 3)
    assert all(torch.equal(a, b) for a, b in zip(one.network.parameters(), three.network.parameters(), strict=True))


def with_explained(patch: pytest.MonkeyPatch, explained: dict[int, float]) -> dict[int, Tensor]:
    """Let the evaluation at each step report ``explained`` (else 0.9); return the network's heads at each one."""
    real, heads = ModelSelection.evaluate, {}

    def evaluate(selection: ModelSelection, step: int) -> Any:
        result = real(selection, step)
        with selection.state.result():
            heads.setdefault(step, selection.evaluator.network.heads.detach().clone())
        selection.results[step] = replace(result, explained=explained.get(step, 0.9))
        return selection.results[step]

    patch.setattr(ModelSelection, "evaluate", evaluate)
    return heads


def test_the_best_state_is_chosen_although_the_disk_is_full(
    node: Any, loaded: Any, small_bank: Bank, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An older best state is written and nothing after it."""
    heads = with_explained(monkeypatch, {0: 0.0, 1: 0.1, 2: 0.2, 3: 0.3, 4: 0.4, 5: 0.1, 6: 0.0})
    real, written = checkpoints.write_tensors, []

    def write(*given: Any) -> None:
        written.append(given)
        if len(written) > 2:
            raise OSError(28, "No space left on device")
        real(*given)

    monkeypatch.setattr(checkpoints, "write_tensors", write)
    options = TrainingOptions(preview_every=0, validation=1, checkpoint_every=0)
    found, _, report = trained(node, loaded, small_bank, steps=6, batch_size=2, options=options)
    assert found.metadata["taken_at_step"] == 4 and torch.equal(found.network.heads, heads[4])
    assert re.search(r"\bstep 4\b.*\bbest\b", report) and "No space left on device" in report


class StoppedAtFour(LiveView):
    """A live view that ComfyUI cancels between two evaluations."""

    def __call__(self, history: History) -> None:
        if history.step == 4:
            raise InterruptProcessingException
        super().__call__(history)


@pytest.mark.parametrize("lost", [False, True])
def test_a_resumed_run_selects_like_an_uninterrupted_one(
    node: Any, loaded: Any, small_bank: Bank, monkeypatch: pytest.MonkeyPatch, output_folder: Path, lost: bool
) -> None:
    """It evaluates the step it was resumed at too, where the result is best, and does not select it.

    The earlier best state is read from disk, or reported as lost.
    """
    heads = with_explained(monkeypatch, {0: 0.0, 3: 0.3, 6: 0.2})
    inputs = {"steps": 6, "batch_size": 2, "options": TrainingOptions(preview_every=0, validation=3)}
    whole, _, _ = trained(node, loaded, small_bank, **inputs, resume="start over")
    with monkeypatch.context() as patch, pytest.raises(InterruptProcessingException):
        patch.setattr("hyperbooth.nodes.hypernetwork.train.LiveView", StoppedAtFour)
        trained(node, loaded, small_bank, **inputs, resume="start over")
    if lost:
        next((output_folder / "hyperbooth_states").glob("*.good.safetensors")).unlink()
    again, _, report = trained(node, loaded, small_bank, **inputs)
    assert resumed_at(report) == 4 and whole.metadata["taken_at_step"] == 3
    if lost:
        assert re.search(r"\bstep 6\b.*\bstep 3\b.*\bbest\b", report)
    assert torch.equal(again.network.heads, heads[6] if lost else whole.network.heads)


def test_a_shorter_run_leaves_the_longer_ones_best(
    node: Any, loaded: Any, small_bank: Bank, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under a constant learning rate both are one run, and the longer one's state stays."""
    heads = with_explained(monkeypatch, {0: 0.0, 1: 0.2, 2: 0.1, 3: 0.3, 4: 0.1})
    inputs = {"batch_size": 2, "options": TrainingOptions(preview_every=0, validation=1)}
    trained(node, loaded, small_bank, steps=4, **inputs)
    short = trained(node, loaded, small_bank, steps=2, **inputs)[0]
    again, _, report = trained(node, loaded, small_bank, steps=4, **inputs)
    assert short.metadata["taken_at_step"] == 1 and torch.equal(short.network.heads, heads[1])
    assert resumed_at(report) == 4 and re.search(r"\bstep 3\b.*\bbest\b", report)
    assert torch.equal(again.network.heads, heads[3])


def test_who_was_held_out_is_held_out_again(node: Any, loaded: Any, tmp_path: Path) -> None:
    """Otherwise the evaluation would be on people that it was trained on."""
    bank = write_bank(tmp_path / "bank", loaded, range(24), per_shard=8)
    first, _, _ = trained(node, loaded, bank)
    again, _, report = trained(node, loaded, bank, start_from=first, seed=1)
    other, _, _ = trained(node, loaded, bank, seed=1)
    assert len(first.metadata["held_out"]) == 2
    assert (
        sorted(first.metadata["held_out"]) == sorted(again.metadata["held_out"]) != sorted(other.metadata["held_out"])
    )
    strangers = write_bank(tmp_path / "strangers", loaded, range(100, 112), per_shard=8)
    _, _, doubted = trained(node, loaded, strangers, start_from=first)
    assert ["too good" in text for text in (report, doubted)] == [False, True]


def test_features_are_made_once_and_for_new_people_only(node: Any, loaded: Any, small_bank: Bank) -> None:
    trained(node, loaded, small_bank, steps=1)
    (kept,) = (small_bank.folder / "features").iterdir()
    before = {path.name: path.stat().st_mtime_ns for path in kept.iterdir()}
    assert len(before) == 3
    larger = write_bank(small_bank.folder, loaded, range(40, 43))
    assert len(larger) == 15
    next(kept.iterdir()).write_bytes(b"cut off")
    trained(node, loaded, larger, steps=1)
    after = {path.name: path.stat().st_mtime_ns for path in kept.iterdir()}
    assert len(after) == 4 and sum(after.get(name) == before[name] for name in before) == 2


def test_a_hypernetwork_is_trained_further_with_another_loss(node: Any, loaded: Any, small_bank: Bank) -> None:
    first, _, _ = trained(node, loaded, small_bank, steps=2)
    still, _, report = trained(node, loaded, small_bank, steps=1, learning_rate=0.0, start_from=first, weight_loss=0.5)
    assert torch.equal(first.network.heads, still.network.heads) and still.metadata["steps"] == 3
    assert re.search(r"hypernetwork of 2 steps", report)
    one, other = (
        config_of(small_bank, steps=1, learning_rate=0.0, batch_size=5, width=width, start_from=first)
        for width in (32, 64)
    )
    assert one == other and other.network.width == 32, "start_from has a width"


def test_mismatched_inputs_are_refused(node: Any, loaded: Any, small_bank: Bank, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"weight_loss and denoising_loss.* 0"):
        trained(node, loaded, small_bank, weight_loss=0.0)
    few = write_bank(tmp_path / "few", loaded, range(4))
    with pytest.raises(ValueError, match=r"^bank 'few' .*\b4 people"):
        trained(node, loaded, few)
    trained(node, loaded, write_bank(tmp_path / "five", loaded, range(5)))
    first, _, _ = trained(node, loaded, small_bank, steps=1)
    other = write_bank(tmp_path / "text", loaded, text=True)
    with pytest.raises(ValueError, match=r"^start_from .*bank"):
        trained(node, loaded, other, start_from=first)
    with pytest.raises(ValueError, match=r"^clip_vision .*clip_vision_model, width 32"):
        trained(node, loaded, small_bank, start_from=first, clip_vision=small_vision(1))
    manifest = small_bank.manifest
    other = replace(small_bank, manifest=replace(manifest, base={**manifest.base, "prediction": "v"}))
    with pytest.raises(ValueError, match=r"^model .*\beps\b.*bank .*\bv\b"):
        trained(node, loaded, other)
    foreign = replace(first, base=BaseModelRef("SDXL", first.base.record))
    with pytest.raises(ValueError, match=r"^bank .*SD15.* start_from .*SDXL"):
        trained(node, loaded, small_bank, start_from=foreign)
    shared = write_bank(tmp_path / "shared", loaded, range(12), shared_input=True)
    with pytest.raises(ValueError, match=r"start_from.* without shared_input.* with shared_input"):
        trained(node, loaded, shared, start_from=first)
    changed = quick_sd15(tmp_path / "other")
    with torch.inference_mode():
        for parameter in changed[0].model.diffusion_model.parameters():
            parameter.mul_(1.5)
    with pytest.raises(ValueError, match=r"^model .*SD15.*bank"):
        trained(node, changed, small_bank)


@dataclass(frozen=True)
class Apart(ProcessGroup):
    """One of several processes, another of which has ``other`` as its run and the step of its state."""

    other: Any = None

    def all_gather_object(self, value: Any) -> list[Any]:
        return [value, value and [self.other[0] or value[0], self.other[1]]]


@pytest.mark.parametrize(
    ("processes", "other", "message"),
    [
        (8, None, r"^batch_size .*4 .*8 processes"),
        (2, ("another run", 0), r"processes .*different"),
        (2, (None, 40), r"processes .*0, 40"),
    ],
)
def test_inconsistent_processes_are_refused(
    loaded: Any, small_bank: Bank, processes: int, other: Any, message: str
) -> None:
    run = config_of(small_bank)
    with torch.inference_mode(), pytest.raises(ValueError, match=message):
        train(run, *loaded[:2], small_vision(), resume=True, processes=Apart(0, processes, other))
