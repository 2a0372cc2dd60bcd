"""Makes the Secret with the first API key where there is none, from the head's pod:

    python -m deployments.kubernetes.first_key dlp-keys

The head's account may create Secrets and nothing else with them, so a Secret that exists is neither read nor changed,
and no key is ever made twice or lost. The routers' pods wait for the Secret: without it nobody is let in.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import json
import os
import secrets
import ssl
import sys
import time
from collections.abc import Callable
from pathlib import Path

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where Kubernetes mounts an account's token, namespace and the certificate of the API server."""
KEY_FILE = "keys.yaml"
"""Its name in the Secret, and so in the folder where the Secret is mounted (deployments/http/access.py reads it)."""
TRIES = 30
PAUSE_S = 4.0
TIMEOUT_S = 10.0


def ensure(name: str, account: Path = ACCOUNT, *, wait: Callable[[float], object] = time.sleep) -> str:
    """Create the Secret `name`, or leave it. Returns the line that says what happened. Raises SystemExit with the
    reason if the API server cannot be reached or refuses the object."""
    namespace = (account / "namespace").read_text().strip()
    problem = ""
    for number in range(TRIES):
        if number:
            wait(PAUSE_S)
        try:
            status, message = _post(namespace, _secret(name), account)
        except OSError as error:
            problem = f"the API server cannot be reached ({error})"
            continue
        if status == http.client.CREATED:
            return f"made the Secret {name} with a first API key"
        if status == http.client.CONFLICT:
            return f"the Secret {name} exists, and stays as it is"
        if status == http.client.FORBIDDEN:
            return f"may not make the Secret {name}; if it does not exist, routers wait until you make it ({message})"
        problem = f"the API server answers {status}: {message}"
        if status < http.client.INTERNAL_SERVER_ERROR and status != http.client.TOO_MANY_REQUESTS:
            break
    raise SystemExit(f"no Secret {name}: {problem}")


def _secret(name: str) -> dict[str, object]:
    """A Secret with one key, which may use every adapter."""
    keys = f"keys:\n  - name: first\n    key: {secrets.token_hex(24)}\n"
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "labels": {"app.kubernetes.io/part-of": "dlp"}},
        "data": {KEY_FILE: base64.b64encode(keys.encode()).decode()},
    }


def _post(namespace: str, secret: dict[str, object], account: Path) -> tuple[int, str]:
    """The API server's status and message. Raises OSError."""
    connection = http.client.HTTPSConnection(
        os.environ["KUBERNETES_SERVICE_HOST"],
        int(os.environ["KUBERNETES_SERVICE_PORT"]),
        timeout=TIMEOUT_S,
        context=ssl.create_default_context(cafile=str(account / "ca.crt")),
    )
    try:
        connection.request(
            "POST",
            f"/api/v1/namespaces/{namespace}/secrets?fieldManager=dlp-first-key",
            json.dumps(secret),
            {"Authorization": f"Bearer {(account / 'token').read_text().strip()}", "Content-Type": "application/json"},
        )
        response = connection.getresponse()
        body = response.read()
    except http.client.HTTPException as error:
        raise OSError(str(error) or type(error).__name__) from error
    finally:
        connection.close()
    try:
        message = str(json.loads(body).get("message", ""))
    except (ValueError, AttributeError):
        message = ""
    return response.status, message


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the Secret with the first API key, unless it exists.")
    parser.add_argument("name", help="of the Secret")
    name = parser.parse_args().name
    if "KUBERNETES_SERVICE_HOST" not in os.environ:
        raise SystemExit("this is not a pod of Kubernetes, whose API server makes the Secret")
    sys.stdout.write(ensure(name) + "\n")


if __name__ == "__main__":
    main()
