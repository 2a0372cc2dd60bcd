"""Adapters in the cache of the Hugging Face hub, where the files of a snapshot are links:

models--org--name/snapshots/<commit>/adapter_config.json -> ../../blobs/<digest>
"""

from __future__ import annotations

from pathlib import Path


def link_root(folder: Path) -> Path:
    """The folder that links in an adapter's folder may lead into: for a snapshot in a hub's cache the cached
    repository, otherwise the folder itself. For folders that the user of this machine has named, not for requests."""
    path = folder.resolve()
    for repository in path.parents:
        if repository.name.startswith("models--") and path.is_relative_to(repository / "snapshots"):
            return repository
    return folder
