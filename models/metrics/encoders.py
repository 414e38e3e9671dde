"""CLIP and DINO encoders for the scores, loaded from folders in the Hugging Face layout; nothing is downloaded.

The files are untrusted: everything by which transformers would open a pickled file, run code, or fill in weights at
random is refused before or after loading.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .scores import all_finite

MAX_JSON = 2**24
"""Bytes of a configuration or an index; that of the largest models has less than a million."""
CENTER = 224 / 256
"""Share of the short side that DINO's evaluation shows."""
IMAGES_AT_ONCE = 32
"""Images per forward pass."""
DINO = ("vit", "dinov2", "dinov2_with_registers", "dinov3_vit")
CLIP = ("clip",)
"""Values of ``model_type`` in config.json: encoders that score subjects, and encoders that score prompts."""
WEIGHTS, SHARDS = "model.safetensors", "model.safetensors.index.json"
CONFIGURATION, PREPROCESSING = "config.json", "preprocessor_config.json"
TOKENIZER = (("tokenizer.json",), ("vocab.json", "merges.txt"))
"""Sets of files of a tokenizer; one of them has to be complete."""
ADAPTER = "adapter_config.json"
"""A file by which transformers loads the weights of another file, pickled or not, into the model."""
ELSEWHERE = ("transformers_weights", "quantization_config")
"""Entries of config.json by which transformers opens other files, pickled or not, or decodes them otherwise."""
UNUSED = ("position_ids", "pooler.dense.weight", "pooler.dense.bias")
"""Ends of the names of weights in old files that no embedding depends on."""


@dataclass(frozen=True)
class Encoder:
    """A loaded encoder.

    Args:
        name: folder and kind, for reports: scores of different encoders cannot be compared.
        network: the model of transformers.
        processor: the image processor of transformers.
        tokenizer: the tokenizer of transformers, or None if no texts are embedded.
    """

    name: str
    network: nn.Module
    processor: Any
    tokenizer: Any = None

    @torch.inference_mode()
    def embed_images(self, images: Sequence[Tensor], device: torch.device, on_done: Callable[[int], None]) -> Tensor:
        """Return the embeddings ``[n, d]`` of images, in float32 on the CPU.

        Args:
            images: ``[H, W, 3]`` each, in [0, 1], of any sizes.
            device: of the network's weights.
            on_done: called after each batch with the number of images done.

        Raises:
            ValueError: an embedding is NaN, infinite or zero.
        """
        rows = []
        for start in range(0, len(images), IMAGES_AT_ONCE):
            pixels = [self._cropped(_as_bytes(image)) for image in images[start : start + IMAGES_AT_ONCE]]
            # Without input_data_format the processor guesses: an image of one or three rows could be channels first.
            given = self.processor(images=pixels, return_tensors="pt", input_data_format="channels_last")
            given = given["pixel_values"]
            rows.append(self._embed_pixels(given.to(device, next(self.network.parameters()).dtype)).float().cpu())
            on_done(min(start + IMAGES_AT_ONCE, len(images)))
        return _checked(torch.cat(rows), self.name)

    @torch.inference_mode()
    def embed_text(self, prompt: str, device: torch.device) -> Tensor:
        """Return the embedding ``[1, d]`` of a prompt in float32; a prompt beyond the encoder's length is truncated."""
        given = self.tokenizer([prompt], truncation=True, max_length=self._max_length, return_tensors="pt").to(device)
        given = {name: given[name] for name in ("input_ids", "attention_mask")}
        pooled = self.network.text_model(**given).pooler_output
        return _checked(self.network.text_projection(pooled).float().cpu(), self.name)

    def is_truncated(self, prompt: str) -> bool:
        """Return whether the prompt has more tokens than the encoder reads."""
        return len(self.tokenizer(prompt)["input_ids"]) > self._max_length

    def _cropped(self, pixels: Any) -> Any:
        """Return the center of an image ``[H, W, 3]`` if the processor would squash it to a square.

        The preprocessing on the page of a DINO resizes both sides. DINO's own evaluation (and with it DreamBooth's)
        resizes the short side to 256 and takes the 224 x 224 in the center (2104.14294, eval_knn.py).
        """
        if getattr(self.processor, "do_center_crop", False) or "height" not in (self.processor.size or {}):
            return pixels
        height, width = pixels.shape[:2]
        side = max(1, round(min(height, width) * CENTER))
        top, left = (height - side) // 2, (width - side) // 2
        return pixels[top : top + side, left : left + side]

    @property
    def _max_length(self) -> int:
        return self.network.config.text_config.max_position_embeddings

    def _embed_pixels(self, pixels: Tensor) -> Tensor:
        """Return CLIP's projected embedding or DINO's last class token, which its papers compare."""
        if hasattr(self.network, "visual_projection"):
            return self.network.visual_projection(self.network.vision_model(pixel_values=pixels).pooler_output)
        return self.network(pixel_values=pixels).last_hidden_state[:, 0]


def _as_bytes(image: Tensor) -> Any:
    """Return the image in 8 bits, as decoded from a file, which is what every encoder's preprocessing expects."""
    return (image.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()


def _checked(embeddings: Tensor, name: str) -> Tensor:
    if not all_finite(embeddings):
        raise ValueError(f"the encoder {name} gave NaN, infinite or zero embeddings; its files may be damaged")
    return embeddings


def load_encoder(folder: Path, kinds: Sequence[str], with_texts: bool) -> Encoder:
    """Load the encoder in ``folder``, in float32 and evaluation mode.

    Args:
        folder: the files of the model's Hugging Face page.
        kinds: the accepted values of ``model_type``, such as :data:`DINO`.
        with_texts: require a tokenizer, for embedding prompts.

    Raises:
        ValueError: a file is missing, pickled, or of another kind of model; the message names the file and the remedy.
    """
    kind = check_encoder(folder, kinds, with_texts)
    import transformers

    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        network = _network(folder, kind, local)
        processor = transformers.AutoImageProcessor.from_pretrained(folder, **local)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **local) if with_texts else None
    except Exception as error:  # transformers raises errors of every class on untrusted files
        raise ValueError(f"the encoder in {folder.name} cannot be loaded: {error}") from error
    name = f"{folder.name} ({described(kind, network.config)})"
    return Encoder(name, network.eval().requires_grad_(False), processor, tokenizer)


def described(kind: str, config: Any) -> str:
    """Return the kind and sizes of a model, which tell apart two models in folders of one name."""
    vision = getattr(config, "vision_config", config)
    return f"{kind}, width {getattr(vision, 'hidden_size', '?')}, patches of {getattr(vision, 'patch_size', '?')}"


def _network(folder: Path, kind: str, local: dict[str, Any]) -> nn.Module:
    """Load the network in float32, whatever the dtype of the file.

    Raises:
        ValueError: the file lacks a weight, which transformers would draw at random, or holds one that the model of the
            configuration does not have.
    """
    import transformers

    model = {"clip": transformers.CLIPModel, "vit": transformers.ViTModel}.get(kind, transformers.AutoModel)
    options: dict[str, Any] = {"add_pooling_layer": False} if kind == "vit" else {}
    # sdpa is given explicitly because config.json could ask for code from the Hub in its place.
    network, found = model.from_pretrained(
        folder, use_safetensors=True, attn_implementation="sdpa", output_loading_info=True, **options, **local
    )
    if missing := sorted(found["missing_keys"]):
        raise ValueError(f"it lacks weights of the model that {CONFIGURATION} names, among them {missing[0]}")
    if foreign := sorted(name for name in found["unexpected_keys"] if not name.endswith(UNUSED)):
        raise ValueError(f"it has weights that the model which {CONFIGURATION} names has not, among them {foreign[0]}")
    return network.float()


def check_encoder(folder: Path, kinds: Sequence[str], with_texts: bool) -> str:
    """Return the ``model_type`` of the encoder in ``folder`` after checking its files, without loading them.

    Args:
        folder: the files of the model's Hugging Face page.
        kinds: the accepted values of ``model_type``.
        with_texts: require a tokenizer.

    Raises:
        ValueError: as in :func:`load_encoder`.
    """
    missing = [name for name in (CONFIGURATION, PREPROCESSING) if not (folder / name).is_file()]
    missing += [name for name in _weights(folder) if not (folder / name).is_file()]
    if with_texts and not any(all((folder / name).is_file() for name in names) for names in TOKENIZER):
        missing += TOKENIZER[0]
    if (folder / ADAPTER).exists():
        raise ValueError(f"{folder.name} holds {ADAPTER}, which changes the model of that folder; remove it")
    if missing:
        raise ValueError(
            f"{folder.name} lacks {', '.join(missing)}; copy the files of the model's Hugging Face page there"
        )
    kind = _kind(folder / CONFIGURATION)
    if kind not in kinds:
        raise ValueError(f"{folder.name} holds a model of type {kind!r}; give one of {', '.join(kinds)}")
    return kind


def _weights(folder: Path) -> list[str]:
    """Return the names of the files with the weights, whether they exist or not.

    Raises:
        ValueError: the weights are pickled.
    """
    if (folder / WEIGHTS).is_file():
        return [WEIGHTS]
    if (folder / SHARDS).is_file():
        return _shards(folder / SHARDS)
    if pickled := sorted(path.name for pattern in ("*.bin", "*.pt*") for path in folder.glob(pattern)):
        raise ValueError(
            f"{folder.name} holds its weights as {', '.join(pickled)}, which is pickled and never opened here; put "
            f"{WEIGHTS} there in its place: from a pull request of SFconvertbot to the model's page, or from another "
            "model's"
        )
    return [WEIGHTS]


def _shards(index: Path) -> list[str]:
    """Return the files that an index of sharded weights names.

    Raises:
        ValueError: a file is pickled or in another folder; transformers would open it.
    """
    try:
        names = sorted(set(_json(index)["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"the encoder in {index.parent.name} cannot be loaded: {index.name}: {error}") from error
    if not names or not all(Path(name).name == name and name.endswith(".safetensors") for name in names):
        raise ValueError(
            f"{index.parent.name}/{index.name} names {', '.join(names)[:200] or 'no file'}; expected safetensors "
            "files in its folder"
        )
    return names


def _json(path: Path) -> Any:
    """Return the content of a file of at most :data:`MAX_JSON` bytes.

    Raises:
        OSError, ValueError: it cannot be read, or is larger.
    """
    with path.open("rb") as file:
        content = file.read(MAX_JSON + 1)
    if len(content) > MAX_JSON:
        raise ValueError(f"it has more than {MAX_JSON} bytes")
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def _kind(path: Path) -> str:
    try:
        config = _json(path)
        kind, elsewhere = str(config["model_type"]), [name for name in ELSEWHERE if name in config]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path.parent.name}/{path.name} is no configuration of a model: {error}") from error
    if elsewhere:
        raise ValueError(f"{path} has {elsewhere[0]}, by which other files than {WEIGHTS} are read; remove that entry")
    return kind
