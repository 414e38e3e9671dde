"""Whether a hypernetwork sees the person: its prediction beside what would show that it does not.

A prediction that is the same for everybody can be much better than the base, and looks like success. So each look
measures, on people held out, on noise that is the same for all:

| prediction | what it is                              | own should be                           |
|------------|-----------------------------------------|-----------------------------------------|
| base       | none                                    | far below                               |
| mean       | the bank's mean, for everybody          | below: else the picture is not looked at |
| wrong      | from another person's picture           | below: else it is not the person         |
| own        | from the person's own picture           |                                         |
| fitted     | trained on the person's picture         | near: there is no more to be had        |
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from ...models.adapters.per_sample import batched_adapter
from ...models.adapters.stack import Adapter, AdapterStack
from ...models.hypernetwork.delta_distance import LayerDeltas, delta_distance
from ...models.hypernetwork.network import HyperNetwork
from ..config import TrainingOptions
from ..data.dataset import Example
from ..diffusion.noise_levels import standard_noise
from ..diffusion.objective import Draw, Objective
from ..engine.rng import generator_for
from ..session import TrainingSession

LEVELS = 5
"""Noise levels of a look: quantiles of the distribution trained on, as for a bank's own."""
_MEASURE = 6


@dataclass(frozen=True)
class EvalResult:
    """Denoising losses of one look, and of the weights the share of people's differences that is foretold (1: the
    fitted weights; 0: the mean; below: worse than the mean)."""

    base: float
    mean: float
    wrong: float
    own: float
    fitted: float
    explained: float
    explained_wrong: float

    @property
    def metadata(self) -> dict[str, float]:
        """As a file keeps it."""
        said = {f"loss_{name}": getattr(self, name) for name in LOSSES}
        return {**said, "explained": self.explained, "explained_wrong": self.explained_wrong}

    def said(self, of_weights: bool) -> str:
        """In words; of the weights only where they are what is learnt: else nothing keeps them near the fitted ones."""
        losses = ", ".join(f"{name} {getattr(self, name):.4f}" for name in LOSSES)
        weights = (
            f"; of their weights' differences {self.explained:.1%} foretold "
            f"({self.explained_wrong:.1%} from the wrong picture)"
        )
        return f"loss on people held out: {losses}{weights if of_weights else ''}"


LOSSES = tuple(field.name for field in fields(EvalResult))[:5]


@dataclass
class Evaluator:
    """Measures a network on people held out.

    Args:
        network: what is measured, as it stands.
        bench: the model.
        objective: its loss.
        options: the distribution of levels.
        seed: of the noise.
        examples: a picture of each person, to be denoised.
        features: of a picture of each person, another one where there is one ``[n, tokens, width]``.
        fitted: their own numbers ``[n, N]``.
        at_once: people in one forward.
        alive: called with each forward.
    """

    network: HyperNetwork
    session: TrainingSession
    objective: Objective
    options: TrainingOptions
    seed: int
    examples: Sequence[Example]
    features: Tensor
    fitted: Tensor
    at_once: int
    alive: Callable[[], None] = lambda: None
    _fixed: Mapping[str, float] | None = None

    @torch.no_grad()
    def look(self) -> EvalResult:
        """The network now, beside what never changes."""
        own = self.network(self.features)
        wrong = own.roll(1, 0)
        losses = {**self.fixed, "own": self.loss(own), "wrong": self.loss(wrong)}
        if self.network.input_side is not None:  # what is learnt for everybody shows nobody
            losses["mean"] = self.loss(self.network.mean_prediction().expand_as(own))
        return EvalResult(**losses, explained=self._explained(own), explained_wrong=self._explained(wrong))

    @property
    def fixed(self) -> Mapping[str, float]:
        """Losses that no training of the network's predictions changes, the bank's mean among them; measured once."""
        if self._fixed is None:
            mean = self.network.mean.expand(len(self.examples), -1)
            self._fixed = {"base": self.loss(None), "mean": self.loss(mean), "fitted": self.loss(self.fitted)}
        return self._fixed

    @property
    def gap(self) -> float:
        """What there is to learn: from the mean person to the fitted one; at least a hundredth of the base's loss."""
        return max(self.fixed["mean"] - self.fixed["fitted"], 0.01 * self.fixed["base"])

    @torch.no_grad()
    def loss(self, theta: Tensor | None) -> float:
        """Mean over people and levels, with the numbers ``theta [n, N]`` on the model; None: without any."""
        total, layout, shared = 0.0, self.network.layout, self.network.config.shared_input
        for start in range(0, len(self.examples), self.at_once):
            part = slice(start, start + self.at_once)
            adapters = () if theta is None else (_still(batched_adapter(layout, theta[part], shared)),)
            with self.session.injected(AdapterStack(adapters)):
                total += self._loss(self.examples[part])
        return total / len(self.examples)

    def _loss(self, examples: Sequence[Example]) -> float:
        """Sum over ``examples`` of each one's mean over the levels; the same noise for everybody."""
        generator, count = generator_for(self.seed, _MEASURE), len(examples)
        cond = self.objective.condition(examples)
        objective = replace(self.objective, condition=lambda _: cond)
        levels, total = self.options.noise_levels.spread(objective.denoiser.sigmas, LEVELS), 0.0
        for level in levels:
            self.alive()
            noise = standard_noise((1, *examples[0].size), generator)
            draw = Draw(examples, level.view(1).expand(count), noise.expand(count, *noise.shape[1:]))
            total += objective(draw).sum().item()
        return total / len(levels)

    def _explained(self, theta: Tensor) -> float:
        """``1 - ||A^B^ - AB||^2 / ||A0 B0 - AB||^2``, A0 B0 being the mean's."""
        split = LayerDeltas(self.network.layout)
        fitted = split(self.fitted)
        mean = split(self.network.mean.expand(len(theta), -1))
        far = delta_distance(mean, fitted).sum().clamp(min=1e-30)
        return 1 - (delta_distance(split(theta), fitted).sum() / far).item()


def _still(link: Adapter) -> Adapter:
    """The link, of which nothing trains."""
    for parameter in link.parameters():
        parameter.requires_grad_(False)
    return link
