"""Training of a network without its deep middle (Cho et al. 2024, Hollowed Net, arXiv 2411.01179).

Blocks that run one after another are removed. Their output is either replayed from activations that a run of the
complete network cached, or computed without gradients, on whatever device their weights are:

    U-Net:        h_out = R                    R: cached output of the last removed block
    transformer:  h_out = R + (h_in - h_in')   the residual stream bypasses the blocks, and gradients follow it; h_in'
                                               is the input that belongs to R

While nothing before the removed blocks has changed, ``h_in = h_in'``, and the output equals that of the complete
network bit for bit. The blocks stay in the module tree: layer names, and the adapters made for them, are those of the
complete network.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..backbone.forward_patch import Forward, replaced_forward

State = tuple[Tensor, ...]
"""The streams that blocks pass on: one, or an image stream and a text stream."""
Activation = tuple[Tensor, ...]
"""Activations of one span: its output streams, and with a residual stream also its input streams, in that order."""


@dataclass(frozen=True)
class Span:
    """Consecutive blocks of one kind that are removed.

    Args:
        blocks: in the order in which they run.
        streams: which arguments of a block are its state, by position or name; a block returns the new state in that
            order.
        residual: whether the state also bypasses the blocks (a transformer's residual stream). False for a U-Net, whose
            skip connections bypass them already.
    """

    blocks: Sequence[nn.Module]
    streams: tuple[int | str, ...] = (0,)
    residual: bool = False

    def state(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> State:
        """Return the streams among a block's arguments."""
        return tuple(args[s] if isinstance(s, int) else kwargs[s] for s in self.streams)

    def as_output(self, state: State) -> Any:
        """Return the state in the form in which a block returns it."""
        return state if len(self.streams) > 1 else state[0]


@dataclass(frozen=True)
class HollowedNetwork:
    """The removed blocks of a network, and the three ways to run the network: recording, replaying, without gradients.

    Args:
        spans: in the order in which they run; several where blocks of different kinds follow each other.
        name: description of the removed blocks for reports.
    """

    spans: Sequence[Span]
    name: str = ""

    @property
    def blocks(self) -> list[nn.Module]:
        """All removed blocks."""
        return [block for span in self.spans for block in span.blocks]

    def parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the removed blocks."""
        return [parameter for block in self.blocks for parameter in block.parameters()]

    @contextmanager
    def replaying(self, activations: Sequence[Activation]) -> Iterator[None]:
        """Inside the block, the network runs without the removed blocks, on cached activations.

        Args:
            activations: one per span, as :meth:`recording` gave them for the same input.
        """
        with ExitStack() as stack:
            for span, activation in zip(self.spans, activations, strict=True):
                for block in span.blocks[:-1]:
                    stack.enter_context(replaced_forward(block, _skip(span)))
                stack.enter_context(replaced_forward(span.blocks[-1], _replay(span, activation)))
            yield

    @contextmanager
    def without_gradients(self) -> Iterator[None]:
        """Inside the block, the removed blocks run under ``no_grad``, and keep nothing for backward."""
        with ExitStack() as stack:
            for span in self.spans:
                _run_without_gradients(span, stack)
            yield

    @contextmanager
    def recording(self) -> Iterator[list[Activation]]:
        """Inside the block, the complete network runs; after it, the list holds each span's activations.

        The activations are those of the last forward inside the block.
        """
        captured: list[dict[str, State]] = [{} for _ in self.spans]
        activations: list[Activation] = []
        with ExitStack() as stack:
            for span, states in zip(self.spans, captured, strict=True):
                first, last = span.blocks[0], span.blocks[-1]
                stack.enter_context(replaced_forward(last, _capture_output(last.forward, states)))
                if span.residual:
                    stack.enter_context(replaced_forward(first, _capture_input(first.forward, span, states)))
            yield activations
        activations += [states["out"] + states.get("in", ()) for states in captured]


def _copies(state: Any) -> State:
    """Return detached copies: later blocks may modify the originals in place."""
    return tuple(t.detach().clone() for t in (state if isinstance(state, tuple) else (state,)))


def _capture_output(forward: Forward, states: dict[str, State]) -> Forward:
    def capture(*args: Any, **kwargs: Any) -> Any:
        out = forward(*args, **kwargs)
        states["out"] = _copies(out)
        return out

    return capture


def _capture_input(forward: Forward, span: Span, states: dict[str, State]) -> Forward:
    def capture(*args: Any, **kwargs: Any) -> Any:
        states["in"] = _copies(span.state(args, kwargs))
        return forward(*args, **kwargs)

    return capture


def _skip(span: Span) -> Forward:
    """Return the forward of a block that computes nothing.

    Without a residual stream it passes on tensors of zero channels, since the last block of the span ignores them.
    """

    def skip(*args: Any, **kwargs: Any) -> Any:
        state = span.state(args, kwargs)
        return span.as_output(state if span.residual else tuple(h[:, :0] for h in state))

    return skip


def _replay(span: Span, activation: Activation) -> Forward:
    """Return the forward of a span's last block: the cached output, plus the change of a residual stream."""
    out, into = activation[: len(span.streams)], activation[len(span.streams) :]

    def replay(*args: Any, **kwargs: Any) -> Any:
        if not span.residual:
            return span.as_output(out)
        state = span.state(args, kwargs)
        return span.as_output(_with_residual(out, state, into))

    return replay


def _with_residual(out: State, state: State, into: State) -> State:
    """Return ``out + (state - into)`` per stream ``[B, tokens, width]``.

    Cached streams may be longer than ``state``: their batch held longer texts, and is padded.
    """
    ends = [h.shape[1] for h in state]
    return tuple(r[:, :end] + (h - b[:, :end]) for r, h, b, end in zip(out, state, into, ends, strict=True))


def _run_without_gradients(span: Span, stack: ExitStack) -> None:
    """Let each block of the span run under ``no_grad`` on copies of its arguments until ``stack`` is closed.

    The last block adds the residual stream, through which gradients flow, to its output.
    """
    entered: list[State] = []

    def _wrapped(forward: Forward, first: bool, last: bool) -> Forward:
        def run(*args: Any, **kwargs: Any) -> Any:
            state = span.state(args, kwargs)
            if first and span.residual:
                entered[:] = [state]
            with torch.no_grad():
                out = forward(*map(_copy, args), **{name: _copy(value) for name, value in kwargs.items()})
            if not (last and span.residual):
                return out
            state = entered.pop()
            into = tuple(h.detach() for h in state)
            return span.as_output(_with_residual(out if isinstance(out, tuple) else (out,), state, into))

        return run

    final = len(span.blocks) - 1
    for index, block in enumerate(span.blocks):
        stack.enter_context(replaced_forward(block, _wrapped(block.forward, index == 0, index == final)))


def _copy(value: Any) -> Any:
    """Return a copy of a tensor with its memory layout: expanded dimensions stay expanded.

    Another layout can select another kernel, whose last bits differ.
    """
    if not isinstance(value, Tensor):
        return value
    once = value[tuple(slice(1) if step == 0 else slice(None) for step in value.stride())]
    return (
        torch.empty_strided(once.shape, once.stride(), dtype=once.dtype, device=once.device)
        .copy_(once)
        .expand_as(value)
    )
