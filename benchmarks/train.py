"""Time and memory of a training step: ours beside the floor, the stock node, and diffusers with peft.

Every row trains the same U-Net (random weights from one file, float32) on the same latents and prompt, with AdamW,
batch 1, on the same number of threads, in a process of its own. See README.md for what exactly is measured.
"""

import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import harness
from common.harness import Aim, Column, Row
from common.sd15_unet import PROMPT, Job, UNetBench, add_ratios
from torch import Tensor

from tools.comfy_harness import import_pack

RANK = 8
LEARNING_RATE = 1e-4


Train = Callable[[], Any]
Tick = Callable[[], None]


def floor(job: Job, tick: Tick, together: int = 1) -> Train:
    """Two forwards per step, of a batch of so many: what a backward to the inputs alone must cost at the least."""
    model = job.model()
    import comfy.model_management

    @torch.inference_mode()
    def train() -> None:
        comfy.model_management.load_models_gpu([model])
        given = (tensor.to(model.load_device) for tensor in job.data())
        latent, prompt = (tensor.expand(together, *tensor.shape[1:]) for tensor in given)
        for _ in range(job.updates):
            for _forward in range(2):
                forward(model, latent, prompt)
            tick()

    return train


def forward(model: Any, latent: Tensor, prompt: Tensor) -> None:
    """One of the whole network, with PyTorch's attention as in training: on a CPU ComfyUI's own takes other memory."""
    from comfy.ldm.modules.attention import attention_pytorch

    options = {"optimized_attention_override": lambda _chosen, *args, **kwargs: attention_pytorch(*args, **kwargs)}
    sigma = torch.ones(len(latent), device=latent.device)
    model.model.apply_model(latent, sigma, c_crossattn=prompt, transformer_options=options).sum().item()


def ours(job: Job, _tick: Tick, targets: str = "attention") -> Train:
    """The pack's own path, below the node."""
    return personalizing(job, "lora", {"rank": RANK, "alpha": RANK}, targets)


def personalizing(
    job: Job, family: str, settings: dict[str, Any], targets: str, hollow: dict[str, Any] | None = None,
    on_record: Callable[[int, int], None] = lambda done, total: None, **changed: Any,
) -> Callable[[], Any]:  # fmt: skip
    """The session on the loaded MODEL, and ``personalize`` in it; gives the adapter.

    Args:
        hollow: settings of ``Hollowing``, or None for the whole network.
        on_record: is told of each sample on record.
        changed: training options other than the benchmark's usual ones.
    """
    model = job.model()
    import_pack.load_pack()
    from hyperbooth.models import adapters
    from hyperbooth.nodes.bridge.model.block_spans import choose_removed_blocks
    from hyperbooth.nodes.bridge.training_session import training_session
    from hyperbooth.trainers.config import Method, TrainingOptions
    from hyperbooth.trainers.data.dataset import Example, Subject
    from hyperbooth.trainers.dreambooth.config import DreamBoothConfig
    from hyperbooth.trainers.dreambooth.trainer import train_dreambooth
    from hyperbooth.trainers.engine.checkpoints import CheckpointStore
    from hyperbooth.trainers.hollowed_net.config import HollowedNetConfig

    usual = {"precision": job.dtype, "preview_every": 0, "checkpoint_every": 0}
    options = TrainingOptions(**usual | changed)
    hollowing = HollowedNetConfig(**hollow) if hollow else None
    cut = choose_removed_blocks(model.model.diffusion_model, hollowing.fraction).hollow if hollowing else None
    config = getattr(adapters, f"{adapters.FAMILIES[family].__name__}Config")(**settings)
    method = Method(family=family, config=config, targets=targets, learning_rate=LEARNING_RATE)

    @torch.inference_mode()
    def train() -> Any:
        latent, prompt = job.data()
        subject = Subject((Example(latent, [[prompt, {}]]),))
        run = DreamBoothConfig(subject=subject, method=method, options=options, steps=job.updates, hollow=hollowing)
        with (
            training_session(model, options, subject, batch_size=1, hollow=cut) as bench,
            tempfile.TemporaryDirectory() as folder,
        ):
            result = train_dreambooth(
                run,
                bench,
                live_view=lambda _sample: lambda _history: None,
                checkpoints=CheckpointStore(Path(folder), "bench"),
                save_rescued=str,
                save_kept=lambda _adapter, step: str(step),
                on_record=on_record,
            )
            return result.adapter

    return train


STOCK_DTYPES = {"float32": "fp32", "bfloat16": "bf16"}


def stock(job: Job, _tick: Tick, bypass: bool = False, checkpointing: bool = False) -> Train:
    """The stock Train LoRA node, called as the server calls it: every input a list, under inference mode."""
    model = job.model()
    from comfy_extras.nodes_train import TrainLoraNode

    # "none" would mean bfloat16 autocast for a float32 model; fp32 switches autocast off.
    settings = {
        "batch_size": 1, "steps": job.updates, "grad_accumulation_steps": 1, "learning_rate": LEARNING_RATE,
        "rank": RANK, "optimizer": "AdamW", "loss_function": "MSE", "seed": 0,
        "training_dtype": STOCK_DTYPES[job.dtype], "lora_dtype": "fp32", "quantized_backward": False,
        "algorithm": "LoRA", "gradient_checkpointing": checkpointing, "checkpoint_depth": 1, "offloading": False,
        "existing_lora": "[None]", "bucket_mode": False, "bypass_mode": bypass,
    }  # fmt: skip

    @torch.inference_mode()
    def train() -> None:
        latent, prompt = job.data()
        inputs = {"model": model, "latents": {"samples": latent}, "positive": [[prompt, {}]], **settings}
        TrainLoraNode.execute(**{name: [value] for name, value in inputs.items()})

    return train


def diffusers_peft(job: Job, _tick: Tick) -> Train:
    """The loop of diffusers' ``train_dreambooth_lora.py`` on the same layers, with its peft adapter.

    Fused AdamW, as ours, is faster than that script's own setting.
    """
    import torch.nn.functional as F
    from diffusers import DDPMScheduler

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    unet = _diffusers_unet(job).to(device)
    parameters = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    scheduler = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)

    def train() -> None:
        latent, prompt = (tensor.to(device) for tensor in job.data())
        optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, fused=True)
        for _ in range(job.updates):
            noise = torch.randn_like(latent)
            timestep = torch.randint(1000, (1,), device=device)
            noisy = scheduler.add_noise(latent, noise, timestep)
            loss = F.mse_loss(unet(noisy, timestep, prompt).sample, noise)
            loss.backward()
            loss.item()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()

    return train


ROWS: dict[str, Callable[[Job, Tick], Train]] = {
    "floor": floor,
    "ours": ours,
    "diffusers_peft": diffusers_peft,
    "ours_all_layers": partial(ours, targets="all linear and convolution"),
    "stock_bypass": partial(stock, bypass=True),
    "stock": stock,
}
"""The stock node has no choice of layers and trains every one: ``ours_all_layers`` is its like."""

NEEDED_TIMES_WEIGHTS = {"stock": 4.7, "stock_bypass": 3.5}
"""Memory that a row needs, in sizes of the weights; 2 for the others."""

AIMS = (
    Aim("ours", "times_floor", 1.1),
    Aim("ours", "times_diffusers_peft", 1.0),
    Aim("ours", "times_stock", 0.25),
    Aim("ours", "peak_times_weights", 1.5),
)

COLUMNS = (
    Column("s per step", "seconds_per_step", harness.seconds),
    Column("worst run", "seconds_per_step_worst", harness.seconds),
    Column("/ floor", "times_floor", harness.times),
    Column("/ diffusers", "times_diffusers_peft", harness.times),
    Column("/ stock", "times_stock", harness.times),
    Column("peak GB", "peak_bytes", harness.gigabytes),
    Column("/ weights", "peak_times_weights", harness.times),
)


def _diffusers_unet(job: Job) -> torch.nn.Module:
    """The same weights through diffusers' own conversion, with peft's LoRA on attention."""
    from diffusers import UNet2DConditionModel
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
    from peft import LoraConfig
    from safetensors.torch import load_file

    small = {
        "block_out_channels": (320,), "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D",), "up_block_types": ("CrossAttnUpBlock2D",),
    }  # fmt: skip
    unet = UNet2DConditionModel(cross_attention_dim=PROMPT[-1], **(small if job.small else {}))
    tensors = {f"model.diffusion_model.{name}": tensor for name, tensor in load_file(job.weights).items()}
    unet.load_state_dict(convert_ldm_unet_checkpoint(tensors, unet.config))
    unet.requires_grad_(False)
    attention = ["to_q", "to_k", "to_v", "to_out.0"]
    unet.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, init_lora_weights="gaussian", target_modules=attention))
    return unet


def measure(name: str, job: Job) -> Row:
    """Run one row in this process."""
    clock = harness.StepClock()
    train = ROWS[name](job, clock.tick)
    with harness.peak_memory() as peak, clock.on_optimizer_steps():
        train()
    weights = job.weights.stat().st_size
    return {
        "seconds_per_step": harness.median(clock.seconds), "steps": len(clock.seconds),
        "peak_bytes": peak.bytes, "weights_bytes": weights, "peak_times_weights": peak.bytes / weights,
    }  # fmt: skip


def compare(rows: Mapping[str, Row]) -> None:
    add_ratios(rows, "seconds_per_step", {other: f"times_{other}" for other in ("floor", "diffusers_peft", "stock")})


if __name__ == "__main__":
    UNetBench("train", __file__, __doc__, list(ROWS), measure, compare, COLUMNS, AIMS, NEEDED_TIMES_WEIGHTS).main()
