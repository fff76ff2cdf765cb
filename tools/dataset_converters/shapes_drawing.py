"""Drawing for make_shapes.py: scenes of shapes that hide each other on a cluttered backdrop. No files, no arguments.

All randomness comes from the generator that is passed in. Pixels are [x, x + 1): a box ends where its last pixel ends.
"""
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SUPERSAMPLING = 4
MIN_SIZE = 8
MAX_SIZE_SHARE = 0.9
EMPTY_SHARE = 0.05
MIN_VISIBILITY = 0.5
MIN_VISIBLE_SIDE = 4
MIN_CONTRAST = 70
ATTEMPTS = 20


class Crowd(NamedTuple):
    """How many objects an image asks for, and how large they are.

    Attributes:
        max_objects (int): The number is even between 1 and this, but for the images without any.
        min_size_share (float): Smallest size in shares of the image's shorter side; never below MIN_SIZE.
    """
    max_objects: int = 12
    min_size_share: float = 0


MANY = Crowd()
FEW_LARGE = Crowd(max_objects=2, min_size_share=0.4)


class Shape(NamedTuple):
    """A placed object.

    Attributes:
        category (int): Index into CLASSES.
        outlines (list[ndarray]): Corners of the polygon and of its hole if it has one, xy in pixels, each (n, 2).
        rows, cols (slice): The whole pixels that the object touches inside the image.
        mask (ndarray): The object in these pixels, supersampled, bool.
        colours (ndarray): RGB at the two ends of its shading, (2, 3); chosen when it is placed.
    """
    category: int
    outlines: list
    rows: slice
    cols: slice
    mask: np.ndarray
    colours: np.ndarray = None


class Scene(NamedTuple):
    """An image before camera effects.

    Attributes:
        backdrop, image (ndarray): Without and with the objects, RGB in [0, 255], float, (h, w, 3).
        owners (ndarray): Supersampled; 0 for the backdrop, n for the n-th shape, (4h, 4w).
        shapes (list[Shape]): From the bottom to the top.
    """
    backdrop: np.ndarray
    image: np.ndarray
    owners: np.ndarray
    shapes: list


# ---- Outlines, centred on the origin at any scale


def ray_polygon(radii, angles=None):
    """Corners at these radii, by default at equal angles; the first one points up."""
    angles = np.arange(len(radii)) * 2 * np.pi / len(radii) if angles is None else angles
    return np.asarray(radii)[:, None] * np.stack([np.sin(angles), -np.cos(angles)], axis=1)


def circle(rng):
    return [ray_polygon(np.ones(64))]


def rectangle(rng):
    return [np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * [1, rng.uniform(0.4, 1)]]


def triangle(rng):
    return [ray_polygon(np.ones(3), np.arange(3) * 2 * np.pi / 3 + rng.uniform(-0.3, 0.3, 3))]


def star(rng):
    return [ray_polygon(np.tile([1, rng.uniform(0.38, 0.5)], 5))]


def ring(rng):
    return [ray_polygon(np.ones(64)), ray_polygon(np.full(64, rng.uniform(0.45, 0.7)))]


def cross(rng):
    a = rng.uniform(0.25, 0.38)
    arm = np.array([[-a, -a], [-a, -1], [a, -1]])
    quarter_turn = np.array([[0, 1], [-1, 0]])
    return [np.concatenate([arm @ np.linalg.matrix_power(quarter_turn, n) for n in range(4)])]


OUTLINES = (circle, rectangle, triangle, star, ring, cross)
CLASSES = tuple(outline.__name__ for outline in OUTLINES)


def turned(outlines, rng):
    """Squeezed along one axis by up to a quarter, then turned by up to 30 degrees either way."""
    cos, sin = np.cos(angle := rng.uniform(-np.pi / 6, np.pi / 6)), np.sin(angle)
    matrix = np.array([[rng.uniform(0.75, 1), 0], [0, 1]]) @ np.array([[cos, sin], [-sin, cos]])
    return [outline @ matrix for outline in outlines]


def sized(outlines, size, centre):
    """Scaled so that the longer side of the box is `size`, the box centred on `centre` (xy), all in pixels."""
    low, high = outlines[0].min(axis=0), outlines[0].max(axis=0)
    return [(outline - (low + high) / 2) * size / (high - low).max() + centre for outline in outlines]


def polygon_area(corners):
    """Shoelace formula."""
    x, y = corners.T
    return abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


# ---- Drawing


def coverage(mask):
    """Share of each pixel that a supersampled mask (0 and 255, PIL) covers, (h, w, 1)."""
    return np.asarray(mask.reduce(SUPERSAMPLING), dtype=np.float64)[..., None] / 255


def rasterise(outlines, rows, cols):
    """Supersampled mask of the polygon minus its hole within these pixels."""
    mask = Image.new('L', ((cols.stop - cols.start) * SUPERSAMPLING, (rows.stop - rows.start) * SUPERSAMPLING))
    for fill, outline in zip((255, 0), outlines, strict=False):
        corners = (outline - [cols.start, rows.start]) * SUPERSAMPLING - 0.5  # PIL counts from the centres of pixels
        ImageDraw.Draw(mask).polygon([tuple(corner) for corner in corners], fill=fill)
    return mask


def touched_pixels(outline, height, width):
    """Rows and columns of the image that an outline reaches."""
    low = np.maximum(np.floor(outline.min(axis=0)).astype(int) - 1, 0)
    high = np.minimum(np.ceil(outline.max(axis=0)).astype(int) + 1, (width, height))
    return slice(low[1], high[1]), slice(low[0], high[0])


def supersampled(*slices):
    return tuple(slice(s.start * SUPERSAMPLING, s.stop * SUPERSAMPLING) for s in slices)


def fill(shape, cols):
    """Colours of a shape in these columns, (1, w, 3): its shading runs from left to right."""
    shade = (np.arange(cols.start, cols.stop) + 0.5 - shape.cols.start) / (shape.cols.stop - shape.cols.start)
    return (shape.colours[0] + shade[:, None] * (shape.colours[1] - shape.colours[0]))[None]


def render(scene, rows, cols):
    """These pixels of a scene: each shape by the share of the pixel that it owns, so nothing hidden shines through."""
    owners = scene.owners[supersampled(rows, cols)]
    backdrop = scene.backdrop[rows, cols]
    image = backdrop.copy()
    for number in set(np.unique(owners).tolist()) - {0}:
        owned = Image.fromarray((owners == number).view(np.uint8) * 255)
        image += (fill(scene.shapes[number - 1], cols) - backdrop) * coverage(owned)
    return image


def draw_backdrop(rng, height, width):
    """A ramp between two colours, smooth noise and, in half of the images, stripes; then distractors."""
    y, x = np.mgrid[:height, :width] / max(height, width)
    direction = rng.uniform(0, 2 * np.pi, 2)
    ramp = (x * np.cos(direction[0]) + y * np.sin(direction[0]))[..., None]
    image = rng.uniform(20, 110, 3) + (ramp - ramp.mean()) * rng.uniform(-60, 60, 3)
    cells = rng.integers(0, 256, (*rng.integers(2, 24, 2), 3), dtype=np.uint8)
    smooth = Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC)
    image += (np.asarray(smooth) - 127.5) * rng.uniform(0.03, 0.12)
    if rng.random() < 0.5:
        wave = np.sin((x * np.cos(direction[1]) + y * np.sin(direction[1])) * rng.uniform(15, 150))
        image += np.clip(wave * rng.uniform(1, 5), -1, 1)[..., None] * rng.uniform(-12, 12, 3)
    for _ in range(rng.integers(0, 9)):
        (draw_scribble, draw_blob)[rng.integers(2)](rng, image)
    return np.clip(image, 0, 255)


def draw_scribble(rng, image):
    """An open stroke that bends a little or a lot (straight line, arc, scrawl), in place."""
    height, width = image.shape[:2]
    mask = Image.new('L', (width * SUPERSAMPLING, height * SUPERSAMPLING))
    num_points = rng.integers(2, 24)
    heading = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(rng.uniform(-0.3, 0.3), rng.uniform(0, 0.7), num_points))
    steps = np.stack([np.cos(heading), np.sin(heading)], axis=1) * rng.uniform(0.3, 1) * max(height, width) / num_points
    points = (rng.uniform(0, 1, 2) * [width, height] + np.cumsum(steps, axis=0)) * SUPERSAMPLING
    ImageDraw.Draw(mask).line([tuple(p) for p in points], 255, int(rng.integers(3, 3 * SUPERSAMPLING)), joint='curve')
    image += (rng.uniform(0, 255, 3) - image) * coverage(mask) * rng.uniform(0.4, 1)


def draw_blob(rng, image):
    """A lumpy patch with a soft edge, in place."""
    height, width = image.shape[:2]
    angles = np.arange(48) * 2 * np.pi / 48
    waves = [rng.uniform(0.1, 0.3) * np.sin(n * angles + rng.uniform(0, 2 * np.pi)) for n in (2, 3, 5)]
    size = np.exp(rng.uniform(np.log(2 * MIN_SIZE), np.log(min(height, width) / 2)))
    outlines = sized([ray_polygon(1 + sum(waves))], size, rng.uniform(0, 1, 2) * [width, height])
    sharp = rasterise(outlines, slice(0, height), slice(0, width)).reduce(SUPERSAMPLING)
    soft = sharp.filter(ImageFilter.GaussianBlur(float(size) / 8))
    image += (rng.uniform(0, 255, 3) - image) * (np.asarray(soft)[..., None] / 255) * rng.uniform(0.4, 1)


def camera(rng, image):
    """Some blur, gain and sensor noise; float in, uint8 out."""
    picture = Image.fromarray(np.rint(np.clip(image, 0, 255)).astype(np.uint8))
    blurred = np.asarray(picture.filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.7))), dtype=np.float64)
    noisy = (blurred - 128) * rng.uniform(0.75, 1.1) + 128 + rng.normal(0, rng.uniform(0, 10), image.shape)
    return np.rint(np.clip(noisy, 0, 255)).astype(np.uint8)


# ---- Scenes


def distinct_colours(rng, beneath):
    """An RGB shading that stands out from nearly all of what lies beneath; the best of some draws."""
    every = max(1, beneath.shape[0] * beneath.shape[1] // 500)
    beneath = beneath.reshape(-1, 3)[::every]

    def contrast(colours):
        return np.percentile(np.linalg.norm(beneath - colours.mean(axis=0), axis=-1), 10)

    draws = (rng.uniform(90, 235, 3) + np.outer([-1, 1], rng.uniform(-20, 20, 3)) for _ in range(ATTEMPTS))
    best = next(draws)
    for colours in draws:
        if contrast(best) >= MIN_CONTRAST:
            break
        best = max(best, colours, key=contrast)
    return best


def propose_shape(rng, height, width, crowd):
    """An object of random class, size, pose and place; its centre is never closer to an edge than a quarter of it."""
    category = int(rng.integers(len(OUTLINES)))
    shorter = min(height, width)
    size = rng.uniform(max(MIN_SIZE, crowd.min_size_share * shorter)**0.5, (MAX_SIZE_SHARE * shorter)**0.5)**2
    centre = rng.uniform(size / 4, np.array([width, height]) - size / 4)
    outlines = sized(turned(OUTLINES[category](rng), rng), size, centre)
    rows, cols = touched_pixels(outlines[0], height, width)
    return Shape(category, outlines, rows, cols, np.asarray(rasterise(outlines, rows, cols)) > 0)


def try_to_place(rng, scene, shape):
    """Put a shape on top of a scene, in place, unless too little would be seen of it or of one that it hides."""
    owners = scene.owners[supersampled(shape.rows, shape.cols)]
    before, number = owners.copy(), len(scene.shapes) + 1
    colours = distinct_colours(rng, scene.image[shape.rows, shape.cols])
    scene.shapes.append(shape._replace(colours=colours))
    owners[shape.mask] = number
    if all(is_seen(scene, n) for n in {number, *before[shape.mask].tolist()} - {0}):
        scene.image[shape.rows, shape.cols] = render(scene, shape.rows, shape.cols)
        return True
    owners[:] = before
    scene.shapes.pop()
    return False


def is_seen(scene, number):
    box, _, visibility = visible_extent(scene, number)
    return visibility >= MIN_VISIBILITY and min(box[2:]) >= MIN_VISIBLE_SIDE


def compose(rng, height, width, crowd=MANY):
    """A backdrop and the shapes on it."""
    backdrop = draw_backdrop(rng, height, width)
    owners = np.zeros((height * SUPERSAMPLING, width * SUPERSAMPLING), dtype=np.uint8)
    scene = Scene(backdrop, backdrop.copy(), owners, [])
    wanted = 0 if rng.random() < EMPTY_SHARE else rng.integers(1, crowd.max_objects + 1)
    for _ in range(wanted):
        any(try_to_place(rng, scene, propose_shape(rng, height, width, crowd)) for _ in range(ATTEMPTS))
    return scene


def visible_extent(scene, number):
    """What is seen of the n-th shape (from 1).

    Returns:
        tuple: Box (xywh in pixels), area in square pixels, share of the whole object's area.
    """
    shape = scene.shapes[number - 1]
    seen = scene.owners[supersampled(shape.rows, shape.cols)] == number
    (rows,), (cols,) = np.nonzero(seen.any(axis=1)), np.nonzero(seen.any(axis=0))
    if not len(rows):
        return (0.0, 0.0, 0.0, 0.0), 0.0, 0.0
    x, y = cols[0] / SUPERSAMPLING + shape.cols.start, rows[0] / SUPERSAMPLING + shape.rows.start
    w, h = (cols[-1] + 1 - cols[0]) / SUPERSAMPLING, (rows[-1] + 1 - rows[0]) / SUPERSAMPLING
    area = seen.sum() / SUPERSAMPLING**2
    whole = polygon_area(shape.outlines[0]) - sum(polygon_area(hole) for hole in shape.outlines[1:])
    return tuple(float(v) for v in (x, y, w, h)), float(area), min(float(area / whole), 1.0)
