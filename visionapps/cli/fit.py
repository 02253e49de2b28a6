"""Train a model from one YAML file; leave checkpoints, logs, scores and pictures in a folder."""

import argparse
from pathlib import Path

from visionapps.cli.table import score_table
from visionapps.errors import ConfigError
from visionapps.files import refuse_existing


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, required=True, help="YAML file of the run; see configs/")
    parser.add_argument("--out", type=Path, help="folder of the run (default: runs/<name of the config>)")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in the folder")
    parser.add_argument("--overwrite", action="store_true", help="start anew in a folder that holds a run already")
    parser.add_argument("--no-report", action="store_true", help="leave out the pictures after the run")
    parser.epilog = "Any key of the file can be replaced: --trainer.max_epochs 5, --data.init_args.batch_size=4"
    parser.set_defaults(settings=[])


def run(options: argparse.Namespace) -> int:
    if not options.config.is_file():
        raise ConfigError(f"{options.config}: no such file; give the YAML file of a run, see configs/")
    out: Path = options.out or Path("runs") / options.config.stem
    if not options.resume:
        refuse_existing(out, options.overwrite)

    from visionapps.training.run import fit

    finished = fit(options.config, out, options.settings, resume=options.resume)
    if not options.no_report:
        from visionapps.training.report import write_report

        labels, scores = write_report(finished, out)
        print(f"\nBest checkpoint on the {len(finished.val)} validation photos:\n")
        print(score_table(labels.names, scores))
        print(f"\npictures         {out / 'report'}")
    print(f"trained for      {finished.seconds:.0f} s")
    print(f"best checkpoint  {finished.checkpoint}")
    print(f"next             visionapps export {finished.checkpoint} --out {out / 'bundle'}")
    return 0
