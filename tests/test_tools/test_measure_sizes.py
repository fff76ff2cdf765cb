"""Sizes of a data set's objects, as lines of a config."""

import json
import math
import subprocess
import sys

import pytest
from mmengine.config import Config

from mmdet_diffusion.object_sizes import SMALLEST_DEVIATION, measure_sizes
from mmdet_diffusion.task_modules import DiffusionBoxSampler
from mmdet_diffusion.testing import REPOSITORY

SCRIPT = REPOSITORY / 'tools/analysis_tools/measure_sizes.py'


def annotations(*boxes, **values):
    return dict(images=[dict(id=7, width=200, height=100)],
                annotations=[dict(image_id=7, bbox=[0, 0, *box], **values) for box in boxes])


def test_mean_and_deviation_are_those_of_the_objects():
    sizes = measure_sizes(annotations((20, 10), (80, 40)))
    assert sizes.num_objects == 2
    assert sizes.log_scale == (round(math.log(0.2), 3), round(math.log(2), 3))
    assert sizes.log_aspect == (0, SMALLEST_DEVIATION)  # equal shapes: not a deviation of 0


def test_crowds_and_boxes_without_area_do_not_count():
    content = annotations((20, 10), (80, 40))
    content['annotations'] += annotations((199, 99), iscrowd=1)['annotations'] + annotations((0, 50))['annotations']
    assert measure_sizes(content) == measure_sizes(annotations((20, 10), (80, 40)))


def test_the_printed_lines_build_a_sampler(tmp_path):
    path = tmp_path / 'train.json'
    path.write_text(json.dumps(annotations((20, 10), (80, 40), (30, 30))))
    printed = subprocess.run([sys.executable, SCRIPT, path], capture_output=True, text=True, check=True).stdout
    (tmp_path / 'config.py').write_text(f'head = dict(\n{printed})\n')
    head = Config.fromfile(tmp_path / 'config.py').head
    assert '3 objects' in printed and DiffusionBoxSampler(**head.box_sampler).padding == 'start'


@pytest.mark.parametrize(('text', 'words'), [
    (None, ['cannot be read', 'No such file']), ('{', ['no JSON']), ('[]', ['images']),
    (json.dumps(annotations()), ['0 objects', 'signal_scale=2.0']),
    (json.dumps(annotations((20, 10))), ['1 objects', 'two']),
    (json.dumps(dict(images=[], annotations=[dict(image_id=3, bbox=[1, 2, 3, 4])])), ['KeyError: 3']),
    (json.dumps(dict(annotations((5, 5)), images=[dict(id=7, width=0, height=4)])), ['ZeroDivisionError']),
    (json.dumps(annotations(('a', 5))), ['TypeError'])])
def test_a_file_that_cannot_be_measured_is_answered_in_one_line(tmp_path, text, words):
    path = tmp_path / 'train.json'
    if text is not None:
        path.write_text(text)
    answer = subprocess.run([sys.executable, SCRIPT, path], capture_output=True, text=True, check=False)
    assert answer.returncode == 1 and not answer.stdout and answer.stderr.count('\n') == 1
    assert all(word in answer.stderr for word in (*words, str(path)))
