"""Memory: what the allocator keeps, and which errors mean that there was not enough of it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from processes import run_command

from stripseg.config.errors import OutOfMemoryError
from stripseg.config.load import load_config
from stripseg.tool import test as test_tool
from stripseg.training_run import build_trainer
from stripseg.util.inference.sliding_window import SlidingWindow
from stripseg.util.memory import is_out_of_memory

ROOT = Path(__file__).resolve().parent.parent
PROBE = """
import resource, torch

# five times 64 MiB, after some that let the heap settle
for _ in range(10):
    torch.ones(2**24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
ON_GLIBC = "CS_GNU_LIBC_VERSION" in getattr(os, "confstr_names", {})


def in_environment(command: str, **environment: str) -> str:
    """What a shell command prints after tool/environment.sh."""
    return subprocess.run(
        ["sh", "-ec", f'. "{ROOT}/tool/environment.sh"; {command}'],
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


@pytest.mark.skipif(not ON_GLIBC, reason="not on glibc")
@pytest.mark.skipif(
    HUGE_PAGES.exists() and "[always]" in HUGE_PAGES.read_text(), reason="pages are huge"
)
def test_freed_memory_is_used_again(tmp_path: Path) -> None:
    (tmp_path / "probe.py").write_text(PROBE)
    command = f'"{sys.executable}" "{tmp_path}/probe.py"'
    kept = int(in_environment(command))
    returned = int(in_environment(command, MALLOC_TRIM_THRESHOLD_="131072"))
    assert returned > 3 * 2**14  # pages; each of the five tensors has 2^14
    assert 2 * kept < returned


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("MALLOC_TRIM_THRESHOLD_", "131072"),
        ("MALLOC_MMAP_MAX_", "5"),
        ("GLIBC_TUNABLES", "glibc.malloc.mmap_threshold=131072"),
    ],
)
def test_what_the_user_has_set_counts(variable: str, value: str) -> None:
    printed = in_environment("env | grep -E 'MALLOC|GLIBC'", **{variable: value})
    assert printed == f"{variable}={value}\n"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (MemoryError(), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("GET was unable to find an engine to execute this computation"), True),
        (RuntimeError("FIND was unable to find an engine to execute this computation"), True),
        (RuntimeError("Unable to find an engine to execute this computation"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_which_errors_mean_out_of_memory(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) == expected


def test_out_of_memory_in_training_is_explained(small_config: Path, tmp_path: Path) -> None:
    """With every remedy by name, and the checkpoint of the epoch before as it was."""
    trainer = build_trainer(load_config(small_config), torch.device("cpu"))
    trainer.fit(until=3)
    before = (tmp_path / "run/model/last.pth").read_bytes()

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    trainer.segmenter.register_forward_pre_hook(full)
    with pytest.raises(OutOfMemoryError) as caught:
        trainer.fit()
    for word in (
        "Tried to allocate 2.00 GiB",
        "TRAIN.activation_checkpointing True",
        "TRAIN.precision bf16",
        "TRAIN.accumulation_steps above 1",
        "TRAIN.batch_size below 2",
        "TRAIN.train_h 48",
        "last.pth is as it was",
    ):
        assert word in str(caught.value)
    assert (tmp_path / "run/model/last.pth").read_bytes() == before


FULL_ON_RANK_1 = """
import os, torch
from stripseg import command_line
from stripseg.tool import train
from stripseg.util.training.step import TrainingStep

step = TrainingStep.__call__

def full(self, batch):
    if os.environ["RANK"] == "1" and batch.step == 1:
        raise torch.OutOfMemoryError("CUDA out of memory.")
    return step(self, batch)

TrainingStep.__call__ = full
command_line.run_command(train.main)
"""


@pytest.mark.slow
def test_no_process_is_left_when_one_runs_out_of_memory(
    small_config: Path, tmp_path: Path, forked_python: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHON_EXEC", forked_python)  # of torchrun
    script = tmp_path / "tool/full.py"
    script.parent.mkdir()
    script.write_text(FULL_ON_RANK_1)
    words = ["--standalone", "--nproc-per-node", "2", str(script), "--config", str(small_config)]
    done = run_command("torch.distributed.run", *words, "TRAIN.save_steps", "1", timeout=200)
    assert done.returncode != 0
    assert "error: out of memory while training (CUDA out of memory.)" in done.stderr
    assert "exitcode  : 71" in done.stderr


def test_out_of_memory_in_validation_names_its_options(small_config: Path) -> None:
    trainer = build_trainer(load_config(small_config), torch.device("cpu"))

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    trainer.validate = full
    with pytest.raises(OutOfMemoryError, match="while validating .*TRAIN.batch_size_val below"):
        trainer.fit()


def test_out_of_memory_in_testing_is_explained(trained_config: Path, monkeypatch) -> None:
    """Where one window at a time is too much; with the exit code of training."""

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(SlidingWindow, "_run", full)
    with pytest.raises(OutOfMemoryError, match="while testing .*TEST.test_h 48") as caught:
        test_tool.main(["--config", str(trained_config)])
    assert caught.value.exit_code == 71
