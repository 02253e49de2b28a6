"""The whole road on the demo's set, by the real commands: folds, ensemble, rules, masks, a submission, its proof.

The landscapes are the demo's, smaller and fewer, and seen at half their size by networks of some thousand numbers, so
that it takes seconds. The CSV is read again by a few lines of numpy, which know nothing of the package.
"""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from visionapps.cli.main import main
from visionapps.competition.oof import OofStore
from visionapps.data.fake import HRUD_ROWS, write_mask
from visionapps.data.ground import LAND_COVER, Style
from visionapps.data.landscape import landscape
from visionapps.windows import blocks

CLASSES = LAND_COVER.names
SITES = 4  # scenes of four photos each
SIDE = 256  # px of a photo
METRIC = ("--metric", "dice_per_image", "--exclude", "bare")


def visionapps(*words: object) -> int:
    return main([str(word) for word in words])


def write_data(home: Path) -> None:
    """Photos and masks of some sites, photos of one more to predict, and the sample that a competition gives."""
    for folder in ("images", "masks", "test_images"):
        (home / folder).mkdir(parents=True)
    for site in range(SITES + 1):
        rng = np.random.default_rng((3, site))
        image, labels = landscape(2 * SIDE, 2 * SIDE, rng, Style.draw(rng), water=1.0)
        for number, window in enumerate(blocks(2 * SIDE, 2 * SIDE, SIDE), 1):
            part = Image.fromarray(np.ascontiguousarray(image[window.slices]))
            if site:
                part.save(home / "images" / f"site{site}_{number}.jpg", quality=92)
                write_mask(home / "masks" / f"site{site}_{number}.png", labels[window.slices], LAND_COVER)
            else:
                part.save(home / "test_images" / f"{6000 + number}.jpg", quality=92)
    rows = "".join(f"{6000 + number}_{label},\n" for number in range(1, 5) for label in HRUD_ROWS)
    (home / "sample_submission.csv").write_text(f"ImageClassId,rle_mask\n{rows}")


def write_config(path: Path, data: Path, model: dict) -> Path:
    """The run of the demo, with a small network and small photos."""
    path.write_text(
        yaml.safe_dump(
            {
                "seed_everything": 0,
                "trainer": {
                    "max_epochs": 2,
                    "accelerator": "cpu",
                    "enable_progress_bar": False,
                    "enable_model_summary": False,
                    "check_val_every_n_epoch": 2,
                    "log_every_n_steps": 8,
                },
                "model": {
                    "class_path": "visionapps.training.segmentation.SegmentationTask",
                    "init_args": {
                        "model": model,
                        "loss": {"class_path": "visionapps.losses.DiceCrossEntropy"},
                        "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}},
                    },
                },
                "data": {
                    "class_path": "visionapps.training.data.SegmentationData",
                    "init_args": {
                        "dataset": {
                            "images": str(data / "images"),
                            "masks": str(data / "masks"),
                            "classes": list(CLASSES),
                            "resize": [128, 128],
                            "split": {"group": "site\\d+", "val_fraction": 0.3},
                            "cache": str(path.parent / "cache"),
                        },
                        "crops": {"size": 64, "per_epoch": 64},
                        "batch_size": 8,
                        "workers": 0,
                        "val_tile": 128,
                    },
                },
            }
        )
    )
    return path


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder after the whole road."""
    home = tmp_path_factory.mktemp("road")
    data = home / "data"
    write_data(data)
    tiny = {"backbone": "test_efficientnet", "num_classes": len(CLASSES)}
    unet = {"class_path": "visionapps.models.unet", "init_args": {**tiny, "channels": [8] * 5}}
    fcn = {"class_path": "visionapps.models.fcn16s", "init_args": {**tiny, "head_channels": 16}}
    a, b = write_config(home / "a.yaml", data, unet), write_config(home / "b.yaml", data, fcn)
    assert visionapps("folds", "--config", a, "--k", 2, "--out", home / "a") == 0
    assert visionapps("folds", "--config", b, "--plan", home / "a/plan.json", "--out", home / "b") == 0
    stores = home / "a/oof", home / "b/oof"
    assert visionapps("ensemble", "fit", *stores, *METRIC, "--out", home / "all.yaml", "--oof", home / "oof") == 0
    words = ("--rules", "threshold,min_area,min_present", "--background", "none", "--out", home / "rules.yaml")
    assert visionapps("tune", home / "oof", *METRIC, *words) == 0
    words = ("--out", home / "masks", "--postprocess", home / "rules.yaml", "--device", "cpu", "--precision", "fp32")
    assert visionapps("predict", home / "all.yaml", data / "test_images", *words) == 0
    words = ("--dialect", "hrud", "--sample", data / "sample_submission.csv", "--out", home / "submission.csv")
    assert visionapps("submit", home / "masks", *words) == 0
    return home


def dice_per_image(store: OofStore) -> float:
    """Mean Dice of all (photo, class) cells but those of class 0, 1 where neither side has the class."""
    cells = []
    for name in store.names:
        drawn, truth = store.scores(name).argmax(0), store.truth(name)
        drawn[truth == 255] = 255
        for k in range(1, len(CLASSES)):
            both = np.count_nonzero((drawn == k) & (truth == k))
            either = np.count_nonzero(drawn == k) + np.count_nonzero(truth == k)
            cells.append(2 * both / either if either else 1.0)
    return float(np.mean(cells))


def decoded(path: Path, side: int) -> dict[str, np.ndarray]:
    """Labels of every image of a CSV with rows ID_CLASS and runs by row from 1, in plain numpy."""
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["ImageClassId", "rle_mask"]
    masks: dict[str, np.ndarray] = {}
    for row, runs in rows[1:]:
        image, label = row.rsplit("_", 1)
        mask = masks.setdefault(image, np.zeros(side * side, np.uint8))
        numbers = [int(word) for word in runs.split()]
        for start, length in zip(numbers[::2], numbers[1::2], strict=True):
            pixels = mask[start - 1 : start - 1 + length]
            assert len(pixels) == length
            assert not pixels.any()
            pixels[:] = int(label)
    return {image: mask.reshape(side, side) for image, mask in masks.items()}


def test_the_score_of_the_store_is_that_of_evaluate_over_all_folds(road):
    matrices = []
    for fold in range(2):
        run, scores = road / f"a/fold_{fold}/run.yaml", road / f"scores_{fold}.json"
        words = ("--config", run, "--precision", "fp32", "--device", "cpu", "--json", scores)
        assert visionapps("evaluate", road / f"a/fold_{fold}/bundle", *words) == 0
        matrices.append(json.loads(scores.read_text())["matrix"])
    found = json.loads((road / "a/cv.json").read_text())
    total = np.sum(matrices, axis=0)
    np.testing.assert_array_equal(found["pooled"]["matrix"], total)
    assert total.sum() == 4 * SITES * 128 * 128  # every photo once
    assert found["pooled"]["accuracy"] > 0.4  # the networks have learned something: a guess of one class has less


def test_weights_and_rules_gain_what_a_loop_over_photos_finds_too(road):
    fitted = yaml.safe_load((road / "all.yaml").read_text())["fitted"]
    scores = yaml.safe_load((road / "rules.yaml").read_text())["scores"]
    alone = [dice_per_image(OofStore.open(road / kind / "oof")) for kind in "ab"]
    blended = dice_per_image(OofStore.open(road / "oof"))
    assert fitted["score"] == pytest.approx(blended)
    assert fitted["score"] >= max(*alone, fitted["equal_weights"]) - 1e-12
    assert scores["before"]["score"] == pytest.approx(blended, abs=1e-6)
    assert scores["after"]["score"] > scores["before"]["score"]
    assert scores["nested"]["score"] <= scores["after"]["score"]


def test_the_submission_holds_the_masks_that_predict_drew(road):
    found = decoded(road / "submission.csv", 1024)
    masks = {path.stem: np.asarray(Image.open(path)) for path in (road / "masks").glob("*.png")}
    assert sorted(found) == sorted(masks)
    assert len(masks) == 4
    for name, mask in masks.items():
        assert mask.shape == (SIDE, SIDE)
        np.testing.assert_array_equal(found[name], np.kron(mask, np.ones((1024 // SIDE, 1024 // SIDE), np.uint8)))
    assert len(np.unique(np.stack(list(masks.values())))) >= 4


def test_rules_change_the_masks_as_predict_without_them_shows(road):
    words = ("--out", road / "plain", "--device", "cpu", "--precision", "fp32")
    assert visionapps("predict", road / "all.yaml", road / "data/test_images", *words) == 0
    pairs = [(path, road / "masks" / path.name) for path in sorted((road / "plain").glob("*.png"))]
    changed = [np.count_nonzero(np.asarray(Image.open(a)) != np.asarray(Image.open(b))) for a, b in pairs]
    assert len(pairs) == 4
    assert sum(changed) > 0


def test_verification_takes_the_file_and_refuses_it_after_one_row_is_damaged(road, tmp_path, capsys):
    sample = ("--dialect", "hrud", "--sample", road / "data/sample_submission.csv")
    assert visionapps("submit", road / "masks", "--verify", road / "submission.csv", *sample) == 0
    lines = (road / "submission.csv").read_text().splitlines()
    place = next(i for i, line in enumerate(lines) if i and len(line.split(",")[1].split()) >= 4)
    row, runs = lines[place].split(",")
    numbers = runs.split()
    damaged = tmp_path / "damaged.csv"

    def said(*changed: str, masks: tuple[Path, ...] = ()) -> str:
        text = [*lines[:place], *changed, *lines[place + 1 :]]
        damaged.write_text("\n".join(text) + "\n")
        capsys.readouterr()
        assert visionapps("submit", *masks, "--verify", damaged, *sample) == 1
        return "".join(capsys.readouterr())

    assert row in said(f"{row},{runs} {1024 * 1024} 2")  # leaves the image by a pixel
    assert row in said()  # a row is missing
    # One pixel too few is a valid file: only the masks tell.
    assert int(numbers[-1]) > 1
    shorter = f"{row},{' '.join([*numbers[:-1], str(int(numbers[-1]) - 1)])}"
    wrong = f"image {row.split('_')[0]}: 1 of 1048576 pixels differ from the mask"
    assert wrong in said(shorter, masks=(road / "masks",))
