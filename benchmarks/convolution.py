"""Compare convolutions of SD1.5's depths on the CPU: oneDNN and the matrix product of ``models/backbone/im2col.py``.

Forward and backward to the input, float32, batch 1, in one process; the fastest of several calls.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from common import harness
from common.harness import Column, Row
from torch import nn

from tools.comfy_harness import import_pack

SHAPES = [
    (1280, 1280, 4), (2560, 1280, 4), (1280, 1280, 8), (2560, 1280, 8), (1280, 1280, 12), (1280, 1280, 16),
    (640, 640, 16), (320, 320, 32),
]  # fmt: skip
"""Channels in, channels out, positions per side."""
CALLS = 6

COLUMNS = (
    Column("oneDNN ms", "library_milliseconds", lambda value: f"{value:.1f}"),
    Column("product ms", "product_milliseconds", lambda value: f"{value:.1f}"),
    Column("product / oneDNN", "product_times_library", harness.times),
    Column("taken", "taken"),
)


def fastest(call: Callable[[], object]) -> float:
    """Return the milliseconds of the fastest of :data:`CALLS` calls after one to warm up."""
    call()
    seconds = []
    for _ in range(CALLS):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds) * 1e3


@torch.inference_mode()
def measure(channels_in: int, channels_out: int, side: int) -> Row:
    """Measure forward and backward of one 3 x 3 convolution by both implementations."""
    from hyperbooth.models.backbone import im2col

    layer = nn.Conv2d(channels_in, channels_out, 3, padding=1)
    x, gradient = torch.randn(1, channels_in, side, side), torch.randn(1, channels_out, side, side)

    def library() -> None:
        layer(x)
        torch.ops.aten.convolution_backward(
            gradient, x, layer.weight, None, [1, 1], [1, 1], [1, 1], False, [0], 1, (True, False, False)
        )

    def product() -> None:
        im2col.convolve(layer, x, layer.weight, layer.bias)
        im2col.input_gradient(layer, gradient, layer.weight, x.shape)

    times = fastest(library), fastest(product)
    return {
        "name": f"{channels_in} to {channels_out} at {side} x {side}",
        "library_milliseconds": times[0], "product_milliseconds": times[1],
        "product_times_library": times[1] / times[0], "taken": im2col.is_faster(layer, x),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report here too")
    parser.add_argument("--threads", type=int, default=2)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    import_pack.load_pack()
    rows = [measure(*shape) for shape in SHAPES]
    print(harness.table(rows, COLUMNS))
    paths = [harness.RESULTS / "convolution.json"] + ([chosen.json] if chosen.json else [])
    harness.write_json("convolution", harness.machine(chosen.threads), rows, *paths)


if __name__ == "__main__":
    main()
