"""Rendered objects as text, and as a folder that kubectl and Helm both take."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from dlp_core.errors import InvalidRequest

WRITTEN = "# Written by `dlp k8s render`: change the values and render them again.\n"
NAMESPACE_FILE, OBJECTS_FILE, CHART_FILE = "namespace.yaml", "objects.yaml", "Chart.yaml"


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as blocks, and no aliases."""

    def ignore_aliases(self, data: object) -> bool:
        return True

    def text(self, text: str) -> yaml.ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _Dumper.text)


def dump(document: Any) -> str:
    """One document of YAML, in the order of its keys."""
    text: str = yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    return text


def to_yaml(objects: list[dict[str, Any]]) -> str:
    """One stream of documents."""
    return "---\n".join(dump(item) for item in objects)


def write_folder(folder: Path, objects: list[dict[str, Any]]) -> None:
    """A folder for `kubectl apply -k`, and a Helm chart without values of its own. Files that were written before are
    replaced. Raises InvalidRequest for a folder of somebody else's.

    The namespace is not part of the chart: Helm would own it, and delete it with the Secrets in it.
    """
    kustomization = folder / "kustomization.yaml"
    if folder.exists() and not folder.is_dir():
        raise InvalidRequest(f"{folder} is a file; name a folder")
    if folder.exists() and any(folder.iterdir()):
        written = kustomization.is_file() and kustomization.read_text(encoding="utf-8").startswith(WRITTEN)
        if not written:
            raise InvalidRequest(f"{folder} has files that `dlp k8s render` did not write; name another folder")
    (folder / "templates").mkdir(parents=True, exist_ok=True)
    namespaces = [item for item in objects if item["kind"] == "Namespace"]
    others = [item for item in objects if item["kind"] != "Namespace"]
    files = {
        "kustomization.yaml": dump(
            {
                "apiVersion": "kustomize.config.k8s.io/v1beta1",
                "kind": "Kustomization",
                "resources": [NAMESPACE_FILE, OBJECTS_FILE],
            }
        ),
        NAMESPACE_FILE: to_yaml(namespaces),
        OBJECTS_FILE: to_yaml(others),
        CHART_FILE: dump({"apiVersion": "v2", "name": "dlp", "version": metadata.version("dlp-serve")}),
        f"templates/{OBJECTS_FILE}": f'{{{{ .Files.Get "{OBJECTS_FILE}" }}}}\n',
    }
    for name, text in files.items():
        (folder / name).write_text(f"{WRITTEN}{text}", encoding="utf-8")
    schema = {"type": "object", "properties": {"global": {}}, "additionalProperties": False}
    (folder / "values.schema.json").write_text(json.dumps(schema) + "\n", encoding="utf-8")
