"""What cannot work together where whole images are classified."""

from collections.abc import Iterator

from .complaints import Key
from .schema import Config

IGNORED = -1  # label of an image that counts nowhere; TRAIN.ignore_label is for pixels


def classification_problems(config: Config) -> Iterator[tuple[tuple[Key, ...], str]]:
    """Options of segmentation that a classifier cannot honour, and impossible ones of its own."""
    train, data = config.TRAIN, config.DATA
    for section, key, wanted, reason in (
        ("TRAIN", "loss", "cross_entropy", "OHEM chooses pixels"),
        ("DATA", "packed", None, "packing is for images with label maps"),
        ("TEST", "has_prediction", False, "a classifier saves no pictures of labels"),
    ):
        value = getattr(getattr(config, section), key)
        if value != wanted:
            yield (
                ((section, key), ("TRAIN", "arch")),
                f"{section}.{key} {value} does not go with TRAIN.arch classifier: {reason}; leave "
                "it out",
            )
    if train.crop_area[0] > train.crop_area[1]:
        yield (
            (("TRAIN", "crop_area"),),
            f"TRAIN.crop_area {train.crop_area}: the first share must not be above the second",
        )
    if config.TEST.split == "test":
        yield (
            (("TEST", "split"),),
            "TEST.split test does not go with TRAIN.arch classifier: it has no labels; `val` is "
            "CIFAR's test batch",
        )
    if data.labels != "auto":
        yield (
            (("DATA", "labels"), ("TRAIN", "arch")),
            f"DATA.labels {data.labels} does not go with TRAIN.arch classifier: it is about label "
            "files; leave it out",
        )
