"""Mask values to labels and back, against tables looked up by hand or by plain loops."""

import numpy as np
import pytest

from visionapps.data.labels import ClassDef, MaskCoding, RawMask, UnknownValues
from visionapps.errors import ConfigError, DataError

RED, GREEN, BLACK = (255, 0, 0), (0, 128, 0), (0, 0, 0)


def coding(*ids: tuple[int, ...], void: tuple[int, ...] = ()) -> MaskCoding:
    return MaskCoding.from_classes([ClassDef(f"c{k}", i) for k, i in enumerate(ids)], void_ids=void)


def painted() -> MaskCoding:
    classes = [ClassDef("roof", color="#FF0000"), ClassDef("tree", color="#008000")]
    return MaskCoding.from_classes(classes, void_colors=["#000000"])


def test_classes_without_ids_take_their_position():
    assert coding((), ()).encode(RawMask(np.array([[0, 1]], np.uint8))).tolist() == [[0, 1]]


def test_several_ids_merge_into_one_class():
    mask = np.array([[0, 24, 25, 26]], np.uint8)
    assert coding((0, 25, 26), (24,)).encode(RawMask(mask)).tolist() == [[0, 1, 0, 0]]


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "int32", "int64", "float32"])
def test_sparse_ids_of_every_dtype_become_labels(dtype):
    mask = np.array([[10, 30], [50, 10]], dtype)
    assert coding((10,), (30,), (50,)).encode(RawMask(mask)).tolist() == [[0, 1], [2, 0]]


def test_negative_and_large_ids_become_labels():
    table = coding((-32768, -2), (65535, 300), void=(-1,))
    assert table.encode(RawMask(np.array([[-2, 300, -1, -32768]], np.int16))).tolist() == [[0, 1, 255, 0]]
    assert table.encode(RawMask(np.array([[65535, 300]], np.uint16))).tolist() == [[1, 1]]


def test_any_mask_of_ids_equals_a_loop_over_its_pixels():
    rng = np.random.default_rng(0)
    meaning = {7: 0, 200: 1, 3: 1, 90: 2, 255: 255}
    mask = rng.choice(list(meaning), (40, 50)).astype(np.uint8)
    expected = [[meaning[v] for v in row] for row in mask.tolist()]
    assert coding((7,), (200, 3), (90,), void=(255,)).encode(RawMask(mask)).tolist() == expected


def test_nodata_of_the_file_is_void_unless_a_class_claims_it():
    mask = RawMask(np.array([[0, 1]], np.uint8), nodata=0)
    assert coding((1,), (2,)).encode(mask).tolist() == [[255, 0]]
    assert coding((0,), (1,)).encode(mask).tolist() == [[0, 1]]


def test_nan_is_void():
    assert coding((1,)).encode(RawMask(np.array([[np.nan, 1]], np.float32))).tolist() == [[255, 0]]


def test_a_one_bit_mask_serves_both_conventions():
    mask = RawMask(np.array([[False, True]]), bilevel=True)
    assert coding((0,), (1,)).encode(mask).tolist() == [[0, 1]]
    assert coding((0,), (255,)).encode(mask).tolist() == [[0, 1]]
    assert coding((0,), (1,), void=(255,)).encode(mask).tolist() == [[0, 1]]


def test_unknown_values_are_listed_with_their_pixels():
    mask = np.array([[0, 1, 9, 9], [9, 7, 0, 0]], np.uint8)
    with pytest.raises(
        UnknownValues, match=r"m\.png: .* no class: 9 \(3 px\), 7 \(1 px\), 50\.00%.*expected ids 0\.\.1"
    ):
        coding((0,), (1,)).encode(RawMask(mask, source="m.png"))
    with pytest.raises(UnknownValues) as caught:
        coding((0,), (1,)).encode(RawMask(mask))
    assert (caught.value.values, caught.value.counts, caught.value.soft) == ((9, 7), (3, 1), False)


def test_a_binary_mask_with_position_ids_is_told_about_255():
    with pytest.raises(UnknownValues, match=r"give the foreground class `ids: \[255\]`"):
        coding((), ()).encode(RawMask(np.array([[0, 255]], np.uint8)))


def test_fractions_and_values_outside_16_bit_are_unknown():
    with pytest.raises(UnknownValues, match=r"0\.5 \(1 px\)"):
        coding((0,), (1,)).encode(RawMask(np.array([[0.5, 1]], np.float32)))
    with pytest.raises(UnknownValues, match=r"70000 \(1 px\)"):
        coding((0,), (1,)).encode(RawMask(np.array([[70000, 1]], np.int64)))


def test_unknown_values_can_become_void_or_the_nearest_class():
    table, mask = coding((0,), (200,), void=(255,)), RawMask(np.array([[0, 30, 170, 255, 200]], np.uint8))
    assert table.encode(mask, "void").tolist() == [[0, 255, 255, 255, 1]]
    assert table.encode(mask, "nearest").tolist() == [[0, 0, 1, 255, 1]]


def test_a_blurred_binary_mask_is_called_soft_and_instance_ids_are_not():
    blurred = np.linspace(0, 255, 60).astype(np.uint8).reshape(6, 10)
    with pytest.raises(UnknownValues, match=r"resampled or JPEG-compressed.*policies\.soft_mask") as caught:
        coding((0,), (255,)).encode(RawMask(blurred))
    assert caught.value.soft
    with pytest.raises(UnknownValues, match="stand for no class") as caught:
        coding((0,), (1,)).encode(RawMask(np.arange(60, dtype=np.uint8).reshape(6, 10)))
    assert not caught.value.soft


def test_colours_are_looked_up_exactly():
    mask = RawMask(np.array([[RED, GREEN, BLACK]], np.uint8))
    assert painted().encode(mask).tolist() == [[0, 1, 255]]
    with pytest.raises(UnknownValues, match=r"#FF0001 \(1 px\).*2 class colours.*void_colors"):
        painted().encode(RawMask(np.array([[RED, (255, 0, 1)]], np.uint8)))


def test_noisy_colours_are_soft_and_go_to_the_nearest_class():
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 2, (20, 20))
    noisy = np.clip(np.array([RED, GREEN])[truth] + rng.integers(-9, 10, (20, 20, 3)), 0, 255).astype(np.uint8)
    with pytest.raises(UnknownValues) as caught:
        painted().encode(RawMask(noisy))
    assert caught.value.soft
    assert (painted().encode(RawMask(noisy), "nearest") == truth).all()


def test_colour_masks_need_colours_in_the_class_table():
    with pytest.raises(DataError, match="no class has one; give each class a `color"):
        coding((0,)).encode(RawMask(np.zeros((2, 2, 3), np.uint8)))


def test_a_palette_counts_by_colour_when_the_table_knows_all_that_occur_else_by_index():
    indices = np.array([[0, 1, 1]], np.uint8)
    palette = np.array([GREEN, RED, (9, 9, 9)], np.uint8)
    assert painted().encode(RawMask(indices, palette)).tolist() == [[1, 0, 0]]
    assert coding((0,), (1,)).encode(RawMask(indices, palette)).tolist() == [[0, 1, 1]]
    other = np.array([GREEN, (1, 2, 3)], np.uint8)
    assert painted().encode(RawMask(indices, other)).tolist() == [[0, 1, 1]]


def test_decoding_gives_the_first_ids_in_the_smallest_type_that_holds_them():
    labels = np.array([[0, 1, 255]], np.uint8)
    for table, expected, dtype in (
        (coding((10, 11), (30,), void=(99,)), [[10, 30, 99]], np.uint8),
        (coding((0,), (1,)), [[0, 1, 255]], np.uint8),
        (coding((1000,), (3,), void=(0,)), [[1000, 3, 0]], np.uint16),
        (coding((-5,), (3,)), [[-5, 3, 255]], np.int16),
    ):
        values = table.decode(labels)
        assert values.tolist() == expected
        assert values.dtype == dtype
    with pytest.raises(ConfigError, match="void pixels need an id"):
        coding((0,), (255,)).decode(labels)
    assert coding((0,), (255,)).decode(labels[:, :2]).tolist() == [[0, 255]]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: coding((1,), ()), "id 1 is claimed by c0 and c1"),
        (lambda: coding((1,), (2,), void=(2,)), "id 2 is claimed by c1 and void"),
        (lambda: coding((70000,)), "outside -32768..65535"),
        (lambda: MaskCoding.from_classes([]), "the list is empty"),
        (lambda: MaskCoding.from_classes([ClassDef("a", color="red")]), "'red' of a is no colour"),
        (lambda: MaskCoding.from_classes([ClassDef("a"), ClassDef("a")]), "class names must differ"),
        (
            lambda: MaskCoding.from_classes([ClassDef("a", color="#000000")], void_colors=["#000000"]),
            "colour #000000 is claimed by a and void",
        ),
    ],
)
def test_contradictions_in_the_class_table_are_named(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_more_classes_than_8_bits_hold_are_refused():
    with pytest.raises(ConfigError, match="256 are too many for masks of 8 bits; give at most 255"):
        MaskCoding.from_classes([ClassDef(str(i)) for i in range(256)])
