"""Measure by the oracle what a personalization method makes of the small world's base for one person."""

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from common.harness import Row
from common.methods import PersonalizedModel, Task, untouched
from common.result_cache import digest
from torch import Tensor

from tools.comfy_harness.call_node import caller
from tools.comfy_harness.import_pack import import_comfyui
from tools.small_world.oracle import reading, scores
from tools.small_world.oracle import trained as trained_oracle
from tools.small_world.scene import task
from tools.small_world.vision import encoder

SEEDS = 4
"""Images per scene."""
CLASS_SAMPLES = 24
"""Images of the class prompt."""
CLASS_IMAGES = 20
COSTS = ("seconds", "steps", "pictures", "parameters", "file_bytes", "taken_out")
FIGURES = ("identity", "prompt_fidelity", "diversity", "class_prior", "class_identity", "clip_i", "pres", "div")
SCENES = tuple(f"identity_{scene}" for scene in range(1, 6))
"""Identity in each scene, in the order of the world's ``task.CAPTIONS``."""
REAL, CODED = "real", "real_coded"
"""Values in place of a method: the generator's own images of the person, plain or through the base's autoencoder."""
Method = Callable[..., PersonalizedModel] | str


class Evaluator:
    """Evaluate methods: the loaded base, the oracle and the encoder.

    Args:
        folder: holds the base as a checkpoint, and ComfyUI's output folder.
        threads: threads of PyTorch, on which the seconds depend.
    """

    def __init__(self, folder: Path, threads: int) -> None:
        import_comfyui()
        import folder_paths

        from tools.small_world.base import checkpoint, model

        self.model = model
        folder_paths.set_output_directory(str(folder / "output"))
        self.judge, self.encoder = scores.Judge(trained_oracle.kept(), task.REFERENCES), encoder.kept()
        weights = [part.WEIGHTS for part in (checkpoint, trained_oracle, encoder)]
        judging = (scores, task, model, reading)
        sources = [Path(__file__), *(Path(part.__file__) for part in judging)]
        self.digest = digest(str(threads).encode(), *(path.read_bytes() for path in [*weights, *sources]))
        base = model.load(folder / f"small_world_{self.digest}.safetensors")
        began = time.perf_counter()
        prompt, class_prompt = task.PROMPT, task.CLASS_PROMPT
        images = [model.sample(base, [class_prompt], 1000 + index) for index in range(CLASS_IMAGES)]
        seconds = time.perf_counter() - began
        self.task = Task(base, caller(), prompt, class_prompt, images, seconds)

    def references(self, number: int) -> Tensor:
        """Return the images of held-out person ``number``, [references, 64, 64, 3]."""
        return task.references(task.subjects(number + 1)[number])

    def run(self, method: Method, number: int) -> tuple[Row, Tensor]:
        """Return the figures of one person, and an image of each scene."""
        shown = task.subjects(number + 1)[number]
        references = self.references(number)
        made, images, class_samples = self.sampled_by(method, number, references)
        if method in (REAL, CODED):
            images = self.real(shown, method == CODED)
        figures = self.figures(images, references, shown) | self.of_class(class_samples, references, number)
        figures |= self.by_encoder(images, class_samples, references)
        return figures | {name: getattr(made, name) for name in COSTS}, images[:, 0].clone()

    def sampled_by(
        self, method: Callable[..., PersonalizedModel] | str, number: int, references: Tensor
    ) -> tuple[PersonalizedModel, Tensor, Tensor]:
        """Return the personalized model, and its samples of the person and of the class."""
        if method in (REAL, CODED, untouched):
            return untouched(self.task, references), *self.of_base(number)
        made = method(self.task, references)
        return made, *self.sampled(made, number)

    def real(self, shown: Any, coded: bool) -> Tensor:
        """Return the generator's own images of the person, [scenes, SEEDS, 64, 64, 3]."""
        images = torch.stack([self.judge.generator_images(shown, c, SEEDS) for c in task.CAPTIONS])
        if not coded:
            return images
        vae = self.task.base.vae
        with torch.inference_mode():
            return torch.stack([vae.decode(vae.encode(scene)) for scene in images])

    def sampled(self, made: PersonalizedModel, seed: int) -> tuple[Tensor, Tensor]:
        """Return samples of the person, [scenes, SEEDS, 64, 64, 3], and of the class, [CLASS_SAMPLES, 64, 64, 3]."""
        scenes = [caption.replace(self.task.class_prompt, made.prompt) for caption in task.CAPTIONS]
        prompts = [scene for scene in scenes for _ in range(SEEDS)]
        base = replace(self.task.base, model=made.model, clip=made.clip)
        images = self.model.sample(base, prompts + [self.task.class_prompt] * CLASS_SAMPLES, seed)
        return images[: len(prompts)].unflatten(0, (len(scenes), SEEDS)), images[len(prompts) :]

    @cache  # noqa: B019  # there is one evaluator, and it lives as long as the program
    def of_base(self, seed: int) -> tuple[Tensor, Tensor]:
        """Return samples of the unmodified base."""
        return self.sampled(untouched(self.task, None), seed)

    def figures(self, images: Tensor, references: Tensor, shown: Any) -> Row:
        """Return the oracle's figures, means over the scenes."""
        captions = task.CAPTIONS
        pairs = list(zip(images, captions, strict=True))
        identities = [self.judge.identity(p, references, c) for p, c in pairs]
        return dict(zip(SCENES, identities, strict=True)) | {
            "identity": statistics.mean(identities),
            "prompt_fidelity": statistics.mean(self.judge.prompt_fidelity(p, c) for p, c in pairs),
            "diversity": statistics.mean(self.judge.diversity(p, c, shown) for p, c in pairs),
        }

    def of_class(self, class_samples: Tensor, references: Tensor, number: int) -> Row:
        """Return the spread of people under the class prompt, relative to the base's, and their identity."""
        spread = [self.judge.people_spread(faces) for faces in (class_samples, self.of_base(number)[1])]
        prompt = task.CLASS_PROMPT
        return {
            "class_prior": spread[0] / spread[1],
            "class_identity": self.judge.identity(class_samples, references, prompt),
        }

    def by_encoder(self, images: Tensor, class_samples: Tensor, references: Tensor) -> Row:
        """Return the pack's scores by the world's CLIP_VISION, which stands in for DINO too."""
        from hyperbooth.models.metrics.scores import diversity, prior_preservation

        given = {"images": images.flatten(0, 1), "references": references, "clip_vision": self.encoder}
        return {
            "clip_i": self.task.call("SubjectFidelity", **given)[1],
            "pres": prior_preservation(self.embedded(class_samples), self.embedded(references)),
            "div": statistics.mean(diversity(self.embedded(scene)) for scene in images),
        }

    @torch.inference_mode()
    def embedded(self, images: Tensor) -> Tensor:
        return self.encoder.encode_image(images).image_embeds
