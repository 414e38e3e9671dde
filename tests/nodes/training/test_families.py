"""The same nodes on every family of models: small checkpoints, stock loaders, real training."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import comfy.ldm.modules.attention
import comfy.model_management
import comfy.ops
import comfy.sd
import folder_paths
import pytest
import torch
from helpers.reference import l_simple_eps, l_simple_flow, l_simple_v
from helpers.reports import mentions
from helpers.stack_subjects import stack_subjects
from helpers.training import QUIET, lora, relative, train, untouched
from hyperbooth.models.adapters import FullConfig, LiDBConfig, LoRAConfig, PaRaConfig
from hyperbooth.models.adapters.stack import Adapter, AdapterStack
from hyperbooth.models.adapters.targets import TEXT_PREFIX, select_targets
from hyperbooth.models.backbone.gradient_checkpointing import gradient_checkpointing
from hyperbooth.models.files.adapter_file import save_adapter
from hyperbooth.nodes.bridge.images.sampling import sample_latents
from hyperbooth.nodes.bridge.model.layers import architecture
from hyperbooth.nodes.bridge.model.unused_text_layers import unused_text_layers
from hyperbooth.nodes.bridge.text.conditioning import ComfyTextConditioning
from hyperbooth.nodes.bridge.training_session import training_session
from hyperbooth.trainers.config import Method, TrainingOptions
from hyperbooth.trainers.data.dataset import Example, Subject
from hyperbooth.trainers.dreambooth.loss import DreamBoothLoss
from torch import Tensor

from tools.comfy_harness.tiny_checkpoints import FAMILIES, write

PROMPT = "a photo of sks dog"
EXPECTED = {"sd2": "v", "sdxl": "eps", "sd3": "flow", "flux": "flow", "flux2": "flow", "pixart": "eps"}
"""Family -> what its network predicts. SD1.5 has a test file of its own."""
TEXTS = {"flux2": (1, 9, 128), "pixart": (1, 9, 4096)}
"""Shape of the conditioning of those that come without a text encoder."""
LATENTS = {"flux2": (128, 4, 4), "pixart": (4, 36, 36)}
"""PixArt counts its positions in units of 64 cells: below 32 there is none."""


@dataclass(frozen=True)
class Loaded:
    name: str
    model: Any
    clip: Any
    vae: Any
    subject: Subject

    def output(self, model: Any, clip: Any = None) -> Tensor:
        """Return the estimate x0_hat for fixed noise and the prompt, with the patches of ``model`` and ``clip``."""
        (example, *_) = self.subject.examples
        with torch.inference_mode():
            cond = encoded(clip or self.clip) if self.clip else example.cond
            comfy.model_management.load_models_gpu([model])
            arguments = ComfyTextConditioning(model.model, model.load_device).arguments(cond, example.size)
            return model.model.apply_model(noise(example.size), level(model), **arguments).clone()


def noise(size: tuple[int, ...]) -> Tensor:
    return torch.randn(1, *size, generator=torch.Generator().manual_seed(1))


def level(model: Any) -> Tensor:
    """Return a noise level in the middle of the model's own table."""
    sigmas = model.get_model_object("model_sampling").sigmas
    return sigmas[len(sigmas) // 2].clone().view(1)


def encoded(clip: Any) -> Any:
    return clip.encode_from_tokens_scheduled(clip.tokenize(PROMPT))


@pytest.fixture(scope="module", params=EXPECTED)
def family(request: pytest.FixtureRequest, node: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loaded]:
    """Return one family after the other, as the stock loaders give it."""
    path = write(tmp_path_factory.mktemp("families") / f"{request.param}.safetensors", FAMILIES[request.param])
    with torch.inference_mode():
        loaded = load(request.param, path, node)
    yield loaded
    comfy.model_management.unload_all_models()
    path.unlink()


def load(name: str, path: Path, node: Any) -> Loaded:
    if name in TEXTS:
        return Loaded(name, comfy.sd.load_diffusion_model(str(path)), None, None, from_latents(name, node))
    options = dict(FAMILIES[name].text_options)
    model, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(str(path), te_model_options=options)
    return Loaded(name, model, clip, vae, from_pictures(clip, vae, node))


def from_latents(name: str, node: Any) -> Subject:
    generator = torch.Generator().manual_seed(0)
    latents = [{"samples": torch.randn(2, *LATENTS[name], generator=generator)}]
    texts = [[[torch.randn(TEXTS[name], generator=generator), {}]] for _ in range(2)]
    (subject,) = node("SubjectFromLatents", latents=latents, positive=texts)
    return subject


def from_pictures(clip: Any, vae: Any, node: Any) -> Subject:
    """Return a subject of three images, one of another aspect, and one image of its class."""
    pictures = torch.rand(3, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    (subject,) = node(
        "Subject", images=[pictures[:2], pictures[2:, :, :48]], vae=[vae], clip=[clip], prompt=[PROMPT],
        resolution=[64], bucket=[True], flip=[False], class_images=[pictures[:1]], class_prompt=["a photo of a dog"],
    )  # fmt: skip
    return subject


def test_is_recognised(family: Loaded) -> None:
    assert architecture(family.model) == FAMILIES[family.name].architecture
    with training_session(family.model, QUIET, family.subject, batch_size=1) as session:
        assert session.model.metadata["prediction"] == EXPECTED[family.name]
        assert session.denoiser.sigmas.diff().min() > 0


def test_a_text_layer_is_unused_if_the_prediction_does_not_depend_on_it(family: Loaded) -> None:
    if family.clip is None:
        pytest.skip("comes without a text encoder")
    encoder = family.clip.cond_stage_model
    projections = [name for name, _ in encoder.named_modules() if name.endswith("text_projection")]
    before, unread = family.output(family.model), unused_text_layers(family.clip)
    assert unread <= set(projections)
    for name in projections:
        weight = encoder.get_submodule(name).weight
        with torch.inference_mode():
            kept = weight.clone()
            weight.normal_(generator=torch.Generator().manual_seed(2))
            same = torch.equal(family.output(family.model), before)
            weight.copy_(kept)
        assert same == (name in unread), name


@pytest.mark.parametrize("targets", ["attention", "all linear"])
def test_trains_and_leaves_the_model_unchanged(family: Loaded, node: Any, targets: str) -> None:
    if targets == "attention" and family.clip is None:
        pytest.skip("of those without a text encoder, the wider rule alone")
    method, alone = lora(targets=targets, learning_rate=3e-3), replace(family.subject, class_examples=())
    steps = 12 if targets == "all linear" else 2
    with untouched(family.model):
        adapter, loss_map, _ = train(node, (family.model,), alone, method, steps, batch_size=2)
    losses = loss_map["loss"]
    assert len(losses) == steps and all(layer.up.any() for layer in adapter.adapters[0].layers.values())
    if targets == "all linear":
        assert sum(losses[-4:]) < 0.95 * sum(losses[:4])
    assert adapter.metadata["base"] == FAMILIES[family.name].architecture


EVERYWHERE = [
    Method(family="full", config=FullConfig(), targets="all weights", learning_rate=1e-4),
    Method(family="lidb", config=LiDBConfig(), targets="all linear and convolution", learning_rate=1e-3),
    Method(family="para", config=PaRaConfig(rank=2), targets="all linear and convolution", learning_rate=1e-3),
]


@pytest.mark.parametrize("method", EVERYWHERE, ids=lambda method: method.family)
def test_every_layer_is_trained(family: Loaded, node: Any, method: Method) -> None:
    """The blocks of some families modify in place what a layer returned."""
    with untouched(family.model):
        adapter, loss_map, _ = train(node, (family.model,), family.subject, method, 2)
        assert len(loss_map["loss"]) == 2
        ends = adapter.adapters[0].parameters()
        if method.family == "full":  # which starts at zero, see tests/models/test_adapters.py
            assert all(parameter.any() for parameter in ends)
            return
        start, _, _ = train(node, (family.model,), family.subject, replace(method, learning_rate=0.0), 1)
    assert all(not torch.equal(a, b) for a, b in zip(ends, start.adapters[0].parameters(), strict=True))


@pytest.mark.parametrize("method", EVERYWHERE[1:], ids=lambda method: method.family)
def test_subjects_in_one_batch_equal_one_after_another(family: Loaded, method: Method) -> None:
    """Compare one forward of the whole network, each sample with its own adapter, and the gradients."""
    if family.name == "pixart":
        pytest.skip("PixArt puts the texts of a batch into one row; see the test below")
    with training_session(family.model, QUIET, family.subject, batch_size=1) as session:
        targets = select_targets(session.model.shapes, method.targets)
        links = [alone(method, targets, seed) for seed in (0, 1)]
        example = family.subject.examples[0]
        x = torch.cat([noise(example.size), 0.5 * noise(example.size)])
        sigma = level(family.model)
        together, alike = estimates(session, stack_subjects(links), x, sigma.expand(2), [example, example])
        for i, link in enumerate(links):
            single, gradients = estimates(session, link, x[i : i + 1], sigma, [example])
            assert relative(together[i : i + 1], single) < 1e-4
            for (name, one), stack in zip(gradients.items(), alike.values(), strict=True):
                assert relative(stack[i], one) < 2e-2 or one.norm() < 1e-9, name


WEIGHED_AND_LONG = "a photo of (sks:1.3) dog" + " in the snow" * 30
"""Two sections, and a weight that an encoder sets against the empty prompt."""


def test_prompts_in_one_batch_equal_one_after_another(family: Loaded) -> None:
    """Compare one prompt through several subjects' adapters on the text encoders, and the gradients."""
    if family.clip is None:
        pytest.skip("comes without a text encoder")
    with training_session(family.model, QUIET, family.subject, batch_size=1, clip=family.clip) as session:
        targets = [t for t in select_targets(session.model.shapes, "all linear") if t.name.startswith(TEXT_PREFIX)]
        links = [alone(EVERYWHERE[1], targets, seed) for seed in (0, 1)]
        example = replace(family.subject.examples[0].variant(0), prompt=WEIGHED_AND_LONG)
        both = stack_subjects(links)
        with session.injected(AdapterStack((both,))):
            together = session.text.condition_per_subject([example, example])
            squares(together).backward()
        for i, link in enumerate(links):
            with session.injected(AdapterStack((link,))):
                single = session.text.condition([example])
                squares(single).backward()
            assert single.keys() == together.keys()
            for name, value in single.items():
                assert relative(together[name][i : i + 1], value) < 1e-4, name
            ours = torch.cat([stack.grad[i].flatten() for stack in both.parameters() if stack.grad is not None])
            theirs = torch.cat([one.grad.flatten() for one in link.parameters() if one.grad is not None])
            assert relative(ours, theirs) < 1e-2 and theirs.norm() > 0


def squares(conditions: dict[str, Any]) -> Tensor:
    """Return a scalar of all conditions that depend on the text encoders, to differentiate."""
    return sum(value.float().square().sum() for value in conditions.values() if value.requires_grad)


def test_a_network_that_joins_a_batch_takes_one_subject_at_a_time(family: Loaded) -> None:
    if family.name != "pixart":
        pytest.skip("of those that keep a batch's samples apart")
    with training_session(family.model, QUIET, family.subject, batch_size=1) as session:
        links = [alone(EVERYWHERE[1], select_targets(session.model.shapes, "all linear"), seed) for seed in (0, 1)]
        example = family.subject.examples[0]
        with pytest.raises(ValueError, match=r"\bbatch of 1\b.*\b2 subjects\b"):
            estimates(session, stack_subjects(links), torch.cat([noise(example.size)] * 2),
                      level(family.model).expand(2), [example, example])  # fmt: skip


def alone(method: Method, targets: Any, seed: int) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    link = Adapter.create(method.family, targets, method.config, generator)
    with torch.no_grad():
        for parameter in link.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return link


def estimates(
    session: Any, link: Adapter, x: Tensor, sigma: Tensor, examples: list[Example]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return x0_hat of each sample, and the gradients of its square by parameter."""
    with session.injected(AdapterStack((link,))):
        estimate = session.denoiser(x, sigma, session.text.condition(examples))
        estimate.square().sum().backward()
    gradients = {
        f"{layer}.{name}": parameter.grad.clone()
        for layer, adapter in link.layers.items()
        for name, parameter in adapter.named_parameters()
        if parameter.grad is not None
    }
    return estimate.detach(), gradients


def test_text_encoders_learn(family: Loaded, node: Any) -> None:
    if family.clip is None:
        pytest.skip("comes without a text encoder")
    method = lora(text_encoder=True, learning_rate=3e-3, text_encoder_lr=3e-3)
    with untouched(family.model, family.clip):
        adapter, loss_map, _ = train(node, (family.model,), family.subject, method, 3, clip=family.clip)
    assert all(torch.isfinite(torch.tensor(loss_map["loss"])))
    encoders = {name for name, _ in family.clip.cond_stage_model.named_children()}
    trained = {name.split(".")[1] for name in adapter.targets() if name.startswith("text_encoders.")}
    assert trained == encoders
    moved = [
        a.up.abs().sum().item() for name, a in adapter.adapters[0].layers.items() if name.startswith("text_encoders.")
    ]
    assert all(change > 0 for change in moved), "layers after the one whose output is used are no targets"


@pytest.fixture(scope="module")
def taught(family: Loaded, node: Any, tmp_path_factory: pytest.TempPathFactory) -> AdapterStack:
    """Return a LoRA of the diffusion model after three steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder_paths, "output_directory", str(tmp_path_factory.mktemp("taught")))
        return train(node, (family.model,), family.subject, lora(learning_rate=1e-2), 3, clip=family.clip)[0]


@pytest.mark.parametrize("text_encoder", [False, True])
def test_apply_is_what_was_trained_and_what_the_stock_loader_gives(
    family: Loaded, node: Any, taught: AdapterStack, tmp_path: Path, text_encoder: bool
) -> None:
    model, clip, adapter = family.model, family.clip, taught
    if text_encoder and clip is None:
        pytest.skip("comes without a text encoder")
    if text_encoder:
        method = lora(text_encoder=True, learning_rate=1e-2)
        adapter, _, _ = train(node, (model,), family.subject, method, 3, clip=clip)
    ours = node("Apply", model=model, adapter=adapter, strength_model=1.0, clip=clip, strength_clip=1.0)
    changed = family.output(*ours)
    assert relative(changed, family.output(model)) > 1e-4
    assert relative(changed, output_injected(family, adapter, clip if text_encoder else None)) < (
        1e-3 if text_encoder else 1e-4
    )
    save_adapter(adapter, tmp_path / "a.safetensors")
    with torch.inference_mode():
        file = comfy.utils.load_torch_file(str(tmp_path / "a.safetensors"), safe_load=True)
        stock = comfy.sd.load_lora_for_models(model, clip, file, 1.0, 1.0)
    assert relative(changed, family.output(*stock)) < 1e-4


def output_injected(family: Loaded, adapter: AdapterStack, clip: Any) -> Tensor:
    """Return the estimate with the adapter as a parallel branch of the layers, as in training."""
    (first, *_) = family.subject.examples
    with (
        training_session(family.model, QUIET, family.subject, batch_size=1, clip=clip) as session,
        adapter.injected(session.model.layers),
        torch.no_grad(),
    ):
        example = Example(torch.zeros(1, *first.size), first.cond, PROMPT)
        return session.denoiser(noise(first.size), level(family.model), session.text.condition([example]))


def test_samples(family: Loaded, node: Any, taught: AdapterStack) -> None:
    applied, _ = node("Apply", model=family.model, adapter=taught, strength_model=1.0)
    (example, *_) = family.subject.examples
    with torch.inference_mode():
        before, after = (
            sample_latents(
                model, example.cond, example.cond, size=(2, *example.size[-2:]), seed=7, steps=3, cfg=1.0,
                sampler_name="euler", scheduler="normal", on_step=lambda: None,
            )
            for model in (family.model, applied)
        )  # fmt: skip
    assert before.shape == (2, *example.size)
    assert torch.isfinite(after).all() and relative(after, before) > 1e-4


def test_class_images(family: Loaded, node: Any) -> None:
    if family.clip is None:
        pytest.skip("comes without a text encoder")
    (images,) = node(
        "ClassImages", model=family.model, clip=family.clip, vae=family.vae, class_prompt="a photo of a dog", count=1,
        steps=2, cfg=2.0, sampler_name="euler", scheduler="normal", seed=0, resolution=64,
    )  # fmt: skip
    assert [image.shape for image in images] == [(1, 64, 64, 3)]
    assert torch.isfinite(images[0]).all()


def test_previews_show_an_image(family: Loaded) -> None:
    with training_session(family.model, QUIET, family.subject, batch_size=1) as session:
        picture = session.denoiser.preview(noise(family.subject.examples[0].size))
    assert picture is not None and max(picture.size) > 200


def link_for(session: Any, rule: str) -> Adapter:
    """Return a LoRA whose change is not zero, on the layers of ``rule``."""
    link = Adapter.create(
        "lora", select_targets(session.model.shapes, rule), LoRAConfig(rank=2, alpha=2.0), torch.Generator()
    )
    generator = torch.Generator().manual_seed(2)
    for parameter in link.parameters():
        parameter.data.normal_(0, 0.05, generator=generator)
    return link


def session_gradient(
    family: Loaded, checkpointing: bool = False
) -> tuple[float, dict[str, Tensor], Adapter, dict[str, Any]]:
    """Return loss, gradients by layer, the adapter, and the network's inputs, for batch 0 of two."""
    own = replace(family.subject, class_examples=())
    with training_session(family.model, QUIET, own, batch_size=2) as session:
        link, spy = link_for(session, "all linear"), Spy(session.denoiser)
        losses = DreamBoothLoss.for_session(session, subject=own, options=QUIET, batch_size=2)
        losses = replace(losses, objective=replace(losses.objective, denoiser=spy))
        with (
            AdapterStack((link,)).injected(session.model.layers),
            gradient_checkpointing(session.model.blocks if checkpointing else ()),
        ):
            (loss,) = losses(0)
            loss.backward()
        gradients = {n: torch.cat([a.up.grad.flatten(), a.down.grad.flatten()]) for n, a in link.layers.items()}
    return loss.item(), gradients, link, spy.seen


class Spy:
    """A denoiser that records its only call."""

    def __init__(self, denoiser: Any):
        self.denoiser, self.seen = denoiser, {}
        self.prediction, self.sigma_data, self.sigmas = denoiser.prediction, denoiser.sigma_data, denoiser.sigmas

    def add_noise(self, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        self.seen |= {"clean": x0.double(), "noise": noise.double(), "sigma": sigma.double()}
        return self.denoiser.add_noise(x0, noise, sigma)

    def __call__(self, x: Tensor, sigma: Tensor, cond: Any) -> Tensor:
        self.seen["cond"] = cond
        return self.denoiser(x, sigma, cond)


@pytest.fixture(scope="module")
def gradient(family: Loaded) -> Any:
    """Return what :func:`session_gradient` gives for one batch."""
    return session_gradient(family)


def test_the_gradient_is_that_of_changed_weights(family: Loaded, gradient: Any) -> None:
    """Compare one batch through the session with plain autograd on a float64 copy of the network with W + dW."""
    loss, ours, link, seen = gradient
    literal, theirs = literal_gradient(family, link, seen)
    assert loss == pytest.approx(literal, rel=1e-3)
    assert {name: relative(ours[name].double(), theirs[name]) for name in ours if theirs[name].norm() > 0} == {
        name: pytest.approx(0, abs=2e-3) for name in ours if theirs[name].norm() > 0
    }


def test_checkpointing_changes_only_memory(family: Loaded, gradient: Any) -> None:
    plain, gradients, _, _ = gradient
    again, recomputed, _, _ = session_gradient(family, checkpointing=True)
    assert again == pytest.approx(plain, rel=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(recomputed[name], gradient, rtol=1e-3, atol=1e-5 * float(gradient.abs().max()))


def literal_gradient(family: Loaded, link: Adapter, seen: dict[str, Any]) -> tuple[float, dict[str, Tensor]]:
    network = float64_copy(family.model)
    factors = {name: changed(network, name, adapter) for name, adapter in link.layers.items()}
    sampling = family.model.get_model_object("model_sampling")
    clean, noise, sigma = seen["clean"], seen["noise"], seen["sigma"]
    spread = sigma.view(-1, *[1] * (clean.ndim - 1))
    flow = EXPECTED[family.name] == "flow"
    x = (1 - spread) * clean + spread * noise if flow else (clean + spread * noise) / (1 + spread**2).sqrt()
    cond = {name: value.double().expand(len(x), *value.shape[1:]) for name, value in seen["cond"].items()}
    cond["context"] = cond.pop("c_crossattn")
    # ComfyUI's blocks write `x += f(norm(x))`; plain autograd needs this to be allowed.
    with pytest.MonkeyPatch.context() as patch, torch.autograd.graph.allow_mutation_on_saved_tensors():
        patch.setattr(comfy.model_management, "in_training", True)
        times = sampling.timestep(sigma.float()).double()
        predicted = network(x, times, transformer_options={"optimized_attention_override": plain_attention}, **cond)
        predicted = predicted[:, : clean.shape[1]]
        loss = literal_loss(EXPECTED[family.name], predicted, clean, noise, sigma).mean()
        loss.backward()
    return loss.item(), {
        name: torch.cat([up.grad.flatten(), down.grad.flatten()]) for name, (up, down) in factors.items()
    }


def literal_loss(prediction: str, predicted: Tensor, clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    if prediction == "v":
        return l_simple_v(predicted, clean, noise, sigma)
    if prediction == "flow":
        return l_simple_flow(predicted, clean, noise)
    return l_simple_eps(predicted, noise)


def plain_attention(_chosen: Any, *args: Any, **kwargs: Any) -> Tensor:
    return comfy.ldm.modules.attention.attention_basic(*args, **kwargs)


def float64_copy(model: Any) -> torch.nn.Module:
    """Return the network again in double precision, with ordinary tensors."""
    original = model.model.diffusion_model
    config = {**model.model.model_config.unet_config, "dtype": torch.float64}
    network = type(original)(**config, device=None, operations=comfy.ops.disable_weight_init)
    network.load_state_dict({name: tensor.double() for name, tensor in original.state_dict().items()})
    return network.double().eval().requires_grad_(False)


def changed(network: torch.nn.Module, name: str, adapter: Any) -> tuple[Tensor, Tensor]:
    """Make the layer's weight ``W + up down``, and return the factors, which take gradients."""
    layer = network.get_submodule(name.removeprefix("diffusion_model."))
    up, down = (parameter.detach().double().requires_grad_() for parameter in (adapter.up, adapter.down))
    weight = layer.weight + up @ down
    layer.forward = lambda x: torch.nn.functional.linear(x, weight, layer.bias)
    return up, down


def test_texts_of_different_lengths_share_a_batch(family: Loaded) -> None:
    if family.clip is None:
        pytest.skip("comes without a text encoder")
    size = family.subject.examples[0].size
    with torch.inference_mode():
        texts = [
            family.clip.encode_from_tokens_scheduled(family.clip.tokenize(text)) for text in ("a dog", "dog " * 300)
        ]
    pair = [Example(torch.zeros(1, *size), text) for text in texts]
    x = torch.cat([noise(size), noise(size).flip(-1)])
    sigma = level(family.model).expand(2)
    with training_session(family.model, QUIET, family.subject, batch_size=2) as session, torch.no_grad():
        together = session.denoiser(x, sigma, session.text.condition(pair))
        alone = [session.denoiser(x[i : i + 1], sigma[:1], session.text.condition(pair[i : i + 1])) for i in range(2)]
    assert relative(together, torch.cat(alone)) < 1e-4


def test_guidance_of_distilled_models(family: Loaded) -> None:
    """Training takes guidance 1 unless the conditioning has another; models without that input never get it."""
    if family.name not in ("flux", "sd3"):
        pytest.skip("one with the entrance and one without tell enough")
    (example, *_) = family.subject.examples
    conditions = ComfyTextConditioning(family.model.model, family.model.load_device)
    chosen = [[text, {**extra, "guidance": 4.0}] for text, extra in example.cond]
    given = [conditions.arguments(cond, example.size).get("guidance") for cond in (example.cond, chosen)]
    assert given == ([torch.tensor([1.0]), torch.tensor([4.0])] if family.name == "flux" else [None, None])


def test_batches_of_several_aspects_with_prior_and_previews(
    family: Loaded, node: Any, shown_images: dict[int, Any]
) -> None:
    prior = replace(family.subject, class_examples=family.subject.examples[:1])
    options = TrainingOptions(preview_every=2)
    _, loss_map, report = train(node, (family.model,), prior, lora(), 3, batch_size=2, options=options)
    assert all(torch.isfinite(torch.tensor(loss_map["loss"])))
    assert mentions(report, "1 class images")
    assert shown_images[2].width > 512
