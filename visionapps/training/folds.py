"""Training the folds of a plan, each a run of its own in a folder of its own; what is done is not done again."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import yaml

from visionapps.competition.oof import OofWriter
from visionapps.competition.predicting import predict_photos
from visionapps.data.folds import FoldPlan
from visionapps.data.store import Photo
from visionapps.errors import ConfigError, DataError, OutputError, VisionAppsError
from visionapps.files import whole_output
from visionapps.inference.bundle import WEIGHTS, Bundle, description_of, from_checkpoint, load
from visionapps.inference.engine import Engine
from visionapps.inference.network import Network
from visionapps.inference.products import Products
from visionapps.inference.views import ONE_VIEW, Views
from visionapps.training.run import BEST, LAST, fit

HEAD, PLAN, OOF, RUN, BUNDLE = "folds.json", "plan.json", "oof", "run.yaml", "bundle"
_DONE = "done.json"  # in the folder of a fold whose bundle is written
_STARTED = "config.yaml"  # in the folder of a fold whose training began
_OF_A_MODEL = ("recipe", "spec", "tile", "resize", "gsd")  # keys of a bundle on which its probabilities depend


@dataclass(frozen=True)
class Study:
    """A folder of runs over the folds of one plan.

    Attributes:
        out: the folder; ``fold_N`` in it is the run of fold N, ``plan.json`` the plan.
        config: the YAML file of the run that all folds share.
        plan: who validates where.
        settings: of the command line, which replace those of the file.
    """

    out: Path
    config: Path
    plan: FoldPlan
    settings: tuple[str, ...] = ()

    def folder(self, fold: int) -> Path:
        """The run of a fold."""
        return self.out / f"fold_{fold}"

    def bundle(self, fold: int) -> Path:
        """The bundle of a fold."""
        return self.folder(fold) / BUNDLE

    def done(self, fold: int) -> bool:
        """Whether a fold is trained and its bundle written."""
        return (self.folder(fold) / _DONE).is_file()

    @property
    def oof(self) -> Path:
        """Where its out-of-fold predictions are kept unless another place is named."""
        return self.out / OOF

    def begin(self, *, resume: bool) -> None:
        """Make the folder, or see that it holds this very study.

        Settings and config of a study of which nothing is trained yet may change.

        Raises:
            OutputError: it holds something else, or a study of another config or plan, or resume is off.
        """
        head = {"config": _plain(self.config), "settings": list(self.settings), "plan": self.plan.key}
        path = self.out / HEAD
        folders = [self.folder(fold) for fold in range(self.plan.k)]
        trained = any((folder / place).is_file() for folder in folders for place in (_DONE, f"checkpoints/{LAST}"))
        if path.is_file() and not resume and (trained or any((folder / _STARTED).is_file() for folder in folders)):
            raise OutputError(
                f"{self.out}: holds folds already; go on with --resume (what is trained is not trained again), or "
                "choose another folder with --out"
            )
        if path.is_file() and trained:
            self._require_same(head)
            self._keep_plan()
            return
        others = {place.name for place in self.out.iterdir()} - {PLAN} if self.out.is_dir() else self.out.exists()
        if others and not path.is_file():
            raise OutputError(
                f"{self.out}: holds something else than folds of `visionapps folds`, which is not replaced; choose "
                "another folder with --out"
            )
        self._keep_plan()
        with whole_output(path, overwrite=True) as part:
            part.write_text(json.dumps(head, indent=1) + "\n")

    def _keep_plan(self) -> None:
        """Write the plan, which may stand there already; never over another one."""
        place = self.out / PLAN
        if not place.is_file():
            self.plan.save(place)
        elif FoldPlan.load(place).key != self.plan.key:
            raise OutputError(f"{place}: is another fold plan than the one to train; choose another folder with --out")

    def _require_same(self, head: Mapping[str, Any]) -> None:
        """Raise OutputError unless the folds were trained with this config, plan and settings."""
        path = self.out / HEAD
        try:
            old = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: damaged ({error}); choose another folder with --out") from error
        for key, what in (
            ("plan", "another fold plan"),
            ("config", f"another config than {self.config} is now"),
            ("settings", f"other settings ({' '.join(old.get('settings', [])) or 'none'})"),
        ):
            if old.get(key) != json.loads(json.dumps(head[key])):
                raise OutputError(
                    f"{self.out}: its folds were trained with {what}{_difference(old, head, key)}; folds of one study "
                    "must be trained alike: go back to that, or choose another folder with --out"
                )

    def require_place(self, store: Path) -> None:
        """Refuse a folder for out-of-fold predictions in which runs lie.

        Raises:
            ConfigError: it is the study's own folder, or lies in that of a fold.
        """
        folders = [self.folder(fold).resolve() for fold in range(self.plan.k)]
        if store.resolve() == self.out.resolve() or any(store.resolve().is_relative_to(folder) for folder in folders):
            raise ConfigError(f"--oof {store}: the folds' runs lie there; choose another folder, such as {self.oof}")

    def require_own(self, writer: OofWriter, only: Sequence[int]) -> None:
        """Refuse a store with predictions of other models, which would be judged as if they were of this study.

        Args:
            writer: of the store. In the study's own place folds may be predicted anew.
            only: the folds that are about to be trained or predicted.

        Raises:
            OutputError: which fold was predicted by another model.
        """
        own = writer.folder.resolve() == self.oof.resolve()
        for fold, member in writer.members().items():
            done = self.done(fold)
            if (done and member.get("digest") == model_digest(self.bundle(fold))) or (own and fold in only):
                continue
            if own and done:
                raise OutputError(
                    f"{writer.folder}: fold {fold} was predicted by another model than {self.bundle(fold)} is now; "
                    f"predict it anew by adding {fold} to --only"
                )
            if not own:
                raise OutputError(
                    f"{writer.folder}: fold {fold} was predicted by another model than that of {self.folder(fold)}; "
                    "choose another folder with --oof, or remove that one"
                )


def model_digest(bundle: Path) -> str:
    """Another one when the probabilities of a bundle may be others: its weights, and what makes a model of them.

    Raises:
        WeightsError: a file is missing or damaged.
    """
    said = description_of(bundle)
    digest = hashlib.sha256(json.dumps([said.get(key) for key in _OF_A_MODEL], sort_keys=True).encode())
    with (bundle / WEIGHTS).open("rb") as file:
        digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def fold_config(config: Path, plan: Path, rule: Mapping[str, Any], fold: int) -> str:
    """The YAML of a fold's run: the config with a split that follows the plan.

    Raises:
        ConfigError: the config has no dataset.
    """
    content = _plain(config)
    data = content.get("data") if isinstance(content, Mapping) else None
    place = data.get("init_args", data) if isinstance(data, Mapping) else None
    dataset = place.get("dataset") if isinstance(place, Mapping) else None
    if not isinstance(dataset, dict):
        raise ConfigError(f"{config}: has no dataset under data; write it at data.init_args.dataset")
    split = {key: rule.get(key) for key in ("group", "block_px", "block_m") if rule.get(key) is not None}
    dataset["split"] = {**split, "plan": str(plan.absolute()), "fold": fold}
    head = f"# Fold {fold} of {plan}; made by `visionapps folds` from {config}.\n"
    return head + yaml.safe_dump(content, sort_keys=False)


def train_fold(study: Study, fold: int) -> Bundle:
    """Train a fold to its end, going on where it stopped, and write its bundle; a finished one is read.

    Raises:
        VisionAppsError: the run cannot be built, or its data are not good.
    """
    folder = study.folder(fold)
    if study.done(fold):
        return load(study.bundle(fold))
    begun = (folder / "checkpoints" / LAST).is_file()
    config = folder / RUN
    with whole_output(config, overwrite=True) as part:
        part.write_text(fold_config(study.config, study.out / PLAN, study.plan.rule, fold))
    # Several GPUs: Lightning starts this very command once for each, which must be a single run then.
    train = _fit_apart if torch.cuda.device_count() > 1 else _fit_here
    checkpoint = train(config, folder, study.settings, begun)
    bundle = from_checkpoint(checkpoint)
    bundle.save(study.bundle(fold), overwrite=True)
    with whole_output(folder / _DONE, overwrite=True) as part:
        part.write_text(json.dumps({"fold": fold, "plan": study.plan.key}) + "\n")
    return bundle


def _fit_here(config: Path, folder: Path, settings: Sequence[str], resume: bool) -> Path:
    """Run a fold in this process; its best checkpoint."""
    return fit(config, folder, list(settings), resume=resume).checkpoint


def _fit_apart(config: Path, folder: Path, settings: Sequence[str], resume: bool) -> Path:
    """Run a fold as `visionapps fit` in a process of its own; its best checkpoint."""
    place = ["--config", str(config), "--out", str(folder), "--no-report", "--resume" if resume else "--overwrite"]
    command = [sys.executable, "-m", "visionapps.cli.main", "fit", *place, *settings]
    code = subprocess.run(command, check=False).returncode
    if code:
        raise VisionAppsError(
            f"{folder}: `visionapps fit` ended with exit code {code}, its message stands above; mend that and go on "
            "with --resume"
        )
    return folder / "checkpoints" / BEST


def predict_fold(
    study: Study,
    fold: int,
    photos: Sequence[Photo],
    writer: OofWriter,
    *,
    views: Views = ONE_VIEW,
    device: str = "auto",
) -> None:
    """Write the out-of-fold predictions of one fold, unless those of its very model are there.

    Args:
        study: whose fold is trained.
        fold: its number.
        photos: of the whole dataset; those that validate in the fold are predicted.
        writer: of the store.
        views: at test time.
        device: see choose_device.

    Raises:
        DataError: photos of the fold are missing.
        OutputError: the store, which is not the study's own, has the fold from another model, or cannot be written.
    """
    from tqdm import tqdm

    digest = model_digest(study.bundle(fold))
    if writer.members().get(fold, {}).get("digest") == digest:
        return
    own = writer.folder.resolve() == study.oof.resolve()
    bundle = load(study.bundle(fold))
    wanted = set(study.plan.names(fold))
    chosen = [photo for photo in photos if photo.name in wanted]
    # As in training and as `evaluate` judges: single precision, the tiles that predict chooses.
    network = Network([bundle.segmentor], views=views, device=device, precision="fp32")
    engine = Engine(network, products=Products(("probabilities",)))
    masked = any(sum(photo.class_pixels) for photo in chosen)
    member = {"bundle": str(study.bundle(fold)), "fold": fold, "digest": digest}
    with (
        tqdm(desc=f"fold {fold} out of fold", total=len(chosen), unit="photo", disable=None, leave=False) as bar,
        writer.fold(fold, member, overwrite=own) as folder,
    ):
        predict_photos(engine, chosen, folder, truth=masked, progress=lambda _: cast(None, bar.update()))


def _plain(config: Path) -> Any:
    try:
        return yaml.safe_load(config.read_text())
    except FileNotFoundError as error:
        raise ConfigError(f"{config}: no such file; give the YAML file of a run, see configs/") from error
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{config}: is no YAML ({' '.join(str(error).split())})") from error


def _difference(old: Mapping[str, Any], new: Mapping[str, Any], key: str) -> str:
    """The first place where two configs differ, for a message."""
    if key != "config":
        return ""
    before, after = _flat(old.get(key)), _flat(new[key])
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) != after.get(name):
            return f" ({name} was {before.get(name)!r}, is {after.get(name)!r})"
    return ""


def _flat(content: Any, where: str = "") -> dict[str, Any]:
    if isinstance(content, Mapping):
        return {n: v for key, value in content.items() for n, v in _flat(value, f"{where}.{key}".lstrip(".")).items()}
    return {where: content}
