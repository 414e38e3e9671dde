"""Inputs and outputs that the method nodes share."""

from comfy_api.latest import io

from ...models.adapters.targets import RULES
from ...trainers.config import Method
from . import sockets

CATEGORY = f"{sockets.CATEGORY}/methods"


def rank(default: int, tooltip: str) -> io.Int.Input:
    """Return the input of a low-rank method's rank."""
    return io.Int.Input("rank", default=default, min=1, max=4096, tooltip=tooltip)


def targets(default: str, tooltip: str) -> io.Combo.Input:
    """Return the input that selects the layers by a target rule."""
    return io.Combo.Input("targets", options=list(RULES), default=default, tooltip=tooltip)


def learning_rate(default: float, tooltip: str, name: str = "learning_rate") -> io.Float.Input:
    """Return the input of a learning rate.

    Args:
        default: its default.
        tooltip: its tooltip.
        name: the input's id.
    """
    return io.Float.Input(name, default=default, min=0.0, max=1.0, step=1e-6, round=False, tooltip=tooltip)


def text_encoder(method: Method) -> tuple[io.Boolean.Input, io.Float.Input]:
    """Return the inputs of the text encoder: the switch and its learning rate, with the method's defaults."""
    switch = io.Boolean.Input(
        "text_encoder",
        default=method.text_encoder,
        tooltip="Also train the text encoder; connect clip to Train Adapter.",
    )
    return switch, learning_rate(
        method.text_encoder_lr, "Learning rate of the text encoder's part.", "text_encoder_lr"
    )  # fmt: skip


def output() -> io.Output:
    """Return the output of every method node."""
    return sockets.Method.Output(display_name="method", tooltip="For Train Adapter.")
