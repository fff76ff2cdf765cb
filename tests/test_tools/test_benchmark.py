"""The benchmarks at small sizes: what they measure, print and save. Their figures mean nothing here."""

import io
import json
from contextlib import redirect_stdout
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from torch.utils.flop_counter import FlopCounterMode

from mmdet_diffusion import half_precision
from mmdet_diffusion.ops.linear import ONEDNN_IS_FASTER
from mmdet_diffusion.testing import REPOSITORY, load_tool

growth, benchmark, comparison, models, rows, suppression, timing, matrix_products = (
    load_tool(f'analysis_tools/{name}.py') for name in (
        'benchmark_growth', 'benchmark_head', 'benchmark_comparison', 'benchmark_models', 'benchmark_rows',
        'benchmark_suppression', 'benchmark_timing', 'matrix_products'))

NAME = 'diffusiondet_r18_fpn_1xb4-4k_shapes'
CONFIG = str(REPOSITORY / 'configs' / 'diffusiondet' / f'{NAME}.py')
TOOLS = pytest.mark.parametrize('tool', [benchmark, growth], ids=['head', 'growth'])
CPU = torch.device('cpu')
IMAGE = (64, 96)


@pytest.fixture(scope='module')
def model():
    return models.build_model(Config.fromfile(CONFIG), 20, stock=False).eval()


@pytest.fixture(scope='module')
def result(tmp_path_factory):
    """What ``--quick`` prints and saves."""
    file = tmp_path_factory.mktemp('bench') / 'head.json'
    with redirect_stdout(io.StringIO()) as printed:
        assert benchmark.main([CONFIG, '--quick', '--repetitions', '5', '--out', str(file)]) == 0
    return printed.getvalue(), json.loads(file.read_text())


# benchmark_head.py ----------------------------------------------------------------------------------------------------


def test_the_table_has_every_row_with_its_verdict(result):
    printed, saved = result
    in_half = half_precision.missing_support(CPU, torch.bfloat16) is None
    starts = ('RoI features of one stage', 'the same, of a later stage', 'the same, forward + backward',
              'head, 1 step, 30 boxes', 'head, 2 steps, 30 boxes', 'head, 1 step, over its matrix products',
              'training step', 'matching + losses', 'whole inference, image to detections, 1 step',
              'whole inference, image to detections, 2 steps',
              *(f'post-processing, {number} classes, {steps}, 30 boxes, 1 x NMS'
                for number in (80, 365, 1203) for steps in ('1 step', '2 steps')),
              'peak memory of a training step')
    starts += ('head in bfloat16', *['whole inference in bfloat16'] * 2) * in_half
    lines = [line for line in printed.splitlines() if line.startswith(tuple(f'| {start}' for start in starts))]
    assert len(lines) == len(starts) == len(saved['rows'])
    assert all(row['what'].startswith(start) for row, start in zip(saved['rows'], starts, strict=True))
    assert all(line.split('|')[-2].strip() in ('no', 'least', 'aim') for line in lines)


@pytest.mark.parametrize('steps', [1, 4])
@pytest.mark.parametrize('num_classes', [80, 1203])
def test_post_processing_is_compared_with_a_call_of_nms_for_each_class_present(num_classes, steps):
    sides = suppression.suppression(models.QUICK, num_classes, steps, CPU)
    detections = sides.ours.args[0]
    assert len(detections.labels) == 30 * steps
    assert (sides.calls, sides.calls_by_class) == (1, len(detections.labels.unique()))


def test_two_ways_of_suppression_that_keep_other_boxes_are_an_error(monkeypatch):
    monkeypatch.setattr(suppression, 'class_by_class', lambda bboxes, scores, labels, nms: scores.sort(descending=True))
    with pytest.raises(RuntimeError, match='keep different boxes'):
        suppression.suppression(models.Sizes(), 2, 1, CPU)


def test_rows_are_chosen_by_name(tmp_path, capsys):
    file = tmp_path / 'rows.json'
    assert benchmark.main([CONFIG, '--quick', '--rows', 'post_processing', '--out', str(file)]) == 0
    saved = json.loads(file.read_text())
    assert len(saved['rows']) == 6 and all(row['what'].startswith('post-processing') for row in saved['rows'])
    assert saved['operators'] == [] and 'where it waits' not in capsys.readouterr().out


def test_a_row_that_there_is_not_is_refused_with_the_names(capsys):
    with pytest.raises(SystemExit):
        benchmark.main([CONFIG, '--rows', 'nothing'])
    assert "invalid choice: 'nothing' (choose from" in capsys.readouterr().err


def test_rows_in_half_precision_compare_the_model_with_itself(monkeypatch):
    monkeypatch.setattr(half_precision, 'missing_support', lambda device, dtype: None)
    bench = rows.Bench(config=Config.fromfile(CONFIG), device=CPU, sizes=models.QUICK, repetitions=1, memory_runs=1,
                       keep_memory=False)
    dtypes = []
    for model in (bench.half, bench.ours):
        model.bbox_head.stages[0].dynamic_conv.fc.register_forward_hook(
            lambda module, args, output: dtypes.append(output.dtype))
    measures = rows.all_rows(2, half=True)[len(rows.all_rows(2, half=False)):]
    measured = [measure(bench) for measure in measures]
    assert [row.what.split(',')[0] for row in measured] == ['head in bfloat16'] + ['whole inference in bfloat16'] * 2
    assert min(row.ratio for row in measured) > 0
    calls_of_the_head = 4  # the warm-up and the repetition of each side
    for part in (dtypes[:calls_of_the_head], dtypes[calls_of_the_head:]):
        assert set(part) == {torch.bfloat16, torch.float32}


def test_every_saved_measurement_is_positive_and_repeated(result):
    for row in result[1]['rows']:
        number = 1 if row['unit'] == 'MiB' else 5
        assert len(row['ours']) == len(row['reference']) == number
        assert min(*row['ours'], *row['reference'], row['ratio'], row['ours_median']) > 0, row['what']


def test_the_surroundings_and_operators_are_saved(result):
    _, saved = result
    known = saved['environment']
    assert known['torch'] == torch.__version__ and known['device'] == 'cpu' and int(known['threads']) >= 1
    assert {'cpu', 'cores', 'mmcv', 'mmdet', 'commit', 'date'} <= set(known)
    one, two, step = saved['operators']
    assert 0 < one['operators'] < two['operators'] and step['operators'] > 0
    assert one['reads'] == two['reads'] == 0


def test_the_count_of_sampling_names_the_gathered_extractor_whatever_the_config_takes():
    config = Config.fromfile(CONFIG)
    config.model.bbox_head.roi_extractor.implementation = 'mmcv'
    bench = rows.Bench(config=config, device=CPU, sizes=models.QUICK, repetitions=5, memory_runs=1,
                       keep_memory=False)
    one, two, _ = load_tool('analysis_tools/benchmark_operators.py').operator_counts(bench)
    assert all(count['what'].startswith('sampling with gathered RoI features') for count in (one, two))
    assert bench.ours.bbox_head.roi_extractor.implementation == 'mmcv'


def test_a_result_is_not_overwritten_unless_told(tmp_path, capsys):
    file = tmp_path / 'there.json'
    file.write_text('mine')
    for tool in (benchmark, growth):
        with pytest.raises(SystemExit):
            tool.main([CONFIG, '--out', str(file)])
        assert f'{file} exists; give another name, or --overwrite' in capsys.readouterr().err
    assert file.read_text() == 'mine'
    assert benchmark.parse_args([CONFIG, '--out', str(file), '--overwrite'])[1].out == file


@pytest.mark.parametrize('option', ['--repetitions', '--steps', '--boxes', '--memory-runs'])
def test_numbers_that_measure_nothing_are_refused(option, capsys):
    with pytest.raises(SystemExit):
        benchmark.main([CONFIG, option, '0'])
    assert f'{option} must be at least' in capsys.readouterr().err


def test_a_config_is_taken_by_its_bare_name():
    config = benchmark.read_config(*benchmark.parse_args([NAME, '--cfg-options', 'model.bbox_head.num_stages=2']))
    assert config.filename == CONFIG and config.model.bbox_head.num_stages == 2


@TOOLS
@pytest.mark.parametrize(('config', 'message'), [('no_such_name', "no config is called 'no_such_name'"),
                                                 ('no_such_file.py', 'no_such_file.py')])
def test_a_config_that_is_not_there_ends_with_a_message(tool, config, message, capsys):
    with pytest.raises(SystemExit):
        tool.main([config, '--quick'])
    assert message in capsys.readouterr().err.splitlines()[-1]


@TOOLS
@pytest.mark.parametrize(('device', 'message'), [('gpu', "'gpu' cannot be used: "), ('cuda:99', "'cuda:99' cannot be"),
                                                 ('meta', "'meta' cannot be timed; give cpu or cuda")])
def test_a_device_that_cannot_be_measured_on_is_refused(tool, device, message, capsys):
    with pytest.raises(SystemExit):
        tool.main([CONFIG, '--quick', '--device', device])
    assert f'argument --device: {message}' in capsys.readouterr().err


@TOOLS
def test_another_extractor_ends_with_a_message(tool, capsys):
    with pytest.raises(SystemExit):
        tool.main([CONFIG, '--quick', '--cfg-options', 'model.bbox_head.roi_extractor.type=SingleRoIExtractor'])
    assert 'must be PyramidRoIExtractor' in capsys.readouterr().err.splitlines()[-1]


def test_a_config_with_the_stock_extractor_is_refused():
    config = Config.fromfile(CONFIG)
    config.merge_from_dict({'model.bbox_head.roi_extractor.type': 'SingleRoIExtractor'})
    with pytest.raises(ValueError, match='must be PyramidRoIExtractor, .* got SingleRoIExtractor'):
        models.build_model(config, 20, stock=True)


# What is compared -----------------------------------------------------------------------------------------------------


def test_both_sides_compute_the_same_from_the_same_weights(model):
    stock = models.build_model(Config.fromfile(CONFIG), 20, stock=True).eval()
    assert type(stock.bbox_head.roi_extractor).__name__ == 'StockRoIExtractor'
    features = models.pyramid(model.bbox_head, 1, IMAGE, CPU)
    ours, theirs = (models.sampling(side.bbox_head, features, 20, 2, IMAGE)()[-1] for side in (model, stock))
    torch.testing.assert_close(ours.scores.sort().values, theirs.scores.sort().values, atol=1e-4, rtol=0)


def test_boxes_stay_nearly_where_they_are_through_the_stages(model):
    boxes = models.object_boxes(20, IMAGE, torch.Generator().manual_seed(0))[None]
    with torch.no_grad():
        outputs = model.bbox_head(models.pyramid(model.bbox_head, 1, IMAGE, CPU), boxes, torch.tensor([500]))
    moved = (outputs.bboxes[-1] - boxes).abs() / (boxes[..., 2:] - boxes[..., :2]).repeat(1, 1, 2)
    assert moved.max() < 0.2


def test_made_boxes_lie_in_the_image_and_on_every_level(model):
    boxes = models.object_boxes(500, (800, 1216), torch.Generator().manual_seed(0))
    assert boxes.min() >= 0 and boxes[:, 2].max() <= 1216 and boxes[:, 3].max() <= 800
    levels = model.bbox_head.roi_extractor.map_roi_levels(boxes).bincount()
    assert len(levels) == 4 and levels.min() >= 25


def test_the_sides_are_timed_in_turn_and_as_often():
    calls = []
    samples = timing.interleave([lambda: calls.append('a'), lambda: calls.append('b')], 3, CPU)
    assert ''.join(calls) == 'ab' + 'abbaab'
    assert [len(sample.values) for sample in samples] == [3, 3]


def test_a_ratio_is_the_median_over_pairs():
    ours, reference = timing.Samples((1.0, 2.0, 50.0)), timing.Samples((3.0, 4.0, 100.0))
    assert comparison.Target(2, 3).ratio(ours, reference) == 2
    assert comparison.Target(2, 1, at_most=True).ratio(ours, reference) == 0.5


@pytest.mark.parametrize(('ratio', 'verdict'), [(9.9, 'no'), (10, 'least'), (30, 'aim')])
def test_a_ratio_meets_what_it_reaches(ratio, verdict):
    assert comparison.Target(10, 30).met(ratio) == verdict


@pytest.mark.parametrize(('ratio', 'verdict'), [(1.01, 'no'), (1.0, 'least'), (0.99, 'aim')])
def test_memory_has_to_be_lower_to_meet_the_aim(ratio, verdict):
    assert comparison.Target(1.0, 1.0, at_most=True).met(ratio) == verdict


def test_the_share_of_matching_pays_the_optimiser_once():
    # 16 images in steps of 2: 8 times forward and backward (4 s, then 6 s), once the optimiser (1 s).
    times = {'ours': timing.Samples((5.0, 7.0)), 'ours without optimiser': timing.Samples((4.0, 6.0)),
             'matching': timing.Samples((3.3, 4.9))}
    row = rows.matching_share(SimpleNamespace(sizes=models.Sizes(), training_times=times))
    assert row.reference.values == (33.0, 49.0)
    assert row.ratio == pytest.approx(0.1)


@pytest.mark.parametrize('optimise', [True, False])
def test_a_training_step_moves_weights_only_with_its_optimiser(optimise):
    config = Config.fromfile(CONFIG)
    trained = models.build_model(config, 20, stock=False)
    before = {name: value.clone() for name, value in trained.named_parameters()}
    models.training_step(trained, config, models.QUICK, optimise=optimise)()
    moved = [name for name, value in trained.named_parameters() if not torch.equal(value, before[name])]
    assert bool(moved) == optimise
    assert all(value.grad is None for value in trained.parameters())


# Matrix products ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def recorded(model):
    features = models.pyramid(model.bbox_head, 1, IMAGE, CPU)
    return matrix_products.record_products(models.sampling(model.bbox_head, features, 20, 1, IMAGE))


def in_products(counter):
    """All but the gathered RoI features, which are no matrix product."""
    return sum(count for operator, count in counter.get_flop_counts()['Global'].items()
               if 'embedding_bag' not in str(operator))


def test_the_recorded_products_are_all_of_the_head(model, recorded):
    features = models.pyramid(model.bbox_head, 1, IMAGE, CPU)
    boxes = models.object_boxes(20, IMAGE, torch.Generator().manual_seed(0))[None]
    with FlopCounterMode(display=False) as head:  # with gradients: torch's fast path of attention counts as nothing
        model.bbox_head(features, boxes, torch.tensor([999]))
    with FlopCounterMode(display=False) as replayed, torch.no_grad():
        recorded.replay()
    assert in_products(head) == in_products(replayed) == replayed.get_total_flops() > 0
    assert any(product.name == '_linear_pointwise' for product in recorded.products) == ONEDNN_IS_FASTER


def test_the_attention_of_every_stage_is_among_the_products(model, recorded):
    attention = [product for product in recorded.products if product.name.startswith(matrix_products.ATTENTION)]
    assert len(attention) == len(model.bbox_head.stages)


def test_operands_keep_their_layout_and_results_their_memory():
    left, right = torch.randn(3, 5).t(), torch.randn(1, 4).expand(3, 4)
    recorded = matrix_products.record_products(lambda: left @ right)
    product, = recorded.products
    assert [(value.shape, value.stride()) for value in product.args] == [((5, 3), (1, 5)), ((3, 4), (0, 1))]
    place = product.kwargs['out'].data_ptr()
    recorded.replay()
    assert product.kwargs['out'].data_ptr() == place
    torch.testing.assert_close(product.kwargs['out'], product.args[0] @ product.args[1])


# benchmark_growth.py --------------------------------------------------------------------------------------------------


def test_growth_is_measured_fitted_plotted_and_saved(tmp_path, capsys):
    out, picture = tmp_path / 'growth.json', tmp_path / 'growth.png'
    assert growth.main([NAME, '--quick', '--repetitions', '1', '--out', str(out), '--plot', str(picture)]) == 0
    saved = json.loads(out.read_text())['series']
    assert [series['grows'] for series in saved] == ['boxes', 'steps', 'images', 'objects']
    printed = capsys.readouterr().out
    for series in saved:
        assert min(series['medians']) > 0 and len(series['seconds']) == len(series['sizes'])
        assert f'| {series["exponent"]:.2f} | {series["last_exponent"]:.2f} |' in printed
        few, many = series['sizes'][-2:]
        assert (many / few)**series['last_exponent'] == pytest.approx(series['medians'][-1] / series['medians'][-2])
    assert picture.read_bytes().startswith(b'\x89PNG')


def test_the_exponent_of_a_power_is_found():
    sizes = (1, 3, 10, 100)
    exponent, factor = growth.fit(sizes, [0.5 * size**1.7 for size in sizes])
    assert exponent == pytest.approx(1.7) and factor == pytest.approx(-0.6931, abs=1e-4)
