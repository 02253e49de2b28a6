"""Views against numpy's rot90 and flip."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from visionapps.errors import ConfigError
from visionapps.inference.views import ONE_VIEW, View, Views


def images_of(height: int, width: int) -> torch.Tensor:
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_a_view_mirrors_and_turns_as_numpy_does(mirrored: bool, turns: int) -> None:
    images = images_of(8, 12)
    expected = images.numpy()[..., ::-1] if mirrored else images.numpy()
    expected = np.rot90(expected, turns, (-2, -1))
    assert np.array_equal(View(mirrored, turns).apply(images, stride=4).numpy(), expected)


@given(mirrored=st.booleans(), turns=st.integers(0, 3), height=st.integers(1, 9), width=st.integers(1, 9))
def test_restoring_is_the_inverse_of_applying(mirrored: bool, turns: int, height: int, width: int) -> None:
    images, view = images_of(height, width), View(mirrored, turns)
    assert torch.equal(view.restore(view.apply(images, stride=1), height, width), images)


def test_the_eight_symmetries_are_all_different_and_the_four_flips_are_among_them() -> None:
    image = images_of(6, 6)
    seen = {view: view.apply(image, stride=1) for view in Views("d4").all()}
    assert len(seen) == 8
    for a, first in seen.items():
        assert sum(torch.equal(first, second) for second in seen.values()) == 1, a
    flips = [view.apply(image, stride=1) for view in Views("flips").all()]
    by_hand = [image, image.flip(-1), image.flip(-2, -1), image.flip(-2)]
    assert all(torch.equal(a, b) for a, b in zip(flips, by_hand, strict=True))


@pytest.mark.parametrize(
    ("scale", "size"), [(0.5, (32, 64)), (0.75, (64, 96)), (1.5, (96, 192)), (0.1, (32, 32)), (1.0, (64, 128))]
)
def test_scaled_views_are_whole_multiples_of_the_stride(scale: float, size: tuple[int, int]) -> None:
    images = images_of(64, 128)
    view = View(scale=scale)
    seen = view.apply(images, stride=32)
    assert seen.shape == (2, 3, *size)
    assert view.restore(seen, 64, 128).shape == images.shape
    turned = View(turns=1, scale=scale).apply(images, stride=32)
    assert turned.shape == (2, 3, *size[::-1])
    assert View(turns=1, scale=scale).restore(turned, 64, 128).shape == images.shape


def test_a_scaled_view_keeps_a_gradient_where_it_is() -> None:
    """A plane that rises by 1 per pixel is resized without a shift: pixel centres stay centres."""
    ramp = torch.arange(64.0).repeat(1, 1, 64, 1)
    for scale in (0.5, 1.5, 2.0):
        view = View(mirrored=True, turns=1, scale=scale)
        back = view.restore(view.apply(ramp, stride=32), 64, 64)
        inner = (..., slice(4, -4), slice(4, -4))
        assert torch.allclose(back[inner], ramp[inner], atol=0.02), scale


def test_views_combine_each_scale_with_each_flip() -> None:
    assert len(ONE_VIEW) == 1
    assert ONE_VIEW.all() == (View(),)
    views = Views("d4", (1.0, 1.5))
    assert len(views) == len(set(views.all())) == 16
    assert views.all()[0] == View()


@pytest.mark.parametrize(
    ("bad", "text"),
    [
        ({"flips": "rotations"}, r"flips 'rotations' unknown; choose from none, flips, d4"),
        ({"scales": ()}, r"scales \(\); give different factors from 0.1 to 10"),
        ({"scales": (1, 1.0)}, r"scales \(1.0, 1.0\); give different"),
        ({"scales": (0, 1)}, r"scales \(0.0, 1.0\)"),
    ],
)
def test_bad_views_are_named(bad: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        Views(**bad)
