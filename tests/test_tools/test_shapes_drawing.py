"""tools/dataset_converters/shapes_drawing.py, by which make_shapes.py draws."""
import importlib.util
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

SCRIPT = Path(__file__).resolve().parents[2] / 'tools' / 'dataset_converters' / 'shapes_drawing.py'
spec = importlib.util.spec_from_file_location('shapes_drawing', SCRIPT)
drawing = importlib.util.module_from_spec(spec)
spec.loader.exec_module(drawing)


@pytest.fixture(scope='module')
def scenes():
    return [drawing.compose(np.random.default_rng([7, n]), 96 + n % 3 * 16, 128) for n in range(80)]


def objects_of(scenes):
    """(scene, number, box, area, visibility) of every object."""
    for scene in scenes:
        for number in range(1, len(scene.shapes) + 1):
            yield scene, number, *drawing.visible_extent(scene, number)


def render(scene):
    height, width = scene.backdrop.shape[:2]
    return drawing.render(scene, slice(0, height), slice(0, width))


def change_made_by(scene, number):
    """What the n-th object changes in the image, (h, w, 3): its absence lets those beneath it be seen."""
    owners = np.zeros_like(scene.owners)
    for n, shape in enumerate(scene.shapes, start=1):
        if n != number:
            owners[drawing.supersampled(shape.rows, shape.cols)][shape.mask] = n
    return scene.image - render(scene._replace(owners=owners))


def test_a_box_ends_in_the_outermost_pixels_that_the_object_changes(scenes):
    for scene, number, (x, y, w, h), *_ in islice(objects_of(scenes), 300):
        changed = np.abs(change_made_by(scene, number)).max(axis=2) > 1e-6
        rows, cols = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
        assert (cols[0], rows[0]) == (np.floor(x), np.floor(y))
        assert (cols[-1] + 1, rows[-1] + 1) == (np.ceil(x + w), np.ceil(y + h))


def test_an_image_drawn_bit_by_bit_is_the_one_drawn_at_once(scenes):
    assert all(np.allclose(render(scene), scene.image) for scene in scenes)


def test_an_area_is_the_number_of_visible_pixels_within_the_box(scenes):
    for scene, number, (x, y, w, h), area, _ in objects_of(scenes):
        owned = scene.owners == number
        inside = owned[round(4 * y):round(4 * (y + h)), round(4 * x):round(4 * (x + w))]
        assert 0 < area == owned.sum() / 16 == inside.sum() / 16


def test_boxes_lie_inside_the_image(scenes):
    for scene, _, (x, y, w, h), *_ in objects_of(scenes):
        height, width = scene.image.shape[:2]
        assert 0 <= x < x + w <= width and 0 <= y < y + h <= height


def test_sizes_cover_8_pixels_to_most_of_the_image(scenes):
    sides = np.array([max(box[2:]) for _, _, box, *_ in objects_of(scenes)])
    assert sides.min() < 10 and sides.max() > 70
    assert 0.1 < (sides < 16).mean() < 0.5 and 0.1 < (sides > 40).mean() < 0.5


def test_every_class_has_a_tenth_of_the_objects_or_more(scenes):
    counts = Counter(shape.category for scene in scenes for shape in scene.shapes)
    assert len(counts) == len(drawing.CLASSES) == 6
    assert min(counts.values()) > 0.1 * sum(counts.values())


def test_some_images_are_empty_and_none_holds_more_than_twelve():
    counts = Counter(len(drawing.compose(np.random.default_rng(n), 48, 48).shapes) for n in range(150))
    assert 1 <= counts[0] <= 20
    assert set(counts) <= set(range(13)) and max(counts) > 8


def test_half_of_each_object_or_more_is_in_sight(scenes):
    for scene, number, *_ in objects_of(scenes):
        outlines = [outline + 80 for outline in scene.shapes[number - 1].outlines]  # clear of the edges of the image
        whole = drawing.rasterise(outlines, slice(0, 300), slice(0, 300))
        assert (scene.owners == number).sum() >= 0.47 * (np.asarray(whole) > 0).sum()  # 0.03: edges, of 8 px objects


def test_objects_hide_parts_of_each_other(scenes):
    hidden = [(scene.owners[drawing.supersampled(s.rows, s.cols)] != n)[s.mask].any()
              for scene in scenes for n, s in enumerate(scene.shapes, start=1)]
    assert 0.15 < np.mean(hidden) < 0.6


def test_an_object_stands_out_from_what_is_beneath(scenes):
    differences = []
    for scene, number, *_ in islice(objects_of(scenes), 300):
        seen = np.asarray(Image.fromarray((scene.owners == number).view(np.uint8) * 255).reduce(4)) == 255
        change = np.linalg.norm(change_made_by(scene, number)[seen], axis=-1)
        differences.append(np.median(change) if seen.any() else np.inf)
    assert np.percentile(differences, 2) > 50


def test_a_ring_shows_what_is_behind_its_hole():
    outlines = drawing.sized(drawing.ring(np.random.default_rng(0)), 40, np.array([30, 30]))
    rows, cols = drawing.touched_pixels(outlines[0], 60, 60)
    mask = np.asarray(drawing.rasterise(outlines, rows, cols)) > 0
    scene = drawing.Scene(np.zeros((60, 60, 3)), np.zeros((60, 60, 3)), np.zeros((240, 240), np.uint8), [])
    assert drawing.try_to_place(np.random.default_rng(0), scene, drawing.Shape(4, outlines, rows, cols, mask))
    assert scene.image[30, 30].max() == 0 and scene.image[30, 12].max() > 20


@given(st.integers(0, 2**32), st.sampled_from(drawing.OUTLINES), st.floats(8, 300), st.floats(-50, 50))
def test_an_outline_has_the_size_and_the_centre_asked_for(seed, outline, size, centre):
    rng = np.random.default_rng(seed)
    corners = drawing.sized(drawing.turned(outline(rng), rng), size, np.array([centre, -centre]))[0]
    assert np.ptp(corners, axis=0).max() == pytest.approx(size)
    assert np.allclose((corners.min(axis=0) + corners.max(axis=0)) / 2, [centre, -centre])


@given(st.integers(0, 2**32), st.sampled_from(drawing.OUTLINES), st.floats(20, 60))
def test_a_rasterised_outline_covers_its_area(seed, outline, size):
    rng = np.random.default_rng(seed)
    outlines = drawing.sized(drawing.turned(outline(rng), rng), size, np.array([32, 32]))
    area = drawing.polygon_area(outlines[0]) - sum(map(drawing.polygon_area, outlines[1:]))
    drawn = (np.asarray(drawing.rasterise(outlines, slice(0, 64), slice(0, 64))) > 0).sum() / 16
    # Pillow fills what an edge touches: half of a drawn pixel along the whole outline.
    edges = sum(np.linalg.norm(corners - np.roll(corners, 1, axis=0), axis=1).sum() for corners in outlines)
    assert drawn == pytest.approx(area, rel=0.06, abs=0.5 / drawing.SUPERSAMPLING * edges)
