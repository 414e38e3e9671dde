"""Training a hypernetwork on a bank: features, start, loss, controls and loop put together."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ...models.hypernetwork.predictor import BaseModelRef, Predictor
from ..engine.checkpoints import CheckpointStore
from ..engine.distributed import SINGLE, ProcessGroup
from ..engine.state import History
from ..reporting.live_view import MakeLiveView
from ..session import TrainingSession
from .config import HyperNetworkTrainingConfig
from .feature_cache import FeatureCache
from .trainer import Conds, HyperNetworkTrainer


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
    run: HyperNetworkTrainingConfig,
    session: TrainingSession,
    conds: Conds,
    encoder: BaseModelRef,
    features: FeatureCache,
    watch: MakeLiveView,
    states: CheckpointStore,
    alive: Callable[[int], None],
    processes: ProcessGroup = SINGLE,
) -> Result | None:
    """Train a hypernetwork on ``run.bank``.

    Cancelled or failed, the run's state stays in ``states``, and the next one with the same inputs goes on from there.

    Args:
        bench: the model that the bank is for.
        conds: the bank's prompts -> their conditioning, where the text encoder is not the bank's to change.
        encoder: of pictures.
        features: what it gives for those of the bank.
        alive: called with the steps done, while the start is worked out and the controls are measured.
        processes: processes that share every batch. The leader alone measures, shows and writes; the others give None.

    Raises:
        ValueError: the batch is smaller than the processes are many, or they found different states.
        Diverged: the run no longer learns.
        torch.OutOfMemoryError: not even one person fits.
    """
    if run.batch_size < processes.world_size:
        raise ValueError(
            f"batch_size is {run.batch_size} for {processes.world_size} processes; give at least {processes.world_size}"
        )
    job = HyperNetworkTrainer.begin(run, session, conds, features, alive, processes)
    seen = watch(lambda: job.picture()) if processes.is_main else _nothing
    seen(History())
    resumed = job.state.history.step if states.load(job.state, run.steps) else 0
    _check_same_start(processes.all_gather_object([states.key, resumed]))
    with states.saved_on_exit(job.state):
        job.fit(states, seen)
    if not processes.is_main:
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
