"""Which check a fixture's kind asks for."""

from collections.abc import Callable

from . import figures, modules, networks
from .fixture import Errors, Fixture, UnknownFixtureError

CHECKS: dict[str, Callable[[Fixture], Errors]] = {
    "eval": networks.check_outputs,
    "train_step": networks.check_training_step,
    "module": modules.check_module,
    "tester": figures.check_tester,
    "iou": figures.check_figures,
    "loss": figures.check_loss,
    "schedule": figures.check_schedule,
    "labels": figures.check_label_maps,
}


def check(fixture: Fixture) -> list[tuple[str, float]]:
    """(what was compared, its error in units of its tolerance) of everything in the fixture.

    Raises:
        UnknownFixtureError: a kind, network or option that cannot be checked.
    """
    kind = fixture.facts["kind"]
    if kind not in CHECKS:
        raise UnknownFixtureError(f"kind {kind!r}")
    return list(CHECKS[kind](fixture))
