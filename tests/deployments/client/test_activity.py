"""What two readings of /metrics say of a server."""

from __future__ import annotations

import pytest

from deployments.client.activity import Activity, AdapterActivity, Reading

FIRST = """\
dlp_adapter_hits_total{adapter="cron",replica="i1"} 10
dlp_adapter_hits_total{adapter="cron",replica="i2"} 5
dlp_adapter_hits_total{adapter="sql",replica="i1"} 3
dlp_adapter_in_slot{adapter="cron",replica="b1"} 1
dlp_adapter_in_slot{adapter="sql",replica="b1"} 0
dlp_adapter_in_slot{adapter="gone",replica="b1"} 0
dlp_adapter_loads_total{adapter="cron",replica="b1"} 2
dlp_adapters_resident{tier="device",replica="b1"} 1
dlp_adapters_resident{tier="device",replica="b2"} 2
dlp_adapters_resident{tier="disk",replica="b1"} 8
dlp_adapters_resident{tier="disk",replica="b2"} 8
dlp_cache_use{replica="b1"} 0.25
dlp_cache_use{replica="b2"} 0.5
dlp_requests_running{deployment="FusedBackbone",replica="b1"} 2
dlp_requests_running{deployment="FusedBackbone",replica="b2"} 1
dlp_requests_waiting{replica="b1"} 4
dlp_requests_total{error_code="none",replica="i1",status="200"} 20
dlp_requests_total{error_code="client_disconnected",replica="i1",status="499"} 1
dlp_requests_total{error_code="queue_full",replica="i1",status="429"} 2
dlp_tokens_total{kind="prompt",replica="b1"} 1000
dlp_tokens_total{kind="completion",replica="b1"} 100
dlp_scrape_incomplete 0
dlp_bank_refused{deployment="Ingress",replica="i1"} 0
dlp_bank_refused{deployment="Ingress",replica="i2"} 0
"""
BUCKETS = """\
# TYPE dlp_time_to_first_token_seconds histogram
dlp_time_to_first_token_seconds_bucket{{le="0.1",replica="b1"}} {}
dlp_time_to_first_token_seconds_bucket{{le="0.2",replica="b1"}} {}
dlp_time_to_first_token_seconds_bucket{{le="+Inf",replica="b1"}} {}
"""


def activity(first: str, second: str | None = None) -> Activity:
    if second is None:
        return Activity.of(Reading.of(first, 100.0))
    return Activity.of(Reading.of(second, 110.0), Reading.of(first, 100.0))


def test_one_reading_has_totals_and_no_rates() -> None:
    found = activity(FIRST)
    assert (found.seconds, found.recent) == (None, None)
    assert (found.total.requests, found.total.errors, found.errors) == (23, 2, {"queue_full": 2})
    assert (found.total.prompt_tokens, found.total.completion_tokens) == (1000, 100)
    assert (found.running, found.waiting, found.cache_use) == (3, 4, 0.5)
    assert found.replicas == {"FusedBackbone": 2, "Ingress": 2}
    assert found.resident == {"device": 3, "disk": 8, "host": 0}
    assert found.total.first_token is None
    assert found.adapters == [
        AdapterActivity("cron", in_slots=1, hits=15, loads=2, hits_per_second=None),
        AdapterActivity("sql", in_slots=0, hits=3, loads=0, hits_per_second=None),
    ]


def test_two_readings_have_rates() -> None:
    later = FIRST.replace('sql",replica="i1"} 3', 'sql",replica="i1"} 33').replace('"200"} 20', '"200"} 25')
    found = activity(FIRST, later)
    assert found.recent is not None
    assert (found.seconds, found.recent.requests, found.recent.errors) == (10, 5, 0)
    assert [(one.name, one.hits_per_second) for one in found.adapters] == [("sql", 3.0), ("cron", 0.0)]


def test_a_series_that_is_new_began_in_between() -> None:
    later = FIRST + 'dlp_adapter_hits_total{adapter="dates",replica="i1"} 20\n'
    assert activity(FIRST, later).adapters[0].hits_per_second == 2.0


def test_a_node_that_was_missing_and_is_back_is_no_burst() -> None:
    without = FIRST.replace('dlp_adapter_hits_total{adapter="cron",replica="i1"} 10\n', "")
    missing = without.replace("dlp_scrape_incomplete 0", "dlp_scrape_incomplete 1")
    found = activity(missing, FIRST)
    assert {one.hits_per_second for one in found.adapters} == {0.0}
    assert (activity(missing).missing_nodes, found.missing_nodes) == (1, 0)


def test_a_node_that_is_gone_takes_nothing_away() -> None:
    later = FIRST.replace('dlp_adapter_hits_total{adapter="cron",replica="i1"} 10\n', "").replace("} 5\n", "} 15\n")
    assert activity(FIRST, later).adapters[0].hits_per_second == 1.0
    began_again = FIRST.replace('"completion",replica="b1"} 100', '"completion",replica="b1"} 1')
    recent = activity(FIRST, began_again).recent
    assert recent is not None
    assert recent.completion_tokens == 0


@pytest.mark.parametrize(
    ("buckets", "median", "high"),
    [
        ((10, 10, 10), 0.05, 0.095),
        ((0, 10, 10), 0.15, 0.195),  # an empty bucket is a bound all the same
        ((5, 10, 10), 0.1, 0.19),
        ((0, 0, 10), 0.2, 0.2),  # all that is known is that it was longer
    ],
)
def test_times_are_interpolated_in_their_bucket(buckets: tuple[int, ...], median: float, high: float) -> None:
    found = activity(BUCKETS.format(*buckets)).total.first_token
    assert found == pytest.approx((median, high))


def test_times_of_the_window_are_those_of_the_window_alone() -> None:
    found = activity(BUCKETS.format(10, 10, 10), BUCKETS.format(10, 20, 20))
    assert found.recent is not None
    assert found.recent.first_token == pytest.approx((0.15, 0.195))
