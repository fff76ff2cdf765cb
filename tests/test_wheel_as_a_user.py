"""A wheel in an empty environment and an empty folder, used as its user would.

The environment sees what this one has installed, but nothing of the clone.
"""

import json
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CONFIG = 'diffusiondet_r18_fpn_1xb4-4k_shapes'
FEW = ['train_cfg.max_iters=2', 'train_cfg.val_interval=2', 'default_hooks.logger.interval=1',
       'model.bbox_head.num_proposals=20', 'model.test_cfg.num_proposals=20']

INFER = """
import json, sys
import mmdet_diffusion
from mmdet.apis import DetInferencer
found = DetInferencer(sys.argv[1], sys.argv[2], device='cpu', show_progress=False)(sys.argv[3], no_save_vis=True)
print(json.dumps(found['predictions'][0]))
"""


class Installed:
    """The environment with the wheel, and the folder that its user works in.

    Args:
        environment (Path): the virtual environment.
        folder (Path): empty.
    """

    def __init__(self, environment: Path, folder: Path) -> None:
        self.bin, self.folder = environment / 'bin', folder

    def call(self, *args: object, program: str = 'mmdet-diffusion', code: int = 0) -> str:
        """Run a program of the environment in the folder; gives what it printed, without its notices."""
        command = [str(self.bin / program), *map(str, args)]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False,
                              env=variables())
        assert done.returncode == code, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout


def variables() -> dict[str, str]:
    """Environment variables without a way to the clone."""
    kept = {name: value for name, value in os.environ.items() if name not in ('PYTHONPATH', 'PYTHONHOME')}
    return dict(kept, OMP_NUM_THREADS='1')


def pip(*args: object) -> None:
    done = subprocess.run([sys.executable, '-m', 'pip', *map(str, args)], cwd=ROOT, capture_output=True, text=True,
                          check=False, env=variables())
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.fixture(scope='module')
def installed(tmp_path_factory):
    folder = tmp_path_factory.mktemp('user')
    environment, wheels = folder / 'environment', folder / 'wheels'
    pip('wheel', '.', '--no-deps', '--no-build-isolation', '--no-index', '--wheel-dir', wheels)
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', environment], check=True)
    pip('--python', environment / 'bin' / 'python', 'install', '--no-deps', '--no-index', *wheels.glob('*.whl'))
    own = next((environment / 'lib').glob('python*/site-packages'))
    # A folder that one path file names has its own path files, such as an editable install's, left unread.
    (own / 'dependencies.pth').write_text(sysconfig.get_path('purelib') + '\n')
    (folder / 'work').mkdir()
    return Installed(environment, folder / 'work')


@pytest.fixture(scope='module')
def trained(installed):
    """What the training of a config by name on a made set printed."""
    installed.call('shapes', 'data/shapes', '--num-train', 8, '--num-val', 3, '--size', 64)
    return installed.call('train', CONFIG, '--work-dir', 'work_dirs/mine', '--cfg-options', *FEW)


CHECKPOINT = 'work_dirs/mine/iter_2.pth'


@pytest.mark.slow
def test_the_package_is_that_of_the_wheel(installed):
    code = 'import mmdet_diffusion, mmdet_diffusion_cli as cli; print(mmdet_diffusion.__file__, cli.__file__)'
    places = [Path(place) for place in installed.call('-c', code, program='python').split()[-2:]]
    assert all(place.is_relative_to(installed.bin.parent) for place in places), places


@pytest.mark.slow
def test_help_is_the_same_by_either_name(installed):
    printed = installed.call('--help')
    assert 'usage: mmdet-diffusion COMMAND' in printed and '  predict ' in printed
    assert installed.call('-m', 'mmdet_diffusion', '--help', program='python').endswith(printed)


@pytest.mark.slow
def test_the_demo_goes_through_and_leaves_its_results_in_the_folder(installed):
    printed = installed.call('demo', '--quick')
    assert len(re.findall(r'^\| [14]x(?:64|500) \|', printed, re.MULTILINE)) == 4
    made = {path.name for path in (installed.folder / 'work_dirs' / 'demo_quick').iterdir()}
    assert {'detections.png', 'denoising.png', 'dial', 'finished'} <= made
    assert (installed.folder / 'data' / 'shapes_quick' / 'shapes.json').is_file()


@pytest.mark.slow
def test_a_config_is_trained_by_name_on_a_made_set(installed, trained):
    assert re.search(r'Iter\(train\) \[2/2\].* loss_iou: \d', trained)
    assert (installed.folder / CHECKPOINT).is_file()


@pytest.mark.slow
def test_a_checkpoint_is_tested_by_name_of_its_config(installed, trained):
    printed = installed.call('test', CONFIG, CHECKPOINT, '--cfg-options', 'model.test_cfg.sampling_timesteps=2')
    assert re.search(r'Iter\(test\).*coco/bbox_mAP: -?[\d.]+', printed)


@pytest.mark.slow
def test_pictures_are_predicted(installed, trained):
    installed.call('predict', CONFIG, CHECKPOINT, 'data/shapes/val', '--steps', 2, '--boxes', 20, '--score-thr', 0)
    content = json.loads((installed.folder / 'predictions' / 'predictions.json').read_text())
    assert [Path(image['image']).name for image in content['images']] == ['000001.png', '000002.png', '000003.png']
    assert content['classes'][0] == 'circle' and all(image['bboxes'] for image in content['images'])
    assert len(list((installed.folder / 'predictions' / 'vis').glob('*.png'))) == 3


@pytest.mark.slow
def test_a_copied_config_and_the_inferencer_of_mmdet_work_with_the_checkpoint(installed, trained):
    config = installed.call('configs', 'copy', CONFIG, 'my_configs').strip()
    (installed.folder / 'infer.py').write_text(INFER)
    printed = installed.call('infer.py', config, CHECKPOINT, 'data/shapes/val/000001.png', program='python')
    found = next(json.loads(line) for line in printed.splitlines() if line.startswith('{'))
    assert len(found['bboxes']) == len(found['scores']) > 0


@pytest.mark.slow
def test_the_doctor_says_what_is_in_use(installed):
    assert re.search(r'operators: (compiled|stand-in)$', installed.call('doctor').strip())


@pytest.mark.slow
@pytest.mark.parametrize('command', ['convert', 'operators', 'configs'])
def test_the_other_commands_start(installed, command):
    assert 'usage:' in installed.call(command, '--help')


@pytest.mark.slow
def test_programs_that_import_mmdet_first_find_its_operators(installed):
    """MMDetection's own scripts, and loader workers that are spawned."""
    code = ('import mmcv.ops, torch; boxes = torch.tensor([[0.0, 0.0, 9.0, 9.0]] * 2);'
            'print(mmcv.ops.nms(boxes, torch.ones(2), 0.5)[1].tolist())')
    assert installed.call('-c', code, program='python').strip() == '[0]'
