"""LoRA files of other programs: every spelling that ComfyUI's stock loader reads, as our LoRA; whole differences of
weights, as our full family."""

import re
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
from .lora_key_formats import DIFFERENCE, KEY_FORMATS, KOHYA, KeyTarget, swap_halves

_TEXT_STEMS = ("lora_te", "lora_prior_te", "text_encoder", "text_encoders")
_EMBEDDING = {"emb_params", "clip_l", "clip_g", "t5xxl"}
"""All that an embedding file's tensors are called."""
_OTHERS = {
    r"dora_scale|lora_magnitude_vector.*": "DoRA",
    r"hada_\w+": "LoHa",
    r"lokr_\w+": "LoKr",
    r"lora_mid\.weight": "CP-decomposed LoCon",
    r"oft_\w+": "OFT",
    r"lora_B\.bias": "biased LoRA",
    r"diff_b|set_weight|reshape_weight|[wb]_norm": "whole-weight",
}
"""End of a tensor's name -> what it belongs to, of the kinds that stock loaders know and we do not."""


@dataclass(frozen=True)
class KeyNames:
    """How to read names that are not ComfyUI's own.

    Args:
        places: a dialect's name of a layer -> where it leads.
        shapes: our name of a layer -> the shape of its weight, for every layer that an adapter can change.
        model: what kind of model the names are of; empty if none is connected.
        clip: whether its text encoder is connected too.
    """

    targets: Mapping[str, KeyTarget] = field(default_factory=dict)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    model: str = ""
    clip: bool = False


@dataclass(frozen=True)
class LoRAFactors:
    """One pair of factors of the file, as matrices unless a convolution, and the alpha of their scale."""

    stem: str
    up: Tensor
    down: Tensor
    alpha: float

    @property
    def matrices(self) -> tuple[Tensor, Tensor]:
        """``up [out, r]`` with the scale in it, and ``down [r, in]``."""
        return self.up.flatten(1) * (self.alpha / len(self.down)), self.down.flatten(1)


def check_is_lora(file: str, names: Iterable[str]) -> None:
    """The tensors' names are those of a plain LoRA; told before anything large is read.

    Raises:
        ValueError: it is something else; the message says what and which node opens it.
    """
    names = list(names)
    if not names:
        raise ValueError(f"{file} holds no tensors; save or copy it again")
    if _EMBEDDING.issuperset(names):
        raise ValueError(
            f"{file} is an embedding file, a word for prompts, and no LoRA; move it to models/embeddings and write "
            f"embedding:{file.removesuffix('.safetensors')} in a prompt"
        )
    strange = [name for name in names if _split(name) is None and not name.endswith(DIFFERENCE)]
    kinds = {kind for name in strange for end, kind in _OTHERS.items() if re.search(rf"\.(?:{end})$", name)}
    if kinds:
        raise ValueError(
            f"{file} holds {', '.join(sorted(kinds))} tensors (such as {strange[0]}), Load Adapter reads plain LoRA "
            "and differences of weights only; the stock Load LoRA opens it"
        )
    if strange:
        raise ValueError(
            f"{file} is no LoRA: it holds {len(strange)} tensors such as {strange[0]}; "
            "a checkpoint opens in the stock Load Checkpoint"
        )


def read_lora(file: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], names: KeyNames) -> AdapterStack:
    """The LoRA that the tensors of ``file`` spell, under our names; then the whole differences, as a link of their own.

    Several names that lead to parts of one layer (to_q, to_k, to_v of a fused projection) become one LoRA of that
    layer: ``up`` in blocks, the rank their sum; parts that share one ``down`` share it again.

    Raises:
        ValueError: the file is not whole, its names need a model or clip, or the model lacks a layer of it.
    """
    try:
        differences = {name: tensor for name, tensor in tensors.items() if name.endswith(DIFFERENCE)}
        factors = {name: tensor for name, tensor in tensors.items() if name not in differences}
        chain = [_lora_link(factors, names)] if factors else []
        chain += [_full_link(differences, names)] if differences else []
        facts = {
            **({"base": names.model} if names.model else {}),
            **validation.checked_metadata(parse_lora_metadata(metadata)),
        }
        return AdapterStack(tuple(chain), facts)
    except ValueError as error:
        raise ValueError(f"{file} {error}") from error


def _lora_link(tensors: Mapping[str, Tensor], names: KeyNames) -> Adapter:
    grouped: dict[str, list[tuple[KeyTarget, LoRAFactors]]] = {}
    parts = lora_factors(tensors)
    for part, place in zip(parts, _places([part.stem for part in parts], names), strict=True):
        grouped.setdefault(place.layer, []).append((place, part))
    adapters, targets = {}, {}
    for layer, parts in grouped.items():
        _, first = parts[0]
        shape = (len(first.up), *first.down.shape[1:])
        targets[layer] = Target(layer, _shape(layer, first.stem, shape, names))
        adapters[layer] = _adapter(targets[layer], parts)
    return Adapter(LoRA.family, adapters, targets)


def _full_link(tensors: Mapping[str, Tensor], names: KeyNames) -> Adapter:
    stems = [name.removesuffix(DIFFERENCE) for name in tensors]
    adapters, targets = {}, {}
    for stem, place, (name, tensor) in zip(stems, _places(stems, names), tensors.items(), strict=True):
        if place != KeyTarget(place.layer) or place.layer in targets:
            raise ValueError(f"holds {name} for a part of {place.layer} or a second time; the stock Load LoRA opens it")
        target = Target(place.layer, _shape(place.layer, stem, tuple(tensor.shape), names))
        difference = validation.checked_tensor(tensor, name)
        try:
            adapters[target.name] = LAYER_CODECS[Full.family].decode({"diff": difference}, target.shape)
        except ValueError as error:
            raise ValueError(f"is of no use: {name} {error}") from error
        targets[target.name] = target
    return Adapter(Full.family, adapters, targets)


def _places(stems: Sequence[str], names: KeyNames) -> list[KeyTarget]:
    """Where each of the file's names leads.

    Raises:
        ValueError: nowhere, for one of them.
    """
    found = [_place(stem, names) for stem in stems]
    if unknown := [stem for stem, place in zip(stems, found, strict=True) if place is None]:
        raise ValueError(_why_unknown(unknown, names))
    return [place for place in found if place is not None]


def _place(stem: str, names: KeyNames) -> KeyTarget | None:
    ours = (not names.model and stem.startswith(DIFFUSION_PREFIX)) or (not names.clip and stem.startswith(TEXT_PREFIX))
    return names.targets.get(stem) or (KeyTarget(stem) if ours else None)


def _split(name: str) -> tuple[str, str] | None:
    """``(layer's name, role)`` of a LoRA tensor's name, the role being up, down or alpha."""
    if name.endswith(KOHYA.alpha):
        return name.removesuffix(KOHYA.alpha), "alpha"
    for spelling in KEY_FORMATS:
        for role in ("up", "down"):
            if name.endswith(ending := getattr(spelling, role)):
                return name.removesuffix(ending), role
    return None


def lora_factors(tensors: Mapping[str, Tensor]) -> list[LoRAFactors]:
    """The pairs of factors that the tensors of a plain LoRA are, in any spelling.

    Raises:
        ValueError: one of a pair is missing, or they do not belong together.
    """
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        stem, role = _split(name) or (name, "")
        roles = found.setdefault(stem, {})
        if role in roles:
            raise ValueError(f"holds the {role} of {stem} twice, in two spellings; save it anew")
        whole = role == "alpha" and tensor.dtype in (torch.int32, torch.int64)
        roles[role] = validation.checked_tensor(tensor.float() if whole else tensor, name)
    return [_part(stem, roles) for stem, roles in found.items()]


def _part(stem: str, roles: Mapping[str, Tensor]) -> LoRAFactors:
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
    if not names.model:
        return f"names its layers in its own way ({unknown[0]}); connect model and clip, to translate them"
    text = [stem for stem in unknown if stem.startswith(_TEXT_STEMS)]
    if text and not names.clip:
        return f"holds text-encoder layers ({text[0]}); connect clip as well, to translate their names"
    return (
        f"changes {len(unknown)} layers that this {names.model} model lacks or cannot change: "
        f"{', '.join(unknown[:4])}; it was made for another architecture"
    )


def _shape(layer: str, stem: str, said: tuple[int, ...], names: KeyNames) -> tuple[int, ...]:
    """The weight's shape: as the model says, or without one as the file says."""
    known = names.model if layer.startswith(DIFFUSION_PREFIX) else names.clip
    if not known:
        return said
    if layer not in names.shapes:
        raise ValueError(_why_unknown([stem], names))
    return names.shapes[layer]


def _adapter(target: Target, parts: list[tuple[KeyTarget, LoRAFactors]]) -> LoRA:
    try:
        whole = [part for place, part in parts if place == KeyTarget(target.name)]
        if len(whole) > 1:
            raise ValueError(f"is there under several names, {', '.join(part.stem for part in whole)}")
        if len(parts) == 1 and whole:
            values = (whole[0].up, whole[0].down, torch.tensor(whole[0].alpha))
            return LAYER_CODECS[LoRA.family].decode(dict(zip(LoRA.tensor_names, values, strict=True)), target.shape)
        return _fused(target.matrix_shape, parts)
    except ValueError as error:
        raise ValueError(f"is of no use: the LoRA of {target.name} {error}") from error


def _fused(matrix: tuple[int, int], parts: list[tuple[KeyTarget, LoRAFactors]]) -> LoRA:
    """One LoRA of scale 1 from LoRAs of a layer's parts."""
    ups: list[Tensor] = []
    downs: list[Tensor] = []
    for place, part in parts:
        up, down = part.matrices
        if place.swapped:
            up = swap_halves(up)
        first, count = place.rows or (0, matrix[0])
        if (len(up), down.shape[1]) != (count, matrix[1]):
            raise ValueError(f"has a part {part.stem} of {len(up)} x {down.shape[1]}, not of {count} x {matrix[1]}")
        same = next((i for i, other in enumerate(downs) if torch.equal(other, down)), len(downs))
        if same == len(downs):
            ups.append(torch.zeros(matrix[0], len(down)))
            downs.append(down)
        ups[same][first : first + count] += up
    return LoRA(torch.cat(ups, 1), torch.cat(downs), alpha=sum(len(down) for down in downs))
