"""Files and folders below ComfyUI's models, input and output folders."""

from pathlib import Path

import folder_paths

EMBEDDINGS = "embeddings"
"""ComfyUI's folder of the embeddings that prompts name."""
MAX_NAME_BYTES = 200
"""Bytes of a file name that a user may give: file systems take 255, and a number and a suffix are added."""
HYPERNETWORKS = "hyperbooth"
"""Folder of hypernetworks, in models and in output."""
ADAPTERS = "loras"
"""Folder of adapters: ComfyUI also lists ``output/loras`` under this name, so saved files are found at once."""


def adapter_files() -> list[str]:
    """List the names of the adapter files that Load Adapter offers."""
    return _file_names(ADAPTERS)


def adapter_path(name: str) -> Path:
    """Return the adapter file of that name.

    Raises:
        ValueError: there is none.
    """
    return _listed_file(ADAPTERS, "adapter_name", name)


def register_hypernetwork_folders() -> None:
    """Register ``models/hyperbooth`` and ``output/hyperbooth``, the folders of hypernetworks, with ComfyUI."""
    for root in (folder_paths.models_dir, folder_paths.get_output_directory()):
        folder_paths.add_model_folder_path(HYPERNETWORKS, str(Path(root) / HYPERNETWORKS))


def hypernetwork_files() -> list[str]:
    """List the names of the files that Load HyperNetwork offers."""
    return [name for name in _file_names(HYPERNETWORKS) if name.endswith(".safetensors")]


def hypernetwork_path(name: str) -> Path:
    """Return the hypernetwork file of that name.

    Raises:
        ValueError: there is none.
    """
    return _listed_file(HYPERNETWORKS, "hypernetwork_name", name)


def _file_names(kind: str) -> list[str]:
    """List the files of a kind; without ComfyUI's cache if that is stale, because a cached folder has been removed."""
    try:
        return folder_paths.get_filename_list(kind)
    except FileNotFoundError:
        folder_paths.filename_list_cache.pop(kind, None)
        return folder_paths.get_filename_list(kind)


def _listed_file(kind: str, input_name: str, name: str) -> Path:
    """Return the file that ComfyUI lists under ``name`` in the folders of a kind; ``input_name`` is for the message."""
    path = folder_paths.get_full_path(kind, name)
    if path is None:
        folders = ", ".join(folder_paths.get_folder_paths(kind))
        raise ValueError(f"{input_name} {name!r} is in none of {folders}; press R to refresh the list")
    return Path(path)


def register_embedding_folder() -> None:
    """Register ``output/embeddings`` as a folder of embeddings, as ComfyUI itself does with ``output/loras``.

    A CLIP takes the list of folders when it is loaded and searches them at every prompt. Registered before any CLIP is
    loaded, the folder also serves embeddings that are saved later.
    """
    folder_paths.add_model_folder_path(EMBEDDINGS, str(Path(folder_paths.get_output_directory()) / EMBEDDINGS))


def embedding_usage(path: Path) -> str:
    """Describe how a prompt refers to the learned embedding in the file ``path``."""
    folders = (Path(folder).resolve() for folder in folder_paths.get_folder_paths(EMBEDDINGS))
    name = f"embedding:{path.stem}"
    if any(path.resolve().is_relative_to(folder) for folder in folders):
        return f"prompts call it {name}"
    return f"to call it {name}, move it to models/embeddings, or save it under 'embeddings/'"


def require_embedding_name(path: Path) -> None:
    """Check that a prompt can name the file ``path`` as ``embedding:name``.

    Raises:
        ValueError: the file's name holds a character that ends a name in prompts.
    """
    if bad := sorted(set(path.stem) & set(" \t,<>[]():")):
        raise ValueError(
            f"filename_prefix names the file {path.stem!r}, which no prompt can call; "
            f"leave out {' '.join(map(repr, bad))}"
        )


def output_file(prefix: str, suffix: str) -> Path:
    """Return the path of the next free number for ``prefix`` in the output folder, counted as ComfyUI counts images.

    Args:
        prefix: folder and name below the output folder, such as ``loras/dog``.
        suffix: end of the file name after the number, such as ``.safetensors``.

    Raises:
        ValueError: the prefix is not a file name, or points outside the output folder.
    """
    require_output_prefix(prefix)
    root = _output()
    folder, name, counter, _, _ = folder_paths.get_save_image_path(_cleaned(prefix), str(root))
    while (path := Path(folder) / f"{name}_{counter:05}_{suffix}").exists():
        counter += 1
    return path


def require_output_prefix(prefix: str) -> None:
    """Check that ``prefix`` names a file below the output folder.

    Raises:
        ValueError: see :func:`output_file`.
    """
    root, name = _output(), _cleaned(prefix)
    if not name or not name.isprintable() or len(Path(name).name.encode()) > MAX_NAME_BYTES:
        raise ValueError(f"filename_prefix {name[:60]!r} is no file name; give a name such as 'loras/dog'")
    target = (root / name).resolve()
    if target == root or not target.is_relative_to(root):
        raise ValueError(f"filename_prefix {name!r} leads out of the output folder; give a name such as 'loras/dog'")


def _output() -> Path:
    return Path(folder_paths.get_output_directory()).resolve()


def _cleaned(prefix: str) -> str:
    return prefix.strip().replace("\\", "/")


def output_name(path: Path) -> str:
    """Return the path relative to the output folder, with forward slashes."""
    return path.resolve().relative_to(Path(folder_paths.get_output_directory()).resolve()).as_posix()


def state_folder() -> Path:
    """Return the folder of training states, from which runs resume; in the output folder, because temp is cleared."""
    return Path(folder_paths.get_output_directory()) / "hyperbooth_states"


def widget_value(name: str, value: str | None) -> str:
    """Return the value of an input that is needed before the node runs, which ComfyUI has for widgets only.

    Raises:
        ValueError: the input is linked, so ``value`` is None. ComfyUI logs the message as a warning and runs the node
            at each queueing.
    """
    if value is None:
        raise ValueError(
            f"{name} is linked, so a change of its files cannot be detected before the run: this node, and all that "
            f"use it, run each time. Type {name} into the node to have them run only after a change"
        )
    return value


def input_folder(name: str) -> Path:
    """Return the folder of that name below ComfyUI's input folder.

    Raises:
        ValueError: there is none, or the name points outside the input folder.
    """
    root = Path(folder_paths.get_input_directory()).resolve()
    given = name.strip().replace("\\", "/")
    existing = ", ".join(sorted(path.name for path in root.iterdir() if path.is_dir())) or "none yet"
    if not given or not given.isprintable():
        raise ValueError(f"folder {given!r} is no folder's name; give one in {root}: {existing}")
    path = (root / given).resolve()
    if Path(given).is_absolute() or path == root or not path.is_relative_to(root):
        raise ValueError(f"folder {given!r} leads out of the input folder; give the name of one in it: {existing}")
    if not path.is_dir():
        raise ValueError(f"folder {given!r} is not in {root}; there are: {existing}")
    return path
