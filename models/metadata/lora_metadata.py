"""Metadata of LoRA files for other tools: kohya's ``ss_`` entries and ModelSpec 1.0.1.

ComfyUI-Lora-Manager, AUTOMATIC1111 and kohya's tools read them. All values are strings. Unknown values are omitted;
files and folders are never named.
"""

import datetime
import json
import re
from collections.abc import Mapping
from typing import Any

from ..adapters import LoRA
from ..adapters.stack import AdapterStack
from ..validation import MAX_TEXT_LENGTH, parse_header
from .base_fingerprint import MADE_FOR, recorded_fingerprints
from .prompt_limits import limit_metadata, limit_prompts

STABILITY, DIFFUSERS = "https://github.com/Stability-AI/generative-models", "diffusers"
COMFYUI, FLUX = "https://github.com/comfyanonymous/ComfyUI", "https://github.com/black-forest-labs/flux"

BASES: dict[str, tuple[str, str, str]] = {
    "SD15": ("sd_1.5", "stable-diffusion-v1", DIFFUSERS),
    "SD20": ("sd_v2", "stable-diffusion-v2-512", DIFFUSERS),
    "SDXL": ("sdxl_base_v1-0", "stable-diffusion-xl-v1-base", STABILITY),
    "SD3": ("sd3", "stable-diffusion-3", COMFYUI),
    "Flux": ("flux1", "flux-1-dev", FLUX),
    "FluxSchnell": ("flux1-schnell", "flux-1-schnell", FLUX),
}
"""ComfyUI's name of an architecture -> ``ss_base_model_version``, ModelSpec's architecture and implementation."""

_VERSIONS = {"sd_v1": "SD15", "sdxl": "SDXL"} | {version: base for base, (version, _, _) in BASES.items()}
_PRECISIONS = {"float32": "no", "float16": "fp16", "bfloat16": "bf16"}
_PREDICTIONS = {"eps": "epsilon", "v": "v"}
_DATASET = "subject"
"""Name in place of the folder of training images, which a graph does not have."""

_INVERSION = "textual-inversion"

_COPIED = {
    "ss_unet_lr": "learning_rate", "ss_learning_rate": "learning_rate", "ss_text_encoder_lr": "text_encoder_lr",
    "ss_optimizer": "optimizer", "ss_lr_scheduler": "lr_scheduler", "ss_lr_warmup_steps": "warmup_steps",
    "ss_seed": "seed", "ss_steps": "steps", "ss_max_train_steps": "steps", "ss_num_train_images": "images",
    "ss_num_reg_images": "class_images", "ss_batch_size_per_device": "batch_size",
    "ss_gradient_accumulation_steps": "gradient_accumulation", "ss_max_grad_norm": "max_grad_norm",
    "ss_gradient_checkpointing": "gradient_checkpointing", "ss_prior_loss_weight": "prior_weight",
    "ss_noise_offset": "noise_offset", "ss_caption_dropout_rate": "caption_dropout",
    "ss_training_started_at": "started", "ss_training_finished_at": "finished",
}  # fmt: skip
"""kohya's entry -> the entry of an adapter's metadata that it repeats."""


def lora_metadata(adapter: AdapterStack, title: str, native: bool = False) -> dict[str, str]:
    """Return the entries for the file of ``adapter``, from the adapter's metadata.

    Args:
        adapter: the stack that is saved.
        title: name of the file without its suffix.
        native: True for this pack's own format; False for a plain LoRA, which any stack can be saved as.
    """
    known = limit_metadata(adapter) if native else limit_prompts(adapter.metadata)
    entries = {name: known[key] for name, key in _COPIED.items() if known.get(key) is not None}
    kind = _kind(adapter, native)
    entries |= _base(known) | _training(known) | _captions(known) | _buckets(known)
    entries |= _network(adapter) if kind == LoRA.family else {}
    entries |= {"ss_output_name": title, **_model_spec(known, title, kind)}
    if bases := recorded_fingerprints(known):
        entries[f"hyperbooth_{MADE_FOR}"] = bases
    return {name: value if isinstance(value, str) else _text(value) for name, value in entries.items()}


def parse_lora_metadata(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Return an adapter's metadata from a file of another program: base model, steps and trigger, as far as known."""
    found: dict[str, Any] = {}
    version = metadata.get("ss_base_model_version", "").lower()
    base = max((known for known in _VERSIONS if version.startswith(known)), key=len, default=None)
    if base is not None:
        found["base"] = _VERSIONS[base]
    if re.fullmatch("[0-9]{1,18}", metadata.get("ss_steps", "")):
        found["steps"] = int(metadata["ss_steps"])
    trigger = metadata.get("modelspec.trigger_phrase") or _class_tokens(metadata.get("ss_datasets", ""))
    if 0 < len(trigger) <= MAX_TEXT_LENGTH:
        found["trigger"] = trigger
    if (recorded := metadata.get(f"hyperbooth_{MADE_FOR}")) is not None:
        found[MADE_FOR] = parse_header(recorded)
    return found


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else str(value)


def _kind(adapter: AdapterStack, native: bool) -> str:
    """Return ModelSpec's kind of the file; this pack's own format is a LoRA only if it holds a single one."""
    families = [one.family for one in adapter.adapters]
    if native and families != [LoRA.family]:
        return "-".join(["hyperbooth", *dict.fromkeys(families or [_INVERSION])])
    return LoRA.family if families else _INVERSION


def _network(adapter: AdapterStack) -> dict[str, Any]:
    """Return the settings of kohya's ``networks.lora``; ``Dynamic`` if layers differ, as in files of its resizer.

    Empty if a family of the stack has no rank.
    """
    if not adapter.adapters:
        return {}
    targets, first = adapter.targets(), adapter.adapters[0]
    ranks = {name: sum(one.layers[name].settings().get("rank", 0) for one in adapter.adapters if name in one.layers)
             for name in targets}  # fmt: skip
    if not all(ranks.values()):
        return {}
    alphas = ranks
    if len(adapter.adapters) == 1:
        alphas = {name: first.layers[name].settings().get("alpha", rank) for name, rank in ranks.items()}
    rank, alpha = _common(ranks), _common(alphas)
    kernels = any(len(target.shape) == 4 and target.shape[2:] != (1, 1) for target in targets.values())
    arguments = {"conv_dim": str(rank), "conv_alpha": str(alpha)} if kernels else {}
    return {
        "ss_network_module": "networks.lora", "ss_network_dim": rank, "ss_network_alpha": alpha,
        "ss_network_args": arguments,
    }  # fmt: skip


def _common(values: Mapping[str, float]) -> float | str:
    distinct = set(values.values())
    return distinct.pop() if len(distinct) == 1 else "Dynamic"


def _base(metadata: Mapping[str, Any]) -> dict[str, Any]:
    if "base" not in metadata:
        return {}
    version = BASES[metadata["base"]][0] if metadata["base"] in BASES else metadata["base"]
    return {"ss_base_model_version": version, "ss_v2": metadata["base"].startswith("SD2")}


def _training(metadata: Mapping[str, Any]) -> dict[str, Any]:
    entries: dict[str, Any] = {"ss_loss_type": "l2"} if "loss_weighting" in metadata else {}
    if "batch_size" in metadata:
        entries["ss_total_batch_size"] = metadata["batch_size"] * metadata.get("gradient_accumulation", 1)
    if metadata.get("precision") in _PRECISIONS:
        entries["ss_mixed_precision"] = _PRECISIONS[metadata["precision"]]
    if metadata.get("loss_weighting") == "min_snr":
        entries["ss_min_snr_gamma"] = metadata.get("min_snr_gamma")
    return {name: value for name, value in entries.items() if value is not None}


def _captions(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the data set's entries: trigger words first, then the prompts, each with the number of images."""
    images = metadata.get("images", 1)
    words = trigger_words(metadata.get("trigger", ""))
    tags = dict.fromkeys([*words, *metadata.get("prompts", ())], images)
    if not tags:
        return {}
    subset = {"image_dir": _DATASET, "img_count": images, "num_repeats": 1, "class_tokens": ", ".join(words) or None}
    return {
        "ss_tag_frequency": {_DATASET: tags},
        "ss_dataset_dirs": {_DATASET: {"n_repeats": 1, "img_count": images}},
        "ss_datasets": [{"is_dreambooth": True, "subsets": [subset]}],
    }


def trigger_words(trigger: str) -> list[str]:
    """Return the parts of a trigger such as ``"sks dog, photo"``."""
    return [word.strip() for word in trigger.split(",") if word.strip()]


def _buckets(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sizes of the images with their counts, and the largest size."""
    sizes = _sizes(metadata)
    if not sizes:
        return {}
    buckets = {str(i): {"resolution": size, "count": count} for i, (*size, count) in enumerate(sizes)}
    width, height = _largest(sizes)
    return {
        "ss_resolution": f"({width}, {height})",
        "ss_enable_bucket": len(sizes) > 1,
        "ss_bucket_info": {"buckets": buckets},
    }


def _sizes(metadata: Mapping[str, Any]) -> list[tuple[int, int, int]]:
    """Return ``(width, height, number of images)`` in pixels, from the latents' sizes ``{"64x96": 3}``."""
    if "latent_cell" not in metadata:
        return []
    sizes = [(*map(int, size.split("x")), count) for size, count in metadata.get("latent_sizes", {}).items()]
    return [
        (width * metadata["latent_cell"], height * metadata["latent_cell"], count) for width, height, count in sizes
    ]


def _largest(sizes: list[tuple[int, int, int]]) -> tuple[int, int]:
    width, height, _ = max(sizes, key=lambda size: size[0] * size[1])
    return width, height


def _model_spec(metadata: Mapping[str, Any], title: str, kind: str) -> dict[str, Any]:
    base = metadata.get("base")
    _, architecture, implementation = BASES.get(base, (None, str(base or "unknown").lower(), COMFYUI))
    made = metadata.get("finished")
    spec = {
        "sai_model_spec": "1.0.1",
        "architecture": f"{architecture}/{kind}",
        "implementation": implementation,
        "title": title,
        "trigger_phrase": ", ".join(trigger_words(metadata.get("trigger", ""))) or None,
        "prediction_type": _PREDICTIONS.get(metadata.get("prediction")),
        "resolution": "{}x{}".format(*_largest(sizes)) if (sizes := _sizes(metadata)) else None,
        "date": _iso(made) if made else None,
    }
    return {f"modelspec.{name}": value for name, value in spec.items() if value is not None}


def _iso(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc).isoformat(timespec="seconds")


def _class_tokens(datasets: str) -> str:
    """Return the trigger words in kohya's description of the data set, empty if there are none."""
    try:
        tokens = parse_header(datasets)[0]["subsets"][0]["class_tokens"]
    except (ValueError, LookupError, TypeError):
        return ""
    return tokens if isinstance(tokens, str) else ""
