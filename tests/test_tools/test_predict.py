"""tools/predict.py: pictures in, boxes and drawn pictures out."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image

from mmdet_diffusion import config_path
from mmdet_diffusion.prediction import Predictor, class_names
from mmdet_diffusion.testing import build_detector, load_tool

predict = load_tool('predict.py')
SHAPES = config_path('diffusiondet_r18_fpn_1xb4-4k_shapes')
CLASSES = ('circle', 'rectangle', 'triangle', 'star', 'ring', 'cross')


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    """Weights as they are before training, whose scores lie about the prior of 0.01."""
    model = build_detector(Config.fromfile(SHAPES).model)
    path = tmp_path_factory.mktemp('checkpoint') / 'random.pth'
    torch.save(dict(state_dict=model.state_dict(), meta=dict(dataset_meta=dict(classes=CLASSES[::-1]))), path)
    return path


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with pictures of other sizes and forms, also in a folder inside, as the current one."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    shapes = {'a.png': (48, 64, 3), 'b.jpg': (64, 40), 'c.bmp': (50, 50, 3), 'inner/a.png': (70, 50, 3)}
    for name, shape in shapes.items():
        path = tmp_path / 'pictures' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 255, shape, dtype=np.uint8)).save(path)
    (tmp_path / 'pictures' / 'notes.txt').write_text('no picture')
    return tmp_path


def call(checkpoint, *args):
    return predict.main([SHAPES, str(checkpoint), *map(str, args), '--device', 'cpu', '--boxes', '12', '--score-thr',
                         '0.005'])


def written(folder='predictions'):
    return json.loads(Path(folder, 'predictions.json').read_text())


def test_folders_globs_and_files_are_gathered_once_each_in_order(folder):
    sources = predict.find_pictures(['pictures/b.jpg', 'pictures', 'pictures/**/*.png'])
    assert [str(path) for path in sources.pictures] == [
        'pictures/b.jpg', 'pictures/a.png', 'pictures/c.bmp', 'pictures/inner/a.png']
    assert not sources.failed


def test_sources_without_pictures_are_named(folder):
    (folder / 'empty').mkdir()
    sources = predict.find_pictures(['empty', 'none.jpg', 'none/*.jpg', 'pictures/notes.txt'])
    assert sources.failed == {'empty': 'a folder without pictures', 'none.jpg': 'not there', 'none/*.jpg': 'not there'}
    assert sources.pictures == [Path('pictures/notes.txt')]  # named itself, so it is tried


def test_drawn_pictures_of_one_name_stay_apart():
    names = predict.drawn_names([Path('a/x.jpg'), Path('b/x.JPG'), Path('c/x.jpg'), Path('a/x.bmp'), Path('a/x_2.jpg')])
    assert list(names.values()) == ['x.jpg', 'x_2.JPG', 'x_3.jpg', 'x.png', 'x_2_2.jpg']


def test_boxes_are_written_in_pixels_of_the_file_with_the_checkpoint_s_class_names(folder, checkpoint, capsys):
    assert call(checkpoint, 'pictures', '--batch-size', '2') == 0
    content = written()
    assert [image['image'] for image in content['images']] == ['pictures/a.png', 'pictures/b.jpg', 'pictures/c.bmp']
    assert content['classes'] == list(CLASSES[::-1]) and content['failed'] == {}
    assert [(image['width'], image['height']) for image in content['images']] == [(64, 48), (40, 64), (50, 50)]
    for image in content['images']:
        assert image['labels'] and all(score > 0.005 for score in image['scores'])
        assert image['class_names'] == [content['classes'][label] for label in image['labels']]
        boxes = np.array(image['bboxes'])
        assert (boxes >= 0).all() and (boxes <= [image['width'], image['height']] * 2).all()
        assert Image.open(Path('predictions', image['drawn'])).size == (image['width'], image['height'])
    assert 'pictures/a.png: ' in capsys.readouterr().out


def test_drawing_changes_the_picture(folder, checkpoint):
    call(checkpoint, 'pictures/a.png')
    drawn = np.asarray(Image.open('predictions/vis/a.png').convert('RGB')).astype(int)
    assert np.abs(drawn - np.asarray(Image.open('pictures/a.png'))).max() > 50


def test_equal_calls_give_equal_boxes_and_the_seed_changes_them(folder, checkpoint):
    results = []
    for args in ([], ['--seed', '0'], ['--seed', '1'], ['--steps', '2']):
        call(checkpoint, 'pictures/a.png', *args)
        results.append(written()['images'][0]['bboxes'])
    assert results[0] == results[1]
    assert results[1] != results[2] and results[1] != results[3]


def test_moving_a_picture_does_not_change_its_boxes(folder, checkpoint):
    call(checkpoint, 'pictures/a.png')
    before = written()['images'][0]['bboxes']
    shutil.copytree('pictures', 'elsewhere')
    call(checkpoint, 'elsewhere/a.png')
    assert written()['images'][0]['bboxes'] == before


def test_what_cannot_be_read_is_named_and_the_rest_goes_on(folder, checkpoint, capfd):
    (folder / 'pictures' / 'aa.jpg').write_text('no picture')
    (folder / 'pictures' / 'cc.png').write_bytes((folder / 'pictures' / 'a.png').read_bytes()[:500])
    assert call(checkpoint, 'none.jpg', 'pictures', '--batch-size', '2') == 1
    content = written()
    assert [Path(image['image']).name for image in content['images']] == ['a.png', 'b.jpg', 'c.bmp']
    assert set(content['failed']) == {'none.jpg', 'pictures/aa.jpg', 'pictures/cc.png'}
    errors = capfd.readouterr().err
    assert 'pictures/aa.jpg: cannot be used (' in errors and 'none.jpg: not there' in errors
    assert errors.splitlines()[-1] == '3 could not be used: none.jpg, pictures/aa.jpg, pictures/cc.png'
    assert sorted(path.name for path in Path('predictions', 'vis').iterdir()) == ['a.png', 'b.jpg', 'c.png']


def test_when_no_picture_is_there_nothing_is_written(folder, checkpoint):
    with pytest.raises(SystemExit, match='^there is no picture to look at$'):
        call(checkpoint, 'none.jpg')
    assert not Path('predictions').exists()


@pytest.mark.parametrize(('args', 'refusal'), [
    ([SHAPES, 'none.pth', 'pictures'], '^there is no checkpoint none.pth$'),
    (['none.py', 'CHECKPOINT', 'pictures'], '^there is no config file none.py$'),
    (['diffusiondet_r18', 'CHECKPOINT', 'pictures'], "^no config is called 'diffusiondet_r18'; near it: "),
    ([SHAPES, 'CHECKPOINT', 'pictures', '--device', 'nonsense'], '^there is no device nonsense here'),
    ([SHAPES, 'pictures/notes.txt', 'pictures'], '^pictures/notes.txt is no checkpoint, or asks for more than tensors'),
    ([SHAPES, 'CHECKPOINT', 'pictures', '--steps', '1001'], r'^sampling_timesteps must lie in 1\.\.1000'),
    ([SHAPES, 'CHECKPOINT', 'pictures', '--cfg-options', 'x'], "^--cfg-options takes KEY=VALUE, got 'x'$"),
    ([SHAPES, 'CHECKPOINT', 'pictures', '--cfg-options', 'model.bbox_head.num_classes=7'],
     'random.pth is not of this config: 12 tensors have another shape'),
    ([SHAPES, 'CHECKPOINT', 'pictures', '--out-dir', 'pictures/notes.txt'],
     '^--out-dir pictures/notes.txt cannot be made: Not a directory$'),
])
def test_what_is_wrong_is_said_in_one_line_and_nothing_is_written(folder, checkpoint, args, refusal):
    before = sorted(folder.rglob('*'))
    with pytest.raises(SystemExit, match=refusal) as ended:
        predict.main([str(checkpoint) if arg == 'CHECKPOINT' else arg for arg in args])
    assert '\n' not in str(ended.value)
    assert sorted(folder.rglob('*')) == before


def test_a_file_is_whole_or_not_there(tmp_path):
    path = tmp_path / 'a.json'
    path.write_text('before')
    with pytest.raises(ZeroDivisionError), predict.whole_file(path) as unfinished:
        unfinished.write_text('half')
        1 / 0  # noqa: B018
    assert path.read_text() == 'before' and os.listdir(tmp_path) == ['a.json']
    with predict.whole_file(path) as unfinished:
        unfinished.write_text('after')
    assert path.read_text() == 'after' and os.listdir(tmp_path) == ['a.json']


# Class names ----------------------------------------------------------------------------------------------------------


def test_class_names_come_from_the_checkpoint_then_the_config_then_the_data_set():
    config = Config.fromfile(SHAPES)
    assert class_names(dict(dataset_meta=dict(classes=('a', 'b', 'c', 'd', 'e', 'f'))), config) == [*'abcdef']
    assert class_names(dict(CLASSES=[*'abcdef']), config) == [*'abcdef']  # of older versions
    assert class_names({}, config) == list(CLASSES)
    coco = Config.fromfile(config_path('diffusiondet_r50_fpn_8xb2-450k_coco'))
    assert class_names({}, coco)[:2] == ['person', 'bicycle']


def test_class_names_that_are_too_few_give_way_to_numbers():
    assert class_names(dict(dataset_meta=dict(classes=('a', 'b'))), Config.fromfile(SHAPES)) == [*'012345']


def test_batches_find_what_single_pictures_find(folder, checkpoint):
    predictor = Predictor(Config.fromfile(SHAPES), str(checkpoint), device='cpu', score_thr=0.0,
                          dial=dict(num_proposals=12))
    pictures = [Path('pictures/a.png')] * 2
    samples = [predictor.read(path)[1] for path in pictures]
    both = predictor.detect(samples)
    alone = predictor.detect([predictor.read(pictures[1])[1]])
    torch.testing.assert_close(both[1].pred_instances.bboxes, alone[0].pred_instances.bboxes, atol=1e-3, rtol=0)
