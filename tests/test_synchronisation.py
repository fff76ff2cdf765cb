"""How often the host and a GPU wait for each other, and how many operators run: numbers that hold on any machine."""

import copy

import pytest
import torch

from mmdet_diffusion.operator_count import OperatorCount
from mmdet_diffusion.structures import PaddedObjects, StageOutputs
from mmdet_diffusion.task_modules import global_noise, image_noise
from mmdet_diffusion.testing import build_detector, data_sample, random_boxes, small_model_cfg

HEIGHT, WIDTH = 64, 96
STOCK = dict(_delete_=True, type='SingleRoIExtractor', out_channels=16, featmap_strides=[4, 8, 16, 32],
             roi_layer=dict(type='RoIAlign', output_size=7, sampling_ratio=2))
SAMPLING = ((1, 1), (1, 4), (3, 1), (3, 8))  # images, steps


@pytest.fixture(scope='module')
def head():
    return build_detector(small_model_cfg()).bbox_head.eval()


@pytest.fixture(scope='module')
def head_on_meta(head):
    """A head whose tensors lie on the meta device, which stands for a GPU: any read of them raises."""
    return copy.deepcopy(head).to('meta')


def sample(head, num_images, steps, device, seed=None):
    """From features to what goes into the final NMS, counted."""
    feats = tuple(torch.zeros(num_images, 16, HEIGHT // stride, WIDTH // stride, device=device)
                  for stride in (4, 8, 16, 32))
    whwh = torch.ones(num_images, 4, device=device) * 64
    head.test_cfg = dict(sampling_timesteps=steps, seed=seed)
    draw = (global_noise(num_images, device) if seed is None else
            image_noise(seed, [dict(img_id=image) for image in range(num_images)], torch.device(device)))
    with torch.no_grad(), OperatorCount(device) as count:
        head.sample(feats, whwh, head.sampling_settings(), draw)
    return count


# Sampling -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('seed', [None, 3])
@pytest.mark.parametrize(('num_images', 'steps'), SAMPLING)
def test_sampling_never_waits_for_a_value(head_on_meta, num_images, steps, seed):
    assert not sample(head_on_meta, num_images, steps, 'meta', seed).reads


@pytest.mark.parametrize(('num_images', 'steps'), SAMPLING)
def test_sampling_without_a_seed_uploads_nothing(head_on_meta, num_images, steps):
    count = sample(head_on_meta, num_images, steps, 'meta')
    assert not count.uploads and not count.pinned_uploads, count.places()


@pytest.mark.parametrize(('num_images', 'steps'), SAMPLING)
def test_seeded_sampling_copies_each_draw_once_and_never_waits_for_it(page_locked_memory, head_on_meta, num_images,
                                                                      steps):
    count = sample(head_on_meta, num_images, steps, 'meta', seed=3)
    assert not count.uploads, count.places()
    assert len(count.pinned_uploads) == num_draws(steps)


@pytest.mark.parametrize('steps', [1, 4])
def test_draws_from_ordinary_memory_would_be_seen(head_on_meta, steps):
    """As on a device that torch has no page-locked memory for."""
    assert len(sample(head_on_meta, 2, steps, 'meta', seed=3).uploads) == num_draws(steps)


def num_draws(steps):
    """Of x_T, and after each step but the last of DDIM's noise and the renewed boxes."""
    return 1 + 2 * (steps - 1)


@pytest.mark.parametrize('seed', [None, 3])
def test_predicting_waits_for_no_upload_before_the_detections_are_finished(page_locked_memory, head_on_meta, seed):
    feats = tuple(torch.zeros(2, 16, HEIGHT // stride, WIDTH // stride, device='meta') for stride in (4, 8, 16, 32))
    samples = [data_sample(torch.zeros(0, 4), torch.zeros(0).long(), (HEIGHT, WIDTH), img_id=image) for image in (0, 1)]
    head_on_meta.test_cfg = dict(sampling_timesteps=2, seed=seed)
    with OperatorCount('meta') as count, pytest.raises(NotImplementedError):  # suppression reads values
        head_on_meta.predict(feats, samples)
    assert not count.uploads and len(count.reads) == 1, count.places()
    assert len(count.pinned_uploads) == 1 + (num_draws(2) if seed is not None else 0)  # 1: sizes of the images


def test_operators_of_sampling_do_not_grow_with_images(head_on_meta):
    # From two on: a single image's attention has its tensors in order already and saves their copies.
    two, eight = (sample(head_on_meta, num_images, 2, 'meta').operators for num_images in (2, 8))
    assert two == eight


def test_each_step_of_sampling_takes_as_many_operators_as_the_one_before(head_on_meta):
    one, two, five = (sample(head_on_meta, 2, steps, 'meta').operators for steps in (1, 2, 5))
    assert five - two == 3 * (two - one)


def test_the_stock_extractor_waits_once_for_each_level_stage_and_step():
    head = build_detector(small_model_cfg(roi_extractor=STOCK)).bbox_head.eval()
    for steps in (1, 2):
        waits = [wait for wait in sample(head, 2, steps, 'cpu').reads if wait.operator == 'nonzero']
        assert len(waits) == 4 * len(head.stages) * steps


# Matching and losses --------------------------------------------------------------------------------------------------


def objects_side_by_side(num_images, num_objects):
    left = torch.arange(num_objects) * WIDTH / num_objects
    gt_bboxes = torch.stack([left, torch.zeros_like(left), left + 1, torch.ones_like(left)], dim=-1)
    return PaddedObjects(gt_bboxes.expand(num_images, -1, 4).clone(), torch.zeros(num_images, num_objects).long(),
                         torch.ones(num_images, num_objects).bool(),
                         torch.tensor([[WIDTH, HEIGHT, WIDTH, HEIGHT]]).float().expand(num_images, -1))


def outputs_on(objects, num_stages, num_classes):
    """Six queries on each object."""
    bboxes = objects.bboxes.repeat(1, 6, 1).expand(num_stages, -1, -1, -1)
    return StageOutputs(torch.zeros(*bboxes.shape[:3], num_classes, device=bboxes.device, requires_grad=True),
                        bboxes.clone().requires_grad_())


def count_losses(head, num_stages, num_images, num_objects):
    """Matching, losses and their backward pass."""
    objects = objects_side_by_side(num_images, num_objects)
    outputs = outputs_on(objects, num_stages, head.num_classes)
    with OperatorCount() as count:
        losses = head.criterion(outputs, objects)
        torch.stack(list(losses.values())).sum().backward()
    return count


@pytest.mark.parametrize(('num_stages', 'num_images', 'num_objects'), [(1, 1, 1), (6, 1, 1), (6, 8, 1), (6, 8, 60)])
def test_matching_and_losses_read_one_value_when_no_object_needs_repair(head, num_stages, num_images, num_objects):
    count = count_losses(head, num_stages, num_images, num_objects)
    assert len(count.reads) == 1, count.places()


def test_matching_and_losses_with_their_uploads_wait_twice_at_most(head_on_meta):
    objects = PaddedObjects(*(value.to('meta') for value in objects_side_by_side(2, 3)))
    outputs = outputs_on(objects, 2, head_on_meta.num_classes)
    with OperatorCount('meta') as matching, pytest.raises(RuntimeError, match='meta'):  # at its first read
        head_on_meta.criterion.assigner.match(*outputs, objects)
    with OperatorCount('meta') as losses:
        values = head_on_meta.criterion.losses(outputs, objects, torch.zeros(2, 2, 18, device='meta').long())
        torch.stack(list(values.values())).sum().backward()
    assert len(matching.reads) == 1 and not matching.uploads
    assert not losses.reads and len(losses.uploads) <= 1, losses.places()


@pytest.mark.parametrize('num_stages', [1, 6])
@pytest.mark.parametrize('num_objects', [1, 2, 3, 5])
def test_each_round_of_repair_reads_one_value_more(head, num_objects, num_stages):
    # Identical objects want the same query, and all but one go without; each round gives one of them its query.
    objects = objects_side_by_side(2, 1)
    objects = PaddedObjects(*(value.repeat(1, num_objects, *[1] * (value.dim() - 2)) for value in objects[:3]),
                            objects.img_whwh)
    bboxes = random_boxes(20, (HEIGHT, WIDTH), torch.Generator().manual_seed(0)).expand(num_stages, 2, -1, 4)
    with OperatorCount() as count:
        head.criterion(StageOutputs(torch.zeros(*bboxes.shape[:3], head.num_classes), bboxes), objects)
    assert len(count.reads) == num_objects, count.places()


def test_operators_of_matching_and_losses_do_not_grow_with_images_or_objects(head):
    counts = {count_losses(head, 6, num_images, num_objects).operators
              for num_images, num_objects in ((1, 1), (8, 1), (1, 60), (8, 60))}
    assert len(counts) == 1, counts
