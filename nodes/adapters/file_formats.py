"""The file formats of Save Adapter: what each of them writes of an adapter stack."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...models.adapters.stack import AdapterStack, WeightOf
from ...models.adapters.strength_error import StrengthError, is_nonlinear
from ...models.files.adapter_file import adapter_tensors
from ...models.files.adapter_header import HEADER, encode_header
from ...models.files.digest import DIGEST, file_digest
from ...models.files.lora_key_formats import KeyName, as_plain_lora, comfyui_tensors, format_keys
from ...models.files.precision_loss import adapter_precision_loss, tensor_precision_loss
from ...models.metadata.base_fingerprint import SampledWeights, with_fingerprint
from ...models.metadata.lora_metadata import lora_metadata
from ...models.textual_inversion.embedding_files import comfyui_embedding_tensors
from ...trainers.checks import check_number
from ..bridge.adapters.lora_keys import export_names
from ..bridge.adapters.patching import base_weights, require_convertible_to_lora, warn_if_other_base

STRENGTH = {"default": 1.0, "min": -100.0, "max": 100.0, "step": 0.01}
"""Of every input for the strength of an adapter."""
SAVE_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class BaseModel:
    """The MODEL and CLIP that an adapter is converted for; both may be None.

    ``weights`` reads the base's weights. Each is read once: the conversion to a plain LoRA reads it; the fingerprint
    of the base and the error at other strengths take their values from the same read.

    Args:
        model: a MODEL.
        clip: a CLIP.
        strength: at which an adapter becomes a plain LoRA.

    Raises:
        ValueError: the strength is no number from -100 to 100.
    """

    def __init__(self, model: Any, clip: Any = None, strength: float = 1.0):
        check_number("strength", strength, STRENGTH["min"], STRENGTH["max"])
        self.model, self.clip, self.strength = model, clip, strength
        self.weights = None if model is None else SampledWeights(base_weights(model, clip))
        self._strength_error: StrengthError | None = None

    def weights_for(self, adapter: AdapterStack) -> WeightOf | None:
        """Return what reads the weights for the conversion of ``adapter``, and measures it on the way."""
        if self.weights is None or not is_nonlinear(adapter):
            return self.weights
        self._strength_error = StrengthError(adapter, self.weights, self.strength)
        return self._strength_error

    def strength_note(self) -> str:
        """Return how far the plain LoRA is from the stack at other strengths; "" if it is as good at all of them."""
        if self._strength_error is None:
            return ""
        errors = ", ".join(f"{error:.1%} at {use:g}" for use, error in self._strength_error.relative().items())
        return (
            f"use it at strength 1: an adapter with PaRa after another is not proportional to its strength, and at "
            f"others this LoRA differs from it ({errors}); for another strength set strength here"
        )

    def require_convertible(self, adapter: AdapterStack) -> None:
        """Require that ``adapter`` can be converted for the model, if there is one.

        Raises:
            ValueError: it does not fit, or the model carries it already.
        """
        if self.model is not None:
            require_convertible_to_lora(self.model, self.clip, adapter)

    def warn_if_other(self, adapter: AdapterStack) -> None:
        """Log a warning if ``adapter`` was made for another base; call it last, when the weights have been read."""
        if self.model is not None:
            warn_if_other_base(self.model, self.clip, adapter, self.weights)


class FileFormat(ABC):
    """One format of adapter files."""

    embedding_files = False
    """Whether learned embeddings become a file that prompts call by its name."""

    @abstractmethod
    def tensors(self, adapter: AdapterStack, base: BaseModel) -> dict[str, Tensor]:
        """Return the file's tensors, exact, under the names of the format."""

    @abstractmethod
    def header(self, adapter: AdapterStack, tensors: Mapping[str, Tensor]) -> dict[str, str]:
        """Return the entries without which the file could not be read, with the digest of ``tensors``, those in it."""

    @abstractmethod
    def metadata(self, adapter: AdapterStack, title: str, base: BaseModel) -> dict[str, str]:
        """Return the entries that describe the adapter to other programs.

        Args:
            adapter: the adapter stack.
            title: name of the adapter.
            base: the model whose fingerprint is recorded if the file depends on it.
        """

    @abstractmethod
    def rounding_error(self, adapter: AdapterStack, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> float:
        """Return the relative error of the change when the file is in ``dtype``.

        Args:
            adapter: the adapter stack.
            tensors: what :meth:`tensors` gave for it.
            dtype: of the file.
        """


class NativeFormat(FileFormat):
    """The pack's own format: the stack as it is, to be trained further."""

    def tensors(self, adapter: AdapterStack, base: BaseModel) -> dict[str, Tensor]:
        if base.strength != 1:
            raise ValueError(
                f"strength is {base.strength:g}, but format 'hyperbooth' keeps the adapter as it was trained; leave "
                "strength at 1 and set it in Apply Adapter, or choose another format"
            )
        return adapter_tensors(adapter)

    def header(self, adapter: AdapterStack, tensors: Mapping[str, Tensor]) -> dict[str, str]:
        text = encode_header(adapter)
        return {HEADER: text, DIGEST: file_digest(text, tensors)}

    def metadata(self, adapter: AdapterStack, title: str, base: BaseModel) -> dict[str, str]:
        return lora_metadata(adapter, title, native=True)

    def rounding_error(self, adapter: AdapterStack, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> float:
        return adapter_precision_loss(adapter, dtype)


class PlainFormat(FileFormat):
    """One plain LoRA, or one learned embedding, as another program reads it.

    Args:
        name: of the format.
        names: MODEL and layer names -> each layer's names in the file; None keeps ComfyUI's own, for which no model
            is needed.
    """

    embedding_files = True

    def __init__(self, name: str, names: Callable[[Any, Iterable[str]], Mapping[str, Sequence[KeyName]]] | None = None):
        self.name, self._names = name, names

    def tensors(self, adapter: AdapterStack, base: BaseModel) -> dict[str, Tensor]:
        if adapter.embeddings:
            require_embeddings_only(adapter, self.name)
            if base.strength != 1:
                raise ValueError(
                    f"strength is {base.strength:g}, but a learned embedding has none; weight it in the prompt, such "
                    "as (embedding:name:1.2)"
                )
            return comfyui_embedding_tensors(adapter.embeddings)
        base.require_convertible(adapter)
        tensors = self._lora_tensors(adapter, base)
        base.warn_if_other(adapter)
        return tensors

    def _lora_tensors(self, adapter: AdapterStack, base: BaseModel) -> dict[str, Tensor]:
        if self._names is None:
            return comfyui_tensors(adapter, base.weights_for(adapter), base.strength)
        if base.model is None:
            raise ValueError(
                f"model is not connected, but the names in a {self.name} file depend on the architecture; connect the "
                "model the adapter was trained on, or save in format 'comfyui' or 'hyperbooth'"
            )
        lora = as_plain_lora(adapter, base.weights_for(adapter), base.strength)
        return format_keys(lora, self._names(base.model, adapter.targets()), self.name)

    def header(self, adapter: AdapterStack, tensors: Mapping[str, Tensor]) -> dict[str, str]:
        return {}

    def metadata(self, adapter: AdapterStack, title: str, base: BaseModel) -> dict[str, str]:
        return lora_metadata(adapter if base.weights is None else with_fingerprint(adapter, base.weights), title)

    def rounding_error(self, adapter: AdapterStack, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> float:
        return tensor_precision_loss(tensors, dtype)


FORMATS: dict[str, FileFormat] = {
    "hyperbooth": NativeFormat(),
    "kohya": PlainFormat("kohya", lambda model, layers: export_names(model, "kohya", layers)),
    "diffusers": PlainFormat("diffusers", lambda model, layers: export_names(model, "diffusers", layers)),
    "comfyui": PlainFormat("comfyui"),
}
"""Name in Save Adapter -> format."""


def require_embeddings_only(adapter: AdapterStack, format: str) -> None:
    """Require that an embedding file of ``format`` can hold the whole adapter.

    Raises:
        ValueError: the adapter has layers too, or the format has no embedding files.
    """
    tokens = ", ".join(embedding.token for embedding in adapter.embeddings)
    if adapter.adapters:
        raise ValueError(
            f"the adapter holds layers and learned embeddings ({tokens}), format {format!r} one of both; save it in "
            "format 'hyperbooth', or save the adapters that were combined separately, the embedding in format 'comfyui'"
        )
    if format != "comfyui":
        raise ValueError(
            f"the adapter holds learned embeddings only ({tokens}), for which there is no format {format!r}; save it "
            "in format 'comfyui', an embedding file that every program reads, or 'hyperbooth'"
        )
