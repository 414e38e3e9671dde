"""Encoders of pictures and texts for scores, from folders in the Hugging Face layout; nothing is downloaded."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .scores import all_finite

BATCH = 32
"""Pictures that go through an encoder at once."""
DINO = ("vit", "dinov2", "dinov2_with_registers", "dinov3_vit")
CLIP = ("clip",)
"""``model_type`` in config.json of what can score subjects and of what can score prompts."""
WEIGHTS, SHARDS = "model.safetensors", "model.safetensors.index.json"
CONFIGURATION, PREPROCESSING = "config.json", "preprocessor_config.json"
TOKENIZER = (("tokenizer.json",), ("vocab.json", "merges.txt"))
"""One of these sets."""
ADAPTER = "adapter_config.json"
"""Where it is, transformers puts another file's numbers into the model, pickled ones too."""
ELSEWHERE = ("transformers_weights", "quantization_config")
"""Entries of config.json by which transformers opens other files, pickled ones too, or reads them otherwise."""
UNUSED = ("position_ids", "pooler.dense.weight", "pooler.dense.bias")
"""Ends of names of weights that old files hold, and that embed nothing."""


@dataclass(frozen=True)
class Encoder:
    """A loaded encoder.

    Args:
        name: folder and kind, for reports: scores do not compare across encoders.
        network: transformers' model.
        processor: transformers' preprocessing of its pictures.
        tokenizer: of its texts, or None if it has none.
    """

    name: str
    network: nn.Module
    processor: Any
    tokenizer: Any = None

    @torch.inference_mode()
    def images(self, pictures: Sequence[Tensor], device: torch.device, on_done: Callable[[int], None]) -> Tensor:
        """Embeddings ``[n, d]`` in float32 of pictures ``[H, W, 3]`` in [0, 1], of any sizes; on the CPU.

        Args:
            on_done: called with how many are done.
        """
        rows = []
        for start in range(0, len(pictures), BATCH):
            pixels = [_bytes(picture) for picture in pictures[start : start + BATCH]]
            # Said, not guessed: a picture of one or three rows could be of channels, rows, columns.
            given = self.processor(images=pixels, return_tensors="pt", input_data_format="channels_last")
            given = given["pixel_values"]
            rows.append(self._of_pixels(given.to(device, next(self.network.parameters()).dtype)).float().cpu())
            on_done(min(start + BATCH, len(pictures)))
        return _checked(torch.cat(rows), self.name)

    @torch.inference_mode()
    def text(self, prompt: str, device: torch.device) -> Tensor:
        """The embedding ``[1, d]`` of a prompt in float32; what is longer than the encoder reads is cut off."""
        given = self.tokenizer([prompt], truncation=True, max_length=self._longest, return_tensors="pt").to(device)
        given = {name: given[name] for name in ("input_ids", "attention_mask")}
        pooled = self.network.text_model(**given).pooler_output
        return _checked(self.network.text_projection(pooled).float().cpu(), self.name)

    def is_cut(self, prompt: str) -> bool:
        """Whether the prompt is longer than the encoder reads."""
        return len(self.tokenizer(prompt)["input_ids"]) > self._longest

    @property
    def _longest(self) -> int:
        return self.network.config.text_config.max_position_embeddings

    def _of_pixels(self, pixels: Tensor) -> Tensor:
        """CLIP: its projected embedding. DINO: the last state of the class token, which its papers compare."""
        if hasattr(self.network, "visual_projection"):
            return self.network.visual_projection(self.network.vision_model(pixel_values=pixels).pooler_output)
        return self.network(pixel_values=pixels).last_hidden_state[:, 0]


def _bytes(picture: Tensor) -> Any:
    """As from a picture file: what the preprocessing of every encoder was made for."""
    return (picture.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()


def _checked(embeddings: Tensor, name: str) -> Tensor:
    if not all_finite(embeddings):
        raise ValueError(f"the encoder {name} gave embeddings that are no numbers; its files may be damaged")
    return embeddings


def load(folder: Path, kinds: Sequence[str], with_texts: bool) -> Encoder:
    """The encoder in ``folder``.

    Args:
        kinds: which ``model_type`` it may be of.
        with_texts: it is to embed prompts as well.

    Raises:
        ValueError: a file is missing, pickled, or of another kind of model; the message says what to put where.
    """
    kind = check(folder, kinds, with_texts)
    import transformers

    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        network = _network(folder, kind, local)
        processor = transformers.AutoImageProcessor.from_pretrained(folder, **local)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **local) if with_texts else None
    except Exception as error:  # files of others make transformers fail in every way there is
        raise ValueError(f"the encoder in {folder} cannot be loaded: {error}") from error
    name = f"{folder.name} ({described(kind, network.config)})"
    return Encoder(name, network.eval().requires_grad_(False), processor, tokenizer)


def described(kind: str, config: Any) -> str:
    """Which of its kind a model is: two folders of one name may hold two."""
    pictures = getattr(config, "vision_config", config)
    return f"{kind}, width {getattr(pictures, 'hidden_size', '?')}, patches of {getattr(pictures, 'patch_size', '?')}"


def _network(folder: Path, kind: str, local: dict[str, Any]) -> nn.Module:
    """In float32, whatever the file holds; no weight is drawn at random, as transformers does where one is missing, and
    none is left over, as where the configuration is another model's."""
    import transformers

    model = {"clip": transformers.CLIPModel, "vit": transformers.ViTModel}.get(kind, transformers.AutoModel)
    options: dict[str, Any] = {"add_pooling_layer": False} if kind == "vit" else {}
    # sdpa is said because config.json could ask for code from the Hub in its place.
    network, found = model.from_pretrained(
        folder, use_safetensors=True, attn_implementation="sdpa", output_loading_info=True, **options, **local
    )
    if missing := sorted(found["missing_keys"]):
        raise ValueError(f"it lacks weights of the model that {CONFIGURATION} names, among them {missing[0]}")
    if foreign := sorted(name for name in found["unexpected_keys"] if not name.endswith(UNUSED)):
        raise ValueError(f"it has weights that the model which {CONFIGURATION} names has not, among them {foreign[0]}")
    return network.float()


def check(folder: Path, kinds: Sequence[str], with_texts: bool) -> str:
    """The ``model_type`` of the encoder in ``folder``; errors as :func:`load`."""
    missing = [name for name in (CONFIGURATION, PREPROCESSING) if not (folder / name).is_file()]
    missing += [name for name in _weights(folder) if not (folder / name).is_file()]
    if with_texts and not any(all((folder / name).is_file() for name in names) for names in TOKENIZER):
        missing += TOKENIZER[0]
    if (folder / ADAPTER).exists():
        raise ValueError(f"{folder} holds {ADAPTER}, which changes the model it is beside; take it away")
    if missing:
        raise ValueError(f"{folder} lacks {', '.join(missing)}; copy the files of the model's Hugging Face page there")
    kind = _kind(folder / CONFIGURATION)
    if kind not in kinds:
        raise ValueError(f"{folder} holds a model of type {kind!r}; give one of {', '.join(kinds)}")
    return kind


def _weights(folder: Path) -> list[str]:
    """Names of the files with the weights, there or not.

    Raises:
        ValueError: they are pickled.
    """
    if (folder / WEIGHTS).is_file():
        return [WEIGHTS]
    if (folder / SHARDS).is_file():
        return _shards(folder / SHARDS)
    if pickled := sorted(path.name for pattern in ("*.bin", "*.pt*") for path in folder.glob(pattern)):
        raise ValueError(
            f"{folder} holds its weights as {', '.join(pickled)}, which is pickled and never opened here; put "
            f"{WEIGHTS} there in its place: from a pull request of SFconvertbot to the model's page, or from another "
            "model's"
        )
    return [WEIGHTS]


def _shards(index: Path) -> list[str]:
    """The files that an index names: transformers would open pickled ones, and ones elsewhere."""
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"the encoder in {index.parent} cannot be loaded: {index.name}: {error}") from error
    if not names or not all(Path(name).name == name and name.endswith(".safetensors") for name in names):
        raise ValueError(f"{index} names {', '.join(names) or 'no file'}; expected safetensors files beside it")
    return names


def _kind(path: Path) -> str:
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        kind, elsewhere = str(said["model_type"]), [name for name in ELSEWHERE if name in said]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no model's configuration: {error}") from error
    if elsewhere:
        raise ValueError(f"{path} has {elsewhere[0]}, by which other files than {WEIGHTS} are read; take it out")
    return kind
