"""The manifest of a bank, a versioned set of adapters with their router, and its layout in the store.

In the store:

    adapters/<name>/<version>/{adapter_config.json,adapter_model.safetensors}
    routers/<version>/{router.json,router.safetensors}
    encoders/<version>/{config.json,model.safetensors,tokenizer.json}    of a router with an encoder of its owner
    banks/<version>.json     the manifest: immutable, with size and sha256 of every file
    current.json             the pointer: which manifest serves, which is a canary and which a shadow
    trials/<id>/<replica>.json    what each ingress replica has counted of a canary or a shadow

Versions of adapters, routers and (unless named) banks derive from their content. A manifest is untrusted input: its
names, paths and digests are checked. `dlp_core.bank.publish` writes all this.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal, Self, TypeAlias

from pydantic import (
    AfterValidator,
    AwareDatetime,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from dlp_core.adapter.base_names import BaseNames
from dlp_core.adapter.contents import CONFIG_FILE, WEIGHTS_FILE
from dlp_core.adapter.invocation import MAX_TOKENS, Invocation
from dlp_core.adapter.names import AUTO, qualify, validate_name
from dlp_core.adapter.prompting import PROMPT_FILE
from dlp_core.errors import InvalidRequest
from dlp_core.fleet.trial import Lottery, Signal, StickyBy
from dlp_core.mix import MAX_WEIGHT, Mix
from dlp_core.router import files as router_files
from dlp_core.router import sentence_encoder
from dlp_core.store.files import Digest, FileEntry, Sha256, digest_of
from dlp_core.store.records import Record
from dlp_core.together import Pair, Together, pair_of

POINTER_KEY = "current.json"
MANIFESTS = "banks/"
"""What the keys of manifests begin with."""
TRIALS = "trials/"
"""What the keys of counts begin with."""


def _checked_name(name: str) -> str:
    try:
        return validate_name(name)
    except InvalidRequest as error:
        raise ValueError(error.message) from None


Name = Annotated[str, AfterValidator(_checked_name)]


class _Blob(Record):
    """Files under one prefix that are always used together."""

    FILES: ClassVar[tuple[str, ...]]
    OPTIONAL: ClassVar[tuple[str, ...]] = ()
    """Files after those, all or none."""

    version: Name
    files: tuple[FileEntry, ...]
    digest: Digest

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    @model_validator(mode="after")
    def _check_files(self) -> Self:
        paths = tuple(file.path for file in self.files)
        if paths != self.FILES and (not self.OPTIONAL or paths != (*self.FILES, *self.OPTIONAL)):
            raise ValueError(f"files must be exactly {', '.join(self.FILES)}")
        if self.digest != digest_of(self.files):
            raise ValueError("the digest does not match the files")
        return self


MAX_DESCRIPTION = 500
"""Characters of an adapter's description."""

Description = Annotated[str, Field(min_length=1, max_length=MAX_DESCRIPTION)]


TokenId = Annotated[int, Field(ge=0, lt=2**31)]


class AdapterEntry(_Blob):
    """One adapter of a bank. `rank` is its largest rank, `modules` the layer types it changes (`q_proj`)."""

    # an adapter with `routed` false is used by name only: the bank's router does not know it

    FILES: ClassVar[tuple[str, ...]] = (CONFIG_FILE, WEIGHTS_FILE)
    OPTIONAL: ClassVar[tuple[str, ...]] = (PROMPT_FILE,)

    name: Name
    rank: int = Field(ge=1)
    modules: tuple[str, ...]
    routed: bool = True
    description: Description | None = None
    """What it is for, in a sentence."""
    alora_invocation_tokens: tuple[TokenId, ...] | None = Field(default=None, min_length=1, max_length=MAX_TOKENS)
    """Of an activated adapter: the tokens from which on it runs (dlp_core.adapter.invocation), as its config has them.
    Of others nothing is written: manifests without activated adapters are what they were."""

    @property
    def invocation(self) -> Invocation | None:
        return self.alora_invocation_tokens

    @model_serializer(mode="wrap")
    def _without_unset(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        written: dict[str, Any] = write(self)
        if self.alora_invocation_tokens is None:
            written.pop("alora_invocation_tokens", None)
        return written

    def key(self, file: str) -> str:
        """The key of `file` in the store."""
        return f"adapters/{self.name}/{self.version}/{file}"

    @property
    def qualified_name(self) -> str:
        """The engine's name for it: `name@version`."""
        return qualify(self.name, self.version)

    def __str__(self) -> str:
        return f"adapter {self.name!r} version {self.version}"


class RecipePart(Record):
    """One adapter of a recipe. `weight` multiplies the adapter's own scaling, as in any mix."""

    adapter: Name
    weight: float = Field(ge=-MAX_WEIGHT, le=MAX_WEIGHT, allow_inf_nan=False)
    digest: Digest | None = None
    """Of the adapter that the weight was fitted with."""


class RecipeFit(Record):
    """How a recipe did on rows that were held back when it was fitted (dlp_core/train/mixes.py). Losses are in nats a
    token."""

    rows: int = Field(ge=0)
    held_back: int = Field(ge=0)
    """Of the rows."""
    loss: float = Field(allow_inf_nan=False)
    plain_loss: float = Field(allow_inf_nan=False)
    """Of the backbone alone."""
    best_adapter: Name
    """The single adapter that did best on the other rows."""
    best_adapter_loss: float = Field(allow_inf_nan=False)


class RecipeEntry(Record):
    """A mix of a bank's adapters under a name of its own. It lies in the manifest; there are no files."""

    name: Name
    adapters: tuple[RecipePart, ...] = Field(min_length=1)
    routed: bool = True
    """Whether the bank's router knows it."""
    description: Description | None = None
    """What it is for, in a sentence."""
    fitted: RecipeFit | None = None
    """None for one whose weights somebody chose."""

    @property
    def mix(self) -> Mix:
        parts = Mix.of([(part.adapter, part.weight) for part in self.adapters])
        return Mix(parts.adapters, recipes=(self.name,))

    @property
    def content(self) -> dict[str, object]:
        """What it is, without its name and without what the router knows: as its file has it."""
        return self.model_dump(mode="json", exclude={"name", "routed"}, exclude_none=True)

    @model_validator(mode="after")
    def _check_parts(self) -> Self:
        names = [part.adapter for part in self.adapters]
        if len(set(names)) < len(names):
            raise ValueError(f"recipe {self.name!r} names an adapter twice; give it one weight")
        if not all(part.weight for part in self.adapters):
            raise ValueError(f"recipe {self.name!r} has a weight of 0; leave that adapter out")
        return self


class EncoderEntry(_Blob):
    """The encoder that a router's owner has brought."""

    FILES: ClassVar[tuple[str, ...]] = sentence_encoder.FILES

    def key(self, file: str) -> str:
        """The key of `file` in the store."""
        return f"encoders/{self.version}/{file}"

    def __str__(self) -> str:
        return f"encoder version {self.version}"


class RouterEntry(_Blob):
    """The router of a bank. `labels` are names of adapters and recipes in output order."""

    FILES: ClassVar[tuple[str, ...]] = (router_files.CONFIG_FILE, router_files.WEIGHTS_FILE)

    labels: tuple[Name, ...]
    encoder: EncoderEntry | None = None

    def key(self, file: str) -> str:
        """The key of `file` in the store."""
        return f"routers/{self.version}/{file}"

    def __str__(self) -> str:
        return f"router version {self.version}"


Blob: TypeAlias = AdapterEntry | RouterEntry | EncoderEntry

MAX_PAIRS = 20_000
"""Pairs that a bank may list: all pairs of 200 adapters."""

Pairs = Annotated[tuple[tuple[Name, Name], ...], Field(max_length=MAX_PAIRS)]


class BaseModelEntry(Record):
    """The base model on which all adapters of a bank were trained."""

    id: str = Field(min_length=1)
    aliases: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Other names of it."""
    weights: tuple[Digest, ...] = ()
    """The digest of its weights (dlp_core.store.weights), and of copies that serve as well; empty if nobody told."""

    @property
    def names(self) -> BaseNames:
        return BaseNames(self.id, self.aliases)


class BankManifest(Record):
    """Everything served under one version. Adapters are in bank order: by name."""

    format: Literal[1] = 1
    version: Name
    created: AwareDatetime
    base_model: BaseModelEntry
    adapters: tuple[AdapterEntry, ...] = Field(min_length=1)
    router: RouterEntry | None
    recipes: tuple[RecipeEntry, ...] = Field(default=(), exclude_if=lambda recipes: not recipes)
    """By name. A bank without any is written as before there were recipes."""
    allowed_together: Pairs | None = Field(default=None, exclude_if=lambda pairs: pairs is None)
    """The adapters that may run on one token, two by two, in order. None: any may, and nothing is written."""
    digest: Digest

    @property
    def entries(self) -> Sequence[AdapterEntry | RecipeEntry]:
        """The adapters, then the recipes."""
        return [*self.adapters, *self.recipes]

    @property
    def names(self) -> Sequence[str]:
        """What a request may name as its model, besides the base model: adapters, then recipes."""
        return [entry.name for entry in self.entries]

    @property
    def routed_names(self) -> Sequence[str]:
        """What the router chooses from, by name."""
        return routed_names(self.adapters, self.recipes)

    @property
    def recipe_mixes(self) -> dict[str, Mix]:
        """The mix of each recipe."""
        return {recipe.name: recipe.mix for recipe in self.recipes}

    @property
    def together(self) -> Together:
        """What may be mixed."""
        return Together(self.allowed_together, {name: mix.names for name, mix in self.recipe_mixes.items()})

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(blob.size for blob in self.blobs())

    def blobs(self) -> Sequence[Blob]:
        """The adapters, the router, and its encoder if it has one."""
        if self.router is None:
            return self.adapters
        return (*self.adapters, self.router, *([] if self.router.encoder is None else [self.router.encoder]))

    def objects(self) -> Sequence[tuple[str, FileEntry]]:
        """Every file of the bank, by its key in the store."""
        return [(blob.key(file.path), file) for blob in self.blobs() for file in blob.files]

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        names = [adapter.name for adapter in self.adapters]
        if names != sorted(set(names)):
            raise ValueError("adapters must be sorted by name, without duplicates")
        for reserved in (AUTO, self.base_model.id):
            if reserved in names:
                raise ValueError(f"an adapter cannot be called {reserved!r}: that model name is reserved")
        self._check_recipes(set(names))
        if self.allowed_together is not None:
            if self.allowed_together != ordered_pairs(self.allowed_together):
                raise ValueError("allowed_together must have its pairs in order, and both names of each")
            self._check_pairs(set(names))
        routed = self.routed_names
        if self.router is not None and sorted(self.router.labels) != routed:
            raise ValueError(labels_problem(self.router.labels, routed))
        digest = bank_digest(self.base_model, self.adapters, self.router, self.recipes, self.allowed_together)
        if self.digest != digest:
            raise ValueError("the digest does not match the content")
        return self

    def _check_recipes(self, adapters: set[str]) -> None:
        names = [recipe.name for recipe in self.recipes]
        if names != sorted(set(names)):
            raise ValueError("recipes must be sorted by name, without duplicates")
        for recipe in self.recipes:
            if recipe.name in (AUTO, self.base_model.id):
                raise ValueError(f"a recipe cannot be called {recipe.name!r}: that model name is reserved")
            if recipe.name in adapters:
                raise ValueError(f"{recipe.name!r} is an adapter and a recipe; give the recipe another name")
            for part in recipe.adapters:
                if part.adapter not in adapters:
                    raise ValueError(
                        f"recipe {recipe.name!r} mixes adapter {part.adapter!r}, which this bank does not have; bring "
                        "it back, fit the recipe again, or remove it with `dlp mix remove`"
                    )

    def _check_pairs(self, adapters: set[str]) -> None:
        for one, other in self.allowed_together or ():
            if one == other:
                raise ValueError(f"allowed_together pairs {one!r} with itself; a pair has two adapters")
            for name in (one, other):
                if name not in adapters:
                    raise ValueError(
                        f"allowed_together has the pair {one!r}, {other!r}, and {name!r} is not an adapter of this "
                        "bank; remove the pair"
                    )
        for before, pair in pairwise(self.allowed_together or ()):
            if before == pair:
                raise ValueError(f"allowed_together has the pair {pair[0]!r}, {pair[1]!r} twice; remove one")
        together = Together(self.allowed_together)
        for recipe in self.recipes:
            if (conflict := together.conflict(recipe.mix.names)) is not None:
                raise ValueError(
                    f"recipe {recipe.name!r} mixes {conflict[0]!r} and {conflict[1]!r}, which allowed_together does "
                    "not have; add the pair, fit the recipe again, or remove it with `dlp mix remove`"
                )


class _Reference(Record):
    """A bank by its version, with the digest of its manifest."""

    version: Name
    manifest_sha256: Sha256


class Canary(_Reference):
    """A bank that serves a share of the requests beside the current one, on trial (dlp_core/fleet/trial.py)."""

    id: Name
    """Of this trial: it salts the draws, and names the counts."""
    share: float = Field(gt=0, lt=1)
    sticky_by: StickyBy = "user"
    began: AwareDatetime
    promote_after_requests: int | None = Field(default=None, ge=1)
    """Requests of the canary after which it is promoted unless there was an alarm. None: no such condition."""
    promote_after_hours: float | None = Field(default=None, gt=0)
    """The same in hours. Without either condition nothing is promoted by itself; with both, both must hold."""
    overlooks: tuple[Signal, ...] = ()
    """Signals that are no evidence against it. A router that was trained to refuse more is meant to."""

    @property
    def lottery(self) -> Lottery:
        return Lottery(self.id, self.share, self.sticky_by, self.overlooks)


class CanaryEnd(Record):
    """How the last canary ended."""

    id: Name
    version: Name
    ended: AwareDatetime
    outcome: Literal["promoted", "stopped", "rolled_back"]
    """`rolled_back`: by its trial's alarm."""
    reason: str


class Shadow(_Reference):
    """A bank that answers nobody: what it would do is compared with what the current one does."""

    id: Name
    """Names the counts."""
    began: AwareDatetime
    generate: bool = False
    """Whether answers are compared, not only mixes."""


class Pointer(_Reference):
    """`current.json`: the current bank, the previous one, and when it was published.

    It is the only object that ever changes, and every change is a conditional write: a publish, rollback, canary, pin
    or garbage collection applies to the state it has read, or gets Conflict.
    """

    previous: Name | None
    published: AwareDatetime
    pinned: tuple[Name, ...] = ()
    """Versions that `dlp bank gc` must keep, by name."""
    collecting: AwareDatetime | None = None
    """Last heartbeat of the running garbage collection; None if none is running."""
    collected: AwareDatetime | None = None
    """When the last one ended. An etag may be a hash of the content: a pointer that was claimed and released must
    differ from before, or a publisher that started earlier would not notice."""
    canary: Canary | None = None
    canary_end: CanaryEnd | None = None
    """Of the last canary that ended."""
    shadow: Shadow | None = None

    @property
    def versions(self) -> tuple[str, ...]:
        """The versions it names, each once: the current one first."""
        beside = [one.version for one in (self.canary, self.shadow) if one is not None]
        previous = [] if self.previous is None else [self.previous]
        return tuple(dict.fromkeys([self.version, *beside, *previous, *self.pinned]))


def routed_names(adapters: Iterable[AdapterEntry], recipes: Iterable[RecipeEntry]) -> list[str]:
    """What the router of a bank with these adapters and recipes chooses from, by name."""
    entries: list[AdapterEntry | RecipeEntry] = [*adapters, *recipes]
    return sorted(entry.name for entry in entries if entry.routed)


def ordered_pairs(pairs: Iterable[Pair]) -> tuple[Pair, ...]:
    """The pairs as a manifest has them."""
    return tuple(sorted(pair_of(*pair) for pair in pairs))


def labels_problem(labels: Sequence[str], names: Sequence[str]) -> str:
    """Describe how a router's labels differ from what it should choose from."""
    unknown, missing = sorted(set(labels) - set(names)), sorted(set(names) - set(labels))
    differ = f"unknown: {_some(unknown)}, missing: {_some(missing)}"
    return f"router labels must be the names of adapters and recipes, each once ({differ})"


def _some(names: Sequence[str]) -> str:
    return str(names[:8]) + (f" and {len(names) - 8:,} more" if len(names) > 8 else "")


def bank_digest(
    base: BaseModelEntry,
    adapters: Sequence[AdapterEntry],
    router: RouterEntry | None,
    recipes: Sequence[RecipeEntry] = (),
    allowed_together: Sequence[Pair] | None = None,
) -> str:
    """`sha256:<hex>` over the canonical JSON of the bank's content, without version and date."""
    content: dict[str, object] = {
        "base_model": base.id,
        "adapters": {adapter.name: adapter.digest for adapter in adapters},
        "router": router.digest if router else None,
    }
    if router is not None and router.encoder is not None:
        content["encoder"] = router.encoder.digest
    if base.aliases:
        content["aliases"] = base.aliases
    if base.weights:
        content["weights"] = base.weights
    descriptions = {adapter.name: adapter.description for adapter in adapters if adapter.description}
    if descriptions:
        content["descriptions"] = descriptions
    if recipes:
        content["recipes"] = {recipe.name: recipe.content for recipe in recipes}
    if allowed_together is not None:
        content["allowed_together"] = allowed_together
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return f"sha256:{hashlib.sha256(canonical.encode()).hexdigest()}"


def manifest_key(version: str) -> str:
    """The key of the manifest of `version`."""
    return f"{MANIFESTS}{version}.json"


def version_at(key: str) -> str:
    """The version whose manifest lies at `key`: the inverse of `manifest_key`."""
    return key.removeprefix(MANIFESTS).removesuffix(".json")
