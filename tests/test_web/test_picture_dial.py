"""Features once a picture, the head at each turn."""

import json

import numpy as np
import pytest
from made_pictures import picture

from mmdet_diffusion.web import UnknownPicture, picture_dial

DIAL = dict(num_proposals=12, sampling_timesteps=3, seed=4)


def test_a_turn_finds_what_predict_finds(dial, predictor, config, checkpoint, tmp_path):
    (tmp_path / 'a.png').write_bytes(picture())
    found = dial.turn(dial.add(picture(), 'C:\\pictures\\a.png'), DIAL)
    again = type(predictor)(config, str(checkpoint), device='cpu', score_thr=0.0, dial=DIAL)
    expected = again.record(again.detect([again.read(tmp_path / 'a.png')[1]])[0])
    detections = found['detections']
    assert len(detections['scores']) > 5
    assert detections['labels'] == expected['labels'] and detections['scores'] == expected['scores']
    assert np.allclose(detections['bboxes'], expected['bboxes'], atol=0.051)


def test_the_backbone_runs_once_a_picture(dial, predictor, monkeypatch):
    calls = []
    extract_feat = predictor.model.extract_feat
    monkeypatch.setattr(predictor.model, 'extract_feat', lambda inputs: calls.append(1) or extract_feat(inputs))
    key = dial.add(picture(), 'a.png')
    turns = [dial.turn(key, dict(DIAL, **changes)) for changes in ({}, {}, dict(seed=5), dict(sampling_timesteps=1))]
    assert len(calls) == 1
    assert turns[0]['detections'] == turns[1]['detections']
    assert turns[0]['detections'] != turns[2]['detections']
    assert [len(turn['moments']) for turn in turns] == [3 * 6, 3 * 6, 3 * 6, 6]  # noise and five stages a step
    assert all(turn['seconds']['backbone'] == turns[0]['seconds']['backbone'] > 0 for turn in turns)


def test_moments_are_in_pixels_of_the_file_and_what_json_takes(dial):
    large, small = (dial.turn(dial.add(picture(size=size), 'a.png'), DIAL) for size in ((600, 360), (150, 90)))
    assert json.loads(json.dumps(large, allow_nan=False)) == large
    noise = np.array(large['moments'][0]['bboxes']) / np.array(small['moments'][0]['bboxes'])
    assert np.allclose(noise[np.isfinite(noise)], 4, atol=0.5)
    assert np.shape(large['moments'][0]['bboxes']) == (12, 4)


def test_the_picture_not_looked_at_for_longest_makes_room(dial):
    first, second = dial.add(picture(0), 'a.png'), dial.add(picture(1), 'b.png')
    dial.turn(first, DIAL)
    third = dial.add(picture(2), 'c.png')
    assert set(dial.pictures) == {first, third}
    with pytest.raises(UnknownPicture):
        dial.turn(second, DIAL)


@pytest.mark.parametrize(('changes', 'refusal'), [
    (dict(num_proposals=0), 'num_proposals must be an integer of at least 1, got 0'),
    (dict(num_proposals=2001), 'num_proposals may be at most 2000 here, got 2001'),
    (dict(sampling_timesteps=51), 'sampling_timesteps may be at most 50 here, got 51'),
    (dict(sampling_timesteps='4'), "sampling_timesteps must be an integer, got '4'"),
    (dict(eta=2), 'eta must be a number in 0..1, got 2'), (dict(seed='x'), "seed must be an integer or None, got 'x'"),
    (dict(num_proposals=2000, sampling_timesteps=11),
     'num_proposals times sampling_timesteps may be at most 20000 here, got 2000 x 11'),
    (dict(nms=None), 'unknown key in the settings: nms')])
def test_settings_out_of_range_are_named(dial, changes, refusal):
    key = dial.add(picture(), 'a.png')
    with pytest.raises(ValueError, match=refusal.replace('.', r'\.')):
        dial.turn(key, changes)


@pytest.mark.parametrize('seed', [None, -1, 2**70])
def test_any_seed_draws(dial, seed):
    assert dial.turn(dial.add(picture(), 'a.png'), dict(DIAL, seed=seed))['moments']


def test_what_is_no_picture_or_too_large_is_refused(dial, monkeypatch):
    for content in (b'', b'no picture', picture()[:60]):
        with pytest.raises(ValueError, match='^this cannot be read as a picture'):
            dial.add(content, 'a.png')
    monkeypatch.setattr(picture_dial, 'MOST_PIXELS', 10_000)
    with pytest.raises(ValueError, match='^the picture has 150 x 90 pixels'):
        dial.add(picture(), 'a.png')
    assert not dial.pictures


@pytest.mark.parametrize(('given', 'kept'), [
    ('../../etc/x.png', 'x.png'), ('', 'picture'), ('..', 'picture'), ('a\0b.png', 'ab.png'), ('/', 'picture')])
def test_a_name_stays_in_its_folder(given, kept):
    assert picture_dial._file_name(given) == kept


def test_a_long_name_is_one_that_file_systems_take(dial):
    assert dial.add(picture(), 'ä' * 5000 + '.png')


def test_a_name_of_a_file_is_kept_whole():
    for name in ('漢' * 83 + '.jpg', 'a' * 251 + '.png'):
        assert picture_dial._file_name(name) == name
