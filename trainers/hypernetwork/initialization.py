"""The closed-form initialization of a hypernetwork: the linear regression of subjects on their images.

Trained from nothing, a hypernetwork first learns the mean subject and may stay there. Theta is
therefore written in the principal directions of the bank, ``theta = mean + scale (c directions^T)``, and the
coordinates c are regressed on pooled tokens, see :mod:`...models.hypernetwork.linear_init`. That takes a minute and
reports the explained variance on subjects left out. The decoder then learns the residual.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ...models.hypernetwork.linear_init import fit_linear
from ...models.hypernetwork.network import HyperNetwork, pooled
from ..engine.distributed import SINGLE, ProcessGroup
from ..engine.rng import generator_for
from .config import HyperNetworkTrainingConfig
from .feature_cache import ImageIndex

_START = 100
MOST_SUBJECTS = 2048
"""Subjects that the regression takes at most: their parameters in float64 take 500 MB for SD1.5."""

Features = Callable[[Sequence[ImageIndex]], Tensor]
"""Indices of images -> their tokens ``[n, tokens, width]``."""


def initial_network(
    config: HyperNetworkTrainingConfig,
    features: Features,
    *,
    on_progress: Callable[[], None],
    processes: ProcessGroup = SINGLE,
) -> tuple[HyperNetwork, str]:
    """Return the network that a run starts from, and a line for the report.

    The main process alone solves the regression: another machine's eigenvectors may have another sign.

    Args:
        config: of the run.
        features: of the bank's input images.
        on_progress: called now and then; thousands of subjects take a minute.
        processes: all of them receive the same network.
    """
    if config.start_from is not None:
        start = config.start_from
        network = start.network.copy(config.network.refinements, config.network.learnt_input)
        return network, f"start: a hypernetwork of {start.metadata.get('steps', 0)} steps"
    width = features(config.inputs[:1]).shape[-1]
    network = HyperNetwork.create(config.network, config.bank.layout, width, generator_for(config.seed, _START))
    line = initialize(network, config, features, on_progress) if processes.is_main else ""
    processes.broadcast_([*network.state_dict().values()])
    return network, line


def initialize(
    network: HyperNetwork, config: HyperNetworkTrainingConfig, features: Features, on_progress: Callable[[], None]
) -> str:
    """Give ``network`` mean, scale and linear regression of the training subjects; return a line for the report.

    Args:
        network: changed in place.
        config: names the bank and the training subjects.
        features: of the bank's input images.
        on_progress: called now and then.
    """
    subjects = config.split[0][:MOST_SUBJECTS]
    theta = config.bank.theta(subjects)
    mean, scale = theta.mean(0), theta.std(0, unbiased=False)
    scale[scale < 1e-6 * scale.max()] = 0
    network.set_normalization(mean, scale)
    if not network.config.directions:
        return "start: the mean person"
    scale = network.scale.cpu()
    z = torch.where(scale > 0, (theta - mean) / scale, 0)
    counts = config.input_counts(subjects)
    images = [(row, (subjects[row], image)) for row, count in enumerate(counts) for image in range(count)]
    x = torch.cat([pooled(features([image]).float()) for _, image in images])
    found = fit_linear(x, z, [row for row, _ in images], rank=network.config.directions, on_progress=on_progress)
    network.set_linear_init(found.weight, found.bias, found.directions)
    return (
        f"start: {found.directions.shape[1]} directions capture {found.captured_variance:.0%} of the variance of "
        f"{len(subjects)} people; a linear regression on their images explains {found.explained_variance:.1%} of it, "
        "on people left out"
    )
