"""Held-out evaluation of a hypernetwork: the loss of its predictions next to baselines.

A prediction that is the same for every subject can be much better than the base model, and looks like success. Every
evaluation therefore measures, on held-out subjects and on fixed noise:

| prediction | what it is                              | own should be                                |
|------------|-----------------------------------------|----------------------------------------------|
| base       | no adapter                              | far below                                    |
| mean       | the bank's mean, for every subject      | below: else the image has no influence       |
| shuffled   | from another subject's image            | below: else it is not the subject            |
| own        | from the subject's own image            |                                              |
| fitted     | the adapter trained for the subject     | near: there is no more to gain               |
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

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

EVALUATED_LEVELS = 5
"""Noise levels of an evaluation: quantiles of the training distribution."""
_MEASURE = 6
ON_DISK = {
    "base": "loss_base", "mean": "loss_mean", "shuffled": "loss_wrong", "own": "loss_own", "fitted": "loss_fitted",
    "explained": "explained", "explained_shuffled": "explained_wrong",
}  # fmt: skip
"""Field of :class:`EvalResult` -> its key in the metadata of a file."""


@dataclass(frozen=True, kw_only=True)
class EvalResult:
    """The result of one evaluation.

    Args:
        base, mean, shuffled, own, fitted: denoising losses, see the table above.
        explained: explained variance (R2) of the subjects' weight changes; 1: the fitted ones, 0: the mean's, below 0:
            worse than the mean.
        explained_shuffled: the same of predictions from another subject's image.
    """

    base: float
    mean: float
    shuffled: float
    own: float
    fitted: float
    explained: float
    explained_shuffled: float

    @property
    def metadata(self) -> dict[str, float]:
        """The result by the keys that it has in files."""
        return {key: getattr(self, name) for name, key in ON_DISK.items()}

    def describe(self, with_weights: bool) -> str:
        """Return the result in one line.

        ``with_weights`` adds the explained variance of the weights, which means something only where a weight loss
        trains the network: without one nothing keeps predictions near the fitted weights.
        """
        losses = ", ".join(f"{name} {getattr(self, name):.4f}" for name in LOSSES)
        weights = (
            f"; explained variance of the weights {self.explained:.1%} "
            f"(from shuffled images {self.explained_shuffled:.1%})"
        )
        return f"loss on people held out: {losses}{weights if with_weights else ''}"


LOSSES = tuple(name for name, key in ON_DISK.items() if key.startswith("loss_"))


@dataclass(kw_only=True)
class Evaluator:
    """Measures a hypernetwork on held-out subjects.

    Args:
        network: what is measured.
        session: the model.
        objective: its denoising loss.
        options: the distribution of noise levels.
        seed: of the noise.
        examples: an image of each subject, to be denoised.
        features: tokens of an input image of each subject ``[n, tokens, width]``; another image where there is one.
        fitted: the subjects' trained parameters ``[n, N]``.
        batch_size: subjects in one forward.
        on_forward: called before every forward.
    """

    network: HyperNetwork
    session: TrainingSession
    objective: Objective
    options: TrainingOptions
    seed: int
    examples: Sequence[Example]
    features: Tensor
    fitted: Tensor
    batch_size: int
    on_forward: Callable[[], None] = lambda: None
    _baselines: Mapping[str, float] | None = field(default=None, init=False)

    @torch.no_grad()
    def evaluate(self) -> EvalResult:
        """Measure the network as it is now."""
        own = self.network(self.features)
        shuffled = own.roll(1, 0)
        losses = {**self.baselines, "own": self.loss(own), "shuffled": self.loss(shuffled)}
        if self.network.input_side is not None:  # the learned shared factor is part of the mean
            losses["mean"] = self.loss(self.network.mean_prediction().expand_as(own))
        return EvalResult(**losses, explained=self._explained(own), explained_shuffled=self._explained(shuffled))

    @property
    def baselines(self) -> Mapping[str, float]:
        """The losses that do not depend on the network's predictions: base, the bank's mean, fitted. Measured once."""
        if self._baselines is None:
            mean = self.network.mean.expand(len(self.examples), -1)
            self._baselines = {"base": self.loss(None), "mean": self.loss(mean), "fitted": self.loss(self.fitted)}
        return self._baselines

    @property
    def gap(self) -> float:
        """The loss that prediction can gain: the mean's minus the fitted one's, at least a hundredth of the base's."""
        return max(self.baselines["mean"] - self.baselines["fitted"], 0.01 * self.baselines["base"])

    @torch.no_grad()
    def loss(self, theta: Tensor | None) -> float:
        """Return the mean loss over subjects and noise levels with the adapters ``theta [n, N]``; None: without any."""
        total, layout, shared = 0.0, self.network.layout, self.network.config.shared_input
        for start in range(0, len(self.examples), self.batch_size):
            part = slice(start, start + self.batch_size)
            adapters = () if theta is None else (_frozen(batched_adapter(layout, theta[part], shared)),)
            with self.session.injected(AdapterStack(adapters)):
                total += self._loss(self.examples[part])
        return total / len(self.examples)

    def _loss(self, examples: Sequence[Example]) -> float:
        """Return the sum over ``examples`` of the mean loss over noise levels; all have the same noise."""
        generator, count = generator_for(self.seed, _MEASURE), len(examples)
        cond = self.objective.condition(examples)
        objective = replace(self.objective, condition=lambda _: cond)
        sigmas, total = self.options.noise_levels.spread(objective.denoiser.sigmas, EVALUATED_LEVELS), 0.0
        for sigma in sigmas:
            self.on_forward()
            noise = standard_noise((1, *examples[0].size), generator)
            draw = Draw(examples, sigma.view(1).expand(count), noise.expand(count, *noise.shape[1:]))
            total += objective(draw).sum().item()
        return total / len(sigmas)

    def _explained(self, theta: Tensor) -> float:
        """Return ``1 - ||A^ B^ - A B||^2 / ||A0 B0 - A B||^2`` with the mean's factors A0 and B0."""
        split = LayerDeltas(self.network.layout)
        fitted = split(self.fitted)
        mean = split(self.network.mean.expand(len(theta), -1))
        total = delta_distance(mean, fitted).sum().clamp(min=1e-30)
        return 1 - (delta_distance(split(theta), fitted).sum() / total).item()


def _frozen(adapter: Adapter) -> Adapter:
    """Return the adapter with gradients switched off."""
    for parameter in adapter.parameters():
        parameter.requires_grad_(False)
    return adapter
