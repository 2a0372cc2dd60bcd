"""What only POSIX has is imported where it is used: the package can be imported elsewhere."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.paths import ROOT

IMPORT_ALL = """
import builtins, importlib, pkgutil, sys

POSIX = {"fcntl", "grp", "pty", "pwd", "resource", "termios"}
OWN = ("dlp_core", "deployments")
real = builtins.__import__

def guarded(name, globals=None, locals=None, fromlist=(), level=0):
    # fcntl for everybody; the others only for our own modules, as the libraries here are those for Linux
    if name in POSIX and (name == "fcntl" or (globals or {}).get("__name__", "").startswith(OWN)):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    return real(name, globals, locals, fromlist, level)

sys.modules.pop("fcntl", None)
builtins.__import__ = guarded
failed = []
for package in OWN:
    for module in pkgutil.walk_packages(importlib.import_module(package).__path__, package + "."):
        if module.name.startswith("dlp_core.vllm."):  # needs vLLM, which is for Linux
            continue
        try:
            importlib.import_module(module.name)
        except Exception as error:
            failed.append(f"{module.name}: {error!r}")
print(*failed, sep="\\n")
print(len(sys.modules))
"""


@pytest.mark.slow
def test_every_module_can_be_imported_without_what_only_posix_has() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", IMPORT_ALL], cwd=ROOT, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    *failed, count = done.stdout.split("\n")[:-1]
    assert [line for line in failed if line] == []
    assert int(count) > 1000
