"""Training checkpoints on disk, from which a stopped run resumes bit for bit."""

import json
import logging
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ...models.files.digest import DIGEST, check_digest, file_digest
from ...models.files.safetensors_io import write_tensors
from ...models.validation import check_tensor_names
from .divergence import Diverged
from .state import TrainState
from .state_header import VERSION, StateHeader, parse_state_header

logger = logging.getLogger("hyperbooth")

KEPT = 3
"""States in the folder, of the runs written last: the current one, and two that can be resumed."""
MOST_BYTES = 8 * 2**30
"""Bytes on disk of all other states: a LoRA's state is some 10 MB, a full DreamBooth's ten thousand."""
LEFTOVER = 600
"""Seconds after which a partial file is what a killed process left, not what another process is writing."""
HEADER = "hyperbooth_state"
_STATE = re.compile(r"[0-9a-f]{32}(?:\.good)?\.safetensors")


@dataclass
class CheckpointStore:
    """The state of one run in a folder of states, one file per run, written atomically.

    Args:
        folder: where states of all runs are kept.
        key: names the run: a hash of whatever the result depends on, see :func:`.run_hash.run_hash`.
        failure: what went wrong with the last write, for the report; None if nothing.
        writes: whether this process may change the folder; of several processes only one may.
    """

    folder: Path
    key: str
    failure: str | None = None
    writes: bool = True
    _saved_step: int = field(default=-1, init=False)
    ahead: bool = field(default=False, init=False)
    """The file holds the state of a longer run, which a shorter run does not replace."""
    _good: "CheckpointStore | None" = field(default=None, init=False)

    @property
    def path(self) -> Path:
        """The state file."""
        return self.folder / f"{self.key}.safetensors"

    @property
    def activations(self) -> Path:
        """The folder for the activations that a run on a hollowed network caches."""
        return self.folder / f"{self.key}.records"

    @property
    def good(self) -> "CheckpointStore":
        """The run's last state that passed a check (the best one, where states are compared), in a file of its own."""
        if self._good is None:
            self._good = CheckpointStore(self.folder, f"{self.key}.good")
        return self._good

    def forget(self) -> None:
        """Remove the run's state, so that it starts over.

        Raises:
            ValueError: it cannot be removed.
        """
        if not self.writes:
            return
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:
            raise ValueError(f"the saved state {self.path} cannot be removed ({error}); remove it by hand") from error

    def load(self, state: TrainState, most: int, least: int = 0) -> bool:
        """Restore ``state`` from the file and return whether that succeeded.

        A damaged file, or one of another run, is reported in the log and left alone: the run starts over.

        Args:
            state: what is restored; unchanged on failure.
            most: largest step to accept.
            least: smallest step to accept.
        """
        if not self.path.is_file():
            return False
        try:
            tensors, header = _read(self.path)
            step = header.history.step
            self.ahead |= step > most
            if not least <= step <= most:
                return False
            state.restore(tensors, header)
        except (OSError, SafetensorError, ValueError, KeyError) as error:
            logger.warning("the saved state %s cannot be used (%s); starting over", self.path.name, error)
            return False
        self._saved_step = state.history.step
        return True

    def save(self, state: TrainState) -> None:
        """Write ``state``, unless its step is on disk already; if the write fails, report it and continue."""
        if not self.writes or self.ahead or state.history.step in (0, self._saved_step) or not state.is_finite():
            return
        snapshot = state.snapshot()
        header = json.dumps({"version": VERSION, **snapshot.metadata})
        digest = file_digest(header, snapshot.tensors)
        try:
            write_tensors(snapshot.tensors, self.path, {HEADER: header, DIGEST: digest})
        except (OSError, ValueError) as error:
            self.failure = f"the state at step {state.history.step} could not be saved: {error}"
            logger.warning("%s", self.failure)
        else:
            self._saved_step, self.failure = state.history.step, None
            self._prune()

    @contextmanager
    def saved_on_exit(self, state: TrainState) -> Iterator[None]:
        """Save ``state`` after the block, also on cancel and on errors; remove the saved one if the run diverged."""
        try:
            yield
        except Diverged:
            self.forget()
            raise
        except BaseException:
            self.save(state)
            raise
        self.save(state)

    def _prune(self) -> None:
        """Remove the oldest states of other runs beyond :data:`KEPT` and :data:`MOST_BYTES`.

        Files that another server removes at the same moment, or holds open, are left to it.
        """
        own = self.key.removesuffix(".good")
        others = [path for path in self.folder.iterdir() if _STATE.fullmatch(path.name) and path.is_file()]
        others = [path for path in others if path.name[:32] != own]
        others.sort(key=_modified_at, reverse=True)
        room = MOST_BYTES
        for count, path in enumerate(others, 1):
            room -= _size(path)
            if (count >= KEPT and time.time() - _modified_at(path) > LEFTOVER) or room < 0:
                _remove(path)
        remove_leftovers(self.folder)
        self.remove_stale_activations()

    def remove_stale_activations(self) -> None:
        """Remove the cached activations of other runs, but for folders in use, whose time of change is recent."""
        own = self.key.removesuffix(".good")
        for path in self.folder.glob("*.records"):
            if path.name[:32] != own and time.time() - _modified_at(path) > LEFTOVER:
                shutil.rmtree(path, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Remove the partial files that killed processes left in ``folder``."""
    for path in folder.glob(".*.part"):
        if time.time() - _modified_at(path) > LEFTOVER:
            _remove(path)


def _modified_at(path: Path) -> float:
    """Return when the file was written, or 0 if another server has just removed it."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        logger.info("%s could not be removed: %s", path.name, error)


def _read(path: Path) -> tuple[dict[str, Tensor], StateHeader]:
    """Return a state file's tensors, memory-mapped, and its validated header.

    Raises:
        ValueError, KeyError: it is damaged, or of another version.
    """
    with safe_open(path, framework="pt") as file:
        metadata, names = file.metadata() or {}, list(file.keys())
        header = parse_state_header(metadata[HEADER])
        check_tensor_names(path.name, names)
        tensors = {name: file.get_tensor(name) for name in names}
    check_digest(metadata, metadata[HEADER], tensors)
    return tensors, header
