"""The commands, in the order in which help lists them. A new one is one more row."""

from typing import NamedTuple


class Command(NamedTuple):
    """A program in ``tools/`` under a short name.

    Attributes:
        name (str): what the user types.
        script (str): path in ``tools/``.
        summary (str): a few words for the list of commands.
        example (str): arguments of a call that makes sense.
        takes_config (bool): whether the first argument is a config, by its name or path.
        needs_openmmlab (bool): whether it cannot do without torch, mmengine, mmcv and mmdet.
        takes_export (bool): whether an exported folder may stand in place of the config; nothing else is needed then.
    """

    name: str
    script: str
    summary: str
    example: str
    takes_config: bool = False
    needs_openmmlab: bool = True
    takes_export: bool = False


SHAPES = 'diffusiondet_r18_fpn_1xb4-4k_shapes'

COMMANDS = (
    Command('demo', 'demo.py', 'draw a data set, train on it, test, picture the results', '--minutes 5'),
    Command('train', 'train.py', "train a config: mmdet's tools/train.py", f'{SHAPES} --work-dir work_dirs/shapes',
            takes_config=True),
    Command('test', 'test.py', "score a checkpoint: mmdet's tools/test.py",
            f'{SHAPES} CHECKPOINT.pth --cfg-options model.test_cfg.sampling_timesteps=4', takes_config=True),
    Command('predict', 'predict.py', 'find objects in pictures, videos, folders, camera streams',
            f"{SHAPES} CHECKPOINT.pth pictures/ 'more/*.jpg' --steps 4 --out-dir predictions", takes_config=True,
            takes_export=True),
    Command('animate', 'visualizations/animate.py', 'show the way from noise to objects on a picture',
            f'{SHAPES} CHECKPOINT.pth picture.jpg --out way.webp --steps 4', takes_config=True),
    Command('web', 'web.py', 'turn the dial on a page in the browser, and watch the boxes',
            f'{SHAPES} CHECKPOINT.pth --examples pictures/', takes_config=True),
    Command('dial', 'analysis_tools/dial.py', 'test one checkpoint at many settings of boxes and steps',
            f'{SHAPES} CHECKPOINT.pth --steps 1 4 --boxes 100 300', takes_config=True),
    Command('compare', 'analysis_tools/compare_detectors.py', 'compare any detectors: accuracy, cost, errors',
            f'--detector {SHAPES} ONE.pth --detector OTHER_CONFIG.py OTHER.pth --settings 1x100 4x300'),
    Command('curves', 'analysis_tools/plot_curves.py', 'plot learning curves of one or several trainings',
            'work_dirs/ours work_dirs/other --out curves.png'),
    Command('export', 'deployment/export.py', 'write a detector as ONNX, to run without torch',
            f'{SHAPES} CHECKPOINT.pth --out exported', takes_config=True),
    Command('convert', 'model_converters/diffusiondet_to_mmdet.py', "convert a checkpoint of the authors' code",
            'SRC.pth DST.pth --check diffusiondet_r50_fpn_8xb2-450k_coco'),
    Command('shapes', 'dataset_converters/make_shapes.py', 'make a small detection set, to try things on',
            'data/shapes'),
    Command('sizes', 'analysis_tools/measure_sizes.py', "measure a data set's objects: lines for a config",
            'data/bccd/annotations/train.json', needs_openmmlab=False),
    Command('configs', 'misc/configs.py', 'list, show or copy the configs, or make one for your own data',
            'new my_configs/mine.py --train annotations.json --images images', needs_openmmlab=False),
    Command('doctor', 'misc/check_environment.py', 'say what is installed, or its first fault with the cure', '',
            needs_openmmlab=False),
    Command('operators', 'misc/operators.py', "say whose operators are in use, mmcv's or the stand-ins", '',
            needs_openmmlab=False),
)
