"""Whether an exported folder computes what torch computes: run after every export, and by the tests."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from mmengine.structures import InstanceData
from PIL import Image
from torch import Tensor, nn

from diffusiondet_runtime import Detections, OnnxDetector
from diffusiondet_runtime import pictures as runtime_pictures
from diffusiondet_runtime.noise import image_noise
from diffusiondet_runtime.post_processing import best_pairs as runtime_pairs
from diffusiondet_runtime.post_processing import finish
from diffusiondet_runtime.post_processing import merge_steps as runtime_merge

from ..post_processing import best_pairs, finish_image, merge_steps
from ..structures import Detections as TensorDetections
from ..structures import SamplingStep
from .onnx_export import UNROLLED

LOGIT_BAR, BOX_BAR = 1e-3, 0.05  # per step, fed the same boxes
CLOSED_BOX_BAR, CLOSED_SCORE = 0.1, 0.05  # closed loop of one step: pixels, and the least score that is compared
FEWEST = 10  # detections that are compared whatever they score, best first
CHECKED_STEPS = 4


class Figure(NamedTuple):
    """A largest difference between torch and an exported folder.

    Attributes:
        name (str): what is compared.
        value (float): largest absolute difference.
        bar (float): that it may not exceed.
    """

    name: str
    value: float
    bar: float

    @property
    def holds(self) -> bool:
        """False also for NaN."""
        return self.value <= self.bar

    def __str__(self) -> str:
        return f'{self.name}: {self.value:.3g} (at most {self.bar:g}{"" if self.holds else ": FAILED"})'


def check_export(detector: nn.Module, folder: Path, picture: np.ndarray, *, boxes: int,
                 engine: str = 'onnxruntime') -> list[Figure]:
    """Compare a folder with the detector that it was made of.

    Args:
        detector (nn.Module): a :class:`DiffusionDet` on the CPU, in float32, in evaluation mode.
        folder (Path): exported.
        picture (np.ndarray): uint8 RGB, shape (h, w, 3).
        boxes (int): N.
        engine (str): of the run-time.

    Returns:
        list[Figure]: per step, fed the same boxes; closed loop of one step; the unrolled graph, if there is one.
    """
    exported = OnnxDetector(folder, engine=engine)
    prepared = runtime_pictures.prepare(picture, exported.sampler['input'])
    images = runtime_pictures.batch([prepared], exported.sampler['input'])
    noise = draws(boxes)
    figures = step_figures(detector, exported, images, prepared.size, noise)
    figures += closed_figures(detector, exported, images, prepared, noise)
    if (folder / UNROLLED).is_file():
        figures += unrolled_figures(detector, folder / UNROLLED)
    return figures


def draws(boxes: int, number: int = 2 * CHECKED_STEPS - 1, pictures: int = 1) -> np.ndarray:
    """The same at every call, shape (number, pictures, boxes, 4)."""
    draw = image_noise(0, [f'check {picture}' for picture in range(pictures)])
    return np.stack([draw(boxes) for _ in range(number)])


@torch.no_grad()
def torch_steps(detector: nn.Module, images: np.ndarray, size: tuple[int, int], noise: np.ndarray, *,
                steps: int) -> list[SamplingStep]:
    """The reverse process in torch, of a batch of images that all have one size before padding."""
    head = detector.bbox_head
    settings = head.sampling_settings()._replace(num_proposals=noise.shape[2], sampling_timesteps=steps,
                                                 start_noise='random')  # the noise is given
    tape = iter(torch.from_numpy(noise))
    whwh = torch.tensor([[*size, *size]] * len(images), dtype=torch.float32)
    features = detector.extract_feat(torch.from_numpy(images))
    return list(head.sampling_steps(features, whwh, settings, lambda _: next(tape)))


def step_figures(detector: nn.Module, exported: OnnxDetector, images: np.ndarray, size: tuple[int, int],
                 noise: np.ndarray, steps: int = CHECKED_STEPS) -> list[Figure]:
    """Of each step from the boxes that torch has there; levels are the exported ones."""
    steps = min(steps, detector.bbox_head.box_sampler.num_train_timesteps)
    levels, figures = exported.engine.features(images), []
    for number, step in enumerate(torch_steps(detector, images, size, noise, steps=steps), 1):
        t = np.full(len(images), step.t, dtype=np.int64)
        logits, bboxes = exported.engine.refine(levels, step.noisy_bboxes.numpy(), t)
        of_step = f'of step {number} of {steps}, fed the same boxes'
        figures += [Figure(f'logits {of_step}', largest(logits, step.cls_scores), LOGIT_BAR),
                    Figure(f'boxes {of_step}, px', largest(bboxes, step.bboxes), BOX_BAR)]
    return figures


def closed_figures(detector: nn.Module, exported: OnnxDetector, images: np.ndarray,
                   prepared: runtime_pictures.Prepared, noise: np.ndarray) -> list[Figure]:
    """From image to detections at one step, in torch and exported, in pixels of the network input."""
    head = detector.bbox_head
    settings = head.sampling_settings()
    step, = torch_steps(detector, images, prepared.size, noise, steps=1)
    found = TensorDetections(*(value[0] for value in merge_steps([best_pairs(step.cls_scores, step.bboxes)], 'all')))
    ours = finish_image(found, dict(img_shape=prepared.size[::-1]), settings, rescale=False)
    walk = exported.sample([prepared], 1, noise.shape[2], 0, [''], noise)
    pairs = [runtime_pairs(one.logits[0], one.bboxes[0]) for one in walk]
    theirs = finish(runtime_merge(pairs, 'all'), exported.sampler['post_processing'], prepared.size, (1.0, 1.0))
    return compare_detections(ours, theirs, 'of the closed loop at 1 step')


def compare_detections(ours: InstanceData, theirs: Detections, source: str) -> list[Figure]:
    """Detections that score above the bar, and the best few whatever they score: labels equal, boxes near."""
    number = max(int((ours.scores > CLOSED_SCORE).sum()), min(FEWEST, len(ours), len(theirs.labels)))
    missing = max(0, number - len(theirs.labels))
    used, unlike, distances = set(), missing, [0.0]
    for label, score, box in zip(ours.labels[:number].tolist(), ours.scores[:number].tolist(),
                                 ours.bboxes[:number].numpy(), strict=True):
        # Equal scores may change places: the nearest of the label whose score is the same to a thousandth.
        fitting = [index for index in range(len(theirs.labels)) if index not in used and theirs.labels[index] == label
                   and abs(theirs.scores[index] - score) < 1e-3]
        if not fitting:
            unlike += 1
            continue
        best = min(fitting, key=lambda index: np.abs(theirs.bboxes[index] - box).max())
        used.add(best)
        distances.append(float(np.abs(theirs.bboxes[best] - box).max()))
    title = f'of {number} detections {source}'
    return [Figure(f'labels without a partner {title}', unlike, 0),
            Figure(f'boxes {title}, px', max(distances), CLOSED_BOX_BAR)]


def unrolled_figures(detector: nn.Module, graph: Path) -> list[Figure]:
    """Scores and boxes of the unrolled graph, on two pictures of another size than it was traced with."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(graph), providers=['CPUExecutionProvider'])
    number, _, boxes, _ = session.get_inputs()[1].shape
    settings = detector.bbox_head.sampling_settings()
    steps = 1 + (number - 1) // (1 if settings.renewal_score_thr is None else 2)
    size = (192, 128)
    images = np.random.RandomState(0).rand(2, 3, size[1], size[0]).astype(np.float32)
    noise = draws(boxes, number, 2)
    walk = torch_steps(detector, images, size, noise, steps=steps)
    found = [best_pairs(step.cls_scores, step.bboxes) for step in walk]
    ours = merge_steps(found, settings.ensemble)
    whwh = np.array([[*size, *size]] * 2, dtype=np.float32)
    bboxes, scores, labels = session.run(None, dict(images=images, noise=noise, img_whwh=whwh))
    name = f'of the unrolled graph of {steps} steps and {boxes} boxes'
    scores_apart = [np.abs(np.sort(one)[::-1] - np.sort(two)[::-1]).max()
                    for one, two in zip(ours.scores.numpy(), scores, strict=True)]
    loose = settings._replace(score_thr=0.0)
    matched = []
    for image in range(2):
        mine, exported = (TensorDetections(*(torch.as_tensor(value[image]) for value in side))
                          for side in (ours, (bboxes, scores, labels)))
        mine, exported = (finish_image(one, dict(img_shape=size[::-1]), loose, rescale=False)
                          for one in (mine, exported))
        numpy_side = Detections(exported.bboxes.numpy(), exported.scores.numpy(), exported.labels.numpy())
        matched += compare_detections(mine, numpy_side, name)
    return [Figure(f'scores {name}', float(max(scores_apart)), LOGIT_BAR), *matched]


def largest(exported: np.ndarray, of_torch: Tensor) -> float:
    """Largest absolute difference; NaN where one of them has it."""
    return float(np.abs(exported - of_torch.numpy()).max())


def check_picture(size: tuple[int, int]) -> np.ndarray:
    """A made picture with structure of all sizes, the same at every call.

    Args:
        size (tuple[int, int]): width and height.

    Returns:
        np.ndarray: uint8 RGB, shape (h, w, 3).
    """
    generator = np.random.RandomState(0)
    layers = [np.asarray(Image.fromarray(generator.randint(0, 256, (cells, cells, 3), dtype=np.uint8)).resize(
        size, Image.Resampling.BILINEAR), dtype=np.float32) for cells in (3, 9, 27, 81)]
    return (sum(layers) / len(layers)).astype(np.uint8)
