"""What an import says where the stack is not whole."""

import os
import subprocess
import sys

import pytest

from mmdet_diffusion import installation
from mmdet_diffusion.testing import REPOSITORY


@pytest.mark.parametrize('gone', [['mmdet'], ['torch'], ['mmengine', 'mmcv', 'mmdet']])
def test_what_is_missing_is_named_with_the_extras_that_bring_it(monkeypatch, gone):
    for name in gone:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError) as error:
        installation.check_installed()
    message = str(error.value)
    assert message.startswith(f'mmdet_diffusion needs {", ".join(gone)}, not installed here. Cure: in a clone')
    assert all(f'".[{extra}]"' in message for extra in ('lite', 'onedl')) and 'docs/operators.md' in message
    assert '\n' not in message


def test_an_opencv_that_cannot_be_imported_leads_to_the_doctor(monkeypatch, tmp_path):
    (tmp_path / 'cv2.py').write_text("raise ImportError('libGL.so.1: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, 'cv2', raising=False)
    with pytest.raises(ImportError, match=r'libGL.so.1: cannot open .*; `mmdet-diffusion doctor` names the cure'):
        installation.check_opencv()


def test_the_package_itself_says_so(tmp_path):
    code = "import sys; sys.modules['mmdet'] = None; import mmdet_diffusion"
    done = subprocess.run([sys.executable, '-c', code], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    last = done.stderr.splitlines()[-1]
    assert last.startswith('ImportError: mmdet_diffusion needs mmdet, not installed here. Cure: in a clone')


def test_the_doctor_knows_the_cure_for_a_machine_without_libgl(tmp_path):
    (tmp_path / 'cv2.py').write_text("raise ImportError('libGL.so.1: cannot open shared object file')")
    doctor = REPOSITORY / 'tools' / 'misc' / 'check_environment.py'
    done = subprocess.run([sys.executable, doctor], capture_output=True, text=True, check=False,
                          env=dict(os.environ, PYTHONPATH=str(tmp_path)))
    assert done.returncode == 1 and done.stderr.count('\n') == 1
    assert 'libGL.so.1' in done.stderr
    assert 'pip uninstall -y opencv-python opencv-python-headless && pip install opencv-python-headless' in done.stderr
