"""Every config of the repository can be built, and the recipes whose data is not public run on made-up files."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from visionapps.backbones.classifiers import require_size
from visionapps.data.crops import collate
from visionapps.training.class_data import ClassificationData
from visionapps.training.classification import ClassificationTask
from visionapps.training.data import SegmentationData
from visionapps.training.detection import DetectionTask
from visionapps.training.object_data import DetectionData
from visionapps.training.run import build
from visionapps.training.segmentation import SegmentationTask

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*/*.yaml"))
HRUD = [path for path in CONFIGS if path.name.startswith("hrud")]


@pytest.fixture(scope="module")
def competition(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six photos in the layout of the competition, with all mask values that it really holds, 0 to 26."""
    home = tmp_path_factory.mktemp("hrud")
    rng = np.random.default_rng(0)
    for folder in ("train_images", "train_masks"):
        (home / folder).mkdir()
    for identity in (6411, 8389, 10172, 6500, 7001, 7002):
        values = np.kron(rng.permutation(30).reshape(5, 6) % 27, np.ones((32, 32))).astype(np.uint8)
        noise = rng.integers(0, 64, (*values.shape, 3))
        image = (values[..., None] * np.array([6, 3, 1]) + noise).clip(0, 255).astype(np.uint8)
        Image.fromarray(image).save(home / "train_images" / f"{identity}.jpg")
        Image.fromarray(values).save(home / "train_masks" / f"{identity}.png")
    return home


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_config_builds_without_network(config: Path, tmp_path: Path):
    trainer, task, data, text = build(config, tmp_path / "out", ["--trainer.accelerator", "cpu"])
    if isinstance(task, DetectionTask):
        assert isinstance(data, DetectionData)
        assert task.model.num_classes == len(data.dataset.classes)
        assert task.model.needs_proposals == (data.dataset.proposals is not None)
    elif isinstance(task, ClassificationTask):
        assert isinstance(data, ClassificationData)
        assert task.model.num_classes == len(data.dataset.classes or ())
        require_size(task.model.network, data.view.side, 3, where=config.stem)
    else:
        assert isinstance(task, SegmentationTask)
        assert isinstance(data, SegmentationData)
        assert task.model.num_classes == len(data.dataset.coding().labels)
    assert trainer.max_epochs > 0
    assert "class_path: visionapps.models." in text
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("config", HRUD, ids=lambda path: path.stem)
def test_the_recipes_of_the_competition_train_on_files_of_its_layout(config: Path, competition: Path, tmp_path: Path):
    dataset = "--data.init_args.dataset"
    overrides = [
        *(f"{dataset}.images", str(competition / "train_images")),
        *(f"{dataset}.masks", str(competition / "train_masks")),
        *(f"{dataset}.cache", str(tmp_path / "cache")),
        *(f"{dataset}.resize", "[128, 160]"),
        *("--data.init_args.crops.size", "64"),
        *("--model.init_args.model.init_args.weights", "random"),
        *("--trainer.accelerator", "cpu"),
    ]
    _, task, data, _ = build(config, tmp_path / "out", overrides)
    data.setup("fit")
    assert data.labels.names[24] == "Boat"
    labels = {int(v) for photo in data.examination.train for v in np.flatnonzero(photo.presence.sum(axis=(0, 1)))}
    assert labels <= set(range(25))  # the mask values 25 and 26 became background
    crops = data.random_crops()
    batch = collate([crops[0], crops[1]])
    assert batch.image.dtype == torch.uint8
    loss = task.loss(task.model.train()(batch.image), batch.labels)
    loss.backward()
    assert torch.isfinite(loss)
