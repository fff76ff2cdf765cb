"""Made data sets and detections of them, in COCO's form."""

import contextlib
import io

import numpy as np
from pycocotools.coco import COCO

SIZE = 200


def made_objects(num_images=20, num_classes=3, seed=0, crowd_share=0.1):
    """Ground truth of random boxes; some are crowds, some images have none."""
    rng = np.random.default_rng(seed)
    annotations = []
    for image_id in range(1, num_images + 1):
        for _ in range(rng.integers(0, 7)):
            width, height = rng.uniform(8, 120, 2)
            x, y = rng.uniform(0, SIZE - width), rng.uniform(0, SIZE - height)
            annotations.append(dict(
                id=len(annotations) + 1, image_id=image_id, category_id=int(rng.integers(num_classes)) + 1,
                bbox=[x, y, width, height], area=width * height, iscrowd=int(rng.random() < crowd_share)))
    truth = COCO()
    truth.dataset = dict(
        images=[dict(id=number, width=SIZE, height=SIZE) for number in range(1, num_images + 1)],
        annotations=annotations,
        categories=[dict(id=number + 1, name=f'class {number}') for number in range(num_classes)])
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
    return truth


def made_detections(truth, seed=0, *, spread=0.1, found=0.8, false=3, tied=False):
    """Detections of a detector that moves boxes by ``spread`` of their size, misses some objects and invents others."""
    rng = np.random.default_rng([7, seed])
    detections = []
    for annotation in truth.dataset['annotations']:
        if rng.random() > found:
            continue
        x, y, width, height = annotation['bbox']
        shift = rng.normal(0, spread, 4) * [width, height, width, height]
        box = (np.array([x, y, width, height]) + shift).tolist()
        score = rng.beta(4, 2)
        detections.append(dict(image_id=annotation['image_id'], category_id=annotation['category_id'],
                               bbox=[*box[:2], *map(abs, box[2:])], score=round(score, 1) if tied else score))
    for image in truth.dataset['images']:
        for _ in range(rng.poisson(false)):
            score = rng.beta(2, 4)
            detections.append(dict(
                image_id=image['id'], category_id=int(rng.choice(truth.getCatIds())),
                bbox=[*rng.uniform(0, SIZE / 2, 2), *rng.uniform(5, SIZE / 2, 2)],
                score=round(score, 1) if tied else score))
    return detections
