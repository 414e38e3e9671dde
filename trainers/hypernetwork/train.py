"""Training a hypernetwork on a bank: features, start, loss, controls and loop put together."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ...models.hypernetwork.predictor import Made, Predictor
from ..engine.checkpoints import States
from ..engine.distributed import ALONE, Ranks
from ..engine.state import History
from ..reporting.live_view import MakeWatcher
from ..session import Workbench
from .config import HyperRun
from .feature_cache import Features
from .trainer import Conds, Job


@dataclass(frozen=True)
class Result:
    """What a run gave.

    Args:
        predictor: on the CPU.
        history: what happened.
        resumed: step at which a former run was taken up, 0 for none.
        notes: the start, the first and the last look, what was chosen; for the report.
    """

    predictor: Predictor
    history: History
    resumed: int
    notes: tuple[str, ...]


def train_hypernetwork(
    run: HyperRun, bench: Workbench, conds: Conds, encoder: Made, features: Features, watch: MakeWatcher,
    states: States, alive: Callable[[int], None], ranks: Ranks = ALONE,
) -> Result | None:  # fmt: skip
    """Train a hypernetwork on ``run.bank``.

    Cancelled or failed, the run's state stays in ``states``, and the next one with the same inputs goes on from there.

    Args:
        bench: the model that the bank is for.
        conds: the bank's prompts -> their conditioning, where the text encoder is not the bank's to change.
        encoder: of pictures.
        features: what it gives for those of the bank.
        alive: called with the steps done, while the start is worked out and the controls are measured.
        ranks: processes that share every batch. The leader alone measures, shows and writes; the others give None.

    Raises:
        ValueError: the batch is smaller than the processes are many, or they found different states.
        Diverged: the run no longer learns.
        torch.OutOfMemoryError: not even one person fits.
    """
    if run.batch_size < ranks.of:
        raise ValueError(f"batch_size is {run.batch_size} for {ranks.of} processes; give at least {ranks.of}")
    job = Job.begin(run, bench, conds, features, alive, ranks)
    seen = watch(lambda: job.picture()) if ranks.leads else _nothing
    seen(History())
    resumed = job.state.history.step if states.load(job.state, run.steps) else 0
    _check_same_start(ranks.heard([states.key, resumed]))
    with states.keeping(job.state):
        job.fit(states, seen)
    if not ranks.leads:
        return None
    history = job.state.history
    job.settle(states)
    return Result(job.result(encoder, history), history, resumed, job.notes(states))


def _nothing(_history: History) -> None:
    pass


def _check_same_start(found: Sequence[tuple[str, int]]) -> None:
    """All processes do the same run, and go on from the same step.

    Args:
        found: key of the run, and step, of each process.

    Raises:
        ValueError: they found different things.
    """
    keys, steps = zip(*found, strict=True)
    if len(set(keys)) > 1:
        raise ValueError("the processes have different banks, models or encoders; give all of them the same files")
    if len(set(steps)) > 1:
        raise ValueError(
            f"the processes found states of the steps {', '.join(map(str, steps))}; give all of them the same output "
            "folder, one that the machines share"
        )
