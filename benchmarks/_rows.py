"""What `bench quality` compares, and what is to come out."""

from typing import Any

from _harness import Aim, Row
from _personalised import Ours, Stock, untouched

FIRST = 40
"""Held-out people before this one were used to choose settings; the report is on others."""
SAME_TIME, REAL = "stock_same_time", "real"

EVERYWHERE = "all linear and convolution"
FALLING = {"lr_scheduler": "cosine"}


def lora(rank: int = 8, **more: Any) -> Ours:
    """LoRA in every layer; the rate was chosen on other people."""
    inputs = {"rank": rank, "alpha": float(rank), "targets": EVERYWHERE, "learning_rate": 5e-3}
    return Ours("MethodLoRA", inputs, options=FALLING, **more)


def same_time(done: dict[str, Row]) -> Stock:
    """The stock trainer with as many steps, to the next ten, as it can do while `lora_8` trains."""
    pace = done["stock_500"]["seconds"] / done["stock_500"]["steps"]
    return Stock(steps=max(10, round(done["lora_8"]["seconds"] / pace, -1)))


ROWS: dict[str, Any] = {
    "base": untouched,
    **{f"lora_{rank}": lora(rank) for rank in (1, 4, 8)},
    "lora_8_prior": lora(prior=True),
    "lora_8_400": lora(steps=400),
    "lidb": Ours("MethodLiDB", options=FALLING),
    **{f"para_{rank}": Ours("MethodPaRa", {"rank": rank}, options=FALLING) for rank in (1, 4, 8)},
    "full": Ours("MethodDreamBooth", {"learning_rate": 2e-3}, options=FALLING),
    "full_prior": Ours("MethodDreamBooth", {"learning_rate": 2e-3}, options=FALLING, prior=True),
    **{f"hollow_{f}": lora(hollow={"fraction": f, "samples": 400}) for f in (0.4, 0.6, 0.8, 0.9)},
    "textual_inversion": Ours("MethodTextualInversion", {"token": "sksface", "initializer_word": "face"}),
    "stock_same_steps": Stock(steps=100, batch_size=4),
    "stock_500": Stock(),
}
AIMS = (
    Aim("base", "prompt_fidelity", 0.85, least=True),
    Aim("lora_8_400", "identity", 0.8, least=True),
    Aim("lora_8_400", "prompt_fidelity_to_base", -0.1, least=True),
    Aim("lora_8", "identity_to_stock_500", 0.0, least=True),
    Aim("lora_8", "prompt_fidelity_to_stock_500", 0.0, least=True),
    Aim("lora_8_prior", "class_prior_to_lora_8", 0.0, least=True),
    Aim("hollow_0.4", "identity_of_lora_8", 0.95, least=True),
    Aim("hollow_0.4", "prompt_fidelity_to_lora_8", 0.0, least=True),
)
