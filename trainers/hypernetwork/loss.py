"""The loss of a hypernetwork (HyperDreamBooth, arXiv 2307.06949, eq. 5), on the numbers and through the model.

``alpha ||x0_hat(x_t; theta^) - x0||^2 / gap + beta ||A^ B^ - A B||^2 / variance``: the denoising loss with the
predicted numbers on the model, and the distance of the predicted changes from those trained for the person. The paper
compares the factors themselves and leaves alpha and beta open; products instead of factors (methods.md 4) and the two
units are ours: in both, about 1 lies between the mean person and the right one.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ...models.adapters.per_sample import batched_adapter
from ...models.adapters.stack import AdapterStack
from ...models.hypernetwork.delta_distance import LayerDeltas, delta_distance
from ...models.hypernetwork.network import HyperNetwork
from ..config import TrainingOptions
from ..data.dataset import Example
from ..diffusion.noise_levels import standard_noise
from ..diffusion.objective import Draw, Objective
from ..engine.distributed import SINGLE, ProcessGroup
from ..engine.rng import generator_for
from ..session import TrainingSession
from .feature_cache import Picture

_ORDER, _DRAWS = range(2)
SCALE = 2.0**10
"""Of the loss on its way through a model that computes in float16."""


@dataclass(frozen=True)
class SubjectBatches:
    """Those trained on.

    Args:
        places: in the bank.
        counts: pictures of each, in the order of ``places``.
        inputs: of them, those from the first on that predictions are made from.
        theta: places -> their numbers ``[n, N]``.
        features: pictures -> their tokens ``[n, tokens, width]``.
        examples: pictures -> what the model is trained on.
    """

    places: Sequence[int]
    counts: Sequence[int]
    inputs: Sequence[int]
    theta: Callable[[Sequence[int]], Tensor]
    features: Callable[[Sequence[Picture]], Tensor]
    examples: Callable[[Sequence[Picture]], list[Example]]

    def batch(self, number: int, size: int, seed: int, generator: torch.Generator) -> tuple[list[Picture], ...]:
        """Pictures to look at, and pictures of the same people to denoise: another one where there are several.

        Every person comes once per round, in a new order each round.
        """
        chosen = [self._in_round(number * size + i, seed) for i in range(size)]
        seen, target = [], []
        for i in chosen:
            count = self.counts[i]
            first = int(torch.randint(self.inputs[i], (1,), generator=generator))
            other = int(torch.randint(max(1, count - 1), (1,), generator=generator))
            seen.append((self.places[i], first))
            target.append((self.places[i], (first + 1 + other) % count))
        return seen, target

    def _in_round(self, place: int, seed: int) -> int:
        people = len(self.places)
        return int(_order(people, seed, place // people)[place % people])


@lru_cache(maxsize=2)
def _order(people: int, seed: int, number: int) -> Tensor:
    """Of a round; a batch may lie in two."""
    return torch.randperm(people, generator=generator_for(seed, _ORDER, number))


@dataclass(frozen=True)
class PredictionLoss:
    """One term for each batch.

    Args:
        network: what is trained.
        people: on whom.
        bench, objective: the model, and its loss.
        options: the distributions of noise and levels.
        batch_size: people per batch.
        seed: of every draw.
        weight_loss, denoising_loss: beta and alpha; 0 leaves that one out.
        variance, gap: their units.
        pieces: a batch goes through the model in so many parts.
        processes: processes that share each batch.
    """

    network: HyperNetwork
    people: SubjectBatches
    session: TrainingSession
    objective: Objective
    options: TrainingOptions
    batch_size: int
    seed: int
    weight_loss: float
    denoising_loss: float
    variance: float
    gap: float
    pieces: int = 1
    processes: ProcessGroup = SINGLE

    def __call__(self, batch: int) -> Iterator[Tensor]:
        """The mean over batch number ``batch``; of it this process's part, which adds up to it over all."""
        generator, device = generator_for(self.seed, _DRAWS, batch), self.session.memory.device
        seen, target = self.people.batch(batch, self.batch_size, self.seed, generator)
        seen = seen[self.processes.shard(self.batch_size)]
        theta = self.network(self.people.features(seen).to(device, torch.float32))
        loss = theta.new_zeros(())
        if self.weight_loss:
            part = len(seen) / self.batch_size
            loss = loss + part * self.weight_loss * self._of_weights(theta, [person for person, _ in seen])
        if self.denoising_loss:
            loss = loss + self.denoising_loss / self.gap * self._of_pictures(theta, target, generator)
        yield loss

    def _of_weights(self, theta: Tensor, people: Sequence[int]) -> Tensor:
        split = LayerDeltas(self.network.layout)
        return delta_distance(split(theta), split(self.people.theta(people).to(theta))).mean() / self.variance

    def _of_pictures(self, theta: Tensor, pictures: Sequence[Picture], generator: torch.Generator) -> Tensor:
        """The denoising loss, whose gradient to theta is worked out at once, in parts; theta's own graph is kept.

        Drawn for the whole batch ``pictures``, so that each has the same noise whichever process has it.
        """
        whole, mine = len(pictures), self.processes.shard(len(pictures))
        examples = self.people.examples(pictures[mine])
        sigma = self.options.noise_levels.sample(self.objective.denoiser.sigmas, whole, generator)
        noise = standard_noise((whole, *examples[0].size), generator, self.options.noise_offset)
        value, gradients = 0.0, []
        for part in Draw(examples, sigma[mine], noise[mine]).micro_batches(self.pieces):
            rows = theta[part.start : part.start + len(part.examples)]
            loss, gradient = self._through_the_model(rows, part)
            value += loss / whole
            gradients.append(gradient / whole)
        along = (theta * torch.cat(gradients)).sum()
        return along - along.detach() + value

    def _through_the_model(self, theta: Tensor, draw: Draw) -> tuple[float, Tensor]:
        """Sum of the losses of the draw's samples, each with its own numbers on the model, and its gradient."""
        layout, session, config = self.network.layout, self.session, self.network.config
        link = batched_adapter(layout, theta, config.shared_input, config.learnt_input)
        scale = SCALE if session.model.half else 1.0
        with session.injected(AdapterStack((link,))):
            loss = self.objective(draw).sum()
            (scale * loss).backward()
        return loss.item(), layout.gradient(link) / scale
