"""The whole detector: equal to torchvision's where that is right, and right where it is not."""

import copy
import logging
from dataclasses import replace

import pytest
import torch
from torchvision_twin import CLASSES, batch, for_torchvision, ours, torchvisions

from visionapps.boxes import Targets
from visionapps.detection.base import Limits
from visionapps.detection.sampling import BalancedSampler
from visionapps.errors import ConfigError, DataError
from visionapps.inference.convolution import one_kernel
from visionapps.testing import check_detector

NAMES = {
    "rpn_objectness": "loss_objectness",
    "rpn_box": "loss_rpn_box_reg",
    "roi_class": "loss_classifier",
    "roi_box": "loss_box_reg",
    "mask": "loss_mask",
}


def without_objects(target):
    return Targets(
        target.boxes[:0], target.labels[:0], target.ignore[:0], None if target.masks is None else target.masks[:0]
    )


@pytest.mark.parametrize("masks", [False, True])
def test_losses_and_gradients_are_torchvisions(masks):
    model = ours(masks=masks)
    twin = torchvisions(model).train()
    model.eval()  # its backbone is shared: statistics of the batch would move between the two
    given = batch(masks=masks)
    expected = twin(*for_torchvision(given))
    gradients = torch.autograd.grad(sum(expected.values()), list(model.backbone.parameters()))
    got = model.losses(given)
    assert got.keys() == {name for name, theirs in NAMES.items() if theirs in expected}
    for name, value in got.items():
        assert value.detach() == pytest.approx(float(expected[NAMES[name]].detach()), rel=1e-4), name
        assert value.dtype == torch.float32
    own = torch.autograd.grad(sum(got.values()), list(model.backbone.parameters()))
    for a, b in zip(own, gradients, strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-4 * float(b.abs().max()))


@pytest.mark.parametrize("masks", [False, True])
def test_detections_are_torchvisions(masks):
    model = ours(masks=masks)
    given = batch(masks=masks)
    with torch.no_grad():
        expected = torchvisions(model)(for_torchvision(given)[0])
        got = model.detect(given.image, given.sizes)
    for own, theirs, size in zip(got, expected, given.sizes, strict=True):
        assert len(own.boxes) == len(theirs["boxes"]) > 10
        assert torch.allclose(own.boxes, theirs["boxes"], atol=1e-3)  # pixels
        assert torch.allclose(own.scores, theirs["scores"], atol=1e-4)
        assert torch.equal(own.labels, theirs["labels"] - 1)
        if masks:
            assert own.masks.shape == (len(own.boxes), *size)
            assert own.masks.dtype == torch.bool
            different = own.masks != (theirs["masks"][:, 0] >= 0.5)
            assert different.float().mean() < 1e-4  # a probability of exactly one half, give or take rounding
            assert own.masks.any()


def test_judging_gives_the_losses_and_the_detections_of_one_batch_and_leaves_the_random_stream_alone():
    model, given = ours(masks=True, everything=False), batch(masks=True)
    with torch.no_grad():
        state = torch.get_rng_state()
        terms, found = model.judge(given)
        assert torch.equal(torch.get_rng_state(), state)
        again, _ = model.judge(given)
        expected = model.detect(given.image, given.sizes)
    assert terms.keys() == NAMES.keys()
    assert terms == again
    for own, other in zip(found, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(own, other, strict=True))


def test_detections_do_not_depend_on_the_rest_of_the_batch_bit_by_bit():
    model, given = ours(masks=True), batch(((128, 192), (96, 150), (128, 64), (1, 1)), masks=True)
    with torch.no_grad(), one_kernel(torch.device("cpu"), torch.float32):
        together = model.detect(given.image, given.sizes)
        apart = [model.detect(image[None], (size,))[0] for image, size in zip(given.image, given.sizes, strict=True)]
        turned = model.detect(given.image.flip(0), given.sizes[::-1])[::-1]
    assert min(len(found.boxes) for found in together[:3]) > 10
    for a, b, c in zip(together, apart, turned, strict=True):
        for one, two, three in zip(a, b, c, strict=True):
            assert torch.equal(one, two)
            assert torch.equal(one, three)


def test_the_layout_of_memory_changes_nothing():
    model, given = ours(masks=True), batch(masks=True)
    with torch.no_grad():
        expected = model.detect(given.image, given.sizes)
        model.to(memory_format=torch.channels_last)
        got = model.detect(given.image.contiguous(memory_format=torch.channels_last), given.sizes)
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a.labels, b.labels)
        assert torch.allclose(a.boxes, b.boxes, atol=1e-3)
        assert torch.allclose(a.scores, b.scores, atol=1e-4)


def test_a_copy_of_the_detector_finds_the_same():
    model, given = ours(), batch()
    with torch.no_grad():
        a, b = (each.detect(given.image, given.sizes) for each in (model, copy.deepcopy(model)))
    assert all(torch.equal(x.boxes, y.boxes) for x, y in zip(a, b, strict=True))


def test_every_step_has_its_seed():
    model, given = ours(everything=False), batch()
    model.rpn.sampler, model.roi_heads.sampler = BalancedSampler(16, 0.5), BalancedSampler(8, 0.25)
    terms = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        terms.append({name: float(value.detach()) for name, value in model.losses(given).items()})
    assert terms[0] == terms[1] != terms[2]


def test_what_lies_in_the_padding_is_never_seen():
    model, given = ours(), batch(((128, 192), (64, 100)))
    dirty = given.image.clone()
    dirty[1, :, 64:] = 200
    dirty[1, :, :, 100:] = 77
    with torch.no_grad():
        clean, other = (model.detect(image, given.sizes) for image in (given.image, dirty))
    for a, b in zip(clean, other, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a[:3], b[:3], strict=True))


def test_images_without_objects_give_finite_losses_and_gradients_for_every_parameter():
    model, given = ours(masks=True), batch(masks=True)
    model.train()
    empty = given._replace(targets=tuple(without_objects(target) for target in given.targets))
    terms = model.losses(empty)
    assert all(torch.isfinite(value) for value in terms.values())
    assert float(terms["rpn_box"].detach()) == float(terms["roi_box"].detach()) == float(terms["mask"].detach()) == 0
    sum(terms.values()).backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]


def test_where_everything_is_ignored_nothing_inside_is_learned():
    model, given = ours(), batch(((128, 192),))
    whole = Targets(torch.tensor([[0.0, 0, 192, 128]]), torch.tensor([99]), torch.tensor([True]))
    terms = model.losses(given._replace(targets=(whole,)))
    assert all(torch.isfinite(value) for value in terms.values())
    states = model.rpn.matcher.states(
        torch.tensor([[10.0, 10, 40, 40], [180, 120, 300, 300]]), whole.boxes[:0], whole.boxes
    )
    assert states.tolist() == [-1, 0]  # inside; mostly beyond the image


def test_ten_thousand_boxes_in_one_image_are_learned_from_and_found():
    model, given = ours(everything=False), batch(((128, 192),))
    corner = torch.rand(10_000, 2) * torch.tensor([180.0, 116])
    many = Targets(
        torch.cat((corner, corner + 4), 1),
        torch.zeros(10_000, dtype=torch.int64),
        torch.zeros(10_000, dtype=torch.bool),
    )
    assert all(torch.isfinite(v) for v in model.losses(given._replace(targets=(many,))).values())
    fast = ours(proposals=True, limits=Limits(0.0, 1.0, None))
    with torch.no_grad():
        (found,) = fast.detect(given.image, given.sizes, (many.boxes,))
    assert len(found.boxes) > 10_000  # no ceiling


@pytest.mark.parametrize("size", [(1, 1), (1, 200), (40, 3000)])
def test_images_of_one_pixel_and_long_strips_are_trained_on_and_searched(size):
    model = ours(everything=False)
    given = batch((size,), objects=1)
    target = Targets(torch.tensor([[0.0, 0, size[1], size[0]]]), torch.tensor([0]), torch.tensor([False]))
    given = given._replace(targets=(target,))
    assert all(torch.isfinite(v) for v in model.losses(given).values())
    with torch.no_grad():
        (found,) = model.detect(given.image, given.sizes)
    assert (found.boxes >= 0).all()
    assert (found.boxes[:, 2] <= size[1]).all()
    assert (found.boxes[:, 3] <= size[0]).all()


def test_a_strip_of_30000_pixels_is_searched():
    with torch.no_grad():
        (found,) = ours().detect(torch.zeros(1, 3, 40, 30_000, dtype=torch.uint8), ((40, 30_000),))
    assert torch.isfinite(found.boxes).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"labels": torch.tensor([0, 3, 1])},
            "image 1 of the batch, object 1: label 3, but the model has 3 classes, 0 to 2; background has no label",
        ),
        ({"labels": torch.tensor([0, 1, -1])}, "image 1 of the batch, object 2: label -1, but the model has 3 classes"),
        (
            {"boxes": torch.tensor([[0.0, 0, 5, 5], [1, 1, float("nan"), 5], [0, 0, 5, 5]])},
            "image 1 of the batch, object 1: box [1.0, 1.0, nan, 5.0]; expected finite x0 < x1 and y0 < y1",
        ),
        (
            {"boxes": torch.tensor([[9.0, 0, 5, 5], [1, 1, 2, 5], [0, 0, 5, 5]])},
            "image 1 of the batch, object 0: box [9.0, 0.0, 5.0, 5.0]; expected finite x0 < x1",
        ),
        ({"boxes": torch.zeros(0)}, "image 1 of the batch: boxes (0,), labels (3,) and ignore (3,); expected (N, 4)"),
        ({"masks": None}, "image 1 of the batch: 3 boxes, but none masks; this model learns masks"),
    ],
)
@pytest.mark.parametrize("door", ["losses", "judge"])
def test_impossible_targets_are_refused_with_their_place(change, message, door):
    given = batch(masks=True)
    bad = given._replace(targets=(given.targets[0], given.targets[1]._replace(**change)))
    with pytest.raises(DataError) as caught:
        getattr(ours(masks=True), door)(bad)
    assert message in str(caught.value)


def test_fast_rcnn_takes_proposals_learns_from_annotated_boxes_among_them_and_may_get_none():
    model, given = ours(proposals=True, everything=False), batch()
    assert model.needs_proposals
    none = tuple(torch.zeros(0, 4) for _ in given.sizes)
    terms = model.losses(given._replace(proposals=none))
    assert terms.keys() == {"roi_class", "roi_box"}
    assert all(float(value.detach()) > 0 for value in terms.values())
    with torch.no_grad():
        found = model.detect(given.image, given.sizes, none)
        assert [len(each.boxes) for each in found] == [0, 0]
        beyond = (torch.tensor([[-50.0, -50, 30, 40], [500, 500, 600, 600]]), none[1])
        some = model.detect(given.image, given.sizes, beyond)
    assert len(some[1].boxes) == 0
    assert (some[0].boxes >= 0).all()
    nothing = given._replace(proposals=none, targets=tuple(without_objects(t) for t in given.targets))
    assert all(float(v.detach()) == 0 for v in model.losses(nothing).values())


def test_proposals_that_are_missing_or_no_numbers_are_refused():
    model, given = ours(proposals=True), batch()
    with pytest.raises(DataError, match=r"this model needs them for each of the 2 images .* was given none; name a"):
        model.losses(given)
    with pytest.raises(DataError, match="was given those of 1"):
        model.detect(given.image, given.sizes, (torch.zeros(0, 4),))
    bad = (torch.zeros(1, 4), torch.tensor([[0, 0, float("inf"), 3]]))
    with pytest.raises(DataError, match="not all numbers are finite in image 1 of the batch"):
        model.detect(given.image, given.sizes, bad)


def test_sizes_and_bands_that_do_not_belong_to_the_image_are_refused():
    model, given = ours(), batch()
    for image, sizes in (
        (given.image, ((128, 192),)),
        (given.image, ((129, 192), (1, 1))),
        (given.image, ((128, 192), (0, 3))),
        (given.image[:, :2], given.sizes),
    ):
        with pytest.raises(DataError, match="expected 3 bands and one"):
            model.detect(image, sizes)


def test_limits_hold_and_whoever_reaches_the_cap_is_told_once(caplog):
    model, given = ours(limits=Limits(0.3, 0.5, None)), batch()
    with torch.no_grad():
        everything = model.detect(given.image, given.sizes)
        model.limits = replace(model.limits, most=5)
        with caplog.at_level(logging.WARNING):
            few = [model.detect(given.image, given.sizes) for _ in range(2)][1]
    assert [len(each.boxes) for each in few] == [5, 5]
    assert all(torch.equal(a.boxes[:5], b.boxes) for a, b in zip(everything, few, strict=True))
    assert min(float(each.scores.min()) for each in everything) > 0.3
    assert all((each.scores.diff() <= 0).all() for each in everything)
    count = len(everything[0].boxes)
    assert [f"an image has {count} detections, of which the 5 best are kept" in r.message for r in caplog.records] == [
        True
    ]


def test_under_an_autocast_losses_and_detections_stay_float32_and_close():
    model, given = ours(masks=True), batch(masks=True)
    exact = model.losses(given)
    with torch.autocast("cpu", torch.bfloat16):
        rough = model.losses(given)
        terms, found = model.judge(given)
    for name, value in rough.items():
        assert value.dtype == terms[name].dtype == torch.float32
        assert float(value.detach()) == pytest.approx(float(exact[name].detach()), rel=0.1), name
    assert all(part.dtype == torch.float32 for each in found for part in (each.boxes, each.scores))


def test_the_chosen_precision_reaches_backbone_neck_and_heads_and_nothing_else():
    model, given = ours(masks=True), batch(masks=True)
    parts = {
        "backbone": model.backbone.body.stages[0][0],
        "neck": model.neck,
        "rpn": model.rpn.objectness,
        "box head": model.roi_heads.classes,
        "mask head": model.mask_head.masks,
        "pooler": model.roi_heads.pooler,
    }
    seen = {}

    def watch(name):
        def look(module, inputs, output):
            seen[name] = (output[0] if isinstance(output, tuple) else output).dtype

        return look

    for name, part in parts.items():
        part.register_forward_hook(watch(name))
    model.compute = torch.bfloat16
    with torch.no_grad():
        model.detect(given.image, given.sizes)
    assert seen.pop("pooler") == torch.float32
    assert set(seen.values()) == {torch.bfloat16}


def test_parts_of_other_strides_are_refused_when_the_detector_is_built():
    from visionapps.detection.pooling import RoIPooler

    model = ours()
    model.roi_heads.pooler = RoIPooler((8, 16))
    with pytest.raises(ConfigError, match=r"neck has strides \(4, 8, 16, 32, 64\), but there is a roi pooler of strid"):
        type(model)(model.backbone, model.neck, model.roi_heads, rpn=model.rpn)


def test_the_whole_state_is_saved_and_loaded_and_the_limits_are_no_part_of_it():
    model, other, given = ours(), ours(seed=5), batch()
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        a, b = (each.detect(given.image, given.sizes) for each in (model, other))
    assert all(torch.equal(x.boxes, y.boxes) for x, y in zip(a, b, strict=True))
    assert model.num_classes == CLASSES
    assert not [name for name in model.state_dict() if "mean" in name and "normalize" in name]


@pytest.mark.parametrize("kind", [{}, {"masks": True}, {"proposals": True}], ids=["faster", "mask", "fast"])
def test_every_kind_keeps_the_contract_of_detectors(kind):
    model = ours(**kind, everything=False).train()
    before = {name: value.clone() for name, value in model.state_dict().items() if "running" not in name}
    check_detector(model)
    assert model.training
    assert model.limits == Limits(0.3, 0.5, 100)
    assert all(torch.equal(before[name], model.state_dict()[name]) for name in before if "num_batches" not in name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: found._replace(boxes=found.boxes + 500), "boxes must lie in the image of"),
        (lambda found: found._replace(labels=found.labels + 3), r"labels must be in \[0, K\)"),
        (lambda found: found._replace(scores=-found.scores), "the best must come first"),
        (lambda found: found._replace(boxes=found.boxes.double()), "boxes, labels and scores are"),
        (lambda found: found._replace(masks=torch.zeros(1)), r"masks are \(\(1,\), torch.float32\), not None"),
    ],
)
def test_a_detector_that_breaks_the_contract_is_refused(change, message, monkeypatch):
    model = ours(everything=False)
    detect = model.detect
    monkeypatch.setattr(model, "detect", lambda *given: [change(each) for each in detect(*given)])
    with pytest.raises(AssertionError, match=message):
        check_detector(model)


def test_a_detector_with_a_part_that_never_learns_is_refused():
    model = ours(everything=False)
    model.spare = torch.nn.Linear(1, 1)
    with pytest.raises(AssertionError, match=r"parameters without gradient: spare\.weight, spare\.bias"):
        check_detector(model)
