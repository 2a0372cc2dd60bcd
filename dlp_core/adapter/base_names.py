"""Whether two names are of one base model. Trainers write what they were given: a hub id, a quantised copy of it, a
folder of the hub's cache, a path inside a container, or nothing.

Names only warn: whether an adapter belongs to a base model is decided by its weights (dlp_core.adapter.checks).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

MAX_NAME = 1000
"""Characters of a name; what is longer names nothing."""

_CACHED = re.compile(r"(?:^|/)models--([^/]+)(?:/|$)")
_WEB = re.compile(r"^https?://[^/]+/(.+?)(?:/(?:tree|resolve|blob)/.*)?$")
_PATH = re.compile(r"^(?:/|~|\.|[A-Za-z]:/|[a-z0-9]+://)|/.*/")
"""A path on some machine or in some store; a hub id has at most one slash."""

_QUANTISED = re.compile(
    r"[-_.](?:unsloth|bnb|gptq|awq|hqq|quantized|nf4|fp8|fp4|bf16|fp16|[248][-_]?bits?|int[248]|w4a16|w8a8)$"
)
_NO_NAME = re.compile(
    r"(?:(?:base|hf|llm|my|pretrained|trained|finetuned|fine-tuned|merged|final|full|local|the|out|output|input|sft)?"
    r"[-_]?(?:models?|base|weights|checkpoints?|ckpts?|outputs?|inputs?|merged|final|latest|last|best|main|data|"
    r"results?|hf|tmp|snapshots?|artifacts?))?"
    r"|(?:checkpoint|step|epoch|run|exp|version|v)?[-_]?\d*|[0-9a-f]{32,64}"
)
_SIZE = re.compile(r"(?:^|[^a-z0-9])\d+(?:[._]\d+)?(?:x\d+)?[bm](?:[^a-z]|$)")
"""7b, 0.5b, 135m, 8x7b: what only the name of a model has."""


class Naming(Enum):
    """What a name says about a base model."""

    SAME = "same"
    EQUIVALENT = "equivalent"
    """The same model in another form, such as quantised."""
    NOTHING = "nothing"
    """No name, or a path that names no model."""
    OTHER = "other"
    """It names another model."""


@dataclass(frozen=True, slots=True)
class BaseNames:
    """The names of one base model: its id, and others it goes by."""

    id: str
    aliases: tuple[str, ...] = ()

    def naming(self, name: str | None) -> Naming:
        """What `name`, as a trainer wrote it, says about this model."""
        return min((_compare(name, own) for own in (self.id, *self.aliases)), key=list(Naming).index)


def folder_name(folder: Path) -> str:
    """The name of the model in a folder: a hub id where it is a folder of the hub's cache, else the folder's name."""
    path = folder.resolve()
    cached = _CACHED.search(path.as_posix())
    if cached:
        return cached[1].replace("--", "/")
    return folder.name if folder.name not in ("", "..") else path.name


def names_a_model(name: str) -> bool:
    """Whether a name says which model it is, as a folder called `model` or by a hash does not."""
    return bool(_model(name))


def _compare(name: str | None, own: str) -> Naming:
    if name == own:
        return Naming.SAME
    if name is None or len(name) > MAX_NAME:
        return Naming.NOTHING
    told, ours, normal = _model(name), _model(own), _normal(name)
    is_path = _PATH.search(normal) and not _CACHED.search(normal)
    if ours and (told == ours or (is_path and ours in normal.split("/"))):
        return Naming.SAME
    if ours and _plain(told) == _plain(ours):
        return Naming.EQUIVALENT
    if not ours or not told or (is_path and not _SIZE.search(told)):
        return Naming.NOTHING
    return Naming.OTHER


def _normal(name: str) -> str:
    """In lower case, with slashes, without what surrounds the name in an address."""
    normal = name.strip().replace("\\", "/").rstrip("/").lower()
    web = _WEB.match(normal)
    return web[1] if web else normal


def _model(name: str) -> str:
    """The part that names the model; empty if none does."""
    normal = _normal(name)
    cached = _CACHED.search(normal)
    last = (cached[1] if cached else normal).rpartition("/")[2]
    last = last.rpartition("--")[2].partition("@")[0]  # org--name, and name@revision
    return "" if _NO_NAME.fullmatch(last) else last


def _plain(model: str) -> str:
    """Without the marks of quantised copies, and as Meta's models are called without their maker."""
    while (shorter := _QUANTISED.sub("", model)) != model:
        model = shorter
    return model.removeprefix("meta-")
