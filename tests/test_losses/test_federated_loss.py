"""Which classes a stage learns from, and what the rest of the loss makes of it."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.model import ExponentialMovingAverage
from torch import nn

from mmdet_diffusion import annotation_categories
from mmdet_diffusion.hooks import DatasetCheckHook
from mmdet_diffusion.losses import FederatedLoss
from mmdet_diffusion.losses.federated_loss import class_log_weights, kept_classes, read_image_counts
from mmdet_diffusion.operator_count import OperatorCount
from mmdet_diffusion.testing import build_detector, data_sample, load_config, small_model_cfg

FOCAL = dict(type='FocalLoss', use_sigmoid=True, alpha=0.25, gamma=2.0, loss_weight=2.0)
COUNTS = [10, 0, 1000, 1, 50, 200, 0, 5]


def federated(**options):
    return FederatedLoss(**dict(dict(loss=FOCAL, image_counts=COUNTS, num_sampled_classes=5), **options))


def outputs_and_targets(present=((0, ), (3, 4)), num_queries=6, num_classes=8):
    """Logits and targets of as many stages as there are tuples of present classes."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn((len(present), num_queries, num_classes), generator=generator)
    targets = torch.zeros_like(logits)
    for stage, classes in enumerate(present):
        for query, label in enumerate(classes):
            targets[stage, query, label] = 1
    return logits, targets


def draw_many(present, num_kept, counts=COUNTS, power=0.5, draws=4000):
    """Masks of many draws, shape (draws, C)."""
    present = torch.tensor([[label in present for label in range(len(counts))]]).expand(draws, -1)
    torch.manual_seed(0)
    noise = federated().draw_gumbel(present)
    return kept_classes(present, class_log_weights(counts, power), noise, num_kept)


# Which classes --------------------------------------------------------------------------------------------------------


def test_a_stage_keeps_as_many_classes_as_asked_for():
    assert draw_many({0, 4}, 5).sum(1).unique().tolist() == [5]


def test_present_classes_are_always_kept_even_one_without_images():
    assert draw_many({1, 3}, 4)[:, [1, 3]].all()


def test_all_present_classes_are_kept_when_there_are_more_than_asked_for():
    masks = draw_many({0, 1, 2, 3}, 2)
    assert masks[:, :4].all() and not masks[:, 4:].any()


def test_a_class_without_images_is_never_drawn():
    assert not draw_many(set(), 5)[:, [1, 6]].any()
    assert not draw_many(set(), 5, power=0.0)[:, [1, 6]].any()


@pytest.mark.parametrize('num_kept', [7, 8, 50])
def test_fewer_classes_with_images_than_asked_for_are_all_kept(num_kept):
    masks = draw_many({1}, num_kept)
    assert torch.equal(masks, torch.tensor([[True] * 6 + [False, True]]).expand_as(masks))


def test_no_images_at_all_leave_the_present_classes():
    masks = draw_many({2}, 5, counts=[0] * 8)
    assert masks.sum(1).unique().tolist() == [1] and masks[:, 2].all()


@pytest.mark.parametrize('power', [0.0, 0.5, 1.0])
def test_one_class_is_drawn_in_proportion_to_the_power_of_its_image_count(power):
    shares = draw_many(set(), 1, power=power, draws=40_000).float().mean(0)
    weights = torch.tensor([count**power if count else 0.0 for count in COUNTS])
    torch.testing.assert_close(shares, weights / weights.sum(), rtol=0, atol=0.01)


def test_several_classes_are_drawn_as_multinomial_draws_them_without_replacement():
    weights = torch.tensor([float(count) for count in COUNTS]).sqrt()
    torch.manual_seed(1)
    drawn = torch.multinomial(weights.expand(40_000, -1), 3)
    expected = torch.zeros(40_000, len(COUNTS)).scatter_(1, drawn, 1).mean(0)
    torch.testing.assert_close(draw_many(set(), 3, draws=40_000).float().mean(0), expected, rtol=0, atol=0.015)


def test_stages_draw_for_themselves():
    logits, targets = outputs_and_targets(present=[(0, )] * 40)
    torch.manual_seed(0)
    kept = (federated()(logits, targets) > 0).any(1)
    assert len(kept.unique(dim=0)) > 3


@pytest.mark.parametrize(('count_background', 'kept'), [(True, 4), (False, 5)])
def test_the_background_counts_as_one_class_unless_told_otherwise(count_background, kept):
    loss = federated(count_background=count_background)(*outputs_and_targets())
    assert (loss > 0).any(1).sum(1).tolist() == [kept, kept]
    assert (federated()(*outputs_and_targets()) > 0).any(1).sum(1).tolist() == [4, 4]


# The loss -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('inner', [FOCAL, dict(type='CrossEntropyLoss', use_sigmoid=True, loss_weight=2.0)])
def test_kept_classes_have_the_inner_loss_and_the_others_none(inner):
    logits, targets = outputs_and_targets()
    loss = federated(loss=inner)(logits, targets)
    plain = MODELS.build(inner)(logits, targets, reduction_override='none')
    kept = (loss > 0).any(1, keepdim=True).expand_as(loss)
    assert torch.equal(loss[kept], plain[kept]) and not loss[~kept].any()
    assert 0 < kept.float().mean() < 1


def test_a_logit_that_is_not_finite_of_a_class_not_kept_harms_nothing():
    logits, targets = outputs_and_targets(present=[(0, )])
    logits[..., 1] = float('inf')
    logits.requires_grad_()
    loss = federated(image_counts=[1, 0, 0, 0, 0, 0, 0, 0])(logits, targets)
    loss.sum().backward()
    assert loss.isfinite().all() and logits.grad[..., 0].isfinite().all()


def test_the_draw_and_the_loss_never_wait_for_the_device():
    """The meta device stands for a GPU."""
    loss, (logits, targets) = federated(), (values.to('meta') for values in outputs_and_targets())
    loss(logits, targets)  # the first one carries the weights over
    with OperatorCount('meta') as count:
        loss(logits, targets)
    assert count.operators > 10 and count.places() == {}


def test_a_reduction_is_refused():
    with pytest.raises(ValueError, match="reduction_override='none'.*'mean'"):
        federated()(*outputs_and_targets(), reduction_override='mean')


# Image counts ---------------------------------------------------------------------------------------------------------


def lvis_file(folder, categories):
    path = folder / 'lvis_train.json'
    path.write_text(json.dumps(dict(categories=categories, images=[], annotations=[])))
    return str(path)


def test_counts_come_from_the_annotation_file_in_its_order(tmp_path):
    file = lvis_file(tmp_path, [dict(id=7, name='pen', image_count=3), dict(id=2, name='cup', image_count=0)])
    assert read_image_counts(file) == [3, 0]
    loss = federated(image_counts=file)
    logits, targets = outputs_and_targets(present=[()], num_classes=2)
    kept = (loss(logits, targets) > 0).any(1)
    assert kept.tolist() == [[True, False]]


def test_a_missing_file_matters_only_when_a_loss_is_computed():
    loss = federated(image_counts='nowhere/lvis_v1_train.json')
    with pytest.raises(FileNotFoundError, match='nowhere/lvis_v1_train.json.*image_counts'):
        loss(*outputs_and_targets())


def test_the_lvis_config_builds_and_predicts_without_annotations():
    criterion = load_config('diffusiondet_r50_fpn_8xb2-270k_lvis-v1.py').model.bbox_head.criterion
    cfg = small_model_cfg(num_classes=1203)
    cfg.bbox_head.criterion = criterion
    model = build_detector(cfg).eval()
    sample = data_sample(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), (64, 96))
    with torch.no_grad():
        results = model.predict(torch.randn(1, 3, 64, 96), [sample])
    assert len(results[0].pred_instances) > 0


@pytest.mark.parametrize('lacking', [dict(id=1, name='pen'), dict(id=1, name='pen', image_count=None),
                                     dict(id=1, name='pen', image_count=-1)])
def test_a_file_without_image_counts_is_named(tmp_path, lacking):
    file = lvis_file(tmp_path, [lacking, dict(id=2, name='cup', image_count=1)])
    with pytest.raises(ValueError, match=r"lvis_train.json gives no image_count for 1 categories, 'pen'"):
        federated(image_counts=file)(*outputs_and_targets())


@pytest.mark.parametrize(('content', 'problem'), [
    ('{}', 'has no list of "categories"'), ('[]', 'has no list of "categories"'), ('{"categories": [1]}', 'categories'),
    ('{"categories": null}', 'categories'), ('{"categories": [', 'is no JSON')])
def test_a_file_of_another_form_is_named(tmp_path, content, problem):
    file = tmp_path / 'other.json'
    file.write_text(content)
    with pytest.raises(ValueError, match=f'other.json.*{problem}.*loss_cls.image_counts'):
        federated(image_counts=str(file))(*outputs_and_targets())


def test_a_path_is_a_file_to_read_when_a_loss_is_computed(tmp_path):
    loss = federated(image_counts=tmp_path / 'lvis_train.json')
    lvis_file(tmp_path, [dict(id=1, name='pen', image_count=3), dict(id=2, name='cup', image_count=0)])
    kept = (loss(*outputs_and_targets(present=[()], num_classes=2)) > 0).any(1)
    assert kept.tolist() == [[True, False]]


def test_a_file_for_another_number_of_classes_is_named(tmp_path):
    file = lvis_file(tmp_path, [dict(id=1, name='pen', image_count=3)])
    with pytest.raises(ValueError, match='lvis_train.json of FederatedLoss is for 1 classes.*num_classes=8'):
        federated(image_counts=Path(file))(*outputs_and_targets())


def test_counts_of_another_number_of_classes_are_refused():
    with pytest.raises(ValueError, match='for 3 classes.*num_classes=8'):
        federated(image_counts=[1, 2, 3])(*outputs_and_targets())


@pytest.mark.parametrize(('option', 'value'), [('num_sampled_classes', 0), ('num_sampled_classes', 2.5), ('power', -1),
                                               ('power', float('inf')), ('image_counts', [1, -1]),
                                               ('image_counts', [[1], [2]]), ('image_counts', [float('nan')]),
                                               ('image_counts', [float('inf'), 1]), ('image_counts', None),
                                               ('image_counts', ['3']), ('image_counts', [[1], [2, 3]])])
def test_a_wrong_option_is_named_when_the_loss_is_built(option, value):
    with pytest.raises(ValueError, match=option):
        federated(**{option: value})


def test_the_counts_are_read_before_training_and_the_file_is_parsed_once(tmp_path, monkeypatch):
    """By the hook that looks at the file's names, too."""
    parsed, parse = [], annotation_categories._parse
    monkeypatch.setattr(annotation_categories, '_parse', lambda *args: parsed.append(args[0]) or parse(*args))
    file = lvis_file(tmp_path, [dict(id=number, name=name, image_count=1) for number, name in enumerate('abcdefgh')])
    model = nn.Module()
    model.bbox_head = federated(image_counts=file)
    model.bbox_head.num_classes = 8
    dataset = SimpleNamespace(metainfo=dict(classes=tuple('abcdefgh')), ann_file=file, cat_ids=list(range(8)))
    loader = SimpleNamespace(dataset=dataset)
    DatasetCheckHook().before_train(SimpleNamespace(model=model, train_dataloader=loader))
    assert parsed == [file]
    monkeypatch.setattr(annotation_categories, '_parse', None)
    model.bbox_head(*outputs_and_targets())


def test_a_file_that_has_changed_is_parsed_again(tmp_path):
    for name in ('RBC', 'rbc, mended'):
        file = lvis_file(tmp_path, [dict(id=1, name=name, image_count=1)])
        assert [one['name'] for one in annotation_categories.read_categories(file)] == [name]


def test_an_averaged_model_keeps_its_buffers_apart(tmp_path):
    """mmengine pairs the buffers of the two models by their place, so none may come later."""
    file = lvis_file(tmp_path, [dict(id=number, name=str(number), image_count=1) for number in range(8)])
    model = nn.ModuleList([federated(image_counts=file), nn.BatchNorm1d(3)])
    averaged = ExponentialMovingAverage(model)
    model[0].read_counts()
    model[1].running_mean.fill_(7)
    averaged.update_parameters(model)
    assert averaged.module[1].running_mean.tolist() == [7, 7, 7]


def read_in_a_process(rank, rendezvous, file, results):
    torch.distributed.init_process_group('gloo', f'file://{rendezvous}', rank=rank, world_size=2)
    if rank > 0:
        annotation_categories._parse = None
    found = []
    for name in (file, 'nowhere.json'):
        try:
            found.append(read_image_counts(name))
        except FileNotFoundError as error:
            found.append(str(error))
    results.put((rank, found))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_one_of_two_processes_parses_the_file_and_both_know_the_counts_or_the_fault(tmp_path):
    file = lvis_file(tmp_path, [dict(id=1, name='pen', image_count=3)])
    context = torch.multiprocessing.get_context('spawn')
    results = context.Queue()
    processes = [context.Process(target=read_in_a_process, args=(rank, tmp_path / 'rendezvous', file, results))
                 for rank in range(2)]
    for process in processes:
        process.start()
    found = dict(results.get(timeout=300) for _ in processes)
    for process in processes:
        process.join()
    assert found[0] == found[1]
    assert found[0][0] == [3] and 'nowhere.json is not there' in found[0][1]


def test_whatever_goes_wrong_with_a_file_is_known_to_every_process(tmp_path, monkeypatch):
    """Such as too little memory: the first process must not leave while the others wait for its answer."""
    sent = []
    monkeypatch.setattr(annotation_categories, 'broadcast_object_list', sent.append)
    monkeypatch.setattr(annotation_categories, '_parse', lambda *args: [][1])
    with pytest.raises(RuntimeError, match='large.json cannot be read .IndexError'):
        annotation_categories.read_categories('large.json')
    assert len(sent) == 1 and isinstance(sent[0][0], RuntimeError)


def test_checkpoints_do_not_carry_the_weights_of_the_classes():
    assert list(federated().state_dict()) == []
