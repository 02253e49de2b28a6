"""Augmentation: labels move with their pixels, nothing is invented, and chance comes from one generator."""

import itertools
import pickle
import sys
from subprocess import run

import cv2
import numpy as np
import pytest
from jsonargparse import ArgumentError, ArgumentParser

from visionapps.data.transforms import Aerial, Augment, Gain, Geometry, Grain, Pipeline, aerial, geometric, rearrange
from visionapps.errors import ConfigError

# Every image below shows its labels: class k is the grey value 50 k, so a result tells whether both moved alike.
CLASSES = 5


def scene(height=96, width=96, bands=3, dtype=np.uint8, seed=0):
    """Large patches of five classes and an image that shows them."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, CLASSES, (height // 24, width // 24), dtype=np.uint8)
    labels = np.kron(small, np.ones((24, 24), dtype=np.uint8))
    return np.repeat((labels * 50).astype(dtype)[..., None], bands, axis=2), labels


def agreement(image, labels):
    """Share of the labelled pixels whose grey value is the one of their class."""
    known = labels != 255
    return np.mean(np.abs(image[..., 0][known].astype(float) - labels[known] * 50.0) < 1)


def test_the_eight_symmetries_are_all_drawn_alike_and_rearrange_pixels_exactly():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
    labels = rng.integers(0, 9, (6, 6), dtype=np.uint8)
    variants = {
        np.ascontiguousarray(np.rot90(flipped, k)).tobytes(): np.rot90(flipped_labels, k)
        for flipped, flipped_labels in ((image, labels), (np.fliplr(image), np.fliplr(labels)))
        for k in range(4)
    }
    assert len(variants) == 8
    counts = dict.fromkeys(variants, 0)
    for _ in range(1600):
        got, moved = geometric()(image, labels, rng)
        counts[got.tobytes()] += 1
        assert np.array_equal(moved, variants[got.tobytes()])
    assert min(counts.values()) > 150


@pytest.mark.parametrize("bands", [1, 3, 4, 5, 8])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32, np.int32, np.int64])
def test_rearranging_equals_numpy_for_every_dtype_and_number_of_bands(bands, dtype):
    image = np.random.default_rng(1).integers(0, 100, (5, 7, bands)).astype(dtype)
    for turn, mirror in itertools.product(range(4), (False, True)):
        expected = np.rot90(np.fliplr(image) if mirror else image, turn)
        assert np.array_equal(rearrange(image, turn, mirror), expected)
        assert np.array_equal(rearrange(image[..., 0], turn, mirror), expected[..., 0])


def test_an_oblong_crop_keeps_its_size():
    image, labels = scene(48, 96)
    rng = np.random.default_rng(0)
    for augment in (geometric(), aerial(), aerial(2)):
        for _ in range(12):
            got, moved = augment(image, labels, rng)
            assert (got.shape, moved.shape) == (image.shape, labels.shape)


def test_labels_move_with_the_image_under_the_affine():
    image, labels = scene()
    augment = Geometry(affine=1.0, degrees=45, shear=20)
    rng = np.random.default_rng(0)
    for _ in range(30):
        got, moved = augment(image, labels, rng)
        # All but the pixels on the seams, where the image is interpolated.
        assert agreement(got, moved) > 0.85
        assert set(np.unique(moved)) <= {*range(CLASSES), 255}


def test_an_affine_of_a_known_zoom_is_the_one_that_numpy_computes():
    # Zoom 2 about the centre and one of the eight symmetries: the middle quarter, each pixel twice.
    image, labels = scene()
    labels[24:72, 24:72] = np.kron([[0, 1], [2, 3]], np.ones((24, 24)))  # no symmetry of its own
    augment = Geometry(affine=1.0, scale=(2.0, 2.0), degrees=0, shear=0)
    middle = np.kron(labels[24:72, 24:72], np.ones((2, 2), dtype=np.uint8))
    expected = [np.rot90(m, k) for m in (middle, np.fliplr(middle)) for k in range(4)]
    rng = np.random.default_rng(0)
    drawn = set()
    for _ in range(60):
        _, moved = augment(image, labels, rng)
        matches = [np.mean(moved == e) for e in expected]
        assert max(matches) > 0.97
        drawn.add(int(np.argmax(matches)))
    assert drawn == set(range(8))


def test_what_lies_outside_the_crop_is_reflected_in_the_image_and_ignored_in_the_labels():
    image = np.full((64, 64, 3), 77, dtype=np.uint8)
    labels = np.full((64, 64), 3, dtype=np.uint8)
    got, moved = Geometry(affine=1.0, scale=(0.5, 0.5), degrees=0, shear=0)(image, labels, np.random.default_rng(0))
    assert (got == 77).all()
    assert np.mean(moved == 3) == pytest.approx(0.25, abs=0.03)
    assert np.mean(moved == 255) == pytest.approx(0.75, abs=0.03)


@pytest.mark.parametrize("bands", [1, 2, 3, 4, 8, 13])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32, np.float64, np.int32, np.uint32])
def test_the_preset_takes_every_dtype_and_number_of_bands(bands, dtype):
    image, labels = scene(bands=bands, dtype=dtype)
    frozen = image.copy(), labels.copy()
    image.setflags(write=False)
    labels.setflags(write=False)
    augment = aerial(2.0)
    for seed in range(12):
        got, moved = augment(image, labels, np.random.default_rng(seed))
        assert (got.shape, got.dtype) == (image.shape, image.dtype)
        assert (moved.shape, moved.dtype) == (labels.shape, labels.dtype)
        assert np.isfinite(got).all()
    assert np.array_equal(image, frozen[0])
    assert np.array_equal(labels, frozen[1])


def test_thirty_two_bit_values_survive_the_affine():
    image = np.full((32, 32, 1), 3_000_000_001, dtype=np.uint32)
    augment = Geometry(affine=1.0)
    got, _ = augment(image, np.zeros((32, 32), np.uint8), np.random.default_rng(0))
    assert (got == 3_000_000_001).all()


def test_the_generator_alone_decides():
    image, labels = scene()
    image = cv2.GaussianBlur(image, (5, 5), 2)
    one, two = aerial(), pickle.loads(pickle.dumps(aerial()))
    for _ in range(3):  # whatever the first has drawn before
        one(image, labels, np.random.default_rng(99))
    results = []
    for seed in range(25):
        np.random.seed(seed)
        a = one(image, labels, np.random.default_rng(seed))
        b = two(image, labels, np.random.default_rng(seed))
        assert np.array_equal(a[0], b[0])
        assert np.array_equal(a[1], b[1])
        results.append(a[0].tobytes())
    assert len(set(results)) == 25


def test_strength_says_how_far_the_preset_goes():
    image, labels = scene()
    levels = []
    for strength in (0.0, 0.5, 1.0, 2.0):
        rng = np.random.default_rng(3)
        results = [aerial(strength)(image, labels, rng)[0] for _ in range(40)]
        levels.append(np.std([r.mean() for r in results]))
    assert levels[0] < 1e-9
    assert levels[0] < levels[1] < levels[2] < levels[3]
    with pytest.raises(ConfigError, match=r"aerial: strength 3 must be in \[0, 2\]"):
        aerial(3)


def test_a_colour_image_keeps_its_look_under_the_preset():
    # Light and colour vary, but a class stays nearer to itself than black is to white.
    image = np.full((64, 64, 3), (90, 120, 60), dtype=np.uint8)
    rng = np.random.default_rng(0)
    means = np.array([aerial()(image, np.zeros((64, 64), np.uint8), rng)[0].mean(axis=(0, 1)) for _ in range(150)])
    assert np.abs(means.mean(axis=0) - (90, 120, 60)).max() < 12
    assert 8 < means.std(axis=0).min() < means.std(axis=0).max() < 45


def test_grain_has_the_deviation_it_is_given_and_is_the_same_in_all_bands():
    image = np.full((300, 300, 3), 128, dtype=np.uint8)
    got, labels = Grain((6.0, 6.0))(image, np.zeros((300, 300), np.uint8), np.random.default_rng(0))
    noise = got.astype(float) - 128
    assert noise.mean() == pytest.approx(0, abs=0.1)
    assert noise.std() == pytest.approx(6, abs=0.15)
    assert (got[..., 0] == got[..., 2]).all()
    assert not labels.any()


def test_gain_stays_in_range_and_scales_each_band():
    image = np.array([[[100, 60000]]], dtype=np.uint16)
    results = np.array([Gain(0.2, 0.05)(image, np.zeros((1, 1)), np.random.default_rng(i))[0] for i in range(200)])
    assert results[..., 0].min() >= 76
    assert results[..., 0].max() <= 126
    assert results[..., 1].max() == 65535
    assert results[..., 0].std() > 5


def test_a_pipeline_gives_what_albumentations_gives():
    import albumentations

    image, labels = scene()
    transforms = [
        albumentations.HorizontalFlip(p=1.0),
        albumentations.Transpose(p=1.0),
        albumentations.InvertImg(p=1.0),
    ]
    got, moved = Pipeline(transforms)(image, labels, np.random.default_rng(0))
    assert np.array_equal(got, 255 - np.fliplr(image).transpose(1, 0, 2))
    assert np.array_equal(moved, np.fliplr(labels).T)


def test_a_pipeline_is_seeded_down_to_nested_transforms():
    import albumentations as A

    image, labels = scene()
    augment = Pipeline([A.OneOf([A.GaussNoise(p=1), A.RandomGamma(p=1)], p=0.9), A.D4()])
    first = [augment(image, labels, np.random.default_rng(i))[0] for i in range(10)]
    again = [augment(image, labels, np.random.default_rng(i))[0] for i in reversed(range(10))][::-1]
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert len({a.tobytes() for a in first}) > 5


@pytest.mark.parametrize(
    ("name", "arguments", "text"),
    [
        ("Affine", {"rotate": (-10, 10)}, "Affine fills labels with 0.*which is a class; give it fill_mask: 255"),
        ("Affine", {"fill_mask": 255, "mask_interpolation": 1}, "Affine interpolates labels"),
        ("SafeRotate", {"p": 0.5}, "SafeRotate fills labels"),
    ],
)
def test_a_transform_that_would_invent_labels_is_refused_wherever_it_stands(name, arguments, text):
    import albumentations

    transform = getattr(albumentations, name)(**arguments)
    for transforms in ([transform], [albumentations.OneOf([albumentations.HorizontalFlip(), transform])]):
        with pytest.raises(ConfigError, match=text):
            Pipeline(transforms)
    harmless = albumentations.Affine(rotate=(-10, 10), border_mode=cv2.BORDER_REFLECT_101)
    Pipeline([harmless, albumentations.Affine(rotate=(-10, 10), fill_mask=255)])


def test_a_pipeline_that_crops_or_normalises_is_refused_when_it_does():
    import albumentations

    image, labels = scene()
    for transform in (albumentations.Resize(32, 32), albumentations.Normalize()):
        with pytest.raises(ConfigError, match="leave out cropping, resizing and normalising"):
            Pipeline([transform])(image, labels, np.random.default_rng(0))


class Holder:
    """Stands for a data module with an augmentation."""

    def __init__(self, augment: Augment | None = None) -> None:
        self.augment = augment


@pytest.fixture
def parser():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Holder, "data")
    return parser


def build(parser, augment):
    return parser.instantiate_classes(parser.parse_object({"data": {"augment": augment}})).data.augment


@pytest.mark.filterwarnings("ignore")
def test_yaml_builds_the_preset_and_pipelines(parser):
    preset = build(parser, {"class_path": "visionapps.data.transforms.aerial", "init_args": {"strength": 0.5}})
    assert isinstance(preset, Aerial)
    flip = {"class_path": "albumentations.HorizontalFlip", "init_args": {"p": 1.0}}
    either = {"class_path": "albumentations.OneOf", "init_args": {"transforms": [flip], "p": 1.0}}
    pipeline = build(
        parser, {"class_path": "visionapps.data.transforms.Pipeline", "init_args": {"transforms": [flip, either]}}
    )
    image, labels = scene()
    got, _ = pipeline(image, labels, np.random.default_rng(0))
    assert np.array_equal(got, image)  # flipped twice


@pytest.mark.filterwarnings("ignore")
def test_a_misspelt_option_in_yaml_is_named(parser):
    flip = {"class_path": "albumentations.HorizontalFlip", "init_args": {"probability": 1.0}}
    with pytest.raises(ArgumentError, match="'probability' is not accepted"):
        build(parser, {"class_path": "visionapps.data.transforms.Pipeline", "init_args": {"transforms": [flip]}})


@pytest.mark.parametrize("arguments", [{"affine": 2}, {"scale": (2, 1)}, {"shear": 90}, {"degrees": -1}])
def test_geometry_out_of_range_is_refused(arguments):
    with pytest.raises(ConfigError, match="geometry: affine"):
        Geometry(**arguments)


def test_importing_the_module_does_not_import_albumentations():
    code = "import sys, visionapps.data.transforms; sys.exit('albumentations' in sys.modules)"
    assert run([sys.executable, "-c", code], check=False).returncode == 0
