"""tools/predict.py: pictures in, boxes and drawn pictures out."""

import io
import json
import os
import shutil
import subprocess
import sys
import threading
import weakref
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image
from pycocotools.coco import COCO

from diffusiondet_runtime import sources
from diffusiondet_runtime.prediction_files import DrawnFiles, whole_file
from diffusiondet_runtime.prediction_stream import Prediction
from diffusiondet_runtime.sources import Video, VideoFrames, find_sources
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
    sources = find_sources(['pictures/b.jpg', 'pictures', 'pictures/**/*.png'])
    assert [str(path) for path in sources.items] == [
        'pictures/b.jpg', 'pictures/a.png', 'pictures/c.bmp', 'pictures/inner/a.png']
    assert not sources.failed


def test_sources_without_pictures_are_named(folder):
    (folder / 'empty').mkdir()
    sources = find_sources(['empty', 'none.jpg', 'none/*.jpg', 'pictures/notes.txt'])
    assert sources.failed == {'empty': 'a folder without pictures or videos', 'none.jpg': 'not there',
                              'none/*.jpg': 'not there'}
    assert sources.items == [Path('pictures/notes.txt')]  # named itself, so it is tried


def test_drawn_pictures_of_one_name_stay_apart(tmp_path):
    drawn, pixels = DrawnFiles(tmp_path), np.zeros((4, 4, 3), dtype=np.uint8)
    names = [drawn.add_picture(name, pixels).name for name in ('a/x.jpg', 'b/x.JPG', 'c/x.jpg', 'a/x.bmp', 'a/x_2.jpg')]
    assert names == ['x.jpg', 'x_2.JPG', 'x_3.jpg', 'x.png', 'x_2_2.jpg'] and len(os.listdir(tmp_path)) == 5


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


def test_a_frame_reaches_the_network_as_a_picture_file_does(folder, checkpoint):
    predictor = Predictor(Config.fromfile(SHAPES), str(checkpoint), device='cpu', score_thr=0.3, dial={})
    pixels, sample = predictor.read(Path('pictures/a.png'))
    assert pixels.shape == (48, 64, 3) and (pixels[..., 0] != pixels[..., 2]).any()
    of_frame = predictor.sample(pixels, 'a.png')
    assert torch.equal(of_frame['inputs'], sample['inputs'])
    assert of_frame['data_samples'].scale_factor == sample['data_samples'].scale_factor


def test_a_name_that_is_no_text_is_printed_and_the_rest_goes_on(folder, checkpoint, capfd):
    name = os.fsdecode(b'pictures/na\xefve.png')
    shutil.copy('pictures/a.png', name)
    assert call(checkpoint, name, 'pictures/b.jpg', '--no-draw') == 0
    assert capfd.readouterr().out.count(' objects\n') == 2
    assert len(written()['images']) == 2


@pytest.mark.parametrize('name', ['faster-rcnn_r18_fpn_1xb4-4k_shapes', 'sparse-rcnn_r18_fpn_1xb4-4k_shapes'])
def test_classes_of_two_stage_detectors_are_found(name):
    assert class_names({}, Config.fromfile(config_path(name))) == list(CLASSES)


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
    with pytest.raises(ZeroDivisionError), whole_file(path) as unfinished:
        unfinished.write_text('half')
        1 / 0  # noqa: B018
    assert path.read_text() == 'before' and os.listdir(tmp_path) == ['a.json']
    with whole_file(path) as unfinished:
        unfinished.write_text('after')
    assert path.read_text() == 'after' and os.listdir(tmp_path) == ['a.json']


# Videos ---------------------------------------------------------------------------------------------------------------


def make_video(path, number=7, size=(64, 48), rate=10.0):
    """A bright square that moves to the right."""
    import cv2
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'mp4v'), rate, size)
    for place in range(number):
        frame = np.zeros((size[1], size[0], 3), dtype=np.uint8)
        frame[10:30, 5 * place:5 * place + 20, 2] = 255  # red, in OpenCV's order
        writer.write(frame)
    writer.release()


@pytest.fixture
def clip(folder):
    pytest.importorskip('cv2')
    make_video(folder / 'clip.mp4')
    return folder / 'clip.mp4'


def test_a_video_is_read_frame_by_frame_in_rgb(clip):
    with VideoFrames(Video(str(clip), is_live=False)) as frames:
        assert (frames.rate, frames.number) == (10, 7)
        read = list(frames)
    assert [place for place, _ in read] == list(range(7)) and not frames.broken
    inside = [pixels[20, 5 * place + 10] for place, pixels in read]
    assert all(colour.argmax() == 0 and colour[0] > 200 for colour in inside)  # red


def test_sources_are_told_apart(clip, folder):
    (folder / '7').write_text('a file whose name is a number')
    found = find_sources(['clip.mp4', '0', 'rtsp://host/stream', '7', '.'])
    assert found.items == [Video('clip.mp4', False), Video('0', True), Video('rtsp://host/stream', True), Path('7')]
    assert [video.name for video in found.items[:3]] == ['clip.mp4', 'camera_0', 'stream']
    assert [video.has_no_end for video in found.items[:3]] == [False, True, True]
    file, = find_sources(['http://host/clip.mjpg']).items  # with an end, and maybe nothing that says where
    assert file.is_live and not file.has_no_end


def test_every_frame_is_written_and_drawn(clip, checkpoint, capsys):
    assert call(checkpoint, 'clip.mp4', 'pictures/a.png', '--batch-size', '3', '--format', 'json', 'jsonl', 'coco') == 0
    content = written()
    assert [(one.get('video'), one.get('frame')) for one in content['images']] == [
        *(('clip.mp4', frame) for frame in range(7)), (None, None)]
    assert [json.loads(line) for line in Path('predictions/predictions.jsonl').read_text().splitlines()] == (
        content['images'])
    assert {one['drawn'] for one in content['images']} == {'vis/clip.mp4', 'vis/a.png'}
    with VideoFrames(Video('predictions/vis/clip.mp4', False)) as frames:
        assert frames.rate == 10 and [pixels.shape for _, pixels in frames] == [(48, 64, 3)] * 7
    objects = sum(len(one['labels']) for one in content['images'][:7])
    assert f'clip.mp4: 7 frames, {objects} objects, ' in capsys.readouterr().out
    assert sorted(os.listdir('predictions')) == [
        'predictions.coco.json', 'predictions.json', 'predictions.jsonl', 'vis']


def test_a_terminal_counts_pictures_and_frames_and_others_get_plain_lines(capsys):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    video = SimpleNamespace(number=3)
    for stream in (Terminal(), io.StringIO()):
        progress = predict.Progress(2, stream)
        with mock.patch.object(predict, 'SHOWN_EVERY', -1):
            for name in ('a.png', 'b.png'):
                progress.add(Prediction(name, None, None, None, None), 1)
            for frame in range(3):
                progress.add(Prediction('clip.mp4', frame, None, None, video), 2)
            progress.end()
        lines = capsys.readouterr().out.splitlines()
        assert lines[:2] == ['a.png: 1 objects', 'b.png: 1 objects']
        assert len(lines) == 3 and lines[2].startswith('clip.mp4: 3 frames, 6 objects, ')
        shown = [text.split(', ')[0] for text in stream.getvalue().split('\r\033[K') if text]
        assert shown == (['pictures: 1 of 2', 'pictures: 2 of 2', 'clip.mp4: 1 of 3', 'clip.mp4: 2 of 3',
                          'clip.mp4: 3 of 3'] if stream.isatty() else [])


def test_a_stream_over_the_network_is_read_to_its_end(clip, checkpoint, folder):
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05, ), daemon=True).start()
        address = f'http://127.0.0.1:{server.server_address[1]}/clip.mp4'
        assert call(checkpoint, address, '--no-draw') == 0
        server.shutdown()
    assert [(one['video'], one['frame']) for one in written()['images']] == [(address, place) for place in range(7)]


class Camera:
    """In place of OpenCV's: two frames at each opening but the second, which gives none; the fourth fails."""

    openings = 0

    def __init__(self, source):
        self.open(source)

    def open(self, source):
        assert source == 0
        Camera.openings += 1
        self.left = 2 if Camera.openings in (1, 3) else 0
        return self.isOpened()

    def isOpened(self):
        return Camera.openings < 4

    def read(self):
        self.left -= 1
        return (True, np.full((48, 64, 3), 90, np.uint8)) if self.left >= 0 else (False, None)

    def get(self, key):
        return -1.0

    def release(self):
        pass


def test_a_camera_that_drops_out_is_opened_again_and_named_when_it_stays_away(folder, checkpoint, monkeypatch, capsys):
    monkeypatch.setattr(Camera, 'openings', 0)
    monkeypatch.setattr('cv2.VideoCapture', Camera)
    monkeypatch.setattr(sources, 'PATIENCE', 1.2)
    assert call(checkpoint, '0', 'pictures/a.png', '--no-draw') == 1
    content = written()
    assert [one.get('frame') for one in content['images']] == [0, 1, 2, 3, None]
    assert list(content['failed']) == ['0'] and 'no frame for' in content['failed']['0']
    assert 'after 4 frames' in capsys.readouterr().err


def test_coco_s_form_is_read_by_pycocotools(clip, checkpoint):
    call(checkpoint, 'clip.mp4', 'pictures', '--format', 'coco', 'json', '--no-draw')
    coco, content = COCO('predictions/predictions.coco.json'), written()
    assert [category['name'] for category in coco.loadCats(coco.getCatIds())] == content['classes']
    assert len(coco.imgs) == len(content['images']) == 7 + 3
    for image, record in zip(coco.dataset['images'], content['images'], strict=True):
        assert (image['width'], image['height']) == (record['width'], record['height'])
        found = coco.imgToAnns[image['id']]
        assert [one['score'] for one in found] == record['scores']
        assert [one['category_id'] - 1 for one in found] == record['labels']
        corners = [[one['bbox'][0], one['bbox'][1], one['bbox'][0] + one['bbox'][2], one['bbox'][1] + one['bbox'][3]]
                   for one in found]
        np.testing.assert_allclose(corners, record['bboxes'], atol=0.011)
    assert os.listdir('predictions/vis') == []


def test_frames_start_from_the_same_boxes_as_a_picture_of_that_name(clip, checkpoint):
    predictor = Predictor(Config.fromfile(SHAPES), str(checkpoint), device='cpu', score_thr=0.0,
                          dial=dict(num_proposals=12))
    found = list(predictor.predict(['clip.mp4']))
    assert [one.frame for one in found] == list(range(7)) and found[0].video.video.source == 'clip.mp4'
    alone, = predictor.detect([predictor.sample(found[3].pixels, 'clip.mp4')])
    assert torch.equal(alone.pred_instances.bboxes, found[3].found.pred_instances.bboxes)


@pytest.mark.parametrize('form', [str, Path])
def test_one_source_is_enough_and_paths_are_looked_up_as_words_are(clip, checkpoint, form):
    predictor = Predictor(Config.fromfile(SHAPES), str(checkpoint), device='cpu', score_thr=0.0,
                          dial=dict(num_proposals=2))
    assert [one.frame for one in predictor.predict(form('clip.mp4'))] == list(range(7))
    assert [Path(one.source).name for one in predictor.predict([form('pictures')])] == ['a.png', 'b.jpg', 'c.bmp']


def test_a_grey_picture_of_a_grey_pipeline_is_drawn_in_grey(folder, checkpoint):
    config = Config.fromfile(SHAPES)
    config.test_dataloader.dataset.pipeline[0].color_type = 'grayscale'
    predictor = Predictor(config, str(checkpoint), device='cpu', score_thr=0.0, dial={})
    pixels, sample = predictor.read(Path('pictures/b.jpg'))
    assert pixels.shape == (64, 40, 3) and np.ptp(pixels, axis=2).max() == 0 and pixels.std() > 0
    assert sample['inputs'].shape[0] == 1


@pytest.mark.parametrize('pixels', [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3)), np.zeros((8, 8, 4), np.uint8)])
def test_what_is_no_picture_in_memory_is_said(checkpoint, pixels):
    predictor = Predictor(Config.fromfile(SHAPES), str(checkpoint), device='cpu', score_thr=0.0, dial={})
    with pytest.raises(ValueError, match=r'here: a picture is RGB, uint8 of shape \(h, w, 3\), got'):
        predictor.sample(pixels, 'here')


def test_frames_of_another_size_stay_in_the_drawn_video(tmp_path):
    pytest.importorskip('cv2')
    drawn = DrawnFiles(tmp_path)
    for size in ((48, 64), (96, 128), (48, 64)):
        drawn.add_frame('0', 'camera_0', 10.0, np.zeros((*size, 3), dtype=np.uint8))
    drawn.close()
    with VideoFrames(Video(str(tmp_path / 'camera_0.mp4'), False)) as frames:
        assert [pixels.shape for _, pixels in frames] == [(48, 64, 3)] * 3


def test_carried_boxes_are_where_objects_were_in_the_frame_before(clip, checkpoint):
    predictor = Predictor(Config.fromfile(SHAPES), str(checkpoint), device='cpu', score_thr=0.005,
                          dial=dict(num_proposals=12))
    carried = list(predictor.predict(['clip.mp4'], batch_size=3, carry_boxes=True))
    for place in (0, 1, 5):
        before = carried[place - 1].found if place else None
        alone, = predictor.detect([predictor.sample(carried[place].pixels, f'clip.mp4:{place}', before)])
        assert torch.equal(alone.pred_instances.bboxes, carried[place].found.pred_instances.bboxes)
    scale = predictor.sample(carried[0].pixels, 'a')['data_samples'].scale_factor
    sample = predictor.sample(carried[1].pixels, 'a', carried[0].found)['data_samples']
    expected = carried[0].found.pred_instances.bboxes * torch.tensor(scale).repeat(2)
    torch.testing.assert_close(sample.proposals.bboxes, expected)
    assert len(expected) and scale[0] != 1


def test_what_carried_boxes_are_worth_is_measured(checkpoint, capsys):
    measure = load_tool('analysis_tools/measure_carried_boxes.py')
    clip = measure.made_clip(3, 5)
    assert len({pixels.tobytes() for pixels, _ in clip}) > 1
    for pixels, objects in clip:
        for one in objects:
            left, top, width, height = one['bbox']
            assert left >= 0 and top >= 0 and width > 4 and height > 4
            assert left + width <= pixels.shape[1] and top + height <= pixels.shape[0]
    small = ['--clips', '2', '--frames', '2', '--seeds', '0', '--settings', '1x6', '2x6']
    assert measure.main([SHAPES, str(checkpoint), *small]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith('| ')]
    assert [row.split(' | ')[0] for row in rows[2:]] == ['| 1x6', '| 2x6']


def test_no_more_than_a_batch_is_held(clip, checkpoint, folder):
    make_video(folder / 'long.mp4', number=40)
    predictor = Predictor(Config.fromfile(SHAPES), str(checkpoint), device='cpu', score_thr=0.0,
                          dial=dict(num_proposals=2))
    alive, most = [], 0
    for one in predictor.predict(['long.mp4'], batch_size=4):
        alive = [reference for reference in alive if reference() is not None] + [weakref.ref(one.pixels)]
        most = max(most, len(alive))
    assert one.frame == 39 and most <= 5


def test_broken_videos_and_frames_are_named_and_the_rest_goes_on(clip, checkpoint, folder, monkeypatch, capsys):
    (folder / 'broken.mp4').write_bytes(clip.read_bytes()[:200])
    reads, read = [], VideoFrames.__iter__

    def without_the_third(self):
        capture = self.capture

        class Capture:
            def read(self):
                reads.append(1)
                frame = capture.read()
                return (False, None) if len(reads) == 3 else frame

            def release(self):
                capture.release()

        self.capture = Capture()
        return read(self)

    monkeypatch.setattr(VideoFrames, '__iter__', without_the_third)
    assert call(checkpoint, 'broken.mp4', 'clip.mp4', 'pictures/a.png') == 1
    content = written()
    assert content['failed'] == {'broken.mp4': 'cannot be opened as a video',
                                 'clip.mp4': '1 of 7 frames cannot be read, the first is 2'}
    assert [one.get('frame') for one in content['images']] == [0, 1, 3, 4, 5, 6, None]
    assert 'clip.mp4: 1 of 7 frames cannot be read, the first is 2' in capsys.readouterr().err


class FrameByFrame:
    """A capture of which only some frames can be read."""

    def __init__(self, readable):
        self.readable = iter(readable)

    def read(self):
        return next(self.readable, False), np.zeros((4, 4, 3), np.uint8)

    def release(self):
        pass


@pytest.mark.parametrize(('name', 'at_the_end'), [('clip.mp4', [4, 5, 6]), ('clip.mkv', []), ('clip.webm', [])])
def test_frames_that_only_the_length_of_a_video_promises_are_not_missed(clip, name, at_the_end):
    frames = VideoFrames(Video(str(clip), is_live=False))
    frames.video, frames.capture = Video(name, is_live=False), FrameByFrame([True, False, True, True])
    assert [place for place, _ in frames] == [0, 2, 3]
    assert frames.broken == [1, *at_the_end] and frames.number == 7


@pytest.mark.parametrize('name', ['clip.mp4', 'clip.mkv'])
def test_a_video_that_ends_far_before_its_length_is_named(clip, name):
    frames = VideoFrames(Video(str(clip), is_live=False))
    frames.video, frames.capture, frames.number = Video(name, is_live=False), FrameByFrame([True] * 5), 300
    assert [place for place, _ in frames] == list(range(5))
    assert frames.broken == list(range(5, 5 + sources.MOST_BROKEN))


@pytest.mark.parametrize('rate', [23.976, 29.97003, 66.6667, 119.973, 120.031, 239.762, 1000.0, 90000.0])
def test_drawn_videos_keep_rates_that_mpeg_4_cannot_count(tmp_path, rate):
    drawn = DrawnFiles(tmp_path)
    for _ in range(3):
        drawn.add_frame('a.mp4', 'a.mp4', rate, np.zeros((48, 64, 3), dtype=np.uint8))
    drawn.close()
    with VideoFrames(Video(str(tmp_path / 'a.mp4'), False)) as frames:
        assert frames.rate == pytest.approx(min(rate, 65535), rel=1e-4)
        assert len(list(frames)) == 3


def test_a_name_as_long_as_file_systems_take_is_kept_and_a_longer_one_named(tmp_path):
    name = '漢' * 83 + '.png'
    assert DrawnFiles(tmp_path).add_picture(name, np.zeros((4, 4, 3), np.uint8)).name == name
    assert os.listdir(tmp_path) == [name]
    long = 'x' * 300 + '.jpg'
    assert find_sources([long, '7' * 300]) == ([Video('7' * 300, True)], {long: 'not there'})


def test_what_was_found_until_ctrl_c_is_in_the_files(clip, checkpoint, monkeypatch):
    detect, calls = Predictor.detect, []

    def interrupted(self, samples):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return detect(self, samples)

    monkeypatch.setattr(Predictor, 'detect', interrupted)
    with pytest.raises(KeyboardInterrupt):
        call(checkpoint, 'clip.mp4', '--format', 'json', 'jsonl', 'coco')
    assert len(written()['images']) == 3 == len(Path('predictions/predictions.jsonl').read_text().splitlines())
    assert len(json.loads(Path('predictions/predictions.coco.json').read_text())['images']) == 3
    with VideoFrames(Video('predictions/vis/clip.mp4', False)) as frames:
        assert len(list(frames)) == 3
    assert not [name for name in os.listdir('predictions') if name.startswith('.')]


def test_sigterm_leaves_whole_files_too(folder, checkpoint):
    for number in range(200):
        shutil.copy('pictures/a.png', f'pictures/{number:03}.png')
    words = ['predict', SHAPES, str(checkpoint), 'pictures', '--device', 'cpu']
    with subprocess.Popen([sys.executable, '-m', 'mmdet_diffusion', *words], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True, env=dict(os.environ, PYTHONUNBUFFERED='1')) as process:
        assert any('objects' in line for line in process.stdout)
        process.terminate()
        _, errors = process.communicate()
    assert (process.returncode, errors.splitlines()[-1]) == (130, 'mmdet-diffusion: interrupted')
    assert 1 <= len(written()['images']) < 200
    assert not [name for name in os.listdir('predictions') if name.startswith('.')]


def test_videos_without_opencv_are_named_with_the_cure(clip, checkpoint, monkeypatch):
    monkeypatch.setitem(sys.modules, 'cv2', None)
    assert call(checkpoint, 'clip.mp4', 'pictures/a.png') == 1
    assert written()['failed'] == {'clip.mp4': 'videos need OpenCV. Cure: pip install opencv-python-headless'}


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
