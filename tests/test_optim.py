import math

import pytest
import torch
from torch import nn

from visionapps.errors import ConfigError
from visionapps.segmentation.base import Decoder, Segmentor
from visionapps.testing import TinyBackbone
from visionapps.training.optim import Cosine, Curve, LayerRates, Poly, parameter_groups, scale_rates


class LastMap(Decoder):
    stride = 32

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Conv2d(12, 3, 1)

    def forward(self, features: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return self.score(features[-1])


def tiny_model() -> Segmentor:
    return Segmentor(TinyBackbone(), LastMap(), 3)


def rates_of(model: Segmentor, rates: LayerRates, lr: float = 0.1) -> dict[str, tuple[float, float]]:
    optimizer = scale_rates(torch.optim.SGD(parameter_groups(model, rates), lr=lr, weight_decay=0.01))
    found = {id(p): (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]}
    return {name: found[id(p)] for name, p in model.named_parameters()}


def test_every_parameter_is_in_exactly_one_group():
    model = tiny_model()
    grouped = [p for group in parameter_groups(model, LayerRates(0.1, 0.5)) for p in group["params"]]
    assert sorted(map(id, grouped)) == sorted(map(id, model.parameters()))


def test_the_rate_falls_by_one_factor_per_block_of_the_backbone_and_not_in_the_decoder():
    rates = rates_of(tiny_model(), LayerRates(backbone=0.5, depth_decay=0.1))
    assert rates["decoder.score.weight"][0] == pytest.approx(0.1)
    assert rates["backbone.stages.4.0.weight"][0] == pytest.approx(0.1 * 0.5)
    assert rates["backbone.stages.3.0.weight"][0] == pytest.approx(0.1 * 0.5 * 0.1)
    assert rates["backbone.stages.0.0.weight"][0] == pytest.approx(0.1 * 0.5 * 0.1**4)


def test_norms_and_biases_do_not_decay_unless_asked():
    rates = rates_of(tiny_model(), LayerRates())
    assert rates["backbone.stages.0.0.weight"][1] == 0.01
    assert rates["backbone.stages.0.0.bias"][1] == 0
    assert rates["backbone.stages.0.1.weight"][1] == 0
    assert rates_of(tiny_model(), LayerRates(decay_norms=True))["backbone.stages.0.0.bias"][1] == 0.01


def test_cosine_with_warm_up_has_the_textbook_values():
    curve = Cosine(warmup=0.2, final=0.1)
    assert curve.factor(0.1) == pytest.approx(0.5)
    assert curve.factor(0.2) == pytest.approx(1.0)
    assert curve.factor(0.6) == pytest.approx(0.1 + 0.9 / 2)
    assert curve.factor(1.0) == pytest.approx(0.1)


def test_poly_equals_torch_polynomial_at_every_step():
    parameter = nn.Parameter(torch.zeros(1))
    reference = torch.optim.SGD([parameter], lr=1.0)
    scheduler = torch.optim.lr_scheduler.PolynomialLR(reference, total_iters=10, power=0.9)
    for step in range(10):
        assert Poly(power=0.9).factor(step / 10) == pytest.approx(reference.param_groups[0]["lr"])
        reference.step()
        scheduler.step()


def test_the_first_step_of_a_warm_up_is_not_lost_to_rate_zero():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = Curve(warmup=0.5).scheduler(optimizer, total_steps=4)
    seen = []
    for _ in range(4):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert seen == pytest.approx([0.25, 0.75, 1.0, 1.0])
    assert not any(math.isnan(rate) for rate in seen)


def test_wrong_rates_are_refused_with_the_range():
    with pytest.raises(ConfigError, match=r"depth_decay 1\.5 in \(0, 1\]"):
        LayerRates(depth_decay=1.5)
    with pytest.raises(ConfigError, match=r"share of the run in \[0, 1\), not 5"):
        Cosine(warmup=5)


def test_the_rate_grows_with_the_images_of_a_step_where_it_is_meant_for_another_number():
    # Goyal et al. 2017: a rate of 0.1 for 16 images is 0.025 for 4; layers keep their proportions.
    rates = LayerRates(backbone=0.5, batch_lr=16)
    optimizer = scale_rates(torch.optim.SGD(parameter_groups(tiny_model(), rates, images=4), lr=0.1))
    assert sorted({group["lr"] for group in optimizer.param_groups}) == pytest.approx([0.0125, 0.025])
    with pytest.raises(ConfigError, match="batch_lr 0 must be at least 1, the images per step"):
        LayerRates(batch_lr=0)


def test_parameters_that_are_fixed_are_in_no_group():
    model = tiny_model()
    model.backbone.stages[0].requires_grad_(False)
    grouped = {id(p) for group in parameter_groups(model, LayerRates()) for p in group["params"]}
    assert grouped == {id(p) for p in model.parameters() if p.requires_grad}
    assert len(grouped) < len(list(model.parameters()))
