"""How files keep the adapters of each family: one codec per family, by the family's name.

A family under :mod:`..adapters` is its mathematics; the names and shapes of its tensors in a file, and the validation
of an untrusted file, are here. Two kinds of codec exist: :data:`LAYER_CODECS` for families whose layers are
tensors with names of their own, and :data:`PACKED_CODECS` for those that a file keeps as one vector with a
:class:`~..adapters.parameter_layout.ParameterLayout`.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Protocol

from pydantic import Field
from torch import Tensor

from ..adapters import AdapterLayer, Full, LiDB, LoRA, PaRa
from ..adapters.lidb.random_bases import check_basis_sizes
from ..validation import Header, NumberLists, error_context, validated

Shape = tuple[int, ...]


class LayerCodec(Protocol):
    """The form in which a file keeps one layer of a family."""

    @property
    def tensor_names(self) -> tuple[str, ...]:
        """The names of a layer's tensors, which follow the layer's name and a dot."""

    def encode(self, layer: AdapterLayer, weight_shape: Shape) -> dict[str, Tensor]:
        """Return the tensors that a file keeps for ``layer`` on a weight of ``weight_shape``."""

    def decode(self, tensors: Mapping[str, Tensor], weight_shape: Shape) -> AdapterLayer:
        """Return the layer that :meth:`encode` gave ``tensors`` for, bit for bit.

        Raises:
            ValueError: the tensors do not fit each other or a weight of ``weight_shape``.
        """

    def weight_shape(self, tensors: Mapping[str, Tensor]) -> Shape:
        """Return the shape of the layer's weight as far as its tensors determine it."""


class LoRACodec:
    """LoRA as stock loaders read it: a convolution's factors are convolutions themselves.

    ``lora_up.weight [out, r]`` and ``lora_down.weight [r, in]``, or ``[out, r, 1, 1]`` and ``[r, in, kh, kw]``, and
    ``alpha []``.
    """

    tensor_names = LoRA.tensor_names

    def encode(self, layer: LoRA, weight_shape: Shape) -> dict[str, Tensor]:
        """Return up, down and alpha; for a 4-dimensional ``weight_shape`` as kernels."""
        tensors = layer.to_tensors()
        if len(weight_shape) == 4:
            up, down, _ = self.tensor_names
            tensors[up] = tensors[up][:, :, None, None]
            tensors[down] = tensors[down].unflatten(1, weight_shape[1:])
        return tensors

    def decode(self, tensors: Mapping[str, Tensor], weight_shape: Shape) -> LoRA:
        """Return the LoRA of up, down and alpha.

        Raises:
            ValueError: they are no two matrices and a number, or not for a weight of ``weight_shape``.
        """
        up, down, alpha = (tensors[name] for name in self.tensor_names)
        if min(up.ndim, down.ndim) < 2 or alpha.numel() != 1:
            raise ValueError(
                f"holds LoRA factors {tuple(up.shape)} and {tuple(down.shape)} with alpha {tuple(alpha.shape)}; "
                "expected two matrices and a number"
            )
        layer = LoRA(up.flatten(1), down.flatten(1), alpha.item())
        check_matrix(layer.matrix_shape, weight_shape)
        return layer

    def weight_shape(self, tensors: Mapping[str, Tensor]) -> Shape:
        """Return ``(out, in)`` or ``(out, in, kh, kw)``."""
        return len(tensors["lora_up.weight"]), *tensors["lora_down.weight"].shape[1:]


class PaRaCodec:
    """PaRa: the ``basis [out, r]``, which fits a weight of any width."""

    tensor_names = PaRa.tensor_names

    def encode(self, layer: PaRa, weight_shape: Shape) -> dict[str, Tensor]:
        """Return the basis; ``weight_shape`` does not matter."""
        return layer.to_tensors()

    def decode(self, tensors: Mapping[str, Tensor], weight_shape: Shape) -> PaRa:
        """Return the PaRa of the basis.

        Raises:
            ValueError: the basis is no matrix of fewer columns than rows, or has other rows than the weight.
        """
        basis = tensors["basis"]
        if basis.ndim != 2 or not 0 < basis.shape[1] < basis.shape[0]:
            raise ValueError(f"holds a basis of shape {tuple(basis.shape)}, not of out x rank with a rank below out")
        layer = PaRa(basis, math.prod(weight_shape[1:]))
        check_matrix(layer.matrix_shape, weight_shape)
        return layer

    def weight_shape(self, tensors: Mapping[str, Tensor]) -> Shape:
        """Return ``(out, 1)``: the basis does not tell the width."""
        return len(tensors["basis"]), 1


class FullCodec:
    """The full difference ``diff`` in the weight's own shape, as stock loaders take it."""

    tensor_names = Full.tensor_names

    def encode(self, layer: Full, weight_shape: Shape) -> dict[str, Tensor]:
        """Return the difference in ``weight_shape``."""
        return {"diff": layer.diff.detach().reshape(weight_shape)}

    def decode(self, tensors: Mapping[str, Tensor], weight_shape: Shape) -> Full:
        """Return the full change of the difference.

        Raises:
            ValueError: the difference is not for a weight of ``weight_shape``.
        """
        if tensors["diff"].ndim < 2:
            raise ValueError(f"holds a difference of shape {tuple(tensors['diff'].shape)}, not of a matrix")
        layer = Full(tensors["diff"].flatten(1))
        check_matrix(layer.matrix_shape, weight_shape)
        return layer

    def weight_shape(self, tensors: Mapping[str, Tensor]) -> Shape:
        """Return the difference's own shape."""
        return tuple(tensors["diff"].shape)


class PackedCodec(Protocol):
    """Validation of a layout, the header of a packed adapter, for one family."""

    def check(self, constants: Mapping[str, Any], shapes: Iterable[tuple[Shape, Sequence[Shape]]]) -> None:
        """Check that layers can be made of the layout, before memory is taken for them.

        Args:
            constants: of the layout, see :meth:`~..adapters.base.AdapterLayer.constants_of`.
            shapes: of each layer's weight, and of its tensors in the order of the family's ``tensor_names``.

        Raises:
            ValueError: no layers can be made, or the constants are not the family's.
        """


class LiDBConstants(Header):
    """The constants of a LiDB adapter.

    Args:
        basis_seed: seed of the random bases.
        probes: checksums of the bases: name of the basis -> some of its values.
    """

    basis_seed: Annotated[int, Field(ge=0, lt=2**64)]
    probes: NumberLists


class LiDBCodec:
    """LiDB: two matrices per layer, and the seed and checksums of the bases that all layers share."""

    def check(self, constants: Mapping[str, Any], shapes: Iterable[tuple[Shape, Sequence[Shape]]]) -> None:
        """Check the constants, the factors' shapes and the sizes of the bases.

        Args:
            constants: of :class:`LiDBConstants`.
            shapes: of each layer's weight, and of ``a_train`` and ``b_train``.

        Raises:
            ValueError: a layer has no two matrices, the constants are not LiDB's, or the bases are too large, see
                :func:`~..adapters.lidb.random_bases.check_basis_sizes`.
        """
        with error_context("has constants of LiDB that "):
            validated(LiDBConstants, constants)
        used = set()
        for weight_shape, (a_train, b_train) in shapes:
            if len(a_train) != 2 or len(b_train) != 2:
                raise ValueError(f"holds LiDB factors of the shapes {a_train} and {b_train}; expected two matrices")
            used |= {("out", weight_shape[0], a_train[0]), ("in", math.prod(weight_shape[1:]), b_train[-1])}
        check_basis_sizes((size, columns) for _, size, columns in used)


LAYER_CODECS: dict[str, LayerCodec] = {LoRA.family: LoRACodec(), PaRa.family: PaRaCodec(), Full.family: FullCodec()}
"""Family name -> how a file keeps one of its layers under the layer's name."""

PACKED_CODECS: dict[str, PackedCodec] = {LiDB.family: LiDBCodec()}
"""Family name -> the checks of its layout, for families that a file keeps as one vector."""


def check_matrix(matrix: tuple[int, int], weight_shape: Shape) -> None:
    """Check that an adapter for ``matrix = (out, in)`` fits a weight of ``weight_shape``.

    Raises:
        ValueError: it does not; both sides are named.
    """
    expected = (weight_shape[0], math.prod(weight_shape[1:]))
    if matrix != expected:
        raise ValueError(f"is for a matrix of {matrix[0]} x {matrix[1]}, not of {expected[0]} x {expected[1]}")
