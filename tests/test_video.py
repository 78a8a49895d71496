"""Overlay videos and overlays with legends; what is damaged or missing is named."""

from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from stripseg.config.errors import ConfigError, DataError
from stripseg.report import video
from stripseg.report.legend import OverlayStyle, legend, with_legend
from stripseg.tool import predict
from stripseg.trained_network import Prediction
from stripseg.util.images import write_png

SIZE = 48, 64
NAMES = ["road", "sky", "traffic light"]
COLORS = np.array([[200, 0, 0], [0, 0, 200], [0, 200, 0]], np.uint8)


class Trained:
    """The left half of every image is road, the right one sky."""

    names, colors, path = NAMES, COLORS, "fake.pth"
    config = SimpleNamespace(DATA=SimpleNamespace(in_channels=3))

    def engine(self, **_):
        return None

    def predict_with(self, engine, source) -> Prediction:
        image = source
        if isinstance(source, Path):
            image = cv2.cvtColor(cv2.imread(str(source)), cv2.COLOR_BGR2RGB)
        mask = np.zeros(image.shape[:2], np.uint8)
        mask[:, mask.shape[1] // 2 :] = 1
        return Prediction(self, engine, image, mask)


@pytest.fixture(autouse=True)
def network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict, "load", lambda path, device: Trained())


def write_video(path: Path, frames: int = 10, *, code: str = "MJPG") -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*code), 10, SIZE[::-1])
    for index in range(frames):
        writer.write(np.full((*SIZE, 3), 20 * index, np.uint8))
    writer.release()
    return path


def frames_of(path: Path) -> list[np.ndarray]:
    with video.opened(path, warn=pytest.fail) as opened:
        return list(opened.frames())


def overlay_of(path: Path, *words: str) -> list[np.ndarray]:
    """The frames that the command makes of a video."""
    assert (
        predict.main(["best.pth", str(path), "--output", str(path.parent), *words]).exit_code == 0
    )
    return frames_of(path.with_name(f"{path.stem}_overlay.mp4"))


@pytest.mark.parametrize(("suffix", "code"), [(".avi", "MJPG"), (".mp4", "mp4v")])
def test_every_frame_gets_its_overlay_and_a_legend(tmp_path: Path, suffix, code) -> None:
    frames = overlay_of(write_video(tmp_path / f"street{suffix}", code=code))
    assert len(frames) == 10
    assert len({frame.shape for frame in frames}) == 1
    assert frames[0].shape[0] > SIZE[0]  # the legend
    assert frames[0].shape[1] == SIZE[1]
    left, right = frames[5][10:30, 5:20], frames[5][10:30, 40:60]
    assert np.allclose(left.mean((0, 1)), (150, 50, 50), atol=15)  # half of 100, half of the class
    assert np.allclose(right.mean((0, 1)), (50, 50, 150), atol=15)
    with video.opened(tmp_path / "street_overlay.mp4", warn=pytest.fail) as opened:
        assert opened.rate == pytest.approx(10)
    assert not list(tmp_path.glob(".*"))  # no temporary file


def test_options_of_the_overlay(tmp_path: Path) -> None:
    words = ["--side-by-side", "--classes", "Sky", "--opacity", "1", "--frames", "4"]
    frames = overlay_of(write_video(tmp_path / "street.avi"), *words)
    assert len(frames) == 4
    assert frames[0].shape[1] == 2 * SIZE[1]
    plain, road, sky = (
        frames[3][10:30, a:b].mean((0, 1)) for a, b in ((9, 50), (69, 88), (104, 120))
    )
    assert np.allclose(plain, 60, atol=15)
    assert np.allclose(road, 60, atol=15)  # not among the classes shown
    assert np.allclose(sky, (0, 0, 200), atol=30)


def test_pictures_have_the_same_options(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", np.full((*SIZE, 3), 100, np.uint8))
    words = ["best.pth", str(tmp_path / "a.png"), "--output", str(tmp_path / "out")]
    predict.main([*words, "--kinds", "overlay"])
    plain = cv2.imread(str(tmp_path / "out/a_overlay.png"))
    predict.main([*words, "--kinds", "overlay", "--legend"])
    named = cv2.imread(str(tmp_path / "out/a_overlay.png"))
    assert plain.shape == (*SIZE, 3)
    assert np.array_equal(named[: SIZE[0]], plain)
    assert named.shape[0] > SIZE[0]


def test_damaged_frames_are_left_out_with_one_warning(tmp_path: Path) -> None:
    path = write_video(tmp_path / "cut.avi")
    content = path.read_bytes()
    second = content.find(b"00dc", content.find(b"00dc") + 4)
    damaged = bytearray(content)
    damaged[second + 8 : second + 200] = bytes(192)  # a frame without its JPEG header
    path.write_bytes(damaged)
    warnings: list[str] = []
    with video.opened(path, warn=warnings.append) as opened:
        frames = list(opened.frames())
    assert 0 < len(frames) < 10
    assert warnings == [
        f"{path}: {10 - len(frames)} of 10 frames cannot be decoded and are left out; the file is "
        "damaged or ends early"
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "bad.mp4: video file does not exist"),
        (b"", "bad.mp4: is not a video"),
        (b"#EXTM3U\nfile:///etc/passwd\n", "bad.mp4: is not a video"),
        (
            b"\0\0\0\x18ftypisom" + bytes(100),
            "bad.mp4: cannot be opened; it is damaged, or of a codec",
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, content, message, capfd) -> None:
    path = tmp_path / "bad.mp4"
    if content is not None:
        path.write_bytes(content)
    good = write_video(tmp_path / "good.avi", 2)
    words = ["best.pth", str(path), str(good), "--output", str(tmp_path / "out")]
    assert predict.main(words).exit_code == predict.SOME_FAILED
    assert message in capfd.readouterr().err
    assert len(frames_of(tmp_path / "out/good_overlay.mp4")) == 2  # the others go on
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["good_overlay.mp4"]


def test_a_camera_that_is_not_there_is_named(tmp_path: Path, monkeypatch, capfd) -> None:
    class Absent:
        def __init__(self, source) -> None:
            assert source == 7

        def isOpened(self) -> bool:
            return False

        def release(self) -> None:
            pass

    monkeypatch.setattr(cv2, "VideoCapture", Absent)
    words = ["best.pth", "--camera", "7", "--output", str(tmp_path)]
    assert predict.main(words).exit_code == predict.SOME_FAILED
    assert "--camera 7: cannot be opened; is it connected" in capfd.readouterr().err


def test_ctrl_c_ends_a_camera_and_keeps_its_video(tmp_path: Path, monkeypatch) -> None:
    class Camera:
        def __init__(self, source) -> None:
            self.left = 3

        def isOpened(self) -> bool:
            return True

        def get(self, key) -> float:
            return 0.0

        def read(self):
            if not self.left:
                raise KeyboardInterrupt
            self.left -= 1
            return True, np.full((*SIZE, 3), 100, np.uint8)

        def release(self) -> None:
            pass

    with monkeypatch.context() as patched:
        patched.setattr(cv2, "VideoCapture", Camera)
        assert predict.main(["best.pth", "--camera", "0", "--output", str(tmp_path)]).exit_code == 0
    assert len(frames_of(tmp_path / "camera0_overlay.mp4")) == 3


def test_a_missing_encoder_is_named(tmp_path: Path, monkeypatch, capfd) -> None:
    monkeypatch.setattr(video, "CODEC", "????")
    path = write_video(tmp_path / "a.avi", 2)
    words = ["best.pth", str(path), "--output", str(tmp_path / "out")]
    assert predict.main(words).exit_code == predict.SOME_FAILED
    assert "a_overlay.mp4: cannot be written" in capfd.readouterr().err
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        ([], DataError, "name an image, a folder, a video, or --camera 0"),
        (["a.mp4", "--classes", "sk"], ConfigError, r"--classes sk: .* did you mean sky\?"),
        (["a.mp4", "--classes", "xyzzy"], ConfigError, "there are road, sky, traffic light"),
        (["a.mp4", "--frames", "0"], ConfigError, "--frames 0: expected"),
        (["a.mp4", "b/a.avi"], DataError, "would share their results"),
    ],
)
def test_mistakes_are_named(words: list[str], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        predict.main(["best.pth", *words])


def test_a_legend_names_what_is_present_largest_first() -> None:
    mask = np.array([[1] * 30 + [0] * 10] * 20, np.uint8)
    picture = np.zeros((200, 300, 3), np.uint8)
    strip = with_legend(picture, mask, NAMES, COLORS)[200:]
    sky, road = ((strip == color).all(2).nonzero()[1].min() for color in COLORS[[1, 0]])
    assert sky < road
    assert not (strip == COLORS[2]).all(2).any()
    assert with_legend(picture, mask[:0], NAMES, COLORS).shape == (200, 300, 3)
    assert len(legend(80, NAMES, COLORS)) > len(legend(800, NAMES, COLORS))  # lines wrap


def test_the_frames_of_a_video_have_one_size() -> None:
    """However many classes each has, and never more than three lines of legend."""
    names = [f"class number {index}" for index in range(40)]
    colors = np.arange(120, dtype=np.uint8).reshape(40, 3)
    style, image = OverlayStyle(legend=True), np.zeros((40, 90, 3), np.uint8)
    masks = [np.full((40, 90), 3, np.uint8), np.arange(3600).reshape(40, 90) % 40]
    shapes = {style.draw(image, mask, names, colors, steady=True).shape for mask in masks}
    assert len(shapes) == 1
    assert next(iter(shapes))[0] < 40 + 80
