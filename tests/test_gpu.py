"""What only a GPU can show (`make test-gpu`); the checks are those of `benchmark.gpu_check`."""

import pytest
import torch

from benchmark import gpu_promises
from benchmark.gpu_promises import BAD_STEPS_ON_GPU, STEPS

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda", 0)


@pytest.mark.parametrize("case", STEPS)
def test_two_steps_are_those_of_the_cpu(case: str) -> None:
    found = gpu_promises.equal_steps(CUDA, case)
    assert found["ok"], found


@pytest.mark.parametrize(("optimizer", "precision"), BAD_STEPS_ON_GPU)
def test_a_step_that_is_not_finite_changes_nothing(optimizer: str, precision: str) -> None:
    found = gpu_promises.bad_step(CUDA, optimizer, precision)
    assert found["ok"], found


@pytest.mark.parametrize(
    "check",
    [
        gpu_promises.equal_predictions,
        gpu_promises.forced_out_of_memory,
        gpu_promises.waits,
        gpu_promises.two_processes,
    ],
    ids=lambda check: check.__name__,
)
def test_the_promise_is_kept(check) -> None:
    found = check(CUDA)
    assert found["ok"], found
