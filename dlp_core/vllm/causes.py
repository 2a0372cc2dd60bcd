"""Why vLLM did not start. Its processes log that; what it raises says to look above."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from tempfile import TemporaryDirectory

_VARIABLE = "VLLM_LOGGING_CONFIG_PATH"
_RAISED = re.compile(r"^[\w.]*(?:Error|Exception|Refused): (?!WorkerProc initialization failed)(.+)$", re.MULTILINE)


class Causes:
    """Has vLLM's processes, which are started later, log their errors to a file too. An operator's own logging config
    is left alone; then nothing is known here."""

    def __init__(self) -> None:
        self._folder = TemporaryDirectory(prefix="dlp-vllm-")
        self._errors = Path(self._folder.name) / "errors.log"
        if _VARIABLE in os.environ:
            return
        config = Path(self._folder.name) / "logging.json"
        config.write_text(json.dumps(_logging(self._errors)), encoding="utf-8")
        os.environ[_VARIABLE] = str(config)

    def first(self) -> str | None:
        """The message of the first exception that any of its processes has logged."""
        try:
            found = _RAISED.search(self._errors.read_text(encoding="utf-8", errors="replace"))
        except FileNotFoundError:
            return None
        return found and found[1]

    def close(self) -> None:
        if os.environ.get(_VARIABLE, "").startswith(self._folder.name):
            del os.environ[_VARIABLE]
        self._folder.cleanup()


def _logging(errors: Path) -> dict[str, object]:
    """vLLM's own logging, to the terminal, and errors to a file."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "lines": {"format": "%(levelname)s %(asctime)s %(processName)s %(process)d %(name)s: %(message)s"},
            "bare": {"format": "%(message)s"},
        },
        "handlers": {
            "terminal": {
                "class": "logging.StreamHandler",
                "formatter": "lines",
                "level": os.environ.get("VLLM_LOGGING_LEVEL", "INFO").upper(),
            },
            "errors": {
                "class": "logging.FileHandler",
                "filename": str(errors),
                "formatter": "bare",
                "level": "ERROR",
                "delay": True,
            },
        },
        "loggers": {"vllm": {"handlers": ["terminal", "errors"], "level": "DEBUG", "propagate": False}},
    }
