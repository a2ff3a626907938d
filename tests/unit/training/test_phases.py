import pytest
import torch

from nnunetv2_anomaly.training.phases import PhaseLRScheduler


def make_scheduler(first_epoch, num_epochs, exponent):
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=2e-3)
    return PhaseLRScheduler(optimizer, 2e-3, first_epoch, num_epochs, exponent), optimizer


def test_decay_counts_the_epochs_of_its_own_phase_fractions_included():
    scheduler, optimizer = make_scheduler(first_epoch=10, num_epochs=4, exponent=0.9)
    rates = {}
    for epoch in (10, 12, 12.5, 13.75):
        scheduler.step(epoch)
        rates[epoch] = optimizer.param_groups[0]["lr"]
    assert rates == pytest.approx({10: 2e-3, 12: 2e-3 * 0.5**0.9, 12.5: 2e-3 * 0.375**0.9, 13.75: 2e-3 * 0.0625**0.9})


def test_exponent_0_keeps_the_learning_rate():
    scheduler, optimizer = make_scheduler(first_epoch=0, num_epochs=4, exponent=0.0)
    for epoch in (0, 1.5, 3.99):
        scheduler.step(epoch)
        assert optimizer.param_groups[0]["lr"] == 2e-3


def test_learning_rate_is_the_initial_one_as_soon_as_the_scheduler_is_built():
    _, optimizer = make_scheduler(first_epoch=10, num_epochs=4, exponent=0.9)
    assert optimizer.param_groups[0]["lr"] == 2e-3
