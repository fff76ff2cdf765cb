"""Draws followed boxes on their picture: as a row of panels, and as an animation."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from diffusiondet_runtime.drawing import colour_of

from ..whole_file import write_whole_file
from .box_paths import Moment

NOISE = (205, 205, 205)  # of boxes that become nothing
FAINTEST, FAINT_NOISE = 60, 70  # opacity, of 255: a box that will be an object but is unsure; one that will be none
DARKENED = 0.2  # share of black in the picture
MARGIN, CAPTION = 4, 16  # pixels between panels and above them
BETWEEN, PAUSE = 3, 12  # frames from one moment to the next; frames that start and end stand still
FRAME_MS = 70
QUALITIES = (85, 70, 55, 40, 25)  # of WebP, tried until the file is small enough


def draw_moment(picture: Image.Image, moment: Moment, score_thr: float) -> Image.Image:
    """The picture, darkened, with the boxes of a moment.

    A box that becomes an object has its class's colour from the start, the stronger the surer it is; the others are
    thin and grey, dashed where they were renewed for this step.

    Args:
        picture (Image.Image): RGB, of the size that boxes are in.
        moment (Moment): boxes in pixels of the picture.
        score_thr (float): of what counts as an object.

    Returns:
        Image.Image: RGB, of the same size.
    """
    canvas = Image.blend(picture, Image.new('RGB', picture.size), DARKENED).convert('RGBA')
    veil = Image.new('RGBA', picture.size)
    pen, thick = ImageDraw.Draw(veil), max(2, round(max(picture.size) / 160))
    for index in np.argsort(moment.becomes, kind='stable'):  # the surest on top
        left, top, right, bottom = moment.bboxes[index].tolist()
        if not (right > left and bottom > top):
            continue
        if moment.becomes[index] > score_thr:
            opacity = round(FAINTEST + (255 - FAINTEST) * min(1.0, float(moment.scores[index])))
            pen.rectangle((left, top, right, bottom), outline=(*colour_of(int(moment.labels[index])), opacity),
                          width=thick)
        elif moment.renewed[index]:
            _dashed(pen, (left, top, right, bottom), (*NOISE, FAINT_NOISE))
        else:
            pen.rectangle((left, top, right, bottom), outline=(*NOISE, FAINT_NOISE), width=1)
    return Image.alpha_composite(canvas, veil).convert('RGB')


def _dashed(pen: ImageDraw.ImageDraw, box: tuple[float, ...], colour: tuple[int, ...], dash: int = 4) -> None:
    left, top, right, bottom = map(round, box)
    for x in range(left, right, 2 * dash):
        for y in (top, bottom):
            pen.line((x, y, min(x + dash, right), y), fill=colour)
    for y in range(top, bottom, 2 * dash):
        for x in (left, right):
            pen.line((x, y, x, min(y + dash, bottom)), fill=colour)


def caption(moment: Moment) -> str:
    """Where on the way a moment is."""
    place = 'noise' if moment.stage == 0 else f'stage {moment.stage}'
    return f'step {moment.step + 1}, t = {moment.t}, {place}'


def draw_story(picture: Image.Image, moments: Sequence[Moment], score_thr: float, columns: int = 4) -> Image.Image:
    """Panels from noise at the left to objects at the right: one row a step.

    Args:
        picture (Image.Image): RGB, of the size that boxes are in.
        moments (Sequence[Moment]): of :func:`box_paths`.
        score_thr (float): see :func:`draw_moment`.
        columns (int): of each step: its noise, its last stage and what fits between.

    Returns:
        Image.Image: RGB, on white.
    """
    number_of_steps, number_of_stages = moments[-1].step + 1, moments[-1].stage
    chosen = np.unique(np.linspace(0, number_of_stages, max(2, columns)).round().astype(int))
    width, height = picture.width + MARGIN, picture.height + CAPTION + MARGIN
    canvas = Image.new('RGB', (len(chosen) * width + MARGIN, number_of_steps * height + MARGIN), 'white')
    pen = ImageDraw.Draw(canvas)
    for step in range(number_of_steps):
        for column, stage in enumerate(chosen.tolist()):
            moment = moments[step * (number_of_stages + 1) + stage]
            x, y = MARGIN + column * width, MARGIN + step * height
            pen.text((x, y), caption(moment), fill='black')
            canvas.paste(draw_moment(picture, moment, score_thr), (x, y + CAPTION))
    return canvas


def write_animation(picture: Image.Image, moments: Sequence[Moment], score_thr: float, path: Path,
                    most_bytes: int) -> int:
    """Write the way of the boxes as an animated WebP or GIF, by the ending of ``path``.

    Args:
        picture (Image.Image): RGB, of the size that boxes are in.
        moments (Sequence[Moment]): of :func:`box_paths`.
        score_thr (float): see :func:`draw_moment`.
        path (Path): is written whole or not at all; the same moments give the same bytes.
        most_bytes (int): of the file. A WebP is compressed, a GIF made smaller until it fits.

    Returns:
        int: bytes written.

    Raises:
        ValueError: if the ending is another one, or the file cannot be made as small.
    """
    kind = path.suffix.lower()
    if kind not in ('.gif', '.webp'):
        raise ValueError(f'an animation is a .webp or a .gif, got {path.name}')
    frames = animation_frames(picture, moments, score_thr)
    for quality in QUALITIES:
        content = _encoded(frames, kind, quality)
        if len(content) <= most_bytes:
            break
    else:
        raise ValueError(f'the animation takes {len(content) / 2**20:.1f} MiB at the lowest quality; allow more, or '
                         'take fewer steps or a smaller picture')
    write_whole_file(path, content)
    return len(content)


def animation_frames(picture: Image.Image, moments: Sequence[Moment], score_thr: float) -> list[Image.Image]:
    """Pictures of moments and of what is between them; boxes that are renewed jump."""
    frames = []
    for now, following in zip(moments, [*moments[1:], None], strict=True):
        still = PAUSE if following is None or now is moments[0] else 1
        frames += [_captioned(draw_moment(picture, now, score_thr), now)] * still
        if following is None:
            break
        jumps = following.renewed if following.stage == 0 else np.zeros_like(now.renewed)
        for part in np.arange(1, BETWEEN) / BETWEEN:
            moved = now.bboxes + (following.bboxes - now.bboxes) * np.where(jumps, 0, part)[:, None]
            between = now._replace(bboxes=moved, scores=now.scores + (following.scores - now.scores) * part)
            frames.append(_captioned(draw_moment(picture, between, score_thr), now))
    return frames


def _captioned(image: Image.Image, moment: Moment) -> Image.Image:
    ImageDraw.Draw(image).text((4, 3), caption(moment), fill='white', stroke_width=1, stroke_fill='black')
    return image


def _encoded(frames: list[Image.Image], kind: str, quality: int) -> bytes:
    buffer = io.BytesIO()
    if kind == '.webp':
        settings = dict(format='WEBP', quality=quality, method=4)
    else:
        share = (quality / QUALITIES[0])**0.5
        size = [max(1, round(side * share)) for side in frames[0].size]
        frames = [frame.resize(size, Image.Resampling.LANCZOS) for frame in frames]
        palette = frames[-1].quantize(64)  # of one for all a GIF is smaller, and made faster
        frames = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
        settings = dict(format='GIF', optimize=False)
    frames[0].save(buffer, save_all=True, append_images=frames[1:], duration=FRAME_MS, loop=0, **settings)
    return buffer.getvalue()
