"""How far fixed features go: fit the last layer alone to the photos of a run, in seconds.

visionapps probe --config run.yaml                                        the run's own network and weights
visionapps probe --config run.yaml --network resnet50.a1_in1k --weights hub
visionapps probe --config run.yaml --stride 16 --pool spp                 a map of its pyramid, in spatial bins

Features are computed once and kept in OUT/features; OUT/bundle then classifies as any other bundle does.
"""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from visionapps.cli.table import class_table, render
from visionapps.errors import ConfigError
from visionapps.files import refuse_existing, whole_output

if TYPE_CHECKING:
    from visionapps.classification.base import Classifier
    from visionapps.structures import LabelSpace
    from visionapps.training.classification import ClassificationTask
    from visionapps.training.probing import Probed

_POOLS = {"average": ((1,), "average"), "max": ((1,), "max"), "spp": ((1, 2, 3, 6), "max")}  # bins, and what they keep


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--config", type=Path, required=True, help="YAML file of a classification run: photos, network")
    parser.add_argument("--out", type=Path, help="folder of the probe (default: runs/<name of the config>_probe)")
    parser.add_argument("--network", metavar="NAME", help="instead of the run's; `visionapps models` lists them")
    parser.add_argument("--weights", metavar="WHERE", help="of --network: package, hub, hub:TAG, or a file (package)")
    parser.add_argument("--stride", type=int, metavar="PX", help="probe the pyramid's map of this stride")
    parser.add_argument("--pool", choices=tuple(_POOLS), help="of that map: average, max, or spatial pyramid (average)")
    parser.add_argument("--l2", default="auto", metavar="L", help="penalty; auto: chosen on a fifth of the photos")
    parser.add_argument("--digits", choices=("float16", "float32"), default="float16", help="of the features (float16)")
    parser.add_argument("--batch", type=int, default=64, metavar="N", help="photos at a time (64)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ... (auto: cuda if there is one)")
    parser.add_argument("--overwrite", action="store_true", help="replace the bundle of an earlier probe")
    parser.epilog = "Any key of the file can be replaced: --data.init_args.view.side 128"
    parser.set_defaults(settings=[])


def run(options: argparse.Namespace) -> int:
    """Probe, print what was found, and write the bundle."""
    l2 = _penalty(options.l2)
    if options.pool is not None and options.stride is None:
        raise ConfigError("--pool: pools a map of the pyramid; give its --stride, too")
    if options.weights is not None and options.network is None:
        raise ConfigError("--weights: belongs to --network; those of the run stand in its config")
    out: Path = options.out or Path("runs") / f"{options.config.stem}_probe"
    refuse_existing(out / "bundle", options.overwrite)

    from visionapps.inference.features import FeatureStore
    from visionapps.training.class_data import ClassificationData
    from visionapps.training.classification import ClassificationTask
    from visionapps.training.probing import probe_photos
    from visionapps.training.run import build

    _, task, data, _ = build(options.config, out, ["--trainer.logger", "false", *options.settings])
    if not isinstance(task, ClassificationTask) or not isinstance(data, ClassificationData):
        raise ConfigError(f"{options.config}: is no run of a classifier; a probe needs photos with one class each")
    data.setup("fit")
    store = FeatureStore(
        out / "features", digits=options.digits, device=options.device, batch=options.batch, workers=data.workers
    )
    probed = probe_photos(
        _classifier(task, data.labels, options),
        data.labels,
        data.view.frame,
        train=data.train_photos,
        val=data.val_photos,
        store=store,
        l2=l2,
        seed=data.seed,
    )
    print(_report(probed, len(data.train_photos), len(data.val_photos)))
    probed.bundle.save(out / "bundle", overwrite=options.overwrite)
    if probed.scores is not None:
        with whole_output(out / "scores.json", overwrite=True) as path:
            path.write_text(json.dumps(probed.scores.to_dict(data.labels.names), indent=1) + "\n")
    print(f"bundle           {out / 'bundle'}")
    return 0


def _classifier(task: "ClassificationTask", labels: "LabelSpace", options: argparse.Namespace) -> "Classifier":
    """The network to probe, with its weights."""
    from visionapps.models import classifier, level_classifier

    own = task.model.pretrained
    spec = None if options.network else task.model.spec
    network = options.network or (task.model.recipe or {}).get("arguments", {}).get("network")
    weights = (options.weights or "package") if options.network else own.weights if own is not None else None
    if options.stride is not None:
        if network is None:
            raise ConfigError("--stride: the run's model has no network by name; give --network as well")
        bins, pooling = _POOLS[options.pool or "average"]
        made: Classifier = level_classifier(
            network,
            len(labels),
            stride=options.stride,
            bins=bins,
            pooling=pooling,  # type: ignore[arg-type]
            weights=weights,
            spec=spec,
        )
    else:
        made = classifier(network, len(labels), weights=weights) if options.network else task.model
    made.load_pretrained(labels.names)
    return made


def _report(probed: "Probed", train: int, val: int) -> str:
    parts = []
    if probed.tried:
        rows = [(f"{each.l2:g}", each.top1, each.loss) for each in probed.tried]
        parts.append(render(("l2", "top-1 apart", "loss apart"), rows))
    if probed.scores is not None:
        parts.append(class_table(probed.bundle.labels, probed.scores))
    spent = f"{probed.feature_seconds:.1f} s" if probed.feature_seconds else "there already"
    facts = (
        ("photos", f"{train} to fit, {val} to judge by"),
        ("features", f"{probed.width} of each, {spent}"),
        ("fit", f"l2 {probed.probe.l2:g}, {probed.probe.steps} steps, {probed.fit_seconds:.1f} s"),
    )
    parts.append("\n".join(f"{name:<16} {text}" for name, text in facts))
    return "\n\n".join(parts)


def _penalty(text: str) -> float | None:
    if text == "auto":
        return None
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise ConfigError(f"--l2 {text}: expected auto, or a number of at least 0, such as 0.001")
    return value
