"""The central block spans that a Hollowed Net may remove from each of ComfyUI's networks."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from comfy.ldm.flux.model import Flux
from comfy.ldm.modules.diffusionmodules.mmdit import MMDiT
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.ldm.pixart.pixartms import PixArtMS
from torch import nn

from ....models.hollowed_net.network import HollowedNetwork, Span

BLOCK_LISTS: dict[type[nn.Module], tuple[tuple[str, tuple[int | str, ...]], ...]] = {
    Flux: (("double_blocks", ("img", "txt")), ("single_blocks", (0,))),
    MMDiT: (("joint_blocks", (0, 1)),),
    PixArtMS: (("blocks", (0,)),),
}
"""Transformer class -> its block lists in execution order, each with the arguments that carry the block's state."""


@dataclass(frozen=True)
class RemovedBlocks:
    """One set of blocks that can be removed from a network.

    Args:
        hollow: the network without the removed blocks.
        fraction: the removed blocks' share of the network's parameters, in (0, 1).
    """

    hollow: HollowedNetwork
    fraction: float

    @property
    def name(self) -> str:
        """Return the removed blocks in words, such as ``input blocks 3 to 5, the middle block``."""
        return self.hollow.name


def removable_blocks(network: nn.Module) -> list[RemovedBlocks]:
    """List every legal set of removed blocks, in ascending order of its fraction; the outermost blocks always stay.

    Raises:
        ValueError: the class of the network is not supported, or it has no block between its outermost ones.
    """
    choices = sorted((_measured(network, hollow) for hollow in _hollowed(network)), key=lambda blocks: blocks.fraction)
    if not choices:
        raise ValueError("model: its network has no blocks between its outermost ones; train it without hollow")
    return choices


def choose_removed_blocks(network: nn.Module, fraction: float) -> RemovedBlocks:
    """Return the set whose share of the parameters is nearest to ``fraction``, the smaller of two equally near ones.

    Raises:
        ValueError: see :func:`removable_blocks`.
    """
    return min(removable_blocks(network), key=lambda blocks: abs(blocks.fraction - fraction))


def _hollowed(network: nn.Module) -> Iterator[HollowedNetwork]:
    if isinstance(network, UNetModel):
        yield from _hollowed_unets(network)
        return
    lists = next((lists for kind, lists in BLOCK_LISTS.items() if isinstance(network, kind)), None)
    if lists is None:
        known = ", ".join(kind.__name__ for kind in (UNetModel, *BLOCK_LISTS))
        raise ValueError(
            f"model: its network is a {type(network).__name__}, which cannot be hollowed; supported are {known} and "
            "their subclasses. Train it without hollow"
        )
    yield from _hollowed_transformers(network, lists)


def _hollowed_unets(network: Any) -> Iterator[HollowedNetwork]:
    """Remove spans symmetric about the middle block: skips then connect blocks that both stay, or both are removed."""
    count = len(network.input_blocks)
    for depth in range(1, count + 1):
        inputs, outputs = network.input_blocks[depth:], network.output_blocks[: count - depth]
        middle = [] if network.middle_block is None else [network.middle_block]
        layers = [layer for block in (*inputs, *middle, *outputs) for layer in block]
        if not layers:
            continue
        parts = ["the middle block"] if middle else []
        if inputs:
            parts = [
                _range_in_words("input block", depth, count),
                *parts,
                _range_in_words("output block", 0, count - depth),
            ]
        yield HollowedNetwork([Span(layers)], ", ".join(parts))


def _hollowed_transformers(
    network: nn.Module, lists: Sequence[tuple[str, tuple[int | str, ...]]]
) -> Iterator[HollowedNetwork]:  # fmt: skip
    """Remove central runs of all blocks in execution order; a run across two lists becomes two spans."""
    blocks = [(name, index) for name, _ in lists for index in range(len(getattr(network, name)))]
    for size in range(1, len(blocks) - 1):
        start = (len(blocks) - size + 1) // 2
        removed = blocks[start : start + size]
        spans, parts = [], []
        for name, streams in lists:
            indices = [index for where, index in removed if where == name]
            if indices:
                first, end = indices[0], indices[-1] + 1
                spans.append(Span(list(getattr(network, name))[first:end], streams, residual=True))
                parts.append(_range_in_words(name.replace("_", " ").removesuffix("s"), first, end))
        yield HollowedNetwork(spans, ", ".join(parts))


def _range_in_words(kind: str, start: int, stop: int) -> str:
    return f"{kind} {start}" if stop - start == 1 else f"{kind}s {start} to {stop - 1}"


def _measured(network: nn.Module, hollow: HollowedNetwork) -> RemovedBlocks:
    total = sum(parameter.numel() for parameter in network.parameters())
    return RemovedBlocks(hollow, sum(parameter.numel() for parameter in hollow.parameters()) / total)
