"""The initial adapter of a run: a new one, or an earlier one to train further."""

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

_INITIALIZATION = 100
"""Number of the random stream of an adapter's initialization."""


def initial_adapter(
    config: DreamBoothConfig, session: TrainingSession, weight_of: WeightOf | None = None
) -> AdapterStack:
    """Return the adapter stack to train, as float32 parameters on the training device.

    Only the parameters of the trained part require gradients.

    Args:
        config: of the run.
        session: gives the layers, or the initial vectors of a learned embedding.
        weight_of: see :func:`initial_stack`.

    Raises:
        ValueError: the method does not fit the model, or ``start_from`` does not fit the method.
    """
    embedding = config.method.textual_inversion
    stack = initial_embedding(config, embedding, session) if embedding else initial_stack(config, session, weight_of)
    for part in (*stack.adapters, *stack.embeddings):
        trains = part is trained_part(stack, config.method)
        for parameter in part.parameters():
            parameter.requires_grad_(trains)
    return stack


@contextmanager
def at_initial_values(stack: AdapterStack, config: DreamBoothConfig, session: TrainingSession) -> Iterator[None]:
    """Set the parameters of ``stack`` to their initial values inside the block, then back.

    Only for stacks whose initialization needs no weights of the model.

    Args:
        stack: being trained, at any step.
        config: of the run.
        session: see :func:`initial_adapter`.
    """
    parameters = stack.parameters()
    current = [parameter.detach().clone() for parameter in parameters]
    _copy_values(initial_adapter(config, session).parameters(), parameters)
    try:
        yield
    finally:
        _copy_values(current, parameters)


@torch.no_grad()
def _copy_values(values: Sequence[Tensor], parameters: Sequence[nn.Parameter]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)


def trained_part(stack: AdapterStack, method: Method) -> Adapter | LearnedEmbedding:
    """Return the part of ``stack`` that the method trains: its learned embedding, or the last adapter."""
    if method.textual_inversion:
        return next(embedding for embedding in stack.embeddings if embedding.token == method.textual_inversion.token)
    return stack.adapters[-1]


def initial_embedding(
    config: DreamBoothConfig, embedding: TextualInversionConfig, session: TrainingSession
) -> AdapterStack:
    """Return a stack with a new learned embedding, or ``start_from`` with its own.

    Args:
        config: of the run.
        embedding: token, initializer word and number of vectors.
        session: gives the initial vectors.

    Raises:
        ValueError: ``start_from`` has no embedding of that token, or one of another number of vectors.
    """
    vectors = session.text.initial_vectors(embedding.initializer_word, embedding.vectors)
    new = LearnedEmbedding(embedding.token, vectors)
    if config.start_from is None:
        return AdapterStack((), embeddings=(new.copy_to(session.memory.device),))
    before = _copy_to(config.start_from, session.memory.device)
    given = next((other for other in before.embeddings if other.token == embedding.token), None)
    if given is None or _vector_shapes(given) != _vector_shapes(new):
        held = (*before.adapters, *before.embeddings) if given is None else (given,)
        raise ValueError(
            f"start_from is {', '.join(part.describe() for part in held)}; the method makes {new.describe()}. Give "
            "token and vectors as they were, or train without start_from: Apply Adapter puts an adapter on the model "
            "and clip to train on top of it"
        )
    return before


def _vector_shapes(embedding: LearnedEmbedding) -> dict[str, tuple[int, ...]]:
    return {key: tuple(vectors.shape) for key, vectors in embedding.vectors.items()}


def _copy_to(stack: AdapterStack, device: torch.device) -> AdapterStack:
    adapters, embeddings = (
        tuple(part.copy_to(device) for part in parts) for parts in (stack.adapters, stack.embeddings)
    )
    return AdapterStack(adapters, stack.metadata, embeddings)


def initial_stack(config: DreamBoothConfig, session: TrainingSession, weight_of: WeightOf | None) -> AdapterStack:
    """Return the adapter stack to train, on the training device; its last adapter is the one trained.

    Args:
        config: of the run.
        session: gives the layers.
        weight_of: layer name -> weight, for a new adapter that is initialized from the model's weights; without it
            only the shapes are right.

    Raises:
        ValueError: the rank does not fit, or ``start_from`` is of another kind than the method makes.
    """
    method, targets = config.method, config.targets(session.model.shapes)
    if config.start_from is None:
        adapter = new_adapter(method, targets, config.seed, weight_of)
        new = AdapterStack((adapter.copy_to(session.memory.device),), session.model.metadata)
        if config.on_top_of is None:
            return new
        return combine_adapters(_copy_to(config.on_top_of, session.memory.device), new)
    before = _copy_to(config.start_from, session.memory.device)
    if not before.adapters:
        raise ValueError(
            "start_from holds learned embeddings only, the method trains layers; use Apply Adapter on model and clip "
            "instead, train on those without start_from, and join both with Combine Adapters"
        )
    wanted = Adapter.create(method.family, targets, method.config, generator_for(0))
    _check_same_kind(before.adapters[-1], wanted, hollow=config.hollow is not None)
    return before


def new_adapter(
    method: Method, targets: Sequence[Target], seed: int, weight_of: WeightOf | None = None
) -> Adapter:  # fmt: skip
    """Return the method's adapter as it is initialized under this seed.

    Args:
        method: family and settings.
        targets: the layers.
        seed: of the initialization.
        weight_of: see :func:`initial_stack`.
    """
    return Adapter.create(method.family, targets, method.config, generator_for(seed, _INITIALIZATION), weight_of)


def weights_of(session: TrainingSession, on_access: Callable[[], None]) -> WeightOf:
    """Return the function layer name -> weight ``[out, in]`` in float32, on the session's device.

    Args:
        session: gives the layers.
        on_access: called before each weight, for the progress.
    """
    like = torch.empty(0, device=session.memory.device)

    def weight_of(name: str) -> Tensor:
        on_access()
        with session.model.access_weight(session.model.layers[name], like) as (weight, _):
            return weight.to(torch.float32, copy=True).flatten(1)

    return weight_of


def parameter_groups(part: Adapter | LearnedEmbedding, method: Method) -> list[Group]:
    """Return the trained parameters, grouped by learning rate."""
    if isinstance(part, LearnedEmbedding):
        return [Group(part.parameters(), method.learning_rate)]
    groups = []
    for prefix, rate in ((DIFFUSION_PREFIX, method.learning_rate), (TEXT_PREFIX, method.text_encoder_lr)):
        layers = [layer for name, layer in part.layers.items() if name.startswith(prefix)]
        if layers:
            groups.append(Group([p for layer in layers for p in layer.parameters()], rate))
    return groups


def _check_same_kind(given: Adapter, wanted: Adapter, *, hollow: bool) -> None:
    """Require that ``start_from`` has the family, layers and shapes that the method makes."""
    if _kind(given) != _kind(wanted):
        raise ValueError(
            f"start_from is {given.describe()}; the method makes {wanted.describe()}. "
            "Choose that family's method with the settings it was made with, targets and text_encoder too, "
            f"{'give the fraction of Hollowed Net that it was trained with, ' if hollow else ''}"
            "or train without start_from"
        )


def _kind(adapter: Adapter) -> Any:
    shapes = {name: [tuple(p.shape) for p in layer.parameters()] for name, layer in adapter.layers.items()}
    return adapter.family, adapter.settings(), shapes
