"""Hash of a loaded model in its current state: weights, patches and sampling equations."""

from typing import Any

from comfy.quant_ops import QuantizedTensor
from torch import Tensor, nn

from ....trainers.engine.run_hash import run_hash, sample_values
from .unused_text_layers import unused_text_layers


def model_hash(model: Any, clip: Any = None) -> str:
    """Hash the MODEL, and ``clip`` if given: equal in another process, different after any change.

    A few hundred values of each weight are read, which costs no more than a training step.
    """
    parts: list[Any] = [type(model.model).__name__, model.model.manual_cast_dtype, str(model.load_device)]
    unused = set() if clip is None else {f"{layer}.weight" for layer in unused_text_layers(clip)}
    for patcher in [model] + ([clip.patcher] if clip is not None else []):
        weights = {
            name: _plain(_unpatched(patcher, name, weight))
            for name, weight in patcher.model.state_dict().items()
            if name not in unused
        }
        parts += [weights, _plain(patcher.patches), sorted(patcher.object_patches)]
    sampling = model.get_model_object("model_sampling")
    equations = [kind.__name__ for kind in type(sampling).__mro__]
    constants = {name: value for name, value in vars(sampling).items() if isinstance(value, (bool, int, float, str))}
    text_layer = None if clip is None else clip.layer_idx
    parts += [equations, constants, dict(sampling.state_dict()), sampling.sigmas, text_layer]
    return run_hash(*parts)


def _unpatched(patcher: Any, name: str, weight: Any) -> Any:
    """Return the weight before patches: how many of them are applied in place depends on the free memory."""
    return patcher.backup[name].weight if name in patcher.backup else weight


def _plain(value: Any) -> Any:
    """Convert patches to containers of numbers and sampled tensors; adapters inside are replaced by their weights."""
    if isinstance(value, QuantizedTensor):
        return sample_values(value._qdata)
    if isinstance(value, Tensor):
        return sample_values(value)
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "weights") and not isinstance(value, nn.Module):
        return [type(value).__name__, _plain(value.weights)]
    return value
