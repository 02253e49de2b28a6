"""Components found on runs against those that OpenCV finds on pixels, and pieces counted by eye."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from visionapps import masks
from visionapps.inference.run_components import components

maps = hnp.arrays(np.uint8, st.tuples(st.integers(1, 14), st.integers(1, 14)), elements=st.integers(0, 1))


@settings(max_examples=200, deadline=None)
@given(mask=maps, order=st.sampled_from(["row", "column"]), neighbours=st.sampled_from([4, 8]), base=st.integers(0, 1))
def test_components_are_those_that_opencv_finds(mask, order, neighbours, base):
    line_px = mask.shape[1] if order == "row" else mask.shape[0]
    found = components(masks.encode(mask, order=order, base=base), line_px, neighbours=neighbours, base=base)
    count, labels = cv2.connectedComponents(mask, connectivity=neighbours)
    expected = [masks.encode(labels == label, order=order, base=base).tolist() for label in range(1, count)]
    assert sorted(runs.tolist() for runs in found) == sorted(expected)
    assert [runs[0, 0] for runs in found] == sorted(runs[0, 0] for runs in found), "in the order of their first pixels"


@pytest.mark.parametrize(
    ("rows", "neighbours", "texts"),
    [
        (["101", "101", "111"], 4, ["1 1 3 2 6 4"]),  # a U: both arms are one, and a run goes on in the next line
        (["110", "001"], 4, ["1 2", "6 1"]),
        (["110", "001"], 8, ["1 2 6 1"]),
        (["001", "100"], 8, ["3 1", "4 1"]),  # one run of two pixels that do not touch
        (["1"], 4, ["1 1"]),
        (["000"], 8, []),
    ],
)
def test_small_masks_fall_into_the_pieces_that_one_sees(rows, neighbours, texts):
    mask = np.array([[c == "1" for c in row] for row in rows])
    found = components(masks.encode(mask, order="row"), mask.shape[1], neighbours=neighbours)
    assert [masks.format_runs(runs) for runs in found] == texts


def test_a_spiral_is_one_piece_and_a_chessboard_is_as_many_as_it_has_black_fields():
    spiral = np.array([[int(c) for c in row] for row in ("11111", "00001", "11101", "10001", "11111")])
    assert len(components(masks.encode(spiral, order="row"), 5, neighbours=4)) == 1
    board = np.indices((50, 60)).sum(0) % 2
    assert len(components(masks.encode(board, order="row"), 60, neighbours=4)) == 1500
    assert len(components(masks.encode(board, order="row"), 60, neighbours=8)) == 1
