"""Import of LoRA files of other programs, in every key format that ComfyUI's stock loader reads.

Pairs of factors become an adapter of the LoRA family, full differences of weights one of the full family.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .. import validation
from ..adapters import Full, LoRA
from ..adapters.stack import Adapter, AdapterStack
from ..adapters.targets import DIFFUSION_PREFIX, TEXT_PREFIX, Target
from ..metadata.lora_metadata import parse_lora_metadata
from .family_codecs import LAYER_CODECS
from .lora_check import is_bundled
from .lora_key_formats import DIFFERENCE, KeyTarget, split_name, swap_halves

logger = logging.getLogger("hyperbooth")

_TEXT_STEMS = ("lora_te", "lora_prior_te", "text_encoder", "text_encoders")


@dataclass(frozen=True)
class KeyNames:
    """The meaning of layer names that are not ComfyUI's own, for one base model.

    Args:
        targets: name of a layer in a key format -> the layer, or part of a layer, that it stands for.
        shapes: ComfyUI's name of a layer -> shape of its weight, for all layers that an adapter can change.
        model: architecture of the base model; empty if none is connected.
        clip: whether its text encoder is connected.
    """

    targets: Mapping[str, KeyTarget] = field(default_factory=dict)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    model: str = ""
    clip: bool = False


@dataclass(frozen=True)
class LoRAFactors:
    """One pair of factors of a file: ``up [out, r]`` and ``down [r, in]``, or the kernels of a convolution.

    Args:
        stem: the layer's name in the file.
        up: the second factor.
        down: the first factor.
        alpha: numerator of the scale ``alpha / r``.
    """

    stem: str
    up: Tensor
    down: Tensor
    alpha: float

    @property
    def matrices(self) -> tuple[Tensor, Tensor]:
        """Return ``up [out, r]`` multiplied by the scale, and ``down [r, in]``."""
        return self.up.flatten(1) * (self.alpha / len(self.down)), self.down.flatten(1)


def read_lora(file: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], names: KeyNames) -> AdapterStack:
    """Return the LoRA that a file of another program holds, then its full differences as an adapter of their own.

    Several names that stand for parts of one layer (to_q, to_k, to_v of a fused projection) become one LoRA of that
    layer: ``up`` in blocks, its rank the sum of theirs; parts with one ``down`` share it again.

    Args:
        file: name of the file, for messages.
        tensors: all tensors of the file.
        metadata: entries of other programs, see :func:`~..metadata.lora_metadata.parse_lora_metadata`.
        names: the meaning of the layers' names.

    Raises:
        ValueError: the file is not whole, its names need a model or clip, or the model lacks a layer of it.
    """
    if bundled := sorted({name.split(".")[1] for name in tensors if is_bundled(name)}):
        logger.warning(
            "%s bundles the embedding %s, which is left out; the stock Load LoRA leaves it out as well",
            file, ", ".join(bundled),
        )  # fmt: skip
    tensors = {name: tensor for name, tensor in tensors.items() if not is_bundled(name)}
    with validation.error_context(f"{file} "):
        tensors = _without_unknown(file, tensors, names)
        differences = {name: tensor for name, tensor in tensors.items() if name.endswith(DIFFERENCE)}
        factors = {name: tensor for name, tensor in tensors.items() if name not in differences}
        adapters = [_read_factors(factors, names)] if factors else []
        adapters += [_read_differences(differences, names)] if differences else []
        parsed = validation.checked_metadata(parse_lora_metadata(metadata))
        return AdapterStack(tuple(adapters), {**({"base": names.model} if names.model else {}), **parsed})


def _without_unknown(file: str, tensors: Mapping[str, Tensor], names: KeyNames) -> dict[str, Tensor]:
    """Return the tensors without those of a few layers that the connected model lacks, as the stock loaders read it.

    If half of the layers or more are unknown, the file is another model's, and all are kept for the error.
    """
    stems = {name: name.removesuffix(DIFFERENCE) if name.endswith(DIFFERENCE) else _stem(name) for name in tensors}
    distinct = dict.fromkeys(stems.values())
    unknown = {stem for stem in distinct if not _is_known(stem, names)} if names.model else set()
    if not unknown or 2 * len(unknown) >= len(distinct) or _needs_clip(unknown, names):
        return dict(tensors)
    listed = ", ".join(sorted(unknown)[:4]) + (" ..." if len(unknown) > 4 else "")
    logger.warning(
        "%s: %d of %d layers are left out, which this %s model lacks or cannot change: %s",
        file, len(unknown), len(distinct), names.model, listed,
    )  # fmt: skip
    return {name: tensor for name, tensor in tensors.items() if stems[name] not in unknown}


def _stem(name: str) -> str:
    return (split_name(name) or (name, ""))[0]


def _is_known(stem: str, names: KeyNames) -> bool:
    target = _key_target(stem, names)
    if target is None:
        return False
    connected = names.model if target.layer.startswith(DIFFUSION_PREFIX) else names.clip
    return not connected or target.layer in names.shapes


def _needs_clip(stems: Iterable[str], names: KeyNames) -> bool:
    """Return whether one of the names is a text encoder's, and none is connected."""
    return not names.clip and any(stem.startswith(_TEXT_STEMS) for stem in stems)


def _read_factors(tensors: Mapping[str, Tensor], names: KeyNames) -> Adapter:
    """Return the LoRA of all pairs of factors."""
    by_layer: dict[str, list[tuple[KeyTarget, LoRAFactors]]] = {}
    pairs = lora_factors(tensors)
    for pair, target in zip(pairs, _key_targets([pair.stem for pair in pairs], names), strict=True):
        by_layer.setdefault(target.layer, []).append((target, pair))
    layers, targets = {}, {}
    for layer, parts in by_layer.items():
        _, first = parts[0]
        shape = (len(first.up), *first.down.shape[1:])
        targets[layer] = Target(layer, _weight_shape(layer, first.stem, shape, names))
        with validation.error_context(f"cannot be used: the LoRA of {layer} "):
            layers[layer] = _lora_of(targets[layer], parts)
    return Adapter(LoRA.family, layers, targets)


def _read_differences(tensors: Mapping[str, Tensor], names: KeyNames) -> Adapter:
    """Return the full adapter of all differences of weights."""
    stems = [name.removesuffix(DIFFERENCE) for name in tensors]
    layers, targets = {}, {}
    for stem, key, (name, tensor) in zip(stems, _key_targets(stems, names), tensors.items(), strict=True):
        if key != KeyTarget(key.layer) or key.layer in targets:
            raise ValueError(f"holds {name} for a part of {key.layer} or a second time; the stock Load LoRA opens it")
        target = Target(key.layer, _weight_shape(key.layer, stem, tuple(tensor.shape), names))
        difference = validation.checked_tensor(tensor, name)
        with validation.error_context(f"cannot be used: {name} "):
            layers[target.name] = LAYER_CODECS[Full.family].decode({"diff": difference}, target.shape)
        targets[target.name] = target
    return Adapter(Full.family, layers, targets)


def _key_targets(stems: Sequence[str], names: KeyNames) -> list[KeyTarget]:
    """Return the layer, or part of a layer, that each name of the file stands for.

    Raises:
        ValueError: a name is unknown.
    """
    found = [_key_target(stem, names) for stem in stems]
    if unknown := [stem for stem, target in zip(stems, found, strict=True) if target is None]:
        raise ValueError(_why_unknown(unknown, names))
    return [target for target in found if target is not None]


def _key_target(stem: str, names: KeyNames) -> KeyTarget | None:
    """Return the meaning of a name; ComfyUI's own names count if the part of the model is not connected."""
    own = (not names.model and stem.startswith(DIFFUSION_PREFIX)) or (not names.clip and stem.startswith(TEXT_PREFIX))
    return names.targets.get(stem) or (KeyTarget(stem) if own else None)


def lora_factors(tensors: Mapping[str, Tensor]) -> list[LoRAFactors]:
    """Return the pairs of factors of a plain LoRA in any key format.

    Raises:
        ValueError: one of a pair is missing, or the two do not fit each other.
    """
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        stem, role = split_name(name) or (name, "")
        roles = found.setdefault(stem, {})
        if role in roles:
            raise ValueError(f"holds the {role} of {stem} twice, in two key formats; save it anew")
        integer = role == "alpha" and tensor.dtype in (torch.int32, torch.int64)
        roles[role] = validation.checked_tensor(tensor.float() if integer else tensor, name)
    return [_factors(stem, roles) for stem, roles in found.items()]


def _factors(stem: str, roles: Mapping[str, Tensor]) -> LoRAFactors:
    """Return the pair of one layer from its tensors by role; without an alpha the scale is 1."""
    if missing := [role for role in ("up", "down") if role not in roles]:
        raise ValueError(f"lacks the {' and '.join(missing)} of {stem}; the file is not whole")
    up, down = roles["up"], roles["down"]
    fit = min(up.ndim, down.ndim) >= 2 and up.shape[1] == len(down) and up.numel() == len(up) * len(down)
    alpha = roles.get("alpha", torch.tensor(float(len(down)) if fit else 1.0))
    if not fit or alpha.numel() != 1:
        raise ValueError(
            f"holds tensors of {stem} that do not belong together, up {tuple(up.shape)}, down {tuple(down.shape)}, "
            f"alpha {tuple(alpha.shape)}; save or copy it again"
        )
    return LoRAFactors(stem, up, down, alpha.item())


def _why_unknown(unknown: list[str], names: KeyNames) -> str:
    """Return the message for names without a meaning: what to connect, or that the architecture is another."""
    if not names.model:
        return f"has layer names of another key format ({unknown[0]}); connect model and clip, to translate them"
    text = [stem for stem in unknown if stem.startswith(_TEXT_STEMS)]
    if text and not names.clip:
        return f"holds text-encoder layers ({text[0]}); connect clip as well, to translate their names"
    return (
        f"changes {len(unknown)} layers that this {names.model} model lacks or cannot change: "
        f"{', '.join(unknown[:4])}; it was made for another architecture"
    )


def _weight_shape(layer: str, stem: str, in_file: tuple[int, ...], names: KeyNames) -> tuple[int, ...]:
    """Return the shape of the layer's weight: that of the model, or ``in_file`` if its part is not connected."""
    known = names.model if layer.startswith(DIFFUSION_PREFIX) else names.clip
    if not known:
        return in_file
    if layer not in names.shapes:
        raise ValueError(_why_unknown([stem], names))
    return names.shapes[layer]


def _lora_of(target: Target, parts: list[tuple[KeyTarget, LoRAFactors]]) -> LoRA:
    """Return the LoRA of a layer from the pairs of the layer or of its parts."""
    whole = [pair for key, pair in parts if key == KeyTarget(target.name)]
    if len(whole) > 1:
        raise ValueError(f"is there under several names, {', '.join(pair.stem for pair in whole)}")
    if len(parts) == 1 and whole:
        values = (whole[0].up, whole[0].down, torch.tensor(whole[0].alpha))
        codec = LAYER_CODECS[LoRA.family]
        return codec.decode(dict(zip(codec.tensor_names, values, strict=True)), target.shape)
    return _fused(target.matrix_shape, parts)


def _fused(matrix: tuple[int, int], parts: list[tuple[KeyTarget, LoRAFactors]]) -> LoRA:
    """Return one LoRA of scale 1 for a weight of shape ``matrix`` from the LoRAs of the layer's parts."""
    ups: list[Tensor] = []
    downs: list[Tensor] = []
    for target, pair in parts:
        up, down = pair.matrices
        if target.swapped:
            up = swap_halves(up)
        first, count = target.rows or (0, matrix[0])
        if (len(up), down.shape[1]) != (count, matrix[1]):
            raise ValueError(f"has a part {pair.stem} of {len(up)} x {down.shape[1]}, not of {count} x {matrix[1]}")
        same = next((i for i, other in enumerate(downs) if torch.equal(other, down)), len(downs))
        if same == len(downs):
            ups.append(torch.zeros(matrix[0], len(down)))
            downs.append(down)
        ups[same][first : first + count] += up
    return LoRA(torch.cat(ups, 1), torch.cat(downs), alpha=sum(len(down) for down in downs))
