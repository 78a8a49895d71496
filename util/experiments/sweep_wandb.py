"""`--backend wandb`: Weights & Biases chooses the values, the runs are ours as always."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ...config.errors import StripsegError
from ...config.schema import SECTIONS
from ..signals import Stopped
from .sweep_file import OWN, Sweep

Run = Callable[[str, dict[str, Any], Callable[[dict], None]], str]


def run_on_wandb(sweep: Sweep, run: Run) -> None:
    """Register the sweep at W&B and make the trials that it asks for, one agent's job at a time:
    an agent would take the next job after a run that was stopped.

    Args:
        run: (id of the run, {parameter: value}, log figures) -> what went wrong, or nothing.
    Raises:
        StripsegError: wandb is not installed.
        Stopped: a run was.
    """
    try:
        import wandb
    except ImportError:
        raise StripsegError(
            "--backend wandb needs wandb, which is not installed: pip install wandb; without it "
            "the sweep runs on Optuna"
        ) from None
    content = {key: value for key, value in sweep.content.items() if key not in OWN}
    if sweep.run_cap is not None:
        content["run_cap"] = sweep.run_cap
    place = {key: content.pop(key, None) for key in ("project", "entity")}
    names = {parameter.name for parameter in sweep.parameters}
    stops: list[Stopped] = []
    made = 0

    def one() -> None:
        nonlocal made
        made += 1
        with wandb.init() as started:
            values = {name: value for name, value in flat(started.config) if name in names}
            try:
                error = run(str(started.id), values, started.log)
            except Stopped as stop:  # W&B's agent keeps every exception to itself
                stops.append(stop)
                raise
            if error:
                raise RuntimeError(error)  # marks W&B's run as failed

    number = wandb.sweep(content, **place)
    while sweep.run_cap is None or made < sweep.run_cap:
        before = made
        wandb.agent(number, function=one, count=1, **place)
        if stops:
            raise stops[0]
        if made == before:  # W&B has no more of them
            return


def flat(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """W&B's nested parameters, {"TRAIN": {"base_lr": 1}}, as TRAIN.base_lr."""
    for name, value in config.items():
        if name in SECTIONS and isinstance(value, Mapping):
            yield from ((f"{name}.{key}", entry) for key, entry in value.items())
        else:
            yield name, value
