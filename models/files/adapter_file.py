"""Adapter files: safetensors, self-describing, written atomically.

Tensors are named ``<layer>.<tensor of the family>``, where the layer's name is ComfyUI's own: a file that holds one
LoRA is at once a LoRA that ComfyUI's stock loaders read. In a stack of several adapters each name has the prefix of
its position, ``1/``, ``2/``, and no other tool mistakes one adapter for the whole. Families of few parameters are kept
as one tensor, see :mod:`.packing`. Learned embeddings are named ``embedding/<token>/<text encoder>``. The header is
described in :mod:`.adapter_header`; a file without it is read as a LoRA of another program, see :mod:`.lora_import`.

The safetensors library checks that a file's tensors are no larger than the file; everything else in it is validated
before memory is taken for it, see :mod:`..validation`.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .. import validation
from ..adapters import FAMILIES, AdapterLayer
from ..adapters.stack import Adapter, AdapterStack
from ..adapters.targets import targets_from_header
from ..textual_inversion.embedding_files import embedding_from_header, native_embedding_tensors
from .adapter_header import HEADER, AdapterEntry, AdapterHeader, decode_header, encode_header
from .digest import DIGEST, check_digest, file_digest
from .family_codecs import LAYER_CODECS, PACKED_CODECS, LayerCodec
from .lora_check import check_is_lora
from .lora_import import KeyNames, read_lora
from .lora_key_formats import layer_tensors
from .packing import LAYOUT, PACKED, pack_adapter, unpack_adapter
from .safetensors_io import write_tensors

SUFFIXES = (".safetensors", ".sft")


def save_adapter(
    adapter: AdapterStack, path: Path, dtype: torch.dtype = torch.float32, metadata: Mapping[str, str] | None = None
) -> None:
    """Write ``adapter`` to ``path``.

    Args:
        adapter: adapters and learned embeddings.
        path: of the file; its folder is made if there is none.
        dtype: of the file's tensors, see :func:`cast_for_file`.
        metadata: entries for other tools, see :mod:`..metadata.lora_metadata`.

    Raises:
        ValueError: a value is NaN or infinite, or the metadata is such that no file could be read again.
        OSError: the disk is full or the folder cannot be written; a former file is unchanged.
    """
    tensors = cast_for_file(adapter_tensors(adapter), dtype)
    header = encode_header(adapter)
    write_tensors(tensors, path, {**(metadata or {}), HEADER: header, DIGEST: file_digest(header, tensors)})


def load_adapter(path: Path, names: KeyNames | None = None) -> AdapterStack:
    """Read a file of :func:`save_adapter`, or a LoRA file of another program; in float32 on the CPU.

    Args:
        path: of the file.
        names: the meaning of layer names that are not ComfyUI's own.

    Raises:
        ValueError: it is no such file, is damaged, of an unknown version or family, or its tensors do not fit its
            header; the message names both sides.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(
            f"{path.name} is no safetensors file; files of other kinds can run code when opened, so none is. "
            "Convert it to safetensors"
        )
    metadata, tensors = _read(path)
    if HEADER not in metadata:
        return read_lora(path.name, tensors, metadata, names or KeyNames())
    with validation.error_context(f"{path.name} "):
        if DIGEST in metadata:  # files of before have none
            check_digest(metadata, metadata[HEADER], tensors)
        return _decode(decode_header(metadata[HEADER]), tensors)


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Return metadata and tensors; a file that is no adapter by its tensors' names is refused before they are read."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata, names = file.metadata() or {}, list(file.keys())
            validation.check_tensor_names(path.name, names)
            if HEADER not in metadata:
                check_is_lora(path.name, names)
            return metadata, {name: file.get_tensor(name) for name in names}
    except SafetensorError as error:
        why = "".join(letter for letter in str(error)[:200] if letter.isprintable())
        raise ValueError(f"{path.name} is damaged or no safetensors file ({why}); save it again") from error


def adapter_tensors(adapter: AdapterStack) -> dict[str, Tensor]:
    """Return the tensors of all adapters and learned embeddings under their names in this pack's format."""
    return native_embedding_tensors(adapter.embeddings) | {
        _prefix(i, len(adapter.adapters)) + name: tensor
        for i, one in enumerate(adapter.adapters)
        for name, tensor in (pack_adapter(one) if one.family in PACKED_CODECS else layer_tensors(one)).items()
    }


def cast_for_file(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the tensors in ``dtype``, contiguous on the CPU; bytes and scalars (an alpha) keep their dtype.

    Raises:
        ValueError: a value is NaN, infinite or too large for :func:`load_adapter`; a diverged run writes no file.
    """
    found = {}
    for name, tensor in tensors.items():
        found[name] = (tensor.to(dtype) if tensor.ndim and tensor.is_floating_point() else tensor).contiguous().cpu()
        if not validation.is_finite(found[name]):
            raise ValueError(f"{name} holds {validation.NOT_FINITE}; nothing was written")
    return found


def _prefix(index: int, count: int) -> str:
    """Return the prefix of the names of adapter ``index`` in a stack of ``count``."""
    return f"{index + 1}/" if count > 1 else ""


def _decode(header: AdapterHeader, tensors: dict[str, Tensor]) -> AdapterStack:
    """Return the stack that ``header`` describes, made of all of ``tensors``."""
    embeddings = tuple(embedding_from_header(entry.token, entry.encoders, tensors) for entry in header.embeddings)
    if not header.adapters and not embeddings:
        raise ValueError("holds no adapter: its stack is empty")
    adapters = tuple(
        _decode_adapter(entry, tensors, _prefix(i, len(header.adapters))) for i, entry in enumerate(header.adapters)
    )
    if tensors:
        raise ValueError(f"holds tensors its header does not name: {', '.join(sorted(tensors)[:4])}")
    with validation.error_context("cannot be used: "):
        return AdapterStack(adapters, header.metadata, embeddings)


def _decode_adapter(entry: AdapterEntry, tensors: dict[str, Tensor], prefix: str) -> Adapter:
    """Return the adapter that ``entry`` describes; its tensors are removed from ``tensors``."""
    if entry.family not in FAMILIES:
        raise ValueError(f"holds the family {entry.family!r:.40}, this pack knows {', '.join(FAMILIES)}")
    if entry.family in PACKED_CODECS:
        return _decode_packed(entry.family, tensors, prefix)
    return _decode_layers(entry, tensors, prefix)


def _decode_packed(family: str, tensors: dict[str, Tensor], prefix: str) -> Adapter:
    adapter = unpack_adapter(tensors, prefix)
    if adapter.family != family:
        raise ValueError(f"holds {adapter.family} where its header names {family}; save it again")
    del tensors[prefix + PACKED], tensors[prefix + LAYOUT]
    return adapter


def _decode_layers(entry: AdapterEntry, tensors: dict[str, Tensor], prefix: str) -> Adapter:
    codec, targets, layers = LAYER_CODECS[entry.family], targets_from_header(entry.targets), {}
    for name, target in targets.items():
        full_names = {key: f"{prefix}{name}.{key}" for key in codec.tensor_names}
        if missing := [full_name for full_name in full_names.values() if full_name not in tensors]:
            raise ValueError(f"lacks {', '.join(missing)}; the file is not whole")
        values = {key: validation.checked_tensor(tensors.pop(full), full) for key, full in full_names.items()}
        with validation.error_context(f"cannot be used: the adapter of {name} "):
            layers[name] = _decode_layer(codec, values, target.shape)
    return Adapter(entry.family, layers, targets)


def _decode_layer(codec: LayerCodec, values: Mapping[str, Tensor], shape: tuple[int, ...]) -> AdapterLayer:
    """Return the layer of ``values``, whose shapes have to be exactly those in which the layer would be saved."""
    layer = codec.decode(values, shape)
    given = {key: tuple(value.shape) for key, value in values.items()}
    wanted = {key: tuple(value.shape) for key, value in codec.encode(layer, shape).items()}
    if given != wanted:
        raise ValueError(f"has tensors of the shapes {given}, not {wanted}")
    return layer
