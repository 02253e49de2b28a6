"""Whole detectors to begin from: torchvision's files give what torchvision gives; classes are found by their names."""

import copy
import logging
from dataclasses import replace

import pytest
import torch
import yaml
from torchvision.models import detection as theirs_models
from torchvision.models.detection._utils import overwrite_eps
from torchvision.ops.misc import FrozenBatchNorm2d

from visionapps.backbones.weights import read_tensors
from visionapps.detection.base import Limits
from visionapps.detection.checkpoints import _coco_names, load_checkpoint, spec_of
from visionapps.errors import ConfigError, WeightsError
from visionapps.models import faster_rcnn, mask_rcnn, torchvision_detector
from visionapps.models.published import KINDS
from visionapps.structures import InputSpec

COCO = _coco_names()
# How strongly layers answer; all others keep the size of activations.
GAINS = {"bbox": 0.2, "cls_score": 6.0, "rpn.head.cls_logits": 2.0, "cls_logits": 1.0}


@pytest.fixture(autouse=True)
def _no_time_for_random_numbers(monkeypatch):
    """Every weight of these networks is overwritten; drawing 40 million of them first takes seconds per network."""
    for name in ("kaiming_uniform_", "kaiming_normal_", "normal_", "uniform_", "trunc_normal_"):
        monkeypatch.setattr(torch.nn.init, name, lambda tensor, *_, **__: tensor)


def shaken(network, fpn):
    """Weights and statistics under which activations keep their size, and some scores are high."""
    noise = torch.randn(2**16, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            values = noise.repeat(-(-tensor.numel() // len(noise)))[: tensor.numel()].view(tensor.shape)
            if "running_var" in name:
                tensor.copy_(1 + values.abs() / 4)
            elif "running_mean" in name or name.endswith("bias"):
                tensor.copy_(values / 10)
            elif name.endswith("bn3.weight"):
                tensor.copy_(0.2 + values / 20)  # else the sums along a ResNet grow with every block
            elif tensor.ndim == 1 and tensor.is_floating_point():
                tensor.copy_(1 + values / 10)
            elif tensor.is_floating_point():
                gain = next((gain for part, gain in ({"fpn": fpn} | GAINS).items() if part in name), 1.4)
                tensor.copy_(values * gain / tensor[0].numel() ** 0.5)
    return network.eval()


def frozen(network):
    """As torchvision builds them around pretrained backbones."""
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, torch.nn.BatchNorm2d):
                own = FrozenBatchNorm2d(child.num_features)
                own.load_state_dict({k: v for k, v in child.state_dict().items() if k != "num_batches_tracked"})
                setattr(parent, name, own)
    return network


def raw(height, width, seed=0):
    return torch.randint(0, 256, (1, 3, height, width), generator=torch.Generator().manual_seed(seed)).float()


def detections_of_torchvision(network, image):
    network.transform.min_size, network.transform.max_size = (min(image.shape[-2:]),), max(image.shape[-2:])
    with torch.no_grad():
        return network([image[0] / 255])[0]


def build(kind, rows=91):
    options = {
        "weights": None,
        "weights_backbone": None,
        "num_classes": rows,
        "box_detections_per_img": 20 if "mask" in kind else 100,
    }
    if "retinanet" in kind:
        options.pop("box_detections_per_img")
        options["detections_per_img"] = 100
    network = getattr(theirs_models, kind)(**options)
    if not kind.endswith("v2"):
        frozen(network)
        if KINDS[kind].eps == 0:
            overwrite_eps(network, 0.0)
    return shaken(network, 0.4 if "mobilenet" in kind else 0.15)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_torchvision_finds_what_it_finds_there(kind, tmp_path):
    if "320" in kind:
        pytest.skip("the same network as without 320")
    network = build(kind)
    most = Limits(most=20 if "mask" in kind else 100)
    proposals = 150  # of both sides, after their own suppression; heads on a thousand take seconds
    image = raw(64, 128)  # a size at which torchvision's strides are true on the coarsest map, too
    if "rcnn" in kind:
        network.rpn._post_nms_top_n["testing"] = proposals
    expected = detections_of_torchvision(network, image)
    torch.save(network.state_dict(), tmp_path / "their.pth")
    ours = torchvision_detector(kind, 90, checkpoint=str(tmp_path / "their.pth"), limits=most).eval()
    ours.load_pretrained(COCO)
    if "rcnn" in kind:
        ours.rpn.limits = replace(ours.rpn.limits, after=(proposals, proposals))
    with torch.no_grad():
        (got,) = ours.detect(image, ((64, 128),))
    labels = expected["labels"] - 1
    assert len(expected["scores"]) > 10
    assert "retinanet" in kind or len(got.scores) == len(expected["scores"])
    # One by one: two whose scores are equal but for rounding may stand in another order.
    for box, label, score in zip(expected["boxes"][:60], labels, expected["scores"], strict=False):
        if label < 0:  # RetinaNet of torchvision has a class that means nothing
            continue
        near = (got.boxes - box).abs().amax(1) + (got.scores - score).abs() * 10 + (got.labels != label) * 1e3
        assert float(near.min()) < 1e-3, f"not found: {box}, {label}, {score}"
    if got.masks is not None:
        assert torch.equal(got.labels[:10], labels[:10])
        differing = got.masks[:10] != (expected["masks"][:10, 0] >= 0.5)
        assert got.masks[:10].any()
        assert float(differing.float().mean()) < 1e-3


def torchvision_file(tmp_path, kind="fasterrcnn_mobilenet_v3_large_fpn", rows=91):
    network = build(kind, rows)
    path = tmp_path / f"{kind}_{rows}.pth"
    torch.save(network.state_dict(), path)
    return path, network.state_dict()


def zeroed(network):
    """Nothing was drawn, and what is compared must be numbers."""
    with torch.no_grad():
        for tensor in network.state_dict().values():
            tensor.zero_()
    return network


def test_rows_of_classes_are_kept_by_name_whatever_their_number(tmp_path, caplog):
    path, state = torchvision_file(tmp_path)
    ours = zeroed(torchvision_detector("fasterrcnn_mobilenet_v3_large_fpn", 3, checkpoint=str(path)))
    before = {k: v.clone() for k, v in ours.roi_heads.state_dict().items()}
    with caplog.at_level(logging.INFO):
        ours.load_pretrained(("Traffic_Light", "solar panel", "car"))
    # COCO's ids in torchvision's rows: background 0, person 1, bicycle 2, car 3, ..., traffic light 10.
    score, box = state["roi_heads.box_predictor.cls_score.weight"], state["roi_heads.box_predictor.bbox_pred.weight"]
    after = ours.roi_heads.state_dict()
    assert torch.equal(after["classes.weight"][[0, 1, 3]], score[[0, 10, 3]])
    assert torch.equal(after["classes.weight"][2], before["classes.weight"][2])
    assert torch.equal(after["deltas.weight"][:4], box[40:44])
    assert torch.equal(after["deltas.weight"][4:8], before["deltas.weight"][4:8])
    assert torch.equal(after["deltas.weight"][8:12], box[12:16])
    assert "of 3 classes, 2 keep their rows (Traffic_Light, car) and 1 begin anew (solar panel)" in caplog.text


def test_rows_of_retinanet_are_kept_for_every_anchor(tmp_path):
    path, state = torchvision_file(tmp_path, "retinanet_resnet50_fpn")
    ours = zeroed(torchvision_detector("retinanet_resnet50_fpn", 2, checkpoint=str(path)))
    before = ours.head.classes.bias.clone()
    ours.load_pretrained(("boat shed", "person"))
    theirs = state["head.classification_head.cls_logits.bias"].view(9, 91)
    mine = ours.head.classes.bias.view(9, 2)
    assert torch.equal(mine[:, 1], theirs[:, 1])
    assert torch.equal(mine[:, 0], before.view(9, 2)[:, 0])


def test_classes_that_the_file_does_not_name_begin_anew_and_say_so(tmp_path, caplog):
    path, _ = torchvision_file(tmp_path, rows=4)
    ours = zeroed(torchvision_detector("fasterrcnn_mobilenet_v3_large_fpn", 3, checkpoint=str(path)))
    ours.load_pretrained(("a", "b", "c"))
    assert "does not say which classes it has; the rows of all classes begin anew" in caplog.text


def test_a_bundle_of_ours_is_a_checkpoint_and_its_labels_name_the_rows(tmp_path):
    from visionapps.inference.bundle import Bundle
    from visionapps.structures import InputSpec, LabelSpace

    spec = InputSpec(mean=(0.1, 0.2, 0.3))
    first = faster_rcnn("resnet18", 2, spec=spec)
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.copy_(torch.linspace(-1, 1, parameter.numel()).view(parameter.shape))
    Bundle(first, LabelSpace.named(("car", "boat")), 64).save(tmp_path / "bundle")
    assert spec_of(str(tmp_path / "bundle")) == spec
    second = faster_rcnn("resnet18", 3, checkpoint=str(tmp_path / "bundle"))
    assert second.spec == spec
    second.load_pretrained(("tree", "boat", "car"))
    mine, theirs = second.state_dict(), first.state_dict()
    assert torch.equal(mine["roi_heads.classes.weight"][[0, 2, 3]], theirs["roi_heads.classes.weight"][[0, 2, 1]])
    same = [k for k in theirs if "roi_heads.classes" not in k and "roi_heads.deltas" not in k]
    assert all(torch.equal(mine[k], theirs[k]) for k in same)
    assert second.recipe["arguments"]["checkpoint"] is None


def test_what_is_no_checkpoint_or_does_not_fit_is_refused_and_nothing_is_loaded(tmp_path):
    path, state = torchvision_file(tmp_path)
    other = zeroed(mask_rcnn("torchvision/mobilenet_v3_large", 3, checkpoint=str(path)))
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(WeightsError, match=r"only \d+ of \d+ tensors fit this model; .*another architecture"):
        other.load_pretrained(("a", "b", "c"))
    assert all(torch.equal(v, before[k]) for k, v in other.state_dict().items())
    with pytest.raises(WeightsError, match=r"only .* tensors fit resnet18.*build the detector that the file"):
        faster_rcnn("resnet18", 3, checkpoint=str(path)).load_pretrained(("a", "b", "c"))
    with pytest.raises(ConfigError, match="2 names for a model of 3 classes; set num_classes"):
        other.load_pretrained(("a", "b"))
    (tmp_path / "damaged.pth").write_bytes(path.read_bytes()[:5000])
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "foreign.pth")
    torch.save({"model.backbone.body.x": torch.zeros(1)}, tmp_path / "run.ckpt")
    (tmp_path / "empty").mkdir()
    for name, message in {
        "missing.pth": "no such weights file",
        "damaged.pth": "damaged|cannot be read",
        "foreign.pth": "holds no detector that is known here, but conv.weight",
        "run.ckpt": "is a checkpoint of a training run; export it",
    }.items():
        with pytest.raises(WeightsError, match=message):
            faster_rcnn("resnet18", 1, checkpoint=str(tmp_path / name)).load_pretrained(("a",))
    with pytest.raises(WeightsError, match=r"model.yaml: cannot be read .*a bundle that `visionapps export` wrote"):
        faster_rcnn("resnet18", 1, checkpoint=str(tmp_path / "empty"))
    with pytest.raises(ConfigError, match="brings the weights of the backbone, too; give one of them"):
        faster_rcnn("resnet18", 1, weights="hub", checkpoint=str(path))
    assert len(read_tensors(path)) == len(state)


def test_a_home_folder_is_found_by_its_short_name(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    spec = InputSpec(scale=65535.0)
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "model.yaml").write_text(yaml.safe_dump({"spec": spec.to_dict()}))
    assert spec_of("~/bundle") == spec


def test_a_detector_that_torchvision_does_not_publish_is_refused_with_those_it_does():
    model = faster_rcnn("mobilenetv2_050", num_classes=1)
    for name in ("fasterrcnn_resnet5_fpn", "resnet50"):
        with pytest.raises(WeightsError, match="torchvision has no such detector; it has fasterrcnn_mobilenet_v3"):
            load_checkpoint(model, f"torchvision:{name}", ["car"])
