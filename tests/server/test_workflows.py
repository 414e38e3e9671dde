"""Workflows, help pages and node ids: what users open, read and share."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tools.comfy_harness.server import Server

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))
NOTES = ("MarkdownNote", "Note")
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
FILES = ("ckpt_name", "image", "adapter_name", "dino", "clip", "clip_name", "hypernetwork_name")
"""Inputs whose values are names of the user's own files."""

# Required inputs, optional inputs, outputs: name and type, in order. People's workflows depend on all of it: files
# of the UI hold values by position, the API refuses prompts without a required input. So append, and as optional.
CONTRACT = {
    "HyperBoothSubject": (
        "images IMAGE, vae VAE, clip CLIP, prompt STRING, resolution INT, bucket BOOLEAN, flip BOOLEAN",
        "class_prompt STRING, captions STRING, masks MASK, class_images IMAGE, "
        "variants INT, crop FLOAT, colour FLOAT, augment_seed INT",
        "subject HYPERBOOTH_SUBJECT",
    ),
    "HyperBoothSubjectFromLatents": (
        "latents LATENT, positive CONDITIONING",
        "class_positive CONDITIONING, class_latents LATENT",
        "subject HYPERBOOTH_SUBJECT",
    ),
    "HyperBoothClassImages": (
        "model MODEL, clip CLIP, vae VAE, class_prompt STRING, count INT, steps INT, cfg FLOAT, "
        "sampler_name COMBO, scheduler COMBO, seed INT, resolution INT",
        "",
        "images IMAGE",
    ),
    "HyperBoothMethodLoRA": (
        "rank INT, alpha FLOAT, targets COMBO, learning_rate FLOAT, text_encoder BOOLEAN, text_encoder_lr FLOAT",
        "",
        "method HYPERBOOTH_METHOD",
    ),
    "HyperBoothMethodDreamBooth": (
        "targets COMBO, learning_rate FLOAT, text_encoder BOOLEAN, text_encoder_lr FLOAT",
        "",
        "method HYPERBOOTH_METHOD",
    ),
    "HyperBoothTrainingOptions": (
        "optimizer COMBO, lr_scheduler COMBO, warmup_steps INT, loss_weighting COMBO, "
        "min_snr_gamma FLOAT, noise_sampling COMBO, prior_mode COMBO, prior_weight FLOAT, "
        "gradient_accumulation INT, max_grad_norm FLOAT, gradient_checkpointing BOOLEAN, "
        "precision COMBO, preview_every INT",
        "caption_dropout FLOAT, noise_offset FLOAT, noise_mean FLOAT, noise_std FLOAT, noise_shift FLOAT, "
        "noise_low FLOAT, noise_high FLOAT, ema_decay FLOAT, checkpoint_every INT, validation INT, memory COMBO",
        "options HYPERBOOTH_OPTIONS",
    ),
    "HyperBoothTrain": (
        "model MODEL, subject HYPERBOOTH_SUBJECT, method HYPERBOOTH_METHOD, steps INT, batch_size INT, seed INT",
        "clip CLIP, options HYPERBOOTH_OPTIONS, start_from HYPERBOOTH_ADAPTER, resume COMBO, hollow HYPERBOOTH_HOLLOW",
        "adapter HYPERBOOTH_ADAPTER, loss_map LOSS_MAP, report STRING",
    ),
    "HyperBoothApply": (
        "model MODEL, adapter HYPERBOOTH_ADAPTER, strength_model FLOAT",
        "clip CLIP, strength_clip FLOAT",
        "model MODEL, clip CLIP",
    ),
    "HyperBoothSave": (
        "adapter HYPERBOOTH_ADAPTER, filename_prefix STRING, format COMBO, precision COMBO",
        "model MODEL, trigger STRING, metadata BOOLEAN, clip CLIP",
        "path STRING",
    ),
    "HyperBoothLoad": (
        "adapter_name COMBO",
        "model MODEL, clip CLIP",
        "adapter HYPERBOOTH_ADAPTER",
    ),
    "HyperBoothToLoRA": (
        "adapter HYPERBOOTH_ADAPTER, model MODEL",
        "clip CLIP",
        "lora LORA_MODEL",
    ),
    "HyperBoothInfo": (
        "adapter HYPERBOOTH_ADAPTER",
        "model MODEL",
        "report STRING, chart IMAGE",
    ),
    "HyperBoothCombine": (
        "first HYPERBOOTH_ADAPTER, second HYPERBOOTH_ADAPTER",
        "",
        "adapter HYPERBOOTH_ADAPTER",
    ),
    "HyperBoothImagesFromFolder": (
        "folder STRING",
        "captions BOOLEAN, masks BOOLEAN, on_broken COMBO, longest_side INT",
        "images IMAGE, captions STRING, masks MASK, report STRING",
    ),
    "HyperBoothSubjectFidelity": (
        "images IMAGE, references IMAGE, dino COMBO, clip COMBO",
        "dino_vision CLIP_VISION, clip_vision CLIP_VISION",
        "dino FLOAT, clip_i FLOAT, report STRING",
    ),
    "HyperBoothPromptFidelity": (
        "images IMAGE, prompt STRING, clip COMBO",
        "",
        "clip_t FLOAT, report STRING",
    ),
    "HyperBoothPriorScore": (
        "class_samples IMAGE, references IMAGE, dino COMBO",
        "images IMAGE, dino_vision CLIP_VISION",
        "pres FLOAT, div FLOAT, report STRING",
    ),
    "HyperBoothCompareSheet": (
        "images IMAGE, labels STRING, references IMAGE, prompt STRING, dino COMBO, clip COMBO, filename_prefix STRING",
        "dino_vision CLIP_VISION",
        "sheet IMAGE, report STRING, path STRING",
    ),
    "HyperBoothHollowedNet": (
        "model MODEL, fraction FLOAT, samples INT, storage COMBO",
        "subject HYPERBOOTH_SUBJECT",
        "hollow HYPERBOOTH_HOLLOW, report STRING",
    ),
    "HyperBoothBuildBank": (
        "model MODEL, clip CLIP, vae VAE, folder STRING, method HYPERBOOTH_METHOD, prompt STRING, steps INT, "
        "subjects_per_batch INT, seed INT",
        "bank_name STRING, resolution INT, options HYPERBOOTH_OPTIONS, start_from HYPERBOOTH_ADAPTER, "
        "shared_input BOOLEAN, captions BOOLEAN",
        "bank HYPERBOOTH_BANK, report STRING",
    ),
    "HyperBoothLoadBank": (
        "bank_name COMBO",
        "",
        "bank HYPERBOOTH_BANK",
    ),
    "HyperBoothMethodLiDB": (
        "rank INT, a INT, b INT, basis_seed INT, targets COMBO, learning_rate FLOAT, text_encoder BOOLEAN, "
        "text_encoder_lr FLOAT",
        "",
        "method HYPERBOOTH_METHOD",
    ),
    "HyperBoothMethodPaRa": (
        "rank INT, init COMBO, targets COMBO, learning_rate FLOAT",
        "",
        "method HYPERBOOTH_METHOD",
    ),
    "HyperBoothMethodTextualInversion": (
        "token STRING, initializer_word STRING, vectors INT, learning_rate FLOAT",
        "",
        "method HYPERBOOTH_METHOD",
    ),
    "HyperBoothSaveHyperNetwork": (
        "hypernetwork HYPERBOOTH_HYPERNETWORK, filename_prefix STRING",
        "precision COMBO",
        "path STRING",
    ),
    "HyperBoothLoadHyperNetwork": (
        "hypernetwork_name COMBO",
        "",
        "hypernetwork HYPERBOOTH_HYPERNETWORK",
    ),
    "HyperBoothPredict": (
        "hypernetwork HYPERBOOTH_HYPERNETWORK, clip_vision CLIP_VISION, image IMAGE",
        "model MODEL",
        "adapter HYPERBOOTH_ADAPTER",
    ),
    "HyperBoothTrainHyperNetwork": (
        "model MODEL, clip CLIP, clip_vision CLIP_VISION, bank HYPERBOOTH_BANK, steps INT, learning_rate FLOAT, "
        "batch_size INT, refinements INT, weight_loss FLOAT, denoising_loss FLOAT, seed INT, resume COMBO",
        "options HYPERBOOTH_OPTIONS, width INT, start_from HYPERBOOTH_HYPERNETWORK, input_pictures INT",
        "hypernetwork HYPERBOOTH_HYPERNETWORK, loss_map LOSS_MAP, report STRING",
    ),
    "HyperBoothFastFinetune": (
        "model MODEL, subject HYPERBOOTH_SUBJECT, adapter HYPERBOOTH_ADAPTER, rank INT, steps INT, "
        "learning_rate FLOAT, seed INT",
        "clip CLIP, options HYPERBOOTH_OPTIONS, batch_size INT",
        "adapter HYPERBOOTH_ADAPTER, loss_map LOSS_MAP, report STRING",
    ),
}


@pytest.fixture(scope="session")
def nodes(server: Server) -> dict[str, Any]:
    """Return what the server says of each node, by id."""
    return server.get("/object_info")


@pytest.fixture(scope="session")
def ours(nodes: dict[str, Any]) -> dict[str, Any]:
    """Return the pack's own nodes."""
    return {name: info for name, info in nodes.items() if name.startswith("HyperBooth")}


def inputs_of(info: dict[str, Any]) -> dict[str, Any]:
    """Return ``(type, settings)`` of each input by name, required ones first."""
    given = {**info["input"].get("required", {}), **info["input"].get("optional", {})}
    return {name: (spec[0], spec[1] if len(spec) > 1 else {}) for name, spec in given.items()}


def is_widget(kind: Any, settings: dict[str, Any]) -> bool:
    return (isinstance(kind, list) or kind in WIDGETS) and not settings.get("forceInput")


def widget_values(node: dict[str, Any], info: dict[str, Any]) -> dict[str, Any]:
    """Return ``widgets_values`` by name; the frontend reads them by position, some followed by one of its own."""
    values = list(node.get("widgets_values", []))
    named = {}
    for name, (kind, settings) in inputs_of(info).items():
        if is_widget(kind, settings):
            named[name] = values.pop(0)
            is_seed = kind == "INT" and name in ("seed", "noise_seed")
            if settings.get("control_after_generate", is_seed):
                assert values.pop(0) in ("fixed", "increment", "decrement", "randomize")
            if settings.get("image_upload"):
                assert values.pop(0) == "image"
    assert not values, f"{node['type']} {node['id']}: values without a widget: {values}"
    return named


def to_api(workflow: dict[str, Any], nodes: dict[str, Any]) -> dict[str, Any]:
    """Return the prompt that the frontend makes of a UI workflow without subgraphs and bypassed nodes."""
    links = {link[0]: link for link in workflow["links"]}
    prompt = {}
    for node in workflow["nodes"]:
        if node["type"] in NOTES:
            continue
        assert node["mode"] == 0, f"{node['type']} {node['id']} is muted or bypassed"
        info = nodes[node["type"]]
        inputs = widget_values(node, info)
        for slot, given in enumerate(node["inputs"]):
            if given["link"] is not None:
                _, source, output, target, at, _ = links[given["link"]]
                assert (target, at) == (node["id"], slot), f"link {given['link']} ends elsewhere"
                inputs[given["name"]] = [str(source), output]
        title = node.get("title", info["display_name"])
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs, "_meta": {"title": title}}
    return prompt


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
class TestWorkflow:
    def test_is_the_api_workflow_of_its_name(self, path: Path, nodes: dict[str, Any]):
        api = json.loads((path.parent / "api" / path.name).read_text("utf-8"))
        assert to_api(json.loads(path.read_text("utf-8")), nodes) == api

    def test_knows_every_node(self, path: Path, nodes: dict[str, Any]):
        kinds = {node["type"] for node in json.loads(path.read_text("utf-8"))["nodes"]}
        assert kinds - nodes.keys() <= set(NOTES)

    def test_links_agree_at_both_ends(self, path: Path):
        workflow = json.loads(path.read_text("utf-8"))
        by_id = {node["id"]: node for node in workflow["nodes"]}
        for link, source, output, target, slot, kind in workflow["links"]:
            assert link in by_id[source]["outputs"][output]["links"]
            assert by_id[target]["inputs"][slot]["link"] == link
            assert by_id[source]["outputs"][output]["type"] == kind

    def test_values_are_allowed(self, path: Path, nodes: dict[str, Any]):
        for node in to_api(json.loads(path.read_text("utf-8")), nodes).values():
            known = inputs_of(nodes[node["class_type"]])
            for name, value in node["inputs"].items():
                kind, settings = known.get(name, (None, {}))
                options = kind if isinstance(kind, list) else settings.get("options")
                if options is not None and name not in FILES:
                    assert value in options, f"{node['class_type']} {name}"
                if kind in ("INT", "FLOAT"):
                    assert settings["min"] <= value <= settings["max"], f"{node['class_type']} {name}"

    def test_nodes_do_not_overlap(self, path: Path):
        title = 30
        boxes = []
        for node in json.loads(path.read_text("utf-8"))["nodes"]:
            (x, y), (width, height) = node["pos"], node["size"]
            box = (x, y - title, x + width, y + height)
            for other in boxes:
                apart = box[2] <= other[0] or other[2] <= box[0] or box[3] <= other[1] or other[3] <= box[1]
                assert apart, f"{node['type']} {node['id']}"
            boxes.append(box)

    def test_has_a_small_thumbnail(self, path: Path):
        thumbnail = path.with_suffix(".jpg")
        assert thumbnail.stat().st_size < 60_000
        assert Image.open(thumbnail).format == "JPEG"

    def test_is_in_the_template_browser(self, path: Path, server: Server):
        assert any(path.stem in found for found in server.get("/api/workflow_templates").values())


def test_every_api_workflow_has_a_ui_workflow():
    names = {path.name for path in (ROOT / "workflows" / "api").glob("*.json")}
    assert names == {path.name for path in WORKFLOWS}


def test_no_node_outside_the_contract(ours: dict[str, Any]):
    assert ours.keys() == CONTRACT.keys(), "new nodes: append them to CONTRACT; nodes never go"


@pytest.mark.parametrize("name", CONTRACT)
class TestNode:
    def test_keeps_its_contract(self, name: str, ours: dict[str, Any]):
        info = ours[name]
        required, optional, outputs = CONTRACT[name]
        assert words(info["input"].get("required", {})) == required
        added = words(info["input"].get("optional", {}))
        assert added == optional or added.startswith(optional + ", " if optional else "")
        assert ", ".join(map(" ".join, zip(info["output_name"], info["output"], strict=True))) == outputs

    def test_explains_every_input_and_output(self, name: str, ours: dict[str, Any]):
        info = ours[name]
        assert info["description"]
        for given, (_, settings) in inputs_of(info).items():
            assert settings.get("tooltip"), given
        assert all(info["output_tooltips"]) and len(info["output_tooltips"]) == len(info["output"])

    def test_has_a_help_page_on_every_input_and_output(self, name: str, ours: dict[str, Any]):
        page = (ROOT / "web" / "docs" / f"{name}.md").read_text("utf-8")
        info = ours[name]
        assert page.startswith(f"# {info['display_name']}\n")
        for given in inputs_of(info):
            assert f"\n| `{given}` | " in page, given
        for output in info["output_name"]:
            assert f"`{output}`: " in page, output


def test_no_help_page_without_a_node(ours: dict[str, Any]):
    assert {path.stem for path in (ROOT / "web" / "docs").glob("*.md")} == ours.keys()


def words(inputs: dict[str, Any]) -> str:
    return ", ".join(f"{name} {'COMBO' if isinstance(spec[0], list) else spec[0]}" for name, spec in inputs.items())
