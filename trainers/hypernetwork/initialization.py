"""A hypernetwork's start in closed form: what can be foretold of a person linearly, before any step of training.

Trained from nothing, a hypernetwork first learns the mean person and may stay there (small_world.md). So theta is
written in the principal directions of the bank, ``theta = mean + scale (c directions^T)``, and the coordinates c are
regressed on pooled tokens, see :mod:`..models.linear_guess`: a minute's work, and an honest account of how much it
foretells. The decoder then learns what is left.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ...models.hypernetwork.linear_init import fit_linear
from ...models.hypernetwork.network import HyperNetwork, pooled
from ...models.subject_bank.bank import Bank
from ..engine.distributed import SINGLE, ProcessGroup
from ..engine.rng import generator_for
from .config import HyperNetworkTrainingConfig
from .feature_cache import Picture

_START = 100
MOST_PEOPLE = 2048
"""That the start is worked out from: their numbers in float64 take 500 MB for SD1.5."""


def initial_network(
    run: HyperNetworkTrainingConfig,
    features: Callable[[Sequence[Picture]], Tensor],
    training: Sequence[int],
    alive: Callable[[], None],
    processes: ProcessGroup = SINGLE,
) -> tuple[HyperNetwork, str]:
    """What a run trains, and a line on how it starts.

    Only the leader works it out: another machine's eigenvectors may have another sign.
    """
    if run.start_from is None:
        bank, width = run.bank, features(run.inputs[:1]).shape[-1]
        network = HyperNetwork.create(run.config, bank.layout, width, generator_for(run.seed, _START))
        line = begin(network, bank, training, run.inputs_of, features, alive) if processes.is_main else ""
        processes.broadcast_([*network.state_dict().values()])
        return network, line
    network = run.start_from.network.copy(run.config.refinements, run.config.learnt_input)
    return network, f"start: a hypernetwork of {run.start_from.metadata.get('steps', 0)} steps"


def begin(
    network: HyperNetwork, bank: Bank, people: Sequence[int], inputs_of: Callable[[Sequence[int]], list[int]],
    features: Callable[[Sequence[Picture]], Tensor], alive: Callable[[], None],
) -> str:  # fmt: skip
    """Give ``network`` the mean and scale of ``people``, and its linear guess; a line for the report."""
    people = people[:MOST_PEOPLE]
    theta = bank.theta(people)
    mean, scale = theta.mean(0), theta.std(0, unbiased=False)
    scale[scale < 1e-6 * scale.max()] = 0
    network.set_normalization(mean, scale)
    if not network.config.directions:
        return "start: the mean person"
    scale = network.scale.cpu()
    z = torch.where(scale > 0, (theta - mean) / scale, 0)
    counts = inputs_of(people)
    pictures = [(person, (people[person], p)) for person, count in enumerate(counts) for p in range(count)]
    x = torch.cat([pooled(features([picture]).float()) for _, picture in pictures])
    found = fit_linear(x, z, [person for person, _ in pictures], rank=network.config.directions, on_progress=alive)
    network.set_linear_init(found.weight, found.bias, found.directions)
    return (
        f"start: {found.directions.shape[1]} directions hold {found.captured_variance:.0%} of how {len(people)} people "
        f"differ; a linear guess from their pictures foretells {found.explained_variance:.1%}, of people left out"
    )
