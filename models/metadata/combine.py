"""Two adapters, one after the other."""

from collections.abc import Mapping
from typing import Any

from ..adapters.stack import AdapterStack
from ..textual_inversion.embeddings import merge_embeddings
from .lora_metadata import trigger_words
from .prompt_limits import LEFT_OUT


def combine_adapters(first: AdapterStack, second: AdapterStack) -> AdapterStack:
    """The chain of ``first``, then that of ``second``, and the words of both.

    ComfyUI's names of variants begin alike (Flux, FluxSchnell), and count as one architecture.

    Raises:
        ValueError: they are known to be for different architectures, or disagree on a layer's shape or a word.
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
            f"first was trained on {bases[0]}, second on {bases[1]}; a chain is for one architecture, "
            "combine adapters of the same one"
        )
    words = merge_embeddings(first.embeddings, second.embeddings)
    return AdapterStack(first.adapters + second.adapters, _combined_facts(first.metadata, second.metadata), words)


def _combined_facts(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """What holds for both, the words of both, and each one's own history under ``parts``."""
    shared = {name: value for name, value in first.items() if name in second and second[name] == value}
    either = {name: facts[name] for name in ("base", "prediction") for facts in (second, first) if name in facts}
    words = [word for facts in (first, second) for word in trigger_words(facts.get("trigger", ""))]
    prompts = [prompt for facts in (first, second) for prompt in facts.get("prompts", ())]
    parts = [part for facts in (first, second) for part in facts.get("parts", [dict(facts)])]
    left_out = sum(facts.get(LEFT_OUT, 0) for facts in (first, second))
    return {
        **shared,
        **either,
        **({"trigger": ", ".join(dict.fromkeys(words))} if words else {}),
        "prompts": list(dict.fromkeys(prompts)),
        **({LEFT_OUT: left_out} if left_out else {}),
        "parts": parts,
    }
