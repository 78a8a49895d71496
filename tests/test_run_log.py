"""What a run tells: the time that is left and the time of a step."""

import re
from pathlib import Path

import pytest
import torch

from stripseg.config.load import load_config
from stripseg.training_run import build_trainer
from stripseg.util.training.run_log import duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "00:00:00"),
        (3723, "01:02:03"),
        (86399, "23:59:59"),
        (86400, "1 d 00:00:00"),
        (25 * 3600, "1 d 01:00:00"),
        (100 * 86400 + 61, "100 d 00:01:01"),
    ],
)
def test_days_are_counted(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_time_of_a_step_leaves_validations_out(small_config: Path, tmp_path: Path) -> None:
    """Also where nothing is saved after them; each step takes 2 seconds, each validation 1000."""
    words = ["TRAIN.save_freq", "5", "TRAIN.epochs", "3", "TRAIN.tensorboard", "False"]
    trainer = build_trainer(load_config(small_config, words), torch.device("cpu"))
    now = 0.0
    trainer.run_log.clock = lambda: now
    trainer.run_log.restart_clock()
    trainer.best_score = 1.0  # no validation improves it
    add, validate = trainer.run_log.add, trainer.validate

    def slow_step(batch, figures) -> None:
        nonlocal now
        now += 2
        add(batch, figures)

    def slow_validation(*inputs):
        nonlocal now
        now += 1000
        return validate(*inputs)

    trainer.run_log.add, trainer.validate = slow_step, slow_validation
    trainer.fit()
    log = next((tmp_path / "run/model").glob("*.log")).read_text()
    assert re.findall(r"(\S+) s/step remaining (\S+)", log) == [
        ("2.000", f"00:00:{2 * left:02d}") for left in range(8, -1, -1)
    ]


@pytest.mark.parametrize(
    ("zoom_factor", "aligned"), [("1", "True"), ("4", "True"), ("8", "True"), ("4", "False")]
)
def test_training_figures_count_the_pixels_of_the_training_logits(
    small_config: Path, zoom_factor: str, aligned: str
) -> None:
    words = ["TRAIN.zoom_factor", zoom_factor, "TRAIN.epochs", "1", "TRAIN.evaluate", "False"]
    words += ["TRAIN.align_corners", aligned]
    config = load_config(small_config, words)
    trainer = build_trainer(config, torch.device("cpu"))
    trainer.fit(until=1)
    side = {"1": 8, "4": 2, "8": 1}[zoom_factor]
    crop = (config.TRAIN.train_h, config.TRAIN.train_w)
    height, width = ((length - 1) // side + 1 for length in crop)
    counted = int(trainer.run_log.confusion.counts.sum())
    pixels = config.TRAIN.batch_size * height * width
    assert 0.5 * pixels < counted <= pixels  # the others are padding, which is ignored
