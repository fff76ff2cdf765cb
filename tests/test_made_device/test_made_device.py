"""What a GPU would refuse is refused here without one: every tensor lies where it is used.

Not seen: kernels, mmcv's operators, and suppression, whose shapes depend on values.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from made_device import AUTOCAST, CASES, FAULTS, RUNS

from mmdet_diffusion.testing import REPOSITORY

backend = pytest.importorskip('torch.utils.backend_registration')
HAS_BACKEND = (hasattr(backend, '_setup_privateuseone_for_python_backend')
               and hasattr(torch._C, '_set_only_lift_cpu_tensors') and hasattr(torch.library.Library, 'fallback'))
pytestmark = pytest.mark.skipif(not HAS_BACKEND, reason='this torch has no backend in Python')

MISMATCH = 'FakeTensorDeviceMismatchError'
NO_FAULT = ('schedule not moved', 'sampling')  # where the table stays on the host and is read by number
EXPECTED = [f'{fault}, {kind}' for fault in FAULTS for kind in RUNS if (fault, kind) != NO_FAULT]
TRAINED = [name for name in CASES if not name.startswith('sampling')]
SAMPLED = [name for name in CASES if name.startswith('sampling')]


@pytest.fixture(scope='module')
def results(tmp_path_factory):
    """Outcomes of a process of its own, in which the device is registered."""
    file = tmp_path_factory.mktemp('made_device') / 'results.json'
    run = subprocess.run([sys.executable, str(Path(__file__).with_name('made_device.py')), str(file)], text=True,
                         capture_output=True, check=False, cwd=REPOSITORY,
                         env=dict(os.environ, PYTHONPATH=os.pathsep.join([str(REPOSITORY), *sys.path[1:]])))
    assert run.returncode == 0, run.stderr[-4000:]
    return json.loads(file.read_text())


@pytest.mark.parametrize('name', TRAINED)
def test_loss_and_gradients_of_the_whole_detector_stay_on_the_device(results, name):
    found = results['cases'][name]
    assert found['error'] is None, found['message']
    assert found['lacking'] == []  # parameters without a gradient there
    assert found['loss_devices'] == ['fakegpu']
    assert found['loss_dtypes'] == found['gradient_dtypes'] == ['torch.float32']
    assert len([loss for loss in found['losses'] if not loss.startswith('aux.')]) == 6


@pytest.mark.parametrize('name', SAMPLED)
def test_sampling_stays_on_the_device(results, name):
    found = results['cases'][name]
    assert found['error'] is None, found['message']
    number = 10 * (1 if '1 steps' in name else 3)
    wanted = [[[number, 4], 'torch.float32', 'fakegpu'], [[number], 'torch.float32', 'fakegpu'],
              [[number], 'torch.int64', 'fakegpu']]
    assert found['detections'] == [wanted, wanted]


def test_the_losses_of_the_auxiliary_head_are_among_them(results):
    assert {'aux.loss_cls', 'aux.loss_bbox', 'aux.loss_centerness'} <= set(results['cases']['auxiliary head']['losses'])


@pytest.mark.parametrize('fault', [*EXPECTED, 'seeded noise on the host, sampling'])
def test_a_planted_fault_is_found(results, fault):
    assert results['faults'][fault]['error'] == MISMATCH, results['faults'][fault]


@pytest.mark.parametrize('name', AUTOCAST)
def test_types_under_the_autocast_of_cuda(results, name):
    """Products in half precision; boxes, norms, matching, losses and gradients in float32."""
    found, half = results['autocast'][name], name.split()[-1]
    assert found['error'] is None, found['message']
    types = found['operators']
    assert types['convolution'] == types['addmm'] == [half] and half in types['bmm']
    assert types['native_layer_norm'] == ['float32']
    if name.startswith('sampling'):
        assert {value[1] for image in found['detections'] for value in image} == {'torch.float32', 'torch.int64'}
        assert set(types['_embedding_bag_forward_only']) == {half, 'int32'}  # as the product that takes it
    else:
        assert found['lacking'] == []
        assert found['loss_dtypes'] == found['gradient_dtypes'] == ['torch.float32']
        assert types['_cdist_forward'] == ['float32']
        assert set(types['_embedding_bag']) | set(types['_embedding_bag_forward_only']) == {'float32', 'int32', 'int64'}


def test_boxes_in_half_precision_would_be_found(results):
    found = results['faults']['boxes in half precision']
    assert found['error'] is None and found['detections'][0][0][1] == 'torch.bfloat16'


@pytest.mark.parametrize('name', ['training', 'sampling', 'seeded sampling'])
def test_a_device_without_float64_is_asked_for_none(results, name):
    found = results['without float64'][name]
    assert found['error'] is None, found['message']
    assert 'float32' in found['dtypes'] and 'float64' not in found['dtypes']


def test_a_device_with_float64_places_roi_features_in_it(results):
    assert 'float64' in results['cases']['padding gaussian']['dtypes']
