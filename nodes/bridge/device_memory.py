"""The training device's memory, and main memory, as ComfyUI manages them."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import torch

from ...models.hollowed_net.network import HollowedNetwork
from .model.offload import moves, offloaded

NO_MEMORY = ("can't allocate memory", "not enough memory")
"""What PyTorch's CPU allocators say on Linux and on Windows."""


@dataclass(frozen=True, kw_only=True)
class ComfyDeviceMemory:
    """Device memory through ComfyUI's model management.

    Args:
        patchers: the MODEL, and the CLIP's patcher if the text encoder trains.
        device: the training device.
        hollow: the removed blocks, or None.
    """

    patchers: Sequence[Any]
    device: torch.device
    hollow: HollowedNetwork | None

    def inference_bytes(self, size: tuple[int, ...]) -> int:
        return int(self.patchers[0].model.memory_required([1, *size]))

    def free_memory(self) -> int:
        return int(comfy.model_management.get_free_memory(self.device))

    def free_main_memory(self) -> int:
        """Return the bytes free in main memory, less what the removed blocks will take when they move there."""
        coming = sum(p.nbytes for p in self.hollow.parameters()) if self.hollow and moves(self.patchers[0]) else 0
        return int(comfy.model_management.get_free_memory(torch.device("cpu"))) - coming

    def make_room(self, needed: int) -> None:
        if needed > self.free_memory():
            with torch.inference_mode():
                comfy.model_management.load_models_gpu(list(self.patchers), memory_required=needed)

    def offloaded(self) -> AbstractContextManager[None]:
        return nullcontext() if self.hollow is None else offloaded(self.patchers[0], self.hollow)

    def is_out_of_memory(self, error: BaseException) -> bool:
        short = isinstance(error, MemoryError) or comfy.model_management.is_oom(error)
        short = short or any(words in str(error) for words in NO_MEMORY)
        if short:
            comfy.model_management.soft_empty_cache()
        return short
