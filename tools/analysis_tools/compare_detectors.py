"""Compare detectors of MMDetection's on one data set: accuracy with intervals of the differences, cost, errors.

Each --detector is a config and one or more checkpoints, of trainings that differ in their seed; NAME=CONFIG names it.
One without checkpoints is trained, once with each of --train-seeds; a training that was ended goes on.
Those with a dial (DiffusionDet) are tested at all --settings with all --seeds. Writes one HTML page, Markdown, CSV and
JSON. A run that was ended goes on where it stopped; what fails is named, and the rest is compared.

Example:
    mmdet-diffusion compare --detector ours=CONFIG iter_1.pth iter_2.pth --detector retina=CONFIG iter_1.pth \
        --settings 1x100 4x300 --seeds 0 1 2 --out-dir work_dirs/compare
"""

import mmdet_diffusion  # noqa: F401  isort: skip  first: it makes the operators of mmcv available
import argparse
import subprocess
import sys
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate

from diffusiondet_runtime.folder import sha256
from mmdet_diffusion.config_zoo import refuse_missing_config, with_config_path
from mmdet_diffusion.evaluation.bootstrap import NUM_DRAWS, draws
from mmdet_diffusion.evaluation.content_key import content_key
from mmdet_diffusion.evaluation.contest import Contest, Entry, load_model, test_loader
from mmdet_diffusion.evaluation.contest_report import ContestReport, write_contest
from mmdet_diffusion.evaluation.cost_card import machine, peak_memory
from mmdet_diffusion.evaluation.dial_settings import DialSetting, dial_setting
from mmdet_diffusion.host_memory import keep_freed_memory
from mmdet_diffusion.input_checks import dataset_paths, datasets, refuse_missing_checkpoint, refuse_missing_device

TRAIN = Path(__file__).resolve().parents[1] / 'train.py'
QUICK_IMAGES, QUICK_DRAWS, QUICK_TIMED = 40, 100, 6


def entry(words: list[str]) -> Entry:
    """``[NAME=]CONFIG [CHECKPOINT ...]``."""
    name, separator, path = words[0].rpartition('=')
    for checkpoint in words[1:]:
        refuse_missing_checkpoint(checkpoint)
    path, = with_config_path([path])
    refuse_missing_config(path)
    return Entry(name if separator else Path(path).stem, Config.fromfile(path), words[1:])


def train(one: Entry, seed: int, out_dir: Path) -> str:
    """The last checkpoint of a training, which is done where it is not there yet; of another config, or of annotation
    files with another content, it is another.

    Raises:
        SystemExit: if the training fails.
    """
    key = content_key(dict(config=one.config.pretty_text, annotations=annotations_digests(one.config)))
    work_dir = out_dir / 'trainings' / f'{one.name}_seed{seed}_{key}'
    last, ended = work_dir / 'last_checkpoint', work_dir / 'ended'
    if ended.is_file():
        print(f'{one.name}, seed {seed}: trained before, in {work_dir}', flush=True)
    else:
        command = [sys.executable, str(TRAIN), one.config.filename, '--work-dir', str(work_dir), '--cfg-options',
                   f'randomness.seed={seed}', *(['--resume'] if last.is_file() else [])]
        if subprocess.run(command, check=False).returncode:
            raise SystemExit(f'the training of {one.name} with seed {seed} failed; its log is in {work_dir}')
        ended.touch()
    return last.read_text().strip()


def annotations_digests(config: Config) -> list[str]:
    """SHA-256 of the annotation files that a training reads."""
    paths = [path for dataset, _ in datasets(config.train_dataloader.dataset, '')
             for kind, path, _ in dataset_paths(dataset, '') if kind == 'annotation file' and Path(path).is_file()]
    return list(map(sha256, paths))


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--detector', nargs='+', action='append', required=True,
                        metavar=('[NAME=]CONFIG', 'CHECKPOINT'), dest='detectors')
    parser.add_argument('--settings', nargs='+', type=dial_setting, default=[], metavar='STEPSxBOXES',
                        help="of detectors with a dial; default: the config's")
    parser.add_argument('--seeds', nargs='+', type=int, default=[0], help='of sampling')
    parser.add_argument('--train-seeds', nargs='+', type=int, default=[], metavar='SEED',
                        help='train detectors that are named without a checkpoint, once with each')
    parser.add_argument('--out-dir', type=Path, default=Path('work_dirs/compare'))
    parser.add_argument('--num-draws', type=draws, default=NUM_DRAWS, help='of the bootstrap over images')
    parser.add_argument('--quick', action='store_true',
                        help='few images and draws, to see that all runs; trainings are as long as ever')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--peak-memory', action='store_true', help=argparse.SUPPRESS)  # of one, in a process of its own
    args = parser.parse_args(argv)
    args.seeds = list(dict.fromkeys(args.seeds))  # the same one twice is no second draw
    args.train_seeds, args.settings = (list(dict.fromkeys(values)) for values in (args.train_seeds, args.settings))
    for words in args.detectors if not args.train_seeds else ():
        if len(words) < 2:
            raise SystemExit(f'--detector {words[0]} names no checkpoint; give one, or train it by --train-seeds 0')
    return args


def print_peak_memory(args: argparse.Namespace) -> None:
    """MiB of this process once it has tested one image."""
    one = entry(args.detectors[0])
    sample = test_loader(one.config, 1).dataset[0]
    model = load_model(one, one.checkpoints[0], torch.device(args.device))
    if args.settings:
        model.bbox_head.test_cfg = dict(model.bbox_head.test_cfg or {}, **args.settings[0].values())
    with torch.no_grad():
        model.test_step(pseudo_collate([sample]))
    print(round(peak_memory(torch.device(args.device))))


def measured_memory(args: argparse.Namespace, words: list[str], at: DialSetting | None) -> int | None:
    """What :func:`print_peak_memory` prints in a fresh process; None where that fails."""
    command = [sys.executable, __file__, '--peak-memory', '--device', args.device, '--detector', *words]
    command += ['--settings', f'{at.steps}x{at.boxes}'] if at else []
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return int(done.stdout.split()[-1]) if done.returncode == 0 else None


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    args = parse_args(argv)
    refuse_missing_device(args.device)
    if args.peak_memory:
        print_peak_memory(args)
        return 0
    keep_freed_memory()
    entries = [entry(words) for words in args.detectors]
    names = [one.name for one in entries]
    if len(set(names)) < len(names):
        raise SystemExit(f'two detectors have one name among {", ".join(names)}: name them, NAME=CONFIG')
    args.out_dir.mkdir(parents=True, exist_ok=True)
    contest = Contest(entries, args.out_dir, settings=args.settings, seeds=args.seeds, device=torch.device(args.device),
                      num_images=QUICK_IMAGES if args.quick else 0, num_timed=QUICK_TIMED if args.quick else 40,
                      num_draws=QUICK_DRAWS if args.quick else args.num_draws)
    checkpoints = {}

    def given_or_trained(one: Entry) -> list[str]:
        checkpoints[one.name] = one.checkpoints or [train(one, seed, args.out_dir) for seed in args.train_seeds]
        return checkpoints[one.name]

    outcomes, failures = contest.run(given_or_trained)
    if not outcomes:
        raise SystemExit('no detector could be tested')
    words = {one.name: [given[0], checkpoints[one.name][0]]
             for one, given in zip(entries, args.detectors, strict=True) if one.name in checkpoints}
    for outcome in outcomes:
        outcome.cost['peak_memory'] = measured_memory(args, words[outcome.detector], outcome.setting)
    report = ContestReport(outcomes, failures, contest.truth, machine=machine(contest.device),
                           num_draws=contest.num_draws)
    print(write_contest(report, args.out_dir))
    print(f'the page: {args.out_dir / "compare.html"}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
