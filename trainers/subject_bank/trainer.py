"""Training the subjects of a bank, as many side by side as memory holds."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...models.adapters.parameter_layout import Layout
from ...models.adapters.per_sample import side_by_side
from ...models.adapters.stack import AdapterSet, Link
from ...models.backbone.gradient_checkpointing import checkpointed
from ...models.subject_bank.shards import Fit
from ..data.dataset import Subject
from ..diffusion.losses import weighting
from ..diffusion.objective import Objective
from ..dreambooth.initial_adapter import groups_of
from ..engine import memory_plan
from ..engine.divergence import Diverged
from ..engine.loop import FitConfig, fit
from ..engine.state import TrainState, bytes_per_number
from ..reporting.live_view import Watcher
from ..session import Workbench
from .config import Recipe
from .loss import SideBySide

PerPass = Callable[[int], Watcher]
"""Given how many subjects train side by side, what to call after every step."""


@dataclass(frozen=True)
class Fitted:
    """A subject's numbers ``theta [N]``, on the CPU, and how well they do."""

    theta: Tensor
    fit: Fit


@dataclass
class BankTrainer:
    """Trains batches of subjects, one after another.

    Args:
        recipe: how.
        start: the link that all start from.
        together: subjects in one batch, at most.
        plan: how a batch fits into memory: in so many parts, with checkpointing or without; found at the first batch.
        lines: what was chosen, for the report.
    """

    recipe: Recipe
    start: Link
    together: int
    plan: memory_plan.Plan | None = None
    lines: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.layout = Layout.of(self.start)
        self._theta = self.layout.pack(self.start).cpu()

    def __call__(self, bench: Workbench, subjects: Sequence[Subject], watch: PerPass) -> list[Fitted | str]:
        """The subjects' numbers, in their order; of one that cannot be learnt, why.

        Raises:
            torch.OutOfMemoryError: one subject alone, with checkpointing, does not fit.
        """
        if self.plan is None:
            self.plan = self._planned(bench, subjects[0])
        while True:
            size = -(-self.together // self.plan.pieces)
            try:
                parts = [subjects[start : start + size] for start in range(0, len(subjects), size)]
                return [one for part in parts for one in self._apart_if_need_be(bench, part, watch)]
            except Exception as error:
                if not bench.is_out_of_memory(error):
                    raise
            self._tighten()

    def _apart_if_need_be(self, bench: Workbench, subjects: Sequence[Subject], watch: PerPass) -> list[Fitted | str]:
        """All side by side; in halves, and these again, if one of them spoils the batch."""
        try:
            return self._side_by_side(bench, subjects, watch)
        except Diverged as error:
            if len(subjects) == 1:
                return [str(error)]
        half = len(subjects) // 2
        return [
            one
            for part in (subjects[:half], subjects[half:])
            for one in self._apart_if_need_be(bench, part, watch)
        ]  # fmt: skip

    def _side_by_side(self, bench: Workbench, subjects: Sequence[Subject], watch: PerPass) -> list[Fitted | str]:
        link, options, seen = self._link(len(subjects), bench), self.recipe.options, watch(len(subjects))
        state = TrainState(groups_of(link, self.recipe.method), options.optimizer, options.ema_decay, bench.half)
        config = FitConfig(
            self.recipe.steps, options.lr_scheduler, options.warmup_steps, options.gradient_accumulation,
            options.max_grad_norm, worse=options.worse, apart=True,
        )  # fmt: skip
        loss = self._loss(bench, subjects)
        with (
            AdapterSet((link,)).attached(bench.layers, bench.borrow, bench.written_over) as without,
            checkpointed(bench.blocks if self.plan.checkpointing else ()),
        ):
            with without():
                base = loss.measured()
            looks: list[Tensor] = []
            fit(loss, state, config, lambda now: seen(now.history), probe=lambda: _seen(looks, loss.measured()))
            with state.result():
                return self._fitted(loss, link, base, looks[-1])

    def _fitted(self, loss: SideBySide, link: Link, base: Tensor, own: Tensor) -> list[Fitted | str]:
        """What the link holds now, beside its loss and the base's, and measured with the numbers of the neighbour."""
        theta, other = self.layout.pack(link), None
        if len(theta) > 1:
            self.layout.put(theta.roll(1, 0), link)
            other = loss.measured()
            self.layout.put(theta, link)
        return [
            Fitted(one, Fit(base[i].item(), own[i].item(), None if other is None else other[i].item()))
            for i, one in enumerate(theta.cpu())
        ]

    def _link(self, subjects: int, bench: Workbench) -> Link:
        """The start for each subject, as parameters of which those that train want gradients."""
        theta = self._theta.to(bench.device).expand(subjects, -1)
        return side_by_side(self.layout, theta, self.recipe.shared_input)

    def _loss(self, bench: Workbench, subjects: Sequence[Subject]) -> SideBySide:
        options = self.recipe.options
        choose = weighting(options.loss_weighting, options.min_snr_gamma)
        objective = Objective(bench.denoiser, bench.condition_each, bench.to_model, choose)
        return SideBySide(objective, subjects, options, self.recipe.seed)

    def _planned(self, bench: Workbench, subject: Subject) -> memory_plan.Plan:
        """By what one subject's step keeps, measured; the report gets a line."""
        options, batch = self.recipe.options, self.together
        start = memory_plan.Plan(checkpointing=options.gradient_checkpointing)
        if options.memory == "as set":
            plan, line = start, f"{memory_plan.describe(start, None, 0, batch, bench.precision)} (as set)"
        elif (needs := self._measured(bench, subject)) is None:
            plan = memory_plan.Plan(batch, checkpointing=True)
            line = memory_plan.describe(plan, None, 0, batch, bench.precision)
        else:
            plan = memory_plan.choose(needs, bench.free_memory(), batch, start)
            bench.make_room(needs.of(plan, batch))
            line = memory_plan.describe(plan, needs, bench.free_memory(), batch, bench.precision)
        self.lines.append(line)
        logging.info("HyperBooth: %s", line)
        return plan

    def _measured(self, bench: Workbench, subject: Subject) -> memory_plan.Needs | None:
        """What a run takes for each subject side by side, gradients and optimizer among it; None if not even one
        forward fits."""
        link, loss = self._link(1, bench), self._loss(bench, [subject])
        parameters = [parameter for parameter in link.parameters() if parameter.requires_grad]
        per_number = bytes_per_number(self.recipe.options.optimizer, self.recipe.options.ema_decay > 0)
        passing = bench.passing(subject.examples[0].size)
        try:
            with AdapterSet((link,)).attached(bench.layers, bench.borrow, bench.written_over):
                needs = memory_plan.measure(lambda: next(loss(0)), bench.blocks, parameters, passing, per_number)
        except Exception as error:
            if not bench.is_out_of_memory(error):
                raise
            return None
        return memory_plan.Needs(0, needs.passing + needs.fixed, needs.kept, needs.kept_checkpointed)

    def _tighten(self) -> None:
        tighter = self.plan.tighter(self.together) if self.recipe.options.memory == "auto" else None
        if tighter is None:
            raise torch.OutOfMemoryError(
                "out of memory; give fewer subjects_per_batch, set memory to 'auto', or lower the resolution"
            )
        logging.warning("HyperBooth: out of memory; going on with %s", tighter)
        self.plan = tighter


def _seen(looks: list[Tensor], losses: Tensor) -> float:
    """The loss of the subject that fares worst, as a multiple of its first one, times the mean of those: so the ruin of
    one does not pass for the others' gain. All stay in ``looks``, the last of them from the end."""
    looks.append(losses)
    first = looks[0].clamp(min=1e-30)
    return ((losses / first).max() * first.mean()).item()
