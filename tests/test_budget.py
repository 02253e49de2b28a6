"""What is left out of an ensemble so that it fits into time and memory, and the guard that watches the clock."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny_bundles import COLORS, tiny

from visionapps.competition.budget import LATEST, PLANNED, Costs, Guard, Limits, Load, Pass, Quality, Task, fit
from visionapps.competition.budget_measure import middle_tile, spread, try_passes
from visionapps.errors import ConfigError, DataError
from visionapps.inference.network import Network
from visionapps.inference.plan import plan
from visionapps.inference.sources import ArraySource
from visionapps.structures import LabelSpace

VIEWS = {"none": 1, "flips": 4, "d4": 8}
WEIGHTS = (6.0, 3.0, 1.0)  # of the members


def costs(per_pass=(1.0, 1.0, 1.0), scales=(1.0,), *, drawn=0.0, held=(0, 0, 0), base=0) -> Costs:
    """Seconds of a pass of each member over a pixel at scale 1; larger views take more by their area."""
    passes = {
        Pass(member, scale, flips): seconds * scale**2 * count
        for member, seconds in enumerate(per_pass)
        for scale in scales
        for flips, count in VIEWS.items()
    }
    return Costs(drawn, passes, base, held, {scale: round(100 * scale**2) for scale in scales})


def loss(quality: Quality) -> float:
    """The weight that is missing, a tenth for flips, and a twentieth for scales: easy to follow by hand."""
    missing = 1 - sum(WEIGHTS[member] for member in quality.members) / sum(WEIGHTS)
    return missing + {"d4": 0.0, "flips": 0.02, "none": 0.12}[quality.flips] + 0.05 * (2 - len(quality.scales))


def task(seconds: float, memory: int = 10**9, pixels: int = 10, **made) -> Task:
    return Task((Load(pixels, pixels),), costs(**made), Limits(seconds / PLANNED, memory), loss)


FULL = Quality((0, 1, 2), "d4", (1.0,))


def test_everything_is_drawn_where_it_fits():
    choice = fit(FULL, task(240.001))  # 10 pixels x 3 members x 8 views
    assert choice.quality == FULL
    assert choice.steps == ()
    assert choice.forecast.seconds == pytest.approx(240)
    assert str(FULL) == "3 members x 8 views = 24 forward passes per tile"


def test_of_steps_that_suffice_the_one_that_changes_least_is_taken():
    # 240 s are 20 too many: without member 2 (weight 1 of 10) 160, without flips 120 but only 0.02 away.
    choice = fit(FULL, task(220))
    assert choice.quality == replace(FULL, flips="flips")
    assert FULL.given_up(choice.quality, "abc") == "views (d4: 8, flips: 4)"
    # A member that hardly counts goes before the views.
    price = (0.6, 0.3, 0.001)
    light = replace(task(220), loss=lambda q: (q.flips != "d4") + sum(price[m] for m in {0, 1, 2} - set(q.members)))
    choice = fit(FULL, light)
    assert choice.quality == replace(FULL, members=(0, 1))
    assert FULL.given_up(choice.quality, "abc") == "member c"


def test_where_no_step_suffices_the_cheapest_per_second_saved_is_taken_first():
    # Everything is 0.05 away, as it has one scale. Of 240 s d4 -> flips saves 120 for 0.02 more.
    choice = fit(FULL, task(25))
    assert [step.quality for step in choice.steps] == [
        Quality((0, 1, 2), "flips"),  # 120 s
        Quality((0, 1, 2), "none"),  # 30 s: 0.1 for 90 s, against 0.1 for 40 s of member 2
        Quality((0, 1), "none"),  # 20 s: suffices, and member 2 counts least
    ]
    assert [step.forecast.seconds for step in choice.steps] == pytest.approx([120, 30, 20])
    assert [step.loss for step in choice.steps] == pytest.approx([0.07, 0.17, 0.27])


def test_scales_are_left_out_too_and_the_heavier_one_where_both_are_alike():
    both = Quality((0,), "none", (1.0, 1.5))
    made = task(31, per_pass=(1.0,), scales=(1.0, 1.5))
    assert fit(both, replace(made, limits=Limits(33 / PLANNED, 10**9))).quality == both  # 10 + 22.5
    choice = fit(both, made)
    assert choice.quality == Quality((0,), "none", (1.0,))  # both suffice and cost 0.05: more is saved by 1.5
    assert both.given_up(choice.quality, "a") == "scale 1.5"


def test_what_was_left_out_on_the_way_comes_back_where_nothing_else_fits():
    # Scale 1 is worth all but takes 10 s a member: step by step only it is left, and it does not fit into 3 s.
    made = task(3, per_pass=(1.0, 1.0), scales=(0.5, 1.0))
    made = replace(made, loss=lambda q: 100 * (1.0 not in q.scales) + loss(q))
    choice = fit(Quality((0, 1), "none", (0.5, 1.0)), made)
    assert [(step.quality.members, step.quality.scales) for step in choice.steps] == [
        ((0, 1), (1.0,)),
        ((0,), (1.0,)),
        ((0,), (0.5,)),
    ]
    assert choice.forecast.seconds == pytest.approx(2.5)


def test_memory_that_lacks_is_found_where_it_is():
    made = {"held": (0, 500, 10), "base": 100, "scales": (1.0, 2.0)}
    # 100 + 510 + 400 bytes: scale 2 takes 300 more than scale 1, member 1 takes 500.
    full = Quality((0, 1, 2), "d4", (1.0, 2.0))
    assert fit(full, task(1e6, memory=math.ceil(1010 / PLANNED), **made)).quality == full
    choice = fit(full, task(1e6, memory=math.ceil(900 / PLANNED), **made))
    assert choice.quality == replace(full, scales=(1.0,))
    assert choice.forecast.memory == 710
    assert fit(full, task(1e6, memory=math.ceil(250 / PLANNED), **made)).quality == Quality((0, 2), "d4", (1.0,))


def test_what_cannot_be_met_ends_with_the_smallest_time_and_memory_and_these_suffice():
    short = replace(task(5), spent=3.0)
    with pytest.raises(ConfigError) as caught:
        fit(FULL, short)
    # One pass over 10 pixels, 3 s gone by: 13 s are nine tenths of 14.4.
    assert "--seconds 5.55556: at least 15 s are needed here for 1 image, with the cheapest member" in str(caught.value)
    assert fit(FULL, replace(short, limits=Limits(15, 10**9))).quality == Quality((0,))
    small = task(1e6, memory=100, base=2**30)
    with pytest.raises(ConfigError, match=r"--memory 9.31323e-08: at least 1.12 GiB are needed, with the smallest"):
        fit(FULL, small)
    assert fit(FULL, replace(small, limits=Limits(1e6, int(1.12 * 2**30)))).quality == FULL


@pytest.mark.parametrize(("seconds", "memory"), [(0, 1), (-1, 1), (math.nan, 1), (math.inf, 1), (1, 0)])
def test_limits_are_positive(seconds, memory):
    with pytest.raises(ConfigError, match="must be positive, such as"):
        Limits(seconds, memory)


numbers = st.floats(0.001, 1000)


@settings(max_examples=60, deadline=None)
@given(
    per_pass=st.tuples(numbers, numbers, numbers),
    held=st.tuples(*[st.integers(0, 1000)] * 3),
    drawn=st.floats(0, 10),
    share=st.floats(0.0001, 1.1),
    room=st.floats(0.05, 1.1),
)
@example(per_pass=(1.0, 1.0, 1.0), held=(0, 0, 0), drawn=0.0, share=1.0, room=1.0)
def test_a_choice_always_fits_and_is_refused_only_where_no_single_pass_does(per_pass, held, drawn, share, room):
    full = Quality((0, 1, 2), "d4", (0.5, 1.0))
    measured = costs(per_pass, (0.5, 1.0), drawn=drawn, held=held, base=50)
    loads = (Load(7, 9), Load(3, 4))
    seconds = share * measured.seconds(full, loads) / PLANNED
    limits = Limits(max(seconds, 1e-9), max(1, round(room * measured.memory(full) / PLANNED)))
    asked = Task(loads, measured, limits, loss)
    singles = [asked.forecast(Quality((m,), "none", (s,))) for m in range(3) for s in (0.5, 1.0)]
    if any(asked.fits(single) for single in singles):
        choice = fit(full, asked)
        assert asked.fits(choice.forecast)
        assert choice.forecast == asked.forecast(choice.quality)
        single_steps = [below for below in full.lower() if asked.fits(asked.forecast(below))]
        if asked.fits(asked.forecast(full)):
            assert choice.quality == full
        elif single_steps:  # never more than one thing is left out where one suffices, and then the one of least loss
            assert loss(choice.quality) == pytest.approx(min(map(loss, single_steps)))
    else:
        with pytest.raises(ConfigError):
            fit(full, asked)


class StubClock:
    """Time that only goes by where a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def drawn_with(pace: float, limit: float, *, sizes: list[int], steady: bool = True) -> tuple[list[int], float, int]:
    """Draw images one by one, each `pace` times slower than measured. Returns passes of each, the end, images left."""
    clock, guard_task = StubClock(), replace(task(1.0), limits=Limits(limit, 10**9))
    guard = Guard(FULL, guard_task, clock)
    waiting, passes, left = [Load(size, size) for size in sizes], [], 0
    while waiting:
        if not guard.before(waiting):
            waiting.pop(0)
            left += 1
            continue
        load = waiting.pop(0)
        passes.append(guard.quality.forwards)
        seconds = pace * guard_task.costs.seconds(guard.quality, [load])
        if not steady and len(waiting) < len(sizes) // 2:
            seconds *= 3
        clock.now += seconds
        guard.drew([load], seconds)
    return passes, clock.now, left


def test_nothing_is_lowered_while_the_forecast_holds():
    passes, end, left = drawn_with(1.0, 1000, sizes=[10] * 4)  # 4 x 240 s
    assert passes == [24] * 4
    assert (end, left) == (pytest.approx(960), 0)


def test_a_slow_machine_lowers_what_is_left_and_ends_in_time():
    passes, end, left = drawn_with(2.0, 1000, sizes=[10] * 4)
    assert passes[0] == 24
    assert passes == sorted(passes, reverse=True)
    assert passes[-1] < 24
    assert (left, end <= LATEST * 1000) == (0, True)


def test_images_that_turn_out_slower_at_the_end_are_met_by_less_and_in_time():
    passes, end, left = drawn_with(1.0, 1000, sizes=[10] * 8, steady=False)  # 8 x 240 s were too many to begin with
    assert passes == sorted(passes, reverse=True)
    assert (left, end <= 1000) == (0, True)


def test_images_for_which_no_time_is_left_are_left_out_and_smaller_ones_are_not():
    passes, end, left = drawn_with(1.0, 100, sizes=[200, 20, 10])
    assert passes == [1, 1]  # 20 and 10 s; the image of 200 s would have taken twice the time there is
    assert (left, end) == (1, pytest.approx(30))


def test_the_largest_the_median_and_the_smallest_are_tried():
    assert spread([5, 9, 1, 7, 3]) == (1, 0, 2)
    assert spread([4, 4]) == (0, 1)
    assert spread([8]) == (0,)


LABELS = LabelSpace(("ground", "road", "tree"), COLORS)


def test_what_the_trial_says_of_any_quality_is_what_a_network_of_it_says():
    bundles = {0: tiny(LABELS, 1), 1: tiny(LABELS, 2)}
    full = Quality((0, 1), "flips", (0.5, 1.0))
    tile = np.random.default_rng(0).integers(0, 256, (3, 32, 64), dtype=np.uint8)
    trial = try_passes(bundles, (1.0, 3.0), full, [tile], device="cpu", precision="fp32", most=2)
    assert set(trial.seconds) == {Pass(m, s, f) for m in (0, 1) for s in (0.5, 1.0) for f in ("none", "flips")}
    assert all(seconds > 0 for seconds in trial.seconds.values())
    assert trial.working[1.0] >= trial.working[0.5] > 0
    below = Quality((1,), "none", (1.0,))
    said = {}
    for quality in (full, below):
        models = [bundles[member].segmentor for member in quality.members]
        weights = [(1.0, 3.0)[member] for member in quality.members]
        network = Network(models, weights=weights, views=quality.views, device="cpu", precision="fp32")
        scores = network(tile[None])[0]
        scores = scores if network.form == "probabilities" else scores.softmax(0)
        said[quality] = scores[:, ::4, ::4].flatten(1).T.numpy()
        np.testing.assert_allclose(trial.opinions.mean(quality), said[quality], atol=2e-3)  # kept in fp16
    moved = np.mean([abs(p - q).sum() / 2 for p, q in zip(said[full], said[below], strict=True)])
    assert trial.opinions.moved(full, below) == pytest.approx(moved, abs=2e-3)
    assert moved > 0.01  # else there is nothing to tell
    assert trial.opinions.moved(full, full) == trial.opinions.changed(full, full) == 0
    changed = (said[full].argmax(1) != said[below].argmax(1)).mean()
    assert trial.opinions.changed(full, below) == pytest.approx(changed, abs=0.02)


def test_the_tile_in_the_middle_has_the_size_of_the_plan_and_neutral_values_beyond_the_image():
    bundle = tiny(LABELS, 1)
    image = np.arange(3 * 40 * 100, dtype=np.uint8).reshape(3, 40, 100)
    layout = plan((40, 100), tile=64, overlap=0)
    tile = middle_tile(ArraySource(image, name="x"), layout, bundle)
    assert tile.shape == (3, 64, 64)
    np.testing.assert_array_equal(tile[:, :40], image[:, :, 18:82])
    neutral = np.round(np.array(bundle.spec.mean) * bundle.spec.scale)
    np.testing.assert_array_equal(tile[:, 40:], np.broadcast_to(neutral[:, None, None], (3, 24, 64)))
    with pytest.raises(DataError, match=r"x: 1 bands, but the models expect 3 \(red, green, blue\)"):
        middle_tile(ArraySource(image[:1], name="x"), layout, bundle)
