"""Verdicts of compare and dial: who is better than whom, at what, and which scores are whose."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from made_detections import made_detections, made_objects
from PIL import Image
from pycocotools.coco import COCO

from mmdet_diffusion.evaluation import contest_report, cost_card, dial_report
from mmdet_diffusion.evaluation.average_precision import match_detections
from mmdet_diffusion.evaluation.bootstrap import Contestant
from mmdet_diffusion.evaluation.contest import Contest, Entry, Outcome
from mmdet_diffusion.evaluation.contest_report import ContestReport
from mmdet_diffusion.evaluation.detection_records import ImageDetections
from mmdet_diffusion.evaluation.dial_report import DialReport
from mmdet_diffusion.evaluation.dial_settings import DialSetting
from mmdet_diffusion.evaluation.error_types import error_types


@pytest.fixture(scope='module')
def truth():
    return made_objects(num_images=40)


def matches(truth, spread, seed=0):
    return match_detections(truth, made_detections(truth, seed, spread=spread))


def outcome(truth, name, spread, detector=None):
    contestant = Contestant(name, [[matches(truth, spread)]])
    return Outcome(name, detector or name, None, contestant, [[[]]], dict(AP=[[contestant.trainings[0][0].ap()]]),
                   error_types(truth, []), {}, [])


@pytest.mark.parametrize('order', [('good', 'bad'), ('bad', 'good')])
def test_the_better_detector_is_named_whatever_the_order(truth, order):
    spreads = dict(good=0.03, bad=0.15)
    report = ContestReport([outcome(truth, name, spreads[name]) for name in order], {}, truth, machine='',
                           num_draws=200)
    verdict, = report.verdicts()
    assert verdict.startswith('good is better than bad by ')
    assert (report.differences[order].value > 0) == (order[0] == 'good')


def test_settings_of_one_detector_share_their_trainings_and_those_of_two_do_not(truth, monkeypatch):
    said = {}
    difference = contest_report.difference

    def spied(first, second, *, same_trainings, **rest):
        said[first.name, second.name] = same_trainings
        return difference(first, second, same_trainings=same_trainings, **rest)

    monkeypatch.setattr(contest_report, 'difference', spied)
    outcomes = [outcome(truth, 'ours 1x8', 0.1, 'ours'), outcome(truth, 'ours 2x8', 0.1, 'ours'),
                outcome(truth, 'theirs', 0.1)]
    ContestReport(outcomes, {}, truth, machine='', num_draws=100)
    assert said == {('ours 1x8', 'ours 2x8'): True, ('ours 1x8', 'theirs'): False, ('ours 2x8', 'theirs'): False}


def records(truth, spread, seed=0):
    """Detections of each image, as a cell keeps them."""
    images = [[] for _ in truth.imgs]
    for one in made_detections(truth, seed, spread=spread):
        images[one['image_id'] - 1].append(one)
    return [ImageDetections(
        np.array([[x, y, x + w, y + h] for x, y, w, h in (one['bbox'] for one in image)], np.float32).reshape(-1, 4),
        np.array([one['score'] for one in image], np.float32),
        np.array([one['category_id'] - 1 for one in image], int), (0.0, 0.1)) for image in images]


def test_each_setting_of_the_dial_has_the_scores_of_its_own_seeds(truth):
    spreads = {DialSetting(1, 20): (0.15, 0.25), DialSetting(4, 20): (0.02, 0.06)}
    found = DialReport.of_records(
        {setting: [records(truth, spread) for spread in of_seeds] for setting, of_seeds in spreads.items()},
        seeds=(0, 1), truth=truth, model=None, loader=SimpleNamespace(dataset=[0] * 40, batch_size=1),
        evaluator=dict(type='CocoMetric', metric='bbox'), num_draws=100)
    for row in found.rows:
        expected = [matches(truth, spread).ap() for spread in spreads[row.setting]]
        assert row.metrics['AP'] == pytest.approx(expected, abs=1e-3) and expected[0] > expected[1] + 0.05
        assert row.interval.value == pytest.approx(np.mean(expected), abs=1e-3)


def test_a_control_stands_against_the_setting_that_it_takes_something_away_from(truth):
    settings = {DialSetting(4, 20): 0.03, DialSetting(1, 20): 0.15, DialSetting(4, 20, (('eta', 0.0), )): 0.2,
                DialSetting(1, 80, control='as many boxes in one step'): 0.15,
                DialSetting(4, 20, (('ensemble', 'last'), ), 'no ensemble'): 0.2}
    lines = dial_report._comparisons({setting: Contestant(setting.label, [[matches(truth, spread)]])
                                      for setting, spread in settings.items()}, 200)
    assert [line.split(' by ')[0] for line in lines] == ['4x20 is better than 1x80, as many boxes in one step',
                                                         '4x20 is better than 4x20, no ensemble']


def test_the_worst_images_come_first_by_the_rules_of_their_set(tmp_path, monkeypatch):
    truth = COCO()
    truth.dataset = dict(
        images=[dict(id=number, width=64, height=64, file_name=str(tmp_path / f'{number}.png'), neg_category_ids=[],
                     not_exhaustive_category_ids=[2] if number == 3 else []) for number in (1, 2, 3)],
        categories=[dict(id=1, name='a'), dict(id=2, name='b')],
        annotations=[dict(id=number, image_id=number, category_id=1, bbox=[5, 5, 20, 20], area=400, iscrowd=0)
                     for number in (1, 2, 3)])
    truth.createIndex()
    for number in truth.imgs:
        Image.new('RGB', (64, 64)).save(tmp_path / f'{number}.png')
    has_it, others = [5.0, 5.0, 25.0, 25.0], [[40.0, 40.0, 60.0, 60.0]] * 5

    def found(boxes, labels):
        return ImageDetections(np.array(boxes, np.float32).reshape(-1, 4), np.full(len(boxes), 0.9, np.float32),
                               np.array(labels, int), (0.0, 0.1))

    # Right but for a class that was not looked for; missed; right but for one whose objects are not all marked.
    images = [found([has_it, *others], [0, *[1] * 5]), found([], []), found([has_it, *others], [0, *[1] * 5])]
    assert [contest_report._num_errors(image, truth, place) for place, image in enumerate(images, start=1)] == [0, 1, 0]
    monkeypatch.setattr(contest_report, 'SHEET', 1)
    shown, read = [], contest_report.read_picture
    monkeypatch.setattr(contest_report, 'read_picture', lambda path: shown.append(Path(path).name) or read(path))
    assert contest_report.draw_worst(images, truth, tmp_path / 'worst.png') and shown == ['2.png']
    (tmp_path / '2.png').write_text('no picture')
    assert contest_report.draw_worst(images, truth, tmp_path / 'worst.png') and shown == ['2.png', '2.png', '1.png']


def test_what_sharing_features_saves_is_said(truth):
    rows = [dial_report.Row(DialSetting(steps, 20), {}, None, {}, 3.0, 2.0) for steps in (1, 4)]
    text = DialReport(rows, [], 40, (0, 1), 1).savings()
    assert '40 images, 4 cells (2 settings x 2 seeds)' in text
    assert 'Features once an image: 3 s instead of 12 s. Heads: 8 s' in text


def test_the_clock_stands_still_for_warm_up_and_each_image_goes_through_all_detectors(monkeypatch):
    clock, calls = [0.0], []
    monkeypatch.setattr(cost_card.time, 'perf_counter', lambda: clock[0])
    monkeypatch.setattr(cost_card, 'pseudo_collate', lambda samples: samples[0])

    def detector(name, seconds):
        def predict(sample):
            calls.append((sample, name))
            clock[0] += seconds * (100 if sample < cost_card.WARM_UP else 1)
        return predict

    samples = list(range(6))
    times = cost_card.time_in_turns(dict(fast=detector('fast', 1.0), slow=detector('slow', 3.0)),
                                    dict(fast=samples, slow=samples), torch.device('cpu'))
    assert times == dict(fast=dict(first=100.0, p50=1.0, p90=1.0, p99=1.0),
                         slow=dict(first=300.0, p50=3.0, p90=3.0, p99=3.0))
    assert [sample for sample, _ in calls] == [one for one in samples for _ in range(2)]
    assert {name for _, name in calls[::2]} == {'fast', 'slow'}  # neither is always the first


def test_each_training_setting_and_seed_of_a_contest_has_its_own_scores(truth, monkeypatch):
    settings = (DialSetting(1, 20), DialSetting(4, 20))
    spread = {(setting, training, seed): 0.02 + 0.04 * place for place, (setting, training, seed) in enumerate(
        (setting, training, seed) for training in (0, 1) for setting in settings for seed in (5, 7))}
    contest = Contest.__new__(Contest)
    contest.truth, contest.num_draws = truth, 100
    contest._test = lambda entry: ({setting: [[records(truth, spread[setting, training, seed]) for seed in (5, 7)]
                                              for training in (0, 1)] for setting in settings}, None)
    contest._outcome = lambda entry, model, setting, runs, contestant: (setting, contestant)
    found, _ = contest._outcomes(Entry('ours', None, ['a.pth', 'b.pth']))
    assert [contestant.name for _, contestant in found] == ['ours 1x20', 'ours 4x20']
    for setting, contestant in found:
        for training, of_seeds in enumerate(contestant.trainings):
            for seed, one in zip((5, 7), of_seeds, strict=True):
                assert one.ap() == pytest.approx(matches(truth, spread[setting, training, seed]).ap(), abs=1e-3)
    assert len({round(one.ap(), 3) for _, contestant in found for of_seeds in contestant.trainings
                for one in of_seeds}) == 8
