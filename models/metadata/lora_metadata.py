"""What a LoRA file says of itself to other tools: kohya's ``ss_`` entries and ModelSpec 1.0.1.

ComfyUI-Lora-Manager, AUTOMATIC1111 and kohya's tools read them. All values are strings. What is not known is not
written; files and folders are never named.
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
"""Stands for the folder of photographs, which a graph does not have."""

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
"""kohya's entry -> the fact it repeats."""


def lora_metadata(adapter: AdapterStack, title: str, native: bool = False) -> dict[str, str]:
    """The entries for a file called ``title`` that holds ``adapter``, from what is known of its making.

    Args:
        native: the file is in our own format; else it is a plain LoRA, whatever the chain is.
    """
    facts = limit_metadata(adapter) if native else limit_prompts(adapter.metadata)
    entries = {name: facts[fact] for name, fact in _COPIED.items() if facts.get(fact) is not None}
    kind = _kind(adapter, native)
    entries |= _base(facts) | _training(facts) | _words(facts) | _buckets(facts)
    entries |= _network(adapter) if kind == LoRA.family else {}
    entries |= {"ss_output_name": title, **_model_spec(facts, title, kind)}
    if bases := recorded_fingerprints(facts):
        entries[f"hyperbooth_{MADE_FOR}"] = bases
    return {name: value if isinstance(value, str) else _text(value) for name, value in entries.items()}


def parse_lora_metadata(metadata: Mapping[str, str]) -> dict[str, Any]:
    """What a foreign file's entries say: base, steps and trigger words, as far as they are there."""
    facts: dict[str, Any] = {}
    version = metadata.get("ss_base_model_version", "").lower()
    base = max((known for known in _VERSIONS if version.startswith(known)), key=len, default=None)
    if base is not None:
        facts["base"] = _VERSIONS[base]
    if re.fullmatch("[0-9]{1,18}", metadata.get("ss_steps", "")):
        facts["steps"] = int(metadata["ss_steps"])
    trigger = metadata.get("modelspec.trigger_phrase") or _class_tokens(metadata.get("ss_datasets", ""))
    if 0 < len(trigger) <= MAX_TEXT_LENGTH:
        facts["trigger"] = trigger
    if (recorded := metadata.get(f"hyperbooth_{MADE_FOR}")) is not None:
        facts[MADE_FOR] = parse_header(recorded)
    return facts


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else str(value)


def _kind(adapter: AdapterStack, native: bool) -> str:
    """ModelSpec's name of what the file is; our own format is a LoRA only if it holds one, under stock names."""
    families = [link.family for link in adapter.adapters]
    if native and families != [LoRA.family]:
        return "-".join(["hyperbooth", *dict.fromkeys(families or [_INVERSION])])
    return LoRA.family if families else _INVERSION


def _network(adapter: AdapterStack) -> dict[str, Any]:
    """The network as kohya's ``networks.lora`` would be set; ``Dynamic`` where layers differ, as its resizer says.

    Empty if a family of the chain has no rank.
    """
    if not adapter.adapters:
        return {}
    targets, first = adapter.targets(), adapter.adapters[0]
    ranks = {name: sum(link.layers[name].settings().get("rank", 0) for link in adapter.adapters if name in link.layers)
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


def _base(facts: Mapping[str, Any]) -> dict[str, Any]:
    if "base" not in facts:
        return {}
    version = BASES[facts["base"]][0] if facts["base"] in BASES else facts["base"]
    return {"ss_base_model_version": version, "ss_v2": facts["base"].startswith("SD2")}


def _training(facts: Mapping[str, Any]) -> dict[str, Any]:
    entries: dict[str, Any] = {"ss_loss_type": "l2"} if "loss_weighting" in facts else {}
    if "batch_size" in facts:
        entries["ss_total_batch_size"] = facts["batch_size"] * facts.get("gradient_accumulation", 1)
    if facts.get("precision") in _PRECISIONS:
        entries["ss_mixed_precision"] = _PRECISIONS[facts["precision"]]
    if facts.get("loss_weighting") == "min_snr":
        entries["ss_min_snr_gamma"] = facts.get("min_snr_gamma")
    return {name: value for name, value in entries.items() if value is not None}


def _words(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Trigger words first, then the prompts, with the number of images each came with."""
    images = facts.get("images", 1)
    words = trigger_words(facts.get("trigger", ""))
    tags = dict.fromkeys([*words, *facts.get("prompts", ())], images)
    if not tags:
        return {}
    subset = {"image_dir": _DATASET, "img_count": images, "num_repeats": 1, "class_tokens": ", ".join(words) or None}
    return {
        "ss_tag_frequency": {_DATASET: tags},
        "ss_dataset_dirs": {_DATASET: {"n_repeats": 1, "img_count": images}},
        "ss_datasets": [{"is_dreambooth": True, "subsets": [subset]}],
    }


def trigger_words(trigger: str) -> list[str]:
    """``"sks dog, photo"`` -> its parts."""
    return [word.strip() for word in trigger.split(",") if word.strip()]


def _buckets(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes of the pictures with their numbers, and the largest of them."""
    sizes = _sizes(facts)
    if not sizes:
        return {}
    buckets = {str(place): {"resolution": size, "count": count} for place, (*size, count) in enumerate(sizes)}
    width, height = _largest(sizes)
    return {
        "ss_resolution": f"({width}, {height})",
        "ss_enable_bucket": len(sizes) > 1,
        "ss_bucket_info": {"buckets": buckets},
    }


def _sizes(facts: Mapping[str, Any]) -> list[tuple[int, int, int]]:
    """``(width, height, number of pictures)`` in pixels, from the latents' sizes ``{"64x96": 3}``."""
    if "latent_cell" not in facts:
        return []
    sizes = [(*map(int, size.split("x")), count) for size, count in facts.get("latent_sizes", {}).items()]
    return [(width * facts["latent_cell"], height * facts["latent_cell"], count) for width, height, count in sizes]


def _largest(sizes: list[tuple[int, int, int]]) -> tuple[int, int]:
    width, height, _ = max(sizes, key=lambda size: size[0] * size[1])
    return width, height


def _model_spec(facts: Mapping[str, Any], title: str, kind: str) -> dict[str, Any]:
    base = facts.get("base")
    _, architecture, implementation = BASES.get(base, (None, str(base or "unknown").lower(), COMFYUI))
    made = facts.get("finished")
    spec = {
        "sai_model_spec": "1.0.1",
        "architecture": f"{architecture}/{kind}",
        "implementation": implementation,
        "title": title,
        "trigger_phrase": ", ".join(trigger_words(facts.get("trigger", ""))) or None,
        "prediction_type": _PREDICTIONS.get(facts.get("prediction")),
        "resolution": "{}x{}".format(*_largest(sizes)) if (sizes := _sizes(facts)) else None,
        "date": _iso(made) if made else None,
    }
    return {f"modelspec.{name}": value for name, value in spec.items() if value is not None}


def _iso(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc).isoformat(timespec="seconds")


def _class_tokens(datasets: str) -> str:
    """The trigger words in kohya's description of the data set."""
    try:
        tokens = parse_header(datasets)[0]["subsets"][0]["class_tokens"]
    except (ValueError, LookupError, TypeError):
        return ""
    return tokens if isinstance(tokens, str) else ""
