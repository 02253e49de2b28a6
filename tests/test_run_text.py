"""Run lengths read from text at once against the codec that reads them one by one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from visionapps.competition import scoring_rows
from visionapps.competition.run_text import plain_runs
from visionapps.errors import DataError
from visionapps.inference.dialects import load_dialect
from visionapps.masks import format_runs, parse_runs


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.tuples(st.integers(0, 10**18 - 1), st.integers(0, 10**6)), max_size=5), max_size=5))
def test_plain_texts_are_read_as_the_codec_reads_them(rows):
    texts = [format_runs(np.array(row, np.int64).reshape(-1, 2)) for row in rows]
    for text, runs in zip(texts, plain_runs(texts), strict=True):
        assert runs is not None
        assert runs.shape == (len(runs), 2)
        assert np.array_equal(runs, parse_runs(text))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text("019 -x\té", max_size=8), min_size=1, max_size=6))
def test_a_text_that_is_not_plain_is_left_to_the_codec_and_never_read_wrongly(texts):
    for text, runs in zip(texts, plain_runs(texts), strict=True):
        if runs is not None:
            assert np.array_equal(runs, parse_runs(text))


@pytest.mark.parametrize("text", ["1", "1 2 3", " 1 2", "1 2 ", "1  2", "1 -2", "1 2x", "1\t2", f"{10**18} 1", "1_0 2"])
def test_what_is_not_plain_spoils_no_other_row(text):
    found = plain_runs(["5 1 7 2", text, "", "3 4"])
    assert found[1] is None
    assert [found[i].tolist() for i in (0, 2, 3)] == [[[5, 1], [7, 2]], [], [[3, 4]]]
    assert plain_runs(["5 1", "1 2\n3 4"]) == [None, None]


def test_a_long_file_is_read_at_once_and_its_errors_have_the_same_words(tmp_path, monkeypatch):
    dialect, path = load_dialect("kaggle"), tmp_path / "s.csv"
    path.write_text("ImageId,EncodedPixels\na,1 2 5 1\nb,\nc,3  4\n")
    one_by_one = scoring_rows.read_rows(path, dialect)
    monkeypatch.setattr(scoring_rows, "_MANY", 0)
    at_once = scoring_rows.read_rows(path, dialect)
    plain = [
        {cell: [runs.tolist() for runs in own] for cell, own in side.runs.items()} for side in (one_by_one, at_once)
    ]
    assert plain[0] == plain[1] == {("a", 1): [[[1, 2], [5, 1]]], ("b", 1): [], ("c", 1): [[[3, 4]]]}
    path.write_text("ImageId,EncodedPixels\na,1 2 5 1\nb,4 x\n")
    with pytest.raises(DataError) as caught:
        scoring_rows.read_rows(path, dialect)
    assert "line 3 (b): run 1: 'x' is no whole number" in str(caught.value)
