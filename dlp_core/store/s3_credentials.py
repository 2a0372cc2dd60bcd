"""S3 credentials in two files, which boto3 does not read itself: a Kubernetes Secret that is mounted as a folder.

    AWS_ACCESS_KEY_ID_FILE=/etc/dlp-s3/AWS_ACCESS_KEY_ID
    AWS_SECRET_ACCESS_KEY_FILE=/etc/dlp-s3/AWS_SECRET_ACCESS_KEY

They come first in boto3's chain. They are read again when they change, so a key can be replaced without a restart;
boto3 reads its own variables and files once. Where neither file exists, as with a Secret that is optional, the chain
goes on: a role, for instance.
"""

from __future__ import annotations

import os
from pathlib import Path

from botocore.credentials import CredentialProvider, CredentialResolver, Credentials, ReadOnlyCredentials

from dlp_core.errors import InvalidRequest
from dlp_core.store.secret_file import SecretFile

ID_VARIABLE, SECRET_VARIABLE = "AWS_ACCESS_KEY_ID_FILE", "AWS_SECRET_ACCESS_KEY_FILE"


class FileCredentials(Credentials):
    """Credentials that are what the two files hold when a request is signed."""

    def __init__(self, access_key: Path, secret_key: Path) -> None:
        self._files = SecretFile(access_key, _not_empty), SecretFile(secret_key, _not_empty)
        super().__init__(*self._read(), method=FileProvider.METHOD)

    def get_frozen_credentials(self) -> ReadOnlyCredentials:
        self.access_key, self.secret_key = self._read()
        return super().get_frozen_credentials()

    def _read(self) -> tuple[str, str]:
        """Both of one version: Kubernetes replaces all files of a Secret at once, but perhaps between two reads."""
        while True:
            first, second = (tuple(file.value() for file in self._files) for _ in range(2))
            if first == second:
                access_key, secret_key = second
                return access_key, secret_key


class FileProvider(CredentialProvider):
    METHOD = "files"

    def load(self) -> FileCredentials | None:
        """Raises InvalidRequest if one file alone is named, or is there, or one is empty."""
        paths = [Path(os.environ[name]) for name in (ID_VARIABLE, SECRET_VARIABLE) if os.environ.get(name)]
        if len(paths) == 1:
            raise InvalidRequest(f"{ID_VARIABLE} and {SECRET_VARIABLE} must be set together")
        if not any(path.exists() for path in paths):
            return None
        return FileCredentials(*paths)


def read_files_first(chain: CredentialResolver) -> None:
    """Put the files in front of boto3's chain of credentials."""
    chain.providers.insert(0, FileProvider())


def _not_empty(content: str, where: str) -> str:
    value = content.strip()
    if not value:
        raise InvalidRequest(f"{where}: the file is empty")
    return value
