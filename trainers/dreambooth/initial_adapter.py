"""What a run starts from: a new adapter, or an earlier one to train further."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ...models.adapters.stack import AdapterSet, Link, WeightOf
from ...models.adapters.targets import DIFFUSION_PREFIX, TEXT_PREFIX, Target
from ...models.metadata.combine import combined
from ...models.textual_inversion.embeddings import TextualInversionConfig, Word
from ..config import Method
from ..engine.rng import generator_for
from ..engine.state import Group
from ..session import Workbench
from .config import Run

_START = 100


def starting_point(run: Run, bench: Workbench, weight_of: WeightOf | None) -> AdapterSet:
    """What to train, on the training device, as ordinary float32 parameters of which those that train want gradients.

    Args:
        weight_of: see :func:`starting_chain`.

    Raises:
        ValueError: the method does not fit the model, or ``start_from`` the method.
    """
    word = run.method.word
    adapter = starting_word(run, word, bench) if word else starting_chain(run, bench, weight_of)
    for part in (*adapter.chain, *adapter.words):
        trains = part is trained_part(adapter, run.method)
        for parameter in part.parameters():
            parameter.requires_grad_(trains)
    return adapter


@contextmanager
def at_its_start(adapter: AdapterSet, run: Run, bench: Workbench) -> Iterator[None]:
    """Inside the block ``adapter`` holds what the run started from, wherever the run stands; for adapters and words,
    whose start needs no weights of the model."""
    parameters = adapter.parameters()
    now = [parameter.detach().clone() for parameter in parameters]
    _give(parameters, starting_point(run, bench, None).parameters())
    try:
        yield
    finally:
        _give(parameters, now)


@torch.no_grad()
def _give(parameters: Sequence[nn.Parameter], values: Sequence[Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)


def trained_part(adapter: AdapterSet, method: Method) -> Link | Word:
    """What of ``adapter`` the method trains: its word, or the last link."""
    if method.word:
        return next(word for word in adapter.words if word.token == method.word.token)
    return adapter.chain[-1]


def starting_word(run: Run, config: TextualInversionConfig, bench: Workbench) -> AdapterSet:
    """A new word, or that of ``start_from`` among what else that holds.

    Raises:
        ValueError: ``start_from`` has no such word, or it has another number of vectors.
    """
    new = Word(config.token, bench.first_vectors(config.initializer_word, config.vectors))
    if run.start_from is None:
        return AdapterSet((), words=(new.copy_to(bench.device),))
    before = _copied(run.start_from, bench.device)
    given = next((word for word in before.words if word.token == config.token), None)
    if given is None or _sizes(given) != _sizes(new):
        held = [part.describe() for part in (*before.chain, *before.words)] if given is None else [given.describe()]
        raise ValueError(
            f"start_from is {', '.join(held)}; the method makes {new.describe()}. Give token and vectors as they were, "
            "or train without start_from: Apply Adapter puts an adapter on the model and clip to train on top of it"
        )
    return before


def _sizes(word: Word) -> dict[str, tuple[int, ...]]:
    return {key: tuple(vectors.shape) for key, vectors in word.vectors.items()}


def _copied(adapter: AdapterSet, device: torch.device) -> AdapterSet:
    chain, words = ((part.copy_to(device) for part in parts) for parts in (adapter.chain, adapter.words))
    return AdapterSet(tuple(chain), adapter.facts, tuple(words))


def starting_chain(run: Run, bench: Workbench, weight_of: WeightOf | None) -> AdapterSet:
    """The chain to train, on the training device; its last link is the one trained.

    Args:
        weight_of: for a new link whose start depends on the model's weights; without it only the sizes are right.

    Raises:
        ValueError: the rank does not fit, or ``start_from`` is of another kind than the method makes.
    """
    method, targets = run.method, run.targets(bench.shapes)
    if run.start_from is None:
        link = new_link(method, targets, run.seed, weight_of)
        new = AdapterSet((link.copy_to(bench.device),), bench.facts)
        return new if run.on_top_of is None else combined(_copied(run.on_top_of, bench.device), new)
    before = _copied(run.start_from, bench.device)
    if not before.chain:
        raise ValueError(
            "start_from holds words only, the method trains layers; use Apply Adapter on model and clip instead, train "
            "on those without start_from, and join both with Combine Adapters"
        )
    wanted = Link.create(method.family, targets, method.config, generator_for(0))
    _check_same_kind(before.chain[-1], wanted, run.hollow is not None)
    return before


def new_link(method: Method, targets: Sequence[Target], seed: int, weight_of: WeightOf | None = None) -> Link:
    """The method's adapters as a run with this seed starts them."""
    return Link.create(method.family, targets, method.config, generator_for(seed, _START), weight_of)


def weights_of(bench: Workbench, alive: Callable[[], None]) -> WeightOf:
    """Layer name -> its weight ``[out, in]`` in float32, on the bench's device; ``alive`` is called with each."""
    like = torch.empty(0, device=bench.device)

    def weight_of(name: str) -> Tensor:
        alive()
        with bench.borrow(bench.layers[name], like) as (weight, _):
            return weight.to(torch.float32, copy=True).flatten(1)

    return weight_of


def groups_of(part: Link | Word, method: Method) -> list[Group]:
    """Parameters by learning rate."""
    if isinstance(part, Word):
        return [Group(part.parameters(), method.learning_rate)]
    groups = []
    for prefix, rate in ((DIFFUSION_PREFIX, method.learning_rate), (TEXT_PREFIX, method.text_encoder_lr)):
        adapters = [adapter for name, adapter in part.adapters.items() if name.startswith(prefix)]
        if adapters:
            groups.append(Group([p for adapter in adapters for p in adapter.parameters()], rate))
    return groups


def _check_same_kind(given: Link, wanted: Link, hollow: bool) -> None:
    """``start_from`` can go on under the method only if both have the same family, layers and sizes."""
    if _kind(given) != _kind(wanted):
        raise ValueError(
            f"start_from is {given.describe()}; the method makes {wanted.describe()}. "
            "Choose that family's method with the settings it was made with, targets and text_encoder too, "
            f"{'give the fraction of Hollowed Net that it was trained with, ' if hollow else ''}"
            "or train without start_from"
        )


def _kind(link: Link) -> Any:
    sizes = {name: [tuple(p.shape) for p in adapter.parameters()] for name, adapter in link.adapters.items()}
    return link.family, link.settings(), sizes
