"""Raster Vision: a learner's predictions of a sliding window into its label store."""

import argparse
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from harness import Clocked, Job, Mapper, run
from rastervision.core.data import (
    ClassConfig,
    RasterioSource,
    Scene,
    SemanticSegmentationLabels,
    SemanticSegmentationLabelStore,
)
from rastervision.pytorch_learner import (
    SemanticSegmentationGeoDataConfig,
    SemanticSegmentationLearner,
    SemanticSegmentationLearnerConfig,
    SemanticSegmentationSlidingWindowGeoDataset,
    SolverConfig,
)


def peer(model: Clocked, options: argparse.Namespace) -> Mapper:
    """--variant: discrete (default) counts votes of labels, smooth sums probabilities."""
    smooth = options.variant == "smooth"
    names = [f"class {i}" for i in range(options.classes)]
    classes = ClassConfig(names=names, null_class=names[0])
    data = SemanticSegmentationGeoDataConfig(class_config=classes, num_workers=0)
    config = SemanticSegmentationLearnerConfig(data=data, solver=SolverConfig(batch_sz=options.batch))

    def draw(job: Job) -> None:
        with TemporaryDirectory() as folder:
            learner = SemanticSegmentationLearner(config, output_dir=folder, model=model, training=False)
            source = RasterioSource([str(job.image)])
            dataset = SemanticSegmentationSlidingWindowGeoDataset(
                Scene("scene", source), size=job.tile, stride=job.tile - job.overlap
            )
            predictions = learner.predict_dataset(dataset, raw_out=smooth, numpy_out=True, progress_bar=False)
            labels = SemanticSegmentationLabels.from_predictions(
                dataset.windows, predictions, extent=source.extent, num_classes=job.classes, smooth=smooth
            )
            store = SemanticSegmentationLabelStore(folder, source.crs_transformer, classes, smooth_output=False)
            store.save(labels)
            shutil.move(Path(folder) / "labels.tif", job.output)

    return draw


if __name__ == "__main__":
    run(peer, "rastervision-pytorch-learner")
