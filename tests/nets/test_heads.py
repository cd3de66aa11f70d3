"""The two heads: what they compute, and which way the distortion head is trained."""

from __future__ import annotations

import pytest
import torch

from glance_fast.kernels import score_patches
from glance_fast.nets.heads import DistortionHead, distortion_loss, inconsistency_loss


@pytest.fixture
def head():
    """As after training: no statistic of its BatchNorm has its first value."""
    torch.manual_seed(0)
    head = DistortionHead(6, 10).double()
    with torch.no_grad():
        head.norm.running_mean.normal_()
        head.norm.running_var.uniform_(0.3, 3)
        head.norm.weight.uniform_(0.5, 2)
        head.norm.bias.normal_()
        head.last.weight.mul_(5)
    return head.eval()


@torch.no_grad()
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_folded_head_scores_one_minus_its_probability(head, backend):
    local, global_ = torch.randn(2, 3, 9, 6, dtype=torch.float64)
    scores = score_patches(local, global_, head.folded(), backend=backend)
    probability = torch.sigmoid(head(local, global_))
    assert probability.std() > 0.01
    assert (scores.distortion - (1 - probability)).abs().max() <= 1e-12


@torch.no_grad()
def test_head_is_a_perceptron_over_both_features_and_their_squared_difference(head):
    local, global_ = torch.randn(2, 7, 6, dtype=torch.float64)
    x = torch.cat([local, global_, (local - global_) ** 2], 1)
    norm = head.norm
    x = (x - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
    x = torch.relu(x @ head.first.weight.T + head.first.bias)
    x = torch.relu(x @ head.second.weight.T + head.second.bias)
    expected = (x @ head.last.weight.T + head.last.bias)[:, 0]
    assert (head(local, global_) - expected).abs().max() <= 1e-12


@torch.no_grad()
@pytest.mark.parametrize("shape", [(4,), (2, 3), (2, 3, 2)], ids=str)
def test_logits_have_the_shape_of_the_patches(head, shape):
    local, global_ = torch.randn(2, *shape, 6, dtype=torch.float64)
    logits = head(local, global_)
    assert logits.shape == shape
    flat = head(local.flatten(0, -2), global_.flatten(0, -2))
    assert torch.allclose(logits.flatten(), flat, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("shape", [(4,), (2, 3), (2, 3, 2)], ids=str)
def test_logits_are_weighted_sums_of_what_the_head_makes_of_patches(head, shape):
    local, global_ = torch.randn(2, *shape, 6, dtype=torch.float64)
    hidden = head.hidden(local, global_)
    assert hidden.shape == (*shape, 10) and (hidden >= 0).all()
    logits = hidden @ head.last.weight[0] + head.last.bias
    assert torch.allclose(logits, head(local, global_), atol=1e-12)


def test_distortion_loss_is_equation_9_with_the_clean_patch_towards_one():
    clean, stained = torch.randn(2, 5, 3, dtype=torch.float64)
    c_clean, c_stained = torch.sigmoid(clean), torch.sigmoid(stained)
    expected = -(c_clean.log().mean() + (1 - c_stained).log().mean()) / 2
    assert torch.allclose(distortion_loss(clean, stained), expected)
    sure = torch.full((4,), 8.0)
    assert distortion_loss(sure, -sure) < 1e-3 < 7 < distortion_loss(-sure, sure)


def test_a_step_of_training_raises_clean_and_lowers_stained(head):
    local, global_ = torch.randn(2, 40, 6, dtype=torch.float64)
    stained = local + 2

    def margin():
        with torch.no_grad():
            return head(local, global_).mean() - head(stained, global_).mean()

    before = margin()
    for _ in range(5):
        loss = distortion_loss(head(local, global_), head(stained, global_))
        parameters = list(head.parameters())
        with torch.no_grad():
            for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                parameter -= 0.01 * gradient
    assert margin() > before


def test_inconsistency_loss_is_equation_7():
    local, global_ = torch.randn(2, 4, 3, 6, dtype=torch.float64)
    each = [(local[i, j] - global_[i, j]).norm() ** 2 / 6 for i in range(4) for j in range(3)]
    assert torch.allclose(inconsistency_loss(local, global_), torch.stack(each).mean())
