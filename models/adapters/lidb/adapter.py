"""LiDB, the lightweight DreamBooth of HyperDreamBooth (Ruiz et al. 2023, arXiv 2307.06949, section 4.1)."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..base import AdapterLayer
from ..weight_update import AddLowRank
from .random_bases import CHECKSUM_TOLERANCE, basis_checksum, random_basis


@dataclass(frozen=True, kw_only=True)
class LiDBConfig:
    """Settings of LiDB; a small layer clips them to ``min(a, out)``, ``min(b, in)`` and ``min(rank, a, b)``.

    Args:
        rank: r, 1 in the paper.
        a: width of the random space on the output side, 100 in the paper.
        b: width of the random space on the input side, 50 in the paper.
        basis_seed: seed of the frozen bases; adapters of different seeds have nothing in common.
    """

    rank: int = 1
    a: int = 100
    b: int = 50
    basis_seed: int = 0

    def __post_init__(self) -> None:
        for name in ("rank", "a", "b"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; give a whole number of at least 1")
        if not 0 <= self.basis_seed < 2**64:
            raise ValueError(f"basis_seed is {self.basis_seed}; give a whole number from 0 to 2^64 - 1")


class LiDB(AdapterLayer):
    """``W' = W + A_aux A_train B_train B_aux`` (eq. 3 of the paper): a LoRA within a random space of a x b.

    A_aux ``[out, a]`` has orthonormal columns and B_aux ``[b, in]`` orthonormal rows, which gives
    ``||dW||_F = ||A_train B_train||_F``. Both are frozen and the same for all layers of that size.

    Args:
        a_train: ``[..., a, r]``; initially zero, which makes training start from the unchanged model.
        b_train: ``[..., r, b]``; initially random, because with both zero no gradient would ever arise.
        matrix_shape: ``(out, in)``.
        basis_seed: see :class:`LiDBConfig`.

    Raises:
        ValueError: the factors do not fit each other or the matrix.
    """

    family = "lidb"
    is_additive = True
    has_parameter_layout = True
    tensor_names = ("a_train", "b_train")

    def __init__(self, a_train: Tensor, b_train: Tensor, matrix_shape: tuple[int, int], basis_seed: int):
        super().__init__()
        rows, columns = matrix_shape
        if a_train.shape[-1] != b_train.shape[-2] or a_train.shape[-2] > rows or b_train.shape[-1] > columns:
            raise ValueError(
                f"holds LiDB factors {tuple(a_train.shape)} and {tuple(b_train.shape)}, which fit neither each other "
                f"nor a layer of {rows} x {columns}"
            )
        self.a_train, self.b_train = nn.Parameter(a_train), nn.Parameter(b_train)
        self._matrix_shape, self.basis_seed = (rows, columns), basis_seed
        self.a_aux = random_basis("out", basis_seed, rows, a_train.shape[-2], a_train.device)
        self.b_aux = random_basis("in", basis_seed, columns, b_train.shape[-1], b_train.device)

    @classmethod
    def create(cls, shape: tuple[int, int], config: LiDBConfig, generator: torch.Generator) -> "LiDB":
        """Draw ``b_train`` uniformly from +-1/sqrt(b), as LoRA's ``down`` of width b, and set ``a_train`` to zero."""
        a, b = min(config.a, shape[0]), min(config.b, shape[1])
        rank = min(config.rank, a, b)
        b_train = (torch.rand(rank, b, generator=generator) * 2 - 1) / math.sqrt(b)
        return cls(torch.zeros(a, rank), b_train, shape, config.basis_seed)

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """``(out, in)``."""
        return self._matrix_shape

    def weight_update(self) -> AddLowRank:
        """Return ``(A_aux A_train, B_train B_aux)``: tiny products, after which a token costs what it does with LoRA.

        The products of several subjects are one, with the shared basis on the right.
        """
        per_sample = self.a_train.ndim > 2
        up = (self.a_train.mT.contiguous() @ self.a_aux.mT).mT if per_sample else self.a_aux @ self.a_train
        return AddLowRank(up, self.b_train @ self.b_aux.mT)

    def to_tensors(self) -> dict[str, Tensor]:
        """Return the two trained factors."""
        return {"a_train": self.a_train.detach(), "b_train": self.b_train.detach()}

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> "LiDB":
        """Return the layer of other trained factors in the same bases."""
        return LiDB(tensors["a_train"], tensors["b_train"], self._matrix_shape, self.basis_seed)

    @classmethod
    def from_tensors(
        cls, tensors: Mapping[str, Tensor], matrix_shape: tuple[int, int], constants: Mapping[str, Any]
    ) -> "LiDB":  # fmt: skip
        """Return the layer in the bases of the seed of ``constants``."""
        return cls(tensors["a_train"], tensors["b_train"], matrix_shape, constants["basis_seed"])

    @classmethod
    def constants_of(cls, layers: Iterable["LiDB"]) -> dict[str, Any]:
        """Return the seed, and a checksum of every basis in use.

        Raises:
            ValueError: the layers have different seeds.
        """
        layers = list(layers)
        used = sorted({use for layer in layers for use in layer._bases()})
        seeds = {layer.basis_seed for layer in layers}
        if len(seeds) != 1:
            raise ValueError(f"an adapter of LiDB has one basis seed, not {sorted(seeds)}")
        (seed,) = seeds
        found = {f"{role} {size} {columns}": basis_checksum(role, seed, size, columns) for role, size, columns in used}
        return {"basis_seed": seed, "probes": found}

    @classmethod
    def check_constants(cls, constants: Mapping[str, Any], layers: Iterable["LiDB"]) -> None:
        """Check that the bases made here are those that ``constants`` hold the checksums of.

        Raises:
            ValueError: they are others; both checksums are named.
        """
        expected = cls.constants_of(layers)["probes"]
        if constants["probes"].keys() != expected.keys():
            raise ValueError(
                f"has checksums of {len(constants['probes'])} bases, but uses {len(expected)}; save it again"
            )
        for name, ours in expected.items():
            theirs = constants["probes"][name]
            if len(theirs) != len(ours) or any(
                abs(a - b) > CHECKSUM_TOLERANCE for a, b in zip(ours, theirs, strict=True)
            ):
                raise ValueError(
                    f"was trained in other bases than seed {constants['basis_seed']} gives here: the basis {name} has "
                    f"{theirs!r:.80} in the file, {ours} here; applied, it would be another subject"
                )

    def _bases(self) -> list[tuple[str, int, int]]:
        rows, columns = self._matrix_shape
        return [("out", rows, self.a_train.shape[-2]), ("in", columns, self.b_train.shape[-1])]

    def settings(self) -> dict[str, float]:
        """Return rank, a, b and the basis seed."""
        return {
            "rank": self.a_train.shape[-1],
            "a": self.a_train.shape[-2],
            "b": self.b_train.shape[-1],
            "basis seed": self.basis_seed,
        }
