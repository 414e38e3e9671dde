"""Compare time and memory of a training step: this pack, the floor, the stock node, and diffusers with peft.

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
from common.sd15_unet import PROMPT, RowSetup, UNetBenchmark, add_ratios
from torch import Tensor

from tools.comfy_harness import import_pack

RANK = 8
LEARNING_RATE = 1e-4


Train = Callable[[], Any]
Tick = Callable[[], None]


def floor(setup: RowSetup, tick: Tick, batch_size: int = 1) -> Train:
    """Return a run of two forwards of a batch per step: the least that forward and backward to the inputs can cost."""
    model = setup.model()
    import comfy.model_management

    @torch.inference_mode()
    def train() -> None:
        comfy.model_management.load_models_gpu([model])
        given = (tensor.to(model.load_device) for tensor in setup.data())
        latent, prompt = (tensor.expand(batch_size, *tensor.shape[1:]) for tensor in given)
        for _ in range(setup.updates):
            for _forward in range(2):
                forward(model, latent, prompt)
            tick()

    return train


def forward(model: Any, latent: Tensor, prompt: Tensor) -> None:
    """Run one forward with PyTorch's attention, as in training; ComfyUI's own takes other memory on a CPU."""
    from comfy.ldm.modules.attention import attention_pytorch

    options = {"optimized_attention_override": lambda _chosen, *args, **kwargs: attention_pytorch(*args, **kwargs)}
    sigma = torch.ones(len(latent), device=latent.device)
    model.model.apply_model(latent, sigma, c_crossattn=prompt, transformer_options=options).sum().item()


def ours(setup: RowSetup, _tick: Tick, targets: str = "attention") -> Train:
    """Return a training by the pack, called below the node."""
    return personalizing(setup, "lora", {"rank": RANK, "alpha": RANK}, targets)


def personalizing(
    setup: RowSetup, family: str, settings: dict[str, Any], targets: str, hollow: dict[str, Any] | None = None,
    on_record: Callable[[int, int], None] = lambda done, total: None, **changed: Any,
) -> Callable[[], Any]:  # fmt: skip
    """Return a DreamBooth training in a session on the loaded MODEL; it returns the adapter.

    Args:
        setup: setup of the row.
        family: adapter family.
        settings: settings of the family.
        targets: target layers.
        hollow: settings of :class:`HollowedNetConfig`, or None for the whole network.
        on_record: called with (done, total) after each sample whose activations are cached.
        changed: training options other than the benchmark's usual ones.
    """
    model = setup.model()
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

    usual = {"precision": setup.dtype, "preview_every": 0, "checkpoint_every": 0}
    options = TrainingOptions(**usual | changed)
    hollowing = HollowedNetConfig(**hollow) if hollow else None
    cut = choose_removed_blocks(model.model.diffusion_model, hollowing.fraction).hollow if hollowing else None
    config = getattr(adapters, f"{adapters.FAMILIES[family].__name__}Config")(**settings)
    method = Method(family=family, config=config, targets=targets, learning_rate=LEARNING_RATE)

    @torch.inference_mode()
    def train() -> Any:
        latent, prompt = setup.data()
        subject = Subject((Example(latent, [[prompt, {}]]),))
        run = DreamBoothConfig(subject=subject, method=method, options=options, steps=setup.updates, hollow=hollowing)
        with (
            training_session(model, options, subject, batch_size=1, hollow=cut) as session,
            tempfile.TemporaryDirectory() as folder,
        ):
            result = train_dreambooth(
                run,
                session,
                live_view=lambda _sample: lambda _history: None,
                checkpoints=CheckpointStore(Path(folder), "bench"),
                save_rescued=str,
                save_kept=lambda _adapter, step: str(step),
                on_record=on_record,
            )
            return result.adapter

    return train


STOCK_DTYPES = {"float32": "fp32", "bfloat16": "bf16"}


def stock(setup: RowSetup, _tick: Tick, bypass: bool = False, checkpointing: bool = False) -> Train:
    """Return a run of the stock Train LoRA node as the server calls it: every input a list, under inference mode."""
    model = setup.model()
    from comfy_extras.nodes_train import TrainLoraNode

    # "none" would mean bfloat16 autocast for a float32 model; fp32 switches autocast off.
    settings = {
        "batch_size": 1, "steps": setup.updates, "grad_accumulation_steps": 1, "learning_rate": LEARNING_RATE,
        "rank": RANK, "optimizer": "AdamW", "loss_function": "MSE", "seed": 0,
        "training_dtype": STOCK_DTYPES[setup.dtype], "lora_dtype": "fp32", "quantized_backward": False,
        "algorithm": "LoRA", "gradient_checkpointing": checkpointing, "checkpoint_depth": 1, "offloading": False,
        "existing_lora": "[None]", "bucket_mode": False, "bypass_mode": bypass,
    }  # fmt: skip

    @torch.inference_mode()
    def train() -> None:
        latent, prompt = setup.data()
        inputs = {"model": model, "latents": {"samples": latent}, "positive": [[prompt, {}]], **settings}
        TrainLoraNode.execute(**{name: [value] for name, value in inputs.items()})

    return train


def diffusers_peft(setup: RowSetup, _tick: Tick) -> Train:
    """Return the loop of diffusers' ``train_dreambooth_lora.py`` on the same layers, with its peft adapter.

    Fused AdamW, as ours, is faster than that script's own setting.
    """
    import torch.nn.functional as F
    from diffusers import DDPMScheduler

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    unet = _diffusers_unet(setup).to(device)
    parameters = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    scheduler = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)

    def train() -> None:
        latent, prompt = (tensor.to(device) for tensor in setup.data())
        optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, fused=True)
        for _ in range(setup.updates):
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


ROWS: dict[str, Callable[[RowSetup, Tick], Train]] = {
    "floor": floor,
    "ours": ours,
    "diffusers_peft": diffusers_peft,
    "ours_all_layers": partial(ours, targets="all linear and convolution"),
    "stock_bypass": partial(stock, bypass=True),
    "stock": stock,
}
"""The stock node always trains every layer: ``ours_all_layers`` is the row to compare it with."""

NEEDED_TIMES_WEIGHTS = {"stock": 4.7, "stock_bypass": 3.5}
"""Memory that a row needs, as a multiple of the weights' size; 2 for all others."""

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


def _diffusers_unet(setup: RowSetup) -> torch.nn.Module:
    """Return the same weights through diffusers' own conversion, with peft's LoRA on attention."""
    from diffusers import UNet2DConditionModel
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
    from peft import LoraConfig
    from safetensors.torch import load_file

    small = {
        "block_out_channels": (320,), "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D",), "up_block_types": ("CrossAttnUpBlock2D",),
    }  # fmt: skip
    unet = UNet2DConditionModel(cross_attention_dim=PROMPT[-1], **(small if setup.small else {}))
    tensors = {f"model.diffusion_model.{name}": tensor for name, tensor in load_file(setup.weights).items()}
    unet.load_state_dict(convert_ldm_unet_checkpoint(tensors, unet.config))
    unet.requires_grad_(False)
    attention = ["to_q", "to_k", "to_v", "to_out.0"]
    unet.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, init_lora_weights="gaussian", target_modules=attention))
    return unet


def measure(name: str, setup: RowSetup) -> Row:
    """Run one row in this process and return its figures."""
    clock = harness.StepClock()
    train = ROWS[name](setup, clock.tick)
    with harness.peak_memory() as peak, clock.on_optimizer_steps():
        train()
    weights = setup.weights.stat().st_size
    return {
        "seconds_per_step": harness.median(clock.seconds), "steps": len(clock.seconds),
        "peak_bytes": peak.bytes, "weights_bytes": weights, "peak_times_weights": peak.bytes / weights,
    }  # fmt: skip


def compare(rows: Mapping[str, Row]) -> None:
    add_ratios(rows, "seconds_per_step", {other: f"times_{other}" for other in ("floor", "diffusers_peft", "stock")})


if __name__ == "__main__":
    UNetBenchmark("train", __file__, __doc__, list(ROWS), measure, compare, COLUMNS, AIMS, NEEDED_TIMES_WEIGHTS).main()
