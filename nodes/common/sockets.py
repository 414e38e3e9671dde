"""The pack's socket types, and the menu category of its nodes."""

from comfy_api.latest import io

Adapter = io.Custom("HYPERBOOTH_ADAPTER")
Bank = io.Custom("HYPERBOOTH_BANK")
Hollow = io.Custom("HYPERBOOTH_HOLLOW")
HyperNetwork = io.Custom("HYPERBOOTH_HYPERNETWORK")
Method = io.Custom("HYPERBOOTH_METHOD")
Options = io.Custom("HYPERBOOTH_OPTIONS")
Subject = io.Custom("HYPERBOOTH_SUBJECT")

CATEGORY = "HyperBooth"


def seed(tooltip: str) -> io.Int.Input:
    """Return a seed input that stays fixed after a run: a changing seed would train again at every queueing."""
    keep = io.ControlAfterGenerate.fixed
    return io.Int.Input("seed", default=0, min=0, max=2**64 - 1, control_after_generate=keep, tooltip=tooltip)
