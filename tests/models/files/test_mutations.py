"""Thousands of changed files of each kind: refused, or what they were; never a crash, a hang or another result.

Slow, so that `dev.py test` leaves it out; `python dev.py test -m slow` runs it.
"""

import json
import random
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.allocations import LargestTensor
from hyperbooth.models.adapters import FullConfig, LiDBConfig, LoRAConfig, PaRaConfig
from hyperbooth.models.adapters.parameter_layout import ParameterLayout
from hyperbooth.models.adapters.stack import Adapter, AdapterStack
from hyperbooth.models.adapters.targets import Target
from hyperbooth.models.files.adapter_file import load_adapter, save_adapter
from hyperbooth.models.files.digest import DIGEST, file_digest
from hyperbooth.models.hollowed_net.activation_cache import DiskStore, shapes_of
from hyperbooth.models.hypernetwork.checkpoint import load_predictor, save_predictor
from hyperbooth.models.hypernetwork.network import HyperNetwork, HyperNetworkConfig
from hyperbooth.models.hypernetwork.predictor import BaseModelRef, Predictor
from hyperbooth.models.subject_bank.bank import Bank
from hyperbooth.models.subject_bank.manifest import MANIFEST, Manifest
from hyperbooth.models.subject_bank.shards import SubjectFit, list_shards, write_shard
from hyperbooth.trainers.engine.checkpoints import CheckpointStore
from hyperbooth.trainers.engine.state import Group, TrainState
from hyperbooth.trainers.hypernetwork.feature_cache import FeatureCache
from torch import Tensor, nn

pytestmark = pytest.mark.slow
MUTATIONS = 2000
SLOWEST = 5.0
"""Seconds that reading a file of a few kilobytes may take."""
TIMES, ASIDE = 10, 1 << 20
"""Times a file's size that reading it may allocate, and bytes of Python's own besides (messages, parsed headers)."""
LAYERS = [Target("diffusion_model.a", (8, 8)), Target("diffusion_model.b", (8, 8))]
CONFIGS = {
    "lora": LoRAConfig(rank=2), "lidb": LiDBConfig(rank=1, a=4, b=4), "para": PaRaConfig(rank=2), "full": FullConfig()
}  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Args:
        path: the file.
        read: what it holds, as tensors; None if it is refused as one that starts over.
    """

    path: Path
    read: Callable[[], list[Tensor] | None]


def adapter_kind(family: str) -> Callable[[Path], Kind]:
    def make(folder: Path) -> Kind:
        made = Adapter.create(family, LAYERS, CONFIGS[family], torch.Generator().manual_seed(0))
        save_adapter(AdapterStack((made,), {"steps": 3, "prompts": ["a"]}), folder / "a.safetensors")
        return Kind(folder / "a.safetensors", lambda: read_adapter(folder / "a.safetensors"))

    return make


def read_adapter(path: Path) -> list[Tensor]:
    found = load_adapter(path)
    return [*(p.detach().clone() for p in found.parameters()), text(found.metadata)]


def text(value: Any) -> Tensor:
    return torch.tensor(list(json.dumps(value, sort_keys=True, default=str).encode()))


def state_kind(folder: Path) -> Kind:
    def fresh() -> TrainState:
        parameters = [nn.Parameter(torch.ones(4, 3)), nn.Parameter(torch.ones(5))]
        return TrainState([Group(parameters, 0.1)], "adamw", 0.9)

    state = fresh()
    for step in range(1, 4):
        for parameter in state.parameters:
            parameter.grad = torch.full_like(parameter, 0.1 * step)
        state.optimizer.step()
        state.ema.update(step)
        state.history.losses.append(0.5 / step)
        state.history.step = step
    state.history.divergence_checks.append((0, 1.0))
    CheckpointStore(folder, "run").save(state)

    def read() -> list[Tensor] | None:
        found = fresh()
        if not CheckpointStore(folder, "run").load(found, 10):
            clean = fresh()
            assert all(torch.equal(a, b) for a, b in zip(found.parameters, clean.parameters, strict=True))
            return None
        snapshot = found.snapshot()
        for parameter in found.parameters:
            parameter.grad = torch.ones_like(parameter)
        found.optimizer.step()  # what crashed the server
        return [*(tensor.clone() for tensor in snapshot.tensors.values()), text(snapshot.metadata)]

    return Kind(CheckpointStore(folder, "run").path, read)


def hypernetwork_kind(folder: Path) -> Kind:
    layout = ParameterLayout.of(Adapter.create("lidb", LAYERS, CONFIGS["lidb"], torch.Generator().manual_seed(0)))
    config = HyperNetworkConfig(width=8, depth=1, heads=2, refinements=1, directions=2)
    network = HyperNetwork.create(config, layout, 6, torch.Generator().manual_seed(0))
    ref = BaseModelRef("SD15", {"diffusion_model.a": [1.0]})
    path = folder / "h.safetensors"
    save_predictor(Predictor(network, BaseModelRef("vit", {"a": [1.0]}), ref, "a face", {"steps": 3}), path)
    return Kind(path, lambda: [tensor.clone() for tensor in load_predictor(path).network.state_dict().values()])


def bank_of(folder: Path) -> Path:
    layout = ParameterLayout.of(Adapter.create("lidb", LAYERS, CONFIGS["lidb"], torch.Generator().manual_seed(0)))
    base = {"base": "SD15", "weights": {"diffusion_model.a": [1.0]}}
    manifest = Manifest(layout, {"prompt": "a face", "steps": 1}, base, {"torch": "2"})
    manifest.save(folder)
    draw = torch.Generator().manual_seed(0)
    write_shard(
        folder,
        manifest,
        fits={"a": SubjectFit(1, 1), "b": SubjectFit(1, 0.5, 2)},
        image_counts=[1, 2],
        theta=torch.randn(2, layout.parameter_count, generator=draw),
        images=torch.randint(0, 256, (3, 4, 4, 3), generator=draw).to(torch.uint8),
        latents=torch.randn(3, 4, 2, 2, generator=draw),
        prompts=[["x"], ["y", "z"]],
    )
    return folder


def read_bank(folder: Path) -> list[Tensor]:
    bank = Bank.open(folder)
    tensors = [bank.theta()] if len(bank) else []
    for subject in range(len(bank)):
        tensors += [bank.images(subject), bank.latents(subject)]
    return [*tensors, text([bank.names, bank.prompts, [vars(entry.fit) for entry in bank.entries]])]


def shard_kind(folder: Path) -> Kind:
    bank_of(folder)
    return Kind(list_shards(folder)[0], lambda: read_bank(folder))


def manifest_kind(folder: Path) -> Kind:
    bank_of(folder)
    return Kind(folder / MANIFEST, lambda: read_bank(folder))


def feature_kind(folder: Path) -> Kind:
    bank = Bank.open(bank_of(folder))

    def encode(images: Tensor) -> Tensor:
        return images.mean((1, 2))[:, None].expand(-1, 2, -1).contiguous()

    def read() -> list[Tensor]:
        cache = FeatureCache(bank, "encoder", encode, on_progress=lambda *_: None)
        return [cache([(0, 0), (1, 0), (1, 1)])]

    read()
    return Kind(next((folder / "features" / "encoder").iterdir()), read)


def record_kind(folder: Path) -> Kind:
    store, activations = DiskStore(folder / "run.records"), [(torch.randn(2, 3), torch.randn(2, 1)), (torch.ones(4),)]
    store.write("0.2", activations)
    shapes = shapes_of(activations)

    def read() -> list[Tensor] | None:
        if not store.is_usable("0.2", shapes):
            return None
        return [tensor.clone() for part in store.read("0.2") for tensor in part]

    return Kind(folder / "run.records" / "0.2.safetensors", read)


KINDS: dict[str, Callable[[Path], Kind]] = {
    **{f"adapter, {family}": adapter_kind(family) for family in CONFIGS},
    "state": state_kind, "hypernetwork": hypernetwork_kind, "shard": shard_kind, "manifest": manifest_kind,
    "features": feature_kind, "record": record_kind,
}  # fmt: skip
REPAIRED = ("features",)
"""Kinds that are made again where the file cannot be used: what is read is always what it was."""


def parts(whole: bytes) -> tuple[dict[str, Any], bytes]:
    start = 8 + int.from_bytes(whole[:8], "little")
    return json.loads(whole[8:start]), whole[start:]


def joined(header: dict[str, Any], content: bytes) -> bytes:
    coded = json.dumps(header).encode()
    return len(coded).to_bytes(8, "little") + coded + content


def flip(whole: bytes, chance: random.Random) -> bytes:
    changed = bytearray(whole)
    for _ in range(chance.choice((1, 1, 1, 3, 20))):
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def cut(whole: bytes, chance: random.Random) -> bytes:
    return whole[: chance.randrange(len(whole))] + bytes(chance.choice((0, 0, 8, 4096)))


def splice(whole: bytes, chance: random.Random) -> bytes:
    a, b = sorted(chance.randrange(len(whole)) for _ in range(2))
    return whole[:a] + bytes(chance.randrange(256) for _ in range(chance.randrange(16))) + whole[b:]


VALUES = [
    None, True, 0, -1, 1, 2.5, 1e30, 2**63, 2**70, "", "x", "0", [], {}, [[]], {"a": 1}, "\ud800", float("nan"),
    "F64", "U8", "BOOL", [0], [-1], [2**40, 2**40],
]  # fmt: skip


def mutate(value: Any, chance: random.Random, depth: int = 0) -> Any:
    """Return a JSON value with one part of it replaced, removed, doubled or renamed."""
    if isinstance(value, dict) and value and (depth == 0 or chance.random() < 0.85):
        key, found = chance.choice(list(value)), dict(value)
        action = chance.random()
        if action < 0.1:
            del found[key]
        elif action < 0.2:
            found[key + chance.choice(("x", ".", "/", "\0"))] = found.pop(key)
        elif action < 0.25:
            found[chance.choice(("x", "version", "a.b"))] = chance.choice(VALUES)
        else:
            found[key] = mutate(value[key], chance, depth + 1)
        return found
    if isinstance(value, list) and value and chance.random() < 0.8:
        found, index = list(value), chance.randrange(len(value))
        action = chance.random()
        if action < 0.2:
            del found[index]
        elif action < 0.4:
            found.insert(index, found[index])
        else:
            found[index] = mutate(value[index], chance, depth + 1)
        return found
    if isinstance(value, str) and value[:1] in "{[" and chance.random() < 0.9:
        try:
            return json.dumps(mutate(json.loads(value), chance, depth + 1))
        except ValueError:
            return value[:-1]
    if isinstance(value, int | float) and not isinstance(value, bool) and chance.random() < 0.5:
        return value + chance.choice((-1, 1, 8, 0.5))
    return chance.choice(VALUES)


def restructure(whole: bytes, chance: random.Random) -> bytes:
    """Change the structure of a file: its header, or all of it where it is JSON."""
    if whole[:1] == b"{":
        return json.dumps(mutate(json.loads(whole), chance)).encode()
    header, content = parts(whole)
    return joined(mutate(header, chance), content)


def forge(whole: bytes, chance: random.Random) -> bytes:
    """Change the pack's own entry of the header, and write the digest that belongs to the tensors as they are."""
    if whole[:1] == b"{":
        return restructure(whole, chance)
    header, content = parts(whole)
    metadata = dict(header["__metadata__"])
    own = [name for name in metadata if name != DIGEST and metadata[name][:1] == "{"]
    if own:
        metadata[own[0]] = json.dumps(mutate(json.loads(metadata[own[0]]), chance))
        if DIGEST in metadata:
            metadata[DIGEST] = file_digest(metadata[own[0]], {} if "subjects" in metadata[own[0]] else tensors(whole))
    return joined({**header, "__metadata__": metadata}, content)


def tensors(whole: bytes) -> dict[str, Tensor]:
    from safetensors.torch import load

    return load(whole)


HONEST = (flip, cut, splice, restructure)
"""Damage that leaves the digest of before: whatever is read is what it was."""


@pytest.mark.parametrize("name", KINDS)
def test_changed_files_are_refused_or_what_they_were(tmp_path: Path, name: str) -> None:
    kind = KINDS[name](tmp_path)
    whole, before = kind.path.read_bytes(), kind.read()
    assert before is not None
    with LargestTensor():  # which imports much of PyTorch when it is first used
        kind.read()
    outcomes: Counter[str] = Counter()
    for number in range(MUTATIONS):
        chance = random.Random(f"{name} {number}")
        damage = (*HONEST, forge)[number % 5]
        kind.path.write_bytes(damage(whole, chance))
        start = time.monotonic()
        try:
            with bounded_memory(kind.path.stat().st_size):
                found = kind.read()
        except ValueError:
            found = None
        except BaseException as error:  # a panic of the library that reads the file is no Exception
            raise AssertionError(f"{damage.__name__} {number}: {error!r:.400}") from error
        assert time.monotonic() - start < SLOWEST, (damage.__name__, number)
        same = found is not None and equal(found, before)
        outcomes["refused" if found is None else "same" if same else "other"] += 1
        # A manifest has no digest: people may edit it. An adapter without the pack's entries is as any tool's.
        content = kind.path.read_bytes()
        foreign = name.startswith("adapter") and not (b'"hyperbooth":' in content and DIGEST.encode() in content)
        honest = damage in HONEST and name != "manifest" and not foreign
        assert found is None or same or not honest, (damage.__name__, number)
    if name not in REPAIRED:
        assert outcomes["refused"] > MUTATIONS // 3, outcomes
    print(name, dict(outcomes))


@contextmanager
def bounded_memory(size: int) -> Iterator[None]:
    """Require that the block allocates no tensor, and no objects of Python, out of proportion to a file of ``size``."""
    tracemalloc.start()
    try:
        with LargestTensor() as tensors_made:
            yield
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert 8 * tensors_made.values <= TIMES * size + ASIDE and peak <= TIMES * size + ASIDE, (size, peak)


def equal(found: list[Tensor], before: list[Tensor]) -> bool:
    return len(found) == len(before) and all(
        a.shape == b.shape and torch.equal(a, b) for a, b in zip(found, before, strict=True)
    )
