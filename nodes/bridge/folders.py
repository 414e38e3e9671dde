"""ComfyUI's folders."""

from pathlib import Path

import folder_paths

WORDS = "embeddings"
"""Where ComfyUI's prompts look for words."""
LONGEST_NAME = 200
"""Bytes: file systems take 255, and a number and a suffix are added."""
NETWORKS = "hyperbooth"
"""Folder of hypernetworks, in models and in output."""
KIND = "loras"
"""Adapters live among the LoRAs: ComfyUI lists ``output/loras`` there too, so a saved file is found at once."""


def adapter_files() -> list[str]:
    """Names of the adapter files that Load offers."""
    return _names(KIND)


def adapter_path(name: str) -> Path:
    """The file of that name.

    Raises:
        ValueError: there is none.
    """
    return _listed(KIND, "adapter_name", name)


def register_hypernetwork_folders() -> None:
    """ComfyUI knows ``models/hyperbooth`` and ``output/hyperbooth``, where hypernetworks are."""
    for root in (folder_paths.models_dir, folder_paths.get_output_directory()):
        folder_paths.add_model_folder_path(NETWORKS, str(Path(root) / NETWORKS))


def hypernetwork_files() -> list[str]:
    """Names of the files that Load HyperNetwork offers."""
    return [name for name in _names(NETWORKS) if name.endswith(".safetensors")]


def hypernetwork_path(name: str) -> Path:
    """The file of that name.

    Raises:
        ValueError: there is none.
    """
    return _listed(NETWORKS, "hypernetwork_name", name)


def _names(kind: str) -> list[str]:
    """What ComfyUI lists of a kind; what it remembers of a folder that is gone by now makes it fail."""
    try:
        return folder_paths.get_filename_list(kind)
    except FileNotFoundError:
        folder_paths.filename_list_cache.pop(kind, None)
        return folder_paths.get_filename_list(kind)


def _listed(kind: str, given: str, name: str) -> Path:
    """The file that ComfyUI lists under ``name`` among those of a kind; ``given`` is the input that named it."""
    path = folder_paths.get_full_path(kind, name)
    if path is None:
        folders = ", ".join(folder_paths.get_folder_paths(kind))
        raise ValueError(f"{given} {name!r} is in none of {folders}; press R to refresh the list")
    return Path(path)


def register_embedding_folder() -> None:
    """Prompts find words by name in ``output/embeddings`` too, as ComfyUI itself lists ``output/loras``.

    A CLIP takes the list of folders when it is loaded, and looks into them at every prompt: so this comes before any
    is loaded, and what is saved later is found at once.
    """
    folder_paths.add_model_folder_path(WORDS, str(Path(folder_paths.get_output_directory()) / WORDS))


def embedding_usage(path: Path) -> str:
    """What a prompt writes for the word in the file ``path``."""
    folders = (Path(folder).resolve() for folder in folder_paths.get_folder_paths(WORDS))
    name = f"embedding:{path.stem}"
    if any(path.resolve().is_relative_to(folder) for folder in folders):
        return f"prompts call it {name}"
    return f"to call it {name}, move it to models/embeddings, or save it under 'embeddings/'"


def require_embedding_name(path: Path) -> None:
    """A prompt can name the file ``path`` after ``embedding:``.

    Raises:
        ValueError: its name holds what ends a name there.
    """
    if bad := sorted(set(path.stem) & set(" \t,<>[]():")):
        raise ValueError(
            f"filename_prefix names the file {path.stem!r}, which no prompt can call; "
            f"leave out {' '.join(map(repr, bad))}"
        )


def output_file(prefix: str, suffix: str) -> Path:
    """The next free file of ``prefix`` in the output folder, numbered as ComfyUI numbers pictures.

    Raises:
        ValueError: the prefix is no file name or leads out of the output folder.
    """
    require_output_prefix(prefix)
    root = _output()
    folder, name, counter, _, _ = folder_paths.get_save_image_path(_cleaned(prefix), str(root))
    while (path := Path(folder) / f"{name}_{counter:05}_{suffix}").exists():
        counter += 1
    return path


def require_output_prefix(prefix: str) -> None:
    """A file can be named so.

    Raises:
        ValueError: as :func:`output_file`.
    """
    root, name = _output(), _cleaned(prefix)
    if not name or not name.isprintable() or len(Path(name).name.encode()) > LONGEST_NAME:
        raise ValueError(f"filename_prefix {name[:60]!r} is no file name; give a name such as 'loras/dog'")
    target = (root / name).resolve()
    if target == root or not target.is_relative_to(root):
        raise ValueError(f"filename_prefix {name!r} leads out of the output folder; give a name such as 'loras/dog'")


def _output() -> Path:
    return Path(folder_paths.get_output_directory()).resolve()


def _cleaned(prefix: str) -> str:
    return prefix.strip().replace("\\", "/")


def output_name(path: Path) -> str:
    """The path below the output folder, with forward slashes."""
    return path.resolve().relative_to(Path(folder_paths.get_output_directory()).resolve()).as_posix()


def state_folder() -> Path:
    """Where training states wait to be taken up: in the output folder, which outlives the server."""
    return Path(folder_paths.get_output_directory()) / "hyperbooth_states"


def widget_value(name: str, value: str | None) -> str:
    """``value``, of an input that is asked for before the node runs: ComfyUI knows one that is linked only then.

    Raises:
        ValueError: it is linked; ComfyUI shows the text as a warning, and runs the node each time.
    """
    if value is None:
        raise ValueError(
            f"{name} is linked, so nobody can see beforehand whether its files have changed: this node, and all that "
            f"use it, run each time. Type {name} into the node to have them run only after a change"
        )
    return value


def input_folder(name: str) -> Path:
    """The folder of that name below ComfyUI's input folder.

    Raises:
        ValueError: there is none, or the name leads out of the input folder.
    """
    root = Path(folder_paths.get_input_directory()).resolve()
    given = name.strip().replace("\\", "/")
    there = ", ".join(sorted(path.name for path in root.iterdir() if path.is_dir())) or "none yet"
    if not given or not given.isprintable():
        raise ValueError(f"folder {given!r} is no folder's name; give one in {root}: {there}")
    path = (root / given).resolve()
    if Path(given).is_absolute() or path == root or not path.is_relative_to(root):
        raise ValueError(f"folder {given!r} leads out of the input folder; give the name of one in it: {there}")
    if not path.is_dir():
        raise ValueError(f"folder {given!r} is not in {root}; there are: {there}")
    return path
