"""One training run as asked for."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...models.adapters.stack import AdapterStack
from ...models.adapters.targets import DIFFUSION_PREFIX, TEXT_PREFIX, Target, select_targets, text_rule
from ...models.metadata.base_fingerprint import MADE_FOR
from ...models.textual_inversion.embeddings import mentions_token
from ..config import HollowedNetConfig, Method, TrainingOptions
from ..data.dataset import Example, Subject
from ..engine.checks import check_number
from ..engine.run_hash import run_hash
from ..engine.state import History
from ..hollowed_net.recording import RecordingConfig

HELD_OUT_FROM = 4
"""Pictures from which on one can be spared for validation."""
COSMETIC = {"preview_every": 0, "checkpoint_every": 0, "memory": "auto"}
"""Options that change nothing about the result, at one value for the run's name."""
OPTION_FACTS = (
    "min_snr_gamma", "noise_sampling", "noise_offset", "prior_mode", "prior_weight", "caption_dropout",
    "warmup_steps", "gradient_accumulation", "max_grad_norm", "gradient_checkpointing",
)  # fmt: skip
"""Options that a file keeps, for other programs and for those who ask how it was made."""


@dataclass(frozen=True)
class DreamBoothConfig:
    """One training run.

    Args:
        steps: optimiser updates.
        batch_size: examples per loss term.
        seed: of the adapter's start and of every draw.
        start_from: an adapter to go on training; its last link is the one trained.
        hollow: train without the network's deep middle.
        on_top_of: an adapter that stays as it is; a new link is trained after it, on its layers.
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
        if self.method.encodes_prompts and not self.subject.prompts:
            what = "a word" if self.method.textual_inversion else "the text encoder"
            raise ValueError(
                f"the method trains {what}, but this subject holds conditioning without its text; use the Subject "
                f"node, which keeps the prompts{'' if self.method.textual_inversion else ', or switch text_encoder off'}"
            )
        if self.method.textual_inversion and not self._named_by(self.training.examples):
            token, prompts = self.method.textual_inversion.token, self.subject.prompts
            shown = ", ".join(map(repr, prompts[:3])) + (", ..." if len(prompts) > 3 else "")
            raise ValueError(
                f"token {token!r} is in none of the subject's prompts ({shown}), so that nothing could teach it; "
                f"write it where they name the subject: 'a photo of {token}'"
            )
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

    @property
    def training(self) -> Subject:
        """The subject without the pictures held out for validation."""
        return self.subject.held_out(self._held_out)[0]

    @property
    def validation(self) -> tuple[Example, ...]:
        """What is validated on: the pictures held out, or with few pictures those trained on."""
        return self.subject.held_out(self._held_out)[1] or self.subject.examples

    @property
    def loss_options(self) -> TrainingOptions:
        """The options of the loss: a new word changes no prompt that does not name it, so that it needs no prior."""
        return replace(self.options, prior_mode="none") if self.method.textual_inversion else self.options

    @property
    def notes(self) -> list[str]:
        """What of the inputs the run makes no use of, for the report."""
        if self.method.textual_inversion is None:
            return []
        notes, named, images = [], self._named_by(self.training.examples), len(self.training.examples)
        if named < images:
            notes.append(f"{images - named} of {images} images' texts do not name {self.method.textual_inversion.token}: they "
                         "teach it nothing")  # fmt: skip
        if self.options.prior_mode == "prediction" or self.subject.class_examples:
            notes.append("no prior preservation: a new word leaves every prompt without it as it is")
        return notes

    def _named_by(self, examples: Sequence[Example]) -> int:
        """How many of ``examples`` name the word."""
        return sum(e.prompt is not None and mentions_token(e.prompt, self.method.textual_inversion.token) for e in examples)

    @property
    def has_a_past(self) -> bool:
        """Whether it starts from an adapter, so that its start is not the plain model."""
        return self.start_from is not None or self.on_top_of is not None

    @property
    def recording(self) -> RecordingConfig:
        """What a run on a hollow network records; nothing without one."""
        hollow = self.hollow or HollowedNetConfig(storage="none")
        return RecordingConfig(
            storage=hollow.storage, samples=hollow.samples, batch_size=self.batch_size, steps=self.steps,
            gradient_accumulation=self.options.gradient_accumulation, images=len(self.subject.examples),
        )  # fmt: skip

    def targets(self, shapes: Mapping[str, tuple[int, ...]]) -> list[Target]:
        """The layers that train: those that the method names, or on top of an adapter its own."""
        if self.on_top_of is not None:
            return [target for name, target in self.on_top_of.targets().items() if name in shapes]
        try:
            return targets_of(self.method, shapes)
        except ValueError as error:
            if self.hollow is None:
                raise
            raise ValueError(f"{error}; or lower fraction in Hollowed Net, which has taken layers out") from error

    @property
    def _held_out(self) -> int:
        return int(self.options.validation > 0 and len(self.subject.examples) >= HELD_OUT_FROM)

    def key(self, model: str) -> str:
        """A name for the run: the same for the same result, whatever is shown or saved on the way.

        With a constant learning rate the number of steps is no part of it, so that a longer run goes on from a
        shorter one.

        Args:
            model: names the base model as it is, see ``Workbench.identity``.
        """
        subject = self.subject
        start = None
        if self.start_from is not None:
            start = [[a.to_tensors() for a in link.layers.values()] for link in self.start_from.adapters]
            start += self.start_from.embeddings
        below = () if self.on_top_of is None else _essence(self.on_top_of)
        steps = None if self.options.lr_scheduler == "constant" else self.steps
        hollow = () if self.hollow is None else (self.hollow.cache_key,)
        return run_hash(
            model, subject.examples, subject.class_examples, subject.unconditional, subject.class_cond, self.method,
            replace(self.options, **COSMETIC), self.batch_size, self.seed, start, steps, *hollow, *below,
        )  # fmt: skip

    def metadata(self, history: History) -> dict[str, Any]:
        """What a file should say of the run."""
        before = dict(self.start_from.metadata) if self.start_from else {}
        return {
            **{name: before[name] for name in ("trigger", "parts", MADE_FOR) if name in before},
            "steps": before.get("steps", 0) + history.step,
            "batch_size": self.batch_size,
            "seed": self.seed,
            "learning_rate": self.method.learning_rate,
            "text_encoder_lr": self.method.text_encoder_lr if self.method.text_encoder else None,
            **self._what(),
            "images": len(self.training.examples),
            "class_images": len(self.subject.class_examples),
            "prompts": self.subject.prompts,
            "class_prompt": self.subject.class_prompt,
            "optimizer": self.options.optimizer,
            "lr_scheduler": self.options.lr_scheduler,
            "loss_weighting": self.options.loss_weighting,
            **({"hollow": self.hollow.fraction} if self.hollow else {}),
            **{name: getattr(self.options, name) for name in OPTION_FACTS},
            "latent_sizes": dict(Counter(f"{e.size[-1]}x{e.size[-2]}" for e in self.training.examples)),
            "final_loss": history.losses[-1],
        }

    def _what(self) -> dict[str, Any]:
        """Which part is trained."""
        if word := self.method.textual_inversion:
            return {"token": word.token, "initializer_word": word.initializer_word}
        return {"targets": self.method.targets if self.on_top_of is None else "those of the adapter below"}


def _essence(adapter: AdapterStack) -> list[Any]:
    """What a run on top of ``adapter`` depends on: bases, scales and orders of its links are in no tensor."""
    links = [
        (link.family, {name: (a.settings(), a.to_tensors()) for name, a in link.layers.items()})
        for link in adapter.adapters
    ]
    return [links, [(word.token, dict(word.vectors)) for word in adapter.embeddings]]


def targets_of(method: Method, shapes: Mapping[str, tuple[int, ...]]) -> list[Target]:
    """The layers that ``method`` trains: of the diffusion model, then of the text encoder if asked for."""
    if method.textual_inversion:
        return []
    unet = {name: shape for name, shape in shapes.items() if name.startswith(DIFFUSION_PREFIX)}
    targets = select_targets(unet, method.targets)
    if method.text_encoder:
        text = {name: shape for name, shape in shapes.items() if name.startswith(TEXT_PREFIX)}
        targets += select_targets(text, method.text_targets or text_rule(method.targets))
    return targets
