"""The JSON schema of the file of values, for editors; it decides which names the file may have."""

from __future__ import annotations

from difflib import get_close_matches
from functools import lru_cache
from typing import Any

from deployments.args import AppArgs
from deployments.kubernetes.values import Values, optional_components

SET_ELSEWHERE = {
    "args.bank": "bank",
    "args.base_model": "model",
    "args.engine.kind": "engine",
    "args.engine.vllm.tensor_parallel": "gpu.count",
    "args.access.keys_file": "keys",
    "deployments.*.name": None,
    "deployments.*.num_replicas": "replicas",
    "deployments.*.autoscaling_config.min_replicas": "replicas",
    "deployments.*.autoscaling_config.max_replicas": "replicas",
    "deployments.*.ray_actor_options.num_gpus": "gpu.count",
    "deployments.*.user_config": None,
}
"""What of `args` and `deployments` another value decides, or nothing reads."""
DEPLOYMENTS = ("Ingress", "Router", "FusedBackbone")


def check_names(document: dict[str, Any]) -> None:
    """Raises ValueError for a name that the schema does not have, with the nearest that it has, and for a value that
    another one decides."""
    for place in places(document):
        for pattern, other in SET_ELSEWHERE.items():
            if _matches(place, pattern.split(".")):
                instead = f"comes from {other}: set that instead" if other else "has no effect here: leave it out"
                raise ValueError(f"{'.'.join(place)} {instead}")
    _check_names(document, json_schema(), ())


def places(value: Any, place: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Every key of nested mappings, as its path."""
    if not isinstance(value, dict):
        return []
    here = [(*place, str(key)) for key in value]
    return here + [found for key, item in value.items() for found in places(item, (*place, str(key)))]


def _matches(place: tuple[str, ...], pattern: list[str]) -> bool:
    return len(place) == len(pattern) and all(part in (name, "*") for name, part in zip(place, pattern, strict=True))


def _check_names(value: Any, schema: dict[str, Any], place: tuple[str, ...]) -> None:
    schema = _resolved(schema)
    if isinstance(value, dict) and (known := schema.get("properties")) is not None:
        for name, item in value.items():
            if name in known:
                _check_names(item, known[name], (*place, name))
            elif not schema.get("additionalProperties"):
                nearest = get_close_matches(name, known, n=1) or [each for each in known if name in each]
                where = f" in {'.'.join(place)}" if place else ""
                hint = f"did you mean {nearest[0]}?" if nearest else f"there are {', '.join(known)}"
                raise ValueError(f"{'.'.join((*place, name))}: there is no {name}{where}; {hint}")


def _resolved(schema: dict[str, Any]) -> dict[str, Any]:
    """The object that a schema allows, through references and beside null."""
    for choice in schema.get("anyOf", [schema]):
        if "$ref" in choice:
            return _resolved(json_schema()["$defs"][choice["$ref"].rpartition("/")[2]])
        if "properties" in choice:
            return dict(choice)
    return {}


@lru_cache(maxsize=1)
def json_schema() -> dict[str, Any]:
    """The JSON schema of the file, draft 2020-12. `args` and `deployments` are those of the classes that read them,
    less what other values decide; nothing of them is required, and their defaults depend on the size."""
    from ray.serve.schema import DeploymentSchema

    schema = Values.model_json_schema()
    definitions = schema["$defs"]
    parts: dict[str, dict[str, Any]] = {
        "args": AppArgs.model_json_schema(),
        "deployments": DeploymentSchema.model_json_schema(),
    }
    for part in parts.values():
        for definition in (part, *part.get("$defs", {}).values()):
            definition.pop("required", None)
            definition.pop("title", None)
            if "properties" in definition:
                definition.setdefault("additionalProperties", False)
                for each in definition["properties"].values():
                    each.pop("default", None)
                    if any("$ref" in choice for choice in each.get("anyOf", [])):  # Ray takes any object beside it
                        each["anyOf"] = [c for c in each["anyOf"] if c.get("additionalProperties") is not True]
        definitions |= part.pop("$defs", {})
    definitions["Args"], definitions["Deployment"] = parts["args"], parts["deployments"]
    definitions["Count"] = {"anyOf": [{"type": "integer", "minimum": 1}, definitions["Count"]]}
    for pattern in SET_ELSEWHERE:
        _remove(definitions, pattern.split("."))
    described = schema["properties"]
    described["args"] |= {"type": "object", "$ref": "#/$defs/Args"}
    described["args"].pop("additionalProperties")
    described["deployments"] |= {
        "properties": {name: {"$ref": "#/$defs/Deployment"} for name in DEPLOYMENTS},
        "additionalProperties": False,
    }
    described["components"]["items"] = {"enum": optional_components()}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _remove(definitions: dict[str, Any], pattern: list[str]) -> None:
    """Takes a property out of what `args` or `deployments` may have."""
    root, *path = pattern
    found = definitions["Args" if root == "args" else "Deployment"]
    if root == "deployments":
        path = path[1:]
    for name in path[:-1]:
        step = found["properties"][name]
        reference = next(choice["$ref"] for choice in (step, *step.get("anyOf", [])) if "$ref" in choice)
        found = definitions[reference.rpartition("/")[2]]
    del found["properties"][path[-1]]
