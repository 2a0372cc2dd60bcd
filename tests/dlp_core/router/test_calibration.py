"""The arithmetic of calibration, on numbers small enough to check by hand."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest

from dlp_core.errors import InvalidRequest
from dlp_core.mix import select_top_p
from dlp_core.router.calibration import (
    GAP,
    MEDIAN_LOG_ODDS,
    MIN_TOP_P,
    STRANGERS_IN,
    Calibration,
    Curve,
    auroc,
    conformal_top_p,
    expected_calibration_error,
    fit_temperature,
)
from dlp_core.router.network import dequantise_rows, quantise_rows, softmax

KNOWN, UNKNOWN = np.linspace(-3, -1, 1001), np.linspace(-2, 2, 1001)


def test_calibration_error_is_the_weighted_gap_of_the_bins() -> None:
    confidence = np.array([0.9, 0.9, 0.9, 0.9, 0.5])
    correct = np.array([True, True, True, False, True])
    # Bin of the 0.9s: accuracy 0.75, gap 0.15, four of five rows. Bin of the 0.5: gap 0.5, one of five.
    assert expected_calibration_error(confidence, correct) == pytest.approx(0.15 * 4 / 5 + 0.5 / 5)


def test_full_confidence_falls_in_the_last_bin() -> None:
    assert expected_calibration_error(np.array([1.0, 1.0]), np.array([True, False])) == pytest.approx(0.5)


def test_auroc_counts_ties_half() -> None:
    assert auroc(np.array([0.1, 0.2]), np.array([0.3, 0.4])) == 1.0
    assert auroc(np.array([0.1, 0.2]), np.array([0.2])) == pytest.approx(0.75)
    assert auroc(np.array([0.3]), np.array([0.1])) == 0.0


def test_temperature_undoes_a_scale() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(10_000, 4)).astype(np.float32) * 2
    tasks = (softmax(logits).cumsum(axis=1) < rng.random((len(logits), 1))).sum(axis=1).clip(max=3)
    assert fit_temperature(logits, tasks) == pytest.approx(1.0, abs=0.06)
    assert fit_temperature(logits * np.float32(2.5), tasks) == pytest.approx(2.5, abs=0.15)


def test_a_few_correct_rows_do_not_give_full_confidence() -> None:
    logits = np.eye(3, dtype=np.float32) * 5
    temperature = fit_temperature(logits, np.arange(3))
    assert softmax(logits / np.float32(temperature)).max(axis=1).mean() == pytest.approx(3.5 / 4, abs=0.02)


@pytest.mark.parametrize("keep", [0.9, 0.97, 0.995])
def test_a_threshold_keeps_what_was_asked(keep: float) -> None:
    curve = Curve.of(KNOWN, UNKNOWN)
    threshold = curve.threshold(keep)
    assert (threshold >= KNOWN).mean() == pytest.approx(keep, abs=0.002)
    assert curve.kept(threshold) == pytest.approx(keep, abs=0.002)
    refused = curve.refused(threshold)
    assert refused is not None
    assert refused == pytest.approx((threshold < UNKNOWN).mean(), abs=0.002)


@pytest.mark.parametrize("keep", [0.0, 1.0, -1.0, float("nan")])
def test_a_fraction_must_be_a_fraction(keep: float) -> None:
    with pytest.raises(InvalidRequest, match="between 0 and 1"):
        Curve.of(KNOWN, UNKNOWN).threshold(keep)


def test_the_default_threshold_refuses_strangers_but_keeps_its_own() -> None:
    near = Curve.of(KNOWN, KNOWN)
    assert near.default_threshold() == near.threshold(0.97)
    unknown = np.linspace(-1.17, 3, 1001)
    between = Curve.of(KNOWN, unknown)
    assert between.default_threshold() == pytest.approx(np.quantile(unknown, STRANGERS_IN), abs=0.01)
    alone = Curve.of(KNOWN, np.zeros(0))
    assert alone.default_threshold() == alone.threshold(0.995)
    assert alone.refused(0.0) is None


def test_the_default_threshold_lies_in_the_gap_if_there_is_one() -> None:
    far = Curve.of(KNOWN, np.full(100, 5.0))
    edge = far.threshold(0.995)
    assert far.default_threshold() == pytest.approx(edge + GAP * (5.0 - edge))


def test_the_median_text_has_the_same_odds_at_any_threshold() -> None:
    curve = Curve.of(KNOWN, UNKNOWN)
    for threshold in (-1.5, 0.0, 3.0):
        calibration = curve.tune(Calibration(1.0, 0.0, 1.0), threshold)
        odds = calibration.none_log_odds(np.array([-2.0, threshold], np.float32))
        assert odds == pytest.approx([-MEDIAN_LOG_ODDS, 0.0], abs=0.02)


def test_a_curve_survives_json() -> None:
    curve = Curve.of(KNOWN, UNKNOWN)
    assert Curve.read(json.loads(json.dumps(asdict(curve)))) == curve
    for damage in ({"known": [1, 0]}, {"known": []}, {"unknown": [float("nan")]}):
        with pytest.raises(ValueError, match="curve"):
            Curve.read(asdict(curve) | damage)


def test_conformal_mixes_hold_the_right_adapter_as_often_as_asked() -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(6000, 6)).astype(np.float32) * 2
    tasks = (softmax(logits).cumsum(axis=1) < rng.random((len(logits), 1))).sum(axis=1).clip(max=5)
    overconfident = softmax(logits * 2)
    calibration, test = slice(0, 1000), slice(1000, None)
    for coverage in (0.7, 0.8):
        top_p = conformal_top_p(overconfident[calibration], tasks[calibration], coverage, largest=3)
        mixes = [
            select_top_p({str(n): float(p) for n, p in enumerate(row)}, top_p=top_p).names
            for row in overconfident[test]
        ]
        covered = np.mean([str(task) in names for task, names in zip(tasks[test], mixes, strict=True)])
        assert covered >= coverage - 0.03


def test_two_tasks_of_half_each_always_stay() -> None:
    sure = np.eye(4, dtype=np.float32)[np.arange(40) % 4]
    assert conformal_top_p(sure, np.arange(40) % 4, 0.9, largest=3) == MIN_TOP_P


def test_a_coverage_out_of_reach_is_refused_with_what_is_in_reach() -> None:
    probabilities = np.tile(np.array([0.4, 0.3, 0.2, 0.1], np.float32), (100, 1))
    tasks = np.repeat([0, 3], [60, 40])
    with pytest.raises(InvalidRequest, match=r"60\.00% have it among the 3 likeliest"):
        conformal_top_p(probabilities, tasks, 0.9, largest=3)


def test_int8_rows_lose_at_most_half_a_step() -> None:
    table = np.random.default_rng(1).normal(size=(50, 8)).astype(np.float32) * np.geomspace(1e-2, 10, 50)[:, None]
    table = np.concatenate([table, np.zeros((1, 8))]).astype(np.float32)
    values, scales = quantise_rows(table)
    steps = np.abs(table).max(axis=1, keepdims=True) / 127
    assert (np.abs(dequantise_rows(values, scales) - table) <= 0.56 * steps).all()
