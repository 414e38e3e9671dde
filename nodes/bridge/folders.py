"""Files and folders below ComfyUI's models, input and output folders."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import folder_paths

from ...models.files.leftovers import remove_file, remove_leftovers

EMBEDDINGS = "embeddings"
"""ComfyUI's folder of the embeddings that prompts name."""
MAX_NAME_BYTES = 200
"""Bytes of a file name that a user may give: file systems take 255, and a number and a suffix are added."""
MAX_PART_BYTES = 255
"""Bytes of a folder's name, by the file systems in use."""
MAX_FOLDERS = 16
"""Folders in a name that a user may give."""
MAX_PATH = 1000
"""Characters of it."""
SHOWN, MOST_LISTED = 60, 10
"""Characters of a name, and names of a list, in a message."""
RESERVED = {"CON", "PRN", "AUX", "NUL", *(f"{port}{n}" for port in ("COM", "LPT") for n in range(1, 10))}
"""Names of devices on Windows, which no file can have there, whatever its suffix."""
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
        raise ValueError(
            f"{input_name} {shown(name)} is in none of models/{kind} and output/{kind}; press R to refresh the list"
        )
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


@contextmanager
def output_file(prefix: str, suffix: str) -> Iterator[Path]:
    """Give the path of the next free number for ``prefix`` in the output folder, counted as ComfyUI counts images.

    Inside the block the name is taken: another server with the same output folder counts on. It is taken by a file
    ``.<name>.part``, which is removed after the block; the file itself appears when it is written.

    Args:
        prefix: folder and name below the output folder, such as ``loras/dog``.
        suffix: end of the file name after the number, such as ``.safetensors``.

    Raises:
        ValueError: the prefix is not a file name, or points outside the output folder, or the folder cannot be written.
    """
    require_output_prefix(prefix)
    root = _output()
    try:
        folder, name, counter, _, _ = folder_paths.get_save_image_path(_cleaned(prefix), str(root))
        remove_leftovers(Path(folder))
        while not (lock := _lock(path := Path(folder) / f"{name}_{counter:05}_{suffix}")):
            counter += 1
    except OSError as error:
        raise ValueError(
            f"filename_prefix {shown(prefix)}: its folder cannot be written ({error.strerror}); give another one"
        ) from error
    try:
        yield path
    finally:
        remove_file(lock)


def _lock(path: Path) -> Path | None:
    """Take the name ``path``; None if it is taken.

    Raises:
        OSError: the folder cannot be written.
    """
    lock = path.with_name(f".{path.name}.part")
    try:
        lock.open("x").close()
    except FileExistsError:
        return None
    if path.exists():  # it appeared before the lock
        remove_file(lock)
        return None
    return lock


def require_output_prefix(prefix: str) -> None:
    """Check that ``prefix`` names a file below the output folder, on every system.

    Raises:
        ValueError: see :func:`output_file`.
    """
    root, name = _output(), _cleaned(prefix)
    if not name or not name.isprintable() or len(Path(name).name.encode()) > MAX_NAME_BYTES:
        raise ValueError(f"filename_prefix {shown(name)} is no file name; give a name such as 'loras/dog'")
    if unusable := unusable_part(name):
        raise ValueError(f"filename_prefix {shown(name)}: {unusable}; give a name such as 'loras/dog'")
    if not _is_inside(root, name):
        raise ValueError(
            f"filename_prefix {shown(name)} leads out of the output folder, perhaps by a link; give a name in another "
            "folder"
        )


def prefix_error(prefix: str | None) -> bool | str:
    """Return True if ``prefix`` can be used or is a link (None), else the message, for ``validate_inputs``."""
    try:
        if prefix is not None:
            require_output_prefix(prefix)
    except ValueError as error:
        return str(error)
    return True


def unusable_part(name: str) -> str | None:
    """Return why some system cannot have a file or folder of this name, or None; ``/`` separates folders."""
    parts = [part for part in name.split("/") if part not in ("", ".", "..")]
    if len(parts) > MAX_FOLDERS:
        return f"it has {len(parts)} folders, and at most {MAX_FOLDERS} are made"
    for part in parts:
        if is_too_long(part):
            return f"{shown(part)} has {len(part.encode())} bytes, and names have at most {MAX_PART_BYTES}"
        if part.split(".")[0].rstrip().upper() in RESERVED:
            return f"{part.split('.')[0][:20]!r} is a device's name on Windows"
        if part != part.rstrip(". "):
            return f"{shown(part)} ends in a dot or a space, which Windows removes"
        if found := sorted(set('<>:"|?*') & set(part)):
            return f"{' '.join(found)} can be in no file name on Windows"
    return None


def is_too_long(part: str) -> bool:
    """Return whether no file system can have a file or folder of this name."""
    return len(part.encode()) > MAX_PART_BYTES


def shown(text: str) -> str:
    """Return the text as a message shows it: quoted, and shortened."""
    return repr(text if len(text) <= SHOWN else text[:SHOWN] + "...")


def listed(names: Sequence[str]) -> str:
    """Return the first names of a list and how many more there are."""
    first, more = ", ".join(map(shown, names[:MOST_LISTED])), len(names) - MOST_LISTED
    return (first or "none yet") + (f" and {more} more" if more > 0 else "")


def _is_inside(root: Path, name: str) -> bool:
    """Return whether ``name`` is below ``root``, and not ``root`` itself; links are followed, as ComfyUI follows them.

    ComfyUI itself refuses to write where a link in its output folder leads out of it.
    """
    target, root = (root / name).resolve(), root.resolve()
    return not Path(name).is_absolute() and target != root and target.is_relative_to(root)


def _output() -> Path:
    return Path(os.path.abspath(folder_paths.get_output_directory()))


def _cleaned(prefix: str) -> str:
    return prefix.strip().replace("\\", "/")


def output_name(path: Path) -> str:
    """Return the path relative to the output folder, with forward slashes."""
    return Path(os.path.abspath(path)).relative_to(_output()).as_posix()


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
    root = Path(os.path.abspath(folder_paths.get_input_directory()))
    given = name.strip().replace("\\", "/")
    folders = (path.name for path in root.iterdir() if path.is_dir() and _is_inside(root, path.name))
    existing = f"there are: {listed(sorted(folders))}"
    if not given or not given.isprintable() or len(given) > MAX_PATH or any(map(is_too_long, given.split("/"))):
        raise ValueError(f"folder {shown(given)} is no folder's name; give one in ComfyUI's input folder; {existing}")
    path = root / given
    if not _is_inside(root, given):
        raise ValueError(f"folder {shown(given)} leads out of the input folder; give one in it; {existing}")
    if not path.is_dir():
        raise ValueError(f"folder {shown(given)} is not in ComfyUI's input folder; {existing}")
    return path
