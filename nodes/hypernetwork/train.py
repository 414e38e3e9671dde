"""Training a hypernetwork in the graph."""

from collections.abc import Sequence
from typing import Any

from comfy_api.latest import io

from ...models.adapters.targets import TEXT_PREFIX
from ...models.hypernetwork.network import HyperNetworkConfig
from ...models.hypernetwork.predictor import BaseModelRef, Predictor
from ...models.subject_bank.bank import Bank
from ...trainers.config import TrainingOptions
from ...trainers.data.dataset import Example, Subject
from ...trainers.engine.checkpoints import CheckpointStore
from ...trainers.engine.checks import check_choice
from ...trainers.engine.distributed import SINGLE, ProcessGroup
from ...trainers.engine.run_hash import run_hash
from ...trainers.hypernetwork.config import HyperNetworkTrainingConfig
from ...trainers.hypernetwork.feature_cache import FeatureCache
from ...trainers.hypernetwork.train import Result, train_hypernetwork
from ...trainers.reporting.live_view import LiveView
from ..bridge.folders import state_folder
from ..bridge.images.clip_vision import encoder_ref, image_tokens
from ..bridge.progress import Progress
from ..bridge.subject_banks import base_model_record
from ..bridge.text.conditioning import encode_prompt
from ..bridge.training_session import training_session
from ..common import method_inputs, sockets
from ..training.train_adapter import RESUME
from .predict import CATEGORY

CONFIG = HyperNetworkConfig()
STEPS, LEARNING_RATE, BATCH = 5000, 5e-4, 16
"""Our choice: the paper says nothing of them."""
MOST_WARMUP = 200
WARMUP = f"a tenth of the steps, at most {MOST_WARMUP}"


class TrainHyperNetwork(io.ComfyNode):
    """Bank -> hypernetwork."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperBoothTrainHyperNetwork",
            display_name="Train HyperNetwork",
            category=CATEGORY,
            description="Learns to tell a person's adapter from one picture, from a bank of people. Shows its "
            "predictions for people it never saw beside the controls: the mean person, and the wrong picture. "
            "Cancelled or killed, it goes on when it is queued again.",
            inputs=[
                io.Model.Input("model", tooltip="The model that the bank was built on."),
                io.Clip.Input("clip", tooltip="Its text encoder."),
                io.ClipVision.Input(
                    "clip_vision", tooltip="Encodes the pictures, once each; predictions need the same one."
                ),
                sockets.Bank.Input("bank", tooltip="From Build Subject Bank or Load Subject Bank."),
                io.Int.Input("steps", default=STEPS, min=1, max=10000000, tooltip="Optimizer steps."),
                method_inputs.learning_rate(LEARNING_RATE, "Of all of the hypernetwork; lower if the loss jumps."),
                io.Int.Input("batch_size", default=BATCH, min=1, max=4096, tooltip="People per step."),
                io.Int.Input(
                    "refinements", default=CONFIG.refinements, min=1, max=64,
                    tooltip="Times that the decoder improves its prediction.",
                ),
                io.Float.Input(
                    "weight_loss", default=1.0, min=0.0, max=1e6, step=0.01,
                    tooltip="Weight of the distance from the adapters in the bank; 0 switches it off. Alone (with "
                    "denoising_loss 0) no step needs the model, and takes a fraction of the time.",
                ),
                io.Float.Input(
                    "denoising_loss", default=1.0, min=0.0, max=1e6, step=0.01,
                    tooltip="Weight of the loss through the model with the predicted adapter on it; 0 switches it off.",
                ),
                sockets.seed("Same seed and inputs, same hypernetwork; it also chooses who is held out."),
                io.Combo.Input(
                    "resume", options=list(RESUME), default=RESUME[0],
                    tooltip="continue: a run that was cancelled or killed goes on where its last state was saved, if "
                    "all inputs are the same. start over: from step 0.",
                ),
                *_optional_inputs(),
            ],
            outputs=[
                sockets.HyperNetwork.Output(
                    display_name="hypernetwork", tooltip="For Predict Adapter and Save HyperNetwork."
                ),
                io.LossMap.Output(display_name="loss_map", tooltip="Loss of every step, for Plot Loss Graph."),
                io.String.Output(display_name="report", tooltip="How it went, with the controls."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model: Any, clip: Any, clip_vision: Any, bank: Bank, steps: int, learning_rate: float, batch_size: int,
        refinements: int, weight_loss: float, denoising_loss: float, seed: int, resume: str,
        options: TrainingOptions | None = None, width: int = CONFIG.width, start_from: Predictor | None = None,
        input_pictures: int = 0,
    ) -> io.NodeOutput:  # fmt: skip
        check_choice("resume", resume, RESUME)
        run = run_of(
            bank, steps, learning_rate, batch_size, refinements, weight_loss, denoising_loss, seed,
            options or options_for(steps), width, start_from, input_pictures,
        )  # fmt: skip
        result = train(run, model, clip, clip_vision, resume == RESUME[0])
        return io.NodeOutput(result.predictor, {"loss": result.history.losses}, report(run, result))


def _optional_inputs() -> list[io.Input]:
    return [
        sockets.Options.Input(
            "options",
            optional=True,
            tooltip="Optimizer, course of the rate, noise, precision. Without them the rate rises over the first steps "
            "and stays.",
        ),
        io.Int.Input(
            "width",
            default=CONFIG.width,
            min=8,
            max=4096,
            step=8,
            optional=True,
            tooltip="Of the decoder's tokens: more holds more, and makes a larger file. A multiple of 8. With "
            "start_from it stays as it was there.",
        ),
        sockets.HyperNetwork.Input(
            "start_from",
            optional=True,
            tooltip="A hypernetwork to train further, with another weight of the losses for example.",
        ),
        io.Int.Input(
            "input_pictures",
            default=0,
            min=0,
            max=1000000,
            optional=True,
            tooltip="Predictions are made from the first so many pictures of each person, and judged by another one; "
            "0: from any. For folders where pictures that show a person well come first, and other scenes after them.",
        ),
    ]


def options_for(steps: int) -> TrainingOptions:
    """Those of a run that is given none."""
    return TrainingOptions(warmup_steps=min(MOST_WARMUP, steps // 10))


def run_of(
    bank: Bank, steps: int, learning_rate: float, batch_size: int, refinements: int, weight_loss: float,
    denoising_loss: float, seed: int, options: TrainingOptions, width: int, start_from: Predictor | None,
    input_pictures: int = 0,
) -> HyperNetworkTrainingConfig:  # fmt: skip
    """The run that these inputs ask for."""
    shared = bool(bank.manifest.settings.get("shared_input"))
    width = width if start_from is None else start_from.network.config.width
    config = HyperNetworkConfig(width=width, refinements=refinements, shared_input=shared, learnt_input=shared)
    return HyperNetworkTrainingConfig(
        bank, config, steps, learning_rate, batch_size, weight_loss, denoising_loss, seed, options, start_from,
        input_pictures,
    )  # fmt: skip


def train(
    run: HyperNetworkTrainingConfig, model: Any, clip: Any, vision: Any, resume: bool, processes: ProcessGroup = SINGLE
) -> Result | None:  # fmt: skip
    """The run on the loaded model, with progress and a state on disk; None from processes that do not lead."""
    bank, encoder = run.bank, encoder_ref(vision)
    require_bank_base(bank, model, clip)
    if run.start_from is not None:
        run.start_from.encoder.check(encoder, "clip_vision", "hypernetwork in start_from")
    conds = _encoded(run.prompts, clip)
    pictures = Subject((Example(bank.latent_batch([(0, 0)]), conds[bank.prompt], bank.prompt),))
    trained = clip if any(name.startswith(TEXT_PREFIX) for name in bank.layout.targets) else None
    name = run_hash(encoder)
    features = FeatureCache(
        bank, name, lambda images: image_tokens(vision, images), Progress(sum(bank.image_counts)), processes
    )
    show = Progress(run.steps)
    with training_session(model, run.options, pictures, batch_size=run.batch_size, clip=trained) as session:
        states = CheckpointStore(state_folder(), run.key(session.model.model_hash, name), writes=processes.is_main)
        if not resume:
            states.forget()
        return train_hypernetwork(
            run,
            session,
            conds,
            encoder,
            features,
            lambda sample: LiveView(run.steps, show, sample, run.look_every, True),
            states,
            lambda step: show(step, run.steps),
            processes,
        )


def _encoded(prompts: Sequence[str], clip: Any) -> dict[str, Any]:
    """Each prompt's conditioning, in main memory."""
    show, conds = Progress(len(prompts)), {}
    for prompt in prompts:
        conds[prompt] = encode_prompt(clip, prompt)
        show(len(conds), len(prompts))
    return conds


def require_bank_base(bank: Bank, model: Any, clip: Any) -> None:
    """The bank was built on this MODEL and CLIP.

    Raises:
        ValueError: it was not; both sides are named.
    """
    base, ours = bank.manifest.base, base_model_record(model, clip)
    BaseModelRef(base["base"], base["weights"]).check(BaseModelRef(ours["base"], ours["weights"]), "model", "bank")
    if base.get("prediction", ours["prediction"]) != ours["prediction"]:
        raise ValueError(
            f"model predicts {ours['prediction']}, the bank was built on one that predicts {base['prediction']}; "
            "connect the model as it was then"
        )


def report(run: HyperNetworkTrainingConfig, result: Result) -> str:
    """What a user wants to know afterwards, in plain words."""
    training, held = run.people
    tail = result.history.losses[-max(1, len(result.history.losses) // 10) :]
    return "\n".join(
        [
            result.predictor.describe(),
            f"{result.history.step} steps of {run.batch_size} on {len(training)} people of bank {run.bank.name!r} "
            f"({sum(run.bank.image_counts)} pictures); {len(held)} people held out",
            f"loss {sum(tail) / len(tail):.4f} (mean of the last {len(tail)} steps)",
            *([f"taken up at step {result.resumed}"] if result.resumed else []),
            *result.notes,
        ]
    )
