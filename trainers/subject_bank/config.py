"""The configuration of a bank build: every subject is trained the same way, which makes their parameters comparable."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ...models.adapters import FAMILIES
from ...models.adapters.parameter_layout import ParameterLayout
from ...models.adapters.stack import Adapter, AdapterStack
from ...models.validation import MAX_TEXT_LENGTH, is_unicode
from ..checks import check_number
from ..config import Method, TrainingOptions
from ..dreambooth.config import OPTIONS_WITHOUT_EFFECT, targets_of
from ..dreambooth.initial_adapter import new_adapter
from ..engine.run_hash import run_hash

NEUTRAL = {**OPTIONS_WITHOUT_EFFECT, "gradient_checkpointing": False, "precision": "auto", "validation": 0}
"""Options that do not change a subject's parameters but for rounding, with the value that :meth:`BankConfig.settings`
records for them."""
REFUSED = {"optimizer": ("adafactor",), "prior_mode": ("prediction",)}
"""Options under which a subject's result would depend on the rest of its batch, or that need what a bank lacks."""


@dataclass(frozen=True, kw_only=True)
class BankConfig:
    """How every subject of a bank is trained.

    Noise and noise levels follow from seed and step alone, hence are the same for all subjects, and all subjects start
    from the same parameters. Their results then differ by the subjects and not by the draws, and that difference is
    what a network can learn to predict.

    Args:
        method: LiDB with its settings.
        prompt: of every image, "a [V] face" in the paper; with ``captions``, of the images without a caption.
        steps: optimizer updates of each subject; a step sees one of its images.
        seed: of the common start and of every draw.
        resolution: side of the square that images are cropped to, in pixels.
        options: see :class:`..config.TrainingOptions`; there is no prior preservation.
        start_from: a LiDB that all subjects start from, for example one of a mean person; None creates a new one.
        shared_input: train the factor on the output side alone (the down factor is shared), so that a subject's
            weight change is linear in its parameters.
        captions: ``name.txt`` next to ``name.jpg`` is that image's prompt; what the caption describes of the scene is
            then not attributed to the subject.

    Raises:
        ValueError: a setting is out of range, or cannot be used for a bank.
    """

    method: Method
    prompt: str
    steps: int
    seed: int = 0
    resolution: int = 512
    options: TrainingOptions = field(default_factory=TrainingOptions)
    start_from: AdapterStack | None = None
    shared_input: bool = False
    captions: bool = False

    def __post_init__(self) -> None:
        check_number("steps", self.steps, 1)
        if not self.prompt.strip():
            raise ValueError("prompt is empty; give one that names every subject alike, such as 'a photo of sks face'")
        if len(self.prompt) > MAX_TEXT_LENGTH or not is_unicode(self.prompt):
            raise ValueError(
                f"prompt {self.prompt!r:.40} has {len(self.prompt)} characters, or some that no file can hold; give at "
                f"most {MAX_TEXT_LENGTH}"
            )
        families = [name for name, family in FAMILIES.items() if family.has_parameter_layout]
        if self.method.family not in families:
            raise ValueError(
                f"method makes {self.method.family}; a bank holds {', '.join(families)}, whose parameters are few "
                "enough for very many subjects. Connect LiDB"
            )
        for name, refused in REFUSED.items():
            if (value := getattr(self.options, name)) in refused:
                raise ValueError(
                    f"options: {name} {value!r} is not for a bank, whose subjects share a batch; choose another"
                )
        if self.options.caption_dropout:
            raise ValueError("options: a bank does not hold the empty prompt; set caption_dropout to 0")
        if self.captions and self.method.text_encoder:
            raise ValueError(
                "captions: the text encoder carries an adapter for each subject of a batch, and encodes one prompt for "
                "all of them; switch text_encoder off in the method, or captions off"
            )

    def start(self, shapes: Mapping[str, tuple[int, ...]]) -> Adapter:
        """Return the adapter that every subject starts from.

        Args:
            shapes: weight shapes of the layers that can be trained, by name.

        Raises:
            ValueError: the targets match no layer, or ``start_from`` is not what the method makes.
        """
        fresh = new_adapter(self.method, targets_of(self.method, shapes), self.seed)
        if self.start_from is None:
            return fresh
        adapters = self.start_from.adapters
        if len(adapters) != 1 or self.start_from.embeddings:
            held = ", ".join(part.describe() for part in (*adapters, *self.start_from.embeddings))
            raise ValueError(f"start_from is {held}; a bank's subjects start from one LiDB")
        try:
            ParameterLayout.of(fresh).pack(adapters[0])
        except ValueError as error:
            raise ValueError(f"start_from: {error}. Train it with the method of this bank") from error
        return adapters[0]

    def settings(self, start: Adapter) -> dict[str, Any]:
        """Return, by dotted names, what a subject's parameters depend on, except the base model and its images."""
        tensors = [adapter.to_tensors() for adapter in start.layers.values()]
        return {
            "prompt": self.prompt, "steps": self.steps, "seed": self.seed, "resolution": self.resolution,
            "shared_input": self.shared_input, "start": run_hash(tensors)[:12],
            **({"captions": True} if self.captions else {}),
            **_dotted("method", asdict(self.method)), **_dotted("options", asdict(replace(self.options, **NEUTRAL))),
        }  # fmt: skip


def _dotted(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= _dotted(f"{prefix}.{name}", value) if isinstance(value, dict) else {f"{prefix}.{name}": value}
    return found
