"""Combination of two adapter stacks into one."""

from collections.abc import Mapping
from typing import Any

from ..adapters.stack import AdapterStack
from ..textual_inversion.embeddings import merge_embeddings
from .lora_metadata import trigger_words
from .prompt_limits import LEFT_OUT


def combine_adapters(first: AdapterStack, second: AdapterStack) -> AdapterStack:
    """Return the adapters of ``first`` followed by those of ``second``, and the learned embeddings of both.

    Variants whose names in ComfyUI begin alike (Flux, FluxSchnell) count as one architecture.

    Raises:
        ValueError: the two are for different architectures, or differ in a layer's shape or an embedding.
    """
    ours, theirs = first.targets(), second.targets()
    for name in ours:
        if name in theirs and theirs[name].shape != ours[name].shape:
            raise ValueError(
                f"first and second are for different architectures: {name} is {ours[name].shape} in first, "
                f"{theirs[name].shape} in second"
            )
    bases = [adapter.metadata.get("base") for adapter in (first, second)]
    if None not in bases and not (bases[0].startswith(bases[1]) or bases[1].startswith(bases[0])):
        raise ValueError(
            f"first was trained on {bases[0]}, second on {bases[1]}; a stack is for one architecture, "
            "combine adapters of the same one"
        )
    embeddings = merge_embeddings(first.embeddings, second.embeddings)
    return AdapterStack(
        first.adapters + second.adapters, _combined_metadata(first.metadata, second.metadata), embeddings
    )


def _combined_metadata(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metadata of the combination.

    It has the entries that are equal in both, the triggers and prompts of both, and each one's metadata in ``parts``.
    """
    shared = {name: value for name, value in first.items() if name in second and second[name] == value}
    inherited = {
        name: metadata[name] for name in ("base", "prediction") for metadata in (second, first) if name in metadata
    }
    triggers = [word for metadata in (first, second) for word in trigger_words(metadata.get("trigger", ""))]
    prompts = [prompt for metadata in (first, second) for prompt in metadata.get("prompts", ())]
    parts = [part for metadata in (first, second) for part in metadata.get("parts", [dict(metadata)])]
    left_out = sum(metadata.get(LEFT_OUT, 0) for metadata in (first, second))
    return {
        **shared,
        **inherited,
        **({"trigger": ", ".join(dict.fromkeys(triggers))} if triggers else {}),
        "prompts": list(dict.fromkeys(prompts)),
        **({LEFT_OUT: left_out} if left_out else {}),
        "parts": parts,
    }
