"""Brings a published bank back to a folder. To publish that folder gives the same bank."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from dlp_core.bank.folder import DESCRIPTION_FILE, FOLDER_FILE
from dlp_core.bank.manifest import BankManifest
from dlp_core.bank.reading import load_manifest
from dlp_core.bank.recipes import RECIPES_FOLDER, recipe_text
from dlp_core.errors import InvalidRequest
from dlp_core.router.files import ENCODER_FOLDER
from dlp_core.store.disk import disk_errors
from dlp_core.store.files import FileEntry
from dlp_core.store.protocol import AdapterStore
from dlp_core.store.transfers import Progress, in_parallel, silent


def pull(store: AdapterStore, folder: Path, *, version: str | None = None, progress: Progress = silent) -> BankManifest:
    """Download a bank, by default the current one, to a folder that is empty or not there; returns its manifest.

    The folder appears complete, after every digest was verified. Raises InvalidRequest if it holds anything, what
    `load_manifest` and the store raise, and LocalDiskError or DiskFull if it cannot be written.
    """
    manifest = load_manifest(store, version)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InvalidRequest(f"{folder} is not empty; remove it or name another folder")
    partial = folder.with_name(f".{folder.name}.{manifest.version}.part")
    files = list(_files(manifest))

    def fetch(file: tuple[str, str, FileEntry]) -> int:
        key, path, entry = file
        target = partial / path
        target.parent.mkdir(parents=True, exist_ok=True)
        store.download(key, target, size=entry.size, sha256=entry.sha256)
        return entry.size

    with disk_errors(f"{folder} cannot be written"):
        partial.mkdir(parents=True, exist_ok=True)
        in_parallel(fetch, files, lambda size: size, manifest.size, progress)
        for adapter in manifest.adapters:
            if adapter.description is not None:
                (partial / "adapters" / adapter.name / DESCRIPTION_FILE).write_text(adapter.description + "\n", "utf-8")
        base = manifest.base_model
        unrouted = [entry.name for entry in manifest.entries if not entry.routed]
        settings: dict[str, object] = {"base_model": base.id, "aliases": base.aliases}
        settings |= {"base_model_weights": base.weights}
        settings |= {"unrouted": unrouted}
        settings = {name: value for name, value in settings.items() if value}
        if manifest.allowed_together is not None:  # none at all is a list as well
            settings["allowed_together"] = manifest.allowed_together
        for recipe in manifest.recipes:
            (partial / RECIPES_FOLDER).mkdir(exist_ok=True)
            (partial / RECIPES_FOLDER / f"{recipe.name}.json").write_text(recipe_text(recipe), "utf-8")
        (partial / FOLDER_FILE).write_text(json.dumps(settings, ensure_ascii=False, indent=2) + "\n", "utf-8")
        partial.rename(folder)
    return manifest


def _files(manifest: BankManifest) -> Iterator[tuple[str, str, FileEntry]]:
    """Of each file, its key in the store and its place in the folder."""
    for adapter in manifest.adapters:
        for file in adapter.files:
            yield adapter.key(file.path), f"adapters/{adapter.name}/{file.path}", file
    if manifest.router is not None:
        for file in manifest.router.files:
            yield manifest.router.key(file.path), f"router/{file.path}", file
        encoder = manifest.router.encoder
        for file in encoder.files if encoder is not None else ():
            assert encoder is not None
            yield encoder.key(file.path), f"router/{ENCODER_FOLDER}/{file.path}", file
