"""The speed command runs, its two sides agree, and its parts add up."""

from __future__ import annotations

import io
import subprocess
import sys
from typing import Literal

import pytest
import torch
from rich.console import Console

from metarl.benchmarks.speed import __main__ as speed
from metarl.benchmarks.speed import fewshot as fewshot_speed
from metarl.benchmarks.speed import meta_update as update_speed
from metarl.benchmarks.speed.__main__ import Speed
from metarl.benchmarks.speed.measure import product_rate
from metarl.benchmarks.speed.meta_update import PARTS, QUICK, UpdateSpeed, compare, shares
from metarl.benchmarks.speed.plain_maml import PlainMAML
from metarl.errors import ConfigError

CPU = torch.device("cpu")
Part = Literal["meta-update", "acting", "rl2", "fewshot", "metaworld", "training"]


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ("meta-update", ["times as fast", "Fisher products", "first order", "every 20th step"]),
        ("acting", ["fast weights", "GRU of 256"]),
        ("rl2", ["whole trials", "cosine"]),
        ("fewshot", ["sinusoid", "Omniglot's net", "share of drawing"]),
        ("metaworld", ["ml10"]),
        pytest.param(
            "training",
            ["x plain loop", "of the pool", "fisher_stride 5", "maml-trpo, ml1/reach-v3"],
            marks=pytest.mark.slow,  # A minute: every side of it is a process of its own.
        ),
    ],
)
def test_each_part_prints_its_tables(part: Part, words: list[str]) -> None:
    out = io.StringIO()
    speed.run(Speed(only=part, quick=True, clock="cpu", device="cpu"), Console(file=out, width=200))
    for word in words:
        assert word in out.getvalue()


def test_few_shot_gradients_that_differ_are_no_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fewshot_speed, "TOLERANCE", -1.0)
    with pytest.raises(ConfigError, match="the two gradients differ by"):
        fewshot_speed.run(Console(file=io.StringIO()), "cpu", CPU, quick=True)


def test_a_result_that_differs_is_no_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(update_speed, "TOLERANCE", -1.0)
    with pytest.raises(RuntimeError, match="loss_after is"):
        compare(QUICK, "cpu", CPU, 0)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("num_inner_steps", [1, 3])
def test_the_plain_side_is_the_same_algorithm(num_inner_steps: int) -> None:
    """In float64 to ten digits, which the benchmark's float32 cannot show."""
    size = update_speed.Size(3, 4, 6, 5, (7, 6), num_inner_steps, repeats=1)
    config = size.config(inner_lr=0.3)
    agent = size.build(config, CPU)
    trial = size.trial(agent, 1)
    plain = PlainMAML(config, agent.policy.params())
    theirs, ours = plain.meta_update(trial), agent.meta_update(trial)
    assert ours["accepted"] == 1
    assert abs(theirs["loss_after"] - (ours["loss"] - ours["improvement"])) < 1e-10
    assert abs(theirs["kl"] - ours["kl"]) < 1e-10
    for name, value in zip(plain.names, plain.params, strict=True):
        assert (value - agent.policy.params()[name]).abs().max() < 1e-8


def test_parts_count_every_product_once() -> None:
    """Ten Fisher products of two Hessian products, a tangent and a gradient each, by hand."""
    size = update_speed.Size(2, 3, 5, 6, (8,), 1, repeats=1)
    agent = size.build(size.config(), CPU)
    found = shares(agent, size.trial(agent, 0), "cpu")
    assert tuple(found) == PARTS
    samples, first, last = 2 * 3 * 5, 6 * 8, 8 * 4
    # Observations have no gradient: the first layer takes one product less in each direction.
    hessian, tangent, gradient = 2 * first + 6 * last, first + 2 * last, first + 2 * last
    assert found["Fisher products"].flops == 10 * 2 * samples * (2 * hessian + tangent + gradient)
    assert found["inner steps"].flops == 2 * samples * (2 * first + 3 * last)
    assert all(share.host > 0 and share.host == share.device for share in found.values())


def test_peak_memory_is_what_the_body_held_at_once() -> None:
    """Also what it gave back; not what came before.

    In a fresh process, as the benchmark measures: an allocator that has worked before keeps what was freed.
    """
    code = (
        "import torch; from metarl.benchmarks.speed.measure import peak_memory\n"
        "before = torch.ones(64 * 2**18)\n"
        "with peak_memory(torch.device('cpu')) as peak:\n"
        "    torch.ones(16 * 2**18).sum()\n"
        "    torch.ones(32 * 2**18).sum()\n"
        "print(peak[0], float(before[0]))"
    )
    answer = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True, text=True).stdout
    assert 30 < float(answer.split()[0]) < 40, answer


def test_product_rate_is_that_of_a_machine() -> None:
    assert 1e8 < product_rate("cpu", CPU, 128) < 1e14


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"UpdateSpeed\.tasks must be a tuple of whole numbers above 0, got \(20, 0\)"
    ):
        UpdateSpeed(tasks=(20, 0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--metaworld.benchmarks ml10 ml1/reac-v3", "error: unknown Meta-World benchmark 'ml1/reac-v3'. Did you mean"),
        ("--metaworld.num-envs 7", "error: num_envs must be a multiple of ml10's 10 tasks, got 7"),
    ],
)
def test_what_cannot_be_measured_is_told_in_a_line(options: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["speed", "--only", "metaworld", *options.split()])
    with pytest.raises(SystemExit, match=message):
        speed.main()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match="PyTorch sees no GPU"):
        Speed(device="cuda")
