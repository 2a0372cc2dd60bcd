"""Routing: from probabilities to a mix, and which packages it needs."""

from __future__ import annotations

import pickle
import subprocess
import sys
from array import array

import pytest

from dlp_core.errors import InvalidRequest
from dlp_core.mix import EMPTY_MIX, Mix
from dlp_core.router import Router, Routing
from dlp_core.router.routing import NONE_THRESHOLD
from tests.support.paths import ROOT

CONFIDENT = Routing.of({"a": 0.05, "b": 0.90, "c": 0.03}, margin=4.0)
SPLIT = Routing.of({"a": 0.55, "b": 0.05, "c": 0.40})


def test_top_p_is_relative_to_the_adapters_probabilities() -> None:
    assert CONFIDENT.mix().names == ("b",)
    exact = SPLIT.mix(exact=True)
    assert [(part.name, round(part.weight, 3)) for part in exact.adapters] == [("a", 0.579), ("c", 0.421)]
    assert SPLIT.mix() == exact.on_grid() == Mix.of({"a": 37 / 64, "c": 27 / 64})
    assert SPLIT.mix(max_adapters=1).names == ("a",)
    assert len(SPLIT.mix(top_p=1.0).names) == 3


def test_the_best_adapter_is_the_likeliest_one() -> None:
    assert (CONFIDENT.best, SPLIT.best) == ("b", "a")


def test_none_of_these_is_the_plain_backbone() -> None:
    refused, kept = Routing.of({"a": 0.6, "b": 0.4}, margin=0.0), Routing.of({"a": 0.6, "b": 0.4}, margin=0.1)
    assert (refused.mix(), refused.fits, refused.none) == (EMPTY_MIX, False, NONE_THRESHOLD)
    assert kept.mix() != EMPTY_MIX
    assert kept.none < NONE_THRESHOLD


def test_being_refused_says_nothing_about_the_likeliest_adapter() -> None:
    assert Routing.of({"a": 0.99, "b": 0.01}, margin=-50.0).confidence == 0.99


def test_a_routers_own_top_p_serves_requests_that_name_none() -> None:
    routing = Routing(("a", "b"), array("f", [0.7, 0.3]), margin=5.0, top_p=0.6)
    assert routing.mix().names == ("a",)
    assert routing.mix(top_p=0.9).names == ("a", "b")


def test_bad_settings_are_refused_even_where_nothing_fits() -> None:
    with pytest.raises(InvalidRequest, match="top_p"):
        Routing.of({"a": 0.0}, margin=-9.0).mix(top_p=0.0)


def test_a_routing_can_be_pickled() -> None:
    assert pickle.loads(pickle.dumps(CONFIDENT)) == CONFIDENT


def test_serving_needs_no_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; from dlp_core.router import Router, Routing; print(Router.load)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_last_bits_of_a_probability_do_not_change_the_mix() -> None:
    """Batching changes a matrix product: the same text, a few 1e-8 apart."""
    alone = Routing.of({"a": 0.6123412, "b": 0.2511108, "c": 0.1}, margin=3.0)
    batched = Routing.of({"a": 0.6123413, "b": 0.2511107, "c": 0.1}, margin=3.0)
    assert alone.mix() == batched.mix()
    assert len(alone.mix().adapters) == 3


def test_a_single_text_is_not_taken_for_a_list_of_letters() -> None:
    router = Router.load(ROOT / "examples/bank/router")
    calls = (router.route, router.novelty, lambda text: router.log_odds(text, "cron"))
    for call in calls:
        with pytest.raises(TypeError, match=r"\['every weekday'\] for this one"):
            call("every weekday")
