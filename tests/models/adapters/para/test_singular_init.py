"""PaRa's start on the directions a weight uses least, against the whole singular value decomposition."""

import pytest
import torch
from hyperbooth.models.adapters import PaRaConfig
from hyperbooth.models.adapters.para.singular_init import smallest_left_singular_vectors
from hyperbooth.models.adapters.stack import Adapter
from hyperbooth.models.adapters.targets import Target
from torch import Tensor

SHAPES = [(64, 64), (64, 160), (160, 64), (66, 64), (64, 2)]
SPECTRA = {
    "flat": lambda n: torch.ones(n),
    "falling": lambda n: 1 / torch.arange(1, n + 1),
    "steep": lambda n: 10 ** -torch.linspace(0, 3, n),
    "of half the rank": lambda n: (torch.arange(n) < n // 2).double(),
}


def weight(shape: tuple[int, int], spectrum: str) -> Tensor:
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    u, _, v = torch.linalg.svd(drawn, full_matrices=False)
    return (u * SPECTRA[spectrum](min(shape))) @ v


def start(weight: Tensor, count: int = 4, seed: int = 0) -> Tensor:
    return smallest_left_singular_vectors(weight, count, torch.Generator().manual_seed(seed))


def left(q: Tensor, weight: Tensor) -> float:
    """Return the share of the weight's norm that lies in the directions."""
    return ((q.double().T @ weight.double()).norm() / weight.double().norm()).item()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_removes_as_little_as_can_be(shape: tuple[int, int], spectrum: str) -> None:
    made = weight(shape, spectrum)
    q = start(made.float())
    values = torch.linalg.svdvals(made)
    all_values = torch.cat([values, torch.zeros(max(0, shape[0] - len(values)), dtype=torch.float64)])
    least = (all_values.sort().values[:4].norm() / made.norm()).item()
    assert left(q, made) < 1.02 * least + 3e-6
    assert torch.allclose(q.T @ q, torch.eye(4), atol=5e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_will_do(dtype: torch.dtype) -> None:
    made = weight((64, 64), "falling").to(dtype)
    q = start(made)
    assert q.dtype == torch.float32
    assert left(q, made) < 1.02 * (torch.linalg.svdvals(made.double())[-4:].norm() / made.double().norm()).item()


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_the_weights_scale_does_not_matter(scale: float) -> None:
    made = weight((64, 64), "falling").float()
    assert left(start(made * scale), made) == pytest.approx(left(start(made), made), rel=1e-3)


def test_of_nothing_any_directions_will_do() -> None:
    q = start(torch.zeros(32, 48))
    assert torch.allclose(q.T @ q, torch.eye(4), atol=1e-5)


def test_where_many_are_as_good_the_generator_chooses() -> None:
    tall = weight((160, 64), "flat").float()
    assert torch.equal(start(tall), start(tall))
    assert not torch.equal(start(tall), start(tall, seed=1))


def test_a_weight_that_is_no_number_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"\bNaN\b"):
        start(torch.full((8, 8), torch.nan))


def test_a_link_starts_there_only_if_asked_and_where_it_can() -> None:
    made = weight((64, 64), "steep").float()
    target = Target("l", (64, 16, 2, 2))
    for init, most in (("random", 1.0), ("smallest singular", 0.01)):
        settled = Adapter.create(
            "para", [target], PaRaConfig(rank=4, init=init), torch.Generator().manual_seed(0), lambda _: made
        )
        assert left(settled.layers["l"].basis.detach(), made) < most
    unseen = Adapter.create(
        "para", [target], PaRaConfig(rank=4, init="smallest singular"), torch.Generator().manual_seed(0)
    )
    random = Adapter.create("para", [target], PaRaConfig(rank=4, init="random"), torch.Generator().manual_seed(0))
    assert torch.equal(unseen.layers["l"].basis, random.layers["l"].basis)
    assert left(random.layers["l"].basis.detach(), made) > 0.05


def test_the_weight_is_not_asked_for_without_need() -> None:
    asked = []

    def weight_of(name: str) -> Tensor:
        asked.append(name)
        return torch.zeros(64, 64)

    Adapter.create("para", [Target("l", (64, 64))], PaRaConfig(init="random"), torch.Generator(), weight_of)
    assert asked == []
