"""llama.cpp's server, with the scales of its adapters in each request.

According to its documentation, requests with different scales are not batched together: each runs alone.
"""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

from benchmarks.measure.worker import Batch, BatchResult, WorkerFailed, cpu_seconds
from benchmarks.peers.gguf_files import write_adapter, write_model
from dlp_core.ports import free_port

SEQUENCES, CONTEXT = 16, 256
LOAD_TIMEOUT_S = 120


class LlamaServer:
    """A server process with the interface of `worker.Worker`: versions, run, close."""

    def __init__(self, binary: Path, model: Path, adapters: Path, threads: int, scratch: Path) -> None:
        """Start the server and wait until it has loaded. `scratch` gets GGUF files and the log. Raises WorkerFailed."""
        write_model(model, base := scratch / "base.gguf")
        files = [scratch / f"{folder.name}.gguf" for folder in sorted(adapters.iterdir())]
        for file in files:
            write_adapter(adapters / file.stem, model, file)
        self._slots = {file.stem: number for number, file in enumerate(files)}
        self._log = scratch / "llama-server.log"
        self._url = f"http://127.0.0.1:{free_port()}"
        command = [
            *(str(binary), "--model", str(base), "--lora", ",".join(map(str, files)), "--lora-init-without-apply"),
            *("--parallel", str(SEQUENCES), "--ctx-size", str(SEQUENCES * CONTEXT), "--threads", str(threads)),
            *("--host", "127.0.0.1", "--port", self._url.rpartition(":")[2], "--cache-ram", "0", "--offline"),
        ]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self._clients = ThreadPoolExecutor(SEQUENCES)
        try:
            self._wait_until_ready()
        except BaseException:
            self.close()
            raise
        version = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True)
        self.versions = {"llama.cpp": re.search(r"version: (.*)", version.stdout + version.stderr)[1]}

    def run(self, batch: Batch) -> BatchResult:
        before = cpu_seconds(self._process.pid)
        started = time.perf_counter()
        answers = self._clients.map(self._complete, batch.prompts, batch.mixes, [batch.tokens] * len(batch.prompts))
        tokens = list(answers)
        seconds = time.perf_counter() - started
        return BatchResult(seconds, tokens, cpu_seconds(self._process.pid) - before)

    def close(self) -> None:
        self._clients.shutdown()
        self._process.terminate()
        self._process.wait()

    def _complete(self, prompt: Sequence[int], mix: Mapping[str, float], tokens: int) -> list[int]:
        body = {
            "prompt": list(prompt),
            "n_predict": tokens,
            "temperature": 0,
            "ignore_eos": True,
            "cache_prompt": False,
            "return_tokens": True,
            "lora": [{"id": number, "scale": mix.get(name, 0.0)} for name, number in self._slots.items()],
        }
        generated: list[int] = self._request("/completion", body)["tokens"]
        return generated

    def _request(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        with urlopen(Request(self._url + path, data, {"Content-Type": "application/json"})) as reply:
            return json.load(reply)

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + LOAD_TIMEOUT_S
        while self._process.poll() is None and time.monotonic() < deadline:
            try:
                self._request("/health")
                return
            except (URLError, ConnectionError):  # not listening yet, or still loading
                time.sleep(0.2)
        raise WorkerFailed(self._log.read_text(errors="replace").strip().splitlines()[-1])
