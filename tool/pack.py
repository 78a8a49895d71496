"""Pack a config's training and validation lists for faster reading: `prepare.py pack`."""

import os
from collections.abc import Sequence
from pathlib import Path

from stripseg import command_line
from stripseg.config.load import check_files
from stripseg.config.schema import Config
from stripseg.dataset.build import build_pairs, label_encoding, official_splits
from stripseg.dataset.packed.writer import pack
from stripseg.util.logger import progress


def main(argv: Sequence[str]) -> None:
    """Write the packed copies and say how to train from them."""
    parser = command_line.argument_parser("prepare.py pack", __doc__)
    parser.add_argument("--out", type=Path, help="folder of the copy; DATA.packed if left out")
    workers = min(8, os.cpu_count() or 1)
    parser.add_argument("--workers", type=int, default=workers, help="processes")
    options, config = command_line.parse_config(parser, argv)
    folder = options.out or (config.DATA.packed and Path(config.DATA.packed))
    if not folder:
        parser.error("name the folder of the copy with --out, or set DATA.packed")
    check_files(config, "train", official_splits=official_splits(config))
    pack_list(config, config.DATA.train_list, folder, "train", workers=options.workers)
    if config.DATA.val_list and config.TRAIN.evaluate:
        pack_list(config, config.DATA.val_list, folder, "val", workers=options.workers)
    print(f"to train from it: DATA.packed {folder}")


def pack_list(config: Config, list_path: str, folder: Path, part: str, *, workers: int) -> None:
    """Write one list's copy, with a bar."""
    pairs = build_pairs(config, list_path, split=part)
    written = pack(
        pairs,
        label_encoding(config, pairs),
        folder,
        part,
        channels=config.DATA.in_channels,
        workers=workers,
        keep_bad=part == "train" and config.TRAIN.bad_data == "skip",
    )
    for _ in progress(written, total=len(pairs), unit="pair", what=part):
        pass
    gigabytes = sum(file.stat().st_size for file in folder.glob(f"{part}-*.pixels")) / 1e9
    print(f"{part}: {len(pairs)} pairs, {gigabytes:.2f} GB -> {folder / part}.json")
