"""The built-in encoder computes in numpy what was trained in torch."""

from __future__ import annotations

import numpy as np
import torch

from dlp_core.router.training.net import Layers, NetSettings, WordInputs
from dlp_core.router.training.vocabulary import learn, with_words
from dlp_core.router.words import LENGTHS, WordEncoder, lengths

TEXTS = ["pay my bill", "two words", "what is the weather like in oslo today? " * 9, "x", "b1ll"]


def test_numpy_computes_what_torch_trained() -> None:
    torch.manual_seed(0)
    vocabulary = with_words(learn(TEXTS), TEXTS)
    pieces = np.random.default_rng(0).normal(size=(vocabulary.size, 16)).astype(np.float32)
    inputs = WordInputs(vocabulary.features(TEXTS), pieces, 8, drop=0.0, seed=0)
    layers = Layers(inputs.width, 5, 0, NetSettings(widths=(12, 10))).eval()
    with torch.no_grad():
        x = inputs.of(np.arange(len(TEXTS)))
        expected, _ = layers(x)
    encoder, network = WordEncoder(vocabulary, *inputs.tables()), layers.export()
    short = [0, 1, 3, 4]  # of a long text, a step of the training sees a part
    np.testing.assert_allclose(encoder.encode(TEXTS)[short], x.numpy()[short], rtol=1e-4, atol=1e-5)
    logits = network.logits(network.hidden(x.numpy()))
    np.testing.assert_allclose(logits, expected.numpy(), rtol=1e-4, atol=1e-5)
    assert encoder.width == 16 + 8 + len(LENGTHS)


def test_text_without_a_visible_character_is_zero_and_nothing_else_is() -> None:
    vocabulary = with_words(learn(TEXTS), TEXTS)
    random = np.random.default_rng(0)
    encoder = WordEncoder(
        vocabulary,
        random.normal(size=(vocabulary.size, 4)).astype(np.float32),
        random.normal(size=(1 << 15, 4)).astype(np.float32),
    )
    encoded = encoder.encode(["", " \n\t", "x", "\N{GRINNING FACE}"])
    assert encoded.any(axis=1).tolist() == [False, False, True, True]


def test_a_length_lies_between_two_of_the_known_ones() -> None:
    assert lengths(3.25).tolist() == [0, 0.75, 0.25, 0, 0, 0, 0, 0]
    assert lengths(np.array([[0.0], [99.0]])).any() == np.False_
