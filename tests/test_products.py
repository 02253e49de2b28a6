"""Quantities and their planes against numbers worked out by hand."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from visionapps.errors import ConfigError
from visionapps.inference.products import Band, Products, distance, extra_planes, quantise
from visionapps.structures import LabelSpace
from visionapps.windows import Window

LABELS = LabelSpace.named(["road", "water", "other"])


def planes_of(extras: Any, scores: torch.Tensor, form: Any, classes: int, apart: torch.Tensor | None = None) -> Any:
    return extra_planes(Products(extras), scores, form, num_classes=classes, apart=apart)[:, 0, 0].tolist()


def test_planes_have_a_fixed_order_and_names() -> None:
    products = Products(("probabilities", "overlap", "confidence", "overlap"))
    assert products.extras == ("confidence", "overlap", "probabilities")
    assert products.names(LABELS) == (
        "label",
        "confidence",
        "overlap",
        "probability road",
        "probability water",
        "probability other",
    )
    assert products.count(3) == 6
    assert products.score_planes(3) == 3
    assert Products().names(LABELS) == ("label",)
    assert Products().count(3) == 1
    assert Products(("disagreement",)).score_planes(3) == 4
    assert Products(("entropy", "disagreement")).count(3) == len(Products(("entropy", "disagreement")).names(LABELS))


def test_an_unknown_product_is_named_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match="products: certainty unknown; choose from confidence, entropy, disagreement"):
        Products(("certainty",))  # type: ignore[arg-type]


@pytest.mark.parametrize(("quantity", "level"), [(0, 0), (1, 254), (0.5, 127), (0.1, 25), (1.0000001, 254), (-1e-7, 0)])
def test_quantities_are_rounded_to_254_levels(quantity: float, level: int) -> None:
    assert quantise(torch.tensor([quantity])).tolist() == [level]


def test_distance_is_half_the_sum_of_differences() -> None:
    a, b = (torch.tensor(p)[:, None, None] for p in ([0.5, 0.5, 0.0], [0.25, 0.25, 0.5]))
    assert distance(a, b).tolist() == [[0.5]]
    assert distance(a, a).tolist() == [[0.0]]


@pytest.mark.parametrize("form", ["logits", "probabilities"])
def test_confidence_entropy_and_probabilities(form: Any) -> None:
    p = torch.tensor([0.5, 0.25, 0.25])
    scores = (p.log() + 3 if form == "logits" else p)[:, None, None]
    bits = 1.5 * math.log(2) / math.log(3)
    expected = [round(254 * q) for q in (0.5, bits, 0.5, 0.25, 0.25)]
    assert planes_of(("confidence", "entropy", "probabilities"), scores, form, 3) == expected


@pytest.mark.parametrize(("p", "confidence", "entropy"), [([1.0, 0, 0, 0], 254, 0), ([0.25] * 4, 64, 254)])
def test_the_ends_of_the_scales(p: list[float], confidence: int, entropy: int) -> None:
    scores = torch.tensor(p)[:, None, None]
    assert planes_of(("confidence", "entropy"), scores, "probabilities", 4) == [confidence, entropy]
    logits = torch.where(scores > 0, scores.log(), -torch.inf)
    assert planes_of(("confidence", "entropy"), logits, "logits", 4) == [confidence, entropy]


def test_huge_logits_do_not_overflow() -> None:
    scores = torch.tensor([3e4, -3e4, 2e4])[:, None, None]
    assert planes_of(("confidence", "entropy", "probabilities"), scores, "logits", 3) == [254, 0, 254, 0, 0]


@pytest.mark.parametrize("form", ["logits", "probabilities"])
def test_a_single_class_is_certain(form: Any) -> None:
    scores = torch.ones(1, 1, 1)
    assert planes_of(("confidence", "entropy", "probabilities"), scores, form, 1) == [254, 0, 254]


def test_disagreement_and_overlap_are_drawn_as_they_come() -> None:
    scores = torch.tensor([0.0, 0.0, 0.2])[:, None, None]
    apart = torch.tensor([[0.75]])
    extras = ("overlap", "confidence", "disagreement")
    assert planes_of(extras, scores, "logits", 2, apart) == [127, 51, 190]


def test_planes_keep_the_place_of_their_pixels() -> None:
    """More rows than are computed at a time."""
    scores = torch.randn(3, 100, 7, generator=torch.Generator().manual_seed(0))
    planes = extra_planes(Products(("confidence", "probabilities")), scores, "logits", num_classes=3, apart=None)
    p = scores.double().softmax(0).numpy()
    expected = np.concatenate([p.max(0)[None], p])
    assert planes.shape == (4, 100, 7)
    assert planes.dtype == torch.uint8
    assert np.abs(planes.numpy() - 254 * expected).max() <= 0.501


def test_a_band_holds_rows_and_their_planes() -> None:
    band = Band(Window(3, 0, 2, 5), np.zeros((1, 2, 5), np.uint8))
    assert band.window.row_end == 5
    assert band.planes.shape == (1, band.window.height, band.window.width)
