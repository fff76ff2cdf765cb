"""tools/dataset_converters/make_shapes.py."""
import errno
import importlib.util
import json
import signal
import subprocess
import sys
import time
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image
from pycocotools.coco import COCO

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / 'tools' / 'dataset_converters'


def load(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f'{name}.py')
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


load('shapes_drawing')  # make_shapes imports it
make_shapes = load('make_shapes')


@pytest.fixture(scope='module')
def small_set(tmp_path_factory):
    out = tmp_path_factory.mktemp('sets') / 'small'
    make_shapes.make_set(out, num_train=8, num_val=5, size=64)
    return out


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob('*') if p.is_file()}


def test_the_same_seed_gives_the_same_bytes(small_set, tmp_path):
    make_shapes.make_set(tmp_path / 'again', num_train=8, num_val=5, size=64)
    assert contents(tmp_path / 'again') == contents(small_set)


def test_the_default_sizes_are_those_of_the_figures(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(make_shapes, 'write_set', lambda folder, *args: asked.append(args) or folder.mkdir())
    for place, args in enumerate(([], ['--large'], ['--num-train', '7', '--large'])):
        make_shapes.main([str(tmp_path / str(place)), *args])
    assert [args[:2] for args in asked] == [(3000, 200), (800, 200), (7, 200)]


def test_another_seed_gives_other_images(small_set, tmp_path):
    make_shapes.make_set(tmp_path / 'other', num_train=8, num_val=5, size=64, seed=1)
    mine, other = contents(small_set), contents(tmp_path / 'other')
    assert mine.keys() == other.keys() and not any(mine[name] == other[name] for name in mine)


def test_no_image_is_in_both_splits(small_set):
    pictures = [path.read_bytes() for path in small_set.glob('*/*.png')]
    assert len(set(pictures)) == 13


def test_a_smaller_set_is_the_start_of_a_larger_one(small_set, tmp_path):
    make_shapes.make_set(tmp_path / 'part', num_train=3, num_val=1, size=64)
    part, whole = contents(tmp_path / 'part'), contents(small_set)
    assert all(part[name] == whole[name] for name in part if name.endswith('.png'))
    few, many = (json.loads(c['annotations/train.json'])['annotations'] for c in (part, whole))
    assert few == many[:len(few)]


def test_pycocotools_loads_a_set_whose_sizes_are_those_of_the_files(small_set):
    with redirect_stdout(StringIO()):
        coco = COCO(small_set / 'annotations' / 'train.json')
    assert [category['name'] for category in coco.loadCats(coco.getCatIds())] == list(make_shapes.CLASSES)
    for image in coco.loadImgs(coco.getImgIds()):
        with Image.open(small_set / 'train' / image['file_name']) as picture:
            assert picture.size == (image['width'], image['height']) and picture.mode == 'RGB'
    assert all(a['area'] > 0 and a['iscrowd'] == 0 for a in coco.dataset['annotations'])


def test_the_config_of_the_data_set_names_these_classes():
    config = Config.fromfile(ROOT / 'configs' / '_base_' / 'datasets' / 'shapes_detection.py')
    assert tuple(config.metainfo.classes) == make_shapes.CLASSES


def test_annotations_are_those_of_the_scene_that_was_drawn(small_set):
    annotations = json.loads((small_set / 'annotations' / 'val.json').read_text())['annotations']
    picture, objects = make_shapes.make_image(0, 'val', 2, 64)
    assert np.array_equal(picture, np.asarray(Image.open(small_set / 'val' / '000003.png')))
    assert [a['bbox'] for a in annotations if a['image_id'] == 3] == [list(o['bbox']) for o in objects]


def test_large_objects_are_one_or_two_and_none_is_smaller_than_the_law_says(tmp_path):
    make_shapes.make_set(tmp_path / 'large', num_train=40, num_val=1, size=64, large=True)
    content = json.loads((tmp_path / 'large' / 'annotations' / 'train.json').read_text())
    shorter = {image['id']: min(image['height'], image['width']) for image in content['images']}
    numbers = [sum(a['image_id'] == number for a in content['annotations']) for number in shorter]
    assert set(numbers) <= {0, 1, 2} and {1, 2} <= set(numbers)
    # Half of an object is in sight, and one that is turned or squeezed is shorter on one side.
    assert all(max(a['bbox'][2:]) >= 0.4 / 2 * shorter[a['image_id']] for a in content['annotations'])


def test_a_set_of_many_objects_is_not_taken_for_one_of_few(own_set):
    with pytest.raises(make_shapes.Refusal, match='another shapes set'):
        remake(own_set, large=True)
    assert 'large' not in json.loads((own_set / 'shapes.json').read_text())['parameters']


def test_a_set_that_is_there_already_is_left_alone(small_set, capsys):
    before = {path: path.stat().st_mtime_ns for path in small_set.rglob('*')}
    make_shapes.make_set(small_set, num_train=8, num_val=5, size=64)
    assert 'already' in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in small_set.rglob('*')}


def test_an_empty_folder_is_filled(tmp_path):
    make_shapes.make_set(tmp_path, num_train=1, num_val=1, size=48)
    assert {path.name for path in tmp_path.iterdir()} == {'annotations', 'train', 'val', 'shapes.json'}


@pytest.fixture
def own_set(tmp_path):
    make_shapes.make_set(tmp_path / 'set', num_train=2, num_val=1, size=48)
    return tmp_path / 'set'


def remake(out, **changes):
    make_shapes.make_set(out, **dict({'num_train': 2, 'num_val': 1, 'size': 48}, **changes))


def test_another_set_is_replaced_only_with_overwrite(own_set):
    before = contents(own_set)
    with pytest.raises(make_shapes.Refusal, match=f'(?s){own_set}.*another OUT.*--overwrite'):
        remake(own_set, seed=5)
    assert contents(own_set) == before
    remake(own_set, seed=5, overwrite=True)
    assert contents(own_set) != before and [p.name for p in own_set.parent.iterdir()] == ['set']


@pytest.mark.parametrize('name', ['train/000002.png', 'annotations/val.json'])
def test_a_damaged_set_is_noticed_and_mended_only_with_overwrite(own_set, name):
    before = contents(own_set)
    (own_set / name).unlink()
    with pytest.raises(make_shapes.Refusal, match='damaged'):
        remake(own_set)
    remake(own_set, overwrite=True)
    assert contents(own_set) == before


@pytest.mark.parametrize('name', ['notes.txt', 'train/mine.png', 'train/more/000001.png'])
def test_overwrite_refuses_to_delete_files_of_others(own_set, name):
    (own_set / name).parent.mkdir(exist_ok=True)
    (own_set / name).write_text('mine')
    with pytest.raises(make_shapes.Refusal, match='more than a shapes set'):
        remake(own_set, seed=5, overwrite=True)
    assert (own_set / name).read_text() == 'mine'


@pytest.mark.parametrize('overwrite', [False, True])
@pytest.mark.parametrize('name', ['photo.png', 'shapes.json'])
def test_a_folder_that_is_no_shapes_set_is_never_touched(tmp_path, name, overwrite):
    (tmp_path / name).write_text('{}')
    with pytest.raises(make_shapes.Refusal, match='stays as it is: choose another OUT'):
        remake(tmp_path, overwrite=overwrite)
    assert contents(tmp_path) == {name: b'{}'}


def fail_at_third_image(monkeypatch, error):
    whole = make_shapes.make_image

    def make_image(seed, split, index, size, large):
        if index == 2:
            raise error
        return whole(seed, split, index, size, large)
    monkeypatch.setattr(make_shapes, 'make_image', make_image)


@pytest.mark.parametrize('error, code', [(KeyboardInterrupt(), 130), (OSError(errno.ENOSPC, 'No space left'), None)])
def test_a_run_cut_short_leaves_nothing(tmp_path, monkeypatch, error, code):
    fail_at_third_image(monkeypatch, error)
    with pytest.raises(SystemExit) as stop:
        make_shapes.main([str(tmp_path / 'set'), '--size', '48'])
    assert stop.value.code == code or 'No space left' in stop.value.code
    assert list(tmp_path.iterdir()) == []


def test_a_replacement_cut_short_leaves_the_old_set(own_set, monkeypatch):
    before = contents(own_set)
    fail_at_third_image(monkeypatch, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        remake(own_set, num_train=3, overwrite=True)
    assert contents(own_set) == before and len(list(own_set.parent.iterdir())) == 1


def test_the_old_set_comes_back_when_the_new_one_cannot_take_its_place(own_set):
    before = contents(own_set)
    with pytest.raises(FileNotFoundError):
        make_shapes.swap_in(own_set.parent / 'no such folder', own_set, own_set.parent / 'old')
    assert contents(own_set) == before


@pytest.mark.skipif(sys.platform == 'win32', reason='POSIX signals')
@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_nothing(tmp_path, number):
    process = subprocess.Popen(  # what runs in the background may have been told to ignore Ctrl-C
        [sys.executable, FOLDER / 'make_shapes.py', tmp_path / 'set'], stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL))
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob('.set-*/new/train/*.png')) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number and b'Traceback' not in errors
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_place_is_one_line_and_exit_code_1(tmp_path):
    (tmp_path / 'file').touch()
    command = [sys.executable, FOLDER / 'make_shapes.py', tmp_path / 'file' / 'set']
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 1 and str(tmp_path / 'file' / 'set') in result.stderr


@pytest.mark.parametrize('option', ['--num-train=0', '--size=10', '--seed=-1', '--num-val=many'])
def test_a_number_that_makes_no_sense_is_exit_code_2(tmp_path, option, capsys):
    with pytest.raises(SystemExit) as stop:
        make_shapes.main([str(tmp_path / 'set'), option])
    assert stop.value.code == 2 and option.split('=')[0] in capsys.readouterr().err
