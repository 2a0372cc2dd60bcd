"""Whether an adapter is served, and what is to be said about it: one verdict for `dlp adapter check`, for publishing a
bank, and for loading an adapter into one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from dlp_core.adapter.base_names import BaseNames
from dlp_core.adapter.checks import check_base
from dlp_core.adapter.contents import left_out
from dlp_core.adapter.hub_cache import link_root
from dlp_core.adapter.weights import Adapter, read_adapter

Check: TypeAlias = Callable[[Adapter], Adapter | None]
"""Called with each adapter before anything is written; raises AdapterRefused to abort. It may return the adapter as it
fits the base model (dlp_core.fusion.layers.fits_model)."""


@dataclass(frozen=True, slots=True)
class Rules:
    """How strictly adapters are examined."""

    strict_names: bool = False
    """Refuse an adapter that names another base model."""
    hub_links: bool = False
    """Follow the links of a snapshot in the Hugging Face cache. Only for folders that this machine's user names."""


LENIENT = Rules()


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is to be said about an adapter that is served."""

    name: str
    notes: tuple[str, ...]
    """How it was understood, for instance that its tensors had other names."""
    warnings: tuple[str, ...]
    """What its owner should look at."""
    left_out: tuple[str, ...]
    """What else is in its folder: not published, and not opened but for what a tokenizer says about prompts."""

    def warned(self, *warnings: str) -> Verdict:
        """The verdict with these warnings too."""
        return replace(self, warnings=(*self.warnings, *warnings))


def read_by(rules: Rules, folder: Path, *, name: str) -> Adapter:
    """The adapter in a folder, with its files hashed. Raises what dlp_core.adapter.weights.read_adapter raises."""
    return read_adapter(folder, name=name, inside=link_root(folder) if rules.hub_links else None, hashed=True)


def judge(
    adapter: Adapter, folder: Path, *, base: BaseNames | None, check: Check | None, rules: Rules = LENIENT
) -> tuple[Adapter, Verdict]:
    """The adapter as it fits the base model, and the verdict on it. Raises AdapterRefused."""
    remark = None if base is None else check_base(adapter, base, strict=rules.strict_names)
    if check is not None:
        adapter = check(adapter) or adapter
    remarks = [] if remark is None else [remark]
    return adapter, Verdict(
        name=adapter.name,
        notes=(
            *adapter.notes,
            *_invocation_note(adapter),
            *_prompt_note(adapter),
            *(remark.text for remark in remarks if not remark.warning),
        ),
        warnings=tuple(remark.text for remark in remarks if remark.warning),
        left_out=left_out(folder),
    )


def _invocation_note(adapter: Adapter) -> list[str]:
    if adapter.invocation is None:
        return []
    tokens = ", ".join(map(str, adapter.invocation[:8])) + (", ..." if len(adapter.invocation) > 8 else "")
    return [f"it is activated: it runs from the last occurrence of the tokens {tokens} in a prompt on, if there is one"]


def _prompt_note(adapter: Adapter) -> list[str]:
    if adapter.prompting is None or adapter.prompting.chat_template is None:
        return []
    return ["its chat template, unless it is the base model's, renders the chats that use this adapter alone"]
