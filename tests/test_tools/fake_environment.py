"""What the tests of the set-up share: an environment that is only described, steps that are only noted down."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / 'tools' / 'misc'))

import check_environment as check  # noqa: E402
import setup_compiled as compiled  # noqa: E402
import setup_environment as setup  # noqa: E402

__all__ = ['ROOT', 'check', 'compiled', 'environment', 'record_steps', 'setup']

NO_PROVIDERS = {'mmengine': [], 'mmcv': [], 'mmdet': [], 'cv2': []}


def environment(tmp_path, versions=None, providers=None) -> setup.Environment:
    info = {'python': '3.11.7', 'versions': versions or {}, 'providers': {**NO_PROVIDERS, **(providers or {})}}
    return setup.Environment(tmp_path, tmp_path / 'bin' / 'python', info)


def record_steps(monkeypatch, output='') -> list:
    """Commands that the environment's Python would be given, instead of running them."""
    steps = []

    def run(self, title, *arguments, **variables):
        steps.append(arguments)
        return output

    monkeypatch.setattr(setup.Environment, 'run', run)
    return steps
