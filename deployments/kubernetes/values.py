"""The file of values: all that an installation on Kubernetes may say about itself, each value explained once.

`args` and `deployments` are those of serve_config.yaml; everything else belongs to Kubernetes. The schema for editors
comes from the same classes, and decides which names exist.
"""

from __future__ import annotations

import re
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, field_validator, model_validator
from pydantic_core import from_json, to_json

from deployments.args import AppArgs
from dlp_core.errors import InvalidRequest
from dlp_core.store.documents import parse_yaml, read_regular

_FORMS = {
    r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$": "a name of lower-case letters, digits, dots and dashes",
    r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$": "a name of at most 63 lower-case letters, digits and dashes",
    r"^[1-9][0-9]*(\.[0-9]+)?(Mi|Gi|Ti)$": "an amount such as 16Gi or 512Mi",
    r"^(s3|gs|az)://[^/\s]+/\S*$": "a place such as s3://bucket/prefix/, or of gs:// or az://",
    r"^([a-z0-9.-]+(:[0-9]+)?/)?[a-z0-9._/-]*[a-z0-9]$": "a repository such as ghcr.io/team/dlp-serve, without a tag",
    r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$": "a name of letters, digits, dots, dashes and underscores",
}
"""What a value must look like, in words."""
_NAME, _LABEL, _BYTES, _STORE, _REPOSITORY, _WORD = _FORMS

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
SET_ELSEWHERE = {
    "args.bank": "bank",
    "args.base_model": "model",
    "args.engine.kind": "engine",
    "args.engine.vllm.tensor_parallel": "gpu.count",
    "args.access.keys_file": "keys",
    "deployments.*.name": None,
    "deployments.*.num_replicas": "replicas",
    "deployments.*.autoscaling_config.min_replicas": "replicas",
    "deployments.*.autoscaling_config.max_replicas": "replicas",
    "deployments.*.ray_actor_options.num_gpus": "gpu.count",
    "deployments.*.user_config": None,
}
"""What of `args` and `deployments` another value decides, or nothing reads."""
DEPLOYMENTS = ("Ingress", "Router", "FusedBackbone")


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


def read_values(path: Path) -> Values:
    """The values in a YAML or JSON file. Raises InvalidRequest, which names the value."""
    try:
        document = parse_yaml(read_regular(path))
    except FileNotFoundError:
        raise InvalidRequest(f"{path} does not exist; `dlp k8s init {path}` writes one to edit") from None
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if not isinstance(document, dict):
        raise InvalidRequest(f"{path} has no values; `dlp k8s init` writes a file that has")
    try:
        document = from_json(to_json(document))  # as JSON has it: keys are strings, and there are no dates
        check_names(document)
        return Values.model_validate_json(to_json(document))
    except ValidationError as error:
        raise InvalidRequest(problem(error)) from None
    except ValueError as error:
        raise InvalidRequest(str(error)) from None


def problem(error: ValidationError, prefix: str = "") -> str:
    """The first error in one line: the place of the value, what is wrong, and the value if it is a short one."""
    first = error.errors(include_url=False)[0]
    place = ".".join([prefix] * bool(prefix) + [str(part) for part in first["loc"]])
    given, message = first.get("input"), first["msg"].removeprefix("Value error, ")
    if form := _FORMS.get(first.get("ctx", {}).get("pattern", "")):
        message = f"{given!r} is not {form}"
    elif first["type"] not in ("missing", "value_error") and not isinstance(given, (dict, list)):
        message = f"{message}, not {to_json(given).decode()}"
    return f"{place}: {message}" if place else message


def check_names(document: dict[str, Any]) -> None:
    """Raises ValueError for a name that the schema does not have, with the nearest that it has, and for a value that
    another one decides."""
    for place in places(document):
        for pattern, other in SET_ELSEWHERE.items():
            if _matches(place, pattern.split(".")):
                instead = f"comes from {other}: set that instead" if other else "has no effect here: leave it out"
                raise ValueError(f"{'.'.join(place)} {instead}")
    _check_names(document, json_schema(), ())


def places(value: Any, place: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Every key of nested mappings, as its path."""
    if not isinstance(value, dict):
        return []
    here = [(*place, str(key)) for key in value]
    return here + [found for key, item in value.items() for found in places(item, (*place, str(key)))]


def _matches(place: tuple[str, ...], pattern: list[str]) -> bool:
    return len(place) == len(pattern) and all(part in (name, "*") for name, part in zip(place, pattern, strict=True))


def _check_names(value: Any, schema: dict[str, Any], place: tuple[str, ...]) -> None:
    schema = _resolved(schema)
    if isinstance(value, dict) and (known := schema.get("properties")) is not None:
        for name, item in value.items():
            if name in known:
                _check_names(item, known[name], (*place, name))
            elif not schema.get("additionalProperties"):
                nearest = get_close_matches(name, known, n=1) or [each for each in known if name in each]
                where = f" in {'.'.join(place)}" if place else ""
                hint = f"did you mean {nearest[0]}?" if nearest else f"there are {', '.join(known)}"
                raise ValueError(f"{'.'.join((*place, name))}: there is no {name}{where}; {hint}")


def _resolved(schema: dict[str, Any]) -> dict[str, Any]:
    """The object that a schema allows, through references and beside null."""
    for choice in schema.get("anyOf", [schema]):
        if "$ref" in choice:
            return _resolved(json_schema()["$defs"][choice["$ref"].rpartition("/")[2]])
        if "properties" in choice:
            return dict(choice)
    return {}


@lru_cache(maxsize=1)
def json_schema() -> dict[str, Any]:
    """The JSON schema of the file, draft 2020-12. `args` and `deployments` are those of the classes that read them,
    less what other values decide; nothing of them is required, and their defaults depend on the size."""
    from ray.serve.schema import DeploymentSchema

    schema = Values.model_json_schema()
    definitions = schema["$defs"]
    parts: dict[str, dict[str, Any]] = {
        "args": AppArgs.model_json_schema(),
        "deployments": DeploymentSchema.model_json_schema(),
    }
    for part in parts.values():
        for definition in (part, *part.get("$defs", {}).values()):
            definition.pop("required", None)
            definition.pop("title", None)
            if "properties" in definition:
                definition.setdefault("additionalProperties", False)
                for each in definition["properties"].values():
                    each.pop("default", None)
                    if any("$ref" in choice for choice in each.get("anyOf", [])):  # Ray takes any object beside it
                        each["anyOf"] = [c for c in each["anyOf"] if c.get("additionalProperties") is not True]
        definitions |= part.pop("$defs", {})
    definitions["Args"], definitions["Deployment"] = parts["args"], parts["deployments"]
    definitions["Count"] = {"anyOf": [{"type": "integer", "minimum": 1}, definitions["Count"]]}
    for pattern in SET_ELSEWHERE:
        _remove(definitions, pattern.split("."))
    described = schema["properties"]
    described["args"] |= {"type": "object", "$ref": "#/$defs/Args"}
    described["args"].pop("additionalProperties")
    described["deployments"] |= {
        "properties": {name: {"$ref": "#/$defs/Deployment"} for name in DEPLOYMENTS},
        "additionalProperties": False,
    }
    described["components"]["items"] = {"enum": optional_components()}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _remove(definitions: dict[str, Any], pattern: list[str]) -> None:
    """Takes a property out of what `args` or `deployments` may have."""
    root, *path = pattern
    found = definitions["Args" if root == "args" else "Deployment"]
    if root == "deployments":
        path = path[1:]
    for name in path[:-1]:
        step = found["properties"][name]
        reference = next(choice["$ref"] for choice in (step, *step.get("anyOf", [])) if "$ref" in choice)
        found = definitions[reference.rpartition("/")[2]]
    del found["properties"][path[-1]]
