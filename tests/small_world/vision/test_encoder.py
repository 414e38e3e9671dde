"""Test that the encoder in ComfyUI equals the trained one, and distinguishes held-out people."""

from pathlib import Path

import torch

from tools.small_world.oracle.scores import drawn
from tools.small_world.scene.scene import Scene
from tools.small_world.scene.task import subjects
from tools.small_world.vision.encoder import CONFIG, WEIGHTS, keep, kept
from tools.small_world.vision.train import Reader


def test_comfyui_encodes_as_it_was_trained(tmp_path: Path) -> None:
    torch.manual_seed(0)
    reader = Reader().eval()
    keep(reader.encoder, tmp_path / "encoder.safetensors")
    images = torch.rand(3, 64, 64, 3)
    with torch.inference_mode():
        output = kept(tmp_path / "encoder.safetensors").encode_image(images)
        tokens, embedding = reader.encoded((images.movedim(-1, 1) - reader.mean) / reader.std)
    assert tokens.shape == (3, 65, CONFIG["hidden_size"]) and embedding.shape == (3, CONFIG["projection_dim"])
    assert torch.allclose(output.penultimate_hidden_states, tokens, atol=0.02 * tokens.std().item())
    assert torch.allclose(output.image_embeds, embedding, atol=0.02 * embedding.std().item())


def test_a_person_in_two_scenes_is_nearer_than_another() -> None:
    people = subjects(32)
    with torch.inference_mode():
        first, second = (kept().encode_image(drawn(people, Scene(place))).image_embeds for place in ("snow", "beach"))
    first, second = (torch.nn.functional.normalize(e - e.mean(0), dim=1) for e in (first, second))
    nearest = (first @ second.T).argmax(1)
    assert (nearest == torch.arange(len(people))).float().mean() > 0.6


def test_it_is_small() -> None:
    assert WEIGHTS.stat().st_size < 0.7e6
