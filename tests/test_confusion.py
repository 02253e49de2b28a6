"""The confusion matrix against loops and numbers computed by hand."""

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from forked import call_each
from torch import distributed

from visionapps.errors import ConfigError, DataError
from visionapps.metrics.confusion import Confusion, Scores, argmax_labels


def counted_by_loop(prediction: np.ndarray, truth: np.ndarray, classes: int, ignore: int) -> np.ndarray:
    matrix = np.zeros((classes, classes), np.int64)
    for p, t in zip(prediction.ravel(), truth.ravel(), strict=True):
        if t != ignore:
            matrix[t, p] += 1
    return matrix


def test_scores_of_four_pixels_are_those_computed_by_hand() -> None:
    # truth 0 0 1 1, prediction 0 1 1 1: class 0 TP 1 FN 1, class 1 TP 2 FP 1
    confusion = Confusion(3)
    confusion.update(torch.tensor([[[0, 1], [1, 1]]]), torch.tensor([[[0, 0], [1, 1]]]))
    scores = confusion.compute()
    assert scores.dice[:2] == pytest.approx((2 / 3, 4 / 5))
    assert scores.iou[:2] == pytest.approx((1 / 2, 2 / 3))
    assert scores.precision[:2] == pytest.approx((1.0, 2 / 3))
    assert scores.recall[:2] == pytest.approx((0.5, 1.0))
    assert scores.accuracy == pytest.approx(3 / 4)
    assert math.isnan(scores.dice[2]), "class 2 occurs nowhere and has no Dice"
    assert scores.mean_dice == pytest.approx((2 / 3 + 4 / 5) / 2), "an absent class is left out of the mean"
    assert scores.mean_iou == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert scores.support == (2, 2, 0)


def test_a_class_that_is_only_predicted_has_dice_zero_and_counts_in_the_mean() -> None:
    confusion = Confusion(2)
    confusion.update(torch.tensor([[[0, 1]]]), torch.tensor([[[0, 0]]]))
    scores = confusion.compute()
    assert scores.dice == pytest.approx((2 / 3, 0.0))
    assert scores.mean_dice == pytest.approx(1 / 3)
    assert math.isnan(scores.recall[1])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
@pytest.mark.parametrize("classes", [2, 6, 200])
def test_streaming_over_batches_equals_a_loop_over_all_pixels(dtype: torch.dtype, classes: int) -> None:
    generator = torch.Generator().manual_seed(classes)
    confusion = Confusion(classes)
    total = np.zeros((classes, classes), np.int64)
    for _ in range(3):
        logits = torch.randn(2, classes, 9, 7, generator=generator)
        truth = torch.randint(0, classes, (2, 9, 7), generator=generator)
        truth[torch.rand(truth.shape, generator=generator) < 0.2] = 255
        confusion.update(logits, truth.to(dtype))
        total += counted_by_loop(logits.numpy().argmax(1), truth.numpy(), classes, 255)
    assert np.array_equal(np.array(confusion.compute().matrix), total)
    confusion.reset()
    assert sum(confusion.compute().support) == 0


def test_pixels_without_a_prediction_count_as_missed_but_not_as_false() -> None:
    confusion = Confusion(2)
    confusion.update(
        torch.tensor([[[0, 255, 1, 255]]], dtype=torch.uint8), torch.tensor([[[0, 0, 1, 255]]], dtype=torch.uint8)
    )
    scores = confusion.compute()
    assert scores.unpredicted == (1, 0)
    assert scores.dice == pytest.approx((2 / 3, 1.0))
    assert scores.precision == (1.0, 1.0)
    assert scores.accuracy == pytest.approx(2 / 3)


@pytest.mark.parametrize("stray", [7, -1])
def test_a_truth_label_outside_the_label_space_is_reported(stray: int) -> None:
    confusion = Confusion(2)
    confusion.update(torch.zeros(1, 2, 1, 3), torch.tensor([[[0, stray, 255]]]))
    with pytest.raises(DataError, match="1 pixels have labels that are neither one of the 2 classes nor the ignore"):
        confusion.compute()


def test_wrong_shapes_are_named() -> None:
    confusion = Confusion(3)
    with pytest.raises(ConfigError, match="logits of 2 classes, expected 3"):
        confusion.update(torch.zeros(1, 2, 4, 4), torch.zeros(1, 4, 4, dtype=torch.uint8))
    with pytest.raises(ConfigError, match=r"prediction \(1, 4, 4\) and labels \(1, 4, 5\)"):
        confusion.update(torch.zeros(1, 4, 4, dtype=torch.uint8), torch.zeros(1, 4, 5, dtype=torch.uint8))
    with pytest.raises(ConfigError, match="300 classes"):
        Confusion(300)


@pytest.mark.parametrize("shape", [(2, 5, 70, 33), (1, 1, 3, 4), (1, 40, 65, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_argmax_labels_equals_numpy_argmax_and_the_lowest_label_wins_ties(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    logits = torch.randn(shape, generator=torch.Generator().manual_seed(0)).mul(3).round().to(dtype)  # many ties
    expected = logits.float().numpy().argmax(1)
    for layout in (logits, logits.contiguous(memory_format=torch.channels_last)):
        labels = argmax_labels(layout)
        assert labels.dtype == torch.uint8
        assert np.array_equal(labels.numpy(), expected)


def test_a_dictionary_of_scores_has_none_where_a_value_is_undefined() -> None:
    data = Scores.from_matrix(np.array([[3, 0], [0, 0]])).to_dict(["roof", "road"])
    assert data["classes"][0] == {
        "name": "roof", "dice": 1.0, "iou": 1.0, "precision": 1.0, "recall": 1.0, "pixels": 3,
    }  # fmt: skip
    assert data["classes"][1]["dice"] is None
    assert data["mean_dice"] == 1.0


def share_counts(rank: int, address: str) -> str:
    """What one of two processes gets, and the sum of the counts that it keeps."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    confusion = Confusion(2)
    truth = torch.tensor([[[0, 0, 1]]]) if rank == 0 else torch.tensor([[[1, 255, 1]]])
    confusion.update(torch.tensor([[[0, 1, 1]]]), truth)
    confusion.compute()
    said = f"{confusion.compute().matrix} {sum(confusion._counts.tolist())}"
    distributed.destroy_process_group()
    return said


def test_two_processes_get_the_scores_of_all_pixels_and_keep_their_own_counts(tmp_path: Path) -> None:
    calls = [(rank, f"file://{tmp_path / 'meeting'}") for rank in range(2)]
    # process 0: (0,0) (0,1) (1,1); process 1: (1,0) ignored (1,1)
    assert call_each("test_confusion", "share_counts", calls, together=True) == ["((1, 1), (1, 2)) 3"] * 2
