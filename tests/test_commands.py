"""The commands, as a user types them, on generated data; and what they say to mistakes."""

import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from processes import run_command

import stripseg
from stripseg import testing
from stripseg.command_line import config_parser, parse_config
from stripseg.config.errors import (
    CheckpointError,
    DataError,
    DeviceError,
    StripsegError,
    TrainingError,
)
from stripseg.tool import demo, prepare, test, train
from stripseg.util.distributed import process_group

ROOT = Path(__file__).resolve().parent.parent


def run_shell(script: str, *words: str, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    command = ["sh", str(ROOT / "tool" / script), *words]
    env = {"PYTHON": sys.executable, "PATH": "/usr/bin:/bin", "CUDA_VISIBLE_DEVICES": ""}
    env["OMP_NUM_THREADS"] = "1"  # beside other test processes
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env, timeout=300)


def test_shell_commands_train_and_test_by_name(small_config: Path, tmp_path: Path) -> None:
    """`sh tool/train.sh DATASET EXPERIMENT` from a folder with a config of the user's own."""
    own = tmp_path / "config" / "mine"
    own.mkdir(parents=True)
    (own / "mine_small.yaml").write_text(small_config.read_text())
    done = run_shell("train.sh", "mine", "small", "TRAIN.epochs", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "training from scratch" in done.stdout
    assert "epoch 1 val mIoU/mAcc/allAcc" in done.stdout
    done = run_shell("test.sh", "mine", "small", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "fence" in done.stdout
    assert str(tmp_path / "run" / "result" / "color") in done.stdout


def test_test_writes_predictions_and_figures(trained_config: Path, tmp_path: Path) -> None:
    arguments = ["--config", str(trained_config)]
    test.main(arguments)
    result = tmp_path / "run" / "result"
    figures = json.loads((result / "metrics.json").read_text())
    assert len(figures["classes"]) == 9
    assert figures["images"] == 3
    assert figures["mIoU"] == pytest.approx(np.mean([c["iou"] for c in figures["classes"]]))
    gray = sorted((result / "gray").iterdir())
    assert [path.name for path in gray] == sorted(p.name for p in (result / "color").iterdir())
    assert np.array(Image.open(gray[0])).shape == (72, 88)
    # saved predictions give the same figures, to the last digit
    test.main([*arguments, "TEST.has_prediction", "True"])
    again = json.loads((result / "metrics.json").read_text())
    assert again["precision"] is None  # which the saved predictions do not tell
    assert {**again, "precision": figures["precision"]} == figures


def test_the_test_uses_the_backend_and_counts_its_own_share(
    trained_config: Path, monkeypatch
) -> None:
    """`Distributed.dist_backend` as in training; the bar of one of two processes ends at 100 %."""
    started, totals = {}, []
    monkeypatch.setattr(process_group, "start", lambda device, **options: started.update(options))
    monkeypatch.setattr(process_group, "world_size", lambda: 2)
    monkeypatch.setattr(process_group, "barrier", lambda: None)
    monkeypatch.setattr(process_group, "all_reduce_sum", lambda tensor: tensor)

    def progress(items, *, total: int, **_):
        totals.append(total)
        return items

    monkeypatch.setattr(testing, "progress", progress)
    words = ["--config", str(trained_config), "Distributed.dist_backend", "gloo"]
    for more in ([], ["TEST.save_predictions", "False"]):
        # the other process is not there, and what it should have written is missed
        with pytest.raises(DataError, match="has no record of 1 images"):
            test.main([*words, *more])
    assert started["backend"] == "gloo"
    assert totals == [2, 2]  # of three images


def test_index_start_and_step_choose_images(trained_config: Path, tmp_path: Path) -> None:
    arguments = ["--config", str(trained_config), "TEST.index_start", "1", "TEST.index_step", "1"]
    test.main(arguments)
    names = [path.name for path in (tmp_path / "run" / "result" / "gray").iterdir()]
    assert len(names) == 1
    with pytest.raises(DataError, match="index_start 9"):
        test.main(["--config", str(trained_config), "TEST.index_start", "9"])


def test_split_test_needs_no_labels(
    trained_config: Path, small_shapes: Path, tmp_path: Path
) -> None:
    images = [line.split()[0] for line in (small_shapes / "val.txt").read_text().splitlines()]
    (tmp_path / "images.txt").write_text("\n".join(images))
    overrides = ["TEST.split", "test", "TEST.test_list", str(tmp_path / "images.txt")]
    test.main(["--config", str(trained_config), *overrides])
    result = tmp_path / "run" / "result"
    assert len(list((result / "gray").iterdir())) == 3
    assert not (result / "metrics.json").exists()


def test_images_of_one_name_keep_their_folders(
    trained_config: Path, small_shapes: Path, tmp_path: Path
) -> None:
    """`a/street.v2.jpg` and `b/street.v2.jpg`: two predictions, names not cut at the first dot."""
    lines = []
    for folder, line in zip(
        "ab", (small_shapes / "val.txt").read_text().splitlines(), strict=False
    ):
        image, label = line.split()
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "street.v2.jpg").write_bytes((small_shapes / image).read_bytes())
        lines.append(f"{folder}/street.v2.jpg {small_shapes / label}")
    (tmp_path / "list.txt").write_text("\n".join(lines))
    overrides = ["DATA.data_root", str(tmp_path), "TEST.test_list", "list.txt"]
    test.main(["--config", str(trained_config), *overrides])
    gray = tmp_path / "run" / "result" / "gray"
    assert (gray / "a" / "street.v2.png").is_file()
    assert (gray / "b" / "street.v2.png").is_file()


def test_demo_overlays_an_image_and_a_folder(
    trained_config: Path, small_shapes: Path, tmp_path: Path
) -> None:
    folder = small_shapes / "images" / "val"
    image = sorted(folder.iterdir())[0]
    arguments = ["--config", str(trained_config), "--output", str(tmp_path / "demo")]
    demo.main([*arguments, f"--image={image}"])
    assert len(list((tmp_path / "demo").iterdir())) == 3  # gray, color, overlay
    demo.main([*arguments, f"--image={folder}"])
    overlays = list((tmp_path / "demo").glob("*_overlay.png"))
    assert len(overlays) == 3
    assert np.array(Image.open(overlays[0])).shape == (72, 88, 3)
    with pytest.raises(DataError, match="no such file or folder"):
        demo.main([*arguments, "--image", str(tmp_path / "absent")])
    with pytest.raises(DataError, match=r"a.mp4: is a video, which `stripseg predict .* takes"):
        demo.main([*arguments, "--image", "a.mp4"])


def test_demo_predicts_what_the_test_predicts(
    trained_config: Path, small_shapes: Path, tmp_path: Path
) -> None:
    scales = ["TEST.scales", "[0.75,1.25]"]
    test.main(["--config", str(trained_config), *scales])
    saved = sorted((tmp_path / "run" / "result" / "gray").iterdir())[0]
    image = next((small_shapes / "images" / "val").glob(f"{saved.stem}.*"))
    out = tmp_path / "demo"
    demo.main(
        ["--config", str(trained_config), *scales, "--image", str(image), "--output", str(out)]
    )
    shown = np.array(Image.open(out / f"{saved.stem}_gray.png"))
    assert np.array_equal(shown, np.array(Image.open(saved)))


def test_prepare_writes_shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import stripseg.dataset.generated.shapes as shapes

    original = shapes.write_shapes
    monkeypatch.setattr(prepare, "write_shapes", lambda root: original(root, train=2, val=1))
    prepare.main(["shapes", str(tmp_path / "out")])
    assert len((tmp_path / "out" / "train.txt").read_text().splitlines()) == 2


def test_options_of_the_config_have_no_dashes(
    small_config: Path, capsys: pytest.CaptureFixture
) -> None:
    for typed in (["--epochs", "5"], ["--TRAIN.epochs=5"]):
        with pytest.raises(SystemExit):
            parse_config(
                config_parser("stripseg train", ""), ["--config", str(small_config), *typed]
            )
        name = typed[0].strip("-").removesuffix("=5")
        assert f"options of the config have no dashes: {name} VALUE" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        parse_config(config_parser("stripseg train", ""), ["--epohcs", "5"])
    assert "dashes" not in capsys.readouterr().err


def test_messages_are_one_line_and_exit_with_2(small_config: Path) -> None:
    words = ["--config", str(small_config), "TRAIN.base_lrr", "1"]
    done = run_command("stripseg.tool.train", *words)
    assert done.returncode == 2
    assert done.stderr.strip().count("\n") == 0
    assert "TRAIN.base_lrr" in done.stderr
    assert "TRAIN.base_lr?" in done.stderr
    assert "Traceback" not in done.stderr


def broken_list(small_shapes: Path, folder: Path, line: str) -> list[str]:
    """Overrides that put `line` in the second place of the training list."""
    lines = (small_shapes / "train.txt").read_text().splitlines()
    lines[1] = line
    (folder / "broken.txt").write_text("\n".join(lines))
    return ["DATA.train_list", str(folder / "broken.txt")]


def test_mistakes_in_the_data_are_named(
    small_config: Path, small_shapes: Path, tmp_path: Path
) -> None:
    image, label = (small_shapes / "train.txt").read_text().split()[:2]
    wrong_size, wrong_value = tmp_path / "size.png", tmp_path / "value.png"
    Image.new("L", (5, 5)).save(wrong_size)
    Image.fromarray(np.full((72, 88), 77, np.uint8)).save(wrong_value)
    cut = tmp_path / "cut.jpg"
    cut.write_bytes((small_shapes / image).read_bytes()[:-400])
    cases = {
        image: "line 2: expected 'image label'",
        "": "line 2: the line is empty",
        f"{image} absent.png": "line 2: .*absent.png does not exist",
        f"{image} {wrong_size}": "size.png 5x5 pixels .* must agree",
        f"{image} {wrong_value}": "value.png: label value 77 is outside the classes",
        f"{cut} {label}": "cut.jpg: image file is truncated",
    }
    for line, message in cases.items():
        with pytest.raises(DataError, match=message):
            train.main(["--config", str(small_config), *broken_list(small_shapes, tmp_path, line)])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["DATA.data_root", "/absent"], "DATA.data_root"),
        (["DATA.train_list", "absent.txt"], "DATA.train_list"),
        (["DATA.classes", "10"], "DATA.classes"),
        (["TRAIN.train_gpu", "[0]"], r"TRAIN.train_gpu asks for GPU 0, .* no usable GPU"),
        (["TRAIN.batch_size", "7"], "TRAIN.batch_size"),
        (["TRAIN.pretrained", "absent.pth"], "TRAIN.pretrained: .*absent.pth does not exist"),
        (["TRAIN.resume", "absent.pth"], "absent.pth: checkpoint does not exist"),
        (["TRAIN.arch", "deeplab"], "TRAIN.arch"),
        (["TRAIN.backbone", "resnet19"], "backbone"),
    ],
)
def test_impossible_runs_are_refused(
    small_config: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(StripsegError, match=message):
        train.main(["--config", str(small_config), *overrides])


def test_a_port_in_use_is_found_before_anything_hangs(small_config: Path) -> None:
    """Several machines must agree on a port, so another is proposed, not taken."""
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        url = ["Distributed.dist_url", f"tcp://127.0.0.1:{port}", "Distributed.world_size", "2"]
        with pytest.raises(DeviceError, match=rf"port {port} of this machine is in use; port \d+"):
            train.main(["--config", str(small_config), *url, "Distributed.rank", "0"])


def test_missing_weights_may_be_allowed(small_config: Path, capsys: pytest.CaptureFixture) -> None:
    overrides = ["TRAIN.pretrained", "absent.pth", "TRAIN.pretrained_optional", "True"]
    overrides += ["TRAIN.epochs", "1", "TRAIN.evaluate", "False"]
    train.main(["--config", str(small_config), *overrides])
    said = capsys.readouterr().out
    assert "absent.pth not found" in said
    assert "training from scratch" in said


def test_a_test_does_not_need_the_gpus_of_the_training(trained_config: Path) -> None:
    """A YAML for eight GPUs and four images, tested on the CPU of another machine."""
    content = yaml.safe_load(trained_config.read_text())
    content["TRAIN"] |= {"train_gpu": list(range(8)), "batch_size": 4}
    trained_config.write_text(yaml.safe_dump(content))
    test.main(["--config", str(trained_config), "TEST.test_gpu", "[]"])
    figures = next(trained_config.parent.rglob("metrics.json"))
    assert 0 <= json.loads(figures.read_text())["mIoU"] <= 1


def test_another_depth_is_told_by_its_option(trained_config: Path) -> None:
    words = ["--config", str(trained_config), "TRAIN.layers", "34", "TRAIN.epochs", "9"]
    with pytest.raises(
        CheckpointError, match=r"TRAIN.backbone resnet18, and now it is resnet34.*--fresh"
    ):
        train.main(words)


def test_a_finished_run_is_not_taken_for_one_of_other_options(trained_config: Path, capsys) -> None:
    words = ["--config", str(trained_config), "TRAIN.epochs", "1", "TRAIN.evaluate", "False"]
    train.main([*words, "TRAIN.print_freq", "7"])  # changes nothing
    assert "nothing to do" in capsys.readouterr().out
    with pytest.raises(TrainingError, match=r"finished, with another TRAIN.loss .*--fresh"):
        train.main([*words, "TRAIN.loss", "dice"])


def test_masks_of_0_and_255_are_not_scored(trained_config: Path, tmp_path: Path) -> None:
    """255 would be ignored, and the object's class would have no pixel."""
    Image.new("RGB", (64, 64)).save(tmp_path / "i.png")
    mask = np.zeros((64, 64), np.uint8)
    mask[20:40, 20:40] = 255
    Image.fromarray(mask).save(tmp_path / "l.png")
    shutil.copy(tmp_path / "i.png", tmp_path / "j.png")
    (tmp_path / "list.txt").write_text("i.png l.png\nj.png l.png\n")
    words = ["TEST.test_list", "list.txt", "DATA.data_root", str(tmp_path)]
    with pytest.raises(DataError, match="0 and 255"):
        test.main(["--config", str(trained_config), *words])
    with pytest.raises(DataError, match="0 and 255"):
        stripseg.load(tmp_path / "run/model/last.pth").test(
            tmp_path / "list.txt", data_root=str(tmp_path)
        )


def test_wrong_checkpoints_are_refused(trained_config: Path, tmp_path: Path) -> None:
    arguments = ["--config", str(trained_config)]
    other = ["DATA.classes", "7", "DATA.dataset", "mine", "TEST.test_list", "val.txt"]
    other += ["DATA.data_root", str(one_image(tmp_path))]
    with pytest.raises(CheckpointError, match=r"with DATA.classes \d, and now it is 7"):
        test.main([*arguments, *other])
    with pytest.raises(CheckpointError, match=r"TRAIN.backbone resnet18, and now it is resnet34"):
        test.main([*arguments, "TRAIN.layers", "34"])
    with pytest.raises(CheckpointError, match="does not exist"):
        test.main([*arguments, "TEST.model_path", str(tmp_path / "absent.pth")])
    with pytest.raises(DeviceError, match="TEST.test_gpu"):
        test.main([*arguments, "TEST.test_gpu", "[3]"])


def one_image(folder: Path) -> Path:
    """A dataset of one image, all of class 0."""
    Image.new("RGB", (64, 64)).save(folder / "i.png")
    Image.new("L", (64, 64)).save(folder / "l.png")
    (folder / "val.txt").write_text("i.png l.png\n")
    return folder


def test_authors_checkpoint_is_tested_directly(trained_config: Path, tmp_path: Path) -> None:
    """A file saved from a data-parallel wrapper, without our training state."""
    saved = torch.load(tmp_path / "run" / "model" / "last.pth", weights_only=True)
    wrapped = {f"module.{key}": value for key, value in saved["state_dict"].items()}
    torch.save({"epoch": 1, "state_dict": wrapped}, tmp_path / "authors.pth")
    test.main(["--config", str(trained_config)])
    figures = (tmp_path / "run" / "result" / "metrics.json").read_text()
    test.main(["--config", str(trained_config), "TEST.model_path", str(tmp_path / "authors.pth")])
    again = json.loads((tmp_path / "run" / "result" / "metrics.json").read_text())
    assert again["mIoU"] == json.loads(figures)["mIoU"]
    with pytest.raises(CheckpointError, match=r"TRAIN.weight to it instead of TRAIN.resume"):
        train.main(["--config", str(trained_config), "TRAIN.resume", str(tmp_path / "authors.pth")])
