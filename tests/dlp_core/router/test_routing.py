"""Routing: from probabilities to a mix, and which packages it needs."""

from __future__ import annotations

import pickle
import subprocess
import sys

import pytest

from dlp_core.errors import InvalidRequest
from dlp_core.mix import EMPTY_MIX
from dlp_core.router import Routing

CONFIDENT = Routing.of({"a": 0.05, "b": 0.90, "c": 0.03}, none=0.02)
SPLIT = Routing.of({"a": 0.55, "b": 0.05, "c": 0.40}, none=0.0)


def test_top_p_is_relative_to_the_adapters_probabilities() -> None:
    assert CONFIDENT.mix().names == ("b",)
    assert [(part.name, round(part.weight, 3)) for part in SPLIT.mix().adapters] == [("a", 0.579), ("c", 0.421)]
    assert SPLIT.mix(max_adapters=1).names == ("a",)
    assert len(SPLIT.mix(top_p=1.0).names) == 3


def test_the_best_adapter_is_the_likeliest_one() -> None:
    assert (CONFIDENT.best, SPLIT.best) == ("b", "a")


def test_none_of_these_is_the_plain_backbone() -> None:
    assert Routing.of({"a": 0.3, "b": 0.2}, none=0.5).mix() == EMPTY_MIX
    assert Routing.of({"a": 0.3, "b": 0.21}, none=0.49).mix() != EMPTY_MIX


def test_bad_settings_are_refused_even_where_nothing_fits() -> None:
    with pytest.raises(InvalidRequest, match="top_p"):
        Routing.of({"a": 0.0}, none=1.0).mix(top_p=0.0)


def test_a_routing_can_be_pickled() -> None:
    assert pickle.loads(pickle.dumps(CONFIDENT)) == CONFIDENT


def test_serving_needs_no_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; from dlp_core.router import Router, Routing; print(Router.load)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_last_bits_of_a_probability_do_not_change_the_mix() -> None:
    """Batching changes a matrix product: the same text, a few 1e-8 apart."""
    alone = Routing.of({"a": 0.6123412, "b": 0.2511108, "c": 0.1}, none=0.03)
    batched = Routing.of({"a": 0.6123413, "b": 0.2511107, "c": 0.1}, none=0.03)
    assert alone.mix() == batched.mix()
    assert len(alone.mix().adapters) == 3
