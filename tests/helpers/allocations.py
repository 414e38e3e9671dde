"""Measure what an operation allocates."""

from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode


class LargestTensor(TorchDispatchMode):
    """Record the size of the largest new tensor, in values, that an operation returns.

    Views are not counted, nor are tensors on the meta device, which take no memory.
    """

    values = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            tensors = [
                tensor
                for tensor in pytree.tree_leaves(result)
                if isinstance(tensor, torch.Tensor) and not tensor.is_meta
            ]
            self.values = max([self.values, *(tensor.numel() for tensor in tensors)])
        return result
