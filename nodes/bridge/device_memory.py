"""Memory of the training device and main memory, through ComfyUI's model management."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import torch

from ...models.hollowed_net.network import HollowedNetwork
from .model.offload import offloaded, offloads_weights

ALLOCATION_ERRORS = ("can't allocate memory", "not enough memory")
"""Parts of the messages by which PyTorch's CPU allocators report exhausted memory on Linux and on Windows."""


@dataclass(frozen=True, kw_only=True)
class ComfyDeviceMemory:
    """The training device's memory through ComfyUI's model management.

    Implements :class:`trainers.session.DeviceMemory`.

    Args:
        patchers: the MODEL, and the CLIP's patcher if the text encoder trains.
        device: the training device.
        hollow: the removed blocks, or None.
    """

    patchers: Sequence[Any]
    device: torch.device
    hollow: HollowedNetwork | None

    def inference_bytes(self, size: tuple[int, ...]) -> int:
        """Return ComfyUI's estimate of the activation bytes of inference on one latent ``[C, ..., h, w]``."""
        return int(self.patchers[0].model.memory_required([1, *size]))

    def free_memory(self) -> int:
        """Return the bytes free on the training device, PyTorch's cached blocks included."""
        return int(comfy.model_management.get_free_memory(self.device))

    def free_main_memory(self) -> int:
        """Return the bytes free in main memory, minus those of the removed blocks' weights that move there later."""
        moves = self.hollow is not None and offloads_weights(self.patchers[0])
        offloaded_later = sum(parameter.nbytes for parameter in self.hollow.parameters()) if moves else 0
        return int(comfy.model_management.get_free_memory(torch.device("cpu"))) - offloaded_later

    def make_room(self, needed: int) -> None:
        """Let ComfyUI offload weights until ``needed`` bytes are free on the device, as far as possible."""
        if needed > self.free_memory():
            with torch.inference_mode():
                comfy.model_management.load_models_gpu(list(self.patchers), memory_required=needed)

    def offloaded(self) -> AbstractContextManager[None]:
        """Keep the removed blocks' weights off the training device inside the block; no effect without ``hollow``."""
        return nullcontext() if self.hollow is None else offloaded(self.patchers[0], self.hollow)

    def is_out_of_memory(self, error: BaseException) -> bool:
        """Return whether ``error`` reports exhausted memory, and if so free PyTorch's cached blocks."""
        exhausted = isinstance(error, MemoryError) or comfy.model_management.is_oom(error)
        exhausted = exhausted or any(message in str(error) for message in ALLOCATION_ERRORS)
        if exhausted:
            comfy.model_management.soft_empty_cache()
        return exhausted
