"""The gate of a release: whether a bank answers worse than a baseline, or mixes adapters that spoil each other."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from dlp_core.bank.disk_cache import DiskCache
from dlp_core.bank.reading import find_current, load_manifest
from dlp_core.errors import NotFound
from dlp_core.eval.evaluation import Phase
from dlp_core.eval.judged_bank import open_bank, split_location
from dlp_core.eval.pairs import read as read_findings
from dlp_core.eval.pairs import spoiled_pairs, stored
from dlp_core.eval.results import Difference, Results, compare_banks, latest, read
from dlp_core.eval.run import Setup, run_evaluation
from dlp_core.eval.suite import Suite
from dlp_core.store.opening import open_store
from dlp_core.store.protocol import AdapterStore
from dlp_core.together import Pair


@dataclass(frozen=True, slots=True)
class Verdict:
    """A bank beside its baseline, under one arm."""

    old: Results
    new: Results
    difference: Difference
    max_drop: float
    spoiled: list[Pair] = field(default_factory=list)
    """The pairs of adapters that spoil each other, by what is known, and that the bank lets be mixed."""

    @property
    def worse(self) -> list[str]:
        """Tasks that lost more than `max_drop` points and more than noise."""
        return self.difference.worse(self.max_drop)

    @property
    def mean_worse(self) -> bool:
        """Whether the mean over tasks did."""
        return self.difference.overall.mean < -self.max_drop and self.difference.overall.high < 0

    @property
    def passed(self) -> bool:
        return not self.worse and not self.mean_worse and not self.spoiled


def judge(
    suite: Suite,
    arm: str,
    location: str,
    baseline: str,
    setup: Setup,
    *,
    max_drop: float,
    cache: DiskCache,
    journal: Path | None,
    pairs: Path | None = None,
    phase: Phase,
) -> Verdict:
    """Evaluate the bank at `location` and, unless its results are known, the one at `baseline`: a bank, or a file of
    results. What is known of pairs is what the stores of both banks have, and the file `pairs`, if it is there.

    Raises what run_evaluation raises, InvalidRequest for results of another suite or a file of something else.
    """
    history = _store_of(baseline)

    def results_of(where: str) -> Results:
        return run_evaluation(suite, [arm], where, setup, cache=cache, journal=journal, phase=phase, history=history)

    old = _known(baseline, suite, setup, arm) or results_of(baseline)
    new = results_of(location)
    findings = [each for store in (history, _store_of(location)) if store is not None for each in stored(store)]
    if pairs is not None and pairs.exists():
        findings.append(read_findings(pairs))
    spoiled: list[Pair] = []
    if findings:
        with open_bank(location, cache) as bank:
            spoiled = spoiled_pairs(bank.manifest, findings)
    return Verdict(old, new, compare_banks(new, old, arm), max_drop, spoiled)


def _store_of(location: str) -> AdapterStore | None:
    """The store of a published bank; None for a results file and for an unpublished folder."""
    if location.endswith(".json"):
        return None
    store = open_store(split_location(location)[0])
    return store if find_current(store) is not None else None


def _known(location: str, suite: Suite, setup: Setup, arm: str) -> Results | None:
    """Existing results of the baseline, None if there are none."""
    if location.endswith(".json"):
        return read(Path(location))
    store = _store_of(location)
    if store is None:
        return None
    version = load_manifest(store, split_location(location)[1]).version
    try:
        results = latest(store, version, suite=f"{suite.settings.name}-{suite.digest}", arms=[arm])
    except NotFound:
        return None
    return results if results.setup == setup.name() else None
