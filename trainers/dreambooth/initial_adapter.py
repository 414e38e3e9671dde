"""What a run starts from: a new adapter, or an earlier one to train further."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ...models.adapters.stack import Adapter, AdapterStack, WeightOf
from ...models.adapters.targets import DIFFUSION_PREFIX, TEXT_PREFIX, Target
from ...models.metadata.combine import combine_adapters
from ...models.textual_inversion.embeddings import LearnedEmbedding, TextualInversionConfig
from ..config import Method
from ..engine.rng import generator_for
from ..engine.state import Group
from ..session import TrainingSession
from .config import DreamBoothConfig

_START = 100


def initial_adapter(run: DreamBoothConfig, session: TrainingSession, weight_of: WeightOf | None) -> AdapterStack:
    """What to train, on the training device, as ordinary float32 parameters of which those that train want gradients.

    Args:
        weight_of: see :func:`initial_stack`.

    Raises:
        ValueError: the method does not fit the model, or ``start_from`` the method.
    """
    word = run.method.textual_inversion
    adapter = initial_embedding(run, word, session) if word else initial_stack(run, session, weight_of)
    for part in (*adapter.adapters, *adapter.embeddings):
        trains = part is trained_part(adapter, run.method)
        for parameter in part.parameters():
            parameter.requires_grad_(trains)
    return adapter


@contextmanager
def at_its_start(adapter: AdapterStack, run: DreamBoothConfig, session: TrainingSession) -> Iterator[None]:
    """Inside the block ``adapter`` holds what the run started from, wherever the run stands; for adapters and words,
    whose start needs no weights of the model."""
    parameters = adapter.parameters()
    now = [parameter.detach().clone() for parameter in parameters]
    _give(parameters, initial_adapter(run, session, None).parameters())
    try:
        yield
    finally:
        _give(parameters, now)


@torch.no_grad()
def _give(parameters: Sequence[nn.Parameter], values: Sequence[Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)


def trained_part(adapter: AdapterStack, method: Method) -> Adapter | LearnedEmbedding:
    """What of ``adapter`` the method trains: its word, or the last link."""
    if method.textual_inversion:
        return next(word for word in adapter.embeddings if word.token == method.textual_inversion.token)
    return adapter.adapters[-1]


def initial_embedding(run: DreamBoothConfig, config: TextualInversionConfig, session: TrainingSession) -> AdapterStack:
    """A new word, or that of ``start_from`` among what else that holds.

    Raises:
        ValueError: ``start_from`` has no such word, or it has another number of vectors.
    """
    new = LearnedEmbedding(config.token, session.text.initial_vectors(config.initializer_word, config.vectors))
    if run.start_from is None:
        return AdapterStack((), embeddings=(new.copy_to(session.memory.device),))
    before = _copied(run.start_from, session.memory.device)
    given = next((word for word in before.embeddings if word.token == config.token), None)
    if given is None or _sizes(given) != _sizes(new):
        held = (
            [part.describe() for part in (*before.adapters, *before.embeddings)]
            if given is None
            else [given.describe()]
        )
        raise ValueError(
            f"start_from is {', '.join(held)}; the method makes {new.describe()}. Give token and vectors as they were, "
            "or train without start_from: Apply Adapter puts an adapter on the model and clip to train on top of it"
        )
    return before


def _sizes(word: LearnedEmbedding) -> dict[str, tuple[int, ...]]:
    return {key: tuple(vectors.shape) for key, vectors in word.vectors.items()}


def _copied(adapter: AdapterStack, device: torch.device) -> AdapterStack:
    chain, words = ((part.copy_to(device) for part in parts) for parts in (adapter.adapters, adapter.embeddings))
    return AdapterStack(tuple(chain), adapter.metadata, tuple(words))


def initial_stack(run: DreamBoothConfig, session: TrainingSession, weight_of: WeightOf | None) -> AdapterStack:
    """The chain to train, on the training device; its last link is the one trained.

    Args:
        weight_of: for a new link whose start depends on the model's weights; without it only the sizes are right.

    Raises:
        ValueError: the rank does not fit, or ``start_from`` is of another kind than the method makes.
    """
    method, targets = run.method, run.targets(session.model.shapes)
    if run.start_from is None:
        link = new_link(method, targets, run.seed, weight_of)
        new = AdapterStack((link.copy_to(session.memory.device),), session.model.metadata)
        return new if run.on_top_of is None else combine_adapters(_copied(run.on_top_of, session.memory.device), new)
    before = _copied(run.start_from, session.memory.device)
    if not before.adapters:
        raise ValueError(
            "start_from holds words only, the method trains layers; use Apply Adapter on model and clip instead, train "
            "on those without start_from, and join both with Combine Adapters"
        )
    wanted = Adapter.create(method.family, targets, method.config, generator_for(0))
    _check_same_kind(before.adapters[-1], wanted, run.hollow is not None)
    return before


def new_link(method: Method, targets: Sequence[Target], seed: int, weight_of: WeightOf | None = None) -> Adapter:
    """The method's adapters as a run with this seed starts them."""
    return Adapter.create(method.family, targets, method.config, generator_for(seed, _START), weight_of)


def weights_of(session: TrainingSession, alive: Callable[[], None]) -> WeightOf:
    """Layer name -> its weight ``[out, in]`` in float32, on the bench's device; ``alive`` is called with each."""
    like = torch.empty(0, device=session.memory.device)

    def weight_of(name: str) -> Tensor:
        alive()
        with session.model.access_weight(session.model.layers[name], like) as (weight, _):
            return weight.to(torch.float32, copy=True).flatten(1)

    return weight_of


def parameter_groups(part: Adapter | LearnedEmbedding, method: Method) -> list[Group]:
    """Parameters by learning rate."""
    if isinstance(part, LearnedEmbedding):
        return [Group(part.parameters(), method.learning_rate)]
    groups = []
    for prefix, rate in ((DIFFUSION_PREFIX, method.learning_rate), (TEXT_PREFIX, method.text_encoder_lr)):
        adapters = [adapter for name, adapter in part.layers.items() if name.startswith(prefix)]
        if adapters:
            groups.append(Group([p for adapter in adapters for p in adapter.parameters()], rate))
    return groups


def _check_same_kind(given: Adapter, wanted: Adapter, hollow: bool) -> None:
    """``start_from`` can go on under the method only if both have the same family, layers and sizes."""
    if _kind(given) != _kind(wanted):
        raise ValueError(
            f"start_from is {given.describe()}; the method makes {wanted.describe()}. "
            "Choose that family's method with the settings it was made with, targets and text_encoder too, "
            f"{'give the fraction of Hollowed Net that it was trained with, ' if hollow else ''}"
            "or train without start_from"
        )


def _kind(link: Adapter) -> Any:
    sizes = {name: [tuple(p.shape) for p in adapter.parameters()] for name, adapter in link.layers.items()}
    return link.family, link.settings(), sizes
