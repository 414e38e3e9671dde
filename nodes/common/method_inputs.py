"""Inputs and outputs that the methods share."""

from comfy_api.latest import io

from ...models.adapters.targets import RULES
from ...trainers.config import Method
from . import sockets

CATEGORY = f"{sockets.CATEGORY}/methods"


def rank(default: int, tooltip: str) -> io.Int.Input:
    return io.Int.Input("rank", default=default, min=1, max=4096, tooltip=tooltip)


def targets(default: str, tooltip: str) -> io.Combo.Input:
    return io.Combo.Input("targets", options=list(RULES), default=default, tooltip=tooltip)


def learning_rate(default: float, tooltip: str, name: str = "learning_rate") -> io.Float.Input:
    return io.Float.Input(name, default=default, min=0.0, max=1.0, step=1e-6, round=False, tooltip=tooltip)


def text_encoder(method: Method) -> tuple[io.Boolean.Input, io.Float.Input]:
    """The switch and the rate."""
    switch = io.Boolean.Input(
        "text_encoder",
        default=method.text_encoder,
        tooltip="Also train the text encoder; connect clip to Train Adapter.",
    )
    return switch, learning_rate(
        method.text_encoder_lr, "Learning rate of the text encoder's part.", "text_encoder_lr"
    )  # fmt: skip


def output() -> io.Output:
    return sockets.Method.Output(display_name="method", tooltip="For Train Adapter.")
