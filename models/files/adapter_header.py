"""The JSON header of an adapter file: its models for validation, and its encoding and decoding.

It has the entries ``version``, ``chain``, ``words`` and ``facts``: ``chain`` describes the adapters of the stack in
order, ``words`` the learned embeddings (absent if there are none), and ``facts`` is the metadata. The layers of a
packed adapter are described by its layout, see :mod:`.packing`; its entry in ``chain`` names the family only.
"""

import json
from contextlib import AbstractContextManager
from typing import Any

from pydantic import Field

from .. import validation
from ..adapters.stack import Adapter, AdapterStack
from ..metadata.prompt_limits import limit_metadata
from ..textual_inversion.embedding_files import embedding_header_entries
from ..validation import Header, Items, MetadataDict
from .family_codecs import PACKED_CODECS

VERSION = 1
HEADER = "hyperbooth"
"""The entry of the safetensors metadata that holds the header."""


class AdapterEntry(Header):
    """One adapter of the stack.

    Args:
        targets: layer -> shape of its weight, see :func:`~..adapters.targets.targets_from_header`; empty if packed.
    """

    family: str
    targets: dict[str, Any] = {}


class EmbeddingEntry(Header):
    """One learned embedding: its placeholder token and the text encoders that it has vectors for."""

    token: str
    encoders: Items[str]


class AdapterHeader(Header):
    """The header; names on disk are the aliases."""

    version: int
    adapters: Items[AdapterEntry] = Field(alias="chain")
    embeddings: Items[EmbeddingEntry] = Field(default=[], alias="words")
    metadata: MetadataDict = Field(alias="facts")


def encode_header(adapter: AdapterStack) -> str:
    """Return the text under :data:`HEADER`; prompts in it are shortened, see :mod:`..metadata.prompt_limits`.

    Raises:
        ValueError: :func:`decode_header` would refuse the metadata.
    """
    embeddings = {"words": embedding_header_entries(adapter.embeddings)} if adapter.embeddings else {}
    header = {
        "version": VERSION,
        "chain": [_entry(one) for one in adapter.adapters],
        **embeddings,
        "facts": limit_metadata(adapter),
    }
    text = json.dumps(header, ensure_ascii=False)
    try:
        validation.checked_metadata(validation.parse_header(text)["facts"])
    except ValueError as error:
        raise ValueError(f"the metadata of the adapter {error}; a file with it could not be read again") from error
    return text


def decode_header(text: str) -> AdapterHeader:
    """Return the validated header.

    Raises:
        ValueError: it is damaged or of another version; the message begins with ``has``, for a file's name before it.
    """
    with _damaged():
        header = validation.parse_header(text)
    validation.check_version(header, VERSION)
    with _damaged():
        return validation.validated(AdapterHeader, header)


def _damaged() -> AbstractContextManager[None]:
    return validation.error_context(f"has a damaged {HEADER!r} header (", "); save it again")


def _entry(adapter: Adapter) -> dict[str, Any]:
    """Return the entry of ``chain`` for one adapter; ``facts`` is empty and kept for older readers."""
    if adapter.family in PACKED_CODECS:
        return {"family": adapter.family}
    return {
        "family": adapter.family,
        "facts": {},
        "targets": {name: list(target.shape) for name, target in adapter.targets.items()},
    }
