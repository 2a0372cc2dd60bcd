"""The file of values: all that an installation on Kubernetes may say about itself, each value explained once.

`args` and `deployments` are those of serve_config.yaml; everything else belongs to Kubernetes. schema.py makes the
schema of the file from these classes, reading.py reads it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator, model_validator

FORMS = {
    r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$": "a name of lower-case letters, digits, dots and dashes",
    r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$": "a name of at most 63 lower-case letters, digits and dashes",
    r"^[1-9][0-9]*(\.[0-9]+)?(Mi|Gi|Ti)$": "an amount such as 16Gi or 512Mi",
    r"^(s3|gs|az)://[^/\s]+/\S*$": "a place such as s3://bucket/prefix/, or of gs:// or az://",
    r"^([a-z0-9.-]+(:[0-9]+)?/)?[a-z0-9._/-]*[a-z0-9]$": "a repository such as ghcr.io/team/dlp-serve, without a tag",
    r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$": "a name of letters, digits, dots, dashes and underscores",
}
"""What a value must look like, in words."""
_NAME, _LABEL, _BYTES, _STORE, _REPOSITORY, _WORD = FORMS

Name = Annotated[str, Field(pattern=_NAME)]
"""Of an object of Kubernetes."""
Label = Annotated[str, Field(pattern=_LABEL)]
"""Of a namespace."""
Bytes = Annotated[str, Field(pattern=_BYTES)]
Cpus = Annotated[float, Field(gt=0)]
Port = Annotated[int, Field(ge=1, le=65535)]
Store = Annotated[str, Field(pattern=_STORE)]
Word = Annotated[str, Field(pattern=_WORD)]

_VARIABLE = re.compile("[A-Za-z_][A-Za-z0-9_]*")
MANIFESTS = Path(__file__).parent / "manifests"
"""The files of k8s/, which come with the package."""
_SECRET = re.compile("(SECRET|PASSWORD|TOKEN|ACCESS_KEY|ACCOUNT_KEY)(?!.*_FILE$)")
"""Names of variables that hold secrets, and not the name of a file that does."""


class _Values(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class ModelVolume(_Values):
    """A volume that outlives pods and holds the base model, which is then fetched once and not by every pod."""

    size: Bytes = Field(examples=["20Gi"])
    """Of the claim: the model and a tenth."""
    storage_class: Name | None = None
    """One that offers ReadWriteMany (EFS, Filestore, Azure Files, CephFS). Left out: the cluster's default class."""
    access_mode: Literal["ReadWriteMany", "ReadWriteOnce", "ReadOnlyMany"] = "ReadWriteMany"
    """ReadWriteOnce for a disk, with all backbones on one node; ReadOnlyMany for a volume that was filled before."""


class ModelValues(_Values):
    """The base model."""

    uri: Store = Field(examples=["s3://my-bucket/models/Llama-3.1-8B-Instruct/"])
    """Where `dlp model push` put it."""
    name: Word | None = None
    """The name that the bank's adapters have for it. Left out: the last part of `uri`."""
    disk: Bytes | None = None
    """Room for it on the disk of each backbone pod. Left out: that of the GPU's size, and 40Gi on CPUs."""
    volume: ModelVolume | None = None
    """Left out: each pod fetches the model to its own disk."""

    @model_validator(mode="after")
    def _check_disk(self) -> Self:
        if self.disk and self.volume:
            raise ValueError("disk and volume both hold the model; leave one out")
        return self

    @property
    def folder(self) -> str:
        """Where pods have it."""
        return f"/models/{self.name or self.uri.rstrip('/').rpartition('/')[2]}"


class GpuValues(_Values):
    """NVIDIA GPUs of the backbones. Sizes are computed for Llama 3.1 8B, and for Qwen2.5 32B with 80gb."""

    size: Literal["24gb", "40gb", "80gb"] = Field(examples=["24gb"])
    """Memory of one. For another size take the next smaller, and change args.engine as `dlp k8s size` says."""
    count: Annotated[int, Field(ge=1, le=8)] = 1
    """For each backbone. Only engine vllm splits a model over several."""


class ImageValues(_Values):
    """The images that were built of the Dockerfile: <repository>:<version>-cpu, -cuda and -vllm."""

    repository: Annotated[str, Field(pattern=_REPOSITORY)] = "dlp-serve"
    """With the registry, without a tag."""
    version: Word | None = None
    """Left out: the version of this `dlp`."""
    pull_secrets: list[Name] = []
    """Names of Secrets with the registry's credentials (kubectl create secret docker-registry)."""


class KeyValues(_Values):
    """API keys. Left out, callers need a key, and a first one is made in the Secret dlp-keys where there is none."""

    secret: Name | None = None
    """A Secret of yours whose keys.yaml has the keys; none is made then."""
    open: bool = False
    """true: whoever reaches the service may use it, without a key."""

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        if self.open and self.secret:
            raise ValueError("secret has keys and open wants none; leave one out")
        return self


class Count(_Values):
    """Bounds between which Serve chooses."""

    min: Annotated[int, Field(ge=0)]
    """At least so many. 0 costs nothing while idle; the next request waits for a start."""
    max: Annotated[int, Field(ge=1)]
    """At most so many."""

    @model_validator(mode="before")
    @classmethod
    def _fixed(cls, value: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool):
            return {"min": value, "max": value}
        if not isinstance(value, (dict, Count)):
            raise ValueError("a number, or min and max")
        return value

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}")
        return self


class ReplicaValues(_Values):
    """Replicas of the three deployments: a number, or bounds for Serve's autoscaling."""

    ingress: Count | None = Field(default=None, examples=[{"min": 1, "max": 4}])
    """Of the HTTP API. Left out: 1 to 4."""
    router: Count | None = Field(default=None, examples=[{"min": 1, "max": 8}])
    """Of the router. Left out: 1 to 8."""
    backbone: Count | None = Field(default=None, examples=[1])
    """Of the backbone, each in a pod of its own. Left out: 1 to 4."""

    def bounds(self, deployment: str) -> Count | None:
        """Those of a deployment by its name in serve_config.yaml. None: as shipped."""
        return {"Ingress": self.ingress, "Router": self.router, "FusedBackbone": self.backbone}[deployment]


class PodValues(_Values):
    """Pods of one kind."""

    cpu: Cpus | None = None
    """CPUs that each requests. Left out: as shipped."""
    memory: Bytes | None = None
    """That each requests, and may use. Left out: as shipped."""
    node_selector: dict[str, str] = {}
    """Labels of the nodes they run on."""
    tolerations: list[dict[str, JsonValue]] = []
    """Taints of nodes that they accept, beside those of GPUs."""


class RouterPodValues(PodValues):
    """Pods of the ingress and the router."""

    max: Annotated[int, Field(ge=1)] | None = None
    """At most so many. Left out: as many as the replicas of both need."""


class PodsValues(_Values):
    """Sizes of pods and the nodes they run on."""

    head: PodValues = PodValues()
    """The pod that manages the others."""
    router: RouterPodValues = RouterPodValues()
    """Those of the ingress and the router."""
    backbone: PodValues = PodValues()
    """Those of the backbones."""


class IngressValues(_Values):
    """An Ingress for clients outside the cluster."""

    host: Name = Field(examples=["llm.example.com"])
    """Its name in DNS."""
    class_name: Name = "nginx"
    """The IngressClass."""
    tls_secret: Name = "dlp-tls"
    """The Secret with the certificate of `host`."""
    annotations: dict[str, str] = {}
    """More of them, such as cert-manager's. Those for times, sizes and buffering are there for usual controllers."""


class GatewayValues(_Values):
    """A Gateway and an HTTPRoute for clients outside the cluster."""

    host: Name = Field(examples=["llm.example.com"])
    """Its name in DNS."""
    class_name: Name = "istio"
    """The GatewayClass."""
    tls_secret: Name = "dlp-tls"
    """The Secret with the certificate of `host`."""
    annotations: dict[str, str] = {}
    """Of the Gateway, such as cert-manager's."""


class MonitoringValues(_Values):
    """Scraping, alerts and a dashboard, for the Prometheus operator and Grafana."""

    namespace: Label = "monitoring"
    """Where they run."""
    release: str = "prometheus"
    """The label by which Prometheus selects: the name of its Helm release."""


class RedisValues(_Values):
    """The Redis that keeps the state of Ray's head."""

    image: str | None = None
    """Left out: as shipped."""
    storage_class: Name | None = None
    """Of its claim, which cannot be changed later. Left out: the cluster's default class."""


class Values(_Values):
    """An installation of dlp-serve on Kubernetes, for `dlp k8s render`."""

    bank: Store = Field(examples=["s3://my-bucket/bank/"])
    """Where `dlp bank publish` puts the bank: s3://bucket/prefix/, or gs://, or az://."""
    model: ModelValues
    """The base model, which the bank's adapters belong to."""
    environment: dict[str, str] = Field(default={}, examples=[{"AWS_REGION": "eu-central-1"}])
    """Variables of every Ray pod, such as AWS_REGION (left out: us-east-1), or AWS_ENDPOINT_URL_S3 for a store other
    than AWS. Not for secrets, which docs/values.md puts into Secrets."""
    engine: Literal["transformers", "vllm"] = "transformers"
    """What runs the model. vllm needs GPUs and the image of its own (docs/vllm.md)."""
    gpu: GpuValues | None = None
    """NVIDIA GPUs for the backbones. Left out: they run on CPUs."""
    namespace: Label = "dlp"
    """Where it is installed. One installation for each namespace."""
    image: ImageValues = ImageValues()
    """The images that were built of the Dockerfile: <repository>:<version>-cpu, -cuda and -vllm."""
    keys: KeyValues = KeyValues()
    """API keys. Callers need one, and a first one is made in the Secret dlp-keys where there is none."""
    replicas: ReplicaValues = ReplicaValues()
    """Replicas, and with them the pods of the backbones."""
    pods: PodsValues = PodsValues()
    """Sizes of pods and the nodes they run on."""
    service_account_annotations: dict[str, str] = Field(
        default={}, examples=[{"eks.amazonaws.com/role-arn": "arn:aws:iam::111122223333:role/dlp"}]
    )
    """Annotations of the account dlp, by which a cloud gives pods the role that reads the bank."""
    egress_ports: list[Port] = Field(default=[], examples=[[9000]])
    """TCP ports that Ray pods may reach beside 443, such as that of a store inside the cluster."""
    ingress: IngressValues | None = None
    """An Ingress for clients outside the cluster. Left out: there is none."""
    gateway: GatewayValues | None = None
    """The same by the Gateway API: a Gateway and an HTTPRoute. Left out: there is none."""
    monitoring: MonitoringValues | None = None
    """Scraping, alerts and a dashboard, for the Prometheus operator and Grafana. Left out: none."""
    console: bool = False
    """true: the web console, which needs the Secret dlp-console (docs/console.md)."""
    components: list[str] = []
    """More folders of k8s/components, such as logs, as they are shipped. Their kustomization.yaml says what they do."""
    redis: RedisValues = RedisValues()
    """The Redis that keeps the state of Ray's head."""
    args: dict[str, Any] = Field(
        default={},
        examples=[
            {
                "engine": {"slots": 32},
                "routing": {"fallback": "Llama-3.1-8B-Instruct"},
                "limits": {"request_timeout_s": 600},
            }
        ],
    )
    """Settings of the application, as in serve_config.yaml. Those left out are as shipped for the size. A longer
    limits.request_timeout_s lengthens all that waits for requests."""
    deployments: dict[str, dict[str, Any]] = Field(
        default={}, examples=[{"Router": {"autoscaling_config": {"target_ongoing_requests": 16}}}]
    )
    """Ray Serve's settings of Ingress, Router and FusedBackbone, as in serve_config.yaml."""

    @field_validator("environment")
    @classmethod
    def _check_environment(cls, value: dict[str, str]) -> dict[str, str]:
        for name in value:
            if not _VARIABLE.fullmatch(name):
                raise ValueError(f"{name!r} is not the name of a variable")
            if name in ("DLP_BANK", "DLP_BASE_MODEL", "DLP_BASE_MODEL_URI"):
                raise ValueError(f"{name} comes from bank and model")
            if _SECRET.search(name):
                raise ValueError(f"{name} looks like a secret, which would lie open in a ConfigMap; use a Secret")
        return value

    @field_validator("components")
    @classmethod
    def _check_components(cls, value: list[str]) -> list[str]:
        for name in value:
            if name not in optional_components():
                raise ValueError(
                    f"there is no {name} to choose; there are {', '.join(optional_components()) or 'none'}"
                )
        if len(set(value)) != len(value):
            raise ValueError("one is named twice")
        return value

    @model_validator(mode="after")
    def _check_edges(self) -> Self:
        if self.ingress and self.gateway:
            raise ValueError("ingress and gateway are two ways in for the same clients; leave one out")
        return self

    @model_validator(mode="after")
    def _check_engine(self) -> Self:
        if self.engine == "vllm" and self.gpu is None:
            raise ValueError("engine vllm needs gpu; on CPUs leave engine out")
        if self.engine != "vllm" and self.gpu is not None and self.gpu.count > 1:
            raise ValueError(f"gpu.count {self.gpu.count} needs engine vllm; transformers runs on one GPU")
        return self


def optional_components() -> list[str]:
    """Those that no other value chooses."""
    names = {folder.name for folder in (MANIFESTS / "components").iterdir() if folder.is_dir()}
    chosen = {"base-model-volume", "ingress", "gateway", "pull-secret"}
    return sorted(name for name in names - chosen if not name.endswith("gb"))
