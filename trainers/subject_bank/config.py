"""How every subject of a bank is trained: the same way, so that their numbers can be compared and predicted."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ...models.adapters import FAMILIES
from ...models.adapters.parameter_layout import ParameterLayout
from ...models.adapters.stack import Adapter, AdapterStack
from ...models.validation import MAX_TEXT_LENGTH, is_unicode
from ..config import Method, TrainingOptions
from ..dreambooth.config import OPTIONS_WITHOUT_EFFECT, targets_of
from ..dreambooth.initial_adapter import new_adapter
from ..engine.checks import check_number
from ..engine.run_hash import run_hash

NEUTRAL = {**OPTIONS_WITHOUT_EFFECT, "gradient_checkpointing": False, "precision": "auto", "validation": 0}
"""Options that leave a subject's numbers what they are, up to rounding."""
TOGETHER = {"optimizer": ("adafactor",), "prior_mode": ("prediction",)}
"""Options under which a subject's result would depend on those beside it, or that need what a bank has not."""


@dataclass(frozen=True)
class BankConfig:
    """How every subject of a bank is trained.

    Noise and levels follow from seed and step alone, so that all subjects meet the same ones, and all start from the
    same numbers: what differs between their results is then the subjects (and not the luck of the draw), which is what
    a network can learn to predict.

    Args:
        method: LiDB with its settings.
        prompt: of every picture, "a [V] face" in the paper; with ``captions``, of those without a text of their own.
        steps: optimiser updates of each subject; a step sees one picture of it.
        seed: of the shared start and of every draw.
        resolution: side of the square that pictures are cropped to, in pixels.
        options: see :class:`.options.TrainingOptions`; there is no prior preservation.
        start_from: a LiDB that all start from, a mean person for example; a new one without.
        shared_input: only the factor on the output's side trains, so that a subject's change is linear in its numbers.
        captions: ``name.txt`` beside ``name.jpg`` is that picture's prompt; what it says of the scene is then not taken
            for the subject's.
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
                f"prompt {self.prompt!r:.40} has {len(self.prompt)} characters, or such as no file can hold; give at "
                f"most {MAX_TEXT_LENGTH}"
            )
        packed = [name for name, family in FAMILIES.items() if family.has_parameter_layout]
        if self.method.family not in packed:
            raise ValueError(
                f"method makes {self.method.family}; a bank holds {', '.join(packed)}, whose numbers are few enough "
                "for very many subjects. Connect LiDB"
            )
        for name, refused in TOGETHER.items():
            if (value := getattr(self.options, name)) in refused:
                raise ValueError(
                    f"options: {name} {value!r} is not for a bank, whose subjects train side by side; choose another"
                )
        if self.options.caption_dropout:
            raise ValueError("options: a bank does not hold the empty prompt; set caption_dropout to 0")
        if self.captions and self.method.text_encoder:
            raise ValueError(
                "captions: the text encoder carries an adapter for each subject of a batch, and they hear one prompt; "
                "switch text_encoder off in the method, or captions off"
            )

    def start(self, shapes: Mapping[str, tuple[int, ...]]) -> Adapter:
        """What every subject starts from.

        Args:
            shapes: of the layers that can be trained, by name.

        Raises:
            ValueError: the targets match nothing, or ``start_from`` is not what the method makes.
        """
        fresh = new_adapter(self.method, targets_of(self.method, shapes), self.seed)
        if self.start_from is None:
            return fresh
        chain = self.start_from.adapters
        if len(chain) != 1 or self.start_from.embeddings:
            held = ", ".join(part.describe() for part in (*chain, *self.start_from.embeddings))
            raise ValueError(f"start_from is {held}; a bank's subjects start from one LiDB")
        try:
            ParameterLayout.of(fresh).pack(chain[0])
        except ValueError as error:
            raise ValueError(f"start_from: {error}. Train it with the method of this bank") from error
        return chain[0]

    def settings(self, start: Adapter) -> dict[str, Any]:
        """Everything that a subject's numbers depend on, but the base and its pictures, by dotted names."""
        numbers = [adapter.to_tensors() for adapter in start.layers.values()]
        return {
            "prompt": self.prompt, "steps": self.steps, "seed": self.seed, "resolution": self.resolution,
            "shared_input": self.shared_input, "start": run_hash(numbers)[:12],
            **({"captions": True} if self.captions else {}),
            **_dotted("method", asdict(self.method)), **_dotted("options", asdict(replace(self.options, **NEUTRAL))),
        }  # fmt: skip


def _dotted(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= _dotted(f"{prefix}.{name}", value) if isinstance(value, dict) else {f"{prefix}.{name}": value}
    return found
