"""Training states on disk, from which a stopped run goes on as if nothing had happened."""

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

from ...models.files.safetensors_io import write_tensors
from .divergence import Diverged
from .state import Snapshot, TrainState

KEPT = 3
"""States in the folder, of the runs touched last: the one at work, and two to come back to."""
MOST_BYTES = 8 * 2**30
"""What the others together may take on the disk: a LoRA's state is some 10 MB, a full DreamBooth's ten thousand."""
LEFTOVER = 600
"""Seconds after which a part of a file is what a killed process left, not what another one is writing."""
HEADER = "hyperbooth_state"
VERSION = 1
_STATE = re.compile(r"[0-9a-f]{32}(?:\.good)?\.safetensors")


@dataclass
class CheckpointStore:
    """The state of one run in a folder of states, one file per run, written atomically.

    Args:
        folder: where states of all runs are kept.
        key: names the run: whatever the result depends on, see :func:`.fingerprint.fingerprint`.
        failure: what went wrong with the last write, for the report; None if nothing.
        writes: whether this process may change what is there, or is one of several of which another does.
    """

    folder: Path
    key: str
    failure: str | None = None
    writes: bool = True
    _saved: int = field(default=-1, init=False)
    ahead: bool = field(default=False, init=False)
    """A longer run's state is there, and is not to be replaced by a shorter one's."""
    _good: "CheckpointStore | None" = field(default=None, init=False)

    @property
    def path(self) -> Path:
        return self.folder / f"{self.key}.safetensors"

    @property
    def records(self) -> Path:
        """A folder for what a run on a hollow network records."""
        return self.folder / f"{self.key}.records"

    @property
    def good(self) -> "CheckpointStore":
        """The run's last state that was looked at and found good, in a file of its own."""
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
        """Bring ``state`` to where the run stood, if a whole state of ``least`` to ``most`` steps is there.

        A damaged or foreign file is reported in the log and left alone: the run starts over.
        """
        if not self.path.exists():
            return False
        try:
            snapshot = _read(self.path)
            step = snapshot.metadata["history"]["step"]
            self.ahead |= step > most
            if not least <= step <= most:
                return False
            state.restore(snapshot)
        except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
            logging.warning("HyperBooth: the saved state %s cannot be used (%s); starting over", self.path.name, error)
            return False
        self._saved = state.history.step
        return True

    def save(self, state: TrainState) -> None:
        """Keep ``state``, unless it is kept already; too little space is reported, and the run goes on."""
        if not self.writes or self.ahead or state.history.step in (0, self._saved) or not state.is_finite():
            return
        snapshot = state.snapshot()
        header = {"version": VERSION, **snapshot.metadata}
        try:
            write_tensors(snapshot.tensors, self.path, {HEADER: json.dumps(header)})
        except (OSError, ValueError) as error:
            self.failure = f"the state at step {state.history.step} could not be saved: {error}"
            logging.warning("HyperBooth: %s", self.failure)
        else:
            self._saved, self.failure = state.history.step, None
            self._prune()

    @contextmanager
    def keeping(self, state: TrainState) -> Iterator[None]:
        """Whatever ends the block, cancel and errors included, ``state`` is kept; forgotten if the run has diverged."""
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
        """Make room; what another server removes at the same moment, or holds open, is left to it."""
        own = self.key.removesuffix(".good")
        others = [path for path in self.folder.iterdir() if _STATE.fullmatch(path.name) and path.is_file()]
        others = [path for path in others if path.name[:32] != own]
        others.sort(key=_touched, reverse=True)
        room = MOST_BYTES
        for place, path in enumerate(others, 1):
            room -= _size(path)
            if (place >= KEPT and time.time() - _touched(path) > LEFTOVER) or room < 0:
                _remove(path)
        remove_leftovers(self.folder)
        self.drop_activations()

    def drop_records(self) -> None:
        """Remove what other runs have recorded and left behind; who is at work on it touches the folder."""
        own = self.key.removesuffix(".good")
        for path in self.folder.glob("*.records"):
            if path.name[:32] != own and time.time() - _touched(path) > LEFTOVER:
                shutil.rmtree(path, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Remove the parts of files that killed processes left in ``folder``."""
    for path in folder.glob(".*.part"):
        if time.time() - _touched(path) > LEFTOVER:
            _remove(path)


def _touched(path: Path) -> float:
    """When the file was written, or long ago if another server has just removed it."""
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
        logging.info("HyperBooth: %s could not be removed: %s", path.name, error)


def _read(path: Path) -> Snapshot:
    with safe_open(path, framework="pt") as file:
        header = json.loads((file.metadata() or {})[HEADER])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if header["version"] != VERSION:
        raise ValueError(f"it has version {header['version']}, this pack reads {VERSION}")
    return Snapshot(tensors, header)
