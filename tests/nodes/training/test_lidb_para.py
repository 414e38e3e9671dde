"""LiDB and PaRa through the nodes, on ComfyUI's loaded objects: what holds for LoRA holds for them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.training import PROMPT, QUIET, interrupted_at, noise, output, relative, same, train, untouched
from hyperbooth.models.adapters import LiDBConfig, PaRaConfig
from hyperbooth.models.files.adapter_file import load_adapter, save_adapter
from hyperbooth.nodes.bridge.text.conditioning import encode_prompt
from hyperbooth.nodes.bridge.training_session import training_session
from hyperbooth.trainers.config import Method
from hyperbooth.trainers.data.dataset import Example


@pytest.fixture(scope="module")
def loaded(quick: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
    return quick


METHODS = {
    "lidb": Method(family="lidb", config=LiDBConfig(), targets="attention", learning_rate=1e-2),
    "lidb of the text encoder too": Method(
        family="lidb",
        config=LiDBConfig(rank=2, a=60, b=40, basis_seed=5),
        targets="attention",
        learning_rate=1e-2,
        text_encoder=True,
        text_encoder_lr=1e-3,
    ),
    "para": Method(family="para", config=PaRaConfig(rank=4, init="random"), targets="attention", learning_rate=3e-3),
    "para from the smallest": Method(
        family="para",
        config=PaRaConfig(rank=2, init="smallest singular"),
        targets="all linear and convolution",
        learning_rate=3e-3,
    ),
}
by_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


def inputs(method: Method, loaded: Any) -> dict[str, Any]:
    return {"clip": loaded[1]} if method.text_encoder else {}


@by_method
def test_trains_and_leaves_the_model_unchanged(node: Any, loaded: Any, subject: Any, method: Method) -> None:
    with untouched(*loaded[:2]):
        _, loss_map, report = train(node, loaded, subject, method, 60, **inputs(method, loaded))
    losses = loss_map["loss"]
    assert sum(losses[-20:]) < 0.97 * sum(losses[:20])
    assert report.startswith(f"{method.family} (rank {method.config.rank}")


@by_method
def test_cancelled_and_queued_again_it_gives_the_adapter_of_the_run_never_cancelled(
    node: Any, loaded: Any, subject: Any, output_folder: Path, method: Method
) -> None:
    options = {"options": replace(QUIET, checkpoint_every=2, ema_decay=0.9), **inputs(method, loaded)}
    whole, losses, _ = train(node, loaded, subject, method, 12, **options, resume="start over")
    (state,) = (output_folder / "hyperbooth_states").iterdir()
    state.unlink()
    with untouched(*loaded[:2]):
        with interrupted_at(5):
            train(node, loaded, subject, method, 12, **options)
        again, losses_again, _ = train(node, loaded, subject, method, 12, **options)
    assert same(whole, again) and losses == losses_again


@by_method
def test_training_sees_what_apply_gives_also_from_a_file(
    node: Any, loaded: Any, subject: Any, method: Method, tmp_path: Path
) -> None:
    """ComfyUI keeps this text encoder in float16 and rounds a patched weight to it, which attaching does not."""
    model, clip, _ = loaded
    adapter, _, _ = train(node, loaded, subject, method, 8, **inputs(method, loaded))
    save_adapter(adapter, tmp_path / "a.safetensors")
    again = load_adapter(tmp_path / "a.safetensors")
    assert same(adapter, again)
    patched, patched_clip = node(
        "Apply", model=model, adapter=again, strength_model=1.0, clip=clip, strength_clip=1.0
    )  # fmt: skip
    expected = output(patched, patched_clip)
    with (
        training_session(model, QUIET, subject, batch_size=1, clip=clip if method.text_encoder else None) as session,
        session.injected(adapter),
        torch.no_grad(),
    ):
        example = Example(torch.zeros(1, 4, 8, 8), encode_prompt(clip, PROMPT), PROMPT)
        attached = session.denoiser(noise(), torch.tensor([5.0]), session.text.condition([example]))
    assert relative(attached, expected) < (1e-3 if method.text_encoder else 1e-4)
    assert relative(expected, output(model, clip)) > 1e-3


@by_method
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_training_learns(node: Any, loaded: Any, subject: Any, method: Method, precision: str) -> None:
    """Every block is checkpointed, so that a decomposition serves the forward and its recomputation."""
    options = replace(QUIET, precision=precision, gradient_checkpointing=True, gradient_accumulation=2)
    adapter, loss_map, _ = train(node, loaded, subject, method, 3, options=options, **inputs(method, loaded))
    exact, expected, _ = train(
        node, loaded, subject, method, 3, options=replace(QUIET, precision="float32", gradient_accumulation=2),
        **inputs(method, loaded),
    )  # fmt: skip
    assert loss_map["loss"] == pytest.approx(expected["loss"], rel=0.05)
    ours, theirs = (torch.cat([p.detach().flatten() for p in a.parameters()]) for a in (adapter, exact))
    assert relative(ours, theirs) < 0.1


@by_method
def test_trains_further_from_a_file(
    node: Any, loaded: Any, subject: Any, method: Method, tmp_path: Path
) -> None:  # fmt: skip
    first, _, _ = train(node, loaded, subject, method, 2, **inputs(method, loaded))
    save_adapter(first, tmp_path / "a.safetensors")
    further, _, _ = train(
        node, loaded, subject, replace(method, learning_rate=0.0, text_encoder_lr=0.0), 1,
        start_from=load_adapter(tmp_path / "a.safetensors"), **inputs(method, loaded),
    )  # fmt: skip
    assert same(first, further) and further.metadata["steps"] == 3
