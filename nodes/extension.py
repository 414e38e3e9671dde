"""The ComfyUI extension: all nodes of the pack."""

from comfy_api.latest import ComfyExtension, io

from .adapters.apply import Apply, Combine, Info, ToLoRA
from .adapters.save_load import Load, Save
from .bridge.adapters.weight_adapter import register
from .bridge.folders import register_embedding_folder, register_hypernetwork_folders
from .bridge.images.metric_encoders import register_encoder_folders
from .bridge.subject_banks import register_bank_folders
from .data.class_images import ClassImages
from .data.image_folder import ImagesFromFolder
from .data.subject import Subject
from .data.subject_from_latents import SubjectFromLatents
from .evaluation import CompareSheet, PriorScore, PromptFidelity, SubjectFidelity
from .hypernetwork.predict import LoadHyperNetwork, Predict, SaveHyperNetwork
from .hypernetwork.subject_bank import BuildBank, LoadBank
from .hypernetwork.train import TrainHyperNetwork
from .methods import MethodDreamBooth, MethodLiDB, MethodLoRA, MethodPaRa, MethodTextualInversion
from .training.fast_finetune import FastFinetune
from .training.hollowed_net import HollowedNet
from .training.train_adapter import Train
from .training.training_options import Options


class HyperBooth(ComfyExtension):
    """Register the pack's folders and nodes with ComfyUI."""

    async def on_load(self) -> None:
        register()
        register_embedding_folder()
        register_encoder_folders()
        register_hypernetwork_folders()
        register_bank_folders()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            Subject, SubjectFromLatents, ClassImages, MethodLoRA, MethodDreamBooth, Options, Train, Apply, Save, Load,
            ToLoRA, Info, Combine, ImagesFromFolder, MethodLiDB, MethodPaRa, MethodTextualInversion,
            HollowedNet, SubjectFidelity, PromptFidelity, PriorScore, CompareSheet, BuildBank, LoadBank,
            FastFinetune, SaveHyperNetwork, LoadHyperNetwork, Predict, TrainHyperNetwork,
        ]  # fmt: skip
