"""The outcome of a contest as one page: tables, verdicts, plots, worst images."""

import base64
import contextlib
import csv
import functools
import html
import io
import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev

import numpy as np
from pycocotools.coco import COCO

from diffusiondet_runtime.errors import ExportError
from diffusiondet_runtime.pictures import read_picture

from ..whole_file import whole_file, write_whole_file
from .average_precision import not_exhaustive, scored_detections
from .bootstrap import difference, interval, sentence
from .contest import Outcome
from .detection_records import ImageDetections
from .error_types import KINDS, image_errors
from .ground_truth import num_objects
from .learning_curves import draw_curves

SHEET = 6  # worst images
CLASSES = 40  # rows of a table
SCORE = 0.3  # detections drawn above it


class ContestReport:
    """Tables of a contest, in words and figures.

    Args:
        outcomes (Sequence[Outcome]): at least one; the others are compared with the first.
        failures (Mapping[str, str]): what could not be tested, and why.
        truth (COCO): objects of the data set.
        machine (str): what it was measured on.
        num_draws (int): of the bootstrap.
    """

    def __init__(self, outcomes: Sequence[Outcome], failures: Mapping[str, str], truth: COCO, *, machine: str,
                 num_draws: int) -> None:
        self.outcomes, self.failures, self.truth, self.machine = outcomes, failures, truth, machine
        self.intervals = {one.name: interval(one.contestant, num_draws=num_draws) for one in outcomes}
        self.differences = {
            (a.name, b.name): difference(a.contestant, b.contestant, same_trainings=a.detector == b.detector,
                                         num_draws=num_draws)
            for place, a in enumerate(outcomes) for b in outcomes[place + 1:]}

    def verdicts(self) -> list[str]:
        """Every pair in words, the clear ones first."""
        found = sorted(self.differences.items(), key=lambda item: (not item[1].is_difference, -abs(item[1].value)))
        return [sentence(*names, value) for names, value in found]

    def accuracy(self) -> list[list[str]]:
        """Metrics with deviations over trainings and over sampling seeds, kept apart, and the interval over images."""
        names = list(dict.fromkeys(name for one in self.outcomes for name in one.metrics))
        rows = [['detector', *names, 'AP: 95 % over images', 'sd over trainings', 'sd over sampling seeds']]
        for one in self.outcomes:
            cells = [_mean(one.metrics[name]) if name in one.metrics else 'missing' for name in names]
            low, high = self.intervals[one.name][1:3]
            rows.append([one.name, *cells, f'{low:.3f} to {high:.3f}', *_deviations(one.metrics['AP'])])
        return rows

    @functools.cached_property
    def class_ap(self) -> dict[str, dict[str, float]]:
        """AP of each class by detector, mean over trainings and seeds."""
        values = {}
        for one in self.outcomes:
            runs = [matches.class_ap() for training in one.contestant.trainings for matches in training]
            values[one.name] = {label: mean(run[label] for run in runs) for label in runs[0]}
        return values

    def by_class(self) -> list[list[str]]:
        """AP of each class; where there are more than :data:`CLASSES`, of those in which detectors differ most."""
        values = self.class_ap
        objects = Counter(self.truth.cats[one['category_id']]['name'] for one in self.truth.anns.values()
                          if not one['iscrowd'])
        columns = {label: [of_one[label] for of_one in values.values()] for label in next(iter(values.values()))}
        classes = list(columns)
        if len(classes) > CLASSES:
            classes = sorted(classes, key=lambda label: min(columns[label]) - max(columns[label]))[:CLASSES]
        return [['class', 'objects', *values],
                *([label, str(objects[label]), *map(_value, columns[label])] for label in classes)]

    def costs(self) -> list[list[str]]:
        """The cost card."""
        rows = [['detector', 'ms p50', 'p90', 'p99', 'first call ms', 'GFLOPs', 'parameters', 'training s / iteration',
                 'peak MiB']]
        for one in self.outcomes:
            cost = one.cost
            rows.append([one.name, *(f'{1000 * cost[name]:.1f}' for name in ('p50', 'p90', 'p99', 'first')),
                         f'{cost["flops"] / 1e9:.2f}', f'{cost["parameters"] / 1e6:.2f} M',
                         _or_unknown(cost['training_seconds'], '.3f'), _or_unknown(cost.get('peak_memory'), 'd')])
        return rows

    def errors(self) -> list[list[str]]:
        """AP50 that each kind of error costs, with how many there are."""
        rows = [['detector', 'AP50', *KINDS]]
        for one in self.outcomes:
            found = one.errors
            rows.append([one.name, f'{found.ap50:.3f}', *(f'{found.lost[kind]:.3f} ({found.counts[kind]})'
                                                          for kind in KINDS)])
        return rows

    def errors_by_group(self) -> list[list[str]]:
        """Number of errors of each kind by size of the objects and crowding of the images."""
        rows = [['detector, group', 'objects', *KINDS]]
        for one in self.outcomes:
            groups = one.errors.by_size | one.errors.by_crowding
            rows += [[f'{one.name}, {group}', *map(str, counts.values())] for group, counts in groups.items()]
        return rows

    def mended(self) -> list[list[str]]:
        """What other settings of a detector mend against its first one; no row where there is one setting each."""
        rows = [['detector', 'against', 'objects found besides', 'found no more', *KINDS]]
        first = {}
        for one in self.outcomes:
            base = first.setdefault(one.detector, one)
            if base is one:
                continue
            before, after = np.array(base.errors.found), np.array(one.errors.found)
            changes = [f'{one.errors.counts[kind] - base.errors.counts[kind]:+d}' for kind in KINDS]
            rows.append([one.name, base.name, str((after & ~before).sum()), str((before & ~after).sum()), *changes])
        return rows

    def sections(self) -> list[tuple[str, str, list[list[str]]]]:
        """Title, what to know, table."""
        mended = self.mended()
        sections = [
            ('Accuracy', 'Means over trainings and sampling seeds; a deviation needs two.', self.accuracy()),
            ('By class', self._words_on_classes(), self.by_class()),
            ('Cost', f'Times of one image at a time, detectors in turn, without loading, on {self.machine}. The peak '
             'memory is that of a process that loads the detector and tests one image.', self.costs()),
            ('Errors', 'AP50 that each kind costs (number of errors), after TIDE, arXiv:2008.08115; first training, '
             'first seed.', self.errors()),
            ('Errors by size and crowding', 'Numbers of errors, by area (32 and 96 pixels squared; of a false '
             'detection that of the object that it would have, or else its own) and by the number of objects in the '
             'image.', self.errors_by_group()),
            ('What more boxes and steps mend', 'At IoU 0.5, first training, first seed: objects, and errors of each '
             'kind more or fewer.', mended),
        ]
        return sections if len(mended) > 1 else sections[:-1]

    def _words_on_classes(self) -> str:
        number = len(self.truth.cats)
        if number <= CLASSES:
            return 'AP.'
        return f'AP of the {CLASSES} classes of {number} in which detectors differ most; compare.json has all.'

    def markdown(self) -> str:
        """The page as text."""
        lines = ['# Comparison', '', f'{len(self.truth.imgs)} images, {num_objects(self.truth)} objects; all detectors '
                 'on the same ones.', '']
        lines += [f'- {verdict}' for verdict in self.verdicts()]
        lines += [f'- left out: {name} ({reason})' for name, reason in self.failures.items()]
        for title, words, rows in self.sections():
            lines += ['', f'## {title}', '', words, '', _line(rows[0]), _line(['---', *['---:'] * (len(rows[0]) - 1)]),
                      *map(_line, rows[1:])]
        return '\n'.join(lines) + '\n'

    def csv(self) -> str:
        """A line for each detector, training and seed."""
        file = io.StringIO()
        writer = csv.writer(file, lineterminator='\n')
        names = list(dict.fromkeys(name for one in self.outcomes for name in one.metrics))
        costs = list(self.outcomes[0].cost)
        writer.writerow(['detector', 'training', 'seed', *names, *costs])
        for one in self.outcomes:
            for training in range(len(one.metrics['AP'])):
                for seed in range(len(one.metrics['AP'][training])):
                    writer.writerow([one.name, training, seed, *(one.metrics[name][training][seed]
                                                                 if name in one.metrics else '' for name in names),
                                     *(one.cost.get(name) for name in costs)])
        return file.getvalue()

    def json(self) -> str:
        """All figures, unrounded."""
        content = dict(
            machine=self.machine, failures=dict(self.failures), verdicts=self.verdicts(),
            detectors=[dict(name=one.name, metrics=one.metrics, class_ap=self.class_ap[one.name], cost=one.cost,
                            errors=one.errors._asdict(), interval=self.intervals[one.name]._asdict())
                       for one in self.outcomes],
            differences=[dict(first=a, second=b, **found._asdict()) for (a, b), found in self.differences.items()])
        return json.dumps(content, indent=1) + '\n'


def write_contest(report: ContestReport, folder: Path) -> str:
    """Write ``compare.md``, ``.csv``, ``.json``, ``.html`` and the pictures in it; gives the text of the first."""
    text = report.markdown()
    pictures = {}
    if draw_curves({one.name: one.curves for one in report.outcomes}, folder / 'curves.png'):
        pictures['Learning curves'] = folder / 'curves.png'
    for place, one in enumerate(report.outcomes, start=1):
        path = folder / f'worst_{place}_{"".join(c if c.isalnum() else "_" for c in one.name)}.png'
        if draw_worst(one.records[0][0], report.truth, path):
            pictures[f'Worst images of {one.name}: objects left, detections above {SCORE} right'] = path
    for name, content in (('md', text), ('csv', report.csv()), ('json', report.json()),
                          ('html', _page(report, pictures))):
        write_whole_file(folder / f'compare.{name}', content.encode())
    return text


def draw_worst(images: Sequence[ImageDetections], truth: COCO, path: Path) -> bool:
    """Draw the images with the most errors, objects and detections side by side; False where no file is there."""
    import matplotlib.pyplot as plt
    worst = sorted(range(len(images)), key=lambda place: -_num_errors(images[place], truth, place + 1))
    pictures = dict(itertools.islice(_readable(worst, truth), SHEET))
    if not pictures:
        return False
    figure, axes = plt.subplots(len(pictures), 2, figsize=(9, 3.4 * len(pictures)), layout='constrained',
                                squeeze=False)
    names = {number: one['name'] for number, one in truth.cats.items()}
    for row, (place, picture) in zip(axes, pictures.items(), strict=True):
        found = images[place]
        shown = found.scores > SCORE
        objects = [(one['bbox'], names[one['category_id']]) for one in truth.imgToAnns[place + 1]]
        detections = [([x, y, right - x, bottom - y], f'{names[label + 1]} {score:.2f}')
                      for (x, y, right, bottom), label, score in zip(
                          found.bboxes[shown].tolist(), found.labels[shown].tolist(), found.scores[shown].tolist(),
                          strict=True)]
        for axis, boxes, colour in zip(row, (objects, detections), ('lime', 'yellow'), strict=True):
            axis.imshow(picture)
            axis.axis('off')
            for (x, y, width, height), label in boxes:
                axis.add_patch(plt.Rectangle((x, y), width, height, fill=False, edgecolor=colour, linewidth=1))
                axis.text(x, y, label, fontsize=5, color='black', backgroundcolor=colour,
                          bbox=dict(pad=0.3, facecolor=colour, edgecolor='none'))
        row[0].set_title(Path(truth.imgs[place + 1]['file_name']).name, fontsize=8)
    with whole_file(path) as unfinished:
        figure.savefig(unfinished, dpi=90)
    plt.close(figure)
    return True


def _readable(places: Sequence[int], truth: COCO) -> Iterator[tuple[int, np.ndarray]]:
    """Pictures, turned as their EXIF data say, as detectors saw them; without those that cannot be read here."""
    for place in places:
        with contextlib.suppress(ExportError):
            yield place, read_picture(truth.imgs[place + 1]['file_name'])


def _num_errors(image: ImageDetections, truth: COCO, number: int) -> int:
    """False detections above the threshold, and objects without one."""
    detections = [dict(image_id=number, category_id=label + 1, score=score, bbox=[x, y, right - x, bottom - y])
                  for (x, y, right, bottom), label, score in zip(image.bboxes.tolist(), image.labels.tolist(),
                                                                 image.scores.tolist(), strict=True) if score > SCORE]
    errors = image_errors(truth.imgToAnns[number], scored_detections(truth, detections),
                          not_exhaustive(truth, number))
    return sum(kind in KINDS for kind in errors.kinds) + int((~errors.found).sum())


def _page(report: ContestReport, pictures: Mapping[str, Path]) -> str:
    parts = ['<h1>Comparison</h1>', f'<p>{len(report.truth.imgs)} images, {num_objects(report.truth)} objects.</p><ul>']
    parts += [f'<li>{html.escape(verdict)}</li>' for verdict in report.verdicts()]
    parts += [f'<li>left out: {html.escape(name)} ({html.escape(reason)})</li>'
              for name, reason in report.failures.items()]
    parts.append('</ul>')
    for title, words, rows in report.sections():
        header, *body = (''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in row)
                         for tag, row in zip(['th', *['td'] * (len(rows) - 1)], rows, strict=True))
        parts.append(f'<h2>{title}</h2><p>{html.escape(words)}</p><table><tr>{header}</tr>'
                     + ''.join(f'<tr>{row}</tr>' for row in body) + '</table>')
    for title, path in pictures.items():
        data = base64.b64encode(path.read_bytes()).decode()
        title = html.escape(title)
        parts.append(f'<h2>{title}</h2><img alt="{title}" src="data:image/png;base64,{data}">')
    style = ('body{font-family:sans-serif;max-width:70em;margin:2em auto;padding:0 1em}table{border-collapse:collapse}'
             'td,th{border-bottom:1px solid #ddd;padding:.3em .7em;text-align:right}td:first-child,th:first-child'
             '{text-align:left}img{max-width:100%}')
    return (f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Comparison</title><style>{style}</style>'
            f'<body>{"".join(parts)}</body></html>\n')


def _mean(runs: Sequence[Sequence[float]]) -> str:
    return _value(mean(mean(training) for training in runs))


def _value(value: float) -> str:
    return 'no objects' if value == -1 else f'{value:.3f}'  # pycocotools' mark of sizes and classes without any


def _deviations(runs: Sequence[Sequence[float]]) -> list[str]:
    over_trainings = f'{stdev(mean(training) for training in runs):.3f}' if len(runs) > 1 else ''
    of_seeds = [stdev(training) for training in runs if len(training) > 1]
    return [over_trainings, f'{mean(of_seeds):.3f}' if of_seeds else '']


def _or_unknown(value: float | None, form: str) -> str:
    return 'unknown' if value is None else format(value, form)


def _line(cells: Sequence[str]) -> str:
    return f'| {" | ".join(cells)} |'
