"""Each of a thousand corrupted files is refused with a clear message, or loads as a usable adapter."""

import copy
import json
import random
import struct
import time
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.own_process import alone, run_alone, starts_it
from hyperbooth.models.adapters import FAMILIES, FullConfig, LiDBConfig, LoRAConfig, PaRaConfig
from hyperbooth.models.adapters.lidb.random_bases import MAX_BASIS_VALUES
from hyperbooth.models.adapters.stack import Adapter, AdapterStack
from hyperbooth.models.adapters.targets import Target
from hyperbooth.models.files.adapter_file import load_adapter, save_adapter
from hyperbooth.models.files.lora_import import KeyNames
from hyperbooth.models.files.lora_key_formats import KeyTarget
from hyperbooth.models.metadata.combine import combine_adapters
from hyperbooth.models.metadata.lora_metadata import lora_metadata
from hyperbooth.models.metadata.prompt_limits import limit_metadata
from hyperbooth.models.metadata.summary import change_per_block, summary
from safetensors.torch import load, save

LAYERS = [Target("diffusion_model.a.to_q", (40, 24)), Target("text_encoders.clip_l.b", (24, 3, 3, 3))]
CONFIGS = {
    "lora": LoRAConfig(rank=2, alpha=1.5),
    "lidb": LiDBConfig(rank=2, a=9, b=7),
    "para": PaRaConfig(rank=2),
    "full": FullConfig(),
}
FACTS: dict[str, Any] = {
    "base": "SD15", "steps": 7, "prompts": ["a photo of sks dog"], "trigger": "sks dog", "images": 3, "batch_size": 2,
    "latent_cell": 8, "latent_sizes": {"64x64": 3}, "started": 1.7e9, "finished": 1.7e9 + 60, "prediction": "eps",
    "precision": "float16", "loss_weighting": "min_snr", "learning_rate": 1e-4, "parts": [{"steps": 3}],
}  # fmt: skip
THEIRS = {
    "lora_unet_a": KeyTarget(LAYERS[0].name),
    "unet.a": KeyTarget(LAYERS[0].name),
    "lora_te_b": KeyTarget(LAYERS[1].name),
}
NAMES = KeyNames(THEIRS, {layer.name: layer.shape for layer in LAYERS}, "SD15", True)
MIB = 2**20
SLOWEST = 5.0
"""Seconds that a file of a few kilobytes may take, on a machine that does other things too."""


def made(*families: str) -> AdapterStack:
    generator = torch.Generator().manual_seed(0)
    chain = [Adapter.create(family, LAYERS, CONFIGS[family], generator) for family in families]
    for parameter in (parameter for link in chain for parameter in link.parameters()):
        parameter.data.normal_(generator=generator)
    return AdapterStack(tuple(chain), FACTS)


def ours(folder: Path, *families: str, dtype: torch.dtype = torch.float32) -> bytes:
    adapter = made(*families)
    save_adapter(adapter, folder / "whole.safetensors", dtype, lora_metadata(adapter, "whole"))
    return (folder / "whole.safetensors").read_bytes()


def theirs(up: str, down: str, alpha: str, stem: str) -> bytes:
    generator = torch.Generator().manual_seed(0)
    tensors = {stem + up: torch.randn(40, 2, generator=generator), stem + down: torch.randn(2, 24, generator=generator)}
    if alpha:
        tensors[stem + alpha] = torch.tensor(2.0)
    said = {"ss_steps": "12", "ss_base_model_version": "sd_1.5", "ss_datasets": '[{"subsets":[{"class_tokens":"x"}]}]'}
    return save(tensors, said)


WHOLE: dict[str, Callable[[Path], bytes]] = {
    **{family: lambda folder, family=family: ours(folder, family) for family in FAMILIES},
    **{f"{family} half": lambda folder, family=family: ours(folder, family, dtype=torch.float16)
       for family in FAMILIES},
    "chain": lambda folder: ours(folder, *FAMILIES),
    "kohya": lambda folder: theirs(".lora_up.weight", ".lora_down.weight", ".alpha", "lora_unet_a"),
    "diffusers": lambda folder: theirs(".lora_B.weight", ".lora_A.weight", "", "unet.a"),
    "native": lambda folder: theirs(".lora_up.weight", ".lora_down.weight", ".alpha", "diffusion_model.a.b"),
    "difference": lambda folder: save({"diffusion_model.a.diff": torch.ones(40, 24)}),
}  # fmt: skip

DEEP = "@deep@"
STRANGE: list[Any] = [
    None, True, False, -1, 0, 1, 2, 2**31, 2**63, 2**64, 10**30, 10**4000, 1.5, -0.0, 1e300, float("nan"),
    float("inf"), "", "x", "a.b", "\ud800", "\x00", "\n", "x" * 100_000, "64x64", "9" * 400, [], {}, [1], [0, 0],
    [-4, -5], [2**40, 2**40], [1.0, 2.0], [True, True], [[1]], {"a": 1}, {"": []}, ["a"], DEEP, "F32", "I64", "BOOL",
    "F8_E4M3", "F64", "lora", "full", "1/packed",
]  # fmt: skip


def places(tree: Any, way: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path to every value of a JSON tree."""
    inside = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [way, *(place for key, value in inside for place in places(value, (*way, key)))]


def rewritten(tree: Any, rng: random.Random) -> Any:
    """Return the tree with one value removed, duplicated, renamed, exchanged, or replaced by an unusual one."""
    *way, last = rng.choice(places(tree)[1:] or [(None,)])
    if last is None:
        return copy.deepcopy(rng.choice(STRANGE))
    parent = tree
    for key in way:
        parent = parent[key]
    other = rng.choice(list(parent) if isinstance(parent, dict) else range(len(parent)))
    action = rng.randrange(5)
    if action == 0:
        del parent[last]
    elif action == 1:
        parent[last], parent[other] = parent[other], parent[last]
    elif action == 2 and isinstance(parent, dict):
        parent[rng.choice(["", "x", "\ud800", "diffusion_model.c", "text_encoders.", "x" * 5000])] = parent.pop(last)
    else:
        parent[last] = copy.deepcopy(rng.choice(STRANGE))
    return tree


def text_of(tree: Any, rng: random.Random) -> str:
    """Return JSON, which may have a duplicate key, be nested too deep, or be truncated."""
    text = json.dumps(tree).replace(json.dumps(DEEP), "[" * 100_000 + "]" * 100_000)
    if rng.random() < 0.05:
        text = text.replace("{", '{"version":1,"version":2,', 1)
    return text[: rng.randrange(len(text) + 1)] if rng.random() < 0.05 else text


def split(data: bytes) -> tuple[dict[str, Any], bytes]:
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), data[end:]


def joined(header: str, numbers: bytes) -> bytes:
    coded = header.encode("utf-8", "surrogatepass")
    return len(coded).to_bytes(8, "little") + coded + numbers


def flip_bits(data: bytes, rng: random.Random) -> bytes:
    broken, header = bytearray(data), 8 + int.from_bytes(data[:8], "little")
    first, last = rng.choice([(0, len(data)), (0, 8), (8, header), (header, len(data))])
    for _ in range(rng.choice([1, 2, 8, 64])):
        broken[rng.randrange(first, last)] ^= 1 << rng.randrange(8)
    return bytes(broken)


def cut_short(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def make_longer(data: bytes, rng: random.Random) -> bytes:
    return data + rng.randbytes(rng.choice([1, 8, 1000])) if rng.random() < 0.7 else data + data


def rewrite_the_formats_header(data: bytes, rng: random.Random) -> bytes:
    header, numbers = split(data)
    for _ in range(rng.choice([1, 1, 3])):
        header = rewritten(header, rng)
    return joined(text_of(header, rng), numbers)


def rewrite_our_header(data: bytes, rng: random.Random) -> bytes:
    header, numbers = split(data)
    said = header.setdefault("__metadata__", {})
    name = "hyperbooth" if "hyperbooth" in said else rng.choice(list(said) or ["hyperbooth"])
    try:
        tree = json.loads(said[name])
    except (KeyError, ValueError):
        tree = {"version": 1, "chain": [], "facts": {}}
    for _ in range(rng.choice([1, 1, 3])):
        tree = rewritten(tree, rng)
    said[name] = text_of(tree, rng)
    return joined(json.dumps(header), numbers)


def rewrite_facts(data: bytes, rng: random.Random) -> bytes:
    """Change the metadata, whose types reports and other files depend on."""
    header, numbers = split(data)
    said = header.setdefault("__metadata__", {})
    if "hyperbooth" not in said:
        name = rng.choice(["ss_steps", "ss_base_model_version", "ss_datasets", "modelspec.trigger_phrase"])
        said[name] = rng.choice(["9" * 9000, "[" * 100_000, '[{"subsets":[{"class_tokens":7}]}]', "", "\x00", "[1e999]",
                                 '[{"subsets":[{"class_tokens":"\\ud800"}]}]', "9" * 30, "x" * 100_000])  # fmt: skip
        return joined(json.dumps(header), numbers)
    tree = json.loads(said["hyperbooth"])
    tree["facts"] = rewritten(tree["facts"], rng)
    said["hyperbooth"] = text_of(tree, rng)
    return joined(json.dumps(header), numbers)


def exchange_shapes(data: bytes, rng: random.Random) -> bytes:
    header, numbers = split(data)
    names = [name for name in header if name != "__metadata__"]
    one, other = rng.choice(names), rng.choice(names)
    what = rng.choice(["shape", "data_offsets", "dtype", "reverse", "all"])
    if what == "reverse":
        header[one]["shape"].reverse()
    elif what == "all":
        header[one], header[other] = header[other], header[one]
    else:
        header[one][what], header[other][what] = header[other][what], header[one][what]
    return joined(json.dumps(header), numbers)


def declare_huge_sizes(data: bytes, rng: random.Random) -> bytes:
    header, numbers = split(data)
    entry = header[rng.choice([name for name in header if name != "__metadata__"])]
    kind = rng.choice(["shape", "data_offsets"])
    if entry[kind]:
        entry[kind][rng.randrange(len(entry[kind]))] = rng.choice([2**20, 2**31, 2**32, 2**62, 2**63, 2**64 - 1])
    broken = joined(json.dumps(header), numbers)
    return broken if rng.random() < 0.8 else struct.pack("<Q", rng.choice([2**20, 2**31, 2**63, 0])) + broken[8:]


def use_another_dtype(data: bytes, rng: random.Random) -> bytes:
    """Declare the same bytes as another dtype, or cast the values to another dtype."""
    if rng.random() < 0.5:
        header, numbers = split(data)
        same = {"F32": ["I32", "U32"], "F16": ["BF16", "I16"], "U8": ["I8", "BOOL", "F8_E4M3", "F8_E5M2"]}
        for entry in (entry for name, entry in header.items() if name != "__metadata__"):
            entry["dtype"] = rng.choice(same.get(entry["dtype"], ["F64"]))
        return joined(json.dumps(header), numbers)
    dtypes = [torch.int64, torch.uint8, torch.bool, torch.float64, torch.float8_e5m2, torch.bfloat16, torch.complex64]
    tensors, dtype = load(data), rng.choice(dtypes)
    return save({name: tensor.to(dtype) for name, tensor in tensors.items()}, split(data)[0].get("__metadata__"))


def write_strange_numbers(data: bytes, rng: random.Random) -> bytes:
    header, tensors = split(data)[0], load(data)
    name = rng.choice(list(tensors))
    numbers = tensors[name].double().flatten()
    values = [float("nan"), float("inf"), -float("inf"), 1e300, 1e38, 1e18, 1e-45, 0.0]
    numbers[rng.randrange(len(numbers)) :: rng.choice([1, 7, 10**6])] = rng.choice(values)
    wide = rng.random() < 0.5
    tensors[name] = numbers.reshape(tensors[name].shape).to(torch.float64 if wide else tensors[name].dtype)
    return save(tensors, header.get("__metadata__"))


def change_the_tensors(data: bytes, rng: random.Random) -> bytes:
    header, tensors = split(data)[0], load(data)
    name = rng.choice(list(tensors))
    tensor = tensors[name]
    others: dict[int, Callable[[], Any]] = {
        0: lambda: tensors.pop(name),
        1: lambda: tensors.update({rng.choice(["", "x", "1/", "\n", "x" * 5000, name + "."]): tensors.pop(name)}),
        2: lambda: tensors.update({name: tensor[:0] if tensor.ndim else tensor[None][:0]}),
        3: lambda: tensors.update({name: tensor.flatten().clone()}),
        4: lambda: tensors.update({name: tensor[None].clone()}),
        5: lambda: tensors.update({name.replace("lora_up", "lora_B").replace("_B.weight", "_up.weight"): tensor + 0}),
        6: lambda: tensors.update({name: torch.zeros(rng.choice([(0, 4), (40, 0), (3, 5), (1,), (), (2, 2, 2)]))}),
        7: lambda: tensors.clear(),
    }
    others[rng.randrange(8)]()
    return save(tensors, header.get("__metadata__"))


def rewrite_the_layout(data: bytes, rng: random.Random) -> bytes:
    header, tensors = split(data)[0], load(data)
    names = [name for name in tensors if name.endswith("layout")]
    if not names:
        return rewrite_our_header(data, rng)
    tree = json.loads(zlib.decompress(tensors[names[0]].numpy().tobytes()))
    for _ in range(rng.choice([1, 1, 3])):
        tree = rewritten(tree, rng)
    packed = zlib.compress(text_of(tree, rng).encode() if rng.random() < 0.9 else b" " * 10**8)
    tensors[names[0]] = torch.frombuffer(bytearray(packed), dtype=torch.uint8)
    return save(tensors, header.get("__metadata__"))


DAMAGES = (
    flip_bits, cut_short, make_longer, rewrite_the_formats_header, rewrite_our_header, rewrite_facts, exchange_shapes,
    declare_huge_sizes, use_another_dtype, write_strange_numbers, change_the_tensors, rewrite_the_layout,
)  # fmt: skip


def weight_of(adapter: AdapterStack) -> Callable[[str], torch.Tensor]:
    shapes = {name: target.matrix_shape for name, target in adapter.targets().items()}
    return lambda name: torch.ones(shapes[name])


def outcome(path: Path, names: KeyNames) -> str:
    """Return ``refused`` or ``loaded``; a loaded adapter has to be finite and to pass through all uses of adapters."""
    begun = time.monotonic()
    try:
        adapter = load_adapter(path, names)
    except ValueError as error:
        assert path.name in str(error) and len(str(error)) < 2000 and str(error).isprintable(), str(error)[:3000]
        return "refused"
    finally:
        assert time.monotonic() - begun < SLOWEST
    assert adapter.parameters() and all(torch.isfinite(p).all() for p in adapter.parameters())
    assert summary(adapter)
    small = all(target.matrix_shape[0] * target.matrix_shape[1] < 10**6 for target in adapter.targets().values())
    if small:
        assert all(value < float("inf") for value in change_per_block(adapter, weight_of(adapter)).values())
    again = path.with_name("again.safetensors")
    save_adapter(combine_adapters(adapter, adapter), again, metadata=lora_metadata(adapter, "again", native=True))
    assert len(load_adapter(again).adapters) == 2 * len(adapter.adapters)
    save_adapter(adapter, again, metadata=lora_metadata(adapter, "again", native=True))
    loaded, written = load_adapter(again), again.read_bytes()
    expected = summary(replace(adapter, metadata=limit_metadata(adapter)))
    assert loaded.targets() == adapter.targets() and summary(loaded) == expected
    save_adapter(loaded, again, metadata=lora_metadata(loaded, "again", native=True))
    assert again.read_bytes() == written
    return "loaded"


def test_every_family_has_a_config() -> None:
    assert CONFIGS.keys() == FAMILIES.keys()


@pytest.mark.parametrize("kind", WHOLE)
def test_corrupted_files_are_refused_or_usable(tmp_path: Path, kind: str) -> None:
    """Apply each damage ten times to each kind of file: more than a thousand files."""
    assert len(WHOLE) * len(DAMAGES) * 10 > 1000
    whole, path = WHOLE[kind](tmp_path), tmp_path / "broken.safetensors"
    path.write_bytes(whole)
    names = NAMES if kind in ("kohya", "diffusers") else KeyNames()
    assert outcome(path, names) == "loaded"
    outcomes = Counter()
    for damage in DAMAGES:
        for seed in range(10):
            path.write_bytes(damage(whole, random.Random(f"{kind} {damage.__name__} {seed}")))
            try:
                outcomes[outcome(path, names)] += 1
            except BaseException as error:  # a panic of the library that reads the file is no Exception
                raise AssertionError(f"{damage.__name__} with seed {seed}: {error!r:.500}") from error
    assert outcomes["refused"] >= 50


def large(family: str, dtype: torch.dtype) -> bytes:
    """Return a file of 4 MiB."""
    rows = 2**21 // dtype.itemsize
    numbers = {
        "lora": {"lora_up.weight": (rows // 4, 4), "lora_down.weight": (4, rows // 4), "alpha": ()},
        "para": {"basis": (rows // 2, 4)}, "full": {"diff": (1024, rows // 512)},
    }[family]  # fmt: skip
    shape = [rows // 4, rows // 4] if family == "lora" else [rows // 2, 8] if family == "para" else [1024, rows // 512]
    tensors = {f"diffusion_model.a.{name}": torch.ones(size, dtype=dtype) for name, size in numbers.items()}
    chain = [{"family": family, "facts": {}, "targets": {"diffusion_model.a": shape}}]
    return save(tensors, {"hyperbooth": json.dumps({"version": 1, "chain": chain, "facts": {}})})


def claimed(text: str) -> bytes:
    return save({"x": torch.ones(1)}, {"hyperbooth": text})


def kohya(rows: int, rank: int, dtype: torch.dtype) -> bytes:
    return save({"lora_unet_a.lora_up.weight": torch.ones(rows, rank, dtype=dtype),
                 "lora_unet_a.lora_down.weight": torch.ones(rank, 24, dtype=dtype)})  # fmt: skip


def bases_of(rows: int) -> bytes:
    """Return a file of a kilobyte that declares random bases of ``rows`` rows."""
    shape, packed = [rows, rows], torch.ones(16)
    layout = {"version": 1, "family": "lidb", "facts": {"basis_seed": 0, "probes": {}},
              "kinds": [[shape, [8, 1], [1, 8]]], "layers": {"diffusion_model.a": 0}}  # fmt: skip
    coded = torch.frombuffer(bytearray(zlib.compress(json.dumps(layout).encode())), dtype=torch.uint8)
    said = json.dumps({"version": 1, "chain": [{"family": "lidb"}], "facts": {}})
    return save({"packed": packed, "layout": coded}, {"hyperbooth": said})


HUNGRY: dict[str, Callable[[], bytes]] = {
    **{f"{family} {dtype}": lambda family=family, dtype=dtype: large(family, dtype)
       for family in ("lora", "para", "full") for dtype in (torch.float8_e4m3fn, torch.float16, torch.float32)},
    "kohya": lambda: kohya(2**18, 8, torch.float8_e4m3fn),
    "kohya of high rank": lambda: kohya(40, 2**15, torch.float8_e4m3fn),
    "bomb": lambda: rewrite_the_layout(bases_of(8), BOMB),
    "lists": lambda: claimed("[" + "[]," * 120_000 + "1]"),
    "strings": lambda: claimed("[" + '"ab",' * 400_000 + "1]"),
    "names": lambda: claimed("{" + "".join(f'"{i:06}":1,' for i in range(180_000)) + '"a":1}'),
    "numbers": lambda: claimed("[" + "0.5," * 500_000 + "1]"),
    "emoji": lambda: claimed('["' + "\U0001f600" * 2_000_000 + '"]'),
    "deep": lambda: claimed("[" * 100_000),
    "too much": lambda: claimed("[" + "[]," * 2**20 + "1]"),
    "many tensors": lambda: save({f"diffusion_model.{i}.lora_up.weight": torch.ones(1, 1) for i in range(20_000)}),
    "declared": lambda: declare_huge_sizes(large("full", torch.float32), random.Random(0)),
    "bases": lambda: bases_of(MAX_BASIS_VALUES // 8),
    "too large bases": lambda: bases_of(MAX_BASIS_VALUES // 8 + 1),
}  # fmt: skip
"""The kinds of files that need most memory, of a few MiB each, that ten times their size exceeds the noise."""
BESIDE = {"lists": 8, "names": 24, "bases": 224}
"""MiB that a file may take in addition to ten times its size.

The text of a header is bounded, and so are the random bases of LiDB, which are generated and not read.
"""


class _Bomb(random.Random):
    """Make :func:`rewrite_the_layout` write the layout that inflates to a hundred megabytes."""

    def random(self) -> float:
        return 0.95


BOMB = _Bomb(0)


def grown(path: Path) -> int:
    """Return the bytes by which the process grew at its peak while it read the file."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew
    before = resident("VmRSS")
    kept = None
    try:
        kept = load_adapter(path, NAMES)
    except ValueError as error:
        assert path.name in str(error)
    after = resident("VmHWM")
    del kept
    return after - before


def resident(line: str) -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{line}:")[1].split()[0]) * 1024


@alone
@pytest.mark.parametrize("kind", HUNGRY)
def test_memory(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "hungry.safetensors"
    path.write_bytes(HUNGRY[kind]())
    size, taken = path.stat().st_size, grown(path)
    print(f"{kind}: {taken / MIB:.1f} MiB for a file of {size / MIB:.2f} MiB")
    assert taken <= 10 * size + (BESIDE.get(kind, 0) + 3) * MIB


@starts_it
def test_files_take_ten_times_their_size_at_most() -> None:
    """Measure the peak resident memory in a process whose large blocks are mapped and returned to the system."""
    run_alone(__file__, len(HUNGRY), "-k", "test_memory")
