"""LiDB's frozen bases are orthonormal and the same on every machine."""

import hashlib

import pytest
import torch
from hyperbooth.models.adapters import LiDB, LiDBConfig
from hyperbooth.models.adapters.lidb.random_bases import basis_checksum, check_basis_sizes, random_basis
from hyperbooth.models.adapters.stack import Adapter, AdapterStack
from hyperbooth.models.adapters.targets import Target

PROBES = [0.052728, -0.0496323, -0.0223767]


@pytest.mark.parametrize(("size", "columns"), [(1280, 100), (320, 50), (100, 100), (7, 1)])
def test_columns_are_orthonormal(size: int, columns: int) -> None:
    q = random_basis("out", 3, size, columns).double()
    torch.testing.assert_close(q.T @ q, torch.eye(columns, dtype=torch.float64), rtol=0, atol=1e-6)


def test_the_numbers_are_those_of_every_other_machine() -> None:
    """The expected values were recorded once; another library, system or device must not give others."""
    assert basis_checksum("out", 0, 320, 100) == pytest.approx(PROBES, abs=1e-6)
    assert random_basis("out", 0, 320, 100).flatten()[[0, 16000, -1]].tolist() == pytest.approx(PROBES, abs=1e-6)


def test_seed_role_and_size_each_make_another_basis() -> None:
    made = [random_basis(*key) for key in [("out", 0, 64, 8), ("in", 0, 64, 8), ("out", 1, 64, 8)]]
    digests = {hashlib.sha256(one.numpy().tobytes()).hexdigest() for one in made}
    assert len(digests) == 3


def test_layers_of_one_size_share_one_basis() -> None:
    first, second = (LiDB.create((64, 48), LiDBConfig(), torch.Generator()) for _ in range(2))
    assert first.a_aux is second.a_aux and first.b_aux is second.b_aux


@pytest.mark.parametrize("shape", [(320, 768), (1280, 320), (3072, 768), (60, 30)])
def test_the_norm_of_the_change_is_that_of_the_small_product(shape: tuple[int, int]) -> None:
    """``||dW||_F = ||A_train B_train||_F``: orthonormal bases keep lengths (methods.md 3)."""
    adapter = LiDB.create(shape, LiDBConfig(rank=2), torch.Generator().manual_seed(0))
    with torch.no_grad():
        adapter.a_train.normal_(generator=torch.Generator().manual_seed(1))
    small = (adapter.a_train.double() @ adapter.b_train.double()).norm()
    change = adapter.a_aux.double() @ adapter.a_train.double() @ adapter.b_train.double() @ adapter.b_aux.double().T
    assert (change.norm() / small - 1).abs() < 1e-6
    assert (adapter.delta().double().norm() / small - 1).abs() < 1e-6


def test_sizes_are_clipped_to_the_layer() -> None:
    adapter = LiDB.create((30, 20), LiDBConfig(rank=25), torch.Generator())
    assert (adapter.a_train.shape, adapter.b_train.shape) == ((30, 20), (20, 20))


def test_a_link_keeps_its_seed_and_probes_and_another_basis_is_refused() -> None:
    link = Adapter.create("lidb", [Target("l", (32, 16))], LiDBConfig(basis_seed=5), torch.Generator())
    facts = LiDB.constants_of(link.layers.values())
    assert facts["basis_seed"] == 5 and set(facts["probes"]) == {"out 32 32", "in 16 16"}
    LiDB.check_constants(facts, link.layers.values())
    facts["probes"]["out 32 32"][1] += 1e-3
    with pytest.raises(ValueError, match=r"\bseed 5\b.*\bout 32 32\b"):
        LiDB.check_constants(facts, link.layers.values())


def test_bases_made_in_inference_mode_train() -> None:
    with torch.inference_mode():
        adapter = LiDB.create((33, 17), LiDBConfig(basis_seed=9), torch.Generator().manual_seed(0))
    copy = AdapterStack((Adapter("lidb", {"l": adapter}, {"l": Target("l", (33, 17))}),)).adapters[0].copy_to("cpu")
    copy.layers["l"].delta().sum().backward()
    assert copy.layers["l"].a_train.grad.abs().sum() > 0


def test_bases_that_no_memory_should_hold_are_refused_before_they_are_made() -> None:
    LiDB.create((21504, 3072), LiDBConfig(), torch.Generator())
    with pytest.raises(ValueError, match=r"\blayer l\b.*\b21504 x 300\b"):
        Adapter.create("lidb", [Target("l", (21504, 3072))], LiDBConfig(a=300), torch.Generator())
    with pytest.raises(ValueError, match=r"\b40\d+ values\b.*\b8388608\b"):
        check_basis_sizes([(size, 100) for size in range(20_000, 20_010) for _ in ("out", "in")])
