"""What training saw of each class: counts against numpy, and their file."""

import numpy as np
import pytest

from visionapps.data.drawn import Drawn, DrawnTable
from visionapps.errors import DataError


def test_a_batch_is_counted_like_numpy_does():
    labels = np.random.default_rng(0).choice([0, 1, 1, 3, 255], (4, 37, 50)).astype(np.uint8)
    labels[2] = 255
    labels[3, labels[3] == 3] = 0
    drawn = Drawn.of(labels, 4)
    assert drawn.crops == 4
    assert drawn.pixels == tuple((labels == k).sum() for k in range(4))
    assert drawn.holding == (3, 3, 0, 2)
    assert drawn.share_of_crops.tolist() == [0.75, 0.75, 0, 0.5]
    assert drawn.share_of_pixels.sum() == pytest.approx(1)


def test_counts_add_up_and_nothing_has_no_share():
    labels = np.random.default_rng(1).integers(0, 3, (5, 8, 8), np.uint8)
    assert Drawn.of(labels[:2], 3) + Drawn.of(labels[2:], 3) == Drawn.of(labels, 3)
    assert Drawn.of_row(Drawn.of(labels, 3).to_row()) == Drawn.of(labels, 3)
    assert Drawn.none(3).share_of_pixels.tolist() == [0, 0, 0]


def test_a_table_comes_back_from_its_file_and_another_file_is_refused(tmp_path):
    table = DrawnTable(
        ("a", 'b, "c"'), Drawn(3, (3, 1), (90, 10)), {0: Drawn(8, (8, 2), (70, 3)), 1: Drawn(8, (7, 5), (60, 13))}
    )
    table.write(tmp_path / "drawn.csv")
    assert DrawnTable.read(tmp_path / "drawn.csv") == table
    assert table.total == Drawn(16, (15, 7), (130, 16))
    (tmp_path / "other.csv").write_text("epoch,loss\n0,1\n")
    for name in ("other.csv", "none.csv"):
        with pytest.raises(DataError, match=f"{name}: is no table of what training drew"):
            DrawnTable.read(tmp_path / name)
