"""The arithmetic of calibration, on numbers small enough to check by hand."""

from __future__ import annotations

import numpy as np
import pytest

from dlp_core.router.calibration import (
    Calibration,
    auroc,
    expected_calibration_error,
    fit_joined_temperature,
    fit_none,
    fit_temperature,
)
from dlp_core.router.network import dequantise_rows, quantise_rows, softmax


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


def test_joined_texts_keep_both_of_their_tasks() -> None:
    logits = np.array([[4.0, 2.0, -9.0], [2.0, 4.0, -9.0]], np.float32)
    targets = np.array([[0.5, 0.5, 0.0]] * 2, np.float32)
    shares = softmax(logits / np.float32(fit_joined_temperature(logits, targets)))
    assert shares[:, :2].min() > 0.3


def test_joined_texts_have_their_own_temperature() -> None:
    logits = np.array([[2.0, 0.0], [2.0, 0.0]], np.float32)
    single, joined = Calibration(1.0, 2.0, threshold=0.0, slope=1.0).probabilities(logits, np.array([False, True]))
    assert single[0] == pytest.approx(1 / (1 + np.exp(-2)))
    assert joined[0] == pytest.approx(1 / (1 + np.exp(-1)))


def test_the_threshold_keeps_every_kind_of_known_text() -> None:
    novelty = {"plain": np.linspace(-3, -1, 1001), "degraded": np.linspace(-2, 0, 1001)}
    threshold, slope = fit_none(novelty, {"plain": 0.99, "degraded": 0.95}, np.zeros(0))
    assert threshold == pytest.approx(-0.1)
    none = Calibration(1.0, 1.0, threshold, slope).none_probability(np.array([-2.0, threshold, 2.0], np.float32))
    assert none[0] < 1e-7
    assert none[1] == pytest.approx(0.5, abs=1e-4)
    assert none[2] > 0.999


def test_background_texts_lower_the_threshold_within_a_limit() -> None:
    novelty = {"plain": np.linspace(-3, -1, 1001), "degraded": np.linspace(-2, 0, 1001)}
    keep = {"plain": 0.99, "degraded": 0.95}
    assert fit_none(novelty, keep, np.linspace(-0.5, 2, 100))[0] == pytest.approx(-0.5, abs=0.05)
    assert fit_none(novelty, keep, np.linspace(-3, 2, 100))[0] >= np.quantile(novelty["plain"], 0.985) - 1e-9


def test_int8_rows_lose_at_most_half_a_step() -> None:
    table = np.random.default_rng(1).normal(size=(50, 8)).astype(np.float32) * np.geomspace(1e-2, 10, 50)[:, None]
    table = np.concatenate([table, np.zeros((1, 8))]).astype(np.float32)
    values, scales = quantise_rows(table)
    steps = np.abs(table).max(axis=1, keepdims=True) / 127
    assert (np.abs(dequantise_rows(values, scales) - table) <= 0.56 * steps).all()
