"""A network without its deep middle (Cho et al. 2024, Hollowed Net, arXiv 2411.01179), for training.

Blocks that run one after another are taken out. What they hand on is either what a run of the whole network left on
record, or is worked out without gradients, from wherever their weights are:

    U-Net:        h_out = R                    R: what the last block taken out gave
    transformer:  h_out = R + (h_in - h_in')   its residual stream goes past the blocks, so that gradients do; h_in' is
                                               what went in when R came out

With nothing changed before the blocks ``h_in = h_in'``, and the output is that of the whole network, bit for bit.
The blocks themselves are where they were: names, and the adapters made for them, are those of the whole network.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..backbone.forward_patch import Forward, replaced_forward

State = tuple[Tensor, ...]
"""What goes from block to block: one stream, or those of picture and text."""
Activation = tuple[Tensor, ...]
"""Of one span: what came out, and for a stream that goes past it also what went in."""


@dataclass(frozen=True)
class Span:
    """Blocks that run one after another and are taken out together.

    Args:
        blocks: in the order in which they run.
        streams: which arguments of a block are its state, by position or name; it returns the new state in that order.
        past: the state goes past the blocks too (a transformer's residual stream); a U-Net's comes by its skips.
    """

    blocks: Sequence[nn.Module]
    streams: tuple[int | str, ...] = (0,)
    past: bool = False

    def state(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> State:
        """The streams among a block's arguments."""
        return tuple(args[s] if isinstance(s, int) else kwargs[s] for s in self.streams)

    def returned(self, state: State) -> Any:
        """The state as a block returns it."""
        return state if len(self.streams) > 1 else state[0]


@dataclass(frozen=True)
class HollowedNetwork:
    """What is taken out of a network.

    Args:
        spans: one after another; more than one where blocks of different kinds follow each other.
        name: the blocks, in words.
    """

    spans: Sequence[Span]
    name: str = ""

    @property
    def blocks(self) -> list[nn.Module]:
        """All blocks that are taken out."""
        return [block for span in self.spans for block in span.blocks]

    def parameters(self) -> list[nn.Parameter]:
        """Their parameters."""
        return [parameter for block in self.blocks for parameter in block.parameters()]

    @contextmanager
    def recorded(self, records: Sequence[Activation]) -> Iterator[None]:
        """Inside the block, the network runs without the blocks, on what :meth:`recording` gave for this input."""
        with ExitStack() as stack:
            for span, record in zip(self.spans, records, strict=True):
                for block in span.blocks[:-1]:
                    stack.enter_context(replaced_forward(block, _passing(span)))
                stack.enter_context(replaced_forward(span.blocks[-1], _giving(span, record)))
            yield

    @contextmanager
    def without_gradients(self) -> Iterator[None]:
        """Inside the block, the blocks run, and nothing of it is kept for backward."""
        with ExitStack() as stack:
            for span in self.spans:
                _run_aside(span, stack)
            yield

    @contextmanager
    def recording(self) -> Iterator[list[Activation]]:
        """Inside the block, the network runs as it is; afterwards the list holds a record of each span's last run."""
        seen: list[dict[str, State]] = [{} for _ in self.spans]
        records: list[Activation] = []
        with ExitStack() as stack:
            for span, notes in zip(self.spans, seen, strict=True):
                first, last = span.blocks[0], span.blocks[-1]
                stack.enter_context(replaced_forward(last, _noting_output(last.forward, notes)))
                if span.past:
                    stack.enter_context(replaced_forward(first, _noting_input(first.forward, span, notes)))
            yield records
        records += [notes["out"] + notes.get("in", ()) for notes in seen]


def _copies(state: Any) -> State:
    """On their own: blocks that come later may write over what they are given."""
    return tuple(t.detach().clone() for t in (state if isinstance(state, tuple) else (state,)))


def _noting_output(forward: Forward, notes: dict[str, State]) -> Forward:
    def noting(*args: Any, **kwargs: Any) -> Any:
        out = forward(*args, **kwargs)
        notes["out"] = _copies(out)
        return out

    return noting


def _noting_input(forward: Forward, span: Span, notes: dict[str, State]) -> Forward:
    def noting(*args: Any, **kwargs: Any) -> Any:
        notes["in"] = _copies(span.state(args, kwargs))
        return forward(*args, **kwargs)

    return noting


def _passing(span: Span) -> Forward:
    """A block that does nothing. Where nothing goes past, it hands on no channel at all: none would be looked at."""

    def passing(*args: Any, **kwargs: Any) -> Any:
        state = span.state(args, kwargs)
        return span.returned(state if span.past else tuple(h[:, :0] for h in state))

    return passing


def _giving(span: Span, record: Activation) -> Forward:
    """The last block: gives what is on record, and what differs from it in the stream that goes past."""
    out, into = record[: len(span.streams)], record[len(span.streams) :]

    def giving(*args: Any, **kwargs: Any) -> Any:
        if not span.past:
            return span.returned(out)
        state = span.state(args, kwargs)
        return span.returned(_carried(out, state, into))

    return giving


def _carried(out: State, state: State, into: State) -> State:
    """A record may be longer than the stream: others in its batch had longer texts."""
    ends = [h.shape[1] for h in state]
    return tuple(r[:, :end] + (h - b[:, :end]) for r, h, b, end in zip(out, state, into, ends, strict=True))


def _run_aside(span: Span, stack: ExitStack) -> None:
    """Each block runs without gradients, on copies; after the last one the stream that went past is added."""
    entered: list[State] = []

    def aside(forward: Forward, first: bool, last: bool) -> Forward:
        def run(*args: Any, **kwargs: Any) -> Any:
            state = span.state(args, kwargs)
            if first and span.past:
                entered[:] = [state]
            with torch.no_grad():
                out = forward(*map(_copy, args), **{name: _copy(value) for name, value in kwargs.items()})
            if not (last and span.past):
                return out
            state = entered.pop()
            into = tuple(h.detach() for h in state)
            return span.returned(_carried(out if isinstance(out, tuple) else (out,), state, into))

        return run

    final = len(span.blocks) - 1
    for number, block in enumerate(span.blocks):
        stack.enter_context(replaced_forward(block, aside(block.forward, number == 0, number == final)))


def _copy(value: Any) -> Any:
    """As it lies in memory: what was expanded stays so, since another layout can mean another kernel and other bits."""
    if not isinstance(value, Tensor):
        return value
    once = value[tuple(slice(1) if step == 0 else slice(None) for step in value.stride())]
    return (
        torch.empty_strided(once.shape, once.stride(), dtype=once.dtype, device=once.device)
        .copy_(once)
        .expand_as(value)
    )
