"""Evaluate personalization in the small world: identity, prompt fidelity, diversity and the class prior.

Every row personalizes the same held-out people from four images each; the oracle judges. See README.md.
"""

from pathlib import Path
from typing import Any

from common.charts import curves
from common.comparison import Comparison, Derived, Done
from common.harness import Aim
from common.methods import FALLING, Ours, Stock, lora, untouched
from common.oracle_metrics import CODED, REAL

FASTER = 5e-3
"""Learning rate of our rows, ten times the stock trainer's, whose alpha also divides its effect by eight."""


def same_time(done: Done) -> Stock:
    """Return the stock trainer with as many steps, to the nearest ten, as it does in the time of ``lora_8``."""
    pace = done["stock_500"]["seconds"] / done["stock_500"]["steps"]
    return Stock(steps=max(10, 10 * round(done["lora_8"]["seconds"] / pace / 10)))


def draw_hollow(done: Done, folder: Path) -> None:
    """Draw identity and prompt fidelity over the removed share of the U-Net, as in Hollowed Net's Figure 5."""
    rows = [r for name, r in done.items() if "identity" in r and (name == "lora_8" or name.startswith("hollow_"))]
    rows.sort(key=lambda row: row["taken_out"])
    if len(rows) > 1:
        figures = ("identity", "prompt_fidelity")
        lines = {f: [(row["taken_out"], row[f], row[f"{f}_std"]) for row in rows] for f in figures}
        curves(folder / "hollow.png", "removed share of the U-Net", lines)


METHODS: dict[str, Any] = {
    "base": untouched,
    **{f"lora_{rank}": lora(rank) for rank in (1, 4, 8)},
    "lora_8_prior": lora(prior=True),
    "lora_32": lora(32),
    "lora_32_400": lora(32, 3e-3, steps=400),
    "lidb": Ours("MethodLiDB", {"learning_rate": 5e-2, "text_encoder_lr": 5e-3}, options=FALLING),
    **{f"para_{r}": Ours("MethodPaRa", {"rank": r, "learning_rate": 1e-2}, options=FALLING) for r in (1, 4, 8)},
    "full": Ours("MethodDreamBooth", {"learning_rate": 2e-3}, options=FALLING),
    "full_prior": Ours("MethodDreamBooth", {"learning_rate": 2e-3}, options=FALLING, prior=True),
    **{f"hollow_{f}": lora(hollow={"fraction": f, "samples": 400}) for f in (0.4, 0.6, 0.8, 0.9)},
    "textual_inversion": Ours("MethodTextualInversion", {"token": "sksface", "initializer_word": "face"}),
    "stock_same_steps": Stock(steps=100, batch_size=4),
    "stock_500": Stock(),
    "stock_500_faster": Stock(learning_rate=FASTER),
    "stock_same_time": Derived(("lora_8", "stock_500"), same_time),
    CODED: CODED,
    REAL: REAL,
}
AIMS = (
    Aim("base", "prompt_fidelity", 0.85, least=True),
    Aim("lora_32_400", "identity", 0.8, least=True),
    Aim("lora_32_400", "prompt_fidelity_to_base", -0.1, least=True),
    Aim("lora_8", "identity_to_stock_500", 0.0, least=True),
    Aim("lora_8", "prompt_fidelity_to_stock_500", 0.0, least=True),
    Aim("lora_8", "identity_to_stock_500_faster", 0.0, least=True),
    Aim("lora_8", "prompt_fidelity_to_stock_500_faster", 0.0, least=True),
    Aim("lora_8_prior", "class_prior_to_lora_8", 0.0, least=True),
    Aim("hollow_0.4", "identity_of_lora_8", 0.95, least=True),
    Aim("hollow_0.4", "prompt_fidelity_to_lora_8", 0.0, least=True),
)
OTHERS = ("base", "stock_500", "stock_500_faster", "lora_8")
"""Rows to which all rows are compared."""

if __name__ == "__main__":
    Comparison("quality", __doc__, METHODS, AIMS, OTHERS, draw_hollow).main()
