"""PyTorch's global settings inside a run: other extensions of ComfyUI change them and do not always put them back."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def pinned_globals() -> Iterator[None]:
    """Inside the block, set what results depend on to PyTorch's own defaults; afterwards it is as before.

    - the default dtype: with bfloat16 left there, a training in "float32" drew and averaged in bfloat16;
    - the default device, on which tensors of the draws would be made;
    - accumulation of half-precision products in float16, which gradients do not survive;
    - deterministic algorithms, under which operations without one raise;
    - autocast.
    """
    matmul = torch.backends.cuda.matmul
    accumulates = getattr(matmul, "allow_fp16_accumulation", None)  # since PyTorch 2.7
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    deterministic, warns = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    autocast = [kind for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind)]
    try:
        torch.set_default_dtype(torch.float32)
        if device.type != "cpu":
            torch.set_default_device("cpu")
        torch.use_deterministic_algorithms(False)
        for kind in autocast:
            torch.set_autocast_enabled(kind, False)
        if accumulates:
            matmul.allow_fp16_accumulation = False
        yield
    finally:
        torch.set_default_dtype(dtype)
        if device.type != "cpu":
            torch.set_default_device(device)
        torch.use_deterministic_algorithms(deterministic, warn_only=warns)
        for kind in autocast:
            torch.set_autocast_enabled(kind, True)
        if accumulates:
            matmul.allow_fp16_accumulation = True
