"""Describe the smallest network of one family of models, and load it as ComfyUI loads a published file.

ComfyUI recognizes a family by the names and shapes of its tensors, and fixes some sizes by that: every file with a
Z-Image's names is 3840 wide. Where such a network is too large for a test, a specification has two sizes. The shapes of
a network as wide as the published one, which take no memory, are what ComfyUI's detection sees. Then ``reduced``
replaces values of the configuration that it detected, and the network with the replaced values is what ComfyUI's own
classes build and load. Everything else is the loader's.
"""

import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from ..diffusion_models import fill

Tensors = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Specification:
    """Describe the small network of one family.

    Args:
        name: of the family, in snake case.
        architecture: name of the class in ``comfy.supported_models`` that ComfyUI must detect.
        network: ``module:class`` of the network.
        config: arguments of that class for a network as wide as the published one, with few blocks.
        reduced: replaces values of the configuration that ComfyUI detects on that network.
        substitutes: ``module:name`` of a part whose sizes no configuration reaches -> arguments that its class gets.
        extra: tensors of a file that are no weights of the network, by which ComfyUI recognizes a variant.
        published_names: changes the names of the weights to those in published files, where ComfyUI changes them back.
        latent: shape ``(C, h, w)`` or ``(C, 1, h, w)`` of one latent.
        text: number of tokens -> CONDITIONING, with everything that the family's ``extra_conds`` reads.
        prediction: what the network predicts: eps, v, flow, edm, x0, or a name of its own where ComfyUI has another
            parametrization.
        model_options: for the loader.
        on_meta: whether the class can be built without memory; PixArt's reads values while it is built.
    """

    name: str
    architecture: str
    network: str
    config: Mapping[str, Any]
    reduced: Mapping[str, Any] = field(default_factory=dict)
    substitutes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    extra: Callable[[], Tensors] = dict
    published_names: Callable[[str], str] = str
    latent: tuple[int, ...]
    text: Callable[[int], Any]
    prediction: str
    model_options: Mapping[str, Any] = field(default_factory=dict)
    on_meta: bool = True

    def published(self) -> Tensors:
        """Return the tensors of the network as wide as the published one, on the meta device."""
        with torch.device("meta" if self.on_meta else "cpu"):
            network = self._built(_plain(self.config))
        return self._as_published(network.state_dict())

    def detected(self) -> Any:
        """Return the configuration that ComfyUI detects, with the reduced sizes."""
        from comfy.model_detection import model_config_from_unet

        found = model_config_from_unet(self.published(), "")
        if found is not None:
            found.unet_config.update(_plain(self.reduced))
        return found

    def state_dict(self, seed: int = 0) -> Tensors:
        """Return random weights of the small network, under the names of a published file."""
        with self._small_parts():
            network = self._built(_accepted(self._class(), self.detected().unet_config))
        return self._as_published(filled(network, seed).state_dict())

    def load(self) -> Any:
        """Return the MODEL as the stock loader gives it."""
        import comfy.sd

        with ExitStack() as stack:
            stack.enter_context(self._small_parts())
            if self.reduced or self.substitutes:
                found = self.detected()
                stack.enter_context(patch("comfy.model_detection.model_config_from_unet", lambda *_, **__: found))
            return comfy.sd.load_diffusion_model_state_dict(self.state_dict(), model_options=dict(self.model_options))

    def rebuild(self, network: nn.Module, config: Mapping[str, Any]) -> nn.Module:
        """Return the loaded network again, with ordinary float32 tensors and the layers of PyTorch."""
        with self._small_parts():
            again = self._built(_accepted(self._class(), {**config, "dtype": torch.float32}))
        again.load_state_dict({name: tensor.clone() for name, tensor in network.state_dict().items()})
        return again.eval().requires_grad_(False)

    def _class(self) -> Any:
        module, name = self.network.split(":")
        return getattr(importlib.import_module(module), name)

    def _built(self, config: Mapping[str, Any]) -> nn.Module:
        import comfy.ops

        return self._class()(**config, operations=comfy.ops.disable_weight_init)

    def _as_published(self, tensors: Tensors) -> Tensors:
        return {**{self.published_names(name): tensor for name, tensor in tensors.items()}, **self.extra()}

    @contextmanager
    def _small_parts(self) -> Iterator[None]:
        with ExitStack() as stack:
            for place, arguments in self.substitutes.items():
                module, name = place.split(":")
                stack.enter_context(_with_arguments(importlib.import_module(module), name, arguments))
            yield


@contextmanager
def _with_arguments(module: Any, name: str, arguments: Mapping[str, Any]) -> Iterator[None]:
    original = getattr(module, name)
    with patch.object(module, name, lambda **given: original(**{**given, **arguments})):
        yield


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy whose lists are its own: networks change those that they get."""
    return {key: list(value) if isinstance(value, list) else value for key, value in config.items()}


def _accepted(network: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that the class takes; ComfyUI's configurations name a family too."""
    parameters = inspect.signature(network.__init__).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return _plain(config)
    return _plain({key: value for key, value in config.items() if key in parameters})


EMBEDDING_STD = 1.0
"""Of vocabularies that a network reads itself: rows as wide as a normalized activation."""


def filled(network: nn.Module, seed: int) -> nn.Module:
    """Fill a network with :func:`fill`, and then what that takes for something else.

    It gives everything with "embedding" in its name the small values of a vocabulary, which layers of patches and of
    time steps are not. It leaves parameters without a dimension as they are, takes the ``gamma`` of a norm for a bias,
    and fills buffers that are no weights, such as the frequencies of rotary positions.
    """
    buffers = {name: tensor.clone() for name, tensor in network.named_buffers()}
    fill(network, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, module in network.named_modules():
            weight = getattr(module, "weight", None)
            if "embedding" in name and isinstance(weight, Tensor) and weight.ndim > 1:
                std = EMBEDDING_STD if isinstance(module, nn.Embedding) else weight[0].numel() ** -0.5
                weight.normal_(0, std, generator=generator)
        for name, tensor in network.named_parameters():
            if tensor.ndim == 0 or (tensor.ndim == 1 and name.endswith(("gamma", "alpha"))):
                tensor.fill_(1.0)
        weights = network.state_dict()
        for name, tensor in network.named_buffers():
            if name not in weights:
                tensor.copy_(buffers[name])
    return network


def tokens(count: int, width: int, seed: int = 0) -> Tensor:
    """Return random embeddings ``[1, count, width]`` of a prompt."""
    return torch.randn(1, count, width, generator=torch.Generator().manual_seed(100 * seed + count))


def text_of(width: int, *, pooled: int | None = None, mask: bool = False, **values: Any) -> Callable[[int], Any]:
    """Return a function that makes the CONDITIONING of a prompt.

    Args:
        width: of the embeddings.
        pooled: width of ``pooled_output``, if the family has one.
        mask: whether there is an attention mask; it hides the last token.
        values: further entries: values, or functions of the number of tokens.
    """

    def text(count: int) -> Any:
        extras = {"pooled_output": None}  # as every encoder gives
        extras |= {key: value(count) if callable(value) else value for key, value in values.items()}
        if pooled is not None:
            extras["pooled_output"] = tokens(count, pooled, 1)[:, 0]
        if mask:
            extras["attention_mask"] = shown(count)
        return [[tokens(count, width), extras]]

    return text


def shown(count: int) -> Tensor:
    """Return an attention mask that hides the last of ``count`` tokens."""
    mask = torch.ones(1, count, dtype=torch.long)
    mask[:, -1] = 0
    return mask
