"""Small encoders in a models folder, and images to score, for the tests of the scoring nodes."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tools.comfy_harness.tiny_encoders import write_clip, write_dino, write_dinov2


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a models folder with small encoders."""
    import folder_paths

    root = tmp_path_factory.mktemp("models")
    write_dino(root / "dino" / "small-dino")
    write_dinov2(root / "dino" / "small-dinov2")
    write_clip(root / "clip_score" / "small-clip")
    with pytest.MonkeyPatch.context() as patch:
        for kind in ("dino", "clip_score"):
            patch.setitem(folder_paths.folder_names_and_paths, kind, ([str(root / kind)], set()))
        yield root


@pytest.fixture
def samples() -> list[Tensor]:
    """Return two batches of images of different sizes."""
    draw = torch.Generator().manual_seed(1)
    return [torch.rand(2, 40, 64, 3, generator=draw), torch.rand(1, 64, 48, 3, generator=draw)]


@pytest.fixture
def references() -> list[Tensor]:
    return [torch.rand(3, 50, 50, 3, generator=torch.Generator().manual_seed(2))]
