"""``mmdet-diffusion export``, and ``predict`` on what it writes."""

import http.client
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from exports import calm, config_of_tests
from mmengine.config import Config
from PIL import Image

from diffusiondet_runtime import OnnxDetector
from diffusiondet_runtime.post_processing import Detections, finish
from mmdet_diffusion import config_path
from mmdet_diffusion.deployment import parity_check
from mmdet_diffusion.deployment.sampler_file import post_processing, sampler_content
from mmdet_diffusion.prediction import Predictor
from mmdet_diffusion.sampling_settings import SamplingSettings
from mmdet_diffusion.testing import REPOSITORY, build_detector, load_tool, small_model_cfg

SHAPES = config_path('diffusiondet_r18_fpn_1xb4-4k_shapes')
export = load_tool('deployment/export.py')
predict = load_tool('predict.py')


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    model = build_detector(Config.fromfile(SHAPES).model)
    calm(model)
    path = tmp_path_factory.mktemp('checkpoint') / 'calm.pth'
    torch.save(dict(state_dict=model.state_dict()), path)
    return path


@pytest.fixture(scope='module')
def exported(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp('export') / 'deep' / 'exported'
    assert export.main([SHAPES, str(checkpoint), '--out', str(folder), '--check-boxes', '20']) == 0
    return folder


def test_the_command_writes_what_belongs_together_with_the_figures_of_its_check(exported):
    assert sorted(os.listdir(exported.parent)) == ['exported']
    assert sorted(os.listdir(exported)) == ['features.onnx', 'refine.onnx', 'sampler.json']
    content = json.loads((exported / 'sampler.json').read_text())
    assert content['checkpoint']['name'] == 'calm.pth' and content['classes'][0] == 'circle'
    assert len(content['check']) == 10 and all(figure['value'] <= figure['bar'] for figure in content['check'])


def test_an_empty_folder_under_another_name_is_filled(checkpoint, tmp_path):
    (tmp_path / 'disk').mkdir()
    (tmp_path / 'link').symlink_to('disk')
    (tmp_path / 'later').symlink_to('not_yet')
    for link, folder in (('link', 'disk'), ('later', 'not_yet')):
        assert export.main([SHAPES, str(checkpoint), '--out', str(tmp_path / link), '--no-check']) == 0
        assert (tmp_path / link).is_symlink() and (tmp_path / folder / 'sampler.json').is_file()


def test_a_failed_check_gives_the_files_another_name_and_says_which_figure(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(parity_check, 'BOX_BAR', 1e-12)
    for number in ('', '-2'):
        assert export.main([SHAPES, str(checkpoint), '--out', str(tmp_path / 'out'), '--check-boxes', '5']) == 1
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith('the check failed (boxes of step 1 of 4, fed the same boxes, px: ')
        assert error.endswith(f'the files are in {tmp_path / "out"}.failed{number}') and 'logits' not in error
    assert sorted(os.listdir(tmp_path)) == ['out.failed', 'out.failed-2']


@pytest.mark.parametrize(('args', 'refusal'), [
    ([SHAPES, 'none.pth', '--out', 'new'], '^there is no checkpoint none.pth$'),
    (['none.py', 'CHECKPOINT', '--out', 'new'], '^there is no config file none.py$'),
    ([SHAPES, 'CHECKPOINT', '--out', 'taken'], '^--out taken is there and not an empty folder; name another one$'),
    ([SHAPES, 'CHECKPOINT', '--out', 'taken/file/new'], '^--out taken/file/new cannot be made: Not a directory$'),
    ([SHAPES, 'taken/file', '--out', 'new'], '^taken/file is no checkpoint, or asks for more than tensors'),
    (['retinanet_r18_fpn_1xb4-4k_shapes', 'CHECKPOINT', '--out', 'new'],
     '^retinanet_r18_fpn_1xb4-4k_shapes is a RetinaNet, not a DiffusionDet$'),
    ([SHAPES, 'CHECKPOINT', '--out', 'new', '--check-picture', 'none.jpg'], '^there is no picture none.jpg$'),
    ([SHAPES, 'CHECKPOINT', '--out', 'new', '--check-picture', 'taken/file'],
     '^taken/file cannot be read as a picture'),
])
def test_what_is_wrong_is_said_in_one_line_and_nothing_is_written(checkpoint, tmp_path, monkeypatch, args, refusal):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'taken').mkdir()
    (tmp_path / 'taken' / 'file').write_text('x')
    before = sorted(tmp_path.rglob('*'))
    with pytest.raises(SystemExit, match=refusal) as ended:
        export.main([str(checkpoint) if arg == 'CHECKPOINT' else arg for arg in args])
    assert '\n' not in str(ended.value)
    assert sorted(tmp_path.rglob('*')) == before


def test_predict_takes_the_folder_and_finds_what_the_checkpoint_finds(exported, checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(parity_check.check_picture((128, 90))).save('a.png')
    dials = ['--boxes', '30', '--steps', '2', '--score-thr', '0.0001', '--seed', '3']
    assert predict.main([SHAPES, str(checkpoint), 'a.png', '--device', 'cpu', '--out-dir', 'torch', *dials]) == 0
    assert predict.main([str(exported), 'a.png', '--out-dir', 'onnx', *dials]) == 0
    by_torch, by_onnx = (json.loads((tmp_path / name / 'predictions.json').read_text()) for name in ('torch', 'onnx'))
    assert by_torch['classes'] == by_onnx['classes']
    mine, theirs = by_onnx['images'][0], by_torch['images'][0]
    assert len(mine['labels']) == len(theirs['labels']) > 5
    assert mine['labels'][:5] == theirs['labels'][:5]
    np.testing.assert_allclose(mine['scores'], theirs['scores'], atol=2e-4)
    np.testing.assert_allclose(mine['bboxes'][:5], theirs['bboxes'][:5], atol=0.1)
    assert Image.open(tmp_path / 'onnx' / 'vis' / 'a.png').size == (128, 90)


def test_the_installed_command_predicts_without_torch(exported, tmp_path):
    Image.fromarray(parity_check.check_picture((64, 48))).save(tmp_path / 'a.png')
    (tmp_path / 'b.png').write_text('no picture')
    code = ("import sys\nfor name in ('torch', 'mmdet', 'mmcv', 'mmengine'):\n    sys.modules[name] = None\n"
            'import mmdet_diffusion_cli as cli\nsys.exit(cli.main(sys.argv[1:]))')
    done = subprocess.run([sys.executable, '-c', code, 'predict', exported, 'a.png', 'b.png', '--boxes', '20'],
                          cwd=tmp_path, capture_output=True, text=True, check=False,
                          env=dict(os.environ, PYTHONPATH=str(REPOSITORY)))
    assert done.returncode == 1 and 'b.png: cannot be used (ExportError: b.png cannot be read' in done.stderr
    assert json.loads((tmp_path / 'predictions' / 'predictions.json').read_text())['failed'].keys() == {'b.png'}


@pytest.mark.parametrize(('args', 'refusal'), [
    (['FOLDER', 'a.png', '--device', 'cpu'], '--device goes with a config, not with an exported folder'),
    ([SHAPES, 'x.pth', 'a.png', '--engine', 'openvino'], '--engine goes with an exported folder, not with a config'),
    ([SHAPES, 'x.pth'], 'the following arguments are required: SOURCE (there is no exported folder ')])
def test_options_that_do_not_go_together_are_refused(exported, capsys, args, refusal):
    with pytest.raises(SystemExit):
        predict.parse_args([str(exported) if arg == 'FOLDER' else arg for arg in args])
    assert refusal in capsys.readouterr().err


def test_a_folder_without_an_export_is_refused_by_predict(tmp_path):
    Image.new('RGB', (5, 5)).save(tmp_path / 'a.png')
    with pytest.raises(SystemExit, match='is no exported folder: there is no sampler.json in it$'):
        predict.main([str(tmp_path), str(tmp_path / 'a.png')])


def test_the_benchmark_prints_a_row_of_every_engine(exported, checkpoint, capsys, monkeypatch):
    benchmark = load_tool('analysis_tools/benchmark_export.py')
    monkeypatch.setenv('PYTHONPATH', str(REPOSITORY))
    monkeypatch.setattr(benchmark, 'ENGINES', ('torch', 'onnxruntime'))
    few = ['--boxes', '5', '--steps', '2', '--repetitions', '1', '--rounds', '1', '--threads', '1']
    assert benchmark.main([SHAPES, str(checkpoint), str(exported), *few]) == 0
    head, _, row = capsys.readouterr().out.strip().splitlines()
    assert head == '| boxes | steps | torch, s | MiB | x torch | onnxruntime, s | MiB | x torch |'
    boxes, steps, *values = (float(cell) for cell in row.strip('| ').split(' | '))
    assert (boxes, steps, values[2]) == (5, 2, 1) and all(value > 0 for value in values)
    assert values[4] < values[1]  # MiB: the run-time holds less than torch


@pytest.fixture
def scored(checkpoint, tmp_path):
    """A config whose test set has the best detections of the checkpoint at 1x20 as its objects."""
    load_tool('dataset_converters/make_shapes.py').make_set(tmp_path / 'shapes', num_train=1, num_val=4, size=96)
    config = tmp_path / 'scored.py'
    config.write_text(f"_base_ = {SHAPES!r}\n"
                      f"test_dataloader = dict(dataset=dict(data_root='{tmp_path}/shapes/'))\n"
                      f"test_evaluator = dict(ann_file='{tmp_path}/shapes/annotations/val.json')\n")
    predictor = Predictor(Config.fromfile(config), str(checkpoint), device='cpu', score_thr=0.0,
                          dial=dict(num_proposals=20))
    annotations = tmp_path / 'shapes' / 'annotations' / 'val.json'
    content = json.loads(annotations.read_text())
    content['annotations'] = []
    for image in content['images']:
        found = predictor.detect([predictor.read(tmp_path / 'shapes' / 'val' / image['file_name'])[1]])[0]
        for box, label in zip(found.pred_instances.bboxes[:5].tolist(), found.pred_instances.labels[:5].tolist(),
                              strict=True):
            width, height = box[2] - box[0], box[3] - box[1]
            category = content['categories'][label]['id']
            content['annotations'].append(dict(
                id=len(content['annotations']) + 1, image_id=image['id'], category_id=category,
                bbox=[box[0], box[1], width, height], area=width * height, iscrowd=0))
    annotations.write_text(json.dumps(content))
    return str(config)


def test_ap_of_torch_and_of_the_export_stand_side_by_side(exported, checkpoint, scored, capsys, monkeypatch):
    accuracy = load_tool('analysis_tools/accuracy_export.py')
    args = [scored, str(checkpoint), str(exported), '--settings', '1x20', '1x30', '--threads', '1']
    assert accuracy.main(args) == 0
    rows = [line.strip('| ').split(' | ') for line in capsys.readouterr().out.splitlines() if line.startswith('| ')][2:]
    assert [row[0] for row in rows] == ['1x20', '1x30']
    assert float(rows[0][1]) > 0.5  # the objects are its own detections
    assert all(abs(float(row[1]) - float(row[2])) <= 0.001 for row in rows)

    def moved(self, *inputs, detect=OnnxDetector.detect, **settings):
        found = detect(self, *inputs, **settings)
        return found._replace(bboxes=found.bboxes + 2)

    monkeypatch.setattr(OnnxDetector, 'detect', moved)
    assert accuracy.main([*args, '--num-images', '2']) == 1
    assert capsys.readouterr().err.endswith('AP differs by more than 0.001\n')


def test_an_export_of_another_checkpoint_is_not_compared(exported, checkpoint, scored, tmp_path):
    content = torch.load(checkpoint, weights_only=True)
    torch.save(dict(content, meta={}), tmp_path / 'other.pth')
    with pytest.raises(SystemExit, match='was exported from another checkpoint than .*other.pth, from calm.pth$'):
        load_tool('analysis_tools/accuracy_export.py').main([scored, str(tmp_path / 'other.pth'), str(exported)])


@pytest.mark.slow
def test_the_r50_config_at_its_own_size_passes_the_check_of_the_command(tmp_path):
    """800 x 1333 and 500 boxes, at full width: each of four steps, and the detections of one."""
    model = Config.fromfile(config_path('diffusiondet_r50_fpn_8xb2-450k_coco')).model
    model.backbone.init_cfg = None
    detector = build_detector(model)
    calm(detector)
    torch.save(dict(state_dict=detector.state_dict()), tmp_path / 'calm.pth')
    out = tmp_path / 'exported'
    assert export.main(['diffusiondet_r50_fpn_8xb2-450k_coco', str(tmp_path / 'calm.pth'), '--out', str(out)]) == 0
    content = json.loads((out / 'sampler.json').read_text())
    assert content['input']['resize']['scale'] == [1333, 800] and content['sampling']['boxes'] == 500
    assert len(content['check']) == 10


@pytest.fixture
def documented(exported, tmp_path, monkeypatch):
    """The Python of docs/deployment.md, in a folder with an export and a picture."""
    monkeypatch.chdir(tmp_path)
    os.symlink(exported, 'exported')
    Image.fromarray(parity_check.check_picture((96, 64))).save('picture.jpg')
    page = (REPOSITORY / 'docs' / 'deployment.md').read_text()
    return [block.split('```')[0] for block in page.split('```python\n')[1:]]


def test_the_python_of_the_deployment_page_detects(documented, capsys):
    exec(documented[0], {})
    steps = [line.split(' ', 1) for line in capsys.readouterr().out.splitlines()[-8:]]
    assert [int(t) for t, _ in steps] == sorted((int(t) for t, _ in steps), reverse=True)
    assert all(shape == steps[0][1] and shape.endswith(', 4)') for _, shape in steps)


def test_the_service_of_the_deployment_page_answers(documented, monkeypatch):
    servers = []
    monkeypatch.setattr('http.server.HTTPServer.serve_forever', lambda self: servers.append(self))
    code = documented[1].replace("('', 8000)", "('127.0.0.1', 0)")
    assert code != documented[1]
    exec(code, {})
    server, = servers
    answers = {}
    for body in (Path('picture.jpg').read_bytes(), b'no picture'):
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        connection = http.client.HTTPConnection('127.0.0.1', server.server_port)
        connection.request('POST', '/', body)
        answer = connection.getresponse()
        answers[answer.status] = json.load(answer)
        thread.join()
    server.server_close()
    assert set(answers) == {200, 400} and set(answers[200]) == {'bboxes', 'scores', 'labels'}
    assert 'cannot identify image' in answers[400]['error']


def test_no_limit_and_no_threshold_are_those_of_mmdet():
    written = post_processing(SamplingSettings(num_proposals=5, score_thr=None, max_per_img=-1, nms=None))
    scores = np.linspace(0.5, 0, 400, dtype=np.float32)
    found = Detections(np.tile(np.float32([0, 0, 9, 9]), (400, 1)), scores, np.zeros(400, dtype=np.int64))
    assert len(finish(found, written, (10, 10), (1.0, 1.0)).scores) == 400


def test_a_frame_that_the_run_time_lacks_is_named():
    detector = build_detector(small_model_cfg())
    detector.bbox_head.box_sampler.coder = torch.nn.Identity()
    with pytest.raises(ValueError, match='box_sampler.coder is Identity'):
        sampler_content(config_of_tests(), detector, ['a'], dict(name='', sha256=''))
