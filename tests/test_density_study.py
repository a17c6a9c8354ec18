"""What scripts/density_study.py computes from rows of records."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "density_study.py"
spec = importlib.util.spec_from_file_location("density_study", SCRIPT)
assert spec is not None and spec.loader is not None
study = importlib.util.module_from_spec(spec)
spec.loader.exec_module(study)

GROUP = ("tiny", "sst2", 250)


def row(share, rate, losses, method="sparta", test=0.5, test_std=0.02):
    """A row whose best rate has these dev losses by seed."""
    seeds = dict(enumerate(losses))
    mean = sum(losses) / len(losses)
    return study.Row(
        GROUP, method, share, 5, rate, False, len(losses), mean, test, test_std, 0.0, 0.0, 7,
        {rate: seeds},
    )  # fmt: skip


def test_the_slope_of_an_exact_power_law_is_exact():
    rows = [row(share, 0.001 * share**-0.5, [0.5]) for share in (0.0001, 0.001, 0.01, 0.1)]
    assert study.slopes(rows)[2:] == [
        "- tiny, sst2, 250 examples: density^-0.50 (95 % interval -0.50 to -0.50, 4 best rates)"
    ]


def test_the_interval_is_students_with_two_degrees_less_than_points():
    rates = [1e-1, 1e-2, 1e-2, 1e-3]
    shares = (0.0001, 0.001, 0.01, 0.1)
    rows = [row(share, rate, [0.5]) for share, rate in zip(shares, rates, strict=True)]
    # logarithms to the base 10: x = -4..-1, y = -1, -2, -2, -3; slope -0.6, residual sum 0.2,
    # standard error sqrt(0.2 / 2 / 5) = 0.141, t(0.975, 2) = 4.303
    assert study.slopes(rows)[2].endswith(
        "density^-0.60 (95 % interval -1.21 to 0.01, 4 best rates)"
    )


def test_equal_best_rates_have_no_interval():
    rows = [row(share, 3e-4, [0.5]) for share in (0.0001, 0.001, 0.01)]
    assert study.slopes(rows)[2:] == ["- tiny, sst2, 250 examples: 0.0003 at all 3 densities"]


def test_the_best_density_has_the_range_of_all_draws_of_seeds():
    rows = [
        row(0.001, 0.1, [0.70, 0.70, 0.70]),
        row(0.01, 0.1, [0.50, 0.50, 0.40]),
        row(0.1, 0.1, [0.49, 0.49, 0.60]),
    ]
    # without the third seed 10 % is ahead by 0.01 a seed, with it 1 % by 0.2
    assert study.best_densities(rows)[2:] == [
        "- tiny, sst2, 250 examples: 1 % (1 to 10 %, 3 seeds)"
    ]


def test_lora_is_compared_between_the_two_next_densities():
    rows = [
        row(0.001, 0.1, [0.5, 0.5], test=0.60, test_std=0.02),
        row(0.1, 0.1, [0.5, 0.5], test=0.80, test_std=0.02),
        row(0.01, 0.1, [0.5, 0.5], method="lora", test=0.75, test_std=0.02),
    ]
    # half way between the two in logarithms: 0.70; each mean has a standard error of 0.02 / sqrt(2)
    assert study.at_lora_count(rows)[2:] == [
        "- tiny, sst2, 250 examples, 1 %: LoRA +5.0 (standard error 2.0)"
    ]


def test_a_pattern_is_compared_with_single_scalars_of_its_density():
    rows = [
        row(0.01, 0.1, [0.5, 0.5], test=0.75, test_std=0.03),
        row(0.02, 0.1, [0.4, 0.4], test=0.80, test_std=0.03),
        row(0.01, 0.1, [0.6, 0.6], method="sparta by block", test=0.70, test_std=0.04),
    ]
    # sqrt(0.03² / 2 + 0.04² / 2)
    assert study.patterns(rows)[2:] == [
        "- tiny, sst2, 250 examples, 1 %, block: test -5.0 (standard error 3.5), dev loss +0.1000"
    ]


@pytest.mark.parametrize("part", ["patterns", "slopes", "best_densities", "at_lora_count"])
def test_too_few_rows_give_no_number(part):
    assert len(getattr(study, part)([row(0.01, 0.1, [0.5])])) == 2


def test_a_cell_whose_rates_still_race_is_left_out():
    rows = [row(0.001, 0.1, [0.5, 0.5, 0.5]), row(0.01, 0.1, [0.1])]
    assert study.finished(rows) == rows[:1]


def test_overfitting_is_read_at_the_end_of_training():
    losses = [(0.75, None), (0.5, 0.5), (0.625, 0.25)]
    history = [{"dev_loss": dev, "train_loss": train} for dev, train in losses]
    run = SimpleNamespace(raw={"history": history})
    assert study._rise(run) == 0.125
    assert study._gap(run) == 0.375
