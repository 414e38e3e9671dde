"""Textual Inversion on ComfyUI's loaded objects: what is learned, and where a prompt finds it afterwards."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.ops
import comfy.sd
import folder_paths
import pytest
import torch
from comfy.clip_model import CLIPTextModel
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.sd1_clip import SDTokenizer
from helpers.reports import mentions, pack_warnings, resumed_at
from helpers.training import QUIET, embeddings_in_output_folder_only, lora, quick_sd15, relative, train, untouched
from hyperbooth.models.adapters.stack import AdapterStack
from hyperbooth.models.files.adapter_file import load_adapter
from hyperbooth.models.textual_inversion.embeddings import FAMILY, LearnedEmbedding, TextualInversionConfig
from hyperbooth.nodes.bridge.training_session import training_session
from hyperbooth.trainers.config import Method
from hyperbooth.trainers.dreambooth.loss import DreamBoothLoss
from torch import Tensor

from tools.comfy_harness.tiny_checkpoints import SD15_SMALL

TOKEN = "sks-dog"


def inversion(vectors: int = 1, learning_rate: float = 5e-3, token: str = TOKEN, word: str = "dog") -> Method:
    return Method(
        family=FAMILY,
        config=TextualInversionConfig(token=token, initializer_word=word, vectors=vectors),
        learning_rate=learning_rate,
    )


def made(node: Any, clip: Any, vae: Any, pictures: Tensor, prompt: str, **inputs: Any) -> Any:
    """Return a subject of that prompt."""
    (subject,) = node(
        "Subject", images=[pictures], vae=[vae], clip=[clip], prompt=[prompt], resolution=[64], bucket=[True],
        flip=[False], **inputs,
    )  # fmt: skip
    return subject


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("quick")


@pytest.fixture(scope="module")
def loaded(checkpoints: Path) -> tuple[Any, Any, Any]:
    return quick_sd15(checkpoints)


@pytest.fixture(scope="module")
def named(node: Any, loaded: Any) -> Any:
    """Return three images of a subject and one of its class, under prompts as people write them."""
    _, clip, vae = loaded
    pictures = torch.rand(3, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    return made(
        node, clip, vae, pictures, f"a photo of {TOKEN}", class_images=[pictures[:1]], class_prompt=["a photo of a dog"]
    )


def tokenizers(clip: Any) -> dict[str, dict[str, Any]]:
    """Return everything that the CLIP's tokenizers hold."""
    return {name: dict(vars(t)) for name, t in vars(clip.tokenizer).items() if isinstance(t, SDTokenizer)}


@contextmanager
def all_untouched(model: Any, clip: Any) -> Iterator[None]:
    before, tokenizer = tokenizers(clip), clip.tokenizer
    with untouched(model, clip):
        yield
    assert clip.tokenizer is tokenizer and tokenizers(clip) == before


def encoded(clip: Any, prompt: str) -> tuple[Tensor, Tensor]:
    """Return what the stock CLIP Text Encode node gives."""
    with torch.inference_mode():
        ((cond, extra),) = clip.encode_from_tokens_scheduled(clip.tokenize(prompt))
        return cond.clone(), extra["pooled_output"].clone()


def dog(clip: Any, encoder: str = "clip_l") -> Tensor:
    """Return the embedding of "dog" in the encoder's table."""
    table = clip.cond_stage_model.get_submodule(encoder).transformer.get_input_embeddings().weight
    (token,) = getattr(clip.tokenizer, encoder).tokenizer("dog")["input_ids"][1:-1]
    return table[token].float().clone()


def test_the_embedding_is_trained_and_nothing_else_changes(node: Any, loaded: Any, named: Any) -> None:
    model, clip, _ = loaded
    options = replace(QUIET, validation=12)
    with all_untouched(model, clip):
        adapter, _, report = train(node, loaded, named, inversion(2, 0.1), 12, clip=clip, options=options)
    (word,) = adapter.embeddings
    assert adapter.adapters == () and word.token == TOKEN and word.vectors["clip_l"].shape == (2, 768)
    assert relative(word.vectors["clip_l"][0], dog(clip)) > 0.1
    assert re.search(r"\btextual_inversion\b.*\bembedding:sks-dog\b.*\b2 .*\bclip_l\b.*\b1,536\b.*\b6\.0 KiB", report)
    assert "no prior" in report
    assert adapter.metadata["base"] == "SD15" and adapter.metadata["initializer_word"] == "dog"
    (first_step, first), (last_step, last) = loss_line(report)
    assert (first_step, last_step) == (0, 12) and last < 0.9 * first


def loss_line(report: str) -> list[tuple[int, float]]:
    """Return ``(step, loss)`` of the first and the best validation."""
    import re

    return [(int(step), float(loss)) for loss, step in re.findall(r"([\d.]+) at step (\d+)", report)]


def test_the_gradient_is_that_of_the_literal_formula(loaded: Any, named: Any) -> None:
    """Compare one batch through the session with autograd on float64 copies of text encoder and U-Net."""
    model, clip, _ = loaded
    seen: list[Tensor] = []
    with training_session(model, QUIET, named, batch_size=2, clip=clip) as session:
        word = LearnedEmbedding(TOKEN, session.text.initial_vectors("dog", 2)).copy_to("cpu")
        rows = word.vectors["clip_l"].requires_grad_()
        assert torch.equal(rows[0], dog(clip)) and torch.equal(rows[1], dog(clip))
        alone = replace(named, class_examples=())
        losses = DreamBoothLoss.for_session(session, subject=alone, options=QUIET, batch_size=2)
        losses = replace(losses, objective=replace(losses.objective, denoiser=Seen(session.denoiser, seen)))
        with session.text.with_embeddings([word]):
            (loss,) = losses(0)
            loss.backward()
    clean, noise, sigma = (tensor.detach().double() for tensor in seen)
    literal = rows.detach().double().requires_grad_()
    theirs = literal_loss(model, text_encoder(clip, literal), clean, noise, sigma)
    theirs.backward()
    assert loss.item() == pytest.approx(theirs.item(), rel=1e-4)
    assert relative(rows.grad.double(), literal.grad) < 1e-3


class Seen:
    """A denoiser that records its inputs."""

    def __init__(self, denoiser: Any, seen: list[Tensor]):
        self.denoiser, self.seen = denoiser, seen
        self.prediction, self.sigma_data, self.sigmas = denoiser.prediction, denoiser.sigma_data, denoiser.sigmas

    def add_noise(self, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        self.seen.extend([x0, noise, sigma])
        return self.denoiser.add_noise(x0, noise, sigma)

    def __call__(self, x: Tensor, sigma: Tensor, cond: Any) -> Tensor:
        return self.denoiser(x, sigma, cond)


def text_encoder(clip: Any, rows: Tensor) -> Tensor:
    """Return what CLIP-L gives in float64 for ``a photo of v1 v2``, padded with end tokens."""
    import json

    import comfy.sd1_clip

    config = json.loads((Path(comfy.sd1_clip.__file__).parent / "sd1_clip_config.json").read_text())
    config["num_hidden_layers"] = clip.cond_stage_model.clip_l.num_layers
    network = CLIPTextModel(config, torch.float64, "cpu", comfy.ops.disable_weight_init)
    state = clip.cond_stage_model.clip_l.transformer.state_dict()
    network.load_state_dict({name: t.double() for name, t in state.items()})
    network.requires_grad_(False)
    for norm in network.modules():  # whose input the encoder writes over
        if isinstance(norm, torch.nn.LayerNorm):
            norm.register_forward_pre_hook(lambda _, given: (given[0].clone(),))
    table = network.get_input_embeddings().weight
    start = clip.tokenizer.clip_l.tokenizer("a photo of")["input_ids"][:-1]
    end = [49407] * (77 - len(start) - len(rows))
    embeds = torch.cat([table[start], rows, table[end]])[None]
    return network(embeds=embeds, num_tokens=[77], dtype=torch.float64)[0]


def literal_loss(model: Any, context: Tensor, clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """Return ``mean ||eps - eps_theta(x_t, t, c)||^2`` in float64 (2208.01618, equation 2)."""
    config = {key: list(value) if isinstance(value, list) else value for key, value in SD15_SMALL.items()}
    network = UNetModel(**config, dtype=torch.float64, operations=comfy.ops.disable_weight_init)
    network.load_state_dict({name: t.double() for name, t in model.model.diffusion_model.state_dict().items()})
    network.requires_grad_(False)
    abar = (1 / (1 + sigma**2)).view(-1, 1, 1, 1)
    times = model.get_model_object("model_sampling").timestep(sigma.float()).double()
    predicted = network(
        abar.sqrt() * clean + (1 - abar).sqrt() * noise, times, context=context.expand(len(clean), -1, -1)
    )
    return ((noise - predicted) ** 2).mean()


@pytest.fixture(scope="module")
def learned(node: Any, loaded: Any, named: Any, tmp_path_factory: pytest.TempPathFactory) -> AdapterStack:
    """Return an embedding after three steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder_paths, "output_directory", str(tmp_path_factory.mktemp("learned")))
        return train(node, loaded, named, inversion(2, 0.05), 3, clip=loaded[1])[0]


PROMPTS = (
    "a photo of embedding:{}",
    "embedding:{} on (embedding:{}:1.3), sitting",
    "embedding:{}, <a> [b] c",
    "x embedding:{}[0] y",
    "nothing of it, embedding:unknown-one. here",
)


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_the_saved_embedding_in_the_stock_encoder_equals_apply(
    node: Any, checkpoints: Path, loaded: Any, learned: AdapterStack, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    directories = embeddings_in_output_folder_only(monkeypatch)
    stock = quick_sd15(checkpoints, embedding_directory=directories)[1]
    (path,) = node(
        "Save", adapter=learned, filename_prefix="embeddings/mydog", format="comfyui", precision=precision
    )  # found although the CLIP was loaded before
    name = Path(path).stem
    assert path == "embeddings/mydog_00001_.safetensors"
    _, ours = node("Apply", model=loaded[0], adapter=learned, strength_model=1.0, clip=loaded[1])
    tolerance = 1e-6 if precision == "float32" else 1e-2
    for prompt in PROMPTS:
        theirs = encoded(stock, prompt.replace("{}", name))
        for mine, other in zip(encoded(ours, prompt.replace("{}", TOKEN)), theirs, strict=True):
            assert relative(mine, other) < tolerance
    plain = encoded(loaded[1], PROMPTS[0].replace("{}", TOKEN))[0]
    assert relative(encoded(ours, PROMPTS[0].replace("{}", TOKEN))[0], plain) > 1e-3


def test_save_shows_the_name_for_prompts(node: Any, learned: AdapterStack, monkeypatch: pytest.MonkeyPatch) -> None:
    from hyperbooth.nodes.adapters.save_load import Save

    embeddings_in_output_folder_only(monkeypatch)
    inputs = {"adapter": learned, "format": "comfyui", "precision": "float32"}
    assert Save.execute(filename_prefix="embeddings/a", **inputs).ui["text"][1].endswith(" embedding:a_00001_")
    assert "models/embeddings" in Save.execute(filename_prefix="loras/a", **inputs).ui["text"][1]
    assert len(Save.execute(filename_prefix="a", **{**inputs, "format": "hyperbooth"}).ui["text"]) == 1
    with pytest.raises(ValueError, match=r"^filename_prefix .*'my dog_00001_'.*' '"):
        Save.execute(filename_prefix="embeddings/my dog", **inputs)


def test_formats_without_embeddings_refuse_them(node: Any, loaded: Any, subject: Any, learned: AdapterStack) -> None:
    both = node("Combine", first=learned, second=train(node, loaded, subject, lora(), 1)[0])[0]
    save = {"filename_prefix": "a", "precision": "float32", "model": loaded[0]}
    for format in ("kohya", "diffusers"):
        with pytest.raises(ValueError, match=rf"^(?!.*\blayers\b).*\b{TOKEN}\b.*'{format}'.*'comfyui'"):
            node("Save", adapter=learned, format=format, **save)
        with pytest.raises(ValueError, match=rf"\blayers\b.*\b{TOKEN}\b.*'{format}'.*'hyperbooth'"):
            node("Save", adapter=both, format=format, **save)
    with pytest.raises(ValueError, match=rf"\blayers\b.*\b{TOKEN}\b.*'comfyui'.*'hyperbooth'"):
        node("Save", adapter=both, format="comfyui", **save)
    with pytest.raises(ValueError, match=r"\bembeddings\b.*\bLoRA\b"):
        node("ToLoRA", adapter=learned, model=loaded[0])
    assert node("ToLoRA", adapter=both, model=loaded[0])[0]


def test_load_gives_it_back_and_info_names_it(
    node: Any, loaded: Any, learned: AdapterStack, output_folder: Path
) -> None:
    (path,) = node(
        "Save", adapter=learned, filename_prefix="a", format="hyperbooth", precision="float32", trigger="sks"
    )
    again = load_adapter(output_folder / path)
    assert again.embeddings[0].equals(learned.embeddings[0]) and again.metadata["trigger"] == "sks"
    for inputs in ({}, {"model": loaded[0]}):
        report, chart = node("Info", adapter=again, **inputs)
        assert re.search(r"\btextual_inversion\b.*\bembedding:sks-dog\b.*\b2 .*\bclip_l\b", report)
        assert chart.shape == (1, 384, 768, 3)


def test_apply_without_clip_warns(node: Any, loaded: Any, learned: AdapterStack, caplog: Any) -> None:
    with caplog.at_level(logging.WARNING):
        node("Apply", model=loaded[0], adapter=learned, strength_model=1.0)
    (message,) = pack_warnings(caplog)
    assert mentions(message, "clip")


def test_an_embedding_of_another_model_is_refused(node: Any, loaded: Any) -> None:
    other = AdapterStack((), {"base": "SD20"}, (LearnedEmbedding(TOKEN, {"clip_h": torch.zeros(1, 1024)}),))
    with pytest.raises(ValueError, match=r"clip_h .*1024.*clip_l .*768"):
        node("Apply", model=loaded[0], adapter=other, strength_model=1.0, clip=loaded[1])


def test_pivotal_tuning_composes(
    node: Any, loaded: Any, pictures: Tensor, learned: AdapterStack, output_folder: Path
) -> None:
    """Train an embedding, apply it, train a LoRA with that clip, combine, save, load and apply both."""
    model, clip, vae = loaded
    prompt = f"a photo of embedding:{TOKEN}"
    applied, knowing = node("Apply", model=model, adapter=learned, strength_model=1.0, clip=clip)
    subject = made(node, knowing, vae, pictures, prompt)
    assert torch.equal(subject.examples[0].cond[0][0], encoded(knowing, prompt)[0])
    method = lora(text_encoder=True, learning_rate=3e-3)
    with all_untouched(model, clip), all_untouched(applied, knowing):
        over, _, _ = train(node, (applied,), subject, method, 4, clip=knowing)
    (both,) = node("Combine", first=learned, second=over)
    assert [w.token for w in both.embeddings] == [TOKEN] and len(both.adapters) == 1
    (path,) = node("Save", adapter=both, filename_prefix="both", format="hyperbooth", precision="float32")
    results = [
        encoded(node("Apply", model=model, adapter=a, strength_model=1.0, clip=clip, strength_clip=1.0)[1], prompt)[0]
        for a in (both, load_adapter(output_folder / path))
    ]
    one_by_one = node("Apply", model=applied, adapter=over, strength_model=1.0, clip=knowing, strength_clip=1.0)[1]
    assert torch.equal(*results) and torch.equal(results[0], encoded(one_by_one, prompt)[0])
    assert relative(results[0], encoded(knowing, prompt)[0]) > 1e-4


def test_an_embedding_reaches_the_text_encoder_under_a_lora(
    node: Any, loaded: Any, pictures: Tensor, learned: Any
) -> None:
    """Encoding again in training gives what the applied clip gives."""
    model, clip, vae = loaded
    _, knowing = node("Apply", model=model, adapter=learned, strength_model=1.0, clip=clip)
    subject = made(node, knowing, vae, pictures, f"a photo of embedding:{TOKEN}")
    with training_session(model, QUIET, subject, batch_size=1, clip=knowing) as session, torch.no_grad():
        anew = session.text.condition([subject.examples[0].variant(0)])["c_crossattn"]
    assert relative(anew, subject.examples[0].cond[0][0]) < 1e-6
    with (
        training_session(model, QUIET, subject, batch_size=1, clip=clip) as session,
        session.text.with_embeddings(learned.embeddings),
        torch.no_grad(),
    ):
        in_session = session.text.condition([subject.examples[0].variant(0)])["c_crossattn"]
    assert relative(in_session, anew) < 1e-6


OPTIONS = {
    "class images": {},
    "prediction": {"prior_mode": "prediction"},
    "dropout of everything": {"caption_dropout": 1.0},
    "float16": {"precision": "float16", "caption_dropout": 0.5},
    "checkpointing, average, accumulation": {
        "gradient_checkpointing": True, "ema_decay": 0.9, "gradient_accumulation": 2,
    },
    "adafactor, previews": {"optimizer": "adafactor", "preview_every": 3},
}  # fmt: skip


@pytest.mark.parametrize("case", OPTIONS)
def test_every_option_works(node: Any, loaded: Any, named: Any, case: str, shown_images: dict[int, Any]) -> None:
    options = replace(QUIET, **OPTIONS[case])
    with all_untouched(*loaded[:2]):
        adapter, loss_map, _ = train(node, loaded, named, inversion(1, 0.05), 3, clip=loaded[1], options=options)
    assert len(loss_map["loss"]) == 3 and shown_images
    vector = adapter.embeddings[0].vectors["clip_l"][0]
    assert torch.isfinite(vector).all()
    change = relative(vector, dog(loaded[1]))
    assert change == pytest.approx(0.0, abs=2e-3) if case == "dropout of everything" else change > 1e-6


def test_training_continues_from_the_given_vectors(node: Any, loaded: Any, named: Any, learned: Any) -> None:
    clip = loaded[1]
    on, _, _ = train(node, loaded, named, inversion(2, 0.0), 1, clip=clip, start_from=learned)
    assert on.embeddings[0].equals(learned.embeddings[0]) and on.metadata["steps"] == 4
    further, _, report = train(node, loaded, named, inversion(2, 0.05), 1, clip=clip, start_from=learned)
    assert not further.embeddings[0].equals(learned.embeddings[0])
    assert resumed_at(report) == 0 and further.metadata["steps"] == 4
    layered, _, _ = train(node, loaded, named, lora(), 1)
    (both,) = node("Combine", first=layered, second=learned)
    again, _, _ = train(node, loaded, named, inversion(2, 0.05), 1, clip=clip, start_from=both)
    assert all(torch.equal(a, b) for a, b in zip(again.adapters[0].parameters(), layered.parameters(), strict=True))
    assert not again.embeddings[0].equals(learned.embeddings[0])
    for method, message in (
        (inversion(1), r"^start_from .*\b2 vectors\b.*\b1 vector\b"),
        (inversion(2, token="cat"), r"^start_from .*\bembedding:sks-dog\b.*\bembedding:cat\b"),
        (lora(), r"^start_from .*\bembeddings\b.*\blayers\b"),
    ):
        named_so = made_named(named, method)
        with pytest.raises(ValueError, match=message):
            train(node, loaded, named_so, method, 1, clip=clip, start_from=learned)


def made_named(subject: Any, method: Method) -> Any:
    """Return the subject under prompts that name the method's token."""
    token = method.textual_inversion.token if method.textual_inversion else TOKEN
    return replace(subject, examples=tuple(replace(e, prompt=f"a {token}") for e in subject.examples))


def test_bad_input_is_named(node: Any, loaded: Any, named: Any, subject: Any) -> None:
    clip = loaded[1]
    with pytest.raises(ValueError, match=r"^clip .*\bembedding\b"):
        train(node, loaded, named, inversion(), 1)
    with pytest.raises(ValueError, match=r"^token 'sks-dog'.*'a photo of sks dog'"):
        train(node, loaded, subject, inversion(), 1, clip=clip)
    with pytest.raises(ValueError, match=r"\bembedding\b.*\bconditioning\b"):
        silent = replace(subject, examples=tuple(replace(e, prompt=None) for e in subject.examples))
        train(node, loaded, silent, inversion(), 1, clip=clip)
    for inputs, message in (
        ({"token": "my dog"}, "^token .*'my dog'"),
        ({"token": " "}, "^token .*''"),
        ({"initializer_word": ""}, "^initializer_word .*empty"),
        ({"vectors": 76}, "^vectors .*76.* 75"),
        ({"learning_rate": float("nan")}, r"^learning_rate .*\bnan\b"),
    ):
        good = {"token": TOKEN, "initializer_word": "dog", "vectors": 1, "learning_rate": 1e-3}
        with pytest.raises(ValueError, match=message):
            node("MethodTextualInversion", **{**good, **inputs})


def test_a_text_encoder_that_takes_no_embeddings_is_refused(node: Any, loaded: Any, named: Any) -> None:
    class Bare:
        """A tokenizer that is none of ComfyUI's."""

        def tokenize_with_weights(self, text: str, return_word_ids: bool = False, **_: Any) -> Any:
            return loaded[1].tokenizer.tokenize_with_weights(text, return_word_ids)

    clip = loaded[1].clone()
    clip.tokenizer = Bare()
    with pytest.raises(ValueError, match=rf"^clip\b.*\b{type(clip.cond_stage_model).__name__}\b"):
        train(node, loaded, named, inversion(), 1, clip=clip)


def test_captions_without_the_token_are_reported(node: Any, loaded: Any, pictures: Tensor) -> None:
    _, clip, vae = loaded
    subject = made(node, clip, vae, pictures, "x", captions=[f"a {TOKEN}\na dog\n{TOKEN}."])
    report = train(node, loaded, subject, inversion(), 1, clip=clip)[2]
    assert re.search(r"\b1 of 3\b.*\bsks-dog\b", report)
