"""A trained detector applied to picture files: boxes as JSON holds them, and drawn pictures."""

import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from mmcv import bgr2rgb, gray2rgb, rgb2bgr
from mmcv.transforms import Compose
from mmdet.registry import DATASETS, MODELS
from mmdet.structures import DetDataSample
from mmdet.utils import get_test_pipeline_cfg
from mmengine.config import Config, ConfigDict
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope
from mmengine.runner import load_checkpoint
from mmengine.structures import InstanceData
from numpy import ndarray, uint8
from torch import nn

from diffusiondet_runtime.drawing import draw_detections
from diffusiondet_runtime.errors import first_line
from diffusiondet_runtime.prediction_stream import Prediction, predict_sources

from .input_checks import datasets, refuse_foreign_checkpoint


class Predictor:
    """A detector with its weights, and the transforms that its test set goes through.

    Args:
        config (Config): of the model and its test set, which need not be there.
        checkpoint (str): path or address of the weights; its class names come before the config's.
        device (str): such as ``cpu`` or ``cuda:0``.
        score_thr (float): detections that do not score above it are left out.
        dial (dict): values of ``model.test_cfg`` to change, such as ``sampling_timesteps``.

    Raises:
        SystemExit: if the checkpoint cannot be read or is not of this model.
    """

    def __init__(self, config: Config, checkpoint: str, *, device: str, score_thr: float, dial: dict) -> None:
        init_default_scope(config.get('default_scope', 'mmdet'))
        self.config = config
        head_cfg = dict(config.model.test_cfg or {}, **dial)
        if head_cfg.get('seed') is None:
            head_cfg['seed'] = 0  # the same pictures give the same boxes
        self.model = MODELS.build(dict(config.model, test_cfg=head_cfg))
        content = load_weights(self.model, checkpoint)
        self.model.to(device).eval()
        self.classes = class_names(content.get('meta') or {}, config)
        self.score_thr = score_thr
        load, *rest = (transform for transform in get_test_pipeline_cfg(config)
                       if transform.type.split('.')[-1] != 'LoadAnnotations')
        self.load, self.rest = Compose([load]), Compose(rest)

    def read(self, path: Path) -> tuple[ndarray, dict]:
        """A picture file as it is, uint8 RGB (h, w, 3), and as the network takes it; raises what reading raises."""
        # Draws go by the name, so that they stay when the folder moves.
        loaded = self.load(dict(img_path=str(path), img_id=path.name))
        picture = loaded['img']
        return gray2rgb(picture) if picture.ndim == 2 else bgr2rgb(picture), self.rest(loaded)

    def sample(self, pixels: ndarray, name: str, before: DetDataSample | None = None) -> dict:
        """A picture in memory, uint8 RGB (h, w, 3), as the network takes it.

        Args:
            pixels (ndarray): the picture.
            name (str): that its draws go by.
            before (DetDataSample | None): what was found in the frame before, to start from besides noise.

        Raises:
            ValueError: if the picture has another type or shape.
        """
        if pixels.dtype != uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
            raise ValueError(f'{name}: a picture is RGB, uint8 of shape (h, w, 3), got {pixels.dtype} of shape '
                             f'{pixels.shape}')
        shape = pixels.shape[:2]
        sample = self.rest(dict(img=rgb2bgr(pixels), img_id=name, img_path=name, img_shape=shape,
                                ori_shape=shape))
        if before is not None:
            bboxes = before.pred_instances.bboxes
            scale = bboxes.new_tensor(sample['data_samples'].get('scale_factor', (1.0, 1.0))).repeat(2)
            sample['data_samples'].proposals = InstanceData(bboxes=bboxes * scale)
        return sample

    def predict(self, sources: str | Path | Sequence[str | Path], **settings) -> Iterator[Prediction]:
        """Detections of pictures, folders, globs, videos, cameras, streams; settings as of :func:`predict_stream`."""
        return predict_sources(self, sources, **settings)

    @torch.no_grad()
    def detect(self, samples: Sequence[dict]) -> list[DetDataSample]:
        """Detections above the threshold, best first, in pixels of the picture file, on the CPU."""
        found = self.model.test_step(pseudo_collate(samples))
        for sample in found:
            instances = sample.pred_instances
            sample.pred_instances = instances[instances.scores > self.score_thr].cpu()
        return found

    def record(self, found: DetDataSample) -> dict:
        """Detections of one picture as JSON takes them: boxes as absolute xyxy in pixels."""
        height, width = found.ori_shape
        instances = found.pred_instances
        labels = instances.labels.tolist()
        return dict(width=width, height=height, bboxes=[[round(side, 2) for side in box] for box in
                                                         instances.bboxes.tolist()],
                    scores=[round(score, 4) for score in instances.scores.tolist()], labels=labels,
                    class_names=[self.classes[label] for label in labels])

    def drawn(self, picture: ndarray, found: DetDataSample) -> ndarray:
        """The picture with its detections, uint8 RGB (h, w, 3)."""
        instances = found.pred_instances
        bboxes, scores, labels = (instances[name].tolist() for name in ('bboxes', 'scores', 'labels'))
        return draw_detections(picture, bboxes, scores, labels, self.classes)


def load_weights(model: nn.Module, checkpoint: str) -> dict:
    """Fill a model from a checkpoint, of which all is given back.

    Raises:
        SystemExit: if it cannot be read or is not of this model.
    """
    try:
        content = load_checkpoint(model, checkpoint, map_location='cpu', logger='silent')
    except pickle.UnpicklingError as error:  # torch's own words recommend to run whatever code is in the file
        raise SystemExit(f'{checkpoint} is no checkpoint, or asks for more than tensors and is not trusted') from error
    except Exception as error:  # whatever torch or the web raise
        reason = f'{type(error).__name__}: {first_line(error)}'
        raise SystemExit(f'{checkpoint} cannot be read as a checkpoint ({reason})') from error
    refuse_foreign_checkpoint(model, content, checkpoint)
    return content


def class_names(meta: dict, config: Config) -> list[str]:
    """Names of the labels: of the checkpoint's ``meta``, else of the config's test set, else their numbers.

    Args:
        meta (dict): of the checkpoint.
        config (Config): its head, or the last of its RoI heads, says how many classes there are.
    """
    owner = config.model if 'bbox_head' in config.model else config.model.roi_head
    head = owner.bbox_head[-1] if isinstance(owner.bbox_head, list) else owner.bbox_head
    number = head.num_classes
    given = {key.lower(): value for key, value in (meta.get('dataset_meta') or meta).items()}.get('classes')
    names = given or dataset_classes(config)
    names = [names] if isinstance(names, str) else list(names or ())
    return names if len(names) == number else [str(label) for label in range(number)]


def dataset_classes(config: Config) -> Sequence[str] | None:
    """Names of the test set's classes, of the config or else of its type of data set."""
    dataset: ConfigDict = next(datasets(config.test_dataloader.dataset, 'test_dataloader.dataset'))[0]
    of_config = (dataset.get('metainfo') or {}).get('classes')
    return of_config or getattr(DATASETS.get(dataset.type), 'METAINFO', {}).get('classes')
