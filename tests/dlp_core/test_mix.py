"""Mixes and top-p."""

from __future__ import annotations

import pickle
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlp_core.errors import InvalidRequest
from dlp_core.mix import EMPTY_MIX, Mix, resolve, select_top_p


def test_top_p_keeps_the_smallest_prefix_that_reaches_p() -> None:
    probabilities = {"a": 0.05, "b": 0.6, "c": 0.35}
    assert select_top_p(probabilities, top_p=0.6).names == ("b",)
    assert select_top_p(probabilities, top_p=0.61).names == ("b", "c")
    mix = select_top_p(probabilities, top_p=0.9)
    assert [part.weight for part in mix.adapters] == pytest.approx([0.6 / 0.95, 0.35 / 0.95])
    assert select_top_p(probabilities, top_p=1.0).names == ("b", "c", "a")


def test_max_adapters_bounds_the_mix_and_weights_still_sum_to_one() -> None:
    mix = select_top_p(dict.fromkeys("abcde", 0.2), top_p=0.99, max_adapters=2)
    assert [(part.name, part.weight) for part in mix.adapters] == [("a", 0.5), ("b", 0.5)]


def test_ties_break_by_bank_order() -> None:
    assert select_top_p({"z": 0.5, "a": 0.5}, top_p=0.5).names == ("z",)


def test_second_softmax_is_the_papers_released_weighting() -> None:
    mix = select_top_p({"a": 0.7, "b": 0.3}, top_p=1.0, weights="softmax")
    assert [part.weight for part in mix.adapters] == pytest.approx([0.598687660, 0.401312339])


def test_the_probability_of_none_of_these_does_not_widen_the_mix() -> None:
    assert select_top_p({"a": 0.38, "b": 0.02}, top_p=0.9).names == ("a",)


def test_nothing_to_keep_is_the_plain_backbone() -> None:
    assert select_top_p({"a": 0.0}) is EMPTY_MIX
    assert str(EMPTY_MIX) == "base"
    assert not EMPTY_MIX


@pytest.mark.parametrize("top_p", [0.0, -0.1, 1.1, float("nan"), float("inf")])
def test_top_p_out_of_range_names_the_field(top_p: float) -> None:
    with pytest.raises(InvalidRequest) as caught:
        select_top_p({"a": 1.0}, top_p=top_p)
    assert caught.value.param == "dlp.top_p"


def test_max_adapters_below_one_names_the_field() -> None:
    with pytest.raises(InvalidRequest) as caught:
        select_top_p({"a": 1.0}, max_adapters=0)
    assert caught.value.param == "dlp.max_adapters"


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), -17.0, 1e300])
def test_weights_must_be_finite_and_bounded(weight: float) -> None:
    with pytest.raises(InvalidRequest, match="'a'"):
        Mix.of({"a": weight})


def test_an_adapter_named_twice_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="'a' is named twice"):
        Mix.of([("a", 0.5), ("b", 0.1), ("a", 0.4)])


def test_zero_weights_are_dropped_and_the_heaviest_comes_first() -> None:
    assert Mix.of({"a": 0.0, "b": 0.2, "c": -0.8}).names == ("c", "b")
    assert str(Mix.of({"b": 0.2, "a": 0.8})) == "a=0.80,b=0.20"


def test_a_mix_crosses_processes() -> None:
    mix = Mix.of({"a": 0.8, "b": 0.2})
    assert pickle.loads(pickle.dumps(mix)) == mix
    assert hash(pickle.loads(pickle.dumps(mix))) == hash(mix)


@given(st.lists(st.floats(0.001, 1.0), min_size=1, max_size=30), st.floats(0.01, 1.0), st.integers(1, 5))
def test_any_selection_is_a_distribution_over_the_likeliest(raw: list[float], top_p: float, limit: int) -> None:
    probabilities = {f"n{i}": p / sum(raw) for i, p in enumerate(raw)}
    mix = select_top_p(probabilities, top_p=top_p, max_adapters=limit)
    assert 1 <= len(mix.adapters) <= limit
    assert sum(part.weight for part in mix.adapters) == pytest.approx(1.0)
    smallest_kept = min(probabilities[name] for name in mix.names)
    assert all(p <= smallest_kept + 1e-12 for name, p in probabilities.items() if name not in mix.names)
    without_last = sum(probabilities[name] for name in mix.names[:-1])
    assert without_last < top_p + 1e-9


def test_importing_the_mix_needs_no_torch_and_the_library_needs_no_ray() -> None:
    code = (
        "import sys; sys.modules['ray'] = None; "
        "import dlp_core, dlp_core.mix, dlp_core.errors, dlp_core.residency.slots; "
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


RECIPES = {
    "half": Mix(Mix.of({"a": 0.5, "b": 0.25}).adapters, ("half",)),
    "minus": Mix(Mix.of({"a": -1.0, "c": 2.0}).adapters, ("minus",)),
    "alone": Mix(Mix.of({"d": 0.7}).adapters, ("alone",)),
}


def resolved(weights: dict[str, float], max_adapters: int = 8) -> tuple[dict[str, float], tuple[str, ...]]:
    mix = resolve(Mix.of(weights), RECIPES, max_adapters=max_adapters)
    return {part.name: part.weight for part in mix.adapters}, mix.recipes


def test_a_mix_of_recipes_multiplies_weights_and_adds_what_they_say_of_one_adapter() -> None:
    assert resolved({"half": 1.0}) == ({"a": 0.5, "b": 0.25}, ("half",))
    assert resolved({"half": 0.6, "minus": 0.4}) == (
        pytest.approx({"c": 0.8, "b": 0.15, "a": 0.6 * 0.5 - 0.4}),
        ("half", "minus"),
    )
    assert resolved({"minus": 0.5, "a": 0.5}) == ({"c": 1.0}, ("minus",))  # what adds up to nothing is no part
    plain = Mix.of({"a": 0.5, "c": 0.5})
    assert resolve(plain, RECIPES, max_adapters=1) is plain  # top-p has kept its limit


def test_a_recipe_is_taken_whole_or_not_at_all() -> None:
    assert resolved({"half": 0.5, "alone": 0.3, "c": 0.2}, 3) == (
        pytest.approx({"d": 0.7 * 0.3 / 0.8, "a": 0.5 * 0.5 / 0.8, "b": 0.25 * 0.5 / 0.8}),
        ("half", "alone"),
    )
    assert resolved({"a": 0.5, "half": 0.3, "alone": 0.2}, 2) == (
        pytest.approx({"a": (0.5 + 0.3 * 0.5) / 0.8, "b": 0.3 * 0.25 / 0.8}),
        ("half",),
    )
    assert resolved({"c": 0.5, "half": 0.3, "alone": 0.2}, 2) == (pytest.approx({"c": 1.0}), ())
    assert resolved({"half": 0.7, "alone": 0.3}, 1) == (pytest.approx({"d": 0.7}), ("alone",))
    assert resolved({"half": 1.0}, 1) == ({}, ())


def test_where_a_mix_comes_from_is_no_part_of_what_it_is() -> None:
    assert RECIPES["alone"] == Mix.of({"d": 0.7})
    assert hash(RECIPES["alone"]) == hash(Mix.of({"d": 0.7}))
    assert pickle.loads(pickle.dumps(RECIPES["alone"])).recipes == ("alone",)


def test_weights_on_the_grid_keep_their_sum_and_their_order() -> None:
    assert Mix.of({"a": 0.8, "b": 0.2}).on_grid() == Mix.of({"a": 51 / 64, "b": 13 / 64})
    assert Mix.of({"a": 0.801, "b": 0.199}).on_grid() == Mix.of({"a": 51 / 64, "b": 13 / 64})
    assert Mix.of({"a": 1.0}).on_grid() == Mix.of({"a": 1.0})
    assert Mix.of({"a": 0.999, "b": 0.001}).on_grid() == Mix.of({"a": 1.0})
    assert EMPTY_MIX.on_grid() == EMPTY_MIX


@given(weights=st.lists(st.floats(0.001, 1.0), min_size=1, max_size=8))
def test_no_weight_moves_by_a_step_of_the_grid(weights: list[float]) -> None:
    total = sum(weights)
    mix = Mix.of([(str(number), weight / total) for number, weight in enumerate(weights)])
    snapped = mix.on_grid()
    assert snapped.on_grid() == snapped
    assert sum(part.weight for part in snapped.adapters) == 1.0
    found = {part.name: part.weight for part in snapped.adapters}
    for part in mix.adapters:
        assert abs(found.get(part.name, 0.0) - part.weight) < 1 / 64
