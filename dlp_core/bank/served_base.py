"""Whether a bank is for the base model that is to serve it: by the digest of its weights where that is known, by its
name where it is not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from dlp_core.adapter.base_names import Naming, folder_name
from dlp_core.bank.manifest import BaseModelEntry
from dlp_core.errors import BankError
from dlp_core.store.transfers import Progress, silent
from dlp_core.store.weights import weights_digest

_SHOWN = len("sha256:") + 12


class ServedBase(NamedTuple):
    """The base model in a folder, as it is compared with that of a bank."""

    name: str
    digest: Callable[[], str | None]
    """Of its weights, None if nobody knows it. It may take long the first time; it is asked for only if it matters."""

    @classmethod
    def at(cls, folder: Path, *, progress: Progress = silent) -> ServedBase:
        return cls(folder_name(folder), lambda: weights_digest(folder, progress=progress))


def check_served(base: BaseModelEntry, served: ServedBase, *, strict: bool = True) -> str | None:
    """What is to be said about serving a bank for `base` with the model `served`; None if they are one model.

    Raises BankError for other weights than the bank records, unless the name says that it is another form of the model,
    such as a quantised copy. Where the bank records none, or nobody knows those of `served`, the name decides; without
    `strict`, a name only gives a remark.
    """
    naming = base.names.naming(served.name)
    digest = served.digest() if base.weights else None
    if digest is not None:
        if digest in base.weights:
            return None
        differ = (
            f"{served.name!r} has other weights ({digest[:_SHOWN]}) than the base model {base.id!r} of the bank "
            f"({', '.join(own[:_SHOWN] for own in base.weights)})"
        )
        if naming is Naming.EQUIVALENT:
            return f"{differ}; by its name, it is another form of that model"
        raise BankError(
            f"{differ}; take the model that the adapters were trained on, or, if they fit this one as well, add "
            f'"{digest}" to base_model_weights in bank.json and publish it'
        )
    if naming is not Naming.OTHER:
        return None
    named = (
        f"the bank is for base model {base.id!r}, and {served.name!r} is another by its name; if they are one model, "
        "list the name in bank.json's aliases"
    )
    if strict:
        raise BankError(named)
    return named


def weights_to_record(base: BaseModelEntry, served: ServedBase) -> tuple[str, ...]:
    """The digests that a bank for `base` records when it is published for `served`: those it has, or else that of
    `served`, unless its name says that it is another model or another form of it."""
    if base.weights or base.names.naming(served.name) in (Naming.EQUIVALENT, Naming.OTHER):
        return base.weights
    digest = served.digest()
    return () if digest is None else (digest,)
