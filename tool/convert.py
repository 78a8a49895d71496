"""Convert weights between authors' layouts: `stripseg convert INPUT OUTPUT [--to AUTHOR]`.

INPUT is a weights file of any known author, recognised by its content; of a timm network, which has
names of its own, say --timm. OUTPUT, .pth or .safetensors, has the same tensors under stripseg's
names, or with --to under an author's, as the author's own program loads them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from stripseg import command_line
from stripseg.command_line import Result
from stripseg.config.compatibility import ADDED, stored_option
from stripseg.config.errors import CheckpointError
from stripseg.model.families import FAMILIES, TIMM, Family, authors_keys
from stripseg.model.weights import first_few, translate
from stripseg.util.checkpoint import read_checkpoint, write_weights

TARGETS = (*(f for f in FAMILIES if not f.name.startswith("stripseg ")), TIMM)


def word(family: Family) -> str:
    """The family's name on the command line."""
    return family.name.lower().replace(" ", "-")


def main(argv: Sequence[str]) -> Result:
    """Read, translate, write."""
    parser = command_line.command_parser("stripseg convert", __doc__)
    parser.add_argument("input", type=Path, help="weights of any known author")
    parser.add_argument("output", type=Path, help="file to write, .pth or .safetensors")
    parser.add_argument(
        "--to",
        choices=[word(family) for family in TARGETS],
        default="stripseg",
        help="whose names to write (default: stripseg)",
    )
    parser.add_argument("--timm", action="store_true", help="INPUT is of a network of timm")
    options = parser.parse_args(argv)
    content = read_checkpoint(options.input)
    source, state, unused = translate(content, origin=str(options.input), for_timm=options.timm)
    target = next(family for family in TARGETS if word(family) == options.to)
    if target.name == "stripseg":
        tensors = state
        content = {"format": "stripseg", "version": 1, "state_dict": state}
    else:
        check_means_the_same(content, target, origin=options.input)
        tensors = in_layout_of(target, state, origin=options.input)
        content = as_saved_by(target, tensors)
    write_weights(options.output, content, tensors)
    print(f"{options.output}: {len(tensors)} tensors, {source.name} -> {target.name}")
    if unused:
        print(f"left out, no network here has them: {first_few(unused)}")
    return Result(
        {
            "file": options.output,
            "tensors": len(tensors),
            "from": source.name,
            "to": target.name,
            "left_out": unused,
        }
    )


def check_means_the_same(content: Mapping[str, Any], target: Family, *, origin: Path) -> None:
    """Check that the author's program computes with these tensors what the network here does.

    Raises:
        CheckpointError: an option that leaves no trace in the tensors is unknown to that program.
    """
    config = content.get("config")
    if not isinstance(config, Mapping):
        return
    if not stored_option(config, "TRAIN", "align_corners"):
        raise CheckpointError(
            f"{origin}: cannot be written for {target.name}: the network was trained with "
            "TRAIN.align_corners False, and that program aligns corners"
        )
    if stored_option(config, "TRAIN", "arch") != "spnet":
        return
    pooling = stored_option(config, "TRAIN", "strip_pooling")
    if pooling != ADDED["strip_pooling"]:
        raise CheckpointError(
            f"{origin}: cannot be written for {target.name}: the network was trained with "
            f"TRAIN.strip_pooling {pooling}, and that program averages"
        )


def in_layout_of(target: Family, state: dict[str, Tensor], *, origin: Path) -> dict[str, Tensor]:
    try:
        return authors_keys(state, target)
    except ValueError as error:
        raise CheckpointError(
            f"{origin}: cannot be written with the names of {target.name}: {error}"
        ) from error


def as_saved_by(target: Family, tensors: dict[str, Tensor]) -> dict:
    """What the author's program expects in the file.

    Whole networks were saved from a data-parallel wrapper, and a file without its prefix loads
    nothing there, silently. Backbones are bare.
    """
    if not target.whole:
        return tensors
    return {"epoch": 0, "state_dict": {f"module.{key}": value for key, value in tensors.items()}}


if __name__ == "__main__":
    command_line.run_command(main)
