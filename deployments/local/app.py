"""Runs the application of serve_config.yaml on a Ray cluster that ends with this process.

    with LocalApp(load_config(Path("serve_config.yaml")), bank="s3://bank/", base_model=folder) as app:
        app.wait_until_ready()
        ...

For a long-lived cluster use `ray start` and `serve deploy`, or KubeRay (k8s/).
"""

from __future__ import annotations

import io
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from deployments.args import AppArgs
from deployments.fleet import haproxy, proxy
from deployments.local.checks import check_base_model, check_memory, check_secrets, free_memory, uses_gpu
from dlp_core.bank.follower import NoUsableBank
from dlp_core.errors import DLPError, InvalidRequest
from dlp_core.ports import free_port
from dlp_core.store.documents import parse_yaml, read_regular
from dlp_core.store.records import first_problem

if TYPE_CHECKING:
    from ray.serve.schema import ServeDeploySchema

READY_SECONDS = 900.0  # vLLM compiles at its first start
_UNLIMITED = 1000.0
_FAST_RETRIES = {
    "RAY_raylet_client_connect_timeout_milliseconds": "50",
    "RAY_raylet_client_num_connect_attempts": "200",
}
"""A raylet often connects to its object store a moment before that listens, then sleeps for a second, up to ten times.
These settings keep the total wait and shorten the steps."""
_LOOPBACK = ("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
"""On any system, Ray then listens on the loopback address alone: this cluster has one machine. Only the endpoint's own
port follows `host`."""
_METRICS_INTERVAL = ("RAY_metrics_report_interval_ms", "4000")
"""Ray's 10 s are long for somebody who watches. But Ray drops a gauge that was not set for two intervals, and the
ingress sets its own every bank_poll_s."""
_ATTEMPTS = 3
"""Ray gives up when its own processes are not there within half a minute. On a busy machine it is asked again."""
_OBJECT_STORE_BYTES = 200 * 1024**2  # requests and tokens are small; Ray's default takes a third of the memory


class AppFailed(DLPError):
    """The application did not start; the message has Serve's reason."""

    code = "app_failed"


class _RayFailed(AppFailed):
    """Ray's own processes did not start in the time that Ray gives them."""


CONFIG_FILE = "serve_config.yaml"
PACKAGED_CONFIG = Path(__file__).with_name(CONFIG_FILE)


def find_config(path: Path | None) -> Path:
    """The Serve config file at `path`. Without one: that of this folder, else that of the package."""
    return path or (Path(CONFIG_FILE) if Path(CONFIG_FILE).exists() else PACKAGED_CONFIG)


def load_config(path: Path) -> dict[str, Any]:
    """Read a Serve config file. Raises InvalidRequest if it is missing or not YAML."""
    try:
        config = parse_yaml(read_regular(path))
    except FileNotFoundError:
        raise InvalidRequest(f"{path} does not exist; `dlp config init {path}` writes one to edit") from None
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"{path} cannot be read: {error}") from None
    if not isinstance(config, dict) or not config.get("applications"):
        raise InvalidRequest(f"{path} has no applications; `dlp config init` writes a file that has")
    return config


class LocalApp:
    """One application, one cluster, one port. Raises AppFailed or InvalidRequest if it cannot start.

    Without a `port` it uses a free one, which `url` names.
    """

    def __init__(
        self, config: dict[str, Any], *, bank: str, base_model: Path, port: int | None = None, host: str = "127.0.0.1"
    ) -> None:
        port = port or free_port()
        application = config["applications"][0]
        args = {**application.get("args", {}), "bank": bank, "base_model": str(base_model.resolve())}
        self.config = {
            **config,
            "http_options": {**config.get("http_options", {}), "host": host, "port": port},
            "applications": [{**application, "args": args}],
        }
        self._name: str = application["name"]
        self._host, self._port = host, port
        self.url = f"http://{host}:{port}"
        self._serve_log = logging.getLogger("ray.serve")
        self._serve_log_level = self._serve_log.level

    def __enter__(self) -> Self:
        schema = self.check()
        os.environ.setdefault("RAY_DEDUP_LOGS", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        for variable, value in _FAST_RETRIES.items():
            os.environ.setdefault(variable, value)
        os.environ.setdefault(*_METRICS_INTERVAL)
        os.environ.setdefault(haproxy.VARIABLE, str(haproxy.COMMAND))
        os.environ.setdefault(proxy.VARIABLE, proxy.CALLBACK)
        for attempts_left in reversed(range(_ATTEMPTS)):
            try:
                self._start(schema)
                break
            except _RayFailed:
                if not attempts_left:
                    raise
        return self

    def _start(self, schema: ServeDeploySchema) -> None:
        """Raises _RayFailed where another attempt may help, AppFailed where it will not."""
        import ray
        from ray import serve

        try:
            self.start_ray()
        except Exception as error:  # Ray raises a bare Exception here
            ray.shutdown()
            raise _RayFailed(f"Ray did not start: {error}") from error
        try:
            self._serve_log.setLevel(logging.ERROR)
            serve.start(proxy_location="HeadOnly", http_options=schema.http_options.model_dump())
            serve.context._get_global_client().deploy_apps(schema)  # what `serve run CONFIG` calls
        except BaseException as error:
            self.__exit__()
            if isinstance(error, ray.exceptions.RayError):
                raise _RayFailed(f"Ray Serve did not start: {_last_lines(str(error), 2)}") from error
            if isinstance(error, RuntimeError):  # as when another took the port meanwhile
                raise AppFailed(f"Ray Serve did not start: {_last_lines(str(error))}") from error
            raise

    def check(self) -> ServeDeploySchema:
        """What Serve is given. Raises InvalidRequest for all that can be known before Ray starts."""
        if "ray" not in sys.modules:  # it reads this when it is imported
            os.environ.setdefault(*_LOOPBACK)
        schema = self._schema()
        self._check_port()
        args = AppArgs.model_validate(self.config["applications"][0]["args"])
        check_base_model(Path(args.base_model))
        check_secrets(args)
        if not uses_gpu(self.config):
            check_memory(Path(args.base_model), args.dtype, free_memory())
        return schema

    def __exit__(self, *_: object) -> None:
        import ray
        from ray import serve

        # Ray prints that its killed controller did not return from shutdown; nothing else prints here
        with redirect_stdout(io.StringIO()):
            try:
                serve.shutdown()
            finally:
                ray.shutdown()
                self._serve_log.setLevel(self._serve_log_level)

    def start_ray(self) -> None:
        """Start a cluster of this machine alone."""
        import ray

        on_sigterm = signal.getsignal(signal.SIGTERM)
        ray.init(
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=_OBJECT_STORE_BYTES,
            namespace="serve",
            resources=dict.fromkeys(self._resources(), _UNLIMITED),
        )
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)  # Ray has set its own, which ends this process at once

    def wait_until_ready(self, report: Callable[[str], None] = lambda _: None) -> None:
        """Wait until /health returns 200. `report` receives the reason for waiting. Raises AppFailed."""
        from ray import serve

        deadline = time.monotonic() + READY_SECONDS
        while True:
            health = self._health()
            if health is None:
                return
            reason, code = health
            if code == NoUsableBank.code:
                raise AppFailed(reason)
            status = serve.status().applications.get(self._name)
            if status is not None and status.status == "DEPLOY_FAILED":
                raise AppFailed(f"the application did not deploy: {_last_lines(status.message)}")
            for name, deployment in status.deployments.items() if status is not None else ():
                if deployment.status == "DEPLOY_FAILED" or "failed to start" in deployment.message:
                    raise AppFailed(f"{name} did not start: {_last_lines(deployment.message)}")
            if time.monotonic() > deadline:
                raise AppFailed(f"the application was not ready within {READY_SECONDS:.0f} s: {reason}")
            report(reason)
            time.sleep(0.3)

    def _resources(self) -> set[str]:
        """The custom resources (node types) that the deployments require: this machine offers all of them."""
        options = [
            deployment.get("ray_actor_options", {}) for deployment in self.config["applications"][0]["deployments"]
        ]
        return {name for actor_options in options for name in actor_options.get("resources", {})}

    def _health(self) -> tuple[str, str] | None:
        """The reason and error code if /health does not return 200 yet; None if it does."""
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5):
                return None
        except urllib.error.HTTPError as error:
            try:
                api_error = json.loads(error.read())["error"]
                return api_error["message"], api_error["code"]
            except (ValueError, KeyError, TypeError):
                return f"the endpoint returns HTTP {error.code}", ""
        except OSError:
            return "starting replicas", ""

    def _schema(self) -> ServeDeploySchema:
        from pydantic import ValidationError
        from ray.serve.schema import ServeDeploySchema

        try:
            AppArgs.model_validate(self.config["applications"][0]["args"])
            return ServeDeploySchema.model_validate(self.config)
        except ValidationError as error:
            raise InvalidRequest(f"serve config: {first_problem(error)}") from None

    def _check_port(self) -> None:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((self._host, self._port))
            except OSError as error:
                raise InvalidRequest(
                    f"port {self._port} is not free ({error.strerror}); choose one with --port"
                ) from None


def _last_lines(message: str, count: int = 1) -> str:
    """On one line. That a Ray actor never ran is the last of its message; the line before says why."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return " ".join(lines[-count:]) or "Serve gave no reason; see the logs under /tmp/ray/session_latest/logs/serve"
