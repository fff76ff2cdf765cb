"""AP and error types against hotcoco, which counts them by code of its own."""

import json

import hotcoco
import pytest
from made_detections import made_detections, made_objects

from mmdet_diffusion.evaluation.average_precision import match_detections
from mmdet_diffusion.evaluation.error_types import error_types

KINDS = dict(classification='Cls', localisation='Loc', both='Both', duplicate='Dupe', background='Bkg', missed='Miss')
SIZES = dict(AP_small='APs', AP_medium='APm', AP_large='APl')


def evaluated(truth, detections, tmp_path):
    """hotcoco's evaluation of detections in COCO's form."""
    files = [tmp_path / name for name in ('truth.json', 'detections.json')]
    for file, content in zip(files, (truth.dataset, detections), strict=True):
        file.write_text(json.dumps(content, default=float))
    objects = hotcoco.COCO(str(files[0]))
    evaluation = hotcoco.COCOeval(objects, objects.load_res(str(files[1])), 'bbox')
    evaluation.run()
    return evaluation


@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('spread', [0.05, 0.2])
def test_ap_is_the_same(tmp_path, seed, spread):
    truth = made_objects(seed=seed, num_images=60)
    detections = made_detections(truth, seed, spread=spread)
    theirs = evaluated(truth, detections, tmp_path).get_results()
    ours = match_detections(truth, detections).summary()
    assert 0.02 < ours['AP'] < 0.9
    assert ours == pytest.approx({name: theirs[SIZES.get(name, name)] for name in ours}, abs=1e-9)


@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('spread', [0.05, 0.2])
def test_errors_have_the_same_kinds_and_cost_the_same(tmp_path, seed, spread):
    """Without crowds, which hotcoco takes for objects here."""
    truth = made_objects(seed=seed, num_images=60, crowd_share=0)
    detections = made_detections(truth, seed, spread=spread)
    theirs, ours = evaluated(truth, detections, tmp_path).tide_errors(), error_types(truth, detections)
    assert ours.counts == {kind: theirs['counts'][name] for kind, name in KINDS.items()}
    assert ours.ap50 == pytest.approx(theirs['ap_base'], abs=1e-9)
    alike = [kind for kind in KINDS if kind != 'classification']  # hotcoco keeps fewer of the mended labels
    assert [ours.lost[kind] for kind in alike] == pytest.approx(
        [theirs['delta_ap'][KINDS[kind]] for kind in alike], abs=1e-9)
