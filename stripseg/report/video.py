"""Overlay videos: frames of a file or a camera in, the classes laid over them out."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from ..config.errors import DataError
from ..config.limits import PIXELS
from ..trained_network import TrainedNetwork
from ..util.files import temporary_beside
from ..util.inference.sliding_window import SlidingWindow
from ..util.logger import progress
from .legend import OverlayStyle

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm")
# at these places of a file; FFmpeg knows many more formats, and some of them name other files
CONTAINERS = {4: (b"ftyp", b"moov", b"mdat", b"free", b"wide", b"skip"), 0: (b"\x1aE\xdf\xa3",)}
AVI = b"RIFF", b"AVI "
CODEC = "mp4v"
USUAL_RATE, FASTEST_RATE = 25.0, 240.0  # frames per second: where a file does not tell; at most
GIVE_UP = 30  # frames in a row that cannot be decoded


def is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES


@dataclass(frozen=True)
class Video:
    """An opened video file or camera.

    Args:
        name: for messages.
        rate: frames per second.
        count: frames, as the file's header says; None of a camera, or where it does not tell.
    """

    name: str
    rate: float
    count: int | None
    capture: cv2.VideoCapture
    warn: Callable[[str], None]

    def frames(self) -> Iterator[np.ndarray]:
        """The frames, (H, W, 3) RGB; what cannot be decoded is left out, with one warning."""
        read = failed = in_a_row = 0
        while self.count is None or read + failed < self.count:
            done, frame = self.capture.read()
            if done:
                read, in_a_row = read + 1, 0
                yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
                continue
            failed, in_a_row = failed + 1, in_a_row + 1
            if self.count is None or in_a_row == GIVE_UP:
                break
        if not read:
            raise DataError(f"{self.name}: no frame can be decoded; convert it to H.264 in .mp4")
        if self.count is not None and read < self.count:
            self.warn(
                f"{self.name}: {self.count - read} of {self.count} frames cannot be decoded and "
                "are left out; the file is damaged or ends early"
            )


@contextmanager
def opened(source: Path | int, *, warn: Callable[[str], None]) -> Iterator[Video]:
    """A video file, or the camera of a number.

    Raises:
        DataError: it does not exist, is not a video, or of a codec that OpenCV lacks here.
    """
    camera = isinstance(source, int)
    name = f"--camera {source}" if camera else str(source)
    if not camera:
        check_container(source)
    capture = cv2.VideoCapture(source if camera else str(source))
    try:
        if not capture.isOpened():
            raise DataError(
                f"{name}: cannot be opened; is it connected, and does no other program use it?"
                if camera
                else f"{name}: cannot be opened; it is damaged, or of a codec that this OpenCV "
                "lacks: convert it to H.264 in .mp4"
            )
        width, height = (
            int(capture.get(key)) for key in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT)
        )
        if width * height > PIXELS:
            raise DataError(f"{name}: claims to have frames of {width} x {height} pixels")
        rate, count = capture.get(cv2.CAP_PROP_FPS), int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        yield Video(
            name,
            rate if 0 < rate <= FASTEST_RATE else USUAL_RATE,
            count if count > 0 and not camera else None,
            capture,
            warn,
        )
    finally:
        capture.release()


def check_container(path: Path) -> None:
    """Raises DataError unless a file exists and begins as the formats of `VIDEO_SUFFIXES` do."""
    try:
        with open(path, "rb") as file:
            head = file.read(12)
    except FileNotFoundError:
        raise DataError(f"{path}: video file does not exist") from None
    except OSError as error:
        raise DataError(f"{path}: video file cannot be read ({error.strerror})") from error
    known = any(head[at : at + 4] in marks for at, marks in CONTAINERS.items())
    if not known and (head[:4], head[8:]) != AVI:
        raise DataError(f"{path}: is not a video ({', '.join(VIDEO_SUFFIXES)}), or is damaged")


class Writer:
    """An .mp4 file that appears when it is complete; the first frame decides the size.

    Raises:
        DataError: it cannot be written.
    """

    def __init__(self, path: Path, rate: float) -> None:
        self.path, self.rate = path, rate
        path.parent.mkdir(parents=True, exist_ok=True)
        self.temporary = temporary_beside(path).with_suffix(path.suffix)
        self.writer: cv2.VideoWriter | None = None

    def add(self, frame: np.ndarray) -> None:
        """Add an (H, W, 3) RGB frame."""
        height, width = (side + side % 2 for side in frame.shape[:2])  # the codec wants even sides
        if self.writer is None:
            code = cv2.VideoWriter_fourcc(*CODEC)
            self.writer = cv2.VideoWriter(str(self.temporary), code, self.rate, (width, height))
            if not self.writer.isOpened():
                raise DataError(
                    f"{self.path}: cannot be written: no room, no permission, or this OpenCV has "
                    f"no encoder {CODEC} (pip install --force-reinstall opencv-python-headless)"
                )
        odd = [(0, height - frame.shape[0]), (0, width - frame.shape[1]), (0, 0)]
        self.writer.write(cv2.cvtColor(np.pad(frame, odd, mode="edge"), cv2.COLOR_RGB2BGR))

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.writer is not None:
            self.writer.release()
        if kind is None and self.temporary.is_file():
            self.temporary.replace(self.path)
        else:
            self.temporary.unlink(missing_ok=True)


def overlay_video(
    trained: TrainedNetwork,
    engine: SlidingWindow,
    source: Path | int,
    target: Path,
    style: OverlayStyle,
    *,
    warn: Callable[[str], None],
    most: int | None = None,
) -> int:
    """Write the overlay of every frame; return how many there are.

    Args:
        source: a video file, or the number of a camera, which ends with Ctrl-C.
        most: frames to take.
        warn: is told of frames that cannot be decoded.
    Raises:
        DataError: the source cannot be read, or the target not be written.
    """
    grey = trained.config.DATA.in_channels == 1
    done = 0
    with opened(source, warn=warn) as video, Writer(target, video.rate) as writer:
        frames = progress(video.frames(), total=video.count, unit="frame", what="predicting")
        try:
            for frame in frames:
                seen = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) if grey else frame
                mask = trained.predict_with(engine, seen).mask
                writer.add(style.draw(frame, mask, trained.names, trained.colors, steady=True))
                done += 1
                if done == most:
                    break
        except KeyboardInterrupt:
            if not isinstance(source, int):
                raise
    return done
