"""tools/dataset_converters/voc_to_coco.py."""
import importlib.util
import json
import subprocess
import sys
import tempfile
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mmdet.datasets import CocoDataset
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

SCRIPT = Path(__file__).resolve().parents[2] / 'tools' / 'dataset_converters' / 'voc_to_coco.py'
spec = importlib.util.spec_from_file_location('voc_to_coco', SCRIPT)
voc_to_coco = importlib.util.module_from_spec(spec)
spec.loader.exec_module(voc_to_coco)


def tags(**values):
    return ''.join(f'<{key}>{value}</{key}>' for key, value in values.items())


def write_xml(folder, stem, boxes=(), size=(100, 80), filename=None, extra=''):
    """One annotation; boxes are (name, xmin, ymin, xmax, ymax), `extra` is XML put into every object."""
    head = tags(filename=f'{stem}.jpg' if filename is None else filename)
    if size:
        head += tags(size=tags(width=size[0], height=size[1], depth=3))
    corners = [tags(**dict(zip(('xmin', 'ymin', 'xmax', 'ymax'), box[1:], strict=True))) for box in boxes]
    objects = [tags(object=tags(name=box[0], bndbox=c) + extra) for box, c in zip(boxes, corners, strict=True)]
    (folder / f'{stem}.xml').write_text(tags(annotation=head + ''.join(objects)))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / 'xml').mkdir()
    return tmp_path / 'xml'


def convert(folder, *options):
    """The COCO content written; what was printed is in its 'printed'."""
    out, printed = folder.parent / 'out.json', StringIO()
    with redirect_stdout(printed):
        voc_to_coco.main([str(folder), str(out), *map(str, options)])
    return json.loads(out.read_text()) | {'printed': printed.getvalue()}


def convert_boxes(boxes, *options):
    """For tests that run many times and so cannot use a fixture."""
    with tempfile.TemporaryDirectory() as name:
        (folder := Path(name) / 'xml').mkdir()
        write_xml(folder, 'a', boxes)
        return convert(folder, '--strict', *options)


def boxes_of(content):
    return [annotation['bbox'] for annotation in content['annotations']]


def test_a_pixel_is_a_pixel_and_the_whole_image_the_whole_image():
    assert boxes_of(convert_boxes([('dog', 1, 1, 1, 1), ('dog', 1, 1, 100, 80)])) == [[0, 0, 1, 1], [0, 0, 100, 80]]
    assert boxes_of(convert_boxes([('dog', 0, 0, 100, 80)], '--zero-based')) == [[0, 0, 100, 80]]


@st.composite
def coco_boxes(draw, width=100, height=80):
    x, y = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    return x, y, draw(st.integers(1, width - x)), draw(st.integers(1, height - y))


@given(st.lists(st.tuples(st.sampled_from(['cat', 'dog', 'red panda']), coco_boxes()), min_size=1), st.booleans())
def test_boxes_come_back_as_they_were_written(objects, zero_based):
    shift = 0 if zero_based else 1
    boxes = [(name, x + shift, y + shift, x + w, y + h) for name, (x, y, w, h) in objects]
    content = convert_boxes(boxes, *['--zero-based'] * zero_based)
    names = {category['id']: category['name'] for category in content['categories']}
    back = [(names[a['category_id']], tuple(a['bbox'])) for a in content['annotations']]
    assert back == objects
    assert all(a['area'] == a['bbox'][2] * a['bbox'][3] for a in content['annotations'])


@given(*[st.floats(0, 40)] * 2, *[st.floats(41, 80)] * 2)
def test_a_box_of_fractions_of_pixels_inside_the_image_is_kept_as_it_is(x, y, x_end, y_end):
    assert boxes_of(convert_boxes([('dog', x, y, x_end, y_end)], '--zero-based')) == [[x, y, x_end - x, y_end - y]]


def test_boxes_partly_outside_are_clipped_and_those_wholly_outside_dropped(folder):
    write_xml(folder, 'a', [('dog', 91, 71, 120, 90), ('dog', 101, 1, 120, 20), ('cat', -9, 1, 10, 20)])
    content = convert(folder)
    assert boxes_of(content) == [[90, 70, 10, 10], [0, 0, 10, 20]]
    assert '2 x box partly outside the image, clipped: a.xml (dog [91, 71, 120, 90] in 100 x 80)' in content['printed']
    assert '1 x box outside the image, left out: a.xml (dog' in content['printed']
    write_xml(folder, 'a', [('dog', 0, 5, 10, 10)])
    assert 'is this set one for --zero-based?' in convert(folder, '--overwrite')['printed']


@pytest.mark.parametrize('box', [(20, 10, 19, 30), (20, 30, 40, 10)])
def test_a_box_without_area_is_dropped_and_named(folder, box):
    write_xml(folder, 'a', [('dog', *box), ('dog', 1, 1, 2, 2)])
    content = convert(folder)
    assert boxes_of(content) == [[0, 0, 2, 2]] and '1 x box without area, left out: a.xml' in content['printed']


@pytest.mark.parametrize('value', ['', 'ten', 'nan', 'inf'])
def test_a_corner_that_is_no_number_loses_the_object_not_the_image(folder, value):
    write_xml(folder, 'a', [('dog', value, 1, 2, 2), ('dog', 1, 1, 2, 2)])
    content = convert(folder)
    assert len(content['images']) == 1 and boxes_of(content) == [[0, 0, 2, 2]]
    assert '1 x object without a proper <bndbox>, left out: a.xml (dog)' in content['printed']


def test_parts_of_an_object_are_no_objects(folder):
    part = tags(part=tags(name='head', bndbox=tags(xmin=3, ymin=3, xmax=4, ymax=4)))
    write_xml(folder, 'a', [('person', 1, 1, 10, 10)], extra=part)
    content = convert(folder)
    assert boxes_of(content) == [[0, 0, 10, 10]] and [c['name'] for c in content['categories']] == ['person']


def test_a_difficult_object_neither_counts_as_missed_nor_makes_a_detection_wrong(folder):
    write_xml(folder, 'a', [('dog', 1, 1, 20, 20)], extra='<difficult>1</difficult>')
    write_xml(folder, 'b', [('dog', 1, 1, 20, 20)], extra='<difficult>0</difficult>')
    content = convert(folder)
    assert [(a['difficult'], a['iscrowd'], 'ignore' in a) for a in content['annotations']] == [(1, 1, 0), (0, 0, 0)]
    with redirect_stdout(StringIO()):
        truth = COCO(folder.parent / 'out.json')
        found = [{'image_id': n, 'category_id': 1, 'bbox': [0, 0, 20, 20], 'score': 0.9} for n in (1, 2)]
        for detections in (found, found[1:]):
            evaluation = COCOeval(truth, truth.loadRes(detections), 'bbox')
            evaluation.evaluate(), evaluation.accumulate(), evaluation.summarize()
            assert evaluation.stats[0] == pytest.approx(1)


def test_classes_are_sorted_and_the_same_for_every_image_set(folder):
    write_xml(folder, 'a', [('zebra', 1, 1, 2, 2)])
    write_xml(folder, 'b', [('ant', 1, 1, 2, 2), (' dog ', 1, 1, 2, 2)])
    (folder.parent / 'train.txt').write_text('a\n\n')
    content = convert(folder, '--image-set', folder.parent / 'train.txt')
    assert content['categories'] == [{'id': n, 'name': c} for n, c in enumerate(['ant', 'dog', 'zebra'], start=1)]
    assert [a['category_id'] for a in content['annotations']] == [3]


def test_given_classes_keep_their_order_and_others_are_reported(folder):
    write_xml(folder, 'a', [('ant', 1, 1, 2, 2), ('cat', 1, 1, 3, 3), ('', 1, 1, 4, 4)])
    content = convert(folder, '--classes', 'dog', 'cat')
    assert content['categories'] == [{'id': 1, 'name': 'dog'}, {'id': 2, 'name': 'cat'}]
    assert [(a['category_id'], a['bbox']) for a in content['annotations']] == [(2, [0, 0, 3, 3])]
    assert '2 x object of unknown class, left out: a.xml (ant); a.xml (no name)' in content['printed']
    assert "classes=('dog', 'cat')" in content['printed']


def test_a_class_given_twice_is_exit_code_2(folder):
    with pytest.raises(SystemExit, match='2'):
        convert(folder, '--classes', 'dog', 'dog')


def make_image(folder, name, size=(100, 80), **options):
    folder.mkdir(exist_ok=True)
    Image.new('RGB', size).save(folder / name, **options)
    return folder


def test_images_without_objects_are_kept(folder):
    write_xml(folder, 'a')
    write_xml(folder, 'b', [('dog', 1, 1, 2, 2)])
    content = convert(folder)
    assert [i['file_name'] for i in content['images']] == ['a.jpg', 'b.jpg']
    assert content['annotations'][0]['image_id'] == 2
    assert '2 images (1 without objects), 1 boxes (0 difficult)' in content['printed']


@pytest.mark.parametrize('size', [None, (0, 0), ('', ''), ('wide', 80)])
def test_a_size_that_the_xml_lacks_is_read_from_the_image(folder, size):
    write_xml(folder, 'a', size=size)
    with pytest.raises(SystemExit, match='nothing in .* could be converted'):
        convert(folder)
    content = convert(folder, '--image-dir', make_image(folder.parent / 'images', 'a.jpg', (64, 48)))
    assert (content['images'][0]['width'], content['images'][0]['height']) == (64, 48)


def test_the_size_of_the_image_beats_that_of_the_xml(folder):
    write_xml(folder, 'a', [('dog', 1, 1, 100, 80)])
    content = convert(folder, '--image-dir', make_image(folder.parent / 'images', 'a.jpg', (50, 40)))
    assert boxes_of(content) == [[0, 0, 50, 40]]
    assert 'size in the XML is not that of the image, which was taken: a.xml ((100, 80)' in content['printed']


def test_the_size_is_that_after_the_exif_rotation(folder):
    write_xml(folder, 'a', size=(80, 100))
    exif = Image.Exif()
    exif[0x0112] = 6
    content = convert(folder, '--strict', '--image-dir', make_image(folder.parent / 'images', 'a.jpg', exif=exif))
    assert (content['images'][0]['width'], content['images'][0]['height']) == (80, 100)


@pytest.mark.parametrize('filename', ['a', '', 'C:\\photos\\a', 'renamed.jpg'])
def test_an_image_is_found_by_the_name_of_its_xml(folder, filename):
    write_xml(folder, 'a', filename=filename)
    content = convert(folder, '--image-dir', make_image(folder.parent / 'images', 'a.PNG'))
    assert content['images'][0]['file_name'] == 'a.PNG' and 'one with a like name was taken' in content['printed']


@pytest.mark.parametrize('filename', ['/home/me/a.jpg', 'C:\\photos\\a.jpg', 'VOC2012/a.jpg', 'a', ''])
def test_a_file_name_has_no_folder_and_always_a_suffix(folder, filename):
    write_xml(folder, 'a', filename=filename)
    assert convert(folder)['images'][0]['file_name'] == 'a.jpg'


def test_missing_broken_and_repeated_images_are_left_out_and_named(folder):
    for stem in 'abcd':
        write_xml(folder, stem, [('dog', 1, 1, 2, 2)], filename='a.jpg' if stem == 'd' else None)
    images = make_image(folder.parent / 'images', 'a.jpg')
    (images / 'b.jpg').write_text('no image')
    content = convert(folder, '--image-dir', images)
    assert [i['file_name'] for i in content['images']] == ['a.jpg'] and len(boxes_of(content)) == 1
    assert '1 x image missing, left out: c.xml (c.jpg)' in content['printed']
    assert '1 x image not readable, left out: b.xml (b.jpg)' in content['printed']
    assert '1 x image annotated by an earlier XML, left out: d.xml (a.jpg, see a.xml)' in content['printed']


def test_a_file_name_that_no_file_can_have_loses_one_image(folder):
    write_xml(folder, 'a')
    write_xml(folder, 'b', filename='x' * 300 + '.jpg')
    content = convert(folder, '--image-dir', make_image(folder.parent / 'images', 'a.jpg'))
    assert [image['file_name'] for image in content['images']] == ['a.jpg']
    assert '1 x image missing, left out: b.xml' in content['printed']


def test_an_image_set_fixes_which_images_and_in_what_order(folder):
    for stem in ('a', 'b', 'c d'):
        write_xml(folder, stem)
    (folder.parent / 'set.txt').write_text('c d\na\na\nnone\n')
    content = convert(folder, '--image-set', folder.parent / 'set.txt')
    assert [(i['id'], i['file_name']) for i in content['images']] == [(1, 'c d.jpg'), (2, 'a.jpg')]
    assert '1 x id listed more than once, taken once: a' in content['printed']
    assert '1 x id without an XML, left out: none' in content['printed']


@pytest.mark.parametrize('text', [b'', b'<annotation>', b'<html/>', b'\xff\xfe', b'<?xml version="1.0" encoding="?"?>'])
def test_a_malformed_xml_is_left_out_and_named(folder, text):
    write_xml(folder, 'a')
    (folder / 'bad.xml').write_bytes(text)
    content = convert(folder)
    assert len(content['images']) == 1 and '1 x XML not readable, left out: bad.xml' in content['printed']


def test_only_the_first_few_names_of_a_problem_are_shown(folder):
    for number in range(9):
        write_xml(folder, f'n{number}', [('dog', 5, 5, 1, 1)])
    line = next(line for line in convert(folder)['printed'].splitlines() if 'without area' in line)
    assert line.startswith('9 x ') and line.count('.xml') == 5 and line.endswith('; ...')


def test_mmdet_loads_what_was_written_and_marks_the_difficult(folder):
    write_xml(folder, 'a', [('dog', 11, 6, 20, 30)], extra=tags(difficult=1))
    write_xml(folder, 'b', [('dog', 1, 1, 10, 10), ('cat', 5, 5, 20, 30)])
    convert(folder)
    dataset = CocoDataset(metainfo=dict(classes=('cat', 'dog')), ann_file=str(folder.parent / 'out.json'),
                          data_prefix=dict(img='images'), pipeline=[])
    hard, easy = (dataset.get_data_info(n)['instances'] for n in range(2))
    assert hard == [{'bbox': [10, 5, 20, 30], 'bbox_label': 1, 'ignore_flag': 1}]
    assert [(i['bbox_label'], i['ignore_flag']) for i in easy] == [(1, 0), (0, 0)]


def test_strict_writes_nothing_when_there_is_a_problem(folder):
    write_xml(folder, 'a', [('dog', 5, 5, 1, 1)])
    with pytest.raises(SystemExit, match='1 problems and --strict: nothing was written'):
        convert(folder, '--strict')
    assert list(folder.parent.iterdir()) == [folder]


def test_an_existing_file_is_replaced_only_with_overwrite(folder):
    write_xml(folder, 'a')
    (folder.parent / 'out.json').write_text('"mine"')
    with pytest.raises(SystemExit, match='--overwrite'):
        convert(folder)
    assert (folder.parent / 'out.json').read_text() == '"mine"'
    assert convert(folder, '--overwrite')['images']


def test_a_write_that_fails_leaves_the_old_file_and_no_other(folder, monkeypatch):
    write_xml(folder, 'a')
    (folder.parent / 'out.json').write_text('"mine"')
    monkeypatch.setattr(voc_to_coco.os, 'replace', Mock(side_effect=OSError(28, 'No space left')))
    with pytest.raises(SystemExit, match='cannot write .*out.json: No space left'):
        convert(folder, '--overwrite')
    assert sorted(p.name for p in folder.parent.iterdir()) == ['out.json', 'xml']
    assert (folder.parent / 'out.json').read_text() == '"mine"'


@pytest.mark.parametrize('option, name', [('--image-set', 'no.txt'), ('--image-dir', 'no')])
def test_an_argument_that_names_nothing_is_refused_by_name(folder, option, name):
    write_xml(folder, 'a')
    with pytest.raises(SystemExit, match=name):
        convert(folder, option, folder.parent / name)


def test_from_the_shell_an_unwritable_place_is_one_line_and_exit_code_1(folder):
    write_xml(folder, 'a')
    out = folder / 'a.xml' / 'out.json'
    result = subprocess.run([sys.executable, SCRIPT, folder, out], capture_output=True, text=True)
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 1 and str(out) in result.stderr
