"""Freezing by stride and averages of weights, held against what can be seen in the network itself."""

import pytest
import torch
from torch import nn

from visionapps.errors import ConfigError
from visionapps.testing import TinyBackbone
from visionapps.training.callbacks import Averaging, FreezeBackbone, parameters_below


class Task(nn.Module):
    """As much of a task as a callback sees."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.backbone = TinyBackbone()


class At:
    """As much of a trainer as a callback sees."""

    def __init__(self, epoch: int) -> None:
        self.current_epoch = epoch
        self.sanity_checking = False


def fixed(task: Task) -> list[bool]:
    return [not any(p.requires_grad for p in stage.parameters()) for stage in task.model.backbone.stages]


def resting(task: Task) -> list[bool]:
    return [not stage[1].training for stage in task.model.backbone.stages]  # the batch normalisation


def test_what_a_map_is_computed_from_is_found_by_stride():
    backbone = TinyBackbone()  # stage i gives the map of stride 2 ** (i + 1)
    expected = {id(p) for stage in backbone.stages[:3] for p in stage.parameters()}
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    assert {id(p) for p in parameters_below(backbone, 8)} == expected
    assert backbone.training
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())  # statistics, too
    with pytest.raises(ConfigError, match="stride 7 is none of the backbone's, which are 2, 4, 8, 16, 32"):
        parameters_below(backbone, 7)


def test_the_first_part_of_a_backbone_stands_still_and_then_moves():
    task, callback = Task().train(), FreezeBackbone(epochs=2, stride=4)
    callback.on_fit_start(At(0), task)
    for epoch in (0, 1):
        callback.on_train_epoch_start(At(epoch), task)
        assert fixed(task) == resting(task) == [True, True, False, False, False]
    task.train()  # as Lightning does after a validation in the middle of an epoch
    callback.on_validation_end(At(1), task)
    assert resting(task) == [True, True, False, False, False]
    callback.on_train_epoch_start(At(2), task)
    assert fixed(task) == resting(task) == [False] * 5


def test_what_a_model_keeps_fixed_itself_is_never_unfrozen():
    task, callback = Task().train(), FreezeBackbone(epochs=1)
    task.model.backbone.stages[0].requires_grad_(False)
    callback.on_fit_start(At(0), task)
    callback.on_train_epoch_start(At(0), task)
    assert fixed(task) == [True] * 5
    callback.on_train_epoch_start(At(1), task)
    assert fixed(task) == [True, False, False, False, False]


def test_the_memory_of_an_average_grows_to_its_decay():
    # By hand: for n = 1, 2, 3 the average weighs min(0.3, (1 + n) / (10 + n)) = 2/11, 3/12, 0.3 (4/13 is more).
    average, counter = torch.zeros(1), torch.zeros(1, dtype=torch.int64)
    callback = Averaging(decay=0.3)
    expected = 0.0
    for n, weight in ((1, 2 / 11), (2, 3 / 12), (3, 0.3)):
        callback._mix([average], [torch.tensor([float(n)])], torch.tensor(n))
        callback._mix([counter], [torch.tensor([n])], torch.tensor(n))
        expected = weight * expected + (1 - weight) * n
        assert float(average) == pytest.approx(expected, rel=1e-6)
        assert int(counter) == n
    with pytest.raises(ConfigError, match=r"Averaging: decay 1 must be in \[0, 1\)"):
        Averaging(decay=1)


def test_layers_that_no_weights_were_loaded_into_go_on_learning():
    task, callback = Task().train(), FreezeBackbone(epochs=-1)
    task.model.backbone.fresh = (task.model.backbone.stages[4],)
    callback.on_fit_start(At(0), task)
    callback.on_train_epoch_start(At(0), task)
    assert fixed(task) == [True, True, True, True, False]
