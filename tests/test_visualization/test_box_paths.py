"""Boxes followed from noise to what they become."""

import numpy as np
import pytest
import torch

from mmdet_diffusion.structures import SamplingStep, StageOutputs
from mmdet_diffusion.testing import build_detector, small_model_cfg
from mmdet_diffusion.visualization import box_paths

STRONG, WEAK = 3.0, -3.0  # logits


def made_step(t, offset, scores):
    """Two boxes, two stages, two classes; ``scores`` are the logits (stage, box, class)."""
    noise = torch.tensor([[[0.0, 0, 10, 10], [5, 5, 20, 20]]]) + offset
    return SamplingStep(t, noise, StageOutputs(torch.tensor(scores)[:, None], torch.stack([noise + 1, noise + 2])))


@pytest.fixture
def steps():
    """The first box becomes class 1; the second is weak, is renewed, and then becomes class 0."""
    return [made_step(999, 0.0, [[[WEAK, WEAK], [WEAK, WEAK]], [[WEAK, STRONG], [WEAK, WEAK - 1]]]),
            made_step(499, 100.0, [[[WEAK, STRONG], [WEAK, WEAK]], [[WEAK, STRONG], [STRONG + 1, WEAK]]])]


def test_every_step_has_its_noise_and_its_stages_in_order(steps):
    moments = box_paths(steps, renewal_score_thr=0.5)
    assert [(moment.t, moment.step, moment.stage) for moment in moments] == [
        (999, 0, 0), (999, 0, 1), (999, 0, 2), (499, 1, 0), (499, 1, 1), (499, 1, 2)]
    for moment in moments:
        np.testing.assert_array_equal(moment.bboxes[0], np.float32([0, 0, 10, 10]) + 100 * moment.step + moment.stage)


def test_a_box_knows_at_every_moment_what_it_becomes(steps):
    moments = box_paths(steps, renewal_score_thr=0.5)
    strong, stronger, weak = (1 / (1 + np.exp(-value)) for value in (STRONG, STRONG + 1, WEAK))
    for moment in moments:
        assert moment.labels[0] == 1 and moment.becomes[0] == pytest.approx(strong)
        assert moment.becomes[1] == pytest.approx(stronger if moment.step else weak)
        assert moment.labels[1] == 0
    assert [round(float(moment.scores[0]), 3) for moment in moments] == [0, 0.047, 0.953, 0.953, 0.953, 0.953]


def test_what_scores_no_more_than_the_threshold_is_renewed(steps):
    moments = box_paths(steps, renewal_score_thr=0.5)
    assert [moment.renewed.tolist() for moment in moments] == [[False, False]] * 3 + [[False, True]] * 3
    assert moments[3].scores[1] == 0  # fresh noise has no score
    kept = box_paths(steps, renewal_score_thr=None)
    assert not any(moment.renewed.any() for moment in kept)
    assert kept[0].becomes[1] == pytest.approx(1 / (1 + np.exp(-STRONG - 1)))  # the same box all the way


def test_the_detector_gives_the_outputs_of_all_stages():
    detector = build_detector(small_model_cfg(num_stages=3)).eval()
    head, settings = detector.bbox_head, detector.bbox_head.sampling_settings()._replace(num_proposals=7,
                                                                                         sampling_timesteps=2)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        steps = list(head.sampling_steps(detector.extract_feat(torch.rand(1, 3, 64, 64)),
                                         torch.tensor([[64.0, 64, 64, 64]]), settings,
                                         lambda number: torch.randn(1, number, 4, generator=generator)))
    moments = box_paths(steps, settings.renewal_score_thr)
    assert len(moments) == 2 * (1 + 3) and all(moment.bboxes.shape == (7, 4) for moment in moments)
    for step, noise, last in zip(steps, moments[::4], moments[3::4], strict=True):
        np.testing.assert_array_equal(noise.bboxes, step.noisy_bboxes[0].numpy())
        np.testing.assert_array_equal(last.bboxes, step.bboxes[0].numpy())
