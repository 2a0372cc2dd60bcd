"""Fits an adapter to a base model: its modules by the names that they have in this model, and their shapes compared.

The same layers have other names in another class of the same model. `model.layers.0` of a text-only class is
`model.language_model.layers.0` in the multimodal one, and was `language_model.model.layers.0` before transformers
4.52; PEFT around DDP puts `module.` in front. What such names add only wraps. A module that the base model does not
have by its name is the one that has the same name without them, if there is exactly one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

from dlp_core.adapter.checks import LayerShape, check_fits
from dlp_core.adapter.weights import Adapter
from dlp_core.errors import AdapterRefused

_WRAPS = frozenset({"base_model", "language_model", "model", "module", "text_model"})

V = TypeVar("V")


def fit(adapter: Adapter, layers: Mapping[str, LayerShape], *, max_rank: int | None = None) -> Adapter:
    """The adapter with its modules named as in the base model, which has `layers` (module path to shape).

    Raises AdapterRefused, naming the module, if a layer does not exist, has another shape, or could be several, or if
    the rank is above `max_rank`.
    """
    written = {*adapter.modules, *adapter.biases, *adapter.copies}
    unknown = {path for path in written if path not in layers}
    names = _renamed(adapter.name, unknown, written - unknown, layers) if unknown else {}
    if names:
        first = min(names)
        note = f"{len(names)} modules have other names in the base model: {first!r} is {names[first]!r}"
        adapter = replace(
            adapter,
            modules=_with_names(adapter.modules, names),
            biases=_with_names(adapter.biases, names),
            copies=_with_names(adapter.copies, names),
            notes=(*adapter.notes, note),
        )
    check_fits(adapter, layers)
    for path, weights in adapter.modules.items():
        if max_rank is not None and weights.rank > max_rank:
            raise AdapterRefused(
                f"adapter {adapter.name!r} has rank {weights.rank} in {path!r}; this server's CUDA graphs are made for "
                f"ranks up to {max_rank}: train it with a lower rank, or serve without graphs (engine.vllm.eager)"
            )
    return adapter


def _renamed(adapter: str, unknown: set[str], known: set[str], layers: Mapping[str, LayerShape]) -> dict[str, str]:
    """The base model's names of modules it does not have by the adapter's; without those it does not have at all."""
    candidates: defaultdict[str, list[str]] = defaultdict(list)
    for path in layers:
        candidates[_core(path)].append(path)
    names: dict[str, str] = {}
    owners = {path: path for path in known}
    for path in sorted(unknown):
        found = candidates.get(_core(path), [])
        if len(found) > 1:
            raise AdapterRefused(
                f"adapter {adapter!r} targets {path!r}, which may be {found[0]!r} or {found[1]!r} of the base model; "
                "rename its tensors to the one that was trained"
            )
        for name in found:
            if name in owners:
                raise AdapterRefused(
                    f"adapter {adapter!r} targets {owners[name]!r} and {path!r}, which are one layer of the base "
                    f"model ({name!r}); leave out the one that was not trained"
                )
            owners[name], names[path] = path, name
    return names


def _core(path: str) -> str:
    return ".".join(part for part in path.split(".") if part not in _WRAPS)


def _with_names(values: Mapping[str, V], names: Mapping[str, str]) -> dict[str, V]:
    return {names.get(path, path): value for path, value in values.items()}
