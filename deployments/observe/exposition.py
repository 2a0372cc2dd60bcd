"""Prometheus text of several nodes, read and merged into one.

Ray's agents export what the processes of their node record, as `ray_dlp_...` with labels of Ray's own. Here the
application's metrics have the names that metrics.py gives them and, beside their own labels, `deployment` and
`replica`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain

from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

Series = tuple[str, tuple[tuple[str, str], ...]]
"""The name of a sample, and its labels in order."""

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
PREFIX = "ray_"
OURS = f"{PREFIX}dlp_"
_RAYS_LABELS = ("application", "Component", "NodeAddress", "SessionName", "Version", "WorkerId", "otel_scope_")


def series_of(sample: Sample) -> Series:
    return sample.name, tuple(sorted(sample.labels.items()))


def application_families(text: str, application: str) -> Iterator[Metric]:
    """An application's metrics in what a node's agent exports. Raises ValueError if it is not Prometheus text."""
    starts = (OURS, f"# HELP {OURS}", f"# TYPE {OURS}")
    kept = "\n".join(line for line in text.split("\n") if line.startswith(starts))  # few of thousands
    for family in text_string_to_metric_families(f"{kept}\n"):
        samples = [
            sample._replace(
                name=sample.name.removeprefix(PREFIX),
                labels={label: value for label, value in sample.labels.items() if not label.startswith(_RAYS_LABELS)},
            )
            for sample in family.samples
            if sample.labels.get("application") == application
        ]
        if samples:
            renamed = Metric(family.name.removeprefix(PREFIX), family.documentation, family.type)
            renamed.samples = samples
            yield renamed


class Merged(Collector):
    """Metrics of several nodes as one. Where two nodes, or two processes of one, have the same series, counters and
    histograms are added up and the larger gauge is taken."""

    def __init__(self, nodes: Iterable[Iterable[Metric]]) -> None:
        self._families: dict[str, Metric] = {}
        self._series: dict[str, dict[Series, Sample]] = {}
        for family in chain.from_iterable(nodes):
            self._families.setdefault(family.name, family)
            series = self._series.setdefault(family.name, {})
            for sample in family.samples:
                key = series_of(sample)
                values = [same.value for same in (series.get(key), sample) if same is not None]
                series[key] = sample._replace(value=max(values) if family.type == "gauge" else sum(values))

    def collect(self) -> Iterator[Metric]:
        for name, series in sorted(self._series.items()):
            family = self._families[name]
            merged = Metric(name, family.documentation, family.type)
            merged.samples = list(series.values())
            yield merged

    def text(self) -> bytes:
        """Prometheus text, of the type CONTENT_TYPE."""
        return generate_latest(self)
