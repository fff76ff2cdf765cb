"""Intervals: they hold what they promise on simulated data."""

import numpy as np
import pytest
from made_detections import made_detections, made_objects

from mmdet_diffusion.evaluation import average_precision
from mmdet_diffusion.evaluation.average_precision import ClassMatches, match_detections
from mmdet_diffusion.evaluation.bootstrap import Contestant, Interval, difference, drawn, interval, sentence

NUM_IMAGES, PER_IMAGE = 60, 5


class SimulatedMatches:
    """AP50 of one class, of objects that are found with a chance and false detections; stands for ImageMatches."""

    image_ids = tuple(range(NUM_IMAGES))
    num_images = NUM_IMAGES
    recall_thresholds = np.linspace(0, 1, 101)

    def __init__(self, difficulty, quality, rng):
        self.draws = {}
        chance = 1 / (1 + np.exp(-(quality - difficulty)))  # of each object, shared by all detectors
        found = rng.random(difficulty.shape) < chance
        image = np.repeat(np.arange(NUM_IMAGES), PER_IMAGE)
        false_image = rng.integers(NUM_IMAGES, size=NUM_IMAGES)
        score = np.concatenate([rng.beta(4, 2, found.sum()), rng.beta(2, 3, NUM_IMAGES)])
        order = np.argsort(-score)
        images = np.concatenate([image[found.ravel()], false_image])[order]
        true = np.flatnonzero(order < found.sum())
        self.matches = ClassMatches(images, np.zeros((1, len(images)), bool), (true, ), np.full(NUM_IMAGES, PER_IMAGE))

    def drawn_aps(self, weights):
        return average_precision._class_precision(self.matches, weights.astype(float), self.recall_thresholds)[:, 0]

    def ap(self):
        return self.drawn_aps(np.ones((1, NUM_IMAGES)))[0]


def simulated(name, difficulty, quality, rng, num_seeds=1):
    return Contestant(name, [[SimulatedMatches(difficulty, quality, rng) for _ in range(num_seeds)]])


def difficulties(rng):
    return rng.normal(0, 1, (NUM_IMAGES, 1)) + rng.normal(0, 1, (NUM_IMAGES, PER_IMAGE))


@pytest.mark.slow
@pytest.mark.parametrize('num_seeds', [1, 3])
def test_the_same_weights_with_other_sampling_seeds_are_called_no_difference(num_seeds):
    trials = 800  # of 200 a true rate of 5 % shows as more than 6 % once in five times
    rng = np.random.default_rng(0)
    called = 0
    for _ in range(trials):
        difficulty = difficulties(rng)
        pair = [simulated(name, difficulty, 1, rng, num_seeds) for name in 'ab']
        called += difference(*pair, num_draws=300).is_difference
    assert called <= 0.06 * trials


@pytest.mark.slow
def test_the_true_difference_lies_within_the_interval_in_about_95_of_100_trials():
    rng = np.random.default_rng(5)
    truth = np.mean([simulated('a', d := difficulties(rng), 1.5, rng).trainings[0][0].ap()
                     - simulated('b', d, 1, rng).trainings[0][0].ap() for _ in range(2000)])
    inside = 0
    for _ in range(300):
        difficulty = difficulties(rng)
        found = difference(simulated('a', difficulty, 1.5, rng), simulated('b', difficulty, 1, rng), num_draws=300)
        inside += found.low <= truth <= found.high
    assert 0.92 * 300 <= inside <= 0.985 * 300


def test_a_clear_difference_is_called_one_and_its_sign_is_that_of_the_first():
    truth = made_objects(num_images=40)
    good = Contestant('good', [[match_detections(truth, made_detections(truth, 1, spread=0.03))]])
    bad = Contestant('bad', [[match_detections(truth, made_detections(truth, 2, spread=0.15))]])
    found = difference(good, bad, num_draws=200)
    assert found.is_difference and found.low < found.value < found.high and found.share_above == 1
    assert found.value == pytest.approx(good.trainings[0][0].ap() - bad.trainings[0][0].ap(), abs=1e-12)
    assert difference(bad, good, num_draws=200).value == -found.value
    assert sentence('bad', 'good', difference(bad, good, num_draws=200)).startswith('good is better than bad by ')


def test_the_same_seed_gives_the_same_interval_and_another_one_another():
    truth = made_objects()
    one = Contestant('one', [[match_detections(truth, made_detections(truth))]])
    assert interval(one, num_draws=50) == interval(one, num_draws=50) != interval(one, num_draws=50, seed=1)


def test_several_trainings_widen_the_interval_by_what_they_differ():
    truth = made_objects(num_images=40)
    alike = [[match_detections(truth, made_detections(truth, 3))]] * 3
    apart = [[match_detections(truth, made_detections(truth, seed, spread=spread))]
             for seed, spread in enumerate((0.02, 0.1, 0.25))]
    widths = [found.high - found.low for found in (interval(Contestant('', trainings), num_draws=200)
                                                   for trainings in (alike, apart))]
    assert widths[1] > 1.3 * widths[0]


class ConstantMatches:
    """The same AP whatever images are drawn; stands for ImageMatches."""

    image_ids, num_images = tuple(range(NUM_IMAGES)), NUM_IMAGES

    def __init__(self, ap):
        self.value, self.draws = ap, {}

    def drawn_aps(self, weights):
        return np.full(len(weights), self.value)


def constant(name, *aps):
    return Contestant(name, [[ConstantMatches(ap)] for ap in aps])


def test_what_the_same_trainings_share_at_two_settings_is_no_part_of_their_difference():
    pair = constant('4x300', 0.52, 0.62), constant('1x100', 0.50, 0.60)
    found = difference(*pair, same_trainings=True)
    assert found.is_difference and found[:3] == pytest.approx([0.02] * 3)
    assert not difference(*pair).is_difference


@pytest.mark.parametrize('aps', [(0.5, 0.6), (0.5, 0.52, 0.6), (0.5, 0.52, 0.56, 0.6, 0.4)])
def test_the_mean_over_trainings_varies_as_that_of_so_many_does(aps):
    values = drawn(constant('', *aps), num_draws=20000, seed=0)[1:]
    assert values.std() == pytest.approx(np.std(aps, ddof=1) / np.sqrt(len(aps)), rel=0.02)
    assert values.mean() == pytest.approx(np.mean(aps), abs=0.002)


def test_draws_without_any_object_do_not_count():
    truth = made_objects(num_images=40)
    kept = [one for one in truth.dataset['annotations'] if one['image_id'] <= 2]
    assert {one['image_id'] for one in kept} == {1, 2}
    truth.dataset['annotations'] = kept
    truth.createIndex()
    found = interval(Contestant('', [[match_detections(truth, made_detections(truth))]]))
    assert 0 <= found.low <= found.value <= found.high <= 1 and found.share_above > 0.5


@pytest.mark.parametrize('num_images', [1, 5])
def test_of_too_few_images_nothing_is_known(num_images):
    truth = made_objects(num_images=num_images)
    good, bad = (Contestant(str(spread), [[match_detections(truth, made_detections(truth, spread=spread))]])
                 for spread in (0.01, 0.3))
    found = difference(good, bad)
    assert found.value > 0.1 and not found.is_difference and found[1:3] == (-1, 1)
    assert interval(good)[1:3] == (0, 1)


def test_images_that_depend_on_each_other_are_drawn_together():
    """Twelve clips of five frames, each as hard for a detector as the next; drawn one by one they promise too much."""
    called = dict(apart=0, together=0)
    for trial in range(60):
        rng = np.random.default_rng(trial)
        difficulty = difficulties(rng)
        sides = [simulated('', difficulty, rng.normal(0, 1, (12, 1)).repeat(5, axis=0), rng) for _ in range(2)]
        called['apart'] += difference(*sides, num_draws=200).is_difference
        called['together'] += difference(*sides, together=5, num_draws=200).is_difference
    assert called['together'] <= 6 and called['apart'] >= 15, called


def test_images_that_are_no_whole_number_of_those_drawn_together_are_refused():
    rng = np.random.default_rng(0)
    one = simulated('', difficulties(rng), 0.0, rng)
    with pytest.raises(ValueError, match='60 images are no whole number of 7 together'):
        difference(one, one, together=7)


def test_other_images_are_refused():
    contestants = [Contestant(str(number), [[match_detections(truth, made_detections(truth))]])
                   for number, truth in enumerate((made_objects(), made_objects(num_images=19)))]
    with pytest.raises(ValueError, match='0 and 1 were not tested on the same images'):
        difference(*contestants)


def test_no_difference_is_said_with_its_interval():
    assert sentence('a', 'b', Interval(0.004, -0.003, 0.011, 0.8)) == (
        'no difference shown between a and b: +0.4 AP (95 %: -0.3 to +1.1)')
