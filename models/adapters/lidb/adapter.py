"""LiDB, the lightweight DreamBooth of HyperDreamBooth (Ruiz et al. 2023, arXiv 2307.06949, section 4.1)."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..base import AdapterLayer
from ..weight_update import AddLowRank
from .random_bases import TOLERANCE, check_sizes, checksum, random_basis


@dataclass(frozen=True)
class LiDBConfig:
    """Settings of LiDB; a layer too small for them takes what it holds, ``min(a, out)``, ``min(b, in)``,
    ``min(rank, a, b)``.

    Args:
        rank: r, 1 in the paper.
        a: width of the space on the output's side, 100 in the paper.
        b: width of the space on the input's side, 50 in the paper.
        basis_seed: of the frozen bases; adapters of different seeds share nothing.
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

    A_aux ``[out, a]`` has orthonormal columns, B_aux ``[b, in]`` orthonormal rows, both frozen and the same for all
    layers of that size, so that ``||dW||_F = ||A_train B_train||_F``.

    Args:
        a_train: ``[..., a, r]``, zero at the start, so that training starts from the unchanged model.
        b_train: ``[..., r, b]``, random at the start: both zero would have no gradient for ever.
        matrix: ``(out, in)``.
        basis_seed: see :class:`LiDBConfig`.
    """

    family = "lidb"
    starts_as_identity = True
    adds = True
    packed = True
    tensor_names = ("a_train", "b_train")

    def __init__(self, a_train: Tensor, b_train: Tensor, matrix: tuple[int, int], basis_seed: int):
        super().__init__()
        rows, columns = matrix
        if a_train.shape[-1] != b_train.shape[-2] or a_train.shape[-2] > rows or b_train.shape[-1] > columns:
            raise ValueError(
                f"holds LiDB factors {tuple(a_train.shape)} and {tuple(b_train.shape)}, which fit neither each other "
                f"nor a layer of {rows} x {columns}"
            )
        self.a_train, self.b_train = nn.Parameter(a_train), nn.Parameter(b_train)
        self._matrix, self.basis_seed = (rows, columns), basis_seed
        self.a_aux = random_basis("out", basis_seed, rows, a_train.shape[-2], a_train.device)
        self.b_aux = random_basis("in", basis_seed, columns, b_train.shape[-1], b_train.device)

    @classmethod
    def create(cls, shape: tuple[int, int], config: LiDBConfig, generator: torch.Generator) -> "LiDB":
        """``b_train`` uniform in +-1/sqrt(b), as LoRA's ``down`` in the space of its own; ``a_train`` zero."""
        a, b = min(config.a, shape[0]), min(config.b, shape[1])
        rank = min(config.rank, a, b)
        b_train = (torch.rand(rank, b, generator=generator) * 2 - 1) / math.sqrt(b)
        return cls(torch.zeros(a, rank), b_train, shape, config.basis_seed)

    @property
    def matrix(self) -> tuple[int, int]:
        return self._matrix

    def step(self) -> AddLowRank:
        """``(A_aux A_train, B_train B_aux)``: tiny products, so that a token costs what it does with LoRA. Those of
        several subjects are one product, with the basis they share on the right."""
        several = self.a_train.ndim > 2
        up = (self.a_train.mT.contiguous() @ self.a_aux.mT).mT if several else self.a_aux @ self.a_train
        return AddLowRank(up, self.b_train @ self.b_aux.mT)

    def to_tensors(self) -> dict[str, Tensor]:
        return {"a_train": self.a_train.detach(), "b_train": self.b_train.detach()}

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> "LiDB":
        return LiDB(tensors["a_train"], tensors["b_train"], self._matrix, self.basis_seed)

    @classmethod
    def from_file(
        cls, tensors: Mapping[str, Tensor], shape: tuple[int, ...], facts: Mapping[str, Any]
    ) -> "LiDB":  # fmt: skip
        """With the seed of ``facts``."""
        a_train, b_train, seed = tensors["a_train"], tensors["b_train"], facts["basis_seed"]
        if a_train.ndim != 2 or b_train.ndim != 2 or type(seed) is not int or not 0 <= seed < 2**64:
            raise ValueError(
                f"holds LiDB factors {tuple(a_train.shape)} and {tuple(b_train.shape)} in bases of seed {seed!r:.40}; "
                "expected two matrices and a whole number from 0 to 2^64 - 1"
            )
        return cls(a_train, b_train, (shape[0], math.prod(shape[1:])), seed)

    @classmethod
    def link_facts(cls, adapters: Iterable["LiDB"]) -> dict[str, Any]:
        """The seed, and some numbers of every basis in use."""
        adapters = list(adapters)
        used = sorted({use for adapter in adapters for use in adapter._bases()})
        seeds = {adapter.basis_seed for adapter in adapters}
        if len(seeds) != 1:
            raise ValueError(f"a link of LiDB has one basis seed, not {sorted(seeds)}")
        (seed,) = seeds
        found = {f"{role} {size} {columns}": checksum(role, seed, size, columns) for role, size, columns in used}
        return {"basis_seed": seed, "probes": found}

    @classmethod
    def check_facts(cls, facts: Mapping[str, Any], adapters: Iterable["LiDB"]) -> None:
        """The bases made here are those that the file was written with.

        Raises:
            ValueError: they are not; both sides' numbers are named.
        """
        adapters = list(adapters)
        expected = cls.link_facts(adapters)["probes"]
        if facts["probes"].keys() != expected.keys():
            raise ValueError(f"has probes of {len(facts['probes'])} bases, but uses {len(expected)}; save it again")
        for name, ours in expected.items():
            theirs = facts["probes"][name]
            if len(theirs) != len(ours) or any(abs(a - b) > TOLERANCE for a, b in zip(ours, theirs, strict=True)):
                raise ValueError(
                    f"was trained in other bases than seed {facts['basis_seed']} gives here: the basis {name} has "
                    f"{theirs!r:.80} in the file, {ours} here; applied, it would be another subject"
                )

    @classmethod
    def check_shapes(cls, shapes: Iterable[tuple[tuple[int, ...], Sequence[tuple[int, ...]]]]) -> None:
        """The bases can be had, see :func:`.bases.check_sizes`."""
        used = set()
        for shape, (a_train, b_train) in shapes:
            used |= {("out", shape[0], a_train[0]), ("in", math.prod(shape[1:]), b_train[-1])}
        check_sizes((size, columns) for _, size, columns in used)

    def _bases(self) -> list[tuple[str, int, int]]:
        rows, columns = self._matrix
        return [("out", rows, self.a_train.shape[-2]), ("in", columns, self.b_train.shape[-1])]

    def settings(self) -> dict[str, float]:
        return {
            "rank": self.a_train.shape[-1],
            "a": self.a_train.shape[-2],
            "b": self.b_train.shape[-1],
            "basis seed": self.basis_seed,
        }
