"""Detections drawn on a picture: diffusiondet_runtime/drawing.py."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from diffusiondet_runtime.drawing import colour_of, draw_detections

NAMES = ('cat', 'dog')
RED, BLUE = colour_of(0), colour_of(1)
DARK = 250  # the three channels together: less than the picture and any colour of a class


def grey(height=100, width=400):
    return np.full((height, width, 3), 128, np.uint8)


def outline(bbox, colour=RED, shape=(100, 400)):
    """A box alone as Pillow draws it, one pixel wide."""
    image = Image.new('RGB', shape[::-1], (128, ) * 3)
    ImageDraw.Draw(image).rectangle(bbox, outline=colour)
    return np.asarray(image)


def test_the_outline_is_pillow_s_and_the_label_stands_above_it():
    given = grey()
    drawn = draw_detections(given, [[200.2, 50.4, 300.0, 80.0]], [0.5], [0], NAMES)
    expected = outline((200, 50, 300, 80))
    assert (drawn[50:] == expected[50:]).all() and (given == 128).all()
    changed = np.argwhere((drawn[:50] != 128).any(-1))
    assert changed[:, 0].max() == 49 and changed[:, 1].min() == 200
    assert (drawn[:50] == RED).all(-1).any() and (drawn[:50].sum(-1) < DARK).any()  # ground and letters


@pytest.mark.parametrize('bbox', [(-30.0, -20.0, 50.0, 60.0), (370.0, 70.0, 1e6, 1e6), (-5.0, -5.0, 405.0, 105.0)])
def test_what_is_outside_is_cut_off_and_the_label_is_inside(bbox):
    drawn = draw_detections(grey(), [bbox], [0.5], [1], NAMES)
    assert drawn.shape == (100, 400, 3)
    ground = (drawn == BLUE).all(-1)
    letters = drawn.sum(-1) < DARK
    assert letters.sum() > 10 and ground.any()
    places = np.argwhere(outline(bbox, colour=BLUE) != 128)
    assert len(places) == 0 or ground[tuple(places[:, :2].T)].mean() > 0.5


@pytest.mark.parametrize('bbox', [(5.0, 5.0, 5.0, 30.0), (float('nan'), 5.0, 50.0, 30.0), (1000.0, 20.0, 1100.0, 60.0),
                                  (20.0, -60.0, 90.0, -1.0)])
def test_boxes_of_no_area_and_outside_leave_the_picture_as_it_is(bbox):
    assert (draw_detections(grey(), [bbox], [0.5], [0], NAMES) == 128).all()


@pytest.mark.parametrize('bbox', [(10.6, 20.0, 11.4, 60.0), (10.0, 20.0, 10.4, 60.0)])
def test_a_box_thinner_than_a_pixel_is_drawn(bbox):
    drawn = draw_detections(grey(), [bbox], [0.5], [0], NAMES)
    assert (drawn[21:60, round(bbox[0])] == RED).all()


def test_the_surest_is_on_top():
    boxes = [[100.0, 40.0, 200.0, 90.0]] * 2
    for scores in ([0.9, 0.4], [0.4, 0.9]):
        drawn = draw_detections(grey(), boxes, scores, [0, 1], NAMES)
        assert (drawn[60, 100] == colour_of(int(np.argmax(scores)))).all()


def test_a_picture_smaller_than_the_label_is_drawn_on():
    drawn = draw_detections(grey(6, 9), [[1.0, 1.0, 7.0, 5.0]], [0.5], [0], NAMES)
    assert drawn.shape == (6, 9, 3) and (drawn != 128).any()


def test_thick_lines_lie_inside_the_box():
    drawn = draw_detections(grey(800, 1600), [[400.0, 300.0, 900.0, 700.0]], [0.5], [0], NAMES)
    assert (drawn[500, 400:404] == RED).all() and (drawn[500, 404] == 128).all()
    assert (drawn[697:701, 600] == RED).all() and (drawn[701, 600] == 128).all()
    small = draw_detections(grey(800, 1600), [[400.0, 300.0, 401.0, 700.0]], [0.5], [0], NAMES)
    assert np.argwhere((small[500] != 128).any(-1)).ravel().tolist() == [400, 401]
