"""The nodes that ComfyUI gets."""

from comfy_api.latest import ComfyExtension, io

from .adapter import Apply, Combine, Info, ToLoRA
from .bank import BuildBank, LoadBank
from .bridge.banks import register_bank_folders
from .bridge.encoders import register_encoder_folders
from .bridge.files import register_networks, register_saved_words
from .bridge.weight_adapter import register
from .class_images import ClassImages
from .fast_finetune import FastFinetune
from .files import Load, Save
from .folder import ImagesFromFolder
from .hollow import HollowedNet
from .hypernetwork import LoadHyperNetwork, Predict, SaveHyperNetwork
from .latents import SubjectFromLatents
from .methods import MethodDreamBooth, MethodLiDB, MethodLoRA, MethodPaRa, MethodTextualInversion
from .options import Options
from .scoring import CompareSheet, PriorScore, PromptFidelity, SubjectFidelity
from .subject import Subject
from .train import Train
from .train_hypernetwork import TrainHyperNetwork


class HyperBooth(ComfyExtension):
    """The pack."""

    async def on_load(self) -> None:
        register()
        register_saved_words()
        register_encoder_folders()
        register_networks()
        register_bank_folders()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            Subject, SubjectFromLatents, ClassImages, MethodLoRA, MethodDreamBooth, Options, Train, Apply, Save, Load,
            ToLoRA, Info, Combine, ImagesFromFolder, MethodLiDB, MethodPaRa, MethodTextualInversion,
            HollowedNet, SubjectFidelity, PromptFidelity, PriorScore, CompareSheet, BuildBank, LoadBank,
            FastFinetune, SaveHyperNetwork, LoadHyperNetwork, Predict, TrainHyperNetwork,
        ]  # fmt: skip
