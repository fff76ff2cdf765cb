"""Hook that shows what validation's figures do not: the way from noise to objects, and AP over the dial."""

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import torch
from mmdet.registry import HOOKS
from mmengine.dist import is_main_process
from mmengine.evaluator import Evaluator
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from mmengine.visualization.vis_backend import MLflowVisBackend
from PIL import Image
from torch import nn

from ..detectors.several_predictions import at_settings, features_once
from ..number_checks import is_integer, is_number
from ..sampling_settings import SamplingSettings, steps_and_boxes
from ..visualization import draw_story, follow_boxes, on_picture


@HOOKS.register_module()
class DenoisingVisualizationHook(Hook):
    """At each validation: pictures of the denoising, and the metrics at several settings of the dial.

    A config needs one line, ``custom_hooks = [dict(type='DenoisingVisualizationHook', settings=['1x100', '4x300'])]``.
    Pictures go through the runner's visualiser, metrics with the setting at the end of their names
    (``coco/bbox_mAP_4x300``) beside those of validation, so that log, TensorBoard, MLflow and wandb have both. Training
    and validation's own figures stay as they are: the noise comes from generators of its own.

    Every validation image passes the backbone once more, and the head once for each setting, unless there are none; the
    batches of the first images once more for the pictures.

    Args:
        settings (Sequence[str]): STEPSxBOXES, at each of which the metrics of ``val_evaluator`` are computed.
        num_images (int): first validation images whose denoising is drawn; 0: none.
        picture_setting (str): STEPSxBOXES of the pictures.
        score_thr (float): what counts as an object in the pictures.
        panel (int): pixels of the longer side of a panel.

    Raises:
        ValueError: if a setting is none, or a number out of range; at the start of a run, if the model has no dial.
    """

    def __init__(self, settings: Sequence[str] = (), *, num_images: int = 2, picture_setting: str = '4x100',
                 score_thr: float = 0.4, panel: int = 224) -> None:
        self._settings = {text: _changes(text) for text in settings}
        self._picture_setting = _changes(picture_setting)
        for name, value, least in (('num_images', num_images, 0), ('panel', panel, 16)):
            if not is_integer(value) or value < least:
                raise ValueError(f'{name} of DenoisingVisualizationHook must be an integer of at least {least}, got '
                                 f'{value!r}')
        if not is_number(score_thr) or not 0 <= score_thr < 1:
            raise ValueError(f'score_thr of DenoisingVisualizationHook must be in [0, 1), got {score_thr!r}')
        self._num_images, self._score_thr, self._panel = num_images, score_thr, panel
        self._evaluators: dict[str, Evaluator] = {}
        self._drawn = 0

    def before_run(self, runner: Runner) -> None:
        """Refuse a model without a dial, or a setting that it cannot have."""
        model = _detector(runner)
        head = getattr(model, 'bbox_head', None)
        if not hasattr(head, 'sampling_steps'):
            raise ValueError(f'DenoisingVisualizationHook needs a DiffusionDet, got {type(model).__name__}; take the '
                             'hook out of custom_hooks')
        for setting in (*self._settings.values(), self._picture_setting):
            SamplingSettings.from_cfg(dict(head.test_cfg or {}, **setting), head.num_proposals,
                                      head.box_sampler.num_train_timesteps)

    def before_val_epoch(self, runner: Runner) -> None:
        """Start counting anew."""
        self._drawn = 0
        self._evaluators = {name: _like(runner.val_evaluator, name) for name in self._settings}

    @torch.no_grad()
    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch: dict, outputs: Sequence | None = None) -> None:
        """Draw the first images, and detect at each setting."""
        model = _detector(runner)
        draws = self._drawn < self._num_images and is_main_process()
        if not draws and not self._settings:
            return
        # Samples are filled with detections, and validation has kept some of these.
        data = model.data_preprocessor(dict(inputs=data_batch['inputs'],
                                            data_samples=copy.deepcopy(data_batch['data_samples'])), False)
        if draws:  # in float32, so that it shares no features with what may be in half precision
            with _dial(model, self._picture_setting):
                self._draw(runner, model, data_batch['inputs'], data)
        with features_once(model):
            for name, setting in self._settings.items():
                with _dial(model, setting):
                    found = model.predict(data['inputs'], copy.deepcopy(data['data_samples']))
                self._evaluators[name].process(data_samples=found, data_batch=data_batch)

    def _draw(self, runner: Runner, model: nn.Module, pictures: Sequence[torch.Tensor], data: dict) -> None:
        for moments, sample, pixels in zip(follow_boxes(model, data), data['data_samples'], pictures, strict=True):
            if self._drawn == self._num_images:
                return
            # What the pipeline gives is BGR, as all of MMDetection's loading does unless told otherwise.
            values = pixels.clamp(0, 255).byte().expand(3, -1, -1).permute(1, 2, 0).cpu().numpy()
            picture = Image.fromarray(np.ascontiguousarray(values[..., ::-1]))
            story = draw_story(*on_picture(moments, sample, picture, self._panel), self._score_thr)
            name = f'denoising_{Path(sample.get("img_path", "")).stem or self._drawn}'
            _add_image(runner, name, np.asarray(story))
            self._drawn += 1

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Log the metrics of each setting beside those of validation."""
        for name, evaluator in self._evaluators.items():
            for metric, value in evaluator.evaluate(len(runner.val_dataloader.dataset)).items():
                metrics[f'{metric}_{name}'] = value  # checkpoints may be chosen by it
                runner.message_hub.update_scalar(f'val/{metric}_{name}', value)
        self._evaluators = {}


def _detector(runner: Runner) -> nn.Module:
    return runner.model.module if is_model_wrapper(runner.model) else runner.model


def _like(evaluator: Evaluator, setting: str) -> Evaluator:
    """An evaluator with the same metrics, before any result; files that they write have the setting in their names."""
    metrics = [copy.copy(metric) for metric in evaluator.metrics]
    for metric in metrics:
        metric.results = []
        for key in ('outfile_prefix', 'out_file_path'):  # of mmdet's metrics, and of mmengine's DumpResults
            path = getattr(metric, key, None)
            if path is not None:
                suffix = Path(path).suffix if key == 'out_file_path' else ''
                setattr(metric, key, f'{str(path).removesuffix(suffix)}_{setting}{suffix}')
    fresh = Evaluator(metrics)
    fresh.dataset_meta = evaluator.dataset_meta
    return fresh


def _changes(setting: str) -> dict[str, int]:
    """Of ``test_cfg``, for STEPSxBOXES."""
    steps, boxes = steps_and_boxes(setting)
    return dict(sampling_timesteps=steps, num_proposals=boxes)


def _dial(model: nn.Module, changes: dict[str, int]) -> AbstractContextManager:
    """The head at a setting, with noise of seed 0 where the config names none."""
    seed = (model.bbox_head.test_cfg or {}).get('seed')
    return at_settings(model.bbox_head, dict(changes, seed=0 if seed is None else seed))


def _add_image(runner: Runner, name: str, image: np.ndarray) -> None:
    """Hand a picture to every backend of the visualiser."""
    for backend in runner.visualizer._vis_backends.values():
        if isinstance(backend, MLflowVisBackend):  # mmengine gives MLflow neither step nor ending, which it needs
            backend.add_image(f'{name}_{runner.iter:06d}.png', image)
        else:
            backend.add_image(name, image, runner.iter)
