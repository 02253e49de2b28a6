"""Convolution arithmetic: the lecture decks' worked examples (with their slips mended), and PyTorch as the judge."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from visionapps.arithmetic import (
    ReceptiveField,
    Sliding,
    average_pool_matrix,
    col2im,
    convolution_matrix,
    convolution_multiply_adds,
    convolution_parameters,
    convolve,
    im2col,
    max_pool_matrix,
    output_size,
    receptive_field,
    unseen,
)
from visionapps.errors import ConfigError

WINDOWS = st.builds(
    Sliding, st.integers(1, 5), stride=st.integers(1, 4), padding=st.integers(0, 2), dilation=st.integers(1, 3)
)
MAP = np.array([[1, 1, 2, 4], [5, 6, 7, 8], [3, 2, 1, 0], [1, 2, 3, 4]])


@pytest.mark.parametrize(
    ("size", "window", "expected"),
    [
        (7, Sliding(3), 5),
        (7, Sliding(3, 2), 3),
        (7, Sliding(3, 1, 1), 7),
        (32, Sliding(5, 1, 2), 32),  # the deck prints (w - 2P - f)/S + 1, which would be 24
        (227, Sliding(11, 4), 55),
        (55, Sliding(3, 2), 27),
        (224, Sliding(2, 2), 112),
        (4, Sliding(2), 3),
        (16, Sliding(1), 16),
        (16, Sliding(1, 1, 1), 18),  # the deck's f=1, S=1, P=1 does not keep the size
    ],
)
def test_a_window_gives_as_many_pixels_as_the_decks_count(size, window, expected):
    assert output_size(size, window) == expected


def test_three_does_not_divide_seven_and_the_last_column_is_left_out():
    assert Fraction(7 - 3, 3) + 1 == Fraction(7, 3)  # what the deck prints as 2.33
    assert output_size(7, Sliding(3, 3)) == 2
    assert unseen(7, Sliding(3, 3)) == 1
    assert unseen(7, Sliding(3, 2)) == 0


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 40), WINDOWS, st.booleans())
def test_sizes_are_those_of_pytorch_or_both_refuse(size, window, ceil):
    image = torch.zeros(1, 1, size)
    options = (window.kernel, window.stride, window.padding, window.dilation)
    pooled = ceil and window.padding <= window.kernel // 2
    try:
        if pooled:
            expected = F.max_pool1d(image, *options, ceil_mode=True).shape[-1]
        else:
            weight = torch.zeros(1, 1, window.kernel)
            expected = F.conv1d(image, weight, None, *options[1:]).shape[-1]
    except RuntimeError:
        if not pooled:  # PyTorch refuses some poolings that fit, by another rule
            with pytest.raises(ConfigError, match="give at least"):
                output_size(size, window)
        return
    assert output_size(size, window, ceil=pooled) == expected


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 9), WINDOWS, st.integers(0, 3))
def test_transposed_sizes_are_those_of_pytorch(size, window, extra):
    window = Sliding(window.kernel, window.stride, window.padding, window.dilation, transposed=True)
    extra = min(extra, max(window.stride, window.dilation) - 1)
    try:
        expected = F.conv_transpose1d(
            torch.zeros(1, 1, size),
            torch.zeros(1, 1, window.kernel),
            stride=window.stride,
            padding=window.padding,
            output_padding=extra,
            dilation=window.dilation,
        ).shape[-1]
    except RuntimeError:
        with pytest.raises(ConfigError, match="cuts off all"):
            output_size(size, window, output_padding=extra)
        return
    if expected:
        assert output_size(size, window, output_padding=extra) == expected


def test_a_window_that_does_not_fit_says_what_would():
    with pytest.raises(ConfigError, match=r"5 pixels long, but the input has 2 and padding 1 .* at least 3 pixels"):
        output_size(2, Sliding(5, padding=1))
    with pytest.raises(ConfigError, match=r"stride 0 .* must be at least 1"):
        Sliding(3, 0)


def test_two_small_kernels_see_as_much_as_one_large_and_cost_less():
    assert receptive_field([Sliding(3)] * 2).size == receptive_field([Sliding(5)]).size == 5
    assert receptive_field([Sliding(3)] * 3).size == 7
    for channels in (1, 64, 512):  # the deck leaves out the square of C
        small = 3 * convolution_parameters(channels, channels, 3, bias=False)
        assert small == 27 * channels**2
        assert convolution_parameters(channels, channels, 7, bias=False) == 49 * channels**2


VGG16 = [s for n in (2, 2, 3, 3, 3) for s in [*[Sliding(3, 1, 1)] * n, Sliding(2, 2)]]
ALEXNET = [Sliding(11, 4), Sliding(3, 2), Sliding(5, 1, 2), Sliding(3, 2), *[Sliding(3, 1, 1)] * 3, Sliding(3, 2)]


def test_the_fields_of_vgg_and_alexnet_are_the_published_ones():
    field = receptive_field(VGG16)
    assert (field.size, field.jump) == (212, 32)
    assert field.centre == 16  # of pixel 0: padding keeps maps aligned with the image
    assert field.after(Sliding(7)).size == 404  # FCN-32s: the fully connected layer as a convolution
    assert receptive_field(ALEXNET).after(Sliding(6)).size == 355


@settings(deadline=None, max_examples=40)
@given(st.lists(WINDOWS, min_size=1, max_size=4), st.integers(0, 5))
def test_a_field_is_exactly_what_a_gradient_reaches(windows, index):
    field = receptive_field(windows)
    begin, end = (int(v) for v in field.span(index))
    side = max(1, end + 20)
    image = torch.zeros(1, 1, side, requires_grad=True)
    result = image
    try:
        for w in windows:
            result = F.conv1d(result, torch.ones(1, 1, w.kernel), None, w.stride, w.padding, w.dilation)
    except RuntimeError:
        return
    if index >= result.shape[-1]:
        return
    result[0, 0, index].backward()
    touched = image.grad[0, 0].nonzero().flatten().tolist()
    assert all(begin <= t < end for t in touched)
    if begin >= 0 and end <= side:
        assert (touched[0], touched[-1]) == (begin, end - 1)


@settings(deadline=None, max_examples=40)
@given(WINDOWS, WINDOWS)
def test_a_field_holds_for_every_phase_of_a_transposed_convolution(first, second):
    up = Sliding(second.kernel, second.stride, second.padding, second.dilation, transposed=True)
    field = receptive_field([first, up])
    image = torch.zeros(1, 1, 60, requires_grad=True)
    middle = F.conv1d(image, torch.ones(1, 1, first.kernel), None, first.stride, first.padding, first.dilation)
    weight = torch.ones(1, 1, up.kernel)
    result = F.conv_transpose1d(middle, weight, None, up.stride, up.padding, 0, 1, up.dilation)
    for index in range(0, result.shape[-1], 5):
        (gradient,) = torch.autograd.grad(result[0, 0, index], image, retain_graph=True)
        begin, end = field.span(index)
        assert all(begin <= t and t + 1 <= end for t in gradient[0, 0].nonzero().flatten().tolist())


def test_fields_of_branches_unite_and_other_strides_are_refused():
    narrow, wide = receptive_field([Sliding(1)]), receptive_field([Sliding(5, 1, 2)])
    assert narrow.union(wide) == wide.union(narrow) == wide
    off = ReceptiveField(Fraction(3), Fraction(1), Fraction(2))
    assert wide.union(off) == ReceptiveField(Fraction(7), Fraction(1), Fraction(-2))
    with pytest.raises(ConfigError, match="strides 1 and 2 differ"):
        narrow.union(receptive_field([Sliding(3, 2)]))


def test_parameters_and_costs_are_those_of_the_decks():
    assert convolution_parameters(3, 10, 5) == 760
    assert convolution_parameters(3, 96, 11, bias=False) == 34_848
    assert convolution_parameters(256, 256, 3, bias=False) == 589_824
    assert sum(convolution_parameters(*c, bias=False) for c in ((256, 64, 1), (64, 64, 3), (64, 256, 1))) == 69_632
    assert convolution_multiply_adds(3, 64, 7, 112) == 118_013_952  # the deck's 34M of GoogLeNet's stem is wrong
    with pytest.raises(ConfigError, match="3 groups do not divide 64 inputs and 96 outputs"):
        convolution_parameters(64, 96, 3, groups=3)


@pytest.mark.parametrize("groups", [1, 2, 4, 64])
def test_groups_divide_parameters_and_costs(groups):
    layer = torch.nn.Conv2d(64, 128, (3, 5), groups=groups, device="meta")
    assert convolution_parameters(64, 128, (3, 5), groups=groups) == sum(p.numel() for p in layer.parameters())
    whole = convolution_multiply_adds(64, 128, 3, (10, 12))
    assert convolution_multiply_adds(64, 128, 3, (10, 12), groups=groups) * groups == whole


# The deck's picture: a 4 x 4 image whose three channels hold 1..16, 17..32 and 33..48.
NUMBERED = np.arange(1, 49).reshape(3, 4, 4)


def test_im2col_gives_the_decks_matrix():
    columns = im2col(NUMBERED, 2)
    assert columns.shape == (12, 9)
    assert columns[0].tolist() == [1, 2, 3, 5, 6, 7, 9, 10, 11]
    assert columns[3].tolist() == [6, 7, 8, 10, 11, 12, 14, 15, 16]
    assert columns[4].tolist() == [17, 18, 19, 21, 22, 23, 25, 26, 27]
    assert columns[11].tolist() == [38, 39, 40, 42, 43, 44, 46, 47, 48]


def test_a_kernel_of_twelve_times_that_matrix_is_the_convolution():
    kernel = np.arange(12).reshape(1, 3, 2, 2)
    product = kernel.reshape(1, 12) @ im2col(NUMBERED, 2)
    assert product.shape == (1, 9)
    assert (product.reshape(3, 3) == convolve(NUMBERED, kernel)[0]).all()
    expected = F.conv2d(torch.tensor(NUMBERED[None]).double(), torch.tensor(kernel).double())
    assert (convolve(NUMBERED, kernel) == expected[0].numpy()).all()


KERNELS = {"kernel": (3, 2), "stride": (2, 1), "padding": (1, 2), "dilation": (1, 2)}


@pytest.mark.parametrize("options", [{"kernel": 2}, {"kernel": 3, "padding": 1}, KERNELS])
def test_im2col_and_col2im_are_unfold_and_fold(options):
    rng = np.random.default_rng(0)
    image = rng.normal(size=(2, 7, 6))
    unfold = {"kernel_size": options["kernel"], **{k: v for k, v in options.items() if k != "kernel"}}
    columns = im2col(image, **options)
    expected = F.unfold(torch.tensor(image[None]), **unfold)
    np.testing.assert_array_equal(columns, expected[0].numpy())
    back = col2im(columns, image.shape, **options)
    np.testing.assert_allclose(back, F.fold(expected, (7, 6), **unfold)[0].numpy(), rtol=1e-12)
    other = rng.normal(size=columns.shape)  # <im2col x, y> = <x, col2im y>: each is the other's transpose
    assert (columns * other).sum() == pytest.approx((image * col2im(other, image.shape, **options)).sum())


@pytest.mark.parametrize("options", [{}, {"stride": 2, "padding": 1}, {"dilation": 2, "padding": (2, 0)}])
def test_a_convolution_is_one_matrix_and_its_transpose_the_transposed_convolution(options):
    rng = np.random.default_rng(1)
    image, weight = rng.normal(size=(2, 7, 7)), rng.normal(size=(3, 2, 3, 3))
    matrix = convolution_matrix(weight, (7, 7), **options)
    expected = F.conv2d(torch.tensor(image[None]), torch.tensor(weight), **options)[0]
    np.testing.assert_allclose((matrix @ image.ravel()).reshape(expected.shape), expected.numpy(), atol=1e-12)
    np.testing.assert_allclose(convolve(image, weight, **options), expected.numpy(), atol=1e-12)
    spread = F.conv_transpose2d(expected[None], torch.tensor(weight), **options)[0].numpy()
    if spread.shape == image.shape:
        np.testing.assert_allclose((matrix.T @ expected.numpy().ravel()).reshape(spread.shape), spread, atol=1e-12)


def test_the_convolution_matrix_shares_its_weights():
    matrix = convolution_matrix(np.array([[[[1.0, 2.0], [3.0, 4.0]]]]), (3, 3))
    assert matrix.tolist() == [
        [1, 2, 0, 3, 4, 0, 0, 0, 0],
        [0, 1, 2, 0, 3, 4, 0, 0, 0],
        [0, 0, 0, 1, 2, 0, 3, 4, 0],
        [0, 0, 0, 0, 1, 2, 0, 3, 4],
    ]


def test_max_pooling_is_the_decks_matrix():
    matrix = max_pool_matrix(MAP, 2)
    assert matrix.shape == (4, 16)
    assert matrix[0].tolist() == [0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    assert (matrix @ MAP.ravel()).tolist() == [6, 8, 3, 4]
    assert (matrix.sum(1) == 1).all()


def test_the_matrix_of_max_pooling_is_its_jacobian():
    image = torch.tensor(np.random.default_rng(2).permutation(49).reshape(7, 7), dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda m: F.max_pool2d(m[None], 3, 2).flatten(), image)
    np.testing.assert_array_equal(max_pool_matrix(image.numpy(), 3, stride=2), jacobian.flatten(1).numpy())


def test_average_pooling_has_quarters_wherever_maxima_might_stand():
    matrix = average_pool_matrix((4, 4), 2)
    assert sorted(set(matrix.ravel())) == [0, 0.25]
    assert matrix[0].nonzero()[0].tolist() == [0, 1, 4, 5]
    assert (matrix @ MAP.ravel()).tolist() == [13 / 4, 21 / 4, 2, 2]
    expected = F.avg_pool2d(torch.tensor(MAP[None, None]).double(), 2, 1).flatten()
    assert (average_pool_matrix((4, 4), 2, stride=1) @ MAP.ravel()).tolist() == expected.tolist()


def test_arrays_of_other_shapes_are_refused():
    with pytest.raises(ConfigError, match=r"expected \(C, H, W\), got 2 axes"):
        im2col(MAP, 2)
    with pytest.raises(ConfigError, match=r"expected \(H, W\), got 3 axes"):
        max_pool_matrix(NUMBERED, 2)
    with pytest.raises(ConfigError, match=r"columns: 12x4 given, but an image of 3x4x4 has 12x9"):
        col2im(np.zeros((12, 4)), (3, 4, 4), 2)
