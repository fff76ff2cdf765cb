import copy

import pytest
import torch
from mmdet.registry import OPTIMIZERS
from torch import nn

import mmdet_diffusion  # noqa: F401  registers it
from mmdet_diffusion.optim import FusedAdamW


def trained(cfg, steps=3):
    torch.manual_seed(0)
    model = nn.Linear(5, 3)
    settings = dict(params=iter(model.parameters()), lr=0.1, weight_decay=0.05)
    # by its scope: the default one is whatever runner or test came last
    optimizer = OPTIMIZERS.build(dict(cfg, _scope_='mmdet', **settings))
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.linspace(-1, 1, 10).view(2, 5)).square().sum().backward()
        optimizer.step()
    return model, optimizer


@pytest.fixture
def no_fused_kernel(monkeypatch):
    """torch as before 2.4 on a CPU."""
    init = torch.optim.AdamW.__init__

    def refusing(self, params, **settings):
        init(self, params, **settings)
        if settings.get('fused'):
            raise RuntimeError('`fused=True` requires all the params to be floating point Tensors of supported devices')

    monkeypatch.setattr(torch.optim.AdamW, '__init__', refusing)


def assert_as_adamw():
    model, optimizer = trained(dict(type='FusedAdamW'))
    expected, _ = trained(dict(type='AdamW'))
    assert len(optimizer.param_groups[0]['params']) == 2
    for ours, theirs in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)
    return optimizer.param_groups[0]


def test_it_steps_as_adamw_does():
    group = assert_as_adamw()
    assert bool(group['fused']) != bool(group['foreach'])


def test_where_torch_has_no_fused_kernel_it_takes_foreach(no_fused_kernel):
    group = assert_as_adamw()
    assert group['foreach'] and not group['fused']


def test_groups_of_parameters_take_foreach_too(no_fused_kernel):
    parameters = [nn.Parameter(torch.zeros(2)) for _ in range(2)]
    groups = [dict(params=[parameters[0]], lr=0.1), dict(params=[parameters[1]])]
    optimizer = FusedAdamW(groups, lr=0.2)
    assert [(group['lr'], bool(group['fused']), group['foreach']) for group in optimizer.param_groups] == [
        (0.1, False, True), (0.2, False, True)]
    assert groups[1] == dict(params=[parameters[1]])


def test_a_checkpoint_of_one_form_is_resumed_by_the_other(request):
    model, optimizer = trained(dict(type='FusedAdamW'))
    states = copy.deepcopy(optimizer.state_dict())
    request.getfixturevalue('no_fused_kernel')
    other, resumed = trained(dict(type='FusedAdamW'), steps=0)
    other.load_state_dict(model.state_dict())
    resumed.load_state_dict(states)
    assert resumed.param_groups[0]['foreach'] and not resumed.param_groups[0]['fused']
    for each, of in ((model, optimizer), (other, resumed)):
        of.zero_grad()
        each(torch.ones(2, 5)).square().sum().backward()
        of.step()
    torch.testing.assert_close(other.weight, model.weight)


def test_a_wrong_setting_is_still_refused():
    with pytest.raises(ValueError, match='Invalid learning rate'):
        FusedAdamW(nn.Linear(2, 2).parameters(), lr=-1.0)
    with pytest.raises(TypeError, match='momentum'):
        FusedAdamW(nn.Linear(2, 2).parameters(), momentum=0.9)
