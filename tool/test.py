"""Test a network: `stripseg test DATASET EXPERIMENT [KEY VALUE ...]`, or a file in their place.

stripseg test ade20k spnet50 TEST.scales "[0.5, 0.75, 1.0, 1.25, 1.5, 1.75]"
stripseg test exp/camvid/spnet18/model/best.pth      with the config it was trained with
stripseg test spnet18.onnx DATA.data_root data/camvid
stripseg test camvid spnet18 --against exp/camvid/pspnet18/result/val/ss

Beside the figures (metrics.json) it writes report.html, and per_image.jsonl for `stripseg compare`.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from stripseg import command_line
from stripseg.command_line import Result
from stripseg.config.schema import Config
from stripseg.config.validate import check_files
from stripseg.dataset.build import official_splits
from stripseg.report.page import NAME as REPORT
from stripseg.testing import run_test
from stripseg.util.distributed import process_group
from stripseg.util.logger import run_logger


def main(argv: Sequence[str]) -> Result | int:
    """Predict, save, count, report."""
    parser = command_line.config_parser("stripseg test", __doc__)
    parser.add_argument(
        "--against", type=Path, help="folder of an earlier test that the report compares with"
    )
    parser.add_argument(
        "--groups",
        default="auto",
        help="images that the report's intervals draw together: auto, none, folder, prefix, "
        "sequence, or a regular expression whose first group names the unit",
    )
    options, config = command_line.parse_config(parser, argv, classifiers=True)
    check_files(config, "test", official_splits=official_splits(config))
    devices = process_group.choose_devices(config.TEST.test_gpu, key="TEST.test_gpu")
    processes = command_line.process_count(config, devices)
    if command_line.must_launch(config, processes) and not config.TEST.has_prediction:
        return command_line.launch(__file__, argv, config, processes)
    device = command_line.own_device(devices)
    distributed = config.Distributed
    process_group.start(
        device, backend=distributed.dist_backend, timeout_minutes=distributed.timeout_minutes
    )
    log = run_logger(Path(config.TEST.save_folder) / "test.log")
    for notice in config.notices:
        log.info(f"note: {notice}")
    run_test(config, device, log, against=options.against, groups=options.groups)
    return Result(figures_of(config) if process_group.is_main() else {})


def figures_of(config: Config) -> dict:
    """What `--json` prints: metrics.json, where images have labels, and where everything is."""
    folder = Path(config.TEST.save_folder)
    labelled = config.classifies or config.TEST.split != "test"
    metrics = json.loads((folder / "metrics.json").read_text("utf-8")) if labelled else {}
    report = folder / REPORT
    return {**metrics, "folder": folder, "report": report if report.is_file() else None}


if __name__ == "__main__":
    command_line.run_command(main)
