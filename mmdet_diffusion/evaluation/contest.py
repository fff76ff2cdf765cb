"""Detectors of any kind on one data set: tested, matched, timed in turns."""

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import NamedTuple

import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmengine.utils import ProgressBar
from pycocotools.coco import COCO
from torch import nn
from torch.utils.data import DataLoader

from ..detectors import DiffusionDet
from ..detectors.several_predictions import at_settings
from ..input_checks import refuse_missing_data
from ..prediction import load_weights
from .bootstrap import Contestant
from .content_key import code_digest, data_digest, weights_digest
from .cost_card import first_samples, num_flops, num_parameters, time_in_turns, training_seconds
from .detection_records import CellRecords, ImageDetections
from .dial_settings import DialSetting
from .error_types import ErrorTypes, error_types
from .ground_truth import coco_detections, ground_truth, num_objects
from .learning_curves import Curve, learning_curve
from .other_metrics import evaluate_records, is_coco_box_ap
from .scoring import score_runs
from .shared_features import test_cells, test_detector


class Entry(NamedTuple):
    """A detector that takes part.

    Attributes:
        name (str): in tables.
        config (Config): of its model and test set.
        checkpoints (Sequence[str]): paths or addresses, of trainings that differ in their seed alone.
    """

    name: str
    config: Config
    checkpoints: Sequence[str]


class Outcome(NamedTuple):
    """A detector at one setting.

    Attributes:
        name (str): of detector and setting.
        detector (str): name of the entry.
        setting (DialSetting | None): None for as it is configured.
        contestant (Contestant): matches of each training and sampling seed.
        records (Sequence[Sequence[Sequence[ImageDetections]]]): of each training, seed and image.
        metrics (dict[str, list[list[float]]]): by name, of each training and seed.
        errors (ErrorTypes): of the first training and seed.
        cost (dict[str, float | None]): figures of the cost card; seconds, counts.
        curves (list[Curve]): of each training.
    """

    name: str
    detector: str
    setting: DialSetting | None
    contestant: Contestant
    records: Sequence[Sequence[Sequence[ImageDetections]]]
    metrics: dict[str, list[list[float]]]
    errors: ErrorTypes
    cost: dict[str, float | None]
    curves: list[Curve]


class Contest:
    """Tests entries on the data of the first one.

    What shows without any weights, such as other classes or a setting out of range, is refused when it is made.

    Args:
        entries (Sequence[Entry]): their names differ.
        folder (Path): for the cells.
        settings (Sequence[DialSetting]): for those that have a dial; empty for as they are configured.
        seeds (Sequence[int]): of sampling.
        device (torch.device): to run on.
        num_draws (int): of the bootstrap over the images.
        num_images (int): first images of the test set; 0 for all.
        num_timed (int): images that are timed.
    """

    def __init__(self, entries: Sequence[Entry], folder: Path, *, settings: Sequence[DialSetting],
                 seeds: Sequence[int], device: torch.device, num_draws: int, num_images: int = 0,
                 num_timed: int = 40) -> None:
        self.entries, self.folder, self.settings, self.seeds, self.device = entries, folder, settings, seeds, device
        self.num_timed, self.num_draws = num_timed, num_draws
        self.loaders = {entry.name: test_loader(entry.config, num_images) for entry in entries}
        self.data = self._same_data()
        self.truth: COCO = ground_truth(self.loaders[entries[0].name].dataset)
        if not num_objects(self.truth):
            raise SystemExit('no image of the test set has an object: there is nothing to compare by')
        self._check_settings()

    def _check_settings(self) -> None:
        for entry in self.entries if self.settings else ():
            model = build_model(entry)
            for setting in self.settings if isinstance(model, DiffusionDet) else ():
                try:
                    setting.check(model.bbox_head)
                except ValueError as error:
                    raise SystemExit(f'{entry.name} at {setting.label}: {error}') from error

    def _same_data(self) -> str:
        digests = {}
        for entry in self.entries:
            dataset = self.loaders[entry.name].dataset
            if not len(dataset):
                raise SystemExit(f'{entry.name}: {dataset.ann_file} has no image to test on')
            digest = data_digest(map(dataset.get_data_info, range(len(dataset))))
            digests[entry.name] = digest, tuple(dataset.metainfo['classes'])
        first = self.entries[0].name
        for name, (digest, classes) in digests.items():
            if classes != digests[first][1]:
                raise SystemExit(f'{name} has classes {classes}, {first} has {digests[first][1]}: they cannot be '
                                 'compared')
            if digest != digests[first][0]:
                raise SystemExit(f'{name} and {first} are not tested on the same images and objects: compare their '
                                 'test_dataloader')
        return digests[first][0]

    def run(self, checkpoints: Callable[[Entry], Sequence[str]]) -> tuple[list[Outcome], dict[str, str]]:
        """Test all; gives the outcomes, and what could not be tested with the reason.

        Args:
            checkpoints (Callable[[Entry], Sequence[str]]): gives those of an entry, by training it if need be.
        """
        outcomes, failures, models = [], {}, {}
        for entry in self.entries:
            try:
                found, model = self._outcomes(entry._replace(checkpoints=checkpoints(entry)))
            except (Exception, SystemExit) as error:  # the others go on
                failures[entry.name] = f'{type(error).__name__}: {error}'.splitlines()[0]
                print(f'{entry.name} is left out: {failures[entry.name]}', flush=True)
                continue
            models[entry.name] = model
            outcomes += found
        times = self._times(models) if models else {}
        return [outcome._replace(cost=dict(outcome.cost, **times[outcome.name])) for outcome in outcomes], failures

    def _outcomes(self, entry: Entry) -> tuple[list[Outcome], nn.Module]:
        """Of all settings of a detector, without its times; and the model of the first training."""
        tested, model = self._test(entry)
        scored = iter(score_runs(self.truth, [run for trainings in tested.values() for training in trainings
                                              for run in training], num_draws=self.num_draws))
        contestants = {setting: Contestant(_name(entry, setting), [[next(scored) for _ in one] for one in trainings])
                       for setting, trainings in tested.items()}
        return [self._outcome(entry, model, setting, tested[setting], contestant)
                for setting, contestant in contestants.items()], model

    def _test(self, entry: Entry) -> tuple[dict[DialSetting | None, list], nn.Module]:
        """Records by setting, of each training and seed; and the model of the first training."""
        tested, first = {}, None
        for checkpoint in entry.checkpoints:
            model = load_model(entry, checkpoint, self.device)
            first = first or model
            settings = (self.settings or [None]) if isinstance(model, DiffusionDet) else [None]
            made_of = dict(weights=weights_digest(model.state_dict()), data=self.data, code=code_digest(entry.config),
                           loader=entry.config.test_dataloader, model=entry.config.model, device=str(self.device),
                           num_images=len(self.truth.imgs))
            seeds = self.seeds if isinstance(model, DiffusionDet) else [None]
            cells = {(setting, seed): CellRecords(self.folder / 'cells', dict(
                made_of, setting=setting and setting.values(), seed=seed)) for setting in settings for seed in seeds}
            print(f'{entry.name}, {checkpoint}: {len(cells)} cells', flush=True)
            progress, loader = ProgressBar(len(self.truth.imgs)), self.loaders[entry.name]
            if isinstance(model, DiffusionDet):
                num_chunks = test_cells(model, loader, {cell: dict(setting.values() if setting else {}, seed=seed)
                                                        for (setting, seed), cell in cells.items()},
                                        progress=progress.update)
            else:
                num_chunks = test_detector(model, loader, cells[None, None], progress=progress.update)
            print(flush=True)
            for setting in settings:
                tested.setdefault(setting, []).append([cells[setting, seed].read(num_chunks, len(self.truth.imgs))
                                                        for seed in seeds])
        return tested, first

    def _outcome(self, entry: Entry, model: nn.Module, setting: DialSetting | None, runs: list,
                 contestant: Contestant) -> Outcome:
        name = contestant.name
        metrics = _nested([[one.summary() for one in training] for training in contestant.trainings])
        evaluator = entry.config.test_evaluator
        if not is_coco_box_ap(evaluator):
            try:
                metrics |= _nested([[evaluate_records(evaluator, model, self.loaders[entry.name], images)
                                     for images in training] for training in runs])
            except Exception as error:  # the rest of the report stands
                print(f'{name}: the evaluator of its config failed ({type(error).__name__}: {error})', flush=True)
        with _at(model, setting):
            flops = num_flops(model, self.loaders[entry.name].dataset[0])
        cost = dict(parameters=num_parameters(model), flops=flops,
                    training_seconds=training_seconds(Path(entry.checkpoints[0])))
        curves = [learning_curve(Path(checkpoint).parent) for checkpoint in entry.checkpoints]
        errors = error_types(self.truth, coco_detections(runs[0][0]))
        return Outcome(name, entry.name, setting, contestant, runs, metrics, errors, cost, curves)

    def _times(self, models: Mapping[str, nn.Module]) -> dict[str, dict[str, float]]:
        predict, samples = {}, {}
        for entry in self.entries:
            if entry.name not in models:
                continue
            model = models[entry.name]
            prepared = first_samples(self.loaders[entry.name].dataset, self.num_timed)
            for setting in (self.settings or [None]) if isinstance(model, DiffusionDet) else [None]:
                name = _name(entry, setting)
                predict[name], samples[name] = _predictor(model, setting), prepared
        return time_in_turns(predict, samples, self.device)


def _name(entry: Entry, setting: DialSetting | None) -> str:
    return f'{entry.name} {setting.label}' if setting else entry.name


def _at(model: nn.Module, setting: DialSetting | None) -> AbstractContextManager:
    """A detector at a setting of the dial; as it is configured where that is None."""
    return nullcontext() if setting is None else at_settings(model.bbox_head, setting.values())


def _predictor(model: nn.Module, setting: DialSetting | None):
    @torch.no_grad()
    def predict(batch: dict) -> object:
        with _at(model, setting):
            return model.test_step(batch)
    return predict


def build_model(entry: Entry) -> nn.Module:
    """A detector without its weights."""
    init_default_scope(entry.config.get('default_scope', 'mmdet'))
    return MODELS.build(entry.config.model)


def load_model(entry: Entry, checkpoint: str, device: torch.device) -> nn.Module:
    """A detector with the weights of one of its trainings, in evaluation mode."""
    model = build_model(entry)
    load_weights(model, checkpoint)
    return model.to(device).eval()


def test_loader(config: Config, num_images: int) -> DataLoader:
    """Loader of a config's test set; of its first images where a number is given."""
    refuse_missing_data(config, ('test_dataloader', 'test_evaluator'))
    init_default_scope(config.get('default_scope', 'mmdet'))
    cfg = copy.deepcopy(config.test_dataloader)  # the config is part of a training's key
    if num_images:
        cfg.dataset.indices = num_images
    return Runner.build_dataloader(cfg)


def _nested(runs: Sequence[Sequence[Mapping[str, float]]]) -> dict[str, list[list[float]]]:
    return {name: [[run[name] for run in training] for training in runs] for name in runs[0][0]}
