"""Limits of the prompts in a file's metadata, which are shortened and never refused.

Training on thousands of captions must not fail when the file is written. Its header takes the first
:data:`MAX_PROMPTS` of them, truncated to :data:`MAX_LENGTH` characters, and the number of the others. Limiting is
idempotent: a file that was loaded is saved with the same prompts.
"""

import re
from collections.abc import Mapping
from typing import Any

from ..adapters import FAMILIES
from ..adapters.stack import AdapterStack

MAX_PROMPTS, MAX_LENGTH = 20, 200
"""Number of distinct prompts, and characters of one."""
MAX_PROMPTS_PACKED, MAX_LENGTH_PACKED = 3, 40
"""The same in files of packed adapters only: a LiDB of SD1.5 has 5 KB for all but its parameters."""
LEFT_OUT = "prompts_left_out"
"""The entry that counts the omitted prompts."""


def limit_metadata(adapter: AdapterStack) -> dict[str, Any]:
    """Return the metadata of ``adapter`` as its file keeps it."""
    return limit_prompts(adapter.metadata, *_limits(adapter))


def limit_prompts(metadata: Mapping[str, Any], most: int = MAX_PROMPTS, longest: int = MAX_LENGTH) -> dict[str, Any]:
    """Return ``metadata`` with limited prompts; its ``parts`` keep no prompts.

    Args:
        metadata: of an adapter.
        most: number of distinct prompts that are kept.
        longest: characters of a prompt and of the class prompt.
    """
    found = dict(metadata)
    if isinstance(class_prompt := metadata.get("class_prompt"), str):
        found["class_prompt"] = _truncate(class_prompt, longest)
    if prompts := metadata.get("prompts"):
        distinct = dict.fromkeys(prompts)
        kept = list(dict.fromkeys(_truncate(prompt, longest) for prompt in distinct))[:most]
        found["prompts"] = kept
        if left_out := metadata.get(LEFT_OUT, 0) + len(distinct) - len(kept):
            found[LEFT_OUT] = left_out
    if "parts" in metadata:
        parts = [{name: part[name] for name in part if name not in ("prompts", LEFT_OUT)} for part in metadata["parts"]]
        found["parts"] = [limit_prompts(part, most, longest) for part in parts]
    return found


def _limits(adapter: AdapterStack) -> tuple[int, int]:
    packed = [FAMILIES[one.family].has_parameter_layout for one in adapter.adapters]
    return (MAX_PROMPTS_PACKED, MAX_LENGTH_PACKED) if packed and all(packed) else (MAX_PROMPTS, MAX_LENGTH)


def _truncate(text: str, longest: int) -> str:
    """Return the beginning of the text; lone surrogates, which a file cannot hold, become U+FFFD."""
    text = text if len(text) <= longest else f"{text[: longest - 1]}…"
    return re.sub("[\ud800-\udfff]", "\ufffd", text)
