"""Define oracles: small networks trained on the generator's ground truth to read identity or scene from an image."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..scene.attributes import Table

WIDTHS = (32, 64, 128)
QUERIES = 8
MARKS = 32
FINE = 6
"""Layers of the trunk before its last downsampling, after which landmarks are located."""


class Residual(nn.Module):
    """Compute ``x + f(x)`` with two normalized convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.f = nn.Sequential(
            nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.f(x)


class Readout(nn.Module):
    """Map features [batch, positions, width] to [batch, outputs of `table`] by attention pooling and the mean."""

    def __init__(self, table: Table, width: int, hidden: int) -> None:
        super().__init__()
        self.where = nn.Linear(width, QUERIES)
        self.read = nn.Sequential(nn.Linear((QUERIES + 1) * width, hidden), nn.ReLU(), nn.Linear(hidden, count(table)))

    def forward(self, x: Tensor) -> Tensor:
        attention = self.where(x).softmax(1)
        seen = torch.einsum("bpk,bpc->bkc", attention, x).flatten(1)
        return self.read(torch.cat([seen, x.mean(1)], 1))


class Landmarks(nn.Module):
    """Map features [batch, width, side, side] to [batch, outputs of `table`] by the positions of MARKS landmarks.

    A landmark is the mean position of a softmax over the map (Sun et al. 2018, Integral Human Pose Regression), with
    subpixel accuracy, since attributes of shape are distances.
    """

    def __init__(self, table: Table, width: int, hidden: int) -> None:
        super().__init__()
        self.where = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, MARKS, 1))
        self.read = nn.Sequential(nn.Linear(2 * MARKS, hidden), nn.ReLU(), nn.Linear(hidden, count(table)))

    def forward(self, x: Tensor) -> Tensor:
        marks = self.where(x).flatten(2).softmax(2)
        return self.read((marks[:, :, None] * grid(x.shape[-1]).flatten(1)).sum(3).flatten(1))


def count(table: Table) -> int:
    """Return the number of outputs for all attributes."""
    return sum(len(a.values) or 1 for a in table)


def grid(side: int) -> Tensor:
    """Return x and y of every position in [-1, 1], [2, side, side]."""
    line = torch.linspace(-1, 1, side)
    return torch.stack([line.expand(side, side), line[:, None].expand(side, side)])


class Oracle(nn.Module):
    """Predict each attribute of `table` from images [batch, 3, 64, 64] in [0, 1].

    A categorical attribute takes as many outputs as it has values (logits), a continuous one takes one.
    """

    def __init__(self, table: Table) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(5, WIDTHS[0], 5, stride=2, padding=2)]
        for width, narrower in zip(WIDTHS, (WIDTHS[0], *WIDTHS), strict=False):
            if width != narrower:
                layers.append(nn.Conv2d(narrower, width, 3, stride=2, padding=1))
            layers += [Residual(width), Residual(width)]
        self.trunk = nn.Sequential(*layers, nn.BatchNorm2d(WIDTHS[-1]), nn.ReLU())
        self.read = Readout(table, WIDTHS[-1], 256)
        self.marks = Landmarks(table, WIDTHS[1], 192)

    def forward(self, images: Tensor) -> Tensor:
        """Return the outputs of all attributes, [batch, outputs]."""
        positions = grid(images.shape[-1]).expand(len(images), -1, -1, -1)
        fine = self.trunk[:FINE](torch.cat([images * 2 - 1, positions], 1))
        return self.read(self.trunk[FINE:](fine).flatten(2).transpose(1, 2)) + self.marks(fine)


def parts(table: Table, outputs: Tensor) -> Mapping[str, Tensor]:
    """Split [batch, outputs] into attribute -> its outputs."""
    sizes = [len(a.values) or 1 for a in table]
    return dict(zip(table.names(), outputs.split(sizes, -1), strict=True))


def reading_loss(table: Table, outputs: Tensor, truth: Tensor, seen: Tensor) -> Tensor:
    """Return cross entropy of categorical and squared error of continuous attributes, where the image shows them.

    `truth` and `seen` are [batch, attributes]. The squared error has weight 30, since continuous attributes take
    longest to learn.
    """
    read, total = parts(table, outputs), outputs.new_zeros(())
    for number, attribute in enumerate(table):
        got, true = read[attribute.name], truth[:, number]
        categorical = bool(attribute.values)
        loss = F.cross_entropy(got, true.long(), reduction="none") if categorical else 30 * (got[:, 0] - true) ** 2
        total = total + (loss * seen[:, number]).sum() / len(outputs)
    return total / len(table)
