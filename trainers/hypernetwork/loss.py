"""The loss of a hypernetwork (HyperDreamBooth, arXiv 2307.06949, eq. 5): through the model, and on the weights.

``alpha ||x0_hat(x_t; theta^) - x0||^2 / gap + beta ||A^ B^ - A B||^2 / variance``: the denoising loss of the model with
the predicted adapters, and the distance of the predicted weight changes from those that were trained for the subject.
The paper compares the factors themselves and leaves alpha and beta open; products instead of factors and
the two units are ours: in both, about 1 lies between the mean subject and the right one.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...models.adapters.parameter_layout import ParameterLayout
from ...models.adapters.per_sample import batched_adapter
from ...models.adapters.stack import Adapter, AdapterStack
from ...models.hypernetwork.delta_distance import LayerDeltas, delta_distance
from ...models.hypernetwork.network import HyperNetwork
from ..config import TrainingOptions
from ..data.dataset import Example
from ..diffusion.noise_levels import standard_noise
from ..diffusion.objective import Draw, Objective
from ..engine.distributed import SINGLE, ProcessGroup
from ..engine.rng import generator_for
from ..session import TrainingSession
from .batches import SubjectBatches
from .feature_cache import ImageIndex

_DRAWS = 1
FLOAT16_SCALE = 2.0**10
"""Factor of the loss on its way through a model that computes in float16, at first."""
_BACK_OFF = 16.0
"""Factor by which it falls where a gradient overflows: at most three more passes, down to 1."""


@dataclass(frozen=True, kw_only=True)
class WeightLoss:
    """``mean ||A^ B^ - A B||_F^2 / variance``: distance of predicted from trained weight changes.

    Args:
        layout: of the parameter vectors.
        theta: indices of subjects -> their trained parameters ``[n, N]``.
        variance: the unit, ``E ||A B - E[A B]||_F^2`` over subjects.
    """

    layout: ParameterLayout
    theta: Callable[[Sequence[int]], Tensor]
    variance: float

    def __call__(self, theta: Tensor, subjects: Sequence[int]) -> Tensor:
        """Return the loss of the predictions ``theta [n, N]`` for ``subjects``."""
        split = LayerDeltas(self.layout)
        return delta_distance(split(theta), split(self.theta(subjects).to(theta))).mean() / self.variance


@dataclass(frozen=True, kw_only=True)
class PredictedAdapterLoss:
    """The denoising loss of predicted adapters, ``mean ||x0_hat(x_t; theta^) - x0||^2``.

    Each sample of a batch is denoised with the adapter predicted for its own subject.

    Args:
        network: the hypernetwork; its layout and configuration say what theta means.
        session: the model that the adapters are injected into.
        objective: its denoising loss.
        options: the distributions of noise and noise levels.
        examples: indices of images -> what is denoised.
        micro_batches: parts that a batch goes through the model in.
        processes: processes that share each batch.
    """

    network: HyperNetwork
    session: TrainingSession
    objective: Objective
    options: TrainingOptions
    examples: Callable[[Sequence[ImageIndex]], list[Example]]
    micro_batches: int = 1
    processes: ProcessGroup = SINGLE

    def __call__(self, theta: Tensor, images: Sequence[ImageIndex], generator: torch.Generator) -> Tensor:
        """Return this process's part of the mean over the batch; the parts of all processes add up to it.

        The gradient with respect to theta is computed at once, one micro-batch after another, and theta's own graph is
        kept for backward. Noise and noise levels are drawn for the whole batch, so that an image has the same ones
        whichever process denoises it.

        Args:
            theta: predicted parameters ``[n, N]`` of this process's part of the batch.
            images: the images to denoise, of the whole batch.
            generator: of the draws.
        """
        draw, total = self._draw(images, generator), len(images)
        value, gradients = 0.0, []
        for part in draw.micro_batches(self.micro_batches):
            rows = theta[part.start : part.start + len(part.examples)]
            loss, gradient = self._backward(rows, part)
            value += loss / total
            gradients.append(gradient / total)
        along = (theta * torch.cat(gradients)).sum()
        return along - along.detach() + value

    def of_one_sample(self, image: ImageIndex, generator: torch.Generator) -> Tensor:
        """Return the loss of one sample under the mean subject's adapter, to measure the memory that it takes."""
        (example,) = self.examples([image])
        sigma = self.options.noise_levels.sample(self.objective.denoiser.sigmas, 1, generator)
        noise = standard_noise((1, *example.size), generator, self.options.noise_offset)
        with self.session.injected(AdapterStack((self._adapter(self.network.mean[None]),))):
            return self.objective(Draw([example], sigma, noise)).sum()

    def _draw(self, images: Sequence[ImageIndex], generator: torch.Generator) -> Draw:
        whole, mine = len(images), self.processes.shard(len(images))
        examples = self.examples(images[mine])
        sigma = self.options.noise_levels.sample(self.objective.denoiser.sigmas, whole, generator)
        noise = standard_noise((whole, *examples[0].size), generator, self.options.noise_offset)
        return Draw(examples, sigma[mine], noise[mine])

    def _backward(self, theta: Tensor, draw: Draw) -> tuple[float, Tensor]:
        """Return the sum of the samples' losses, each with its own adapter, and its gradient ``[n, N]``."""
        scale = FLOAT16_SCALE if self.session.model.half else 1.0
        loss, gradient = self._scaled_backward(theta, draw, scale)
        while scale > 1 and not gradient.isfinite().all():
            scale = max(scale / _BACK_OFF, 1.0)
            loss, gradient = self._scaled_backward(theta, draw, scale)
        return loss, gradient

    def _scaled_backward(self, theta: Tensor, draw: Draw, scale: float) -> tuple[float, Tensor]:
        """Return loss and gradient, computed with the loss times ``scale``.

        Every batch starts from the same scale, so that a resumed run gives the same bits.
        """
        adapter = self._adapter(theta)
        with self.session.injected(AdapterStack((adapter,))):
            loss = self.objective(draw).sum()
            (scale * loss).backward()
        return loss.item(), self.network.layout.gradient(adapter) / scale

    def _adapter(self, theta: Tensor) -> Adapter:
        config = self.network.config
        return batched_adapter(self.network.layout, theta, config.shared_input, config.learnt_input)


@dataclass(frozen=True, kw_only=True)
class HyperNetworkLoss:
    """The weighted sum of weight loss and denoising loss, one term per batch.

    Args:
        network: what is trained.
        batches: the subjects, and their order.
        weight: the weight loss, with ``weight_scale`` = beta; None leaves it out.
        denoising: the denoising loss, with ``denoising_scale`` = alpha / gap; None leaves it out.
        seed: of every draw.
        device: of the network.
        processes: processes that share each batch.
    """

    network: HyperNetwork
    batches: SubjectBatches
    weight: WeightLoss | None
    weight_scale: float
    denoising: PredictedAdapterLoss | None
    denoising_scale: float
    seed: int
    device: torch.device
    processes: ProcessGroup = SINGLE

    def __call__(self, batch: int) -> Iterator[Tensor]:
        """Yield this process's part of the mean over batch ``batch``; the parts of all processes add up to it."""
        generator = generator_for(self.seed, _DRAWS, batch)
        inputs, targets = self.batches.draw(batch, generator)
        mine = inputs[self.processes.shard(len(inputs))]
        theta = self.network(self.batches.features(mine).to(self.device, torch.float32))
        loss = theta.new_zeros(())
        if self.weight is not None:
            share = len(mine) / len(inputs)
            loss = loss + share * self.weight_scale * self.weight(theta, [subject for subject, _ in mine])
        if self.denoising is not None:
            loss = loss + self.denoising_scale * self.denoising(theta, targets, generator)
        yield loss
