"""mmdet-diffusion curves, on logs as mmengine writes them."""

import json

import pytest
from PIL import Image

from mmdet_diffusion.evaluation.cost_card import training_seconds
from mmdet_diffusion.evaluation.learning_curves import learning_curve
from mmdet_diffusion.testing import load_tool

curves = load_tool('analysis_tools/plot_curves.py')


def write_log(work_dir, name, entries):
    log = work_dir / name / 'vis_data' / 'scalars.json'
    log.parent.mkdir(parents=True)
    log.write_text('\n'.join(map(json.dumps, entries)) + '\n{"loss": 1.')  # killed while it wrote


@pytest.fixture
def runs(tmp_path):
    """Two trainings; the first was resumed."""
    write_log(tmp_path / 'ours', '20260101', [
        dict(loss=3.0, time=0.5, iter=10), {'coco/bbox_mAP': 0.1, 'coco/bbox_mAP_50': 0.3, 'step': 10},
        dict(loss=2.5, time=0.5, iter=15)])
    write_log(tmp_path / 'ours', '20260102', [
        dict(loss=2.0, time=0.7, iter=20), {'coco/bbox_mAP': 0.4, 'coco/bbox_mAP_50': 0.5, 'step': 20},
        dict(loss=1.9, time=0.7, iter=30), {'coco/bbox_mAP': 0.3, 'coco/bbox_mAP_50': 0.6, 'step': 30}])
    write_log(tmp_path / 'other', '20260101', [dict(loss=1.0, time=0.2, iter=30), {'coco/bbox_mAP': 0.2, 'step': 0}])
    return tmp_path


@pytest.mark.parametrize('ending', ['.png', '.svg', '.pdf'])
def test_it_plots_and_says_the_figures(runs, capsys, ending):
    out = runs / f'curves{ending}'
    assert curves.main([str(runs / 'ours'), f'theirs={runs / "other"}', '--out', str(out)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        'ours: bbox_mAP 0.300 after 30 iterations, 18 s; best 0.400 after 20',
        'theirs: bbox_mAP 0.200 after 30 iterations, 6 s; best 0.200 after 30', str(out)]
    assert out.stat().st_size > 3000
    if ending == '.png':
        assert Image.open(out).width > 1000


def test_a_second_training_in_the_same_folder_replaces_the_first(runs, capsys):
    write_log(runs / 'ours', '20260103', [
        dict(loss=9.0, time=2.0, iter=10), {'coco/bbox_mAP': 0.7, 'step': 10}, dict(loss=8.0, time=2.0, iter=20)])
    assert curves.main([str(runs / 'ours'), '--out', str(runs / 'a.png')]) == 0
    assert 'bbox_mAP 0.700 after 10 iterations, 20 s' in capsys.readouterr().out
    assert learning_curve(runs / 'ours').losses == [(10, 9.0), (20, 8.0)]
    assert training_seconds(runs / 'ours' / 'iter_20.pth') == 2.0


def test_a_training_that_went_on_from_an_earlier_checkpoint_replaces_what_came_after_it(runs):
    write_log(runs / 'ours', '20260103', [
        dict(loss=9.0, time=2.0, iter=30), {'coco/bbox_mAP': 0.7, 'step': 30}])  # after iter_20.pth
    found = learning_curve(runs / 'ours')
    assert found.iterations == [10, 20, 30] and found.values == [0.1, 0.4, 0.7]
    assert found.losses == [(10, 3.0), (15, 2.5), (20, 2.0), (30, 9.0)]
    assert found.seconds == pytest.approx([5.0, 11.0, 31.0])


def test_a_training_too_short_for_a_line_of_losses_is_validated_at_its_end(tmp_path, capsys):
    write_log(tmp_path / 'short', '20260101', [{'coco/bbox_mAP': 0.1, 'step': 4}])
    assert curves.main([str(tmp_path / 'short'), '--out', str(tmp_path / 'a.png')]) == 0
    assert 'bbox_mAP 0.100 after 4 iterations, 0 s' in capsys.readouterr().out


def test_losses_take_a_panel_of_their_own(runs):
    sizes = []
    for words in ([], ['--loss']):
        curves.main([str(runs / 'ours'), '--metric', 'bbox_mAP_50', '--out', str(runs / 'a.png'), *words])
        sizes.append(Image.open(runs / 'a.png').width)
    assert sizes[1] > 1.4 * sizes[0]


def test_losses_of_a_training_without_validation_are_drawn_alone(runs, capsys):
    write_log(runs / 'losses', '20260101', [dict(loss=2.0, time=0.5, iter=10), dict(loss=1.5, time=0.5, iter=20)])
    assert curves.main([str(runs / 'losses'), '--loss', '--out', str(runs / 'a.png')]) == 0
    assert 'losses: not validated; loss 1.500 after 20 iterations' in capsys.readouterr().out
    alone = Image.open(runs / 'a.png').width
    curves.main([str(runs / 'losses'), str(runs / 'ours'), '--loss', '--out', str(runs / 'b.png')])
    assert Image.open(runs / 'b.png').width > 2.5 * alone
    with pytest.raises(SystemExit, match='it was not validated'):
        curves.main([str(runs / 'losses'), '--out', str(runs / 'c.png')])


@pytest.mark.parametrize(('args', 'refusal'), [
    (['ours', '--metric', 'mAP'], "^ours has no 'mAP' in its logs .*; it has bbox_mAP, bbox_mAP_50$"),
    (['none'], '^there is no folder none$'),
    (['empty'], 'in its logs .*; it was not validated, or is no work folder$'),
    (['ours', '--out', 'none/curves.png'], '^cannot write none/curves.png: No such file or directory$')])
def test_what_is_wrong_is_said_in_one_line(runs, monkeypatch, args, refusal):
    monkeypatch.chdir(runs)
    (runs / 'empty').mkdir()
    with pytest.raises(SystemExit, match=refusal):
        curves.main(args)
    assert not list(runs.glob('*.png'))


def test_another_ending_is_refused(capsys):
    with pytest.raises(SystemExit):
        curves.parse_args(['folder', '--out', 'curves.gif'])
    assert '--out must end in .png, .svg, .pdf, got curves.gif' in capsys.readouterr().err
