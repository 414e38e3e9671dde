"""The configuration of a DreamBooth run: its validation, its run hash and the metadata of its result."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...models.adapters.stack import AdapterStack
from ...models.adapters.targets import DIFFUSION_PREFIX, TEXT_PREFIX, Target, select_targets, text_rule
from ...models.metadata.base_fingerprint import MADE_FOR
from ...models.textual_inversion.embeddings import mentions_token
from ..checks import check_number
from ..config import Method, TrainingOptions
from ..data.dataset import Example, Subject
from ..engine.rng import DRAWS_VERSION
from ..engine.run_hash import run_hash
from ..engine.state import History
from ..hollowed_net.config import HollowedNetConfig
from ..hollowed_net.recording import RecordingConfig

MIN_IMAGES_TO_HOLD_OUT = 4
"""Number of images from which on one is held out for validation."""
OPTIONS_WITHOUT_EFFECT = {
    "preview_every": 0, "checkpoint_every": 0, "memory": "auto", "result": "auto", "keep_every": 0
}  # fmt: skip
"""Options that do not change the result, at the value they have in the run hash."""
RECORDED_OPTIONS = (
    "min_snr_gamma", "noise_sampling", "noise_offset", "prior_mode", "prior_weight", "caption_dropout",
    "warmup_steps", "gradient_accumulation", "max_grad_norm", "gradient_checkpointing",
)  # fmt: skip
"""Options that the metadata of an adapter file records."""


@dataclass(frozen=True, kw_only=True)
class DreamBoothConfig:
    """Configure one training run.

    Args:
        subject: the dataset.
        method: what is trained.
        options: how it is trained.
        steps: optimizer updates.
        batch_size: examples per loss term.
        seed: of the adapter's initialization and of every draw.
        start_from: an adapter stack to train further; its last adapter is trained.
        hollow: train without the deep blocks in the middle of the network.
        on_top_of: an adapter stack that stays unchanged; a new adapter on the same layers is trained after it.

    Raises:
        ValueError: a setting is out of range, or the subject lacks what the method or an option needs; the message
            names the inputs.
    """

    subject: Subject
    method: Method
    options: TrainingOptions
    steps: int
    batch_size: int = 1
    seed: int = 0
    start_from: AdapterStack | None = None
    hollow: HollowedNetConfig | None = None
    on_top_of: AdapterStack | None = None

    def __post_init__(self) -> None:
        check_number("steps", self.steps, 1)
        check_number("batch_size", self.batch_size, 1)
        self._check_prompts()
        if self.options.caption_dropout and self.subject.unconditional is None:
            raise ValueError(
                "caption_dropout needs the empty prompt, which this subject does not hold; use the Subject node, "
                "or set caption_dropout to 0"
            )
        if self.options.prior_mode == "prediction" and not (self.subject.class_examples or self.subject.as_class()):
            raise ValueError(
                "prior_mode is 'prediction', but the subject has no class prompt; give class_prompt in Subject "
                "('a photo of a dog'), or choose prior_mode 'none'"
            )

    def _check_prompts(self) -> None:
        """Check that the subject holds the prompts that the method encodes, and that they contain its token."""
        embedding = self.method.textual_inversion
        if self.method.encodes_prompts and not self.subject.prompts:
            trained = "a learned embedding" if embedding else "the text encoder"
            raise ValueError(
                f"the method trains {trained}, but this subject holds conditioning without its text; use the Subject "
                f"node, which keeps the prompts{'' if embedding else ', or switch text_encoder off'}"
            )
        if embedding and not self._count_with_token(self.training.examples):
            prompts = self.subject.prompts
            shown = ", ".join(map(repr, prompts[:3])) + (", ..." if len(prompts) > 3 else "")
            raise ValueError(
                f"token {embedding.token!r} is in none of the subject's prompts ({shown}), so it cannot be learned; "
                f"write it where they name the subject: 'a photo of {embedding.token}'"
            )

    @property
    def training(self) -> Subject:
        """The subject without the images held out for validation."""
        return self.subject.held_out(self._held_out)[0]

    @property
    def validation(self) -> tuple[Example, ...]:
        """The images of the validation loss: those held out, or with few images the training images."""
        return self.subject.held_out(self._held_out)[1] or self.subject.examples

    @property
    def loss_options(self) -> TrainingOptions:
        """The options of the loss.

        A learned embedding changes no prompt without its token, so it needs no prior preservation.
        """
        return replace(self.options, prior_mode="none") if self.method.textual_inversion else self.options

    @property
    def notes(self) -> list[str]:
        """Lines of the report: inputs that have no effect on this run."""
        if self.method.textual_inversion is None:
            return []
        token, images = self.method.textual_inversion.token, len(self.training.examples)
        notes, missing = [], images - self._count_with_token(self.training.examples)
        if missing:
            notes.append(f"{missing} of {images} images' prompts do not contain {token}: it learns nothing from them")
        if self.options.prior_mode == "prediction" or self.subject.class_examples:
            notes.append("no prior preservation: a learned embedding changes no prompt without its token")
        return notes

    def _count_with_token(self, examples: Sequence[Example]) -> int:
        """Return how many of ``examples`` have the learned embedding's token in their prompt."""
        return sum(
            e.prompt is not None and mentions_token(e.prompt, self.method.textual_inversion.token) for e in examples
        )

    @property
    def starts_from_adapter(self) -> bool:
        """Whether training starts from an adapter, so that the initial model is not the plain base model."""
        return self.start_from is not None or self.on_top_of is not None

    @property
    def recording(self) -> RecordingConfig:
        """The recording before a run on a hollowed network; a whole network records nothing."""
        hollow = self.hollow or HollowedNetConfig(storage="none")
        return RecordingConfig(
            storage=hollow.storage, samples=hollow.samples, batch_size=self.batch_size, steps=self.steps,
            gradient_accumulation=self.options.gradient_accumulation, images=len(self.subject.examples),
        )  # fmt: skip

    def targets(self, shapes: Mapping[str, tuple[int, ...]]) -> list[Target]:
        """Return the layers that are trained: the method's, or on top of an adapter stack the stack's.

        Raises:
            ValueError: no layer matches.
        """
        if self.on_top_of is not None:
            return [target for name, target in self.on_top_of.targets().items() if name in shapes]
        try:
            return targets_of(self.method, shapes)
        except ValueError as error:
            if self.hollow is None:
                raise
            raise ValueError(f"{error}; or lower fraction in Hollowed Net, which has removed layers") from error

    @property
    def _held_out(self) -> int:
        return int(self.options.validation > 0 and len(self.subject.examples) >= MIN_IMAGES_TO_HOLD_OUT)

    def key(self, model: str) -> str:
        """Return the run hash: equal for runs with the same result, whatever is shown or saved during the run.

        With a constant learning rate it does not depend on the number of steps, so a longer run continues a
        shorter one.

        Args:
            model: hash of the base model, see :attr:`..session.TargetModel.model_hash`.
        """
        subject = self.subject
        start = None
        if self.start_from is not None:
            start = [[a.to_tensors() for a in adapter.layers.values()] for adapter in self.start_from.adapters]
            start += self.start_from.embeddings
        below = () if self.on_top_of is None else _hash_inputs(self.on_top_of)
        steps = None if self.options.lr_scheduler == "constant" else self.steps
        hollow = () if self.hollow is None else (self.hollow.cache_key,)
        dataset = (subject.examples, subject.class_examples, subject.unconditional, subject.class_cond)
        options = replace(self.options, **OPTIONS_WITHOUT_EFFECT)
        inputs = (model, *dataset, self.method, options, self.batch_size, self.seed, start, steps, *hollow, *below)
        return run_hash(DRAWS_VERSION, *inputs)

    def metadata(self, history: History) -> dict[str, Any]:
        """Return what an adapter file records about the run."""
        before = dict(self.start_from.metadata) if self.start_from else {}
        return {
            **{name: before[name] for name in ("trigger", "parts", MADE_FOR) if name in before},
            "steps": before.get("steps", 0) + history.step,
            "batch_size": self.batch_size,
            "seed": self.seed,
            "learning_rate": self.method.learning_rate,
            "text_encoder_lr": self.method.text_encoder_lr if self.method.text_encoder else None,
            **self._trained_part(),
            "images": len(self.training.examples),
            "class_images": len(self.subject.class_examples),
            "prompts": self.subject.prompts,
            "class_prompt": self.subject.class_prompt,
            "optimizer": self.options.optimizer,
            "lr_scheduler": self.options.lr_scheduler,
            "loss_weighting": self.options.loss_weighting,
            **({"hollow": self.hollow.fraction} if self.hollow else {}),
            **{name: getattr(self.options, name) for name in RECORDED_OPTIONS},
            "latent_sizes": dict(Counter(f"{e.size[-1]}x{e.size[-2]}" for e in self.training.examples)),
            "final_loss": history.losses[-1],
        }

    def _trained_part(self) -> dict[str, Any]:
        """Return the metadata of what is trained: a learned embedding, or layers."""
        if embedding := self.method.textual_inversion:
            return {"token": embedding.token, "initializer_word": embedding.initializer_word}
        return {"targets": self.method.targets if self.on_top_of is None else "those of the adapter below"}


def _hash_inputs(stack: AdapterStack) -> list[Any]:
    """Return what a run on top of ``stack`` depends on; scales and bases of its adapters are in no tensor."""
    adapters = [
        (adapter.family, {name: (layer.settings(), layer.to_tensors()) for name, layer in adapter.layers.items()})
        for adapter in stack.adapters
    ]
    return [adapters, [(embedding.token, dict(embedding.vectors)) for embedding in stack.embeddings]]


def targets_of(method: Method, shapes: Mapping[str, tuple[int, ...]]) -> list[Target]:
    """Return the layers that ``method`` trains: of the diffusion model, then of the text encoder if it is trained.

    Raises:
        ValueError: no layer matches the method's rule.
    """
    if method.textual_inversion:
        return []
    diffusion = {name: shape for name, shape in shapes.items() if name.startswith(DIFFUSION_PREFIX)}
    targets = select_targets(diffusion, method.targets)
    if method.text_encoder:
        text = {name: shape for name, shape in shapes.items() if name.startswith(TEXT_PREFIX)}
        targets += select_targets(text, method.text_targets or text_rule(method.targets))
    return targets
