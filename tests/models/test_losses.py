"""Eqs 1-5: known values, and gradients that reach just what they should."""

import math

import pytest
import torch

from dyefreenet.models import losses
from dyefreenet.models.discriminators import PatchDiscriminator


def test_eq1_of_an_undecided_classifier_is_log_k():
    loss = losses.intensity_loss(torch.zeros(8, 4), torch.arange(4).repeat(2))
    assert float(loss) == pytest.approx(math.log(4))


def test_eq3_of_a_constant_error_is_its_square():
    real = torch.rand(2, 3, 8, 8)
    assert float(losses.pixel_mse(real + 0.5, real)) == pytest.approx(0.25)


def test_eq4_of_logits_zero():
    zero = torch.zeros(1, 1, 4, 4)
    # BCE is log 2 for both labels; MSE is 1 against ones and 0 against zeros.
    expected = 0.5 * ((math.log(2) + 1.0) + (math.log(2) + 0.0))
    assert float(losses.discriminator_loss(zero, zero, mse_weight=1.0)) == pytest.approx(expected)


def test_eq4_is_least_when_the_discriminator_is_right():
    one, zero = torch.ones(1, 1, 4, 4), torch.zeros(1, 1, 4, 4)
    right = losses.discriminator_loss(8 * one, -8 * one, mse_weight=0.0)
    wrong = losses.discriminator_loss(-8 * one, 8 * one, mse_weight=0.0)
    assert float(right) < 0.01 < float(losses.discriminator_loss(zero, zero, 0.0)) < float(wrong)


@pytest.mark.parametrize("saturating", [True, False])
def test_eq2_pushes_the_virtual_logits_up(saturating):
    logits = torch.zeros(1, 1, 4, 4, requires_grad=True)
    losses.adversarial_loss(logits, 1.0, saturating).backward()
    assert (logits.grad < 0).all()  # going down the gradient raises D(virtual)


def test_eq2_to_the_letter_is_log_of_one_minus_d():
    logits = torch.tensor([[[[0.3]]]])
    expected = math.log(1 - float(torch.sigmoid(logits)))
    assert float(losses.adversarial_loss(logits, 0.0, saturating=True)) == pytest.approx(expected)


def test_perceptual_term_is_divided_by_the_size_of_each_map():
    small, large = torch.zeros(1, 2, 4, 4), torch.zeros(1, 8, 16, 16)
    assert float(losses.perceptual_loss([small + 1, large + 1], [small, large])) == pytest.approx(
        2.0
    )
    weighted = losses.perceptual_loss([small + 1, large + 2], [small, large], (3.0, 0.5))
    assert float(weighted) == pytest.approx(3.0 * 1 + 0.5 * 4)


def test_vessels_count_and_noise_does_not():
    plain = torch.zeros(1, 1, 1, 4)
    contrast = torch.tensor([[[[0.0, 0.02, -0.125, 0.5]]]])  # none, noise of 8 HU, -50 and 200 HU
    enhanced = losses.enhanced(plain, contrast)
    assert enhanced.flatten().tolist() == pytest.approx([0.0, 0.0064, 0.25, 1.0])


def test_gradients_of_each_turn_reach_only_their_network():
    critic = PatchDiscriminator(2, 8, "none")
    plain, real = torch.rand(1, 1, 32, 32), torch.rand(1, 1, 32, 32)
    fake = torch.rand(1, 1, 32, 32, requires_grad=True)

    loss = losses.discriminator_loss(critic(plain, real), critic(plain, fake.detach()), 1.0)
    loss.backward()
    assert fake.grad is None
    assert all(weight.grad.abs().sum() > 0 for weight in critic.parameters())

    critic.zero_grad(set_to_none=True)
    critic.requires_grad_(False)
    losses.adversarial_loss(critic(plain, fake), 1.0, saturating=False).backward()
    assert fake.grad.abs().sum() > 0
    assert all(weight.grad is None for weight in critic.parameters())
