"""Training checkpoints on disk, from which a stopped run resumes bit for bit."""

import json
import logging
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ...models.files.digest import DIGEST, check_digest, file_digest
from ...models.files.leftovers import LEFTOVER, age, remove_file, remove_leftovers
from ...models.files.safetensors_io import write_tensors
from ...models.validation import check_tensor_names
from .divergence import Diverged
from .state import TrainState
from .state_header import VERSION, StateHeader, parse_state_header

logger = logging.getLogger("hyperbooth")

KEPT = 3
"""Runs with states in the folder, those written last: the current one, and two that can be resumed."""
MAX_STATE_BYTES = 8 * 2**30
"""Bytes on disk of all other states: a LoRA's state is some 10 MB, a full DreamBooth's ten thousand."""
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
    _forgotten: bool = field(default=False, init=False)
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

    @property
    def failures(self) -> list[str]:
        """What went wrong with the last write, for the report: one line or none."""
        return [self.failure] if self.failure else []

    def forget(self) -> None:
        """Remove the run's state, so that it starts over; a file that cannot be removed is not loaded any more."""
        self._forgotten = True
        if self.writes:
            remove_file(self.path)

    def exists(self) -> bool:
        """Return whether there is a file to load."""
        try:
            return not self._forgotten and self.path.is_file()
        except OSError:  # a folder without permission
            return False

    def load(self, state: TrainState, most: int, least: int = 0) -> bool:
        """Restore ``state`` from the file and return whether that succeeded.

        A damaged file, or one of another run, is reported in the log and left alone: the run starts over.

        Args:
            state: what is restored; unchanged on failure.
            most: largest step to accept.
            least: smallest step to accept.
        """
        if not self.exists():
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
            self._saved_step, self.failure, self._forgotten = state.history.step, None, False
            self._tidy()

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

    def _tidy(self) -> None:
        """Keep the folder small; whatever goes wrong with it is no failure of the run."""
        with suppress(OSError):
            self._prune()
            remove_leftovers(self.folder)
        self.remove_stale_activations()

    def _prune(self) -> None:
        """Remove the oldest states of other runs beyond :data:`KEPT` and :data:`MAX_STATE_BYTES`.

        A file dated in the future counts as the oldest. Files that another server removes at the same moment, or holds
        open, are left to it.
        """
        own = self.key.removesuffix(".good")
        others = [path for path in self.folder.iterdir() if _STATE.fullmatch(path.name) and path.is_file()]
        others = [path for path in others if path.name[:32] != own]
        others.sort(key=age)
        room, runs = MAX_STATE_BYTES, {own}
        for path in others:
            room -= _size(path)
            runs.add(path.name[:32])  # a run's last good state is no run of its own
            if len(runs) > KEPT or room < 0:
                remove_file(path)

    def remove_stale_activations(self) -> None:
        """Remove the cached activations of other runs, but for folders in use, whose time of change is recent."""
        own = self.key.removesuffix(".good")
        with suppress(OSError):
            for path in self.folder.glob("*.records"):
                if path.name[:32] != own and age(path) > LEFTOVER:
                    shutil.rmtree(path, ignore_errors=True)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


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
