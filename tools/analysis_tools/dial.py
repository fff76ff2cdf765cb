"""Turn the dial: test one checkpoint at many settings of sampling, with the backbone run once for all of them.

A grid of all values that are given, or single settings as STEPSxBOXES; each with all seeds. Prints a table of AP with
its deviation over the seeds and its interval over the images, of time, and lines to paste into a config's options;
writes it as Markdown, CSV and JSON with a plot of AP over time. A run that was ended goes on where it stopped.

Examples:
    mmdet-diffusion dial CONFIG CHECKPOINT --steps 1 2 4 --boxes 100 300 --seeds 0 1 2
    mmdet-diffusion dial CONFIG CHECKPOINT --settings 1x100 4x300 --eta 0 1 --under-ms 40
"""

import mmdet_diffusion  # noqa: F401  isort: skip  first: it makes the operators of mmcv available
import argparse
import json
import sys
from pathlib import Path

import torch
from mmdet.registry import MODELS
from mmengine.config import Config, DictAction
from mmengine.dataset import BaseDataset
from mmengine.evaluator import Evaluator
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmengine.utils import ProgressBar
from pycocotools.coco import COCO

from mmdet_diffusion.detectors import DiffusionDet
from mmdet_diffusion.evaluation.bootstrap import NUM_DRAWS, draws
from mmdet_diffusion.evaluation.content_key import code_digest, data_digest, weights_digest
from mmdet_diffusion.evaluation.cost_card import machine
from mmdet_diffusion.evaluation.detection_records import CellRecords
from mmdet_diffusion.evaluation.dial_report import DialReport, write_report
from mmdet_diffusion.evaluation.dial_settings import CONTROLS, DialSetting, dial_setting, grid
from mmdet_diffusion.evaluation.ground_truth import ground_truth, num_objects
from mmdet_diffusion.evaluation.other_metrics import is_coco_box_ap
from mmdet_diffusion.evaluation.shared_features import test_cells
from mmdet_diffusion.host_memory import keep_freed_memory
from mmdet_diffusion.input_checks import refuse_missing_data, refuse_missing_device
from mmdet_diffusion.launch import with_config_path
from mmdet_diffusion.prediction import load_weights
from mmdet_diffusion.whole_file import write_whole_file


def number_or_none(text: str) -> float | None:
    """A number, or ``none``."""
    return None if text.lower() == 'none' else float(text)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='path, or name of one of this package')
    parser.add_argument('checkpoint')
    parser.add_argument('--steps', nargs='+', type=int, default=[], help='default: 1 2 4')
    parser.add_argument('--boxes', nargs='+', type=int, default=[], help='default: as trained, 300 and 500')
    parser.add_argument('--settings', nargs='+', type=dial_setting, default=[], metavar='STEPSxBOXES',
                        help='instead of the grid of --steps and --boxes')
    parser.add_argument('--eta', nargs='+', type=float, default=[], help="default: the config's, as of the next")
    parser.add_argument('--renewal', nargs='+', type=number_or_none, default=[], help='renewal_score_thr, or none')
    parser.add_argument('--nms', nargs='+', type=float, default=[], help='iou_threshold')
    parser.add_argument('--ensemble', nargs='+', default=[])
    parser.add_argument('--start-noise', nargs='+', default=[])
    parser.add_argument('--controls', action='store_true',
                        help='besides, what takes a part of sampling away: ' + ', '.join(CONTROLS))
    parser.add_argument('--seeds', nargs='+', type=int, default=[0])
    parser.add_argument('--under-ms', nargs='+', type=float, default=[], help='say which is best within so long')
    parser.add_argument('--num-draws', type=draws, default=NUM_DRAWS, help='of the bootstrap over images')
    parser.add_argument('--out-dir', type=Path, help='default: work_dirs/dial/NAME_OF_CONFIG')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction)
    args = parser.parse_args(argv)
    args.seeds = list(dict.fromkeys(args.seeds))  # the same one twice is no second draw
    return args


def load(args: argparse.Namespace) -> tuple[Config, DiffusionDet]:
    """The config, and its model with the checkpoint's weights."""
    config = Config.fromfile(*with_config_path([args.config]))
    config.merge_from_dict(args.cfg_options or {})
    refuse_missing_data(config, ('test_dataloader', 'test_evaluator'))
    refuse_missing_device(args.device)
    init_default_scope(config.get('default_scope', 'mmdet'))
    model = MODELS.build(config.model)
    if not isinstance(model, DiffusionDet):
        raise SystemExit(f'{args.config} has a {type(model).__name__}, which has no dial; compare other detectors with '
                         'mmdet-diffusion compare')
    load_weights(model, args.checkpoint)
    return config, model.to(args.device).eval()


def wanted(args: argparse.Namespace, model: DiffusionDet) -> list[DialSetting]:
    """All settings, each once; a wrong one shows now."""
    trained = model.bbox_head.num_proposals
    pairs = [(one.steps, one.boxes) for one in args.settings] or [
        (steps, boxes) for steps in args.steps or (1, 2, 4) for boxes in args.boxes or sorted({trained, 300, 500})]
    configured = dict(model.bbox_head.test_cfg or {})
    settings = grid(pairs, configured, eta=args.eta, renewal_score_thr=args.renewal, nms=args.nms,
                    ensemble=args.ensemble, start_noise=args.start_noise, controls=args.controls)
    for one in settings:
        one.check(model.bbox_head)
    return settings


def scored_objects(dataset: BaseDataset) -> COCO:
    """The objects of a test set."""
    try:
        truth = ground_truth(dataset)
    except ValueError as error:
        raise SystemExit(str(error)) from error
    if not num_objects(truth):
        raise SystemExit(f'{dataset.ann_file} has no object of {", ".join(dataset.metainfo["classes"])}: there is '
                         'nothing to score by')
    return truth


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    args = parse_args(argv)
    keep_freed_memory()
    config, model = load(args)
    try:
        settings = wanted(args, model)
    except ValueError as error:
        raise SystemExit(str(error)) from error
    if not is_coco_box_ap(config.test_evaluator):
        Evaluator(config.test_evaluator)  # a wrong one shows now
    loader = Runner.build_dataloader(config.test_dataloader)
    dataset, truth = loader.dataset, scored_objects(loader.dataset)
    out = args.out_dir or Path('work_dirs', 'dial', Path(args.config).stem)
    made_of = dict(
        weights=weights_digest(model.state_dict()), data=data_digest(map(dataset.get_data_info, range(len(dataset)))),
        loader=config.test_dataloader, model=config.model, code=code_digest(config),
        machine=machine(torch.device(args.device)))  # times are kept with the detections
    cells = {(one, seed): CellRecords(out / 'cells', dict(made_of, setting=one.values(), seed=seed))
             for one in settings for seed in args.seeds}
    print(f'{len(settings)} settings x {len(args.seeds)} seeds on {len(dataset)} images, into {out}', flush=True)
    progress = ProgressBar(len(dataset))
    num_chunks = test_cells(model, loader, {cell: dict(one.values(), seed=seed) for (one, seed), cell in cells.items()},
                            progress=progress.update)
    print(flush=True)
    report = DialReport.of_records(
        {one: [cells[one, seed].read(num_chunks, len(dataset)) for seed in args.seeds] for one in settings},
        seeds=args.seeds, truth=truth, model=model, loader=loader, evaluator=config.test_evaluator,
        num_draws=args.num_draws)
    text = write_report(report, out, title=f'{Path(args.config).stem}, {Path(args.checkpoint).name}',
                        device=args.device, under_ms=args.under_ms)
    print(text)
    write_whole_file(out / 'made_of.json', (json.dumps(made_of, indent=1, default=str) + '\n').encode())
    return 0


if __name__ == '__main__':
    sys.exit(main())
