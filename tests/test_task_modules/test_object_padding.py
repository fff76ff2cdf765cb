"""Ground truth as rectangular tensors."""

import math
import warnings

import pytest
import torch
from mmdet.structures.bbox import HorizontalBoxes

from mmdet_diffusion.task_modules import image_sizes, pad_objects
from mmdet_diffusion.testing import data_sample, random_boxes

IMG_SHAPE = (100, 200)


def sample_of(bboxes, labels=None, img_shape=IMG_SHAPE, **meta):
    bboxes = torch.as_tensor(bboxes, dtype=torch.float32).view(-1, 4)
    labels = torch.zeros(len(bboxes), dtype=torch.long) if labels is None else torch.tensor(labels)
    return data_sample(bboxes, labels, img_shape, **meta)


def random_sample(number, seed):
    generator = torch.Generator().manual_seed(seed)
    return data_sample(random_boxes(number, IMG_SHAPE, generator), torch.randint(3, (number, ), generator=generator),
                       IMG_SHAPE)


@pytest.fixture(autouse=True)
def _warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        yield


@pytest.mark.parametrize('counts', [(3, ), (2, 5, 1), (0, 4), (4, 0), (0, 0, 2)])
def test_objects_of_each_image_come_first_and_zeros_follow(counts):
    samples = [random_sample(number, seed) for seed, number in enumerate(counts)]
    objects = pad_objects(samples, num_classes=3)
    assert objects.bboxes.shape == (len(counts), max(counts), 4)
    for i, (number, sample) in enumerate(zip(counts, samples, strict=True)):
        assert objects.valid[i].tolist() == [slot < number for slot in range(max(counts))]
        assert torch.equal(objects.bboxes[i, :number], sample.gt_instances.bboxes)
        assert torch.equal(objects.labels[i, :number], sample.gt_instances.labels)
        assert not objects.bboxes[i, number:].any() and not objects.labels[i, number:].any()


@pytest.mark.parametrize('num_images', [1, 3])
def test_images_without_objects_have_one_slot_that_is_not_valid(num_images):
    objects = pad_objects([sample_of([]) for _ in range(num_images)], num_classes=3)
    assert objects.bboxes.shape == (num_images, 1, 4) and objects.labels.shape == (num_images, 1)
    assert not objects.valid.any() and not objects.bboxes.any()


def test_types_are_those_of_the_contract():
    bboxes, labels = torch.tensor([[1, 2, 30, 40]], dtype=torch.float64), torch.tensor([1], dtype=torch.int32)
    sample = data_sample(bboxes, labels, IMG_SHAPE)
    objects = pad_objects([sample], num_classes=3)
    assert [value.dtype for value in objects] == [torch.float32, torch.int64, torch.bool, torch.float32]


def test_sizes_are_width_height_width_height_of_each_image():
    samples = [sample_of([], img_shape=(100, 200)), sample_of([], img_shape=(333, 50))]
    expected = torch.tensor([[200.0, 100.0, 200.0, 100.0], [50.0, 333.0, 50.0, 333.0]])
    assert torch.equal(pad_objects(samples, num_classes=3).img_whwh, expected)
    metas = [dict(img_shape=(100, 200, 3)), dict(img_shape=(333, 50))]
    assert torch.equal(image_sizes(metas, torch.device('cpu')), expected)


def test_horizontal_boxes_are_as_good_as_tensors():
    sample = random_sample(3, seed=0)
    expected = pad_objects([sample], num_classes=3)
    sample.gt_instances.bboxes = HorizontalBoxes(sample.gt_instances.bboxes)
    objects = pad_objects([sample], num_classes=3)
    assert type(objects.bboxes) is torch.Tensor
    assert all(torch.equal(mine, other) for mine, other in zip(objects, expected, strict=True))


@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize('place', range(4))
def test_a_box_that_is_not_finite_is_an_error_with_image_and_value(value, place):
    box = [10.0, 20.0, 31.5, 40.0]
    box[place] = value
    samples = [sample_of([[1, 2, 3, 4]]), sample_of([[1, 2, 3, 4], box], img_path='dir/odd.jpg')]
    with pytest.raises(ValueError, match=r'dir/odd\.jpg') as error:
        pad_objects(samples, num_classes=3)
    assert str(value) in str(error.value) and 'finite' in str(error.value)


def test_an_image_without_path_is_named_by_its_id():
    with pytest.raises(ValueError, match='image 4711:'):
        pad_objects([sample_of([[math.nan, 2, 3, 4]], img_id=4711)], num_classes=3)


@pytest.mark.parametrize('label', [-1, 3, 80])
def test_a_label_out_of_range_is_an_error_with_image_label_and_range(label):
    with pytest.raises(ValueError, match=rf'dir/odd\.jpg: label {label} is outside 0\.\.2.*num_classes'):
        pad_objects([sample_of([[1, 2, 3, 4], [5, 6, 7, 8]], [0, label], img_path='dir/odd.jpg')], num_classes=3)


@pytest.mark.parametrize('box', [
    [10, 20, 10, 40], [10, 20, 30, 20], [10, 20, 10, 20], [30, 20, 10, 40], [10, 40, 30, 20],  # no area
    [-20, 10, -5, 30], [-20, 10, 0, 30], [200, 10, 220, 30], [10, 100, 20, 120], [300, 300, 310, 310]  # outside
])
def test_a_box_without_area_in_the_image_is_left_out_with_a_warning(box):
    good = [[1.0, 2.0, 30.0, 40.0], [5.0, 6.0, 70.0, 80.0]]
    sample = sample_of([good[0], box, good[1]], [1, 2, 2], img_path='dir/odd.jpg')
    with pytest.warns(UserWarning, match=r'dir/odd\.jpg') as caught:
        objects = pad_objects([sample], num_classes=3)
    assert len(caught) == 1
    assert str([float(value) for value in box]) in str(caught[0].message)
    assert objects.bboxes[objects.valid].tolist() == good
    assert objects.labels[objects.valid].tolist() == [1, 2]
    assert not objects.bboxes[~objects.valid].any() and not objects.labels[~objects.valid].any()


def test_an_image_of_nothing_but_unusable_boxes_is_as_one_without_objects():
    with pytest.warns(UserWarning):
        objects = pad_objects([sample_of([[10, 20, 10, 40], [300, 300, 310, 310]])], num_classes=3)
    assert not objects.valid.any() and not objects.bboxes.any()


@pytest.mark.parametrize('box', [[-20.0, 10.0, 5.0, 30.0], [190.0, 90.0, 250.0, 300.0], [-50.0, -50.0, 300.0, 300.0]])
def test_a_box_partly_outside_stays_as_it_is(box):
    objects = pad_objects([sample_of([box])], num_classes=3)
    assert objects.valid.all() and objects.bboxes[0].tolist() == [box]


def test_the_samples_stay_as_they_are():
    samples = [random_sample(3, seed=0), sample_of([[10, 20, 10, 40]])]
    before = [sample.gt_instances.bboxes.clone() for sample in samples]
    with pytest.warns(UserWarning):
        pad_objects(samples, num_classes=3)
    assert all(torch.equal(sample.gt_instances.bboxes, bboxes) for sample, bboxes in zip(samples, before, strict=True))
