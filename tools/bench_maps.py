"""What tiled prediction costs beside the network: visionapps and the peers on one model, one file and the same tiles.

Everything runs in fresh processes on one thread and is measured in CPU seconds (the machine may be shared), by default
with 25 classes, tiles of 512 px and 25 % overlap. Two models: a stub that returns copies of fixed logits, so that what
remains is the pipeline; and a U-Net on MobileNetV2 with random weights. "beside" is CPU time outside of the network's
forward per megapixel of the raster; "of forward" is all CPU time over that of the forward in the same run.

parts:
  peers     each library on its own API, in a virtual environment below --peers-dir: cost beside the stub, end to end
            over forward with the U-Net, peak memory above the level after model and one forward (stub), and how many
            pixels went through the network per pixel of the raster
  pipeline  visionapps alone: stub, U-Net in fp32 and bf16, with these tiles and with the plan it chooses itself; and
            counts: blocks decoded, forwards of tiles without data, repeated computation of the default plan by size
  memory    peak of a generated raster --width px wide at each of --rows, to a GeoTIFF, 25 classes
  small     --scenes GeoTIFFs of 300 px in one run against the bare forward of full batches; memory by their number

    python tools/bench_maps.py --peers-dir ~/peers --install      once
    python tools/bench_maps.py --peers-dir ~/peers --json maps.json
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from peers.bench import Bench, Measured
from peers.environments import OTHERS, OURS, Peer, install

from visionapps.cli.table import render

Report = dict[str, list[dict[str, object]]]


def main() -> None:
    options = parse()
    if options.install:
        install(options.peers_dir)
        return
    parts: dict[str, Callable[[Bench], Sequence[dict[str, object]]]] = {
        "peers": peers,
        "pipeline": pipeline,
        "memory": memory,
        "small": small,
    }
    report: Report = {}
    with TemporaryDirectory(prefix="bench_maps_") as folder:
        bench = Bench(options, Path(folder))
        for name, part in parts.items():
            if name in options.only:
                report[name] = list(part(bench))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = ("peers", "pipeline", "memory", "small")
    parser.add_argument("--only", nargs="+", choices=every, default=every, metavar="PART", help="peers, ... (all)")
    parser.add_argument("--peers-dir", type=Path, metavar="DIR", help="their environments, outside of the repository")
    parser.add_argument("--install", action="store_true", help="create the environments and stop (8 GB, minutes)")
    parser.add_argument("--peer", nargs="+", default=(), metavar="SCRIPT", help="only these scripts of tools/peers")
    parser.add_argument("--tuned", action="store_true", help="give the peers visionapps' malloc settings, too")
    parser.add_argument("--image", type=Path, metavar="TIF", help="8-bit RGB to warp up (shared data, or generated)")
    parser.add_argument("--sizes", type=int, nargs="+", default=[3000], metavar="PX", help="of the rasters (3000)")
    parser.add_argument("--classes", type=int, default=25, help="(25)")
    parser.add_argument("--tile", type=int, default=512, help="pixels (512)")
    parser.add_argument("--overlap", type=int, default=128, help="pixels (128)")
    parser.add_argument("--batch", type=int, default=4, help="tiles per forward (4)")
    parser.add_argument("--models", nargs="+", choices=("stub", "unet"), default=("stub", "unet"), help="(both)")
    parser.add_argument("--repeat", type=int, default=1, help="runs of each stub; the median counts (1)")
    parser.add_argument("--width", type=int, default=12000, help="of the memory rasters (12000)")
    parser.add_argument("--rows", type=int, nargs="+", default=[6000, 12000, 48000], help="(6000 12000 48000)")
    parser.add_argument("--scenes", type=int, default=1000, help="small scenes (1000)")
    parser.add_argument("--time-limit", type=float, default=460, metavar="S", help="of a run, in seconds (460)")
    parser.add_argument("--memory-limit", type=float, default=10_000, metavar="MB", help="of a run (10000)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers")
    options = parser.parse_args()
    if options.install and not options.peers_dir:
        parser.error("--install needs --peers-dir, a folder outside of the repository")
    return options


def peers(bench: Bench) -> Sequence[dict[str, object]]:
    """One table per size: us first, then everybody."""
    wanted = bench.options.peer
    chosen = [peer for peer in (*OURS, *OTHERS) if not wanted or peer.script in wanted]
    rows: list[dict[str, object]] = []
    for size in bench.options.sizes:
        table = [_peer_row(bench, peer, size) for peer in chosen]
        own = next((row["beside s/MP"] for row in table if row["peer"] == OURS[0].title), None)
        for row in table:
            beside = row["beside s/MP"]
            both = isinstance(beside, float) and isinstance(own, float)
            row["x ours"] = beside / own if both else None  # type: ignore[operator]
        show(f"{size} px, {bench.options.classes} classes, tiles of {bench.options.tile} px", table, skip=("size",))
        rows += table
    return rows


def _peer_row(bench: Bench, peer: Peer, size: int) -> dict[str, object]:
    none = Measured(None, "", 1)
    stub, unet = (
        bench.measure(peer, model, size) if model in bench.options.models else none for model in ("stub", "unet")
    )
    facts = stub.facts or unet.facts or {}
    pixels = facts.get("pixels")
    return {
        "peer": peer.title,
        "version": facts.get("version", ""),
        "size": size,
        "beside s/MP": stub.beside,
        "x ours": None,
        "memory MB": round(stub.facts["memory"]) if stub.facts else None,
        "U-Net s/MP": unet.per_megapixel("cpu"),
        "forward s/MP": unet.per_megapixel("forward"),
        "of forward": unet.ratio,
        "pixels": pixels / size**2 if pixels else None,
        "note": " / ".join(dict.fromkeys(filter(None, (stub.reason, unet.reason)))),
    }


def pipeline(bench: Bench) -> Sequence[dict[str, object]]:
    """Our own ratios, and what is counted."""
    cases = [
        ("stub", "these tiles", "", 0.10, None),
        ("stub", "default plan", "default", 0.10, None),
        ("unet", "these tiles, fp32", "", None, 1.05),
        ("unet", "these tiles, bf16", "bf16", None, 1.08),
        ("unet", "default plan, fp32", "default", None, 1.05),
        ("unet", "default plan, bf16", "default,bf16", None, 1.08),
    ]
    rows: list[dict[str, object]] = []
    for model, title, variant, beside, ratio in cases:
        if model not in bench.options.models:
            continue
        got = bench.measure(Peer(title, "ours", variant=variant), model, bench.options.sizes[0])
        goal = f"{beside:.2f} s/MP" if beside else f"{ratio:.2f} x"
        value, most = (got.beside, beside) if beside else (got.ratio, ratio)
        rows.append(
            {
                "model": model,
                "plan": title,
                "beside s/MP": got.beside,
                "of forward": got.ratio,
                "s/MP": got.per_megapixel("cpu"),
                "memory MB": round(got.facts["memory"]) if got.facts else None,
                "goal": goal,
                "": got.reason or verdict(value, most),
            }
        )
    show(f"visionapps, {bench.options.sizes[0]} px", rows)
    counts = bench.own("own_counts", ["--size", bench.options.sizes[0], "--classes", bench.options.classes], "counts")
    print(
        f"\nblocks decoded: {counts['decoded']} of {counts['blocks']}, none more than {counts['decoded_most']} times\n"
        f"nodata: {counts['forwards']} forwards for {counts['tiles_with_data']} tiles with data of {counts['tiles']}"
    )
    repeated: dict[str, float] = counts["repeated"]  # type: ignore[assignment]
    shares = [
        (f"{size} px", share, verdict(share, 1.15) if int(size) >= 6000 else "") for size, share in repeated.items()
    ]
    print("\n" + render(("default plan", "pixels computed per pixel", "goal 1.15"), shares))
    return [*rows, dict(counts)]


def memory(bench: Bench) -> Sequence[dict[str, object]]:
    """Peak by height."""
    o = bench.options
    rows: list[dict[str, object]] = []
    for height in o.rows:
        words = ["--rows", height, "--width", o.width, "--classes", o.classes]
        facts = bench.own("own_memory", words, f"memory: {o.width} x {height}")
        rows.append({"rows": height, **{name: facts[name] for name in ("before", "memory", "cpu", "tile")}})
    shown = [(r["rows"], r["tile"], round(r["before"]), round(r["memory"]), r["cpu"]) for r in rows]  # type: ignore[call-overload]
    print(f"\n{o.width} px wide, {o.classes} classes, default plan\n")
    print(render(("rows", "tile px", "model and runtime MB", "beyond MB", "CPU s/MP"), shown))
    peaks = [float(r["memory"]) for r in rows]  # type: ignore[arg-type]
    growth = max(peaks) / peaks[0]
    print(f"most {max(peaks):.0f} MB (goal 600): {verdict(max(peaks), 600)}")
    print(f"x {growth:.3f} over the heights (goal 1.10): {verdict(growth, 1.10)}")
    return rows


def small(bench: Bench) -> Sequence[dict[str, object]]:
    """Time of many scenes with the U-Net, memory of few and many with the stub."""
    o = bench.options
    rows: list[dict[str, object]] = []
    cases = [
        ("unet", "fp32", o.scenes),
        ("unet", "auto", o.scenes),
        ("stub", "fp32", o.scenes // 10),
        ("stub", "fp32", o.scenes),
    ]
    for model, precision, scenes in cases:
        if model not in o.models:
            continue
        words = ["--image", bench.raster(o.sizes[0]), "--classes", o.classes, "--scenes", scenes]
        words += ["--model", model, "--precision", precision]
        facts = bench.own("own_scenes", words, f"small: {scenes} scenes, {model} {precision}")
        row: dict[str, object] = {"model": model, "precision": precision, "scenes": scenes, **facts}
        if model == "unet":
            row |= {"ratio": facts["cpu"] / facts["full"], "": verdict(facts["cpu"] / facts["full"], 1.15)}
        rows.append(row)
    names = ("model", "precision", "scenes", "cpu", "inside", "full", "ratio", "memory", "")
    titles = (
        "model",
        "precision",
        "scenes",
        "CPU s",
        "in forward s",
        "full batches s",
        "ratio",
        "beyond MB",
        "goal 1.15",
    )
    print("\n" + render(titles, [[row.get(name) for name in names] for row in rows]))
    return rows


def verdict(value: float | None, most: float | None) -> str:
    """Whether a goal is met."""
    if value is None or most is None:
        return ""
    return "met" if value <= most else "MISSED"


def show(title: str, rows: Sequence[dict[str, object]], skip: Sequence[str] = ()) -> None:
    """Print rows that share their keys."""
    if rows:
        names = [name for name in rows[0] if name not in skip]
        print(f"\n{title}\n\n" + render(names, [[row[name] for name in names] for row in rows]), flush=True)


if __name__ == "__main__":
    main()
