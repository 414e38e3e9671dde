"""Adapters of several subjects side by side: one forward of a batch, each sample with an adapter of its own."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..adapters import AdapterLayer
from .parameter_layout import ParameterLayout
from .stack import Adapter


def batched_adapter(
    layout: ParameterLayout, theta: Tensor, share_down: bool, train_shared_down: bool = False
) -> Adapter:
    """New adapters that hold ``theta [subjects, N]``, see :meth:`.ParameterLayout.link`.

    Args:
        share_down: the subjects differ in each layer's first tensor, its output side, alone. The first subject's
            others then serve all of them, without a dimension of subjects.
        train_shared_down: these want a gradient, too.
    """
    link = layout.unpack(theta)
    if not share_down:
        return link
    adapters = {name: _sharing(adapter, train_shared_down) for name, adapter in link.layers.items()}
    return Adapter(link.family, adapters, link.targets)


def _sharing(adapter: AdapterLayer, learned: bool) -> AdapterLayer:
    own, tensors = adapter.tensor_names[0], adapter.to_tensors()
    with torch.inference_mode(False):
        shared = adapter.with_tensors({name: value if name == own else value[0] for name, value in tensors.items()})
    for name, parameter in shared.named_parameters():
        parameter.requires_grad_(learned or name == own)
    return shared


def stack_subjects(links: Sequence[Adapter]) -> Adapter:
    """Links of one kind as one whose numbers have a leading dimension of subjects.

    Raises:
        ValueError: there is none, or they differ in family, layers or sizes.
    """
    if not links:
        raise ValueError("no adapters to put side by side")
    first, *others = links
    for other in others:
        if (other.family, other.targets, other.settings()) != (first.family, first.targets, first.settings()):
            raise ValueError(f"adapters side by side must be alike: {first.describe()}, and {other.describe()}")
    adapters = {name: _stacked([link.layers[name] for link in links]) for name in first.layers}
    return Adapter(first.family, adapters, first.targets)


def unstack_subjects(link: Adapter) -> list[Adapter]:
    """What :func:`stack_subjects` put together, one link for each subject."""
    counts = {len(next(adapter.parameters())) for adapter in link.layers.values()}
    if len(counts) != 1:
        raise ValueError(f"the link's layers hold {sorted(counts)} subjects; all hold the same number")
    return [
        Adapter(link.family, {name: _one(adapter, i) for name, adapter in link.layers.items()}, link.targets)
        for i in range(counts.pop())
    ]


def _stacked(adapters: Sequence[AdapterLayer]) -> AdapterLayer:
    tensors = [adapter.to_tensors() for adapter in adapters]
    return adapters[0].with_tensors({name: _joined([t[name] for t in tensors]) for name in adapters[0].tensor_names})


def _joined(values: Sequence[Tensor]) -> Tensor:
    """Settings that a family keeps as a single number are the same for all."""
    return torch.stack(list(values)) if values[0].ndim else values[0]


def _one(adapter: AdapterLayer, subject: int) -> AdapterLayer:
    tensors = adapter.to_tensors()
    return adapter.with_tensors({k: value[subject].clone() if value.ndim else value for k, value in tensors.items()})
