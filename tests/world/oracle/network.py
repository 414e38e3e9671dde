"""Oracles: small networks that read from a picture who is in it, or in what scene; trained on the generator's truth."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..attributes import Table

WIDTHS = (32, 64, 128)


class Residual(nn.Module):
    """``x + f(x)`` of two normalised convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.f = nn.Sequential(
            nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.f(x)


class Oracle(nn.Module):
    """Picture [batch, 3, 64, 64] in [0, 1] -> what it reads of each attribute of `table`.

    A categorical attribute takes as many outputs as it has values (logits), a continuous one takes one.
    """

    def __init__(self, table: Table) -> None:
        super().__init__()
        self.table = table
        layers: list[nn.Module] = [nn.Conv2d(5, WIDTHS[0], 5, stride=2, padding=2)]
        for width, narrower in zip(WIDTHS, (WIDTHS[0], *WIDTHS), strict=False):
            if width != narrower:
                layers.append(nn.Conv2d(narrower, width, 3, stride=2, padding=1))
            layers += [Residual(width), Residual(width)]
        self.trunk = nn.Sequential(*layers, nn.BatchNorm2d(WIDTHS[-1]), nn.ReLU())
        self.where = nn.Conv2d(WIDTHS[-1], 8, 1)
        self.read = nn.Sequential(
            nn.Linear(9 * WIDTHS[-1], 256), nn.ReLU(), nn.Linear(256, sum(len(a.values) or 1 for a in table))
        )

    def forward(self, pictures: Tensor) -> Tensor:
        """[batch, outputs]."""
        size = pictures.shape[-1]
        line = torch.linspace(-1, 1, size)
        places = torch.stack([line.expand(size, size), line[:, None].expand(size, size)])
        x = self.trunk(torch.cat([pictures * 2 - 1, places.expand(len(pictures), -1, -1, -1)], 1))
        looks = self.where(x).flatten(2).softmax(-1)  # [batch, 8, places]: eight places to look at, and the whole
        seen = torch.einsum("bkp,bcp->bkc", looks, x.flatten(2)).flatten(1)
        return self.read(torch.cat([seen, x.mean((2, 3))], 1))

    def parts(self, outputs: Tensor) -> Mapping[str, Tensor]:
        """Attribute -> its outputs."""
        sizes = [len(a.values) or 1 for a in self.table]
        return dict(zip(self.table.names(), outputs.split(sizes, -1), strict=True))


def reading_loss(oracle: Oracle, pictures: Tensor, truth: Tensor, seen: Tensor) -> Tensor:
    """Cross entropy of categorical and squared error of continuous attributes, where the picture shows them."""
    parts, total = oracle.parts(oracle(pictures)), pictures.new_zeros(())
    for number, attribute in enumerate(oracle.table):
        got, true = parts[attribute.name], truth[:, number]
        categorical = bool(attribute.values)
        loss = F.cross_entropy(got, true.long(), reduction="none") if categorical else 10 * (got[:, 0] - true) ** 2
        total = total + (loss * seen[:, number]).sum() / len(pictures)
    return total / len(oracle.table)
