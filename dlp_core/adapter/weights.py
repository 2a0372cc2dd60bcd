"""Reads and validates one PEFT LoRA adapter folder.

A folder holds `adapter_config.json` and `adapter_model.safetensors`, as `PeftModel.save_pretrained` writes
them (peft/utils/save_and_load.py). No other file is ever opened, least of all a pickle. An adapter that cannot be
served exactly is refused, with the reason, before any request needs it.

Shape letters: D in, O out, R rank.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from dlp_core.adapter.config import PeftConfig, read_config
from dlp_core.adapter.contents import CONFIG_FILE, WEIGHTS_FILE, convert_hint, elsewhere
from dlp_core.adapter.invocation import FIELD, Invocation
from dlp_core.adapter.keys import parse_keys
from dlp_core.adapter.names import validate_name
from dlp_core.adapter.prompting import Prompting, read_prompting
from dlp_core.errors import AdapterRefused, DLPError
from dlp_core.store.disk import disk_error
from dlp_core.store.documents import MAX_TENSORS_BYTES, read_regular

if TYPE_CHECKING:
    from torch import Tensor

    from dlp_core.store.files import FileEntry

MAX_GAIN = 1e6
"""Largest Frobenius norm of a tensor, and of what a module adds per unit of input: trained adapters stay below a
thousand, and from here on the activations of the layers behind overflow."""

_FLOAT_DTYPES = frozenset({"torch.float32", "torch.float16", "torch.bfloat16"})


@dataclass(frozen=True, slots=True, eq=False)
class LoRAWeights:
    """The two factors for one module of the base model: delta(x) = scaling * B_OR (A_RD x).

    For an embedding D is the vocabulary and x a token's one-hot vector.
    """

    a_RD: Tensor
    b_OR: Tensor
    scaling: float
    """alpha / r, or alpha / sqrt(r) for rsLoRA, with rank_pattern and alpha_pattern applied."""

    @property
    def rank(self) -> int:
        return int(self.a_RD.shape[0])


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """One LoRA in host memory, as stored: dtypes are unchanged and no scaling is folded in."""

    name: str
    base_model: str | None
    """The base model it names (`base_model_name_or_path`), None if it names none."""
    modules: Mapping[str, LoRAWeights]
    """Module path in the base model, for instance `model.layers.0.self_attn.q_proj`, to its weights."""
    biases: Mapping[str, Tensor] = field(default_factory=dict)
    """Module path to its full bias [O] after training (`bias="lora_only"` or `"all"`)."""
    copies: Mapping[str, Tensor] = field(default_factory=dict)
    """Base weights that PEFT stored along with LoRA on embeddings. They must equal the base model's."""
    notes: tuple[str, ...] = ()
    """What is to be said about how it was read, for instance that its tensors had other names."""
    files: tuple[FileEntry, ...] = ()
    """The files it was read from, as they were then; empty if they were not hashed."""
    prompting: Prompting | None = None
    """What its folder says about prompts; None if nothing."""
    invocation: Invocation | None = None
    """The tokens from which on an activated LoRA runs (dlp_core.adapter.invocation); None for an ordinary one."""

    @property
    def rank(self) -> int:
        """The largest rank of any module."""
        return max((weights.rank for weights in self.modules.values()), default=0)

    @property
    def parameters(self) -> int:
        factors = sum(w.a_RD.numel() + w.b_OR.numel() for w in self.modules.values())
        return factors + sum(bias.numel() for bias in self.biases.values())


def read_adapter(folder: Path, *, name: str, inside: Path | None = None, hashed: bool = False) -> Adapter:
    """Read one adapter folder. `name` is its name in the bank. Links must not lead out of `inside`, by default the
    folder. `hashed` also hashes what is read.

    Raises InvalidRequest for an unsafe name and AdapterRefused, naming the adapter, the reason and the next
    action, for anything that is missing, damaged or cannot be served exactly.
    """
    validate_name(name)
    try:
        return _read(folder, name, inside or folder, hashed)
    except DLPError:
        raise
    except Exception as error:  # the boundary to files that others wrote: nothing else may come out of it
        raise AdapterRefused(f"adapter {name!r}: cannot be read ({type(error).__name__}: {error})") from error


def _read(folder: Path, name: str, inside: Path, hashed: bool) -> Adapter:
    config, config_content = read_config(folder, name, inside=inside)
    content = _read_weights(folder, name, inside)
    files = _describe(config_content, content) if hashed else ()
    tensors = _tensors(content, name)
    try:
        places, notes = parse_keys(tensors)
    except ValueError as error:
        raise AdapterRefused(f"adapter {name!r}: {error}") from None
    factors: dict[str, dict[str, Tensor]] = {}
    spellings: dict[str, set[str]] = {}
    biases: dict[str, Tensor] = {}
    copies: dict[str, Tensor] = {}
    for key, place in places.items():
        match place.part:
            case "bias":
                if not config.trains_biases:
                    raise AdapterRefused(
                        f"adapter {name!r}: tensor {key!r} is not a LoRA factor, and {CONFIG_FILE} says that no bias "
                        "was trained; config and weights are from different training runs"
                    )
                biases[place.module] = tensors[key]
            case "weight":
                copies[place.module] = tensors[key]
            case side:
                if place.embedding and config.invocation is not None:
                    raise AdapterRefused(
                        f"adapter {name!r} is activated ({FIELD}) and changes the embedding {place.module!r}, which "
                        "PEFT does not compute; train it on linear layers"
                    )
                factors.setdefault(place.module, {})[side] = tensors[key]
                spellings.setdefault(place.module, {place.module}).add(place.written)
    if not factors:
        raise AdapterRefused(f"adapter {name!r}: {WEIGHTS_FILE} holds no LoRA weights; train it again")
    modules = {
        module: _weights(name, module, spellings[module], sides, config) for module, sides in sorted(factors.items())
    }
    prompting, prompt_notes = read_prompting(folder, name, inside=inside)
    return Adapter(
        name=name,
        base_model=config.base_model,
        modules=modules,
        biases=biases,
        copies=copies,
        notes=(*notes, *prompt_notes),
        files=files,
        prompting=prompting,
        invocation=config.invocation,
    )


def _describe(config: bytes, weights: bytes) -> tuple[FileEntry, ...]:
    from dlp_core.store.files import describe_bytes  # pydantic takes a while, and `dlp --help` needs none

    return describe_bytes(CONFIG_FILE, config), describe_bytes(WEIGHTS_FILE, weights)


def _read_weights(folder: Path, name: str, inside: Path) -> bytes:
    path = folder / WEIGHTS_FILE
    try:
        return read_regular(path, MAX_TENSORS_BYTES, inside=inside)
    except FileNotFoundError:
        hint = elsewhere(folder) or convert_hint(folder)
        raise AdapterRefused(f"adapter {name!r}: {WEIGHTS_FILE} is missing from its folder{hint}") from None
    except OSError as error:
        raise disk_error(error, f"adapter {name!r}: {WEIGHTS_FILE} cannot be read", mistake=AdapterRefused) from error


def _tensors(content: bytes, name: str) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors: dict[str, Tensor] = load(content)
    except (SafetensorError, ValueError, KeyError) as error:
        raise AdapterRefused(
            f"adapter {name!r}: {WEIGHTS_FILE} is not a complete safetensors file ({error}); upload it again"
        ) from None
    for key, tensor in tensors.items():
        if str(tensor.dtype) not in _FLOAT_DTYPES:
            raise AdapterRefused(
                f"adapter {name!r}: tensor {key!r} is {tensor.dtype}; use float32, float16 or bfloat16"
            )
        if not _norm(tensor) <= MAX_GAIN:
            if not bool(tensor.isfinite().all()):
                raise AdapterRefused(f"adapter {name!r}: tensor {key!r} holds NaN or infinity; retrain it")
            raise _overflows(name, f"tensor {key!r} has a norm above {MAX_GAIN:g}")
    return tensors


def _norm(tensor: Tensor) -> float:
    """The Frobenius norm in float32; not finite if an element is not, or if it overflows."""
    import torch

    return float(torch.linalg.vector_norm(tensor, dtype=torch.float32))


def _overflows(name: str, what: str) -> AdapterRefused:
    return AdapterRefused(
        f"adapter {name!r}: {what}, so outputs would overflow; retrain it, with a lower learning rate"
    )


def _weights(
    name: str, module: str, spellings: Collection[str], sides: Mapping[str, Tensor], config: PeftConfig
) -> LoRAWeights:
    if set(sides) != {"A", "B"}:
        missing = "B" if "A" in sides else "A"
        raise AdapterRefused(f"adapter {name!r}, {module}: lora_{missing} is missing; upload it again")
    a_RD, b_OR = sides["A"], sides["B"]
    if a_RD.ndim != 2 or b_OR.ndim != 2 or a_RD.shape[0] != b_OR.shape[1] or not a_RD.shape[0]:
        raise AdapterRefused(
            f"adapter {name!r}, {module}: lora_A {tuple(a_RD.shape)} and lora_B {tuple(b_OR.shape)} "
            "are not two factors of one rank"
        )
    rank = int(a_RD.shape[0])
    try:
        expected, scaling = config.rank(module), config.scaling(module, rank)
        for spelling in spellings:
            if (config.rank(spelling), config.scaling(spelling, rank)) != (expected, scaling):
                raise AdapterRefused(
                    f"adapter {name!r}, {module}: rank_pattern or alpha_pattern has one value for this module and "
                    f"another for {spelling!r}, as its tensors call it; save the adapter again from the unwrapped model"
                )
    except ValueError as error:
        raise AdapterRefused(f"adapter {name!r}, {module}: {error}") from None
    if expected != rank:
        raise AdapterRefused(
            f"adapter {name!r}, {module}: {CONFIG_FILE} says rank {str(expected)[:40]}, the weights have {rank}; "
            "config and weights are from different training runs"
        )
    weights = LoRAWeights(a_RD=a_RD, b_OR=b_OR, scaling=scaling)
    if not abs(weights.scaling) * _norm(a_RD) * _norm(b_OR) <= MAX_GAIN:
        raise _overflows(name, f"{module} scales its input by up to more than {MAX_GAIN:g}")
    return weights
