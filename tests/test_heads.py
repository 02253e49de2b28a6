"""Every head on networks of every kind of the zoo: what docs/zoo.md calls "works" is run, forward and backward.

A head sees strides and channels only, so networks of equal levels share its run: each head is run once on maps of every
kind of pyramid, and the gradients that it sends into the maps then go back through the network they came from.
"""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from visionapps.backbones import pyramid
from visionapps.backbones.base import Backbone
from visionapps.boxes import Batch, Targets
from visionapps.detection.base import Detector
from visionapps.detection.retinanet import RetinaNet
from visionapps.errors import ConfigError
from visionapps.models import DETECTORS, SEGMENTORS, faster_rcnn, fcn8s, sppnet, unet
from visionapps.models.heads import HEADS, Head, Replay, built, levels_for, refusal
from visionapps.networks.catalogue import entries, facts
from visionapps.segmentation.base import Segmentor
from visionapps.structures import InputSpec, Level
from visionapps.testing import TinyBackbone

K = 3
WIDTH = 16
STRIDES = (1, 2, 4, 8, 16, 32)
MOST = 10e9  # multiply-adds, at the published size, of a network that is run here
CHEAP = 1e9  # of a network written here whose very widths are run
QUICK = ("visionapps/resnet20",)
_RUN: set[tuple[str, tuple[Level, ...]]] = set()


def representatives() -> list[str]:
    """The cheapest of every provider for every set of strides and heads, and of cheap networks written here for every
    kind of levels."""
    chosen: list[str] = []
    met: set[tuple[str, ...]] = set()
    for name, each in sorted(facts().items(), key=lambda item: item[1]["multiply_adds"]):
        entry = entries()[name]
        if not each["levels"] or each["multiply_adds"] >= MOST or entry.instead:
            continue
        kinds = {(entry.provider, str([stride for stride, _ in each["levels"]]), *each["heads"])}
        if entry.provider == "visionapps" and each["multiply_adds"] < CHEAP:
            kinds.add((entry.provider, str(each["levels"]), *each["heads"]))
        if kinds - met:
            chosen.append(name)
        met |= kinds
    return chosen


@pytest.mark.parametrize("name", QUICK)
def test_every_head_that_the_table_allows_trains_on_a_small_network(name):
    run_all_heads(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in representatives() if name not in QUICK])
def test_every_head_that_the_table_allows_trains_on_every_kind_of_pyramid(name):
    run_all_heads(name)


def run_all_heads(name: str) -> None:
    allowed = facts()[name]["heads"]
    plain = [HEADS[key] for key in allowed if HEADS[key].output_stride == 32]
    run_heads(name, {head.title: levels_for(head, name) for head in plain}, plain)
    for key in allowed:
        if HEADS[key].output_stride != 32:
            run_heads(name, {HEADS[key].title: levels_for(HEADS[key], name)}, [HEADS[key]])


def run_heads(name: str, wanted: dict[str, tuple[Level, ...]], heads: list[Head]) -> None:
    """Maps of one forward to all heads, and their gradients back in one backward."""
    if not heads:
        return
    torch.manual_seed(0)
    strides = sorted({level.stride for levels in wanted.values() for level in levels})
    body = pyramid(name, strides=strides, output_stride=heads[0].output_stride).train()
    side = 2 * body.levels[-1].stride
    side *= max(1, 32 // side)
    maps = body(torch.randn(2, len(body.spec.bands), side, side))
    sent = [torch.zeros_like(each) for each in maps]
    for head in heads:
        levels = wanted[head.title]
        places = [body.levels.index(level) for level in levels]
        if (head.title, levels) in _RUN:  # the same arithmetic was run: only the network is another
            for place in places:
                sent[place] += torch.randn_like(sent[place])
            continue
        leaves = tuple(maps[place].detach().requires_grad_() for place in places)
        simple = getattr(body, "simple", None)
        train(head, Replay(levels, body.spec, maps=leaves, simple=simple, raw=body.raw), side)
        for place, leaf in zip(places, leaves, strict=True):
            if leaf.grad is not None:
                assert all_finite(leaf.grad), f"{head.title} on {name}"
                sent[place] += leaf.grad
        _RUN.add((head.title, levels))
    torch.autograd.backward(maps, sent)
    for key, parameter in body.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, f"{name}: {key} has no gradient"
            assert all_finite(parameter.grad), f"{name}: gradient of {key}"


def all_finite(values: Tensor) -> bool:
    """Whether the sum is finite: one infinity or nan in it would not leave it so, and nothing is written to memory."""
    return bool(torch.isfinite(values.sum()))


def train(head: Head, body: Backbone, side: int) -> None:
    model = head.put(body, K, WIDTH).train()
    loss = segment_loss(model, side) if isinstance(model, Segmentor) else detect_loss(model, side)
    assert torch.isfinite(loss), head.title
    loss.backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, f"{head.title}: {key} has no gradient"
        assert all_finite(parameter.grad), f"{head.title}: gradient of {key}"


def segment_loss(model: Segmentor, side: int) -> Tensor:
    logits = model(torch.zeros(2, len(model.spec.bands), side, side))
    assert logits.shape == (2, K, side, side)
    labels = torch.arange(2 * side * side).reshape(2, side, side) % K
    return F.cross_entropy(logits, labels)


def detect_loss(model: Detector, side: int) -> Tensor:
    boxes = torch.tensor([[2.0, 2, side - 4, side - 4], [4, 2, side / 2, side - 8]])
    masks = torch.ones(2, side, side, dtype=torch.uint8) if model.gives_masks else None
    target = Targets(boxes, torch.tensor([0, 1]), torch.zeros(2, dtype=torch.bool), masks)
    given = (boxes + 1, boxes - 1) if model.needs_proposals else None
    image = torch.zeros(2, len(model.spec.bands), side, side)
    batch = Batch(image, ((side, side),) * 2, (target, target), given, (0, 1), ((0, 0),) * 2, (1.0, 1.0))
    return torch.stack(list(model.losses(batch).values())).sum()


@pytest.mark.parametrize("name", ["resnetv2_50", "convnext_atto", "torchvision/swin_t"])
def test_maps_of_any_scale_mean_the_same_to_a_detector_where_no_layer_has_normalised_them(name):
    with torch.device("meta"):
        body = pyramid(name, strides=(8, 16, 32))
    assert body.raw
    torch.manual_seed(0)
    maps = tuple(torch.randn(1, level.channels, 64 // level.stride, 64 // level.stride) for level in body.levels)
    model = HEADS["retinanet"].put(Replay(body.levels, body.spec, raw=body.raw), K, WIDTH)
    assert isinstance(model, RetinaNet)
    with torch.no_grad():
        for one, other in zip(model.neck(maps), model.neck(tuple(35 * each for each in maps)), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


# ---- what cannot be


@pytest.mark.parametrize(
    ("head", "name", "reason"),
    [
        ("fcn8s", "visionapps/resnet20", "has maps of the strides 1, 2, 4, but none of the wanted 8, 16, 32"),
        ("faster_rcnn c4", "visionapps/lenet5", "has maps of the strides 1, 2, 4, but none of the wanted 16"),
        ("smp DeepLabV3", "visionapps/vgg_c", "it cannot be dilated to output_stride 8; leave that at 32"),
        ("smp FPN", "visionapps/resnet20", "needs maps of stride 4, 8, 16, 32, but the backbone has 4; choose another"),
        ("unet", "torchvision/vit_b_16", "is made for images of one size, so it is no pyramid"),
        ("unet", "visionapps/overfeat_accurate", "cannot be reached by halving the backbone's coarsest stride 36"),
        ("fcn32s", "visionapps/overfeat_accurate", "needs a map of stride 32, but the backbone has strides 36"),
    ],
)
def test_an_impossible_head_says_why(head, name, reason):
    assert reason in str(refusal(HEADS[head], name))
    with torch.device("meta"), pytest.raises(ConfigError, match=reason.split(";")[0].replace("[", ".")):
        built(HEADS[head], name, K)


def test_an_impossible_head_says_so_before_anything_is_built(monkeypatch):
    def never(*arguments, **options):
        raise AssertionError("the backbone was built")

    monkeypatch.setattr("visionapps.models.segmentation.pyramid", never)
    with pytest.raises(ConfigError, match="needs a map of stride 32, but the backbone has strides 6, 12, 36"):
        fcn8s("visionapps/overfeat_accurate", K)
    with pytest.raises(ConfigError, match="cannot be reached by halving"):
        unet("visionapps/overfeat_accurate", K)


def test_a_head_of_the_table_is_what_its_wiring_function_builds():
    with torch.device("meta"):
        wired = {
            "fcn8s": fcn8s("resnet10t", K),
            "unet": unet("resnet10t", K),
            "faster_rcnn": faster_rcnn("resnet10t", K),
            "sppnet": sppnet("resnet10t", K),
        }
        mine = {key: built(HEADS[key], "resnet10t", K) for key in wired}
    for key in wired:
        shapes = [{name: value.shape for name, value in each[key].state_dict().items()} for each in (wired, mine)]
        assert shapes[0] == shapes[1], key


def test_every_wiring_function_of_a_dense_head_is_in_the_table():
    # Those left out are made of one network and cannot stand on another.
    own = {"torchvision_detector", "faster_rcnn_2015", "fast_rcnn_2015", "sppnet_2014", "enet"}
    own |= {"fcn32s_2015", "fcn16s_2015", "fcn8s_2015", "deconvnet_2015", "unet_2015"}
    tabled = {key.split()[0] for key in HEADS}
    assert (set(SEGMENTORS) | set(DETECTORS)) - own == tabled


def test_a_replayed_backbone_gives_heads_what_the_other_gave():
    body = TinyBackbone().eval()
    head = HEADS["unet"]
    image = torch.rand(1, 3, 64, 64) * 255
    model = head.put(body, K, WIDTH)
    assert isinstance(model, Segmentor)
    model.eval()
    with torch.no_grad():
        expected = model(image)
        model.backbone = Replay(body.levels, InputSpec(), maps=body(model.normalize(image)))
        torch.testing.assert_close(model(image), expected)
