"""Checkpoints of a training: a folder beside its output, with a file for each phase.

    .OUT.checkpoint/run.json     what the training depends on: settings, rows, base model
    .OUT.checkpoint/PHASE.pt     the latest state of a phase, or its result; replaced atomically

So there are at most as many files as phases, and one more while it is written. The folder is removed when the training
ends well.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlp_core.errors import InvalidRequest
from dlp_core.store.disk import disk_errors, sync

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_RUN = "run.json"


class Interrupted(Exception):
    """A training ended early because it was asked to. Not an error: what it had is in `checkpoint`, if anything."""

    def __init__(self, done: str, checkpoint: Path | None) -> None:
        """`done` says how far it came."""
        super().__init__(done, checkpoint)
        self.done = done
        self.checkpoint = checkpoint


class Checkpoints:
    """The checkpoint of one training; it knows when to stop."""

    def __init__(
        self,
        out: Path | None,
        run: Mapping[str, Any],
        *,
        resume: bool = False,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """`out` is the training's output folder, None to keep nothing; `run` names what it depends on, as JSON. `stop`
        is asked between steps.

        Raises InvalidRequest if there is no checkpoint to `resume`, if it is of another run, or if there is one that
        this training would overwrite.
        """
        self.folder = None if out is None else checkpoint_folder(out)
        self._run = json.loads(json.dumps(dict(run)))
        self._stop = stop
        self._resumes = resume
        self._began = False
        if self.folder is None:
            return
        saved = _read_run(self.folder) if _complete(self.folder) else None
        if resume:
            if saved is None:
                raise InvalidRequest(f"there is no checkpoint in {self.folder}; leave out --resume to begin")
            if differences := self._differences(saved):
                raise InvalidRequest(
                    f"the checkpoint {self.folder} is of another run: {differences}; resume with what it was begun "
                    "with, or remove that folder to begin again"
                )
        elif saved is not None:
            raise InvalidRequest(
                f"{self.folder} holds the checkpoint of a training that was interrupted: --resume goes on from it, or "
                "remove that folder to begin again"
            )

    def stopping(self) -> bool:
        """Whether the training is asked to end."""
        return self._stop()

    def interrupted(self, done: str) -> Interrupted:
        """To be raised when the training is `stopping`, once what it has is saved."""
        return Interrupted(done, self.folder if self.folder is not None and _complete(self.folder) else None)

    def load(self, phase: str) -> Any:
        """The state of a phase, None if there is none: what `save` got, with tensors on the CPU. Raises InvalidRequest
        for a damaged file."""
        import torch

        if self.folder is None or not self._resumes:
            return None
        path = self.folder / f"{phase}.pt"
        if not path.is_file():
            return None
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises whatever the bytes lead it to
            raise InvalidRequest(
                f"{path}: cannot be read ({type(error).__name__}); remove {self.folder} to begin again"
            ) from error

    def save(self, phase: str, state: Any) -> None:
        """Replace the state of a phase: tensors, numbers, strings, and containers of them."""
        import torch

        if self.folder is None:
            return
        with disk_errors(f"{self.folder}: the checkpoint cannot be written"):
            self.folder.mkdir(parents=True, exist_ok=True)
            if not self._began:
                self._began = True
                text = json.dumps(self._run, indent=1, ensure_ascii=False) + "\n"
                _replace(self.folder / _RUN, lambda path: path.write_text(text, encoding="utf-8"))
            _replace(self.folder / f"{phase}.pt", lambda path: torch.save(state, path))

    def once(self, phase: str, compute: Callable[[], NDArray[np.float32]]) -> NDArray[np.float32]:
        """The result of a phase: from the checkpoint, or computed and saved."""
        import torch

        saved = self.load(phase)
        if saved is not None:
            result: NDArray[np.float32] = saved.numpy()
            return result
        result = compute()
        self.save(phase, torch.from_numpy(result))
        return result

    def remove(self) -> None:
        """At the end of a training."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _differences(self, saved: Mapping[str, Any]) -> str:
        return "; ".join(
            f"{key} was {_short(saved.get(key))}, is {_short(self._run.get(key))}"
            for key in sorted({*saved, *self._run})
            if saved.get(key) != self._run.get(key)
        )


def checkpoint_folder(out: Path) -> Path:
    """Where the checkpoint of a training with this output folder is: hidden, so that no bank takes it for an
    adapter."""
    out = Path(os.path.abspath(out))
    return out.with_name(f".{out.name}.checkpoint")


def resumable(out: Path) -> Path | None:
    """The folder of the checkpoint of a training with this output folder, if there is one."""
    folder = checkpoint_folder(out)
    return folder if _complete(folder) else None


def _complete(folder: Path) -> bool:
    return any(folder.glob("*.pt")) or any(folder.glob("*.jsonl"))  # a labelling keeps lines: eval/labelling.py


def _read_run(folder: Path) -> dict[str, Any]:
    path, action = folder / _RUN, f"remove {folder} to begin again"
    with disk_errors(f"{path}: cannot be read", action=action):
        try:
            run: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InvalidRequest(f"{path}: not JSON; {action}") from error
    return run


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    partial = path.with_name(f"{path.name}.part")
    write(partial)
    sync(partial)
    os.replace(partial, path)


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:37]}..."


def random_state(device: str) -> dict[str, Any]:
    """The state of torch's random numbers, for a checkpoint."""
    import torch

    state = {"cpu": torch.get_rng_state()}
    if device.startswith("cuda"):
        state["device"] = torch.cuda.get_rng_state(device)
    elif device == "mps":
        state["device"] = torch.mps.get_rng_state()
    return state


def restore_random_state(device: str, state: Mapping[str, Any]) -> None:
    import torch

    torch.set_rng_state(state["cpu"])
    if device.startswith("cuda"):
        torch.cuda.set_rng_state(state["device"], device)
    elif device == "mps":
        torch.mps.set_rng_state(state["device"])
