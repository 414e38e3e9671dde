"""The methods' nodes: what they train by default, on a real SD1.5's layers."""

import re
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers.reports import resumed_at
from helpers.training import QUIET, train
from hyperbooth.models.adapters import LiDBConfig, PaRaConfig
from hyperbooth.models.adapters.stack import Adapter
from hyperbooth.nodes.bridge.model.layers import adaptable_layers, layer_shapes
from hyperbooth.nodes.bridge.training_session import training_session
from hyperbooth.trainers.config import Method
from hyperbooth.trainers.dreambooth.config import targets_of
from hyperbooth.trainers.dreambooth.initial_adapter import weights_of
from torch import nn

from tools.comfy_harness.tiny_checkpoints import SD15_FULL


@pytest.fixture(scope="module")
def sd15(loaded: Any) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the layers of SD1.5's own U-Net, on the meta device, and of its CLIP."""
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    config = {key: list(value) if isinstance(value, list) else value for key, value in SD15_FULL.items()}
    with torch.device("meta"):
        unet = UNetModel(**config, device="meta", operations=comfy.ops.disable_weight_init)
    layers = {
        f"diffusion_model.{name}": module for name, module in unet.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d))
    }  # fmt: skip
    text = {name: layer for name, layer in adaptable_layers(*loaded[:2]).items() if name.startswith("text_encoders.")}
    return layer_shapes({**layers, **text})


def default(node: Any, name: str) -> Method:
    """Return what the node gives with its default inputs."""
    import asyncio

    from hyperbooth.nodes.extension import HyperBooth

    nodes = {cls.GET_SCHEMA().node_id: cls for cls in asyncio.run(HyperBooth().get_node_list())}
    inputs = {given.id: given.default for given in nodes[f"HyperBooth{name}"].GET_SCHEMA().inputs}
    (method,) = node(name, **inputs)
    return method


def link(method: Method, shapes: dict[str, tuple[int, ...]]) -> Adapter:
    return Adapter.create(method.family, targets_of(method, shapes), method.config, torch.Generator())


def test_lidb_is_the_papers_thirty_thousand_on_sd15(node: Any, sd15: dict[str, tuple[int, ...]]) -> None:
    made = link(default(node, "MethodLiDB"), sd15)
    parts = Counter(name.split(".")[0] for name in made.targets)
    assert parts == {"diffusion_model": 128, "text_encoders": 72}
    assert sum(parameter.numel() for parameter in made.parameters()) == 30_000
    words = {name.split(".")[-1] for name in made.targets if name.startswith("text_encoders")}
    assert words == {"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"}


def test_lidbs_text_part_does_not_follow_the_diffusion_models(sd15: dict[str, tuple[int, ...]], node: Any) -> None:
    method = replace(default(node, "MethodLiDB"), targets="cross attention")
    parts = Counter(target.name.split(".")[0] for target in targets_of(method, sd15))
    assert parts == {"diffusion_model": 64, "text_encoders": 72}


def test_para_trains_the_diffusion_model_alone(node: Any, sd15: dict[str, tuple[int, ...]]) -> None:
    made = link(default(node, "MethodPaRa"), sd15)
    assert {name.split(".")[0] for name in made.targets} == {"diffusion_model"}


def test_all_but_cross_attention_on_sd15(sd15: dict[str, tuple[int, ...]]) -> None:
    def names(rule: str) -> set[str]:
        return {target.name for target in targets_of(Method(targets=rule), sd15)}

    assert names("all but cross attention") == names("all linear") - names("cross attention")
    assert len(names("cross attention")) == 64


def test_settings_reach_the_family(node: Any) -> None:
    (lidb,) = node(
        "MethodLiDB", rank=2, a=30, b=20, basis_seed=5, targets="self attention", learning_rate=2e-3,
        text_encoder=False, text_encoder_lr=1e-3,
    )  # fmt: skip
    assert (lidb.family, lidb.config, lidb.targets) == (
        "lidb",
        LiDBConfig(rank=2, a=30, b=20, basis_seed=5),
        "self attention",
    )
    assert (lidb.learning_rate, lidb.text_encoder, lidb.text_encoder_lr) == (2e-3, False, 1e-3)
    (para,) = node("MethodPaRa", rank=3, init="smallest singular", targets="all linear", learning_rate=2e-3)
    assert (para.family, para.config, para.targets) == (
        "para",
        PaRaConfig(rank=3, init="smallest singular"),
        "all linear",
    )
    assert para.learning_rate == 2e-3 and not para.text_encoder


def test_para_starts_where_the_models_weights_are_least_used(node: Any, loaded: Any, subject: Any) -> None:
    """With a learning rate of zero the adapter stays at its start."""
    method = Method(family="para", config=PaRaConfig(rank=4, init="smallest singular"), learning_rate=0.0)
    adapter, _, _ = train(node, loaded, subject, method, 1)
    with training_session(loaded[0], QUIET, subject, batch_size=1) as session:
        for name, part in adapter.adapters[0].layers.items():
            weight = session.model.layers[name].weight.detach().double()
            basis = part.basis.detach().double()
            least = torch.linalg.svdvals(weight)[-4:].norm() if weight.shape[0] <= weight.shape[1] else 0.0
            assert (basis.T @ weight).norm() <= 1.02 * least + 1e-5 * weight.norm(), name


def test_weights_come_one_layer_at_a_time_as_float32_matrices(loaded: Any, subject: Any) -> None:
    signs: list[int] = []
    with training_session(loaded[0], QUIET, subject, batch_size=1) as session:
        weight_of = weights_of(session, lambda: signs.append(1))
        kernel = next(name for name, shape in session.model.shapes.items() if shape[2:] == (3, 3))
        weight = weight_of(kernel)
        assert weight.dtype == torch.float32 and weight.shape == (
            session.model.shapes[kernel][0],
            session.model.shapes[kernel][1] * 9,
        )
        assert torch.equal(weight, session.model.layers[kernel].weight.float().flatten(1))
    assert signs == [1]


def test_a_resumed_run_does_not_compute_the_initialization_again(
    node: Any, loaded: Any, subject: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hyperbooth.models.adapters.para import adapter as para

    asked: list[int] = []
    real = para.smallest_left_singular_vectors
    monkeypatch.setattr(para, "smallest_left_singular_vectors", lambda *given: asked.append(1) or real(*given))
    method = Method(
        family="para",
        config=PaRaConfig(rank=2, init="smallest singular"),
        targets="cross attention",
        learning_rate=1e-3,
    )
    straight, _, _ = train(node, loaded, subject, method, 4, resume="start over")
    layers = len(straight.adapters[0].layers)
    assert len(asked) == layers
    train(node, loaded, subject, method, 2, resume="start over")
    again, _, report = train(node, loaded, subject, method, 4)
    assert len(asked) == 2 * layers and resumed_at(report) == 2
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), again.parameters(), strict=True))


def test_training_warns_where_para_removes_too_much(
    node: Any, loaded: Any, subject: Any, caplog: pytest.LogCaptureFixture
) -> None:
    method = Method(family="para", config=PaRaConfig(rank=9), targets="cross attention", learning_rate=1e-3)
    adapter, _, report = train(node, loaded, subject, method, 1)
    removed = r"\b{} of the 320\b.*\bdiffusion_model\."
    assert re.search(rf"^warning: .*{removed.format(9)}", report, re.M)
    assert re.search(removed.format(9), caplog.text) and adapter.adapters[0].describe_size() in report
    caplog.clear()
    (both,) = node("Combine", first=adapter, second=adapter)
    assert re.search(removed.format(18), caplog.text)
    assert re.search(removed.format(18), node("Info", adapter=both, model=loaded[0])[0])


def test_another_familys_adapter_is_not_trained_further(node: Any, loaded: Any, subject: Any) -> None:
    adapter, _, _ = train(
        node,
        loaded,
        subject,
        Method(family="para", config=PaRaConfig(rank=2), targets="cross attention", learning_rate=1e-3),
        1,
    )
    other = Method(family="lidb", config=LiDBConfig(), targets="cross attention", learning_rate=1e-3)
    with pytest.raises(ValueError, match=r"^start_from .*\bpara \(rank 2\).*\blidb\b"):
        train(node, loaded, subject, other, 1, start_from=adapter)
