"""Training on ComfyUI's loaded objects, in this process."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.lora
import comfy.model_management
import comfy.model_sampling
import comfy.sd
import pytest
import torch
from helpers.reports import mentions, resumed_at
from helpers.training import QUIET, lora, output, relative, train, untouched
from hyperbooth.models.adapters import LoRAConfig
from hyperbooth.models.files.adapter_file import load_adapter, save_adapter
from hyperbooth.nodes.bridge.text.conditioning import encode_prompt
from hyperbooth.nodes.bridge.training_session import training_session
from hyperbooth.trainers.config import Method, TrainingOptions
from hyperbooth.trainers.data.dataset import Example, Subject
from hyperbooth.trainers.dreambooth.loss import DreamBoothLoss
from hyperbooth.trainers.dreambooth.validation import ValidationLoss
from torch import Tensor

from tools.comfy_harness.tiny_checkpoints import sd15_unet


@pytest.fixture(scope="module")
def loaded(quick: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
    return quick


@pytest.mark.parametrize("text_encoder", [False, True])
def test_trains_and_leaves_the_model_unchanged(node: Any, loaded: Any, subject: Any, text_encoder: bool) -> None:
    model, clip, _ = loaded
    with untouched(model, clip):
        adapter, loss_map, report = train(
            node, loaded, subject, lora(text_encoder=text_encoder, learning_rate=3e-3), 24, clip=clip
        )
    losses = loss_map["loss"]
    assert len(losses) == 24
    assert sum(losses[-8:]) < 0.9 * sum(losses[:8])
    assert any(name.startswith("text_encoders.") for name in adapter.targets()) == text_encoder
    assert "24 steps of 1 on 3 images" in report and "image 1: 64 x 64" in report


@pytest.mark.parametrize("text_encoder", [False, True])
@pytest.mark.parametrize("targets", ["attention", "all linear and convolution"])
def test_apply_equals_the_stock_loader_on_the_saved_file(
    node: Any, loaded: Any, subject: Any, tmp_path: Any, text_encoder: bool, targets: str
) -> None:
    model, clip, _ = loaded
    adapter, _, _ = train(node, loaded, subject, lora(text_encoder=text_encoder, targets=targets), clip=clip)
    save_adapter(adapter, tmp_path / "a.safetensors")
    ours = node("Apply", model=model, adapter=adapter, strength_model=0.8, clip=clip, strength_clip=0.7)
    with torch.inference_mode():
        file = comfy.utils.load_torch_file(str(tmp_path / "a.safetensors"), safe_load=True)
        stock = comfy.sd.load_lora_for_models(model, clip, file, 0.8, 0.7)
    assert relative(output(*ours), output(*stock)) < 1e-4
    assert relative(output(*ours), output(model, clip)) > 1e-4
    loaded_again = node(
        "Apply", model=model, adapter=load_adapter(tmp_path / "a.safetensors"), strength_model=0.8, clip=clip,
        strength_clip=0.7,
    )  # fmt: skip
    assert torch.equal(output(*ours), output(*loaded_again))


@pytest.mark.parametrize(("text_encoder", "tolerance"), [(False, 1e-4), (True, 1e-3)])
def test_training_sees_what_apply_gives(
    node: Any, loaded: Any, subject: Any, text_encoder: bool, tolerance: float
) -> None:
    """The adapter attached while training is the adapter patched into the weights.

    ComfyUI keeps this text encoder in float16 and rounds a patched weight to it, which attaching does not.
    """
    model, clip, _ = loaded
    adapter, _, _ = train(node, loaded, subject, lora(text_encoder=text_encoder), clip=clip)
    patched = output(*node("Apply", model=model, adapter=adapter, strength_model=1.0, clip=clip, strength_clip=1.0))
    with (
        training_session(model, QUIET, subject, batch_size=1, clip=clip) as session,
        adapter.injected(session.model.layers),
        torch.no_grad(),
    ):
        assert any(name.startswith("text_encoders.") for name in adapter.targets()) == text_encoder
        example = Example(torch.zeros(1, 4, 8, 8), None, "a photo of sks dog")
        x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1)) * 5
        attached = session.denoiser(x, torch.tensor([5.0]), session.text.condition([example]))
    assert relative(attached, patched) < tolerance


def test_a_strength_that_is_no_number_is_refused(node: Any, loaded: Any, subject: Any) -> None:
    adapter, _, _ = train(node, loaded, subject, lora(), 1)
    with pytest.raises(ValueError, match=r"^strength_model .*nan"):
        node("Apply", model=loaded[0], adapter=adapter, strength_model=float("nan"))


def test_adapter_to_lora_is_a_stock_lora(node: Any, loaded: Any, subject: Any) -> None:
    model, clip, _ = loaded
    adapter, _, _ = train(node, loaded, subject, lora())
    (file,) = node("ToLoRA", adapter=adapter, model=model)
    with torch.inference_mode():
        stock, _ = comfy.sd.load_lora_for_models(model, None, file, 1.0, 0.0)
    ours, _ = node("Apply", model=model, adapter=adapter, strength_model=1.0)
    assert relative(output(ours, clip), output(stock, clip)) < 1e-5


def test_same_seed_same_adapter_other_seed_another(node: Any, loaded: Any, subject: Any) -> None:
    first, again, other = (train(node, loaded, subject, lora(), seed=seed)[0] for seed in (5, 5, 6))
    pairs = zip(first.parameters(), again.parameters(), other.parameters(), strict=True)
    assert all(torch.equal(a, b) and not torch.equal(a, c) for a, b, c in pairs)


def test_the_global_random_state_is_left_alone(node: Any, loaded: Any, subject: Any) -> None:
    before = torch.get_rng_state()
    train(node, loaded, subject, lora(), 2)
    assert torch.equal(before, torch.get_rng_state())


def test_the_gradient_is_that_of_changed_weights(loaded: Any, subject: Any) -> None:
    """Compare one batch through the session with plain autograd on a float64 copy of the U-Net with W + dW."""
    from hyperbooth.models.adapters.stack import Adapter, AdapterStack
    from hyperbooth.models.adapters.targets import select_targets

    model = loaded[0]
    with training_session(model, QUIET, subject, batch_size=2) as session:
        link = Adapter.create(
            "lora", select_targets(session.model.shapes, "attention"), LoRAConfig(rank=2, alpha=2.0), torch.Generator()
        )
        for parameter in link.parameters():
            parameter.data.normal_(0, 0.05, generator=torch.Generator().manual_seed(2))
        losses = DreamBoothLoss.for_session(session, subject=subject, options=QUIET, batch_size=2)
        with AdapterStack((link,)).injected(session.model.layers):
            (loss,) = losses(0)
            loss.backward()
        ours = {n: (a.up.grad.clone(), a.down.grad.clone()) for n, a in link.layers.items()}
        value, clean, sigma, noise, context = loss.item(), *_draws(losses, session)
    theirs_value, theirs = _literal_gradient(model, link, clean, sigma, noise, context)
    assert value == pytest.approx(theirs_value, rel=1e-4)
    for name, (up, down) in ours.items():
        assert relative(up.double(), theirs[name][0]) < 1e-3
        assert relative(down.double(), theirs[name][1]) < 1e-3


def _draws(losses: DreamBoothLoss, session: Any) -> tuple[Tensor, ...]:
    """Return the clean latents, noise levels, noise and text of batch 0, drawn again."""
    seen: list[Any] = []
    denoiser = session.denoiser

    class Spy:
        prediction, sigma_data, sigmas = denoiser.prediction, denoiser.sigma_data, denoiser.sigmas

        def add_noise(self, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
            seen.extend([x0, sigma, noise])
            return denoiser.add_noise(x0, noise, sigma)

        def __call__(self, x: Tensor, sigma: Tensor, cond: Any) -> Tensor:
            seen.append(cond["c_crossattn"])
            return x

    from dataclasses import replace

    list(replace(losses, objective=replace(losses.objective, denoiser=Spy()))(0))
    return tuple(tensor.double() for tensor in seen)


def _literal_gradient(model: Any, link: Any, clean: Tensor, sigma: Tensor, noise: Tensor, context: Tensor) -> Any:
    """Return ``mean_B mean((eps - eps_theta(x_t))^2)`` with ``x_t = sqrt(abar) x0 + sqrt(1 - abar) eps`` in float64."""
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    from tools.comfy_harness.tiny_checkpoints import SD15_SMALL

    config = {key: list(value) if isinstance(value, list) else value for key, value in SD15_SMALL.items()}
    network = UNetModel(**config, dtype=torch.float64, operations=comfy.ops.disable_weight_init)
    network.load_state_dict({name: t.double() for name, t in model.model.diffusion_model.state_dict().items()})
    network.requires_grad_(False)
    factors = {}
    for name, adapter in link.layers.items():
        layer = network.get_submodule(name.removeprefix("diffusion_model."))
        up, down = (p.detach().double().requires_grad_() for p in (adapter.up, adapter.down))
        factors[name] = (up, down)
        changed = layer.weight + up @ down
        layer.forward = lambda x, layer=layer, w=changed: torch.nn.functional.linear(x, w, layer.bias)
    abar = (1 / (1 + sigma**2)).view(-1, 1, 1, 1)
    noisy = abar.sqrt() * clean + (1 - abar).sqrt() * noise
    times = model.get_model_object("model_sampling").timestep(sigma.float())
    predicted = network(noisy, times.double(), context=context)
    loss = ((noise - predicted) ** 2).flatten(1).mean(1).mean()
    loss.backward()
    return loss.item(), {name: (up.grad, down.grad) for name, (up, down) in factors.items()}


@pytest.mark.parametrize(
    ("precision", "weight"),
    [*(("auto", weight) for weight in ("float32", "bfloat16", "float16", "float8_e4m3fn", "float8_e5m2")),
     ("bfloat16", "float32"), ("bfloat16", "float8_e4m3fn")],
)  # fmt: skip
def test_trains_on_weights_of_every_type(node: Any, loaded: Any, subject: Any, weight: str, precision: str) -> None:
    options = {"dtype": getattr(torch, weight)}
    with torch.inference_mode():
        model = comfy.sd.load_diffusion_model_state_dict(sd15_unet(), model_options=options)
    assert model.model.diffusion_model.input_blocks[1][1].proj_in.weight.dtype == getattr(torch, weight)
    quiet = TrainingOptions(preview_every=0, precision=precision, validation=5)
    with untouched(model):
        adapter, _, report = train(node, (model,), subject, lora(learning_rate=6e-3), 5, options=quiet)
    (first, last) = (float(loss) for loss in re.findall(r"([\d.]+) at step [05]\b", report))
    assert last < 0.985 * first
    assert all(parameter.dtype == torch.float32 for parameter in adapter.parameters())


def test_a_float16_computation_trains(node: Any, loaded: Any, subject: Any) -> None:
    options = TrainingOptions(preview_every=0, precision="float16")
    adapter, loss_map, _ = train(node, loaded, subject, lora(learning_rate=3e-3), 12, options=options)
    assert all(torch.isfinite(parameter).all() for parameter in adapter.parameters())
    assert sum(loss_map["loss"][-4:]) < sum(loss_map["loss"][:4])


@pytest.mark.parametrize("kind", ["V_PREDICTION", "CONST"])
def test_v_and_flow_models_train(node: Any, loaded: Any, subject: Any, kind: str) -> None:
    """Return the same U-Net as a v or a flow model, as the stock ModelSampling nodes make it."""
    schedule = comfy.model_sampling.ModelSamplingDiscrete
    if kind == "CONST":
        schedule = comfy.model_sampling.ModelSamplingDiscreteFlow
    sampling = type("Sampling", (schedule, getattr(comfy.model_sampling, kind)), {})
    with torch.inference_mode():
        model = loaded[0].clone()
        model.add_object_patch("model_sampling", sampling(model.model.model_config))
    adapter, loss_map, _ = train(node, (model,), subject, lora(learning_rate=3e-3), 40)
    assert adapter.metadata["prediction"] == {"V_PREDICTION": "v", "CONST": "flow"}[kind]
    assert sum(loss_map["loss"][-12:]) < sum(loss_map["loss"][:12])
    assert max(loss_map["loss"]) < 50


def test_checkpointing_and_accumulation_change_only_memory(node: Any, loaded: Any, subject: Any) -> None:
    plain = train(node, loaded, subject, lora(), 3)[0]
    options = TrainingOptions(preview_every=0, gradient_checkpointing=True)
    checkpointed = train(node, loaded, subject, lora(), 3, options=options)[0]
    first, second = (torch.cat([p.detach().flatten() for p in made.parameters()]) for made in (plain, checkpointed))
    assert relative(second, first) < 1e-4
    assert (second - first).abs().max() < 5e-5, "5 % of a step, in single values: Adam divides by gradients near 0"


def test_prior_preservation_adds_its_term(node: Any, loaded: Any, subject: Any) -> None:
    model, _clip, _ = loaded
    with_prior = Subject(subject.examples, subject.examples[:1])
    with training_session(model, QUIET, with_prior, batch_size=1) as session:
        terms = [
            list(DreamBoothLoss.for_session(session, subject=part, options=options)(0))
            for part, options in [
                (subject, QUIET),
                (with_prior, QUIET),
                (with_prior, TrainingOptions(prior_weight=0.5)),
                (with_prior, TrainingOptions(prior_mode="none")),
            ]
        ]
    assert [len(found) for found in terms] == [1, 2, 2, 1]
    assert terms[1][0].item() == terms[0][0].item()
    assert terms[2][1].item() == pytest.approx(0.5 * terms[1][1].item())
    assert terms[1][1].item() != terms[1][0].item(), "noise and level are drawn independently for the prior"


def test_goes_on_from_an_adapter(node: Any, loaded: Any, subject: Any) -> None:
    first, _, _ = train(node, loaded, subject, lora(), 3)
    kept = [parameter.clone() for parameter in first.parameters()]
    further, _, _ = train(node, loaded, subject, lora(), 2, start_from=first)
    assert further.metadata["steps"] == 5
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), kept, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), further.parameters(), strict=True))
    with pytest.raises(ValueError, match=r"^start_from .*\blora \(rank 4, alpha 4\).*\blora \(rank 2, alpha 2\)"):
        train(node, loaded, subject, Method(family="lora", config=LoRAConfig(rank=2, alpha=2.0)), 1, start_from=first)


def test_another_alpha_is_not_silently_ignored(node: Any, loaded: Any, subject: Any) -> None:
    first, _, _ = train(node, loaded, subject, lora(), 1)
    with pytest.raises(ValueError, match=r"\(rank 4, alpha 4\) on 32 layers.* lora \(rank 4, alpha 64\)"):
        train(node, loaded, subject, Method(family="lora", config=LoRAConfig(rank=4, alpha=64.0)), 1, start_from=first)


def test_a_subject_of_another_model_is_refused(node: Any, loaded: Any, subject: Any) -> None:
    (example, *_) = subject.examples
    wide = Example(example.latents, [[torch.zeros(1, 77, 2048), {}]], "p")
    for made, message in (
        (Example(torch.zeros(1, 16, 8, 8), example.cond, "p"), r"^subject.*16 channels in 2 .*\b4 in 2"),
        (Example(torch.zeros(1, 4, 1, 8, 8), example.cond, "p"), r"^subject.*4 channels in 3 "),
        (wide, r"^subject.*2048.*SD15.* 768"),
    ):
        with pytest.raises(ValueError, match=message):
            train(node, loaded, Subject((made,)), lora(), 1)


def test_targets_that_match_nothing_are_refused_with_what_there_is() -> None:
    from hyperbooth.trainers.dreambooth.config import targets_of

    shapes = {"diffusion_model.joint_blocks.0.x_block.attn.qkv": (8, 8)}
    with pytest.raises(ValueError, match=r"'cross attention' .*\b1 layers.*joint_blocks"):
        targets_of(Method(targets="cross attention"), shapes)


def test_an_error_in_the_middle_leaves_the_model_alone(node: Any, loaded: Any, subject: Any) -> None:
    from hyperbooth.nodes.bridge.progress import Progress

    model, clip, _ = loaded
    before = Progress.__call__

    def failing(self: Any, done: int, total: int, picture: Any = None) -> None:
        if done == 2:
            raise RuntimeError("a failure in the middle")
        before(self, done, total, picture)

    with untouched(model, clip), pytest.MonkeyPatch.context() as patch:
        patch.setattr(Progress, "__call__", failing)
        with pytest.raises(RuntimeError, match="in the middle"):
            train(node, loaded, subject, lora(text_encoder=True), clip=clip)


def test_cancel_stops_within_a_step(node: Any, loaded: Any, subject: Any) -> None:
    model, clip, _ = loaded
    calls = 0
    real = comfy.model_management.throw_exception_if_processing_interrupted

    def interrupt_in_step_two() -> None:
        nonlocal calls
        calls += 1
        if calls == 300:
            comfy.model_management.interrupt_current_processing()
        real()

    with untouched(model, clip), pytest.MonkeyPatch.context() as patch:
        patch.setattr(comfy.model_management, "throw_exception_if_processing_interrupted", interrupt_in_step_two)
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            train(node, loaded, subject, lora(), 50)
    assert calls == 300, "the very next weight that is borrowed notices"


def test_masks_flips_captions_and_class_images_reach_the_subject(node: Any, loaded: Any, pictures: Tensor) -> None:
    _, clip, vae = loaded
    mask = torch.zeros(3, 64, 64)
    mask[:, :, :32] = 1
    (made,) = node(
        "Subject", images=[pictures[:2], pictures[2:, :, :48]], vae=[vae], clip=[clip], prompt=["x"], resolution=[64],
        bucket=[True], flip=[True], captions=["one\ntwo\nthree"], masks=[mask[:2], mask[2:, :, :48]],
        class_images=[pictures[:1]], class_prompt=["a photo of a dog"],
    )  # fmt: skip
    assert [example.prompt for example in made.examples] == ["one", "two", "three"]
    assert [example.size for example in made.examples] == [(4, 8, 8), (4, 8, 8), (4, 9, 7)]
    assert made.class_examples[0].prompt == "a photo of a dog"
    first = made.examples[0]
    assert len(first.latents) == 2 and torch.equal(first.mask[0], first.mask[1].flip(-1))
    assert first.mask[0, 0, :, :4].min() == 1 and first.mask[0, 0, :, 4:].max() == 0
    _adapter, loss_map, _ = train(node, loaded, made, lora(), 4, batch_size=2)
    assert all(torch.isfinite(torch.tensor(loss_map["loss"])))


def test_stock_datasets_train(node: Any, loaded: Any, subject: Any) -> None:
    _, clip, _ = loaded
    with torch.inference_mode():
        conds = [encode_prompt(clip, text) for text in ("one", "two", "three")]
        latents = [{"samples": example.latents} for example in subject.examples]
    (made,) = node("SubjectFromLatents", latents=latents, positive=conds)
    assert [example.size for example in made.examples] == [(4, 4, 4)] * 3
    (bucketed,) = node(
        "SubjectFromLatents", latents=[{"samples": [e.latents for e in subject.examples]}], positive=conds[:1]
    )
    assert len(bucketed.examples) == 3
    assert len(train(node, loaded, made, lora(), 3)[1]["loss"]) == 3
    with pytest.raises(ValueError, match=r"^positive .*2 texts .*3 latents"):
        node("SubjectFromLatents", latents=latents, positive=conds[:2])
    with pytest.raises(ValueError, match=r"\bconditioning\b.*\btext_encoder\b"):
        train(node, loaded, made, lora(text_encoder=True), 1, clip=clip)


def test_previews_are_samples_of_the_model_as_it_stands(
    node: Any, loaded: Any, subject: Any, shown_images: dict[int, Any]
) -> None:
    train(node, loaded, subject, lora(), 4, options=TrainingOptions(preview_every=2))
    assert shown_images[2].width > 512 and shown_images[4].width > 512


def test_info_describes_an_adapter(node: Any, loaded: Any, subject: Any) -> None:
    adapter, _, _ = train(node, loaded, subject, lora(text_encoder=True), clip=loaded[1])
    for inputs in ({}, {"model": loaded[0]}):
        report, chart = node("Info", adapter=adapter, **inputs)
        assert "lora (rank 4, alpha 4) on 44 layers" in report and re.search(r"\bsteps\b\W+6\b", report)
        assert chart.shape == (1, 384, 768, 3) and chart.min() >= 0 and chart.max() <= 1


def test_everything_else_leaves_the_device_first(node: Any, loaded: Any, subject: Any) -> None:
    model, clip, vae = loaded
    with torch.inference_mode():
        comfy.model_management.load_models_gpu([vae.patcher, clip.patcher, model])
    with training_session(model, QUIET, subject, batch_size=1):
        assert [patcher.model for patcher in comfy.model_management.loaded_models()] == [model.model]
    with training_session(model, QUIET, subject, batch_size=1, clip=clip):
        kept = {id(patcher.model) for patcher in comfy.model_management.loaded_models()}
        assert kept == {id(model.model), id(clip.cond_stage_model)}


def test_pytorchs_attention_whatever_comfyui_runs_with(node: Any, loaded: Any, subject: Any) -> None:
    import comfy.ldm.modules.attention as attention

    @attention.wrap_attn
    def chosen(*args: Any, **kwargs: Any) -> Tensor:
        raise AssertionError("ComfyUI's own choice was called")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "optimized_attention", chosen)
        with pytest.raises(AssertionError, match="own choice was called"):
            output(loaded[0], loaded[1])
        assert len(train(node, loaded, subject, lora(), 1)[1]["loss"]) == 1


def test_trains_on_top_of_a_lora_that_is_already_applied(node: Any, loaded: Any, subject: Any) -> None:
    model, clip, _ = loaded
    first, _, _ = train(node, loaded, subject, lora(learning_rate=3e-3), 10)
    patched, _ = node("Apply", model=model, adapter=first, strength_model=1.0)
    second, _, _ = train(node, (patched,), subject, lora(learning_rate=3e-3), 10)
    both, _ = node("Apply", model=patched, adapter=second, strength_model=1.0)
    assert relative(output(both, clip), output(patched, clip)) > 1e-3
    plain = output(model, clip)
    assert relative(output(patched, clip), plain) > 1e-3
    assert torch.equal(output(model, clip), plain)


def test_weighted_prompts_train_through_the_text_encoder(node: Any, loaded: Any, pictures: Tensor) -> None:
    _, clip, vae = loaded
    (made,) = node(
        "Subject", images=[pictures], vae=[vae], clip=[clip], prompt=["a photo of (sks:1.3) dog"], resolution=[64],
        bucket=[True], flip=[False],
    )  # fmt: skip
    adapter, _, _ = train(node, loaded, made, lora(text_encoder=True), 2, clip=clip)
    assert all(torch.isfinite(parameter).all() for parameter in adapter.parameters())


def test_an_adapter_of_another_model_is_refused_with_both_sides_named(node: Any, loaded: Any, subject: Any) -> None:
    from hyperbooth.models.adapters.stack import Adapter, AdapterStack
    from hyperbooth.models.adapters.targets import Target

    where = Target("diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q", (640, 640))
    foreign = AdapterStack(
        (Adapter.create("lora", [where], LoRAConfig(rank=2, alpha=2.0), torch.Generator()),), {"base": "SDXL"}
    )
    with pytest.raises(ValueError, match=r"SDXL .*\(640, 640\).*\(320, 320\)"):
        node("Apply", model=loaded[0], adapter=foreign, strength_model=1.0)


def test_what_others_hang_on_the_model_for_sampling_is_left_out(node: Any, loaded: Any, subject: Any) -> None:
    import comfy.patcher_extension

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("a patch for sampling ran in training")

    with torch.inference_mode():
        model = loaded[0].clone()
        model.set_model_attn1_patch(fail)
        model.set_model_output_block_patch(fail)
        kind = comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL
        model.add_wrapper_with_key(kind, "test", fail)
        comfy.patcher_extension.add_wrapper(kind, fail, model.model_options, is_model_options=True)
    plain = train(node, loaded, subject, lora(), 1)[1]["loss"]
    assert train(node, (model,), subject, lora(), 1)[1]["loss"] == plain


def test_a_model_with_bypass_hooks_is_refused_with_what_to_do(node: Any, loaded: Any, subject: Any) -> None:
    adapter, _, _ = train(node, loaded, subject, lora(), 1)
    (file,) = node("ToLoRA", adapter=adapter, model=loaded[0])
    with torch.inference_mode():
        bypassed, _ = comfy.sd.load_bypass_lora_for_models(loaded[0], None, file, 1.0, 0.0)
    with pytest.raises(ValueError, match=r"^the model .*\(bypass_lora\)"):
        train(node, (bypassed,), subject, lora(), 1)


VALIDATED = replace(QUIET, validation=2)
RESULT = "the result is"
"""Begins the line of a report on the step that is the result, where that is chosen by validation."""


@pytest.fixture
def courses(monkeypatch: pytest.MonkeyPatch) -> dict[int, float]:
    """Return the validation losses by step, which are chosen here: those of an untrained network are chance."""
    chosen = {0: 5.0, 2: 4.0, 4: 1.0, 6: 2.0, 8: 3.0}
    measure = ValidationLoss.__call__

    def call(self: ValidationLoss, examples: Any, levels: int | None = None) -> float:
        return measure(self, examples, levels) if levels else next(losses)

    losses = iter([*chosen.values()] * 3)
    monkeypatch.setattr(ValidationLoss, "__call__", call)
    return chosen


def same_adapter(a: Any, b: Any) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_with_a_validation_the_best_step_is_the_result(
    node: Any, loaded: Any, subject: Any, courses: dict[int, float], output_folder: Path
) -> None:
    best, loss_map, report = train(node, loaded, subject, lora(learning_rate=3e-3), 8, options=VALIDATED)
    assert len(loss_map["loss"]) == 8 and f"{RESULT} step 4" in report and best.metadata["steps"] == 4
    four, _, _ = train(node, loaded, subject, lora(learning_rate=3e-3), 4, options=VALIDATED, resume="start over")
    assert same_adapter(best, four)


def test_the_last_step_can_be_asked_for(node: Any, loaded: Any, subject: Any, courses: dict[int, float]) -> None:
    options = replace(VALIDATED, result="last step")
    last, _, report = train(node, loaded, subject, lora(learning_rate=3e-3), 8, options=options)
    plain, _, _ = train(node, loaded, subject, lora(learning_rate=3e-3), 8, options=QUIET)
    assert same_adapter(last, plain) and RESULT not in report and last.metadata["steps"] == 8


def test_a_run_queued_again_gives_the_best_step_again(
    node: Any, loaded: Any, subject: Any, courses: dict[int, float], output_folder: Path
) -> None:
    first, _, _ = train(node, loaded, subject, lora(learning_rate=3e-3), 8, options=VALIDATED)
    again, _, report = train(node, loaded, subject, lora(learning_rate=3e-3), 8, options=VALIDATED)
    assert same_adapter(first, again) and resumed_at(report) == 8
    for path in (output_folder / "hyperbooth_states").glob("*.good.safetensors"):
        path.unlink()
    last, _, report = train(node, loaded, subject, lora(learning_rate=3e-3), 8, options=VALIDATED)
    assert re.search(rf"^warning: {RESULT} .*\b8\b.*\bstep 4\b", report, re.M) and last.metadata["steps"] == 8


def test_the_best_validation_needs_one() -> None:
    with pytest.raises(ValueError, match=r"^result .*validation"):
        TrainingOptions(result="best validation")


def test_adapters_of_the_run_are_kept(node: Any, loaded: Any, subject: Any, output_folder: Path) -> None:
    options = replace(QUIET, keep_every=2)
    _, _, report = train(node, loaded, subject, lora(learning_rate=3e-3), 6, options=options)
    kept = sorted((output_folder / "loras" / "hyperbooth_steps").iterdir())
    assert [path.name for path in kept] == ["step_000002_00001_.safetensors", "step_000004_00001_.safetensors"]
    assert [mentions(report, path.name) for path in kept] == [1, 1] and mentions(report, "hyperbooth_steps") == 2
    two, _, _ = train(node, loaded, subject, lora(learning_rate=3e-3), 2, options=QUIET, resume="start over")
    assert same_adapter(load_adapter(kept[0]), two)
