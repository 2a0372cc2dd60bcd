"""What happened, from two readings of the server's metrics."""

from __future__ import annotations

import pytest

from deployments.client.activity import Reading
from deployments.console.proxy import Api
from deployments.console.settings import ConsoleSettings
from deployments.console.traffic import Point, Traffic
from tests.support.http_server import QuietHandler, serving

BEFORE = """
dlp_adapter_hits_total{adapter="cron",replica="a"} 5
dlp_adapter_hits_total{adapter="cron",replica="gone"} 100
dlp_mix_size_bucket{le="0.5",replica="a"} 1
dlp_mix_size_bucket{le="1.0",replica="a"} 3
dlp_mix_size_bucket{le="+Inf",replica="a"} 3
dlp_mix_size_count{replica="a"} 3
dlp_requests_running{replica="a"} 7
dlp_adapter_in_slot{adapter="cron",replica="a"} 1
process_cpu_seconds_total 4
"""
AFTER = """
dlp_adapter_hits_total{adapter="cron",replica="a"} 8
dlp_adapter_hits_total{adapter="shell",replica="b"} 2
dlp_mix_size_bucket{le="0.5",replica="a"} 2
dlp_mix_size_bucket{le="1.0",replica="a"} 7
dlp_mix_size_bucket{le="+Inf",replica="a"} 8
dlp_mix_size_count{replica="a"} 8
dlp_requests_total{status="200",route="/v1/completions"} 4
dlp_requests_total{status="200",route="/v1/chat/completions"} 3
dlp_requests_total{status="404",route="/v1/completions"} 1
dlp_requests_running{replica="a"} 2
dlp_requests_running{replica="b"} 1
dlp_adapter_in_slot{adapter="cron",replica="a"} 0
dlp_adapter_in_slot{adapter="shell",replica="b"} 1
dlp_adapter_in_slot{adapter="cron",replica="b"} 1
"""


def test_a_point_is_what_counters_and_histograms_gained() -> None:
    point = Point.between_readings(Reading.of(BEFORE, 95.0), Reading.of(AFTER, 100.0))
    assert (point.at, point.seconds) == (100.0, 5.0)
    assert point.adapters == {"cron": 3, "shell": 2}
    assert point.sizes == {"0.5": 1, "1": 3, "inf": 1}
    assert point.routed == 5
    assert point.statuses == {"200": 7, "404": 1}
    assert point.running == 3


def test_a_counter_that_began_anew_takes_nothing_away() -> None:
    low, high = (Reading.of(f'dlp_adapter_hits_total{{adapter="cron"}} {n}', float(10 - n)) for n in (2, 9))
    assert Point.between_readings(high, low).adapters == {}


async def test_points_are_kept_and_asked_for_since_a_time() -> None:
    texts = iter([BEFORE, AFTER, AFTER])

    class Metrics(QuietHandler):
        def answer(self, body: bytes) -> None:
            self.reply(200, next(texts).encode())

    with serving(Metrics) as address:
        api = Api(ConsoleSettings(f"http://{address}"))
        traffic = Traffic(api)
        assert traffic.json() == {"every_s": 5.0, "kept_s": 3600.0, "problem": None, "resident": {}, "points": []}
        for _ in range(3):
            await traffic.read()
        points = traffic.json()["points"]
        assert [point["adapters"] for point in points] == [{"cron": 3, "shell": 2}, {}]
        assert traffic.json()["resident"] == {"a": [], "b": ["cron", "shell"]}
        assert traffic.json(since=points[0]["at"])["points"] == points[1:]
        await api.close()


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [(404, b"", "no /metrics"), (401, b"", "--admin-token"), (500, b"", "500"), (200, b"{", "not Prometheus text")],
)
async def test_why_there_are_no_readings_is_said(status: int, body: bytes, said: str) -> None:
    class Metrics(QuietHandler):
        def answer(self, _: bytes) -> None:
            self.reply(status, body)

    with serving(Metrics) as address:
        api = Api(ConsoleSettings(f"http://{address}"))
        traffic = Traffic(api)
        await traffic.read()
        assert said in traffic.json()["problem"]
        await api.close()
