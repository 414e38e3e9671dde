"""Training an adapter on a subject: targets, adapter, loss and loop put together."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from ..models.adapter_set import AdapterSet, Link
from ..models.denoiser import Denoiser
from ..models.targets import DIFFUSION_PREFIX, TEXT_PREFIX, Target, select_targets, text_rule
from .dreambooth import DreamBooth
from .loop import FitConfig, Group, OnStep, TrainState, fit
from .noise import generator_for
from .options import Method, TrainingOptions, check_number
from .preview import preview
from .subject import Example, Subject


class Workbench(Protocol):
    """A model laid out for training; made by whoever owns the model.

    ``shapes`` and ``layers`` name every layer that an adapter could change, of the diffusion model
    (``diffusion_model.…``) and, if it is to be trained, of the text encoder (``text_encoders.…``).
    """

    denoiser: Denoiser
    device: torch.device
    half: bool
    shapes: Mapping[str, tuple[int, ...]]
    layers: Mapping[str, nn.Module]
    facts: Mapping[str, Any]

    def condition(self, examples: Sequence[Example]) -> Any:
        """What the denoiser takes for the prompts of a batch."""

    def blank(self, subject: Subject) -> Any:
        """What it takes for the empty prompt, or None."""

    def to_model(self, latents: Tensor) -> Tensor:
        """Latents as the VAE gave them -> model space, on the device."""

    def picture(self, latents: Tensor) -> Image.Image | None:
        """A small picture of latents in model space, or None if the latent format has no preview."""


@dataclass(frozen=True)
class Run:
    """One training run as asked for.

    Args:
        steps: optimiser updates.
        batch_size: examples per loss term.
        seed: of the adapter's start and of every draw.
        start_from: an adapter to go on training; its last link is the one trained.
    """

    subject: Subject
    method: Method
    options: TrainingOptions
    steps: int
    batch_size: int = 1
    seed: int = 0
    start_from: AdapterSet | None = None

    def __post_init__(self) -> None:
        check_number("steps", self.steps, 1)
        check_number("batch_size", self.batch_size, 1)
        if self.method.text_encoder and not self.subject.prompts:
            raise ValueError(
                "the method trains the text encoder, but this subject holds conditioning without its text; "
                "use the Subject node, which keeps the prompts, or switch text_encoder off"
            )


MakeWatch = Callable[[Callable[[], Image.Image | None]], OnStep]
"""Given a way to make a sample, what to call after every step."""

_START, _PREVIEW = 100, 101


def personalize(run: Run, bench: Workbench, watch: MakeWatch) -> tuple[AdapterSet, TrainState]:
    """Train a new adapter (or ``run.start_from`` further) on ``bench`` and return it on the CPU.

    Raises:
        ValueError: the targets match nothing, the rank does not fit, or ``start_from`` is of another kind.
        FloatingPointError: the loss is no longer finite.
    """
    adapter = _begin(run, targets_of(run.method, bench.shapes), bench.device)
    trained = adapter.chain[-1]
    config = FitConfig(
        steps=run.steps, half=bench.half,
        **{name: getattr(run.options, name) for name in
           ("optimizer", "lr_scheduler", "warmup_steps", "gradient_accumulation", "max_grad_norm")},
    )  # fmt: skip
    for frozen_link in adapter.chain[:-1]:
        for parameter in frozen_link.parameters():
            parameter.requires_grad_(False)
    losses = DreamBooth(
        bench.denoiser, bench.condition, bench.to_model, run.subject, run.options, run.batch_size, run.seed
    )
    with adapter.attached(bench.layers):
        state = fit(losses, _groups(trained, run.method), config, watch(lambda: _sample(run, bench)))
    chain = tuple(link.copy_to("cpu") for link in adapter.chain)
    return AdapterSet(chain, {**bench.facts, **run_facts(run, state)}), state


def targets_of(method: Method, shapes: Mapping[str, tuple[int, ...]]) -> list[Target]:
    """The layers that ``method`` trains: of the diffusion model, then of the text encoder if asked for."""
    unet = {name: shape for name, shape in shapes.items() if name.startswith(DIFFUSION_PREFIX)}
    targets = select_targets(unet, method.targets)
    if method.text_encoder:
        text = {name: shape for name, shape in shapes.items() if name.startswith(TEXT_PREFIX)}
        targets += select_targets(text, text_rule(method.targets))
    return targets


def run_facts(run: Run, state: TrainState) -> dict[str, Any]:
    """What a file should say of the run."""
    before = dict(run.start_from.facts) if run.start_from else {}
    return {
        "steps": before.get("steps", 0) + state.step,
        "batch_size": run.batch_size,
        "seed": run.seed,
        "learning_rate": run.method.learning_rate,
        "text_encoder_lr": run.method.text_encoder_lr if run.method.text_encoder else None,
        "targets": run.method.targets,
        "images": len(run.subject.examples),
        "class_images": len(run.subject.class_examples),
        "prompts": run.subject.prompts,
        "optimizer": run.options.optimizer,
        "lr_scheduler": run.options.lr_scheduler,
        "loss_weighting": run.options.loss_weighting,
        "final_loss": state.losses[-1],
    }


def _begin(run: Run, targets: Sequence[Target], device: torch.device) -> AdapterSet:
    """The chain to train, on the training device, as ordinary float32 parameters."""
    method = run.method
    if run.start_from is None:
        link = Link.create(method.family, targets, method.config, generator_for(run.seed, _START))
        return AdapterSet((link.copy_to(device),))
    chain = tuple(link.copy_to(device) for link in run.start_from.chain)
    _check_same_kind(chain[-1], Link.create(method.family, targets, method.config, generator_for(0)))
    return AdapterSet(chain, run.start_from.facts)


def _check_same_kind(given: Link, wanted: Link) -> None:
    """``start_from`` can go on under the method only if both have the same family, layers and sizes."""
    if _kind(given) != _kind(wanted):
        raise ValueError(
            f"start_from is {given.describe()}; the method makes {wanted.describe()}. "
            "Set the method's rank, alpha, targets and text_encoder as they were, or train without start_from"
        )


def _kind(link: Link) -> Any:
    sizes = {name: [tuple(p.shape) for p in adapter.parameters()] for name, adapter in link.adapters.items()}
    return link.describe(), sizes


def _groups(link: Link, method: Method) -> list[Group]:
    """Parameters by learning rate."""
    groups = []
    for prefix, rate in ((DIFFUSION_PREFIX, method.learning_rate), (TEXT_PREFIX, method.text_encoder_lr)):
        adapters = [adapter for name, adapter in link.adapters.items() if name.startswith(prefix)]
        if adapters:
            groups.append(Group([p for adapter in adapters for p in adapter.parameters()], rate))
    return groups


@torch.no_grad()
def _sample(run: Run, bench: Workbench) -> Image.Image | None:
    """A picture of the first example's prompt, always from the same noise."""
    example = run.subject.examples[0]
    noise_seed = generator_for(run.seed, _PREVIEW).initial_seed()
    latents = preview(bench.denoiser, bench.condition([example]), bench.blank(run.subject), example.size, noise_seed)
    return bench.picture(latents)
