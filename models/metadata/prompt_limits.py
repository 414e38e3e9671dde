"""Prompts in a file: shortened, never refused. Training keeps them all; a file says what they were like.

Whoever trains on thousands of captions learns only when the file is written what a header can hold, so that it takes
the first :data:`MAX_PROMPTS` of them, cut at :data:`MAX_LENGTH` characters, and the number of the others. What is shortened is
not shortened again: a file that was loaded is saved as it was.
"""

import re
from collections.abc import Mapping
from typing import Any

from ..adapters import FAMILIES
from ..adapters.stack import AdapterStack

MAX_PROMPTS, MAX_LENGTH = 20, 200
"""Distinct prompts, and characters of one."""
MAX_PROMPTS_PACKED, MAX_LENGTH_PACKED = 3, 40
"""The same where the numbers are packed: a LiDB of SD1.5 has 5 KB for all that is no number."""
LEFT_OUT = "prompts_left_out"
"""The fact that counts the others."""


def limit_metadata(adapter: AdapterStack) -> dict[str, Any]:
    """The adapter's facts as its own file keeps them."""
    return limit_prompts(adapter.metadata, *_limits(adapter))


def limit_prompts(facts: Mapping[str, Any], most: int = MAX_PROMPTS, longest: int = MAX_LENGTH) -> dict[str, Any]:
    """``facts`` with at most ``most`` prompts of at most ``longest`` characters; their parts with none."""
    found = dict(facts)
    if isinstance(class_prompt := facts.get("class_prompt"), str):
        found["class_prompt"] = _cut(class_prompt, longest)
    if prompts := facts.get("prompts"):
        distinct = dict.fromkeys(prompts)
        kept = list(dict.fromkeys(_cut(prompt, longest) for prompt in distinct))[:most]
        found["prompts"] = kept
        if left_out := facts.get(LEFT_OUT, 0) + len(distinct) - len(kept):
            found[LEFT_OUT] = left_out
    if "parts" in facts:
        parts = [{name: part[name] for name in part if name not in ("prompts", LEFT_OUT)} for part in facts["parts"]]
        found["parts"] = [limit_prompts(part, most, longest) for part in parts]
    return found


def _limits(adapter: AdapterStack) -> tuple[int, int]:
    packed = [FAMILIES[link.family].has_parameter_layout for link in adapter.adapters]
    return (MAX_PROMPTS_PACKED, MAX_LENGTH_PACKED) if packed and all(packed) else (MAX_PROMPTS, MAX_LENGTH)


def _cut(text: str, longest: int) -> str:
    """The text's beginning, in whole characters: a file has no room for half ones (lone surrogates)."""
    text = text if len(text) <= longest else f"{text[: longest - 1]}…"
    return re.sub("[\ud800-\udfff]", "\ufffd", text)
