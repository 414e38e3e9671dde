"""Where ComfyUI's networks can be hollowed: the runs of central blocks that may be taken out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from comfy.ldm.flux.model import Flux
from comfy.ldm.modules.diffusionmodules.mmdit import MMDiT
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.ldm.pixart.pixartms import PixArtMS
from torch import nn

from ....models.hollowed_net.network import HollowedNetwork, Span

LISTS: dict[type[nn.Module], tuple[tuple[str, tuple[int | str, ...]], ...]] = {
    Flux: (("double_blocks", ("img", "txt")), ("single_blocks", (0,))),
    MMDiT: (("joint_blocks", (0, 1)),),
    PixArtMS: (("blocks", (0,)),),
}
"""Transformer -> its lists of blocks in the order in which they run, with the streams that go through them."""


@dataclass(frozen=True)
class RemovedBlocks:
    """One way to hollow a network.

    Args:
        hollow: the blocks taken out.
        share: of the network's parameters that they hold.
    """

    hollow: HollowedNetwork
    share: float

    @property
    def name(self) -> str:
        return self.hollow.name


def removable_blocks(network: nn.Module) -> list[RemovedBlocks]:
    """Every legal cut, the smallest first; at least the outermost blocks stay.

    Raises:
        ValueError: nobody knows how this kind of network runs, or it has nothing between its outermost blocks.
    """
    cuts = sorted((_measured(network, hollow) for hollow in _cuts(network)), key=lambda cut: cut.share)
    if not cuts:
        raise ValueError("model: its network has nothing between its outermost blocks; train it without hollow")
    return cuts


def choose_removed_blocks(network: nn.Module, fraction: float) -> RemovedBlocks:
    """The cut whose share of the parameters comes nearest to ``fraction``; of two, the smaller."""
    return min(removable_blocks(network), key=lambda cut: abs(cut.share - fraction))


def _cuts(network: nn.Module) -> Iterator[HollowedNetwork]:
    if isinstance(network, UNetModel):
        yield from _unet_cuts(network)
        return
    lists = next((lists for kind, lists in LISTS.items() if isinstance(network, kind)), None)
    if lists is None:
        known = ", ".join(kind.__name__ for kind in (UNetModel, *LISTS))
        raise ValueError(
            f"model: its network is a {type(network).__name__}, which cannot be hollowed; those that can are {known} "
            "and what is built on them. Train it without hollow"
        )
    yield from _transformer_cuts(network, lists)


def _unet_cuts(network: Any) -> Iterator[HollowedNetwork]:
    """Symmetric about the middle block: every output block that stays finds the skip of an input block that stays."""
    count = len(network.input_blocks)
    for depth in range(1, count + 1):
        inputs, outputs = network.input_blocks[depth:], network.output_blocks[: count - depth]
        middle = [] if network.middle_block is None else [network.middle_block]
        layers = [layer for block in (*inputs, *middle, *outputs) for layer in block]
        if not layers:
            continue
        around = ["the middle block"] if middle else []
        if inputs:
            around = [
                _run_of("input block", depth, count), *around, _run_of("output block", 0, count - depth),
            ]  # fmt: skip
        yield HollowedNetwork([Span(layers)], ", ".join(around))


def _transformer_cuts(
    network: nn.Module, lists: Sequence[tuple[str, tuple[int | str, ...]]]
) -> Iterator[HollowedNetwork]:  # fmt: skip
    """Central runs of all blocks in order; where a run goes on in another list, it is two spans."""
    places = [(name, number) for name, _ in lists for number in range(len(getattr(network, name)))]
    for size in range(1, len(places) - 1):
        start = (len(places) - size + 1) // 2
        taken = places[start : start + size]
        spans, words = [], []
        for name, streams in lists:
            numbers = [number for where, number in taken if where == name]
            if numbers:
                blocks = list(getattr(network, name))[numbers[0] : numbers[-1] + 1]
                spans.append(Span(blocks, streams, past=True))
                words.append(_run_of(name.replace("_", " ").removesuffix("s"), numbers[0], numbers[-1] + 1))
        yield HollowedNetwork(spans, ", ".join(words))


def _run_of(what: str, start: int, stop: int) -> str:
    return f"{what} {start}" if stop - start == 1 else f"{what}s {start} to {stop - 1}"


def _measured(network: nn.Module, hollow: HollowedNetwork) -> RemovedBlocks:
    total = sum(parameter.numel() for parameter in network.parameters())
    return RemovedBlocks(hollow, sum(parameter.numel() for parameter in hollow.parameters()) / total)
