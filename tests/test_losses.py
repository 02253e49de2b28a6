"""Losses against plain loops over pixels and against torch."""

import math

import numpy as np
import pytest
import torch
from segmentation_models_pytorch import losses as smp_losses
from torch import Tensor, nn
from torch.nn import functional as F

from visionapps.class_weights import ClassCounts, ClassWeights
from visionapps.errors import ConfigError
from visionapps.losses import (
    CrossEntropy,
    Dice,
    DiceCrossEntropy,
    Focal,
    HardPixels,
    Lovasz,
    MeanSquaredError,
    WeightedSum,
    meet,
    weights_in,
)

K, IGNORE = 4, 255
WEIGHTS = [0.5, 1.0, 2.0, 3.0]


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    """Logits and uint8 labels of two images; class 3 does not occur, and every sixth pixel or so is ignored."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, K, 6, 5, generator=generator) * 3
    labels = torch.randint(0, 3, (2, 6, 5), generator=generator)
    labels[torch.rand(2, 6, 5, generator=generator) < 0.17] = IGNORE
    return logits.requires_grad_(), labels.to(torch.uint8)


def pixels(logits: Tensor, labels: Tensor) -> list[tuple[np.ndarray, int]]:
    """Softmax probabilities and label of each pixel that counts, in float64, one by one."""
    found = []
    scores, truth = logits.detach().double().numpy(), labels.numpy()
    for b, row, col in np.ndindex(truth.shape):
        if truth[b, row, col] != IGNORE:
            e = np.exp(scores[b, :, row, col] - scores[b, :, row, col].max())
            found.append((e / e.sum(), int(truth[b, row, col])))
    return found


def dice_by_loop(logits: Tensor, labels: Tensor, classes: range | list[int], smooth: float = 1.0) -> float:
    losses = []
    for k in classes:
        tp = sum(p[k] for p, y in pixels(logits, labels) if y == k)
        predicted = sum(p[k] for p, _ in pixels(logits, labels))
        labelled = sum(y == k for _, y in pixels(logits, labels))
        losses.append(1 - (2 * tp + smooth) / (predicted + labelled + smooth))
    return float(np.mean(losses))


ALL_LOSSES = [
    CrossEntropy(),
    CrossEntropy(WEIGHTS, label_smoothing=0.1),
    Focal(),
    Focal(0.5, class_weights=WEIGHTS),
    Dice(),
    Dice("all"),
    MeanSquaredError(),
    DiceCrossEntropy(),
    WeightedSum([CrossEntropy(), Dice()], [1.0, 2.0]),
    HardPixels(0.3, at_least=1),
    HardPixels(threshold=0.5, at_least=4, class_weights=WEIGHTS),
    Lovasz(),
    Lovasz("all", per_image=True),
    WeightedSum([HardPixels(0.5, at_least=1), Lovasz()], [1.0, 0.5]),
]
NAMES = [f"{type(loss).__name__}-{i}" for i, loss in enumerate(ALL_LOSSES)]


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_the_mean_of_torch(batch, weights, smoothing):
    logits, labels = batch
    ours = CrossEntropy(weights, label_smoothing=smoothing)(logits, labels)
    factors = None if weights is None else torch.tensor(weights)
    theirs = F.cross_entropy(logits, labels.long(), factors, ignore_index=IGNORE, label_smoothing=smoothing)
    torch.testing.assert_close(ours, theirs)


def test_cross_entropy_weighs_each_pixel_by_its_class(batch):
    logits, labels = batch
    terms = [(WEIGHTS[y] * -math.log(p[y]), WEIGHTS[y]) for p, y in pixels(logits, labels)]
    expected = sum(t for t, _ in terms) / sum(w for _, w in terms)
    assert CrossEntropy(WEIGHTS)(logits, labels).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("gamma", [0.5, 2.0, 3.0])
def test_focal_is_the_formula_of_the_paper_averaged_over_counted_pixels(batch, gamma):
    logits, labels = batch
    expected = np.mean([-((1 - p[y]) ** gamma) * math.log(p[y]) for p, y in pixels(logits, labels)])
    assert Focal(gamma)(logits, labels).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_focal_with_gamma_zero_is_cross_entropy_and_that_of_smp_is_not(batch, weights):
    logits, labels = batch
    torch.testing.assert_close(Focal(0.0, class_weights=weights)(logits, labels), CrossEntropy(weights)(logits, labels))
    theirs = smp_losses.FocalLoss("multiclass", gamma=0.0, ignore_index=IGNORE)(logits, labels)
    assert abs(theirs.item() - CrossEntropy()(logits, labels).item()) > 0.1  # why it is not used


def test_dice_is_averaged_over_the_classes_that_occur(batch):
    logits, labels = batch
    assert Dice()(logits, labels).item() == pytest.approx(dice_by_loop(logits, labels, [0, 1, 2]), rel=1e-5)


def test_dice_over_all_classes_counts_the_absent_one_as_wrongly_predicted(batch):
    logits, labels = batch
    assert Dice("all")(logits, labels).item() == pytest.approx(dice_by_loop(logits, labels, range(K)), rel=1e-5)
    assert dice_by_loop(logits, labels, [3]) > 0.5


def test_dice_is_that_of_smp_up_to_its_mean_over_absent_classes(batch):
    logits, labels = batch
    theirs = smp_losses.DiceLoss("multiclass", ignore_index=IGNORE)(logits, labels)
    ours = Dice(smooth=1e-6)(logits, labels)
    torch.testing.assert_close(theirs * K / 3, ours)  # 3 of the K classes occur; smp still divides by K


def test_perfect_dice_is_zero_and_a_half_right_map_is_computed_by_hand():
    labels = torch.tensor([[[0, 0, 1, 1]]], dtype=torch.uint8)
    certain = F.one_hot(labels.long(), 2).permute(0, 3, 1, 2) * 100.0
    assert Dice()(certain, labels).item() == pytest.approx(0, abs=1e-6)
    all_zero = torch.tensor([100.0, -100.0]).view(1, 2, 1, 1).expand(1, 2, 1, 4)
    # class 0: TP 2, predicted 4, labelled 2: 5 / 7; class 1: TP 0, predicted 0, labelled 2: 1 / 3
    assert Dice()(all_zero, labels).item() == pytest.approx(1 - (5 / 7 + 1 / 3) / 2, rel=1e-6)


def test_mean_squared_error_compares_probabilities_with_one_hot_vectors(batch):
    logits, labels = batch
    expected = np.mean([np.mean((p - np.eye(K)[y]) ** 2) for p, y in pixels(logits, labels)])
    assert MeanSquaredError()(logits, labels).item() == pytest.approx(expected, rel=1e-5)


def test_weighted_sum_and_dice_cross_entropy_add_their_parts(batch):
    logits, labels = batch
    parts = CrossEntropy(WEIGHTS)(logits, labels), Dice()(logits, labels)
    total = WeightedSum([CrossEntropy(WEIGHTS), Dice()], [2.0, 0.25])(logits, labels)
    torch.testing.assert_close(total, 2 * parts[0] + 0.25 * parts[1])
    mixed = DiceCrossEntropy(0.3, class_weights=WEIGHTS)(logits, labels)
    torch.testing.assert_close(mixed, 0.7 * parts[0] + 0.3 * parts[1])


@pytest.mark.parametrize("loss", ALL_LOSSES, ids=NAMES)
def test_a_wholly_ignored_batch_gives_zero_and_zero_gradients(loss, batch):
    logits, labels = batch
    value = loss(logits, torch.full_like(labels, IGNORE))
    value.backward()
    assert value.item() == 0
    assert logits.grad is not None
    assert logits.grad.eq(0).all()


@pytest.mark.parametrize("loss", ALL_LOSSES, ids=NAMES)
def test_ignored_pixels_change_neither_value_nor_gradient(loss, batch):
    logits, labels = batch
    ignored = (labels == IGNORE).unsqueeze(1)
    first = loss(logits, labels)
    (gradient,) = torch.autograd.grad(first, logits)
    torch.testing.assert_close(loss(torch.where(ignored, logits + 7 * logits.flip(1), logits), labels), first)
    assert gradient.masked_select(ignored).eq(0).all()
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize("loss", ALL_LOSSES, ids=NAMES)
def test_gradients_are_those_of_finite_differences(loss, batch):
    logits, labels = batch
    direction = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))
    (gradient,) = torch.autograd.grad(loss(logits, labels), logits)
    step = 1e-2
    with torch.no_grad():
        slope = (loss(logits + step * direction, labels) - loss(logits - step * direction, labels)) / (2 * step)
    assert (gradient * direction).sum().item() == pytest.approx(slope.item(), rel=2e-2, abs=1e-4)


@pytest.mark.parametrize("loss", ALL_LOSSES, ids=NAMES)
def test_uint8_and_int64_labels_mean_the_same(loss, batch):
    logits, labels = batch
    torch.testing.assert_close(loss(logits, labels), loss(logits, labels.long()), rtol=0, atol=0)


@pytest.mark.parametrize("loss", ALL_LOSSES, ids=NAMES)
def test_logits_without_doubt_give_finite_gradients(loss):
    labels = torch.tensor([[[0, 1, IGNORE]]], dtype=torch.uint8)
    logits = torch.zeros(1, K, 1, 3)
    logits[0, 0] = 200.0  # right without doubt at the first pixel, wrong without doubt at the second
    logits.requires_grad_()
    loss(logits, labels).backward()
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("loss", ALL_LOSSES, ids=NAMES)
def test_autocast_does_not_shorten_the_sums(loss):
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(2, K, 64, 64, generator=generator)
    labels = torch.randint(0, K, (2, 64, 64), generator=generator, dtype=torch.uint8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        short = loss(logits, labels)
    assert short.dtype == torch.float32
    torch.testing.assert_close(short, loss(logits, labels), rtol=1e-6, atol=0)


def test_a_low_ignore_label_drops_that_class():
    logits = torch.randn(1, 3, 2, 2, generator=torch.Generator().manual_seed(3))
    labels = torch.tensor([[[0, 1], [2, 2]]], dtype=torch.uint8)
    moved = labels.clone()
    moved[labels == 0] = IGNORE
    for kind in (CrossEntropy, Focal, Dice, MeanSquaredError, DiceCrossEntropy, Lovasz):
        torch.testing.assert_close(kind(ignore=0)(logits, labels), kind()(logits, moved))


def test_class_weights_stay_out_of_checkpoints_but_follow_the_device():
    loss = DiceCrossEntropy(class_weights=WEIGHTS)
    assert loss.state_dict() == {}
    assert loss.to(torch.float64).cross_entropy.class_weights.dtype == torch.float64


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: CrossEntropy([1.0, -1.0]), r"class weights \[1.0, -1.0\]: give one finite number >= 0 per class"),
        (lambda: CrossEntropy([]), "give one finite number"),
        (lambda: CrossEntropy(label_smoothing=1.0), r"label_smoothing is 1.0; choose a value in \[0, 1\)"),
        (lambda: Focal(-1.0), "gamma is -1.0; choose 0 or more"),
        (lambda: Dice(smooth=0), "smooth is 0; choose a positive number"),
        (lambda: Dice("some"), "average is 'some'; choose 'present' or 'all'"),
        (lambda: DiceCrossEntropy(1.5), r"dice_weight is 1.5; choose a value in \[0, 1\]"),
        (lambda: WeightedSum([Dice()], []), "1 losses and 0 weights; give one weight per loss"),
        (lambda: Lovasz("some"), "Lovasz loss: average is 'some'; choose 'present' or 'all'"),
        (lambda: HardPixels(), "give either share, such as 0.25, or threshold"),
        (lambda: HardPixels(0.5, threshold=0.7), "give either share"),
        (lambda: HardPixels(0.0), r"share is 0.0; choose a value in \(0, 1\]"),
        (lambda: HardPixels(threshold=1.5), r"threshold is 1.5; choose a value in \(0, 1\]"),
        (lambda: HardPixels(0.5, at_least=0), "at_least is 0; choose a number of pixels from 1 on"),
        (lambda: CrossEntropy("rare"), "there is no rule 'rare'; choose inverse, median_frequency, effective, or a"),
        (lambda: ClassWeights("inverse", beta=0.9), "beta belongs to the rule effective, not to inverse"),
        (lambda: ClassWeights("effective", beta=1.0), r"beta is 1.0; choose a value in \[0, 1\)"),
    ],
)
def test_wrong_settings_are_refused_when_the_loss_is_made(make, text):
    with pytest.raises(ConfigError, match=text):
        make()


@pytest.mark.parametrize("loss", [CrossEntropy([1.0, 2.0]), Focal(class_weights=[1.0, 2.0])], ids=["ce", "focal"])
def test_weights_for_another_number_of_classes_are_refused(loss: nn.Module, batch):
    with pytest.raises(ConfigError, match="2 weights for a model of 4 classes; give one per class"):
        loss(*batch)


@pytest.mark.parametrize("loss", ALL_LOSSES, ids=NAMES)
def test_labels_of_another_shape_are_refused(loss, batch):
    logits, labels = batch
    with pytest.raises(ConfigError, match=r"logits \(2, 4, 6, 5\) and labels \(2, 1, 6, 5\) do not fit"):
        loss(logits, labels.unsqueeze(1))


def hard_by_loop(logits: Tensor, labels: Tensor, keep: int, below: float = 0.0) -> float:
    """Weighted mean loss of the pixels with the least probabilities of their classes: so many, or all below a bound."""
    found = sorted((p[y], WEIGHTS[y]) for p, y in pixels(logits, labels))
    kept = [pair for rank, pair in enumerate(found) if rank < keep or pair[0] < below]
    return sum(-w * math.log(p) for p, w in kept) / sum(w for _, w in kept)


@pytest.mark.parametrize(("share", "at_least", "keep"), [(0.3, 1, 16), (0.1, 12, 12), (1.0, 1, 53), (0.01, 1000, 53)])
def test_hard_pixels_are_the_least_probable_share_of_a_batch_and_at_least_so_many(batch, share, at_least, keep):
    logits, labels = batch
    assert len(pixels(logits, labels)) == 53
    loss = HardPixels(share, at_least=at_least, class_weights=WEIGHTS)
    assert loss(logits, labels).item() == pytest.approx(hard_by_loop(logits, labels, keep), rel=1e-5)


def test_hard_pixels_below_a_threshold_are_all_kept(batch):
    logits, labels = batch
    below = sum(p[y] < 0.2 for p, y in pixels(logits, labels))
    assert 5 < below < 40
    for at_least in (1, 45):
        ours = HardPixels(threshold=0.2, at_least=at_least, class_weights=WEIGHTS)(logits, labels)
        assert ours.item() == pytest.approx(hard_by_loop(logits, labels, at_least, 0.2), rel=1e-5)


def test_all_pixels_are_cross_entropy_and_easy_ones_have_no_gradient(batch):
    logits, labels = batch
    torch.testing.assert_close(HardPixels(1.0)(logits, labels), CrossEntropy()(logits, labels))
    (gradient,) = torch.autograd.grad(HardPixels(0.2, at_least=1)(logits, labels), logits)
    assert gradient.abs().sum(dim=1).gt(0).sum() == 11  # of the 53 that count


def test_pixels_as_hard_as_the_last_one_are_kept_so_that_their_place_does_not_matter():
    logits, labels = torch.zeros(1, 2, 2, 4), torch.zeros(1, 2, 4, dtype=torch.uint8)
    logits[0, 0, 0, 0] = 3.0  # one easy pixel, seven alike
    assert HardPixels(0.25, at_least=1)(logits, labels).item() == pytest.approx(math.log(2))


def lovasz_by_definition(logits: Tensor, labels: Tensor, classes: range | list[int]) -> float:
    """The Lovasz extension of the Jaccard loss, telescoped: each set of wrong pixels by itself, in float64."""
    losses = []
    for k in classes:
        errors = sorted(((1 - p[k] if y == k else p[k]), y == k) for p, y in pixels(logits, labels))[::-1]
        own = sum(mine for _, mine in errors)
        loss, before = 0.0, 0.0
        for count in range(1, len(errors) + 1):
            wrong = errors[:count]
            missed, added = sum(mine for _, mine in wrong), sum(not mine for _, mine in wrong)
            jaccard = 1 - (own - missed) / (own + added)
            loss, before = loss + errors[count - 1][0] * (jaccard - before), jaccard
        losses.append(loss)
    return float(np.mean(losses))


@pytest.mark.parametrize(("average", "classes"), [("present", [0, 1, 2]), ("all", range(K))])
def test_lovasz_is_the_extension_of_the_jaccard_loss_over_sets_of_wrong_pixels(batch, average, classes):
    logits, labels = batch
    assert Lovasz(average)(logits, labels).item() == pytest.approx(
        lovasz_by_definition(logits, labels, classes), rel=1e-5
    )


@pytest.mark.parametrize("per_image", [False, True])
def test_lovasz_and_its_gradient_are_those_of_smp(batch, per_image):
    logits, labels = batch
    ours = Lovasz(per_image=per_image)(logits, labels)
    theirs = smp_losses.LovaszLoss("multiclass", per_image=per_image, ignore_index=IGNORE)(logits, labels)
    torch.testing.assert_close(ours, theirs)
    gradients = [torch.autograd.grad(loss, logits)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients)


def test_smp_gives_no_scalar_for_a_batch_that_is_ignored(batch):
    logits, labels = batch
    theirs = smp_losses.LovaszLoss("multiclass", ignore_index=IGNORE)(logits, torch.full_like(labels, IGNORE))
    assert theirs.shape == (0, K)  # why it is not used


def test_lovasz_of_certain_predictions_is_one_minus_iou_and_images_without_labels_do_not_count():
    labels = torch.tensor([[[0, 0, 1, 1]], [[IGNORE] * 4]], dtype=torch.uint8)
    certain = F.one_hot(torch.tensor([[[0, 1, 1, 1]], [[0, 0, 0, 0]]]), 2).permute(0, 3, 1, 2) * 100.0
    # class 0: 1 of 2 pixels; class 1: 2 of 3
    for loss in (Lovasz(), Lovasz(per_image=True)):
        assert loss(certain, labels).item() == pytest.approx(1 - (1 / 2 + 2 / 3) / 2, rel=1e-6)


# Two photos of 400 px: class 0 in both, 1 in the first, 2 in the second; 3 nowhere.
COUNTS = ClassCounts.of_photos(("a", "b", "c", "d"), [(300, 100, 0, 0), (380, 0, 20, 0)])


def test_counts_of_photos_are_summed_over_those_that_show_a_class():
    assert COUNTS.pixels == (680, 100, 20, 0)
    assert COUNTS.around == (800, 400, 400, 0)


def test_rules_give_the_weights_of_their_formulas_with_a_mean_of_one():
    inverse = np.array([1 / 680, 1 / 100, 1 / 20])
    # Median frequency: shares 0.85, 0.25, 0.05, of which the median is 0.25.
    median = np.array([0.25 / 0.85, 1.0, 0.25 / 0.05])
    beta = 0.9
    samples = np.array([680, 100, 20]) / 4096
    effective = (1 - beta) / (1 - beta**samples)
    for rule, expected in (
        (ClassWeights("inverse"), inverse),
        (ClassWeights("median_frequency"), median),
        (ClassWeights("effective", 0.9), effective),
        (ClassWeights("effective", 0.0), np.ones(3)),
    ):
        weights = rule.of(COUNTS)
        assert weights[:3] == pytest.approx(expected / expected.mean(), rel=1e-6)
        assert weights[3] == 0


def test_a_large_beta_is_inverse_frequency_and_many_samples_of_every_class_are_equal():
    near = ClassWeights("effective", 1 - 1e-12).of(COUNTS)
    assert near == pytest.approx(ClassWeights("inverse").of(COUNTS), rel=1e-3)
    plenty = ClassCounts.of_photos(("a", "b"), [(10**9, 10**8)])
    assert ClassWeights("effective").of(plenty) == pytest.approx([1, 1], rel=1e-6)


def test_a_loss_meets_the_data_wherever_it_stands_in_a_sum(batch):
    logits, labels = batch
    parts = [CrossEntropy("inverse"), Dice(), DiceCrossEntropy(class_weights=ClassWeights("effective", 0.9))]
    loss = WeightedSum([*parts, HardPixels(0.5, class_weights=WEIGHTS)], [1.0] * 4)
    with pytest.raises(ConfigError, match="the rule inverse needs counts of the training photos"):
        loss(logits, labels)
    meet(loss, COUNTS)
    found = weights_in(loss)
    assert list(found) == ["losses.0", "losses.2.cross_entropy", "losses.3"]
    assert found["losses.0"] == pytest.approx(ClassWeights("inverse").of(COUNTS))
    assert found["losses.3"] == tuple(WEIGHTS)
    theirs = F.cross_entropy(
        logits, labels.long(), torch.tensor(ClassWeights("inverse").of(COUNTS)), ignore_index=IGNORE
    )
    torch.testing.assert_close(parts[0](logits, labels), theirs)
    assert loss.state_dict() == {}


def test_data_that_does_not_fit_the_weights_is_refused():
    with pytest.raises(ConfigError, match=r"2 weights for 4 classes \(a, b, c, d\); give one per class, in this order"):
        meet(CrossEntropy([1.0, 2.0]), COUNTS)
    with pytest.raises(ConfigError, match="no class occurs in the training photos"):
        meet(Focal(class_weights="inverse"), ClassCounts.of_photos(("a", "b"), [(0, 0)]))
