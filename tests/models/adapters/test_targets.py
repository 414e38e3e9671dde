"""Selection rules match the right layers under the names of the real architectures."""

import re

import pytest
from hyperbooth.models.adapters.targets import RULES, Target, select_targets, text_rule

UNET = {
    "diffusion_model.time_embed.0": (1280, 320),
    "diffusion_model.input_blocks.0.0": (320, 4, 3, 3),
    "diffusion_model.input_blocks.1.0.emb_layers.1": (320, 1280),
    "diffusion_model.input_blocks.1.1.proj_in": (320, 320, 1, 1),
    "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q": (320, 320),
    "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_out.0": (320, 320),
    "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k": (320, 768),
    "diffusion_model.input_blocks.1.1.transformer_blocks.0.ff.net.0.proj": (2560, 320),
}
OTHERS = [
    "diffusion_model.joint_blocks.3.x_block.attn.qkv",
    "diffusion_model.double_blocks.0.img_attn.proj",
    "diffusion_model.double_blocks.0.txt_attn.qkv",
    "diffusion_model.single_blocks.7.linear1",
    "diffusion_model.blocks.2.cross_attn.k",
    "text_encoders.clip_l.transformer.text_model.encoder.layers.0.self_attn.q_proj",
    "text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q",
]
NOT_FEED_FORWARD = ["t_embedder.mlp.0", "y_embedder.mlp.2", "time_in.in_layer", "joint_blocks.0.x_block.attn.qkv"]
SELF_ATTENTION = ["joint_blocks.0.x_block.attn2.qkv", "blocks.0.attn.qkv", "blocks.0.self_attn.q"]
CROSS_ATTENTION = ["blocks.0.cross_attn.kv_linear", "input_blocks.1.1.transformer_blocks.0.attn2.to_k"]
NOT_ATTENTION = [
    "diffusion_model.joint_blocks.3.x_block.mlp.fc1",
    "diffusion_model.joint_blocks.3.x_block.adaLN_modulation.1",
    "diffusion_model.single_blocks.7.modulation.lin",
    "diffusion_model.final_layer.linear",
    "text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1",
]


def names(rule: str) -> list[str]:
    return [target.name.split("transformer_blocks.0.")[-1] for target in select_targets(UNET, rule)]


def test_rules_on_a_unet() -> None:
    assert names("attention") == ["attn1.to_q", "attn1.to_out.0", "attn2.to_k"]
    assert names("self attention") == ["attn1.to_q", "attn1.to_out.0"]
    assert names("cross attention") == ["attn2.to_k"]
    assert names("attention and feed-forward") == [*names("attention"), "ff.net.0.proj"]
    assert len(names("all linear")) == 6
    assert names("all but cross attention") == [name for name in names("all linear") if "attn2" not in name]
    assert len(names("all linear and convolution")) == len(UNET) - 1, "all but the entrance"


ENDS = ["input_blocks.0.0", "out.2", "final_layer.linear", "x_embedder.proj", "img_in", "proj_out", "init_x_linear"]


@pytest.mark.parametrize("name", ENDS)
def test_entrance_and_exit_stay_out(name: str) -> None:
    shapes = {"diffusion_model.middle_block.0": (8, 8), f"diffusion_model.{name}": (4, 8)}
    assert [target.name for target in select_targets(shapes, "all linear")] == ["diffusion_model.middle_block.0"]


@pytest.mark.parametrize("name", OTHERS)
def test_attention_of_other_architectures(name: str) -> None:
    assert select_targets({name: (8, 8)}, "attention") == [Target(name, (8, 8))]


@pytest.mark.parametrize("name", NOT_ATTENTION)
def test_what_is_not_attention(name: str) -> None:
    with pytest.raises(ValueError, match=rf"'attention'.*\b1 layers\b.*{re.escape(name)}"):
        select_targets({name: (8, 8)}, "attention")


@pytest.mark.parametrize("name", NOT_FEED_FORWARD)
def test_embedders_are_no_feed_forward(name: str) -> None:
    shapes = {f"diffusion_model.{part}": (8, 8) for part in ("joint_blocks.0.x_block.mlp.fc1", name)}
    found = [target.name for target in select_targets(shapes, "attention and feed-forward")]
    assert "diffusion_model.joint_blocks.0.x_block.mlp.fc1" in found
    assert (f"diffusion_model.{name}" in found) == ("attn" in name)


def test_self_and_cross_attention_of_other_architectures() -> None:
    shapes = {f"diffusion_model.{name}": (8, 8) for name in [*SELF_ATTENTION, *CROSS_ATTENTION]}
    for rule, names in (("self attention", SELF_ATTENTION), ("cross attention", CROSS_ATTENTION)):
        assert [target.name for target in select_targets(shapes, rule)] == [f"diffusion_model.{n}" for n in names]


def test_all_but_cross_attention_of_other_architectures() -> None:
    rest = [*SELF_ATTENTION, "joint_blocks.0.context_block.mlp.fc1", "double_blocks.0.img_mod.lin"]
    shapes = {f"diffusion_model.{name}": (8, 8) for name in [*rest, *CROSS_ATTENTION, "final_layer.linear"]}
    found = [target.name for target in select_targets(shapes, "all but cross attention")]
    assert found == [f"diffusion_model.{name}" for name in rest]


def test_a_rule_without_a_match_names_both_sides() -> None:
    with pytest.raises(ValueError, match=r"'cross attention'.*\b1 layers\b.*\bfinal_layer\b"):
        select_targets({"diffusion_model.final_layer.linear": (3, 3)}, "cross attention")


def test_an_unknown_rule_lists_the_known() -> None:
    with pytest.raises(ValueError, match=r"^targets .*'everything'.*'attention'"):
        select_targets(UNET, "everything")


def test_a_convolution_is_a_matrix_to_its_adapter() -> None:
    assert Target("x", (320, 4, 3, 3)).matrix_shape == (320, 36)


def test_text_encoders_have_self_attention_only() -> None:
    assert {rule: text_rule(rule) for rule in RULES}["cross attention"] == "attention"
    assert text_rule("all linear") == "all linear"
