"""Fold plans: whole groups, even folds, buffers, leaks, the file, and a split that follows it."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from visionapps.data.dataset import CELL, Dataset, Policies, Split
from visionapps.data.doctor import examine
from visionapps.data.fake import PhotoFolders, write_photos
from visionapps.data.fold_leaks import alike, families, fold_items, leaks, pictures, same_in_table
from visionapps.data.folding import class_table, plan_folds
from visionapps.data.folds import FoldItem, FoldPlan
from visionapps.data.footprints import ground_boxes
from visionapps.errors import ConfigError, DataError
from visionapps.windows import Window


def items(*rows: tuple[str, tuple[int, ...]]) -> list[FoldItem]:
    """One photo of 10 x 10 px per row, "group_number" with its amounts."""
    return [FoldItem(name, name.split("_")[0], (10, 10), amounts, f"{name}.png") for name, amounts in rows]


@st.composite
def datasets(draw: st.DrawFn) -> list[FoldItem]:
    groups = draw(st.integers(5, 14))
    rows = []
    for group in range(groups):
        for number in range(draw(st.integers(1, 3))):
            amounts = tuple(draw(st.lists(st.sampled_from([0, 0, 10, 60]), min_size=3, max_size=3)))
            rows.append((f"g{group}_{number}", amounts))
    return items(*rows)


@settings(max_examples=6, deadline=None)
@given(datasets(), st.integers(2, 4), st.sampled_from(["area", "presence", "none"]))
def test_every_photo_validates_once_groups_are_whole_and_a_seed_says_all(found, k, stratify):
    plan = plan_folds(found, k, seed=3, stratify=stratify)
    assert sorted(plan.folds) == sorted(item.name for item in found)
    assert set(plan.folds.values()) == set(range(k))
    for _, group in itertools.groupby(sorted(found, key=lambda i: i.group), key=lambda i: i.group):
        assert len({plan.folds[item.name] for item in group}) == 1
    assert plan_folds(list(reversed(found)), k, seed=3, stratify=stratify) == plan


@settings(max_examples=6, deadline=None)
@given(datasets().filter(lambda found: len({i.group for i in found}) <= 9))
def test_as_many_classes_are_in_both_folds_as_any_division_allows(found):
    groups = sorted({item.group for item in found})
    present = np.array([[any(i.amounts[c] for i in found if i.group == g) for c in range(3)] for g in groups])

    def lacking(chosen: np.ndarray) -> int:
        return sum(int((~present[chosen == fold].any(0)).sum()) for fold in (0, 1))

    divisions = (np.array(bits) for bits in itertools.product((0, 1), repeat=len(groups)) if len(set(bits)) == 2)
    plan = plan_folds(found, 2)
    fold_of = {item.group: plan.folds[item.name] for item in found}
    assert lacking(np.array([fold_of[g] for g in groups])) == min(map(lacking, divisions))


def test_a_rare_class_is_spread_over_the_folds_and_areas_are_even():
    rng = np.random.default_rng(0)
    rows = [(f"g{g}_0", (int(rng.integers(20, 60)), 40 if g in (1, 5, 9) else 0)) for g in range(12)]
    table = class_table(plan_folds(items(*rows), 3), items(*rows))
    assert table[:, 1].tolist() == [40, 40, 40]
    assert np.ptp(table[:, 0]) < 0.25 * table[:, 0].mean()


@pytest.mark.parametrize("seed", range(4))
def test_folds_are_nearly_as_even_as_the_most_even_of_all_divisions(seed: int):
    rng = np.random.default_rng(seed)
    amounts = (rng.gamma(0.7, 1000, (7, 3)) * (rng.random((7, 3)) < 0.8)).astype(int) + 1
    sizes = rng.integers(10, 60, 7)
    found = [FoldItem(f"g{n}", f"g{n}", (int(sizes[n]), 10), tuple(amounts[n].tolist()), f"{n}") for n in range(7)]
    shares = np.column_stack([sizes, amounts]) / np.r_[sizes.sum(), amounts.sum(0)]

    def uneven(chosen: np.ndarray) -> float:
        folds = np.stack([shares[chosen == fold].sum(0) for fold in range(3)])
        return float(((3 * folds - 1) ** 2).mean())

    divisions = (np.array((0, *rest)) for rest in itertools.product(range(3), repeat=6))
    best = min(uneven(chosen) for chosen in divisions if len(set(chosen.tolist())) == 3)
    plan = plan_folds(found, 3)
    assert uneven(np.array([plan.folds[f"g{n}"] for n in range(7)])) <= 1.05 * best + 1e-9


def test_photos_that_belong_together_share_a_fold_without_being_one_group():
    found = items(*((f"g{n}_0", (10,)) for n in range(6)))
    plan = plan_folds(found, 3, together=[("g0_0", "g3_0"), ("g3_0", "g5_0")])
    assert plan.folds["g0_0"] == plan.folds["g3_0"] == plan.folds["g5_0"]
    assert plan.groups["g3_0"] == "g3"


def test_too_few_groups_and_senseless_numbers_are_refused_with_what_to_do():
    found = items(("a_0", (1,)), ("a_1", (1,)), ("b_0", (1,)))
    with pytest.raises(DataError, match=r"3 photos make 2 groups \(a, b\), but 3 folds need one each; take fewer"):
        plan_folds(found, 3)
    with pytest.raises(ConfigError, match="k 1 must be at least 2"):
        plan_folds(found, 1)
    for buffer in (-1, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match=f"buffer {buffer:g} must be a distance, 0 or more"):
            plan_folds(found, 2, buffer=buffer)
    with pytest.raises(ConfigError, match="seed -1 must not be negative"):
        plan_folds(found, 2, seed=-1)


def test_photos_within_the_buffer_of_a_validating_one_train_nobody():
    # Eight groups of three squares of 100 m in a row, without gaps: what is not three squares away is near.
    found = items(*((f"g{n // 3}_{n}", (10,)) for n in range(24)))
    boxes = {item.name: (100.0 * n, 0.0, 100.0 * n + 100, 100.0) for n, item in enumerate(found)}
    plan = plan_folds(found, 4, boxes=boxes, buffer=50)
    assert any(plan.excluded.values())
    for fold in range(4):
        own = [n for n, item in enumerate(found) if plan.folds[item.name] == fold]
        near = {n for n in range(24) if n not in own and min(abs(n - m) for m in own) == 1}
        assert set(plan.excluded.get(fold, ())) == {found[n].name for n in near}
        for n, item in enumerate(found):
            assert plan.saw(fold, item.name) == (n not in near and n not in own)


def test_a_buffer_that_leaves_nothing_to_train_on_is_refused():
    found = items(("a_0", (1,)), ("b_0", (1,)))
    boxes = {"a_0": (0.0, 0.0, 1.0, 1.0), "b_0": (5.0, 0.0, 6.0, 1.0)}
    with pytest.raises(DataError, match="with a buffer of 9 nothing is left to train on in fold 0"):
        plan_folds(found, 2, boxes=boxes, buffer=9)


@settings(max_examples=6, deadline=None)
@given(st.integers(1, 150), st.integers(0, 5))
def test_no_pixel_of_a_block_trains_within_the_buffer_of_one_that_validates(buffer, seed):
    blocks = [Window(r, c, 256, 256) for r in (0, 256, 512) for c in (0, 256, 512)]
    found = [FoldItem(f"p@{b.row},{b.col}", f"p@{b.row},{b.col}", (256, 256), (9,), "p.png", b) for b in blocks]
    plan = plan_folds(found, 3, seed=seed, buffer=buffer)
    for fold in range(3):
        judged = np.zeros((768, 768), bool)
        for item in found:
            if plan.folds[item.name] == fold:
                judged[item.window.slices] = True
        near = np.argwhere(judged)
        trains = {
            item.name: plan.trimmed.get(fold, {}).get(item.name, item.window)
            for item in found
            if plan.saw(fold, item.name)
        }
        for name, window in trains.items():
            whole = next(item.window for item in found if item.name == name)
            assert window.intersect(whole) == window
            assert (window.row % CELL, window.col % CELL) == (0, 0)
            # The nearest pixel that validates, along the farther axis.
            rows = np.maximum(np.maximum(window.row - near[:, 0], near[:, 0] - window.row_end + 1), 0)
            cols = np.maximum(np.maximum(window.col - near[:, 1], near[:, 1] - window.col_end + 1), 0)
            assert np.maximum(rows, cols).min() > buffer


def test_a_plan_is_the_same_after_its_file_and_damage_is_told(tmp_path: Path):
    found = items(*((f"g{n}_0", (10, n)) for n in range(6)))
    boxes = {"g0_0": (0.0, 0.0, 1.0, 1.0), "g1_0": (5.0, 0.0, 6.0, 1.0), "g2_0": (8.0, 0.0, 9.0, 1.0)}
    plan = plan_folds(found, 2, boxes=boxes, buffer=4, rule={"group": "^g\\d"})
    plan.save(tmp_path / "plan.json")
    again = FoldPlan.load(tmp_path / "plan.json")
    assert again == plan
    assert again.key == plan.key
    assert again.rule["group"] == "^g\\d"
    content = json.loads((tmp_path / "plan.json").read_text())
    content["photos"].pop("g3_0")
    (tmp_path / "cut.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"cut\.json: photos were added or removed by hand"):
        FoldPlan.load(tmp_path / "cut.json")
    content["photos"]["g1_0"]["fold"] = 2
    (tmp_path / "far.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="g1_0 is in fold 2, but there are 2 from 0"):
        FoldPlan.load(tmp_path / "far.json")
    (tmp_path / "half.json").write_text('{"format": 1, "k"')
    with pytest.raises(DataError, match=r"half\.json: cannot be read as a fold plan"):
        FoldPlan.load(tmp_path / "half.json")
    with pytest.raises(DataError, match=r"none\.json: no such fold plan; make one with `visionapps folds"):
        FoldPlan.load(tmp_path / "none.json")


def test_the_plan_of_another_dataset_is_refused_with_names():
    found = items(*((f"g{n}_0", (10, n)) for n in range(6)))
    plan = plan_folds(found, 2)
    plan.require(found)
    other = [*found[1:], *items(("new_0", (1, 1)))]
    other[0] = other[0]._replace(amounts=(9, 9))
    with pytest.raises(DataError) as caught:
        plan.require(other, "run.yaml")
    text = str(caught.value)
    assert text.startswith("run.yaml: the fold plan was made for another dataset of 6 photos: ")
    assert "1 photos of the plan are missing (g0_0); 1 photos are not in the plan (new_0); 1 photos have" in text
    assert plan_folds(other, 2).fingerprint != plan.fingerprint


def scene(seed: int) -> np.ndarray:
    """A smooth (16, 16) picture."""
    coarse = np.random.default_rng(seed).uniform(0, 255, (5, 5))
    return np.kron(coarse, np.ones((4, 4)))[:16, :16].astype(np.float32)


def test_photos_that_look_alike_are_found_across_folds_and_joined_families_have_none():
    found = items(*((f"g{n}_0", (10,)) for n in range(6)))
    thumbnails = np.stack([scene(0), scene(1), np.rot90(scene(0)), scene(2), scene(1)[:, ::-1], scene(0) + 5])
    pairs = families(found, thumbnails)
    plan = plan_folds(found, 2, together=pairs)
    assert plan.folds["g0_0"] == plan.folds["g2_0"] == plan.folds["g5_0"]
    assert plan.folds["g1_0"] == plan.folds["g4_0"]
    assert leaks(plan, found, thumbnails, {}) == []
    torn = alike(found, thumbnails, range(6))
    assert {(leak.one, leak.other) for leak in torn} >= {("g0_0", "g2_0"), ("g1_0", "g4_0")}
    assert all(leak.amount > 0.95 for leak in torn)


def test_a_leak_is_found_beside_a_closer_photo_that_a_buffer_keeps_out():
    """What looks most like a photo teaches no model that is judged on it; what looks less like it does."""
    found = items(*((name, (10,)) for name in "abcd"))
    noise = np.random.default_rng(5).normal(0, 1, (2, 16, 16)).astype(np.float32)
    thumbnails = np.stack([scene(0), scene(0) + noise[0], scene(0) + 9 * noise[1], scene(0) + 9 * noise[1]])
    plan = replace(
        plan_folds(found, 3),
        folds={"a": 0, "b": 1, "c": 1, "d": 2},
        excluded={0: ("b", "d"), 1: ("a", "d"), 2: ("a", "b", "c")},  # so that c in fold 0 is all that is left
    )
    torn = leaks(plan, found, thumbnails, {})
    assert [(leak.kind, leak.one, leak.other) for leak in torn] == [("near_duplicate", "a", "c")]
    here, beside = (0.0, 0.0, 10.0, 10.0), (5.0, 0.0, 15.0, 10.0)
    torn = leaks(plan, found, np.zeros((4, 16, 16), np.float32), {"a": here, "b": here, "c": beside, "d": beside})
    assert torn == [("overlap", "a", "c", 0.5)]


def test_a_table_says_which_photos_share_a_fold(tmp_path: Path):
    found = items(*((f"g{n}_0", (10,)) for n in range(6)))
    table = tmp_path / "sites.csv"
    rows = (("g0_0.png", "north"), ("g1_0", "south"), ("x/g2_0.jpg", "north"), ("g3_0", "west"), ("g4_0", "south"))
    table.write_text("photo,site\n" + "".join(f"{name},{site}\n" for name, site in rows))
    with pytest.raises(DataError, match=r"sites\.csv: 1 photos have no row \(g5_0\); add them"):
        same_in_table(table, found)
    table.write_text(table.read_text() + "g5_0,west\n")
    plan = plan_folds(found, 3, together=same_in_table(table, found))
    assert [plan.folds[f"g{n}_0"] == plan.folds[f"g{m}_0"] for n, m in ((0, 2), (1, 4), (3, 5))] == [True] * 3
    table.write_text("photo\ng0_0\n")
    with pytest.raises(DataError, match="the row 'g0_0' has no second column; expected name,group"):
        same_in_table(table, found)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ("photo,site\ng0,A\ng1,B\ng0,B\n", r"g0 has two groups \(A, B\); leave one row of it, or name photos with"),
        ("photo,site\ng0, \ng1,\n", "the row 'g0,' has no group; a photo that stands alone needs a group of its own"),
        ("photo,site\n,A\ng1,A\n", "the row ',A' has no photo"),
        ("g0,A\ng1,A\n", r"the first line \(g0,A\) is a photo, but a header belongs there; put photo,group above"),
        ("x/g0.png,A\ng1,A\n", r"the first line \(x/g0\.png,A\) is a photo"),
    ],
)
def test_a_table_that_leaves_doubt_is_refused(tmp_path: Path, rows: str, expected: str):
    (tmp_path / "sites.csv").write_text(rows)
    with pytest.raises(DataError, match=expected):
        same_in_table(tmp_path / "sites.csv", items(("g0", (1,)), ("g1", (1,))))


def test_only_image_suffixes_and_folders_are_taken_off_the_names_of_a_table(tmp_path: Path):
    def pairs(rows: str, *names: str) -> list[tuple[str, str]]:
        (tmp_path / "sites.csv").write_text("photo,site\n" + rows)
        return same_in_table(tmp_path / "sites.csv", items(*((name, (1,)) for name in names)))

    years = ("S2.2020", "S2.2021", "S2.2022", "S2.2023")
    assert pairs("S2.2020,a\nS2.2021.tif,b\nx/S2.2022,a\nS2.2023.TIF,c\n", *years) == [("S2.2020", "S2.2022")]
    # Classes lie in folders, in which names occur again; a name that is written as it is counts before a shortened one.
    assert pairs("cat/1.jpg,a\ndog/1.jpg,b\ntrain/cat/2.jpg,b\n", "cat/1", "dog/1", "cat/2") == [("dog/1", "cat/2")]
    assert pairs("p.tif,a\np,b\nq,b\n", "p.tif", "p", "q") == [("p", "q")]


def test_a_table_may_name_blocks_or_the_photo_of_which_they_are(tmp_path: Path):
    blocks = [
        FoldItem(f"{n}@0,{c}", f"{n}@0,{c}", (64, 64), (1,), n, Window(0, c, 64, 64)) for n in "pq" for c in (0, 64)
    ]
    table = tmp_path / "sites.csv"
    table.write_text("photo,site\np,a\nq.tif,b\n")
    assert same_in_table(table, blocks) == [("p@0,0", "p@0,64"), ("q@0,0", "q@0,64")]
    table.write_text('photo,site\n"p@0,0",a\n"q@0,0",a\n"p@0,64",b\n"q@0,64",b\n')
    assert same_in_table(table, blocks) == [("p@0,0", "q@0,0"), ("p@0,64", "q@0,64")]


def test_common_ground_of_two_folds_is_a_leak_unless_the_buffer_keeps_it_out():
    found = items(*((f"g{n // 3}_{n}", (10,)) for n in range(24)))
    boxes = {item.name: (80.0 * n, 0.0, 80.0 * n + 100, 100.0) for n, item in enumerate(found)}
    blank = np.zeros((24, 16, 16), np.float32)
    torn = leaks(plan_folds(found, 4), found, blank, boxes)
    assert torn
    assert all(leak.kind == "overlap" and leak.amount == pytest.approx(0.2) for leak in torn)
    kept = leaks(plan_folds(found, 4, boxes=boxes, buffer=1), found, blank, boxes)
    assert kept == []


def test_photos_lie_in_metres_whatever_their_coordinate_system(tmp_path: Path):
    rasterio = pytest.importorskip("rasterio")
    from rasterio.transform import from_origin
    from rasterio.warp import transform

    (lon,), (lat,) = transform("EPSG:32633", "EPSG:4326", [500000.0], [5300000.0])
    step = 1 / 111_320
    places = {
        "utm.tif": ("EPSG:32633", from_origin(500000, 5300000, 1, 1)),
        "degrees.tif": ("EPSG:4326", from_origin(lon, lat, step / np.cos(np.radians(lat)), step)),
    }
    for name, (crs, at) in places.items():
        with rasterio.open(tmp_path / name, "w", "GTiff", 50, 100, 1, crs, at, "uint8") as file:
            file.write(np.ones((1, 100, 50), np.uint8))
    found = [FoldItem(name, name, (100, 50), (1,), str(tmp_path / name)) for name in places]
    boxes = ground_boxes(found)
    assert np.subtract(boxes["utm.tif"], boxes["degrees.tif"]) == pytest.approx(0, abs=1.5)
    x0, y0, x1, y1 = ground_boxes(found[:1])["utm.tif"]
    assert (x0, y1, x1 - x0, y1 - y0) == (500000, 5300000, 50, 100)


@pytest.fixture
def seasons(tmp_path: Path) -> list[FoldItem]:
    """Blocks of 64 px of two photos of one place, 2 m a pixel, taken in two seasons."""
    rasterio = pytest.importorskip("rasterio")
    from rasterio.transform import from_origin

    for name in ("june", "may"):
        path = tmp_path / f"{name}.tif"
        with rasterio.open(path, "w", "GTiff", 192, 128, 1, "EPSG:32633", from_origin(500000, 5300000, 2, 2), "uint8"):
            pass
    places = [(name, row, col) for name in ("june", "may") for row in (0, 64) for col in (0, 64, 128)]
    return [
        FoldItem(f"{n}@{r},{c}", f"{n}@{r},{c}", (64, 64), (5,), str(tmp_path / f"{n}.tif"), Window(r, c, 64, 64))
        for n, r, c in places
    ]


def test_blocks_of_two_photos_that_show_the_same_ground_are_a_leak(seasons: list[FoldItem]):
    boxes = ground_boxes(seasons)
    assert boxes["may@64,0"] == (500000, 5299744, 500128, 5299872)
    june, may = [item.name for item in seasons[:6]], [item.name for item in seasons[6:]]
    blank = np.zeros((12, 16, 16), np.float32)
    torn = plan_folds(seasons, 2, together=[(names[0], name) for names in (june, may) for name in names[1:]])
    found = leaks(torn, seasons, blank, boxes)
    assert {(leak.kind, leak.one, leak.other, leak.amount) for leak in found} == {
        ("overlap", one, other, 1.0) for one, other in zip(june, may, strict=True)
    }
    assert leaks(plan_folds(seasons, 2, together=zip(june, may, strict=True)), seasons, blank, boxes) == []


def test_ground_boxes_of_blocks_follow_a_photo_that_was_resized(seasons: list[FoldItem]):
    half = [item._replace(window=Window(item.window.row // 2, item.window.col // 2, 32, 32)) for item in seasons]
    assert ground_boxes(half) == ground_boxes(seasons)


@pytest.mark.parametrize(("buffer", "near"), [(10, False), (20, True)])
def test_a_buffer_in_pixels_reaches_blocks_of_other_photos(seasons: list[FoldItem], buffer: int, near: bool):
    boxes = ground_boxes(seasons)
    moved = 3 * 128 + 30  # may begins 30 m, which is 15 px, beyond the right side of june
    boxes |= {n: (x0 + moved, y0, x1 + moved, y1) for n, (x0, y0, x1, y1) in boxes.items() if n.startswith("may")}
    june, may = [i.name for i in seasons[:6]], [i.name for i in seasons[6:]]
    together = [(names[0], name) for names in (june, may) for name in names[1:]]
    plan = plan_folds(seasons, 2, boxes=boxes, buffer=buffer, together=together)
    of_may, of_june = plan.folds[may[0]], plan.folds[june[0]]
    expected = {of_june: ("may@0,0", "may@64,0"), of_may: ("june@0,128", "june@64,128")} if near else {}
    assert plan.excluded == expected
    assert plan.trimmed == {}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> PhotoFolders:
    return write_photos(tmp_path_factory.mktemp("photos"), 12, rng=np.random.default_rng(0))


def dataset(folders: PhotoFolders, cache: Path, split: Split) -> Dataset:
    return Dataset(
        str(folders.images),
        str(folders.masks),
        ("a", "b", "c"),
        split=split,
        policies=Policies(near_duplicate="warn"),
        cache=str(cache),
    )


def test_a_split_follows_a_plan_fold_by_fold(folders: PhotoFolders, tmp_path: Path):
    split = Split(group="site\\d+", val_fraction=0)
    whole = dataset(folders, tmp_path / "cache", split)
    photos = examine(whole).train
    found = fold_items(photos, 3)
    plan = plan_folds(found, 3, rule={"group": "site\\d+"})
    plan.save(tmp_path / "plan.json")
    judged = []
    for fold in range(3):
        planned = replace(split, plan=str(tmp_path / "plan.json"), fold=fold)
        examination = examine(replace(whole, split=planned))
        examination.raise_on_errors()
        assert tuple(p.name for p in examination.val) == plan.names(fold)
        assert {p.name for p in examination.train} == {p.name for p in photos} - set(plan.names(fold))
        judged += [p.name for p in examination.val]
    assert sorted(judged) == sorted(p.name for p in photos)
    assert pictures(photos).std((1, 2)).min() > 0


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"fold": 3}, "split.fold: 3, but the plan has 3 folds from 0 to 2"),
        ({"group": None}, "was made with split.group site.*, but the dataset has None; set split.group to"),
        ({"plan": "none.json"}, "none.json: no such fold plan"),
    ],
)
def test_a_split_that_does_not_go_with_its_plan_is_refused(folders, tmp_path, changes, expected):
    split = Split(group="site\\d+", val_fraction=0)
    photos = examine(dataset(folders, tmp_path / "cache", split)).train
    plan_folds(fold_items(photos, 3), 3, rule={"group": "site\\d+"}).save(tmp_path / "plan.json")
    planned = replace(split, **({"plan": str(tmp_path / "plan.json")} | changes))
    with pytest.raises(DataError, match=expected):
        examine(dataset(folders, tmp_path / "cache", planned)).raise_on_errors()


def test_a_block_loses_what_the_buffer_takes_and_its_pixels_are_counted_anew(tmp_path: Path):
    folders = write_photos(tmp_path / "photos", 1, size=(256, 256), rng=np.random.default_rng(0))
    split = Split(block_px=128, val_fraction=0)
    whole = dataset(folders, tmp_path / "cache", split)
    photos = examine(whole).train
    plan = plan_folds(fold_items(photos, 3), 2, rule={"block_px": 128}, buffer=20)
    plan.save(tmp_path / "plan.json")
    examination = examine(replace(whole, split=replace(split, plan=str(tmp_path / "plan.json"))))
    examination.raise_on_errors()
    cut = plan.trimmed[0]
    assert cut
    for photo in examination.train:
        assert photo.window == cut.get(photo.name, photo.window)
        labels = photo.labels(Window(0, 0, *photo.size))
        assert photo.class_pixels == tuple(int((labels == c).sum()) for c in range(3))
    assert {p.size for p in examination.train if p.name in cut} <= {(64, 128), (128, 64), (64, 64)}


def test_a_split_says_what_validates_in_one_way_only():
    with pytest.raises(ConfigError, match="plan and val_groups are two ways"):
        Split(plan="plan.json", val_groups=("a",))
    with pytest.raises(ConfigError, match=r"split\.fold: -1 must be at least 0"):
        Split(plan="plan.json", fold=-1)
