"""What is drawn of the boxes' ways, seen in the pixels."""

import numpy as np
import pytest
from PIL import Image

from diffusiondet_runtime.drawing import colour_of
from mmdet_diffusion.visualization import Moment, draw_moment, draw_story, write_animation
from mmdet_diffusion.visualization.path_drawing import CAPTION, MARGIN

BLACK = Image.new('RGB', (64, 48))


def moment(score=1.0, becomes=0.9, renewed=False, label=2, step=0, stage=0, box=(8, 8, 40, 30)):
    array = np.array
    return Moment(999, step, stage, array([box], dtype=np.float32), array([score]), array([label]), array([becomes]),
                  array([renewed]))


def pixels(image):
    return np.asarray(image).astype(int)


def test_a_box_has_the_colour_of_what_it_becomes_and_is_fainter_while_unsure():
    sure, unsure = (pixels(draw_moment(BLACK, moment(score), 0.5))[8, 20] for score in (1.0, 0.1))
    assert tuple(sure) == colour_of(2)
    assert 0 < unsure.sum() < 0.5 * sure.sum()
    assert (pixels(draw_moment(BLACK, moment(), 0.5))[20, 20] == 0).all()  # boxes are not filled


def test_what_becomes_nothing_is_grey_and_dashed_where_it_was_renewed():
    whole, dashed = (pixels(draw_moment(BLACK, moment(becomes=0.2, renewed=renewed), 0.5))[8, 8:40]
                     for renewed in (False, True))
    assert (whole == whole[:, :1]).all() and (whole > 0).all()
    assert 0.3 < (dashed.sum(-1) > 0).mean() < 0.8


@pytest.mark.parametrize('box', [(5, 5, 5, 20), (9, 9, 3, 3), (float('nan'), 0, 5, 5)])
def test_boxes_without_area_are_left_out(box):
    assert not pixels(draw_moment(BLACK, moment(box=box), 0.5)).any()


@pytest.fixture
def way():
    return [moment(step=step, stage=stage, box=(8 + 4 * stage, 8, 40, 30), renewed=step > 0)
            for step in range(2) for stage in range(4)]


def test_the_story_has_a_row_a_step_from_noise_to_the_last_stage(way):
    image = draw_story(BLACK, way, 0.5, columns=3)
    assert image.size == (3 * (64 + MARGIN) + MARGIN, 2 * (48 + CAPTION + MARGIN) + MARGIN)
    for column, left in enumerate((8, 16, 20)):  # noise, stage 2, stage 3
        row = pixels(image)[MARGIN + CAPTION + 20, MARGIN + column * (64 + MARGIN):][:64]
        assert row[left].any() and not row[left - 1].any()


@pytest.mark.parametrize('name', ['way.webp', 'way.gif'])
def test_the_same_way_gives_the_same_bytes_of_many_frames(way, tmp_path, name):
    written = write_animation(BLACK, way, 0.5, tmp_path / name, 2**20)
    content = (tmp_path / name).read_bytes()
    assert written == len(content) and [file.name for file in tmp_path.iterdir()] == [name]
    assert write_animation(BLACK, way, 0.5, tmp_path / name, 2**20) and (tmp_path / name).read_bytes() == content
    with Image.open(tmp_path / name) as image:
        assert image.n_frames > 8
        first = pixels(image.convert('RGB'))
        image.seek(image.n_frames - 1)
        assert np.abs(pixels(image.convert('RGB')) - first).max() > 100


@pytest.mark.parametrize('name', ['way.webp', 'way.gif'])
def test_a_file_too_large_is_made_smaller_or_refused_before_it_is_written(way, tmp_path, name):
    noisy = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8))
    free = write_animation(noisy, way, 0.5, tmp_path / name, 2**20)
    assert write_animation(noisy, way, 0.5, tmp_path / name, free - 1) < free
    before = (tmp_path / name).read_bytes()
    with pytest.raises(ValueError, match='at the lowest quality; allow more'):
        write_animation(noisy, way, 0.5, tmp_path / name, 100)
    assert (tmp_path / name).read_bytes() == before


def test_another_ending_is_refused(way, tmp_path):
    with pytest.raises(ValueError, match=r'an animation is a .webp or a .gif, got way.mp4'):
        write_animation(BLACK, way, 0.5, tmp_path / 'way.mp4', 100)
