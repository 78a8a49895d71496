"""What `fp32` means, and what a deterministic run may use."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from stripseg.config.errors import ConfigError
from stripseg.config.load import load_config
from stripseg.engine import evaluation_dtype, load_engine
from stripseg.training_run import build_trainer
from stripseg.util.precision import set_numerics

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    yield
    set_numerics()


def chosen() -> dict[str, bool]:
    return {
        "tf32": torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32,
        "tries algorithms": torch.backends.cudnn.benchmark,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


def disturb() -> None:
    """Settings of an earlier program in this process."""
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True)


def test_training_and_testing_set_the_numerics(small_config: Path) -> None:
    expected = {"tf32": False, "tries algorithms": True, "deterministic": False}
    config = load_config(small_config)
    disturb()
    build_trainer(config, CPU).fit(until=3)
    assert chosen() == expected
    disturb()
    load_engine(config, CPU)
    assert chosen() == expected


def test_a_deterministic_run(small_config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    words = ["TRAIN.deterministic", "True", "TRAIN.loss", "ohem"]
    build_trainer(load_config(small_config, words), CPU).fit(until=2)
    assert chosen() == {"tf32": False, "tries algorithms": False, "deterministic": True}

    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_maximum_pooling_has_no_deterministic_backward_pass(small_config: Path) -> None:
    words = ["TRAIN.deterministic", "True", "TRAIN.arch", "psp", "TRAIN.ppm_pooling", "max"]
    with pytest.raises(ConfigError, match="TRAIN.ppm_pooling max, .*set TRAIN.ppm_pooling average"):
        load_config(small_config, words)


@pytest.mark.parametrize(
    ("device", "words", "expected"),
    [
        ("cpu", [], torch.float32),
        ("cpu", ["TEST.precision", "bf16"], torch.bfloat16),
        ("cuda", [], torch.bfloat16),
        ("cuda", ["TRAIN.precision", "fp16"], torch.float16),
        ("cuda", ["TEST.precision", "fp32"], torch.float32),
    ],
)
def test_on_a_gpu_a_test_computes_as_the_validation_did(
    small_config: Path, device: str, words: list[str], expected: torch.dtype
) -> None:
    config = load_config(small_config, ["TRAIN.precision", "bf16", *words])
    assert evaluation_dtype(config, torch.device(device)) == expected
