"""Node that trains a hypernetwork on a subject bank."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from comfy_api.latest import io

from ...models.adapters.targets import TEXT_PREFIX
from ...models.hypernetwork.network import HyperNetworkConfig
from ...models.hypernetwork.predictor import BaseModelRef, Predictor
from ...models.subject_bank.bank import Bank
from ...trainers.checks import check_choice
from ...trainers.config import TrainingOptions
from ...trainers.data.dataset import Example, Subject
from ...trainers.engine.checkpoints import CheckpointStore
from ...trainers.engine.distributed import SINGLE, ProcessGroup
from ...trainers.engine.run_hash import run_hash
from ...trainers.hypernetwork.config import HyperNetworkTrainingConfig
from ...trainers.hypernetwork.feature_cache import FeatureCache
from ...trainers.hypernetwork.train import HyperNetworkResult, HyperNetworkTraining
from ...trainers.reporting.live_view import LiveView, Sample
from ...trainers.session import TrainingSession
from ..bridge.folders import state_folder
from ..bridge.images.clip_vision import encoder_ref, image_tokens
from ..bridge.progress import Progress, is_image_shown
from ..bridge.subject_banks import base_model_record
from ..bridge.text.conditioning import encode_prompt
from ..bridge.training_session import training_session
from ..common import method_inputs, sockets
from ..common.node import Node
from ..training.train_adapter import RESUME
from .predict import CATEGORY

CONFIG = HyperNetworkConfig()
STEPS, LEARNING_RATE, BATCH = 5000, 5e-4, 16
"""Our choice: the paper does not give them."""
MAX_WARMUP = 200
WARMUP = f"a tenth of the steps, at most {MAX_WARMUP}"


class TrainHyperNetwork(Node):
    """Train a hypernetwork on a subject bank."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperBoothTrainHyperNetwork",
            display_name="Train HyperNetwork",
            category=CATEGORY,
            description="Trains a network that predicts a person's adapter from one image, on a bank of people. Shows "
            "the loss of its predictions for held-out people next to baselines: the mean adapter, and another person's "
            "image. Cancelled or killed, it resumes when it is queued again.",
            inputs=[
                io.Model.Input("model", tooltip="The model that the bank was built on."),
                io.Clip.Input("clip", tooltip="Its text encoder."),
                io.ClipVision.Input(
                    "clip_vision", tooltip="Encodes the images, once each; predictions need the same encoder."
                ),
                sockets.Bank.Input("bank", tooltip="From Build Subject Bank or Load Subject Bank."),
                io.Int.Input("steps", default=STEPS, min=1, max=10000000, tooltip="Optimizer steps."),
                method_inputs.learning_rate(LEARNING_RATE, "Of all of its parameters; lower if the loss jumps."),
                io.Int.Input("batch_size", default=BATCH, min=1, max=4096, tooltip="People per step."),
                io.Int.Input(
                    "refinements", default=CONFIG.refinements, min=1, max=64,
                    tooltip="Number of times that the decoder refines its prediction.",
                ),
                io.Float.Input(
                    "weight_loss", default=1.0, min=0.0, max=1e6, step=0.01,
                    tooltip="Weight of the distance to the adapters in the bank; 0 switches it off. Alone (with "
                    "denoising_loss 0) no step needs the model, and takes a fraction of the time.",
                ),
                io.Float.Input(
                    "denoising_loss", default=1.0, min=0.0, max=1e6, step=0.01,
                    tooltip="Weight of the denoising loss of the model with the predicted adapter; 0 switches it off.",
                ),
                sockets.seed("Same seed and inputs, same hypernetwork; it also chooses the held-out people."),
                io.Combo.Input(
                    "resume", options=list(RESUME), default=RESUME[0],
                    tooltip="continue: a run that was cancelled or killed resumes from its last checkpoint, if all "
                    "inputs are the same. start over: from step 0.",
                ),
                *_optional_inputs(),
            ],
            outputs=[
                sockets.HyperNetwork.Output(
                    display_name="hypernetwork", tooltip="For Predict Adapter and Save HyperNetwork."
                ),
                io.LossMap.Output(display_name="loss_map", tooltip="Loss of every step, for Plot Loss Graph."),
                io.String.Output(display_name="report", tooltip="Losses, and the held-out evaluation."),
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
        run = training_config(
            bank, steps=steps, learning_rate=learning_rate, batch_size=batch_size, refinements=refinements,
            weight_loss=weight_loss, denoising_loss=denoising_loss, seed=seed, options=options or options_for(steps),
            width=width, start_from=start_from, input_pictures=input_pictures,
        )  # fmt: skip
        result = train(run, model, clip, clip_vision, resume=resume == RESUME[0])
        return io.NodeOutput(result.predictor, {"loss": result.history.losses}, report(run, result))


def _optional_inputs() -> list[io.Input]:
    return [
        sockets.Options.Input(
            "options",
            optional=True,
            tooltip="Optimizer, learning-rate schedule, noise, precision. By default the learning rate warms up over "
            "the first steps and is constant afterwards.",
        ),
        io.Int.Input(
            "width",
            default=CONFIG.width,
            min=8,
            max=4096,
            step=8,
            optional=True,
            tooltip="Width of the decoder's tokens, a multiple of 8: a larger one has more capacity, and makes a "
            "larger file. With start_from, the width of that hypernetwork.",
        ),
        sockets.HyperNetwork.Input(
            "start_from",
            optional=True,
            tooltip="A hypernetwork to train further, with other loss weights for example.",
        ),
        io.Int.Input(
            "input_pictures",
            default=0,
            min=0,
            max=1000000,
            optional=True,
            tooltip="Number of images of each person, the first by name, that are inputs; another image is the target. "
            "0: all. For folders where images that show a person well come first, and other scenes after them.",
        ),
    ]


def options_for(steps: int) -> TrainingOptions:
    """Return the default options of a run of ``steps`` steps."""
    return TrainingOptions(warmup_steps=min(MAX_WARMUP, steps // 10))


def training_config(
    bank: Bank, *, steps: int, learning_rate: float, batch_size: int, refinements: int, weight_loss: float,
    denoising_loss: float, seed: int, options: TrainingOptions, width: int, start_from: Predictor | None,
    input_pictures: int = 0,
) -> HyperNetworkTrainingConfig:  # fmt: skip
    """Return the configuration of a training run from the inputs of the node, which it describes.

    Args:
        bank: the subject bank; it determines whether the down factors are shared.
        steps: optimizer steps.
        learning_rate: of all parameters.
        batch_size: people per step.
        refinements: of the decoder.
        weight_loss: weight of the distance to the bank's adapters.
        denoising_loss: weight of the denoising loss.
        seed: of every draw.
        options: the training options.
        width: of the decoder, unless ``start_from`` determines it.
        start_from: a hypernetwork to train further, or None.
        input_pictures: number of input images of each person; 0 for all.
    """
    shared = bool(bank.manifest.settings.get("shared_input"))
    width = width if start_from is None else start_from.network.config.width
    network = HyperNetworkConfig(width=width, refinements=refinements, shared_input=shared, learnt_input=shared)
    return HyperNetworkTrainingConfig(
        bank=bank, network=network, steps=steps, learning_rate=learning_rate, batch_size=batch_size,
        weight_loss=weight_loss, denoising_loss=denoising_loss, seed=seed, options=options, start_from=start_from,
        input_images=input_pictures,
    )  # fmt: skip


def train(
    run: HyperNetworkTrainingConfig, model: Any, clip: Any, vision: Any, *, resume: bool,
    processes: ProcessGroup = SINGLE,
) -> HyperNetworkResult | None:  # fmt: skip
    """Train on the loaded model, with progress and checkpoints on disk.

    Args:
        run: the training run.
        model: the MODEL.
        clip: its CLIP.
        vision: the CLIP_VISION that encodes the images.
        resume: whether to resume from a checkpoint of the same run.
        processes: the processes that train together.

    Returns:
        The result; None on processes other than the main one.
    """
    bank, encoder = run.bank, encoder_ref(vision)
    require_bank_base(bank, model, clip)
    if run.start_from is not None:
        run.start_from.encoder.check(encoder, "clip_vision", "hypernetwork in start_from")
    conds = _encode_prompts(run.prompts, clip)
    encoder_hash, progress = run_hash(encoder), Progress(run.steps)
    features = FeatureCache(
        bank, encoder_hash, lambda images: image_tokens(vision, images), on_progress=Progress(sum(bank.image_counts)),
        processes=processes,
    )  # fmt: skip
    with _session(run, model, clip, conds) as session:
        key = run.key(session.model.model_hash, encoder_hash)
        states = CheckpointStore(state_folder(), key, writes=processes.is_main)
        if not resume:
            states.forget()
        training = HyperNetworkTraining(
            config=run, session=session, conditioning=conds, encoder=encoder, features=features, checkpoints=states,
            on_progress=lambda step: progress(step, run.steps), processes=processes,
        )  # fmt: skip
        return training.run(partial(_live_view, run, progress))


def _live_view(run: HyperNetworkTrainingConfig, progress: Progress, sample: Sample) -> LiveView:
    """Return the view that shows the chart of evaluations at each of them, and before the first step."""
    return LiveView(
        total=run.steps, on_progress=progress, sample=sample, preview_every=run.evaluate_every, sample_at_start=True,
        draws=is_image_shown(),
    )  # fmt: skip


def _session(
    run: HyperNetworkTrainingConfig, model: Any, clip: Any, conds: Mapping[str, Any]
) -> AbstractContextManager[TrainingSession]:
    """Open the model for batches of the bank's images; the text encoder too if the bank's adapters change it."""
    bank = run.bank
    example = Example(bank.latent_batch([(0, 0)]), conds[bank.prompt], bank.prompt)
    trained = clip if any(name.startswith(TEXT_PREFIX) for name in bank.layout.targets) else None
    return training_session(model, run.options, Subject((example,)), batch_size=run.batch_size, clip=trained)


def _encode_prompts(prompts: Sequence[str], clip: Any) -> dict[str, Any]:
    """Return each prompt's conditioning, in main memory."""
    progress, conds = Progress(len(prompts)), {}
    for prompt in prompts:
        conds[prompt] = encode_prompt(clip, prompt)
        progress(len(conds), len(prompts))
    return conds


def require_bank_base(bank: Bank, model: Any, clip: Any) -> None:
    """Require that the bank was built on this MODEL and CLIP.

    Args:
        bank: the subject bank.
        model: the MODEL.
        clip: its CLIP.

    Raises:
        ValueError: it was built on another base model, or for another prediction type; the message names both.
    """
    base, ours = bank.manifest.base, base_model_record(model, clip)
    BaseModelRef(base["base"], base["weights"]).check(BaseModelRef(ours["base"], ours["weights"]), "model", "bank")
    if base.get("prediction", ours["prediction"]) != ours["prediction"]:
        raise ValueError(
            f"model predicts {ours['prediction']}, the bank was built on one that predicts {base['prediction']}; "
            "connect the model as it was then"
        )


def report(run: HyperNetworkTrainingConfig, result: HyperNetworkResult) -> str:
    """Describe the hypernetwork, the people it was trained on, and the losses."""
    training, held = run.split
    tail = result.history.losses[-max(1, len(result.history.losses) // 10) :]
    return "\n".join(
        [
            result.predictor.describe(),
            f"{result.history.step} steps of {run.batch_size} on {len(training)} people of bank {run.bank.name!r} "
            f"({sum(run.bank.image_counts)} images); {len(held)} people held out",
            f"loss {sum(tail) / len(tail):.4f} (mean of the last {len(tail)} steps)",
            *([f"resumed at step {result.resumed}"] if result.resumed else []),
            *result.notes,
        ]
    )
