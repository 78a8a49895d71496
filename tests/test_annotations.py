"""What annotation tools export becomes the right labels, and predictions become annotations."""

import base64
import contextlib
import io
import json
import os
import random
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from stripseg.config.errors import ConfigError, DataError
from stripseg.config.load import load_config
from stripseg.dataset.annotations.masks import Bitmap, Brush, brush_values, runs_of
from stripseg.dataset.annotations.metadata import opened_parquet, parquet_rows, rows_inside
from stripseg.dataset.annotations.model import Canvas, Patch, Shape
from stripseg.dataset.annotations.names import Names
from stripseg.dataset.annotations.parse import check_count
from stripseg.dataset.annotations.rasterize import (
    Ellipse,
    Polygon,
    Stroke,
    box,
    draw_label,
    fill,
)
from stripseg.dataset.annotations.recognise import read_labels
from stripseg.dataset.annotations.write import AnnotationFile, parts_of
from stripseg.dataset.build import build_classes
from stripseg.dataset.preparation.parquet import rows_of
from stripseg.tool import predict, prepare
from stripseg.trained_network import Prediction
from stripseg.util.images import read_label

HEIGHT, WIDTH = 48, 64
CAR = [[10, 10], [30, 10], [30, 30], [10, 30]]
HOLE = [[15, 15], [20, 15], [20, 20], [15, 20]]
TREE = [[25, 20], [50, 20], [50, 40], [25, 40]]
IN_CAR = (slice(10, 30), slice(10, 30))
IN_HOLE = (slice(15, 20), slice(15, 20))
IN_TREE = (slice(20, 40), slice(25, 50))


def truth(*, hole: bool, background: int = 0, car: int = 1, tree: int = 2) -> np.ndarray:
    """A tree in front of a car, which may have a hole."""
    label = np.full((HEIGHT, WIDTH), background, np.uint8)
    label[IN_CAR] = car
    if hole:
        label[IN_HOLE] = background
    label[IN_TREE] = tree
    return label


def car_mask() -> np.ndarray:
    """(H, W) bool: the car with its hole, where no tree is in front."""
    return truth(hole=True) == 1


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two images, both of which are annotated alike; the second one is in a folder."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for name in ("p0.jpg", "sub/p1.jpg"):
        path = Path("im", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)).save(path)
    return tmp_path


def run(labels: str, *words: str, images: str = "im") -> dict[str, np.ndarray]:
    """`prepare custom`; the labels that training would read, by the image's stem."""
    arguments = ["--images", images, "--labels", labels, "--name", "mine", "--workers", "1"]
    prepare.main(["custom", *arguments, *words])
    config = load_config("config/mine/mine_spnet18.yaml")
    found = {}
    for part in ("train", "val"):
        for line in Path(f"dataset/mine/{part}.txt").read_text(encoding="utf-8").splitlines():
            image, label = line.split("\t")
            assert Path(config.DATA.data_root, image).is_file()
            found[Path(image).stem] = read_label(Path(config.DATA.data_root, label))
    return found


def names() -> list[str]:
    return list(build_classes(load_config("config/mine/mine_spnet18.yaml")).names)


def write(path: str | Path, content: object) -> None:
    """Text as it is, anything else as JSON."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, str) else json.dumps(content)
    path.write_text(text, encoding="utf-8")


def flat(points: list) -> list:
    return np.array(points, float).ravel().tolist()


def png(picture: np.ndarray, **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, format="PNG", **options)
    return file.getvalue()


# one function per format: writes both images' annotations below an/, returns what --labels names


def coco_content(car: object, *more: dict, size: tuple[int, int] = (HEIGHT, WIDTH)) -> dict:
    images = [
        {"id": 7, "file_name": "p0.jpg", "height": size[0], "width": size[1]},
        {"id": 9, "file_name": "C:\\data\\sub\\p1.jpg", "height": size[0], "width": size[1]},
    ]
    shapes = [(5, car), (40, [flat(TREE)])]
    annotations = [
        {"id": index, "image_id": image, "category_id": category, "segmentation": shape}
        for index, (image, category, shape) in enumerate(
            (image, *shape) for image in (7, 9) for shape in shapes
        )
    ]
    categories = [{"id": 40, "name": "tree"}, {"id": 5, "name": "car"}]
    return {"images": images, "categories": categories, "annotations": [*annotations, *more]}


def coco_polygons() -> str:
    write("an/instances.json", coco_content([flat(CAR)]))
    return "an/instances.json"


def coco_rle(compressed: bool) -> str:
    code = coco_mask.encode(np.asfortranarray(car_mask().astype(np.uint8)))
    counts: object = code["counts"].decode()
    if not compressed:
        column = car_mask().T.ravel()
        changes = np.flatnonzero(np.diff(column, prepend=False, append=not column[-1]))
        counts = np.diff(changes, prepend=0).tolist()
    write("an/any name.json", coco_content({"size": [HEIGHT, WIDTH], "counts": counts}))
    return "an"


def coco_panoptic() -> str:
    ids = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    ids[car_mask()] = (44, 1, 0)  # 300
    ids[IN_TREE] = (0, 0, 1)  # 65536
    segments = [{"id": 300, "category_id": 5}, {"id": 65536, "category_id": 40}]
    content = coco_content([])
    content["annotations"] = []
    for image, name in ((7, "p0.png"), (9, "p1.png")):
        Path("an/panoptic").mkdir(parents=True, exist_ok=True)
        Image.fromarray(ids).save(f"an/panoptic/{name}")
        content["annotations"].append(
            {"image_id": image, "file_name": name, "segments_info": segments}
        )
    write("an/panoptic.json", content)
    return "an/panoptic.json"


def yolo_labels() -> str:
    lines = [
        f"{index} " + " ".join(f"{v:.9f}" for v in (np.array(ring) / (WIDTH, HEIGHT)).ravel())
        for index, ring in enumerate((CAR, TREE))
    ]
    for name in ("p0", "sub/p1"):
        write(f"an/labels/{name}.txt", "\n".join(lines) + "\n")
    write("an/data.yaml", "nc: 2\nnames: {0: car, 1: tree}\n")
    return "an/labels"


def labelme_content(*shapes: dict, path: str = "..\\im\\p0.jpg") -> dict:
    return {"shapes": shapes, "imagePath": path, "imageHeight": HEIGHT, "imageWidth": WIDTH}


def labelme() -> str:
    box_mask = base64.b64encode(png((car_mask()[10:30, 10:30] * 255).astype(np.uint8))).decode()
    corners = [[10, 10], [29, 29]]
    car = {"label": "car", "shape_type": "mask", "points": corners, "mask": box_mask}
    tree = {"label": "tree", "shape_type": "rectangle", "points": [TREE[2], TREE[0]]}
    write("an/p0.json", labelme_content(car, tree))
    write("an/sub/p1.json", labelme_content(car, tree, path="p1.jpg"))
    return "an"


def cvat(*, video: bool = False) -> str:
    flags = car_mask()[10:30, 10:30].ravel()
    changes = np.flatnonzero(np.diff(flags, prepend=False, append=not flags[-1]))
    rle = ", ".join(map(str, np.diff(changes, prepend=0)))
    place = 'left="10" top="10" width="20" height="20"'
    shapes = (
        '<box label="tree" xtl="25" ytl="20" xbr="50" ybr="40" z_order="1"/>'
        f'<mask label="car" rle="{rle}" {place} z_order="0"/><tag label="car"/>'
    )
    images = "".join(
        f'<image id="{i}" name="{name}" width="{WIDTH}" height="{HEIGHT}">{shapes}</image>'
        for i, name in enumerate(("p0.jpg", "sub/p1.jpg"))
    )
    label = "<label><name>{}</name><color>{}</color></label>"
    labels = label.format("car", "#ff0000") + label.format("tree", "#00ff00")
    track = "<track/>" if video else ""
    write(
        "an/annotations.xml",
        f'<?xml version="1.0" encoding="utf-8"?><annotations><meta><task><labels>{labels}'
        f"</labels></task></meta>{images}{track}</annotations>",
    )
    return "an"


def cvat_video(shapes: list[tuple[int, str, list | None]], *, stop: int = 4) -> str:
    """One track of a car; None in place of points: it is outside from there on."""
    entries = ""
    for frame, tag, corners in shapes:
        text = ";".join(f"{x},{y}" for x, y in corners or CAR)
        flags = f'frame="{frame}" outside="{int(corners is None)}" keyframe="1" z_order="0"'
        entries += f'<{tag} {flags} points="{text}"/>'
    size = f"<original_size><width>{WIDTH}</width><height>{HEIGHT}</height></original_size>"
    task = f"<task><start_frame>0</start_frame><stop_frame>{stop}</stop_frame>{size}</task>"
    track = f'<track id="0" label="car">{entries}</track>' if shapes else "<track/>"
    write("an/film.xml", f"<annotations><meta>{task}</meta>{track}</annotations>")
    return "an/film.xml"


def film(count: int) -> None:
    for frame in range(count):
        path = Path(f"film/frame_{frame:06d}.png")
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((HEIGHT, WIDTH, 3), frame, np.uint8)).save(path)


def moved(shift: int) -> np.ndarray:
    label = np.zeros((HEIGHT, WIDTH), np.uint8)
    label[10:30, 10 + shift : 30 + shift] = 1
    return label


def test_tracks_of_a_film_move_between_keyframes_and_end_outside(home: Path) -> None:
    film(5)
    there = [[x + 8, y] for x, y in CAR]
    labels = run(cvat_video([(0, "polygon", CAR), (2, "polygon", there), (3, "polygon", None)]),
                 images="film")  # fmt: skip
    for frame, shift in enumerate((0, 4, 8)):
        assert np.array_equal(labels[f"frame_{frame:06d}"], moved(shift))
    assert not any(labels[f"frame_{frame:06d}"].any() for frame in (3, 4))
    assert names() == ["background", "car"]


def test_a_track_holds_to_the_end_of_the_film(home: Path) -> None:
    film(3)
    labels = run(cvat_video([(1, "polygon", CAR)], stop=2), images="film")
    assert not labels["frame_000000"].any()
    assert np.array_equal(labels["frame_000002"], moved(0))


def cvat_masks() -> str:
    colors = np.array([(0, 0, 0), (255, 0, 0), (0, 255, 0)], np.uint8)
    for name in ("p0", "p1"):
        path = Path(f"an/SegmentationClass/{name}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(colors[truth(hole=True)]).save(path)
    write(
        "an/labelmap.txt",
        "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncar:255,0,0::\ntree:0,255,0::\n",
    )
    return "an"


def voc() -> str:
    for name, style in (("p0", "x1"), ("p1", "pt")):
        objects = ""
        for label, ring in (("car", CAR), ("tree", TREE)):
            points = "".join(
                f"<x{i}>{x}</x{i}><y{i}>{y}</y{i}>"
                if style == "x1"
                else f"<pt><x>{x}</x><y>{y}</y></pt>"
                for i, (x, y) in enumerate(ring, 1)
            )
            objects += f"<object><name>{label}</name><polygon>{points}</polygon></object>"
        size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height></size>"
        write(
            f"an/{name}.xml",
            f"<annotation><filename>{name}.jpg</filename>{size}{objects}</annotation>",
        )
    return "an"


def supervisely() -> str:
    small = png((car_mask()[10:30, 10:30] * 255).astype(np.uint8))
    data = base64.b64encode(zlib.compress(small)).decode()
    cars = [
        {"geometryType": "polygon", "points": {"exterior": CAR, "interior": [HOLE]}},
        {"geometryType": "bitmap", "bitmap": {"data": data, "origin": [10, 10]}},
    ]
    tree = {"exterior": [TREE[0], TREE[2]], "interior": []}
    for name, car in zip(("p0", "p1"), cars, strict=True):
        objects = [
            {"classTitle": "car", **car},
            {"classTitle": "tree", "geometryType": "rectangle", "points": tree},
        ]
        size = {"height": HEIGHT, "width": WIDTH}
        write(f"an/ds/ann/{name}.jpg.json", {"size": size, "objects": objects})
    classes = [{"title": "car", "color": "#FF0000"}, {"title": "tree", "color": "#00FF00"}]
    write("an/meta.json", {"classes": classes})
    return "an"


def brush(mask: np.ndarray) -> list[int]:
    """Label Studio's code of a mask: runs of equal values, and single values as they are."""
    values = np.repeat(mask.ravel().astype(np.uint8) * 255, 4)
    bits = f"{len(values):032b}{7:05b}{2:04b}{7:04b}{11:04b}{15:04b}"
    starts = np.flatnonzero(np.diff(values, prepend=values[0] ^ 1))
    for start, end in zip(starts, [*starts[1:], len(values)], strict=True):
        bits += f"1{3:02b}{end - start - 1 - 2:016b}{values[start]:08b}"  # two fewer,
        bits += f"0{0:02b}{1:03b}" + f"{values[start]:08b}" * 2  # which follow one by one
    bits += "0" * (-len(bits) % 8)
    return [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]


def label_studio() -> str:
    size = {"original_width": WIDTH, "original_height": HEIGHT}
    car = {"format": "rle", "rle": brush(car_mask()), "brushlabels": ["car"]}
    shares = (np.array(TREE) / (WIDTH, HEIGHT) * 100).tolist()
    tree = {"points": shares, "polygonlabels": ["tree"]}
    (x, y), (right, bottom) = shares[0], shares[2]
    rectangle = {"x": x, "y": y, "width": right - x, "height": bottom - y, "rotation": 0}
    trees = [
        {"type": "polygonlabels", "value": tree, **size},
        {"type": "rectanglelabels", "value": {**rectangle, "rectanglelabels": ["tree"]}, **size},
    ]
    addresses = ("/data/upload/3/0a1b2c3d-p0.jpg", "/data/local-files/?d=sub/p1.jpg")
    tasks = []
    for number, (address, shape) in enumerate(zip(addresses, trees, strict=True)):
        result = [{"id": "a", "type": "brushlabels", "value": car, **size}, {"id": "b", **shape}]
        cancelled = {"was_cancelled": True, "result": []}
        tasks.append(
            {
                "id": number,
                "data": {"image": address},
                "annotations": [cancelled, {"result": result}],
            }
        )
    write("an/export.json", tasks)
    return "an/export.json"


def cityscapes() -> str:
    """With other names than the official ones; images are called as Cityscapes calls them."""
    Path("im/p0.jpg").rename("im/p0_leftImg8bit.jpg")
    Path("im/sub/p1.jpg").rename("im/sub/p1_leftImg8bit.jpg")
    objects = [
        {"label": "car", "polygon": CAR},
        {"label": "tree", "polygon": TREE},
        {"label": "car", "polygon": TREE, "deleted": 1},
    ]
    for name in ("p0", "sub/p1"):
        content = {"imgHeight": HEIGHT, "imgWidth": WIDTH, "objects": objects}
        write(f"an/{name}_gtFine_polygons.json", content)
    return "an"


def datumaro() -> str:
    code = coco_mask.encode(np.asfortranarray(car_mask().astype(np.uint8)))
    rle = {"counts": code["counts"].decode(), "size": [HEIGHT, WIDTH]}
    annotations = [
        {"type": "polygon", "label_id": 1, "points": flat(TREE), "z_order": 1, "group": 1},
        {"type": "bbox", "label_id": 0, "bbox": [0, 0, 60, 40], "z_order": 2, "group": 1},
        {"type": "mask", "label_id": 0, "rle": rle, "z_order": 0},
        {"type": "caption", "label_id": 0, "caption": "a car"},
    ]
    labels = {"labels": [{"name": "car"}, {"name": "tree"}]}
    colormap = [{"label_id": 0, "r": 255, "g": 0, "b": 0}]
    items = [
        {"id": name, "annotations": annotations, "image": {"size": [HEIGHT, WIDTH]}}
        for name in ("p0", "sub/p1")
    ]
    categories = {"label": labels, "mask": {"colormap": colormap}}
    write("an/default.json", {"info": {}, "categories": categories, "items": items})
    return "an/default.json"


def hugging_face() -> str:
    objects = [
        {"segmentation": [[flat(CAR)], [flat(TREE)]], "category": ["car", "tree"]},
        [
            {"segmentation": [flat(CAR)], "category": "car"},
            {"segmentation": [flat(TREE)], "category": "tree"},
        ],
    ]
    rows = [
        json.dumps({"file_name": name, "label": "street", "objects": given})
        for name, given in zip(("p0.jpg", "sub/p1.jpg"), objects, strict=True)
    ]
    write("im/metadata.jsonl", "\n".join(rows))
    return "im/metadata.jsonl"


# format -> (writer, does the car have a hole, is the rest ignored)
FORMATS: dict[str, tuple[Callable[[], str], bool, bool]] = {
    "COCO": (coco_polygons, False, False),
    "COCO, run lengths": (lambda: coco_rle(False), True, False),
    "COCO, compressed": (lambda: coco_rle(True), True, False),
    "COCO panoptic": (coco_panoptic, True, True),
    "YOLO": (yolo_labels, False, False),
    "LabelMe": (labelme, True, False),
    "CVAT": (cvat, True, False),
    "CVAT masks": (cvat_masks, True, False),
    "Pascal VOC": (voc, False, False),
    "Supervisely": (supervisely, True, False),
    "Label Studio": (label_studio, True, False),
    "Cityscapes": (cityscapes, False, True),
    "Datumaro": (datumaro, True, False),
    "Hugging Face": (hugging_face, False, False),
}


@pytest.mark.parametrize("how", FORMATS)
def test_a_format_becomes_the_right_labels(home: Path, how: str, capsys) -> None:
    make, hole, ignored = FORMATS[how]
    found = run(make())
    expected = truth(hole=hole)
    if ignored:
        expected = truth(hole=hole, background=255, car=0, tree=1)
    assert len(found) == 2
    for label in found.values():
        assert np.array_equal(label, expected)
    assert names() == (["car", "tree"] if ignored else ["background", "car", "tree"])
    printed = capsys.readouterr().out
    if how == "CVAT":
        assert "#" not in printed
    if how in ("CVAT", "Supervisely", "CVAT masks"):
        colors = build_classes(load_config("config/mine/mine_spnet18.yaml")).colors
        assert colors.tolist() == [[0, 0, 0], [255, 0, 0], [0, 255, 0]]
    if how == "Datumaro":
        assert "left out, as it cannot be drawn: 2 x caption" in printed
    if how != "CVAT masks":
        assert "where shapes overlap, the one drawn later is in front" in printed
        assert "pixels without a shape are " + ("ignored" if ignored else "class 0") in printed


def test_hugging_face_with_masks_in_a_csv(home: Path) -> None:
    for name in ("p0", "p1"):
        Image.fromarray(truth(hole=True)).save(f"im/{name}_m.gif")
    Path("im/p1_m.gif").rename("im/sub/p1_m.gif")
    write("im/metadata.csv", "file_name,mask_file_name\np0.jpg,p0_m.gif\n")
    write("im/sub/metadata.csv", "file_name,mask_file_name\np1.jpg,p1_m.gif\n")
    found = run("im")
    assert np.array_equal(found["p0"], truth(hole=True))
    assert np.array_equal(found["p1"], truth(hole=True))


def test_hugging_face_in_parquet(home: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")  # an extra
    parquet = pytest.importorskip("pyarrow.parquet")
    objects = {"segmentation": [[flat(CAR)], [flat(TREE)]], "category": ["car", "tree"]}
    rows = [{"file_name": name, "objects": objects} for name in ("p0.jpg", "sub/p1.jpg")]
    parquet.write_table(pyarrow.Table.from_pylist(rows), "im/metadata.parquet")
    assert np.array_equal(run("im/metadata.parquet")["p1"], truth(hole=False))


def packed_pictures(name: str, count: int, **columns: list) -> None:
    pyarrow, parquet = (pytest.importorskip(name) for name in ("pyarrow", "pyarrow.parquet"))
    held = {
        "image": [png(np.full((HEIGHT, WIDTH, 3), 9 * i, np.uint8)) for i in range(count)],
        "label": [png(truth(hole=i % 2 == 1)) for i in range(count)],
    }
    rows = {key: [{"bytes": value, "path": None} for value in column]
            for key, column in held.items()}  # fmt: skip
    Path("hub/data").mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.table({**rows, **columns}), f"hub/data/{name}.parquet")


def test_names_that_parquet_stores_once_count_as_often_as_they_are_used(tmp_path: Path) -> None:
    """Not each time with the whole dictionary: 4,000 names would be a gigabyte."""
    pyarrow, parquet = (pytest.importorskip(name) for name in ("pyarrow", "pyarrow.parquet"))
    names = pyarrow.array([f"images/{n:06d}.jpg" for n in range(4000)]).dictionary_encode()
    parquet.write_table(pyarrow.table({"file_name": names}), tmp_path / "metadata.parquet")
    with opened_parquet(tmp_path / "metadata.parquet") as file:
        assert sum(1 for _ in rows_inside(tmp_path / "metadata.parquet", file)) == 4000


def test_parquet_that_holds_its_pictures(home: Path) -> None:
    packed_pictures("train-00000-of-00001", 3)
    packed_pictures("validation-00000-of-00001", 2, id=[0, 1])
    labels = run("hub", images="hub")
    assert len(labels) == 5
    for name, label in labels.items():
        assert np.array_equal(label, truth(hole=name.endswith("1")))
    assert "validation" not in Path("dataset/mine/train.txt").read_text()
    packed_pictures("train-00000-of-00001", 2)  # a row less: its picture goes
    assert len(run("hub", images="hub")) == 4


def test_parquet_without_a_label_names_its_columns(home: Path) -> None:
    packed_pictures("train", 1, label=["a"])
    with pytest.raises(DataError, match="train.parquet: of its columns image, label those with"):
        run("hub", images="hub")


@pytest.mark.parametrize(("value", "rows"), [(2**18, 64), (2**21, 1)])
def test_parquet_of_a_few_bytes_is_not_unpacked(
    home: Path, monkeypatch: pytest.MonkeyPatch, value: int, rows: int
) -> None:
    """A value that is stored once and stands in every row, and one that is large itself."""
    pyarrow, parquet = (pytest.importorskip(name) for name in ("pyarrow", "pyarrow.parquet"))
    for limit in ("PARQUET_BYTES", "PARQUET_TIMES"):
        monkeypatch.setattr(f"stripseg.dataset.annotations.metadata.{limit}", 1000)
    for name, content in {"names": "x" * value, "pictures": b"\x89PNG" + bytes(value)}.items():
        table = pyarrow.table({"image": [content] * rows, "label": [content] * rows})
        parquet.write_table(table, f"{name}.parquet", compression="zstd")
        assert Path(f"{name}.parquet").stat().st_size < 2000
    with pytest.raises(DataError, match=r"names.parquet: holds more than \d+ bytes in a file of"):
        parquet_rows(Path("names.parquet"))
    with pytest.raises(DataError, match=r"pictures.parquet: holds more than \d+ bytes in a file"):
        list(rows_of(Path("pictures.parquet")))


def test_official_cityscapes_names_become_the_19_classes(home: Path) -> None:
    Path("im/sub/p1.jpg").unlink()
    objects = [
        {"label": "road", "polygon": CAR},
        {"label": "cargroup", "polygon": TREE},
        {"label": "ego vehicle", "polygon": HOLE},
    ]
    write("an/p0_polygons.json", {"imgHeight": HEIGHT, "imgWidth": WIDTH, "objects": objects})
    label = run("an")["p0"]
    assert np.array_equal(label, truth(hole=True, background=255, car=0, tree=13))
    assert len(names()) == 19


@pytest.mark.parametrize(
    ("overlap", "value"), [("first", 1), ("last", 2), ("smallest", 1)], ids=str
)
def test_overlaps_are_chosen(home: Path, overlap: str, value: int) -> None:
    label = run(coco_polygons(), "--overlap", overlap)["p0"]
    assert (label[20:30, 25:30] == value).all()  # the car is the smaller one


def test_crowds_are_ignored_below_all_others_or_kept(home: Path, capsys) -> None:
    counts = [0, HEIGHT * WIDTH]
    whole = {"size": [HEIGHT, WIDTH], "counts": counts}
    crowd = {"id": 99, "image_id": 7, "category_id": 5, "iscrowd": 1, "segmentation": whole}
    write("an/c.json", coco_content([flat(CAR)], crowd))
    expected = truth(hole=False, background=255)
    assert np.array_equal(run("an")["p0"], expected)
    assert "1 crowd(s) are ignored" in capsys.readouterr().out
    assert (run("an", "--crowd", "keep")["p0"] == 1).all()


def test_the_background_is_a_class_or_ignored(home: Path) -> None:
    labels = coco_polygons()
    assert np.array_equal(run(labels)["p0"], truth(hole=False))
    ignored = run(labels, "--background", "ignore")["p0"]
    assert np.array_equal(ignored, truth(hole=False, background=255, car=0, tree=1))
    assert names() == ["car", "tree"]


def test_a_background_of_the_format_is_used(home: Path) -> None:
    shape = {"label": "_background_", "points": HOLE}
    for name in ("p0", "p1"):
        car = {"label": "car", "points": CAR}
        write(f"an/{name}.json", labelme_content(car, shape, path=f"{name}.jpg"))
    label = run("an")["p0"]
    assert names() == ["_background_", "car"]
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[IN_CAR], expected[IN_HOLE] = 1, 0
    assert np.array_equal(label, expected)


def test_every_kind_of_shape_of_labelme(home: Path, capsys) -> None:
    shapes = [
        {"label": "a", "shape_type": "circle", "points": [[20, 20], [20, 26]]},
        {"label": "b", "shape_type": "linestrip", "points": [[0, 40.5], [64, 40.5]], "width": 3},
        {"label": "c", "shape_type": "point", "points": [[50.2, 9.9]]},
        {"label": "d", "shape_type": "star", "points": [[1, 1]]},
        {"label": "__ignore__", "shape_type": "rectangle", "points": [[60, 0], [64, 4]]},
    ]
    write("an/p0.json", labelme_content(*shapes))
    write("an/p1.json", labelme_content(path="p1.jpg"))
    label = run("an", "--line-width", "1")["p0"]
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    expected = ((x - 20) ** 2 + (y - 20) ** 2 <= 36).astype(np.uint8)
    expected[39:42] = 2
    expected[9, 50] = 3
    expected[:4, 60:] = 255
    assert np.array_equal(label, expected)
    printed = capsys.readouterr().out
    assert "left out, as it cannot be drawn: 1 x star" in printed
    assert "1 image(s) without a shape: p1.jpg" in printed
    assert "1 line(s) and point(s) are 1 pixels wide" in printed


@pytest.mark.parametrize("words", [[], ["--turn-labels"]], ids=["", "--turn-labels"])
@pytest.mark.parametrize("stored", [False, True], ids=["as displayed", "as stored"])
def test_turned_photos(home: Path, stored: bool, words: list[str]) -> None:
    """Orientation 6: stored 48 high and 64 wide, displayed 64 high and 48 wide."""
    for name in ("p0.jpg", "sub/p1.jpg"):
        photo = Image.open(f"im/{name}").copy()
        exif = photo.getexif()
        exif[0x0112] = 6
        photo.save(f"im/{name}", exif=exif)
    size = (HEIGHT, WIDTH) if stored else (WIDTH, HEIGHT)
    write("an/c.json", coco_content([flat(CAR)], size=size))
    expected = np.zeros((WIDTH, HEIGHT), np.uint8)
    expected[IN_CAR], expected[20:40, 25:48] = 1, 2
    if stored:
        expected = np.rot90(truth(hole=False), -1)
    assert np.array_equal(run("an", *words)["p0"], expected)


def test_turned_photos_with_turn_labels(home: Path) -> None:
    """YOLO's shares fit any size: --turn-labels says that they are of the stored photo."""
    photo = Image.open("im/p0.jpg").copy()
    exif = photo.getexif()
    exif[0x0112] = 6
    photo.save("im/p0.jpg", exif=exif)
    found = run(yolo_labels(), "--turn-labels")
    assert np.array_equal(found["p0"], np.rot90(truth(hole=False), -1))
    assert np.array_equal(found["p1"], truth(hole=False))


def test_names_in_unicode_match_however_they_are_stored(home: Path) -> None:
    Path("im/p0.jpg").rename("im/Bäume 1.JPG")
    car = {"label": "Straße", "points": CAR}
    write("an/x.json", labelme_content(car, path="D:\\Bilder\\Ba\u0308ume 1.jpg"))
    write("an/y.json", labelme_content(car, path="p1.jpg"))
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[IN_CAR] = 1
    assert np.array_equal(run("an")["Bäume 1"], expected)


def test_names_that_fit_several_images_are_refused() -> None:
    files = [Path("im/a/1.jpg"), Path("im/b/1.jpg"), Path("im/b/2.png")]
    found = Names(files, Path("im"))
    assert found.find("/home/me/b/1.jpg") == files[1]
    assert found.find("X:\\b\\2.JPG") == files[2]
    assert found.find("../../2.png") == files[2]
    assert found.find("3.jpg") is None
    with pytest.raises(ValueError, match="may be im/a/1.jpg or im/b/1.jpg"):
        found.find("1.jpg")


def test_folders_tell_images_of_one_name_apart(home: Path) -> None:
    """As in Roboflow's exports: train/_annotations.coco.json names images without their folder."""
    photo = Path("im/p0.jpg").read_bytes()
    for index, part in enumerate(("train", "valid")):
        Path("rf", part).mkdir(parents=True)
        Path("rf", part, "1.jpg").write_bytes(photo)
        image = {"id": 1, "file_name": "1.jpg", "height": HEIGHT, "width": WIDTH}
        ring = (CAR, TREE)[index]
        shape = {"id": 1, "image_id": 1, "category_id": 0, "segmentation": [flat(ring)]}
        content = {"images": [image], "categories": [{"id": 0, "name": "a"}]}
        write(f"rf/{part}/_annotations.coco.json", {**content, "annotations": [shape]})
    run("rf", images="rf")
    for part, inside in (("train", IN_CAR), ("valid", IN_TREE)):
        label = read_label(Path(f"dataset/mine/drawn/{part}/1.jpg.png"))
        assert label[inside].all()
        assert label.sum() == label[inside].size
    assert Path("dataset/mine/train.txt").read_text().startswith("train/1.jpg\t")


def test_an_entry_of_another_folder_takes_no_image_away(home: Path, capsys) -> None:
    car = {"label": "car", "points": CAR}
    write("an/p1.json", labelme_content(car, path="other/p1.jpg"))
    write("an/sub/p1.json", labelme_content(car, path="p1.jpg"))
    write("an/p0.json", labelme_content(car, path="p0.jpg"))
    with pytest.raises(DataError, match=r"1 broken pair"):
        run("an")
    assert "broken: other/p1.jpg (of an/p1.json): belongs to no image" in capsys.readouterr().err
    write("an/p1.json", labelme_content(car, path="other/p0.jpg"))
    with pytest.raises(DataError, match=r"im/p0.jpg: is annotated as p0.jpg in an/p0.json and as"):
        run("an")


def test_several_files_of_one_image_are_put_together(home: Path, capsys) -> None:
    write("an/a.json", coco_content([flat(CAR)]))
    write("an/b.json", coco_content([flat(HOLE)]))
    assert np.array_equal(run("an")["p0"], truth(hole=False))
    assert "2 image(s) are in another file, too" in capsys.readouterr().out


def test_what_has_no_partner_is_named(home: Path, capsys) -> None:
    write("an/p0.json", labelme_content({"label": "car", "points": CAR}))
    write("an/p9.json", labelme_content({"label": "car", "points": CAR}, path="p9.jpg"))
    with pytest.raises(DataError, match=r"2 broken pair\(s\)"):
        run("an")
    printed = capsys.readouterr().err
    assert "broken: im/sub/p1.jpg: has no label" in printed
    assert "broken: p9.jpg (of an/p9.json): belongs to no image" in printed
    assert set(run("an", "--leave-out-broken")) == {"p0"}


def test_a_second_run_draws_what_has_changed(home: Path, capsys) -> None:
    labels = labelme()
    run(labels)
    assert "2 drawn, 0 as before" in capsys.readouterr().out
    run(labels)
    assert "0 drawn, 2 as before" in capsys.readouterr().out
    tree = {"label": "tree", "points": TREE}
    write("an/p0.json", labelme_content({"label": "car", "points": CAR}, tree))
    found = run(labels)
    assert "1 drawn, 1 as before" in capsys.readouterr().out
    assert np.array_equal(found["p0"], truth(hole=False))
    run(labels, "--overlap", "first")
    assert "2 drawn" in capsys.readouterr().out


def test_several_processes_draw_the_same(home: Path) -> None:
    labels = coco_polygons()
    arguments = ["--images", "im", "--labels", labels, "--name", "two", "--workers", "2"]
    prepare.main(["custom", *arguments])
    drawn = read_label(Path("dataset/two/drawn/sub/p1.jpg.png"))
    assert np.array_equal(drawn, truth(hole=False))


def test_masks_beside_stray_files_stay_masks(home: Path, capsys) -> None:
    for name in ("p0", "p1"):
        path = Path(f"an/{name}.png")
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(truth(hole=True)).save(path)
    write("an/readme.txt", "3 classes")
    write("an/colors.csv", "name,r,g,b")
    write("an/p0.png.aux.xml", "<PAMDataset></PAMDataset>")
    write("an/info.json", {"version": 1})
    Path("an/latin.txt").write_bytes(b"Stra\xdfe")
    assert np.array_equal(run("an")["p1"], truth(hole=True))
    with pytest.raises(DataError, match="--overlap does not fit masks"):
        run("an", "--overlap", "first")


def whole(patch: Patch, canvas: Canvas) -> np.ndarray:
    """(H, W) bool of a patch in its place."""
    mask = np.zeros((canvas.height, canvas.width), bool)
    rows, columns = patch.inside.shape
    mask[patch.top : patch.top + rows, patch.left : patch.left + columns] = patch.inside
    return mask


def star(rng: np.random.Generator, radius: float, center: tuple[float, float]) -> np.ndarray:
    angles = np.sort(rng.uniform(0, 2 * np.pi, 40))
    radii = radius * rng.uniform(0.8, 1, 40)
    return np.stack([np.cos(angles), np.sin(angles)], 1) * radii[:, None] + center


def centers_inside(ring: np.ndarray, canvas: Canvas) -> np.ndarray:
    """(H, W) bool: edges that a ray from each pixel's centre to the left crosses, odd or even."""
    y, x = np.mgrid[: canvas.height, : canvas.width] + 0.5
    odd = np.zeros((canvas.height, canvas.width), bool)
    for (x0, y0), (x1, y1) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
        between = (y0 <= y) != (y1 <= y)
        odd ^= between & (x > x0 + (y - y0) * (x1 - x0) / (y1 - y0 if y1 != y0 else 1))
    return odd


def test_shapes_are_the_pixels_whose_centres_they_hold() -> None:
    """Stars and outlines that fold over, with holes, of a pixel, and beyond the border."""
    rng = np.random.default_rng(3)
    canvas = Canvas(40, 50)
    drawn = 0
    for index in range(60):
        ring = star(rng, rng.uniform(0.3, 30), tuple(rng.uniform(-5, 50, 2)))
        ring = rng.permutation(ring) if index % 2 else ring
        hole = ring.mean(axis=0) + 0.4 * (ring - ring.mean(axis=0))
        ours = whole(Polygon(ring, [hole]).draw(canvas), canvas)
        assert np.array_equal(ours, centers_inside(ring, canvas) & ~centers_inside(hole, canvas))
        drawn += int(ours.sum())
    assert drawn > 1000


def test_polygons_are_drawn_as_pycocotools_draws_them() -> None:
    """It rounds corners to a fifth of a pixel: what differs lies that close to the outline."""
    rng = np.random.default_rng(0)
    canvas = Canvas(900, 1200)
    for index in range(8):
        center = (600, 450) if index % 2 else (1100, 100)  # also beyond the border
        ring = star(rng, 420, center)
        ours = whole(fill(ring, canvas), canvas)
        code = coco_mask.frPyObjects([ring.ravel().tolist()], canvas.height, canvas.width)
        theirs = coco_mask.decode(code)[..., 0] > 0
        assert (ours & theirs).sum() / (ours | theirs).sum() > 0.999
    for _ in range(20):
        ring = star(rng, rng.uniform(3, 20), (30, 25))
        ours = whole(fill(ring, Canvas(50, 60)), Canvas(50, 60))
        theirs = coco_mask.decode(coco_mask.frPyObjects([ring.ravel().tolist()], 50, 60))[..., 0]
        contour = ring.astype(np.float32)[:, None]
        for row, column in np.argwhere(ours != (theirs > 0)):
            assert abs(cv2.pointPolygonTest(contour, (column + 0.5, row + 0.5), True)) < 0.3


def test_shapes_that_share_an_edge_share_no_pixel() -> None:
    rng = np.random.default_rng(1)
    canvas = Canvas(60, 80)
    for _ in range(20):
        corners = rng.uniform(0, 60, (4, 2))
        first, second = fill(corners[[0, 1, 2]], canvas), fill(corners[[2, 1, 3]], canvas)
        both = fill(corners[[0, 1, 3, 2]], canvas)  # even-odd where it folds over
        either = whole(first, canvas) ^ whole(second, canvas)
        assert np.array_equal(either, whole(both, canvas))


def test_pixels_of_exact_shapes() -> None:
    canvas = Canvas(10, 12)
    one = fill(np.array([(3, 4), (4, 4), (4, 5), (3, 5)], float), canvas)
    assert np.argwhere(whole(one, canvas)).tolist() == [[4, 3]]
    beyond = whole(box(-100, -100, 5, 1000).draw(canvas), canvas)
    assert beyond[:, :5].all()
    assert not beyond[:, 5:].any()
    assert not whole(box(20, 20, 30, 30).draw(canvas), canvas).any()
    assert not whole(Ellipse((-50, 5), (3, 3)).draw(canvas), canvas).any()
    assert whole(Ellipse((6, 5), (100, 100)).draw(canvas), canvas).all()
    quarter = whole(box(2, 4, 8, 6, 90).draw(canvas), canvas)
    assert np.array_equal(quarter, whole(box(4, 2, 6, 8).draw(canvas), canvas))
    turned = whole(Ellipse((6, 5), (4, 2), 90).draw(canvas), canvas)
    assert np.array_equal(turned, whole(Ellipse((6, 5), (2, 4)).draw(canvas), canvas))
    point = whole(Stroke(np.array([(7.0, 9.99)]), 0.5).draw(canvas), canvas)
    assert np.argwhere(point).tolist() == [[9, 7]]
    diagonal = whole(Stroke(np.array([(0.0, 0.0), (10.0, 10.0)]), 1).draw(canvas), canvas)
    assert diagonal[np.arange(10), np.arange(10)].all()
    with pytest.raises(ValueError, match="must be above 0"):
        Ellipse((5, 5), (0, 1)).draw(canvas)


def test_a_shape_without_a_pixel_is_counted() -> None:
    thin = Shape("car", [Polygon(np.array([(3.6, 0), (4.4, 0), (4.4, 9), (3.6, 9)]))], "thin")
    label, empty = draw_label(
        [thin], Canvas(10, 10), {"car": 1}, background=0, overlap="last", crowd="ignore"
    )
    assert (label.any(), empty) == (False, 1)


def test_run_lengths_are_those_of_pycocotools() -> None:
    rng = np.random.default_rng(2)
    for share in (0.0, 0.01, 0.5, 1.0):
        mask = rng.random((37, 53)) < share
        counts = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]
        for code in (counts, counts.decode()):
            assert np.array_equal(runs_of(code, 37, 53).draw(Canvas(37, 53)).inside, mask)


def test_a_bitmap_of_a_palette_with_transparency() -> None:
    picture = Image.fromarray(np.array([[0, 1]], np.uint8))
    picture.putpalette([0, 0, 0, 255, 255, 255])
    file = io.BytesIO()
    picture.save(file, format="PNG", transparency=0)
    text = base64.b64encode(zlib.compress(file.getvalue())).decode()
    drawn = whole(Bitmap(text, -0, 3).draw(Canvas(2, 5)), Canvas(2, 5))
    assert np.argwhere(drawn).tolist() == [[0, 4]]


def test_bitmaps_that_claim_too_much_are_refused() -> None:
    small = png(np.zeros((2, 2), np.uint8))
    huge = bytearray(small)
    huge[16:24] = (60_000).to_bytes(4, "big") * 2  # width and height in the header
    huge[29:33] = zlib.crc32(huge[12:29]).to_bytes(4, "big")
    many = zlib.compress(b"\0" * (2**28 + 1), 1)
    canvas = Canvas(4, 4)
    for content, message in (
        (bytes(huge), "cannot be decoded"),
        (small[:45], "cannot be decoded"),
        (many, "has more than 268435456 bytes"),
        (b"nothing", "neither a PNG nor packed by zlib"),
    ):
        with pytest.raises(ValueError, match=message):
            Bitmap(base64.b64encode(content).decode(), 0, 0).draw(canvas)
    with pytest.raises(ValueError, match="not base64"):
        Bitmap("*", 0, 0).draw(canvas)


def test_brushes_of_another_size_are_refused() -> None:
    code = bytes(brush(car_mask()))
    for damaged, height, message in (
        (code, HEIGHT - 1, "holds 12288 values of 8 bits and the picture needs 12032"),
        (code[:-9], HEIGHT, "ends early"),
        (b"", HEIGHT, "ends early"),
    ):
        with pytest.raises(ValueError, match=message):
            Brush(damaged, height, WIDTH).draw(Canvas(height, WIDTH))


def broken_coco(segmentation: object) -> Callable[[], None]:
    return lambda: write("an/c.json", coco_content(segmentation))


BOMB = '<!DOCTYPE a [<!ENTITY x "xxxx">]><annotations>&x;</annotations>'
BROKEN: dict[str, tuple[Callable[[], object], str]] = {
    "truncated JSON": (
        lambda: write("an/c.json", json.dumps(coco_content([flat(CAR)]))[:-40]),
        "an/c.json, line 1: is not JSON, or ends early",
    ),
    "brackets without end": (lambda: write("an/c.json", "[" * 10**5), "an/c.json.*cannot|JSON"),
    "not UTF-8": (lambda: (write("an/c.json", ""), Path("an/c.json").write_bytes(b'{"\xff": 1}')),
                  "an/c.json: is not text in UTF-8"),
    "entities": (lambda: write("an/c.xml", BOMB), "an/c.xml: has a document type or entities"),
    "truncated XML": (lambda: write("an/c.xml", "<annotations><image>"), "an/c.xml: is not XML"),
    "CVAT's images and tracks": (lambda: cvat(video=True), "holds images and tracks; export"),
    "a track without frames between": (
        lambda: cvat_video([(0, "polygon", CAR), (9, "polygon", [*CAR, [9, 20]])]),
        "track 0: has 4 points in frame 0 and 5 in frame 9, and no frame between",
    ),
    "a film without end": (lambda: cvat_video([], stop=10**9), "the task: has frames 0 to 1000000"),
    "one point": (broken_coco([[3, 4]]), r"an/c.json, annotation 0: has 1 point\(s\) and needs 3"),
    "odd numbers": (broken_coco([[3, 4, 5]]), "annotation 0: its points are not pairs"),
    "words": (broken_coco([["a", "b"] * 3]), "annotation 0: its points are not pairs"),
    "infinite": (broken_coco([[1e999, 1] * 3]), "annotation 0: one of its points is not finite"),
    "huge numbers": (broken_coco([[10**400, 1] * 3]), "an/c.json, annotation 0"),
    "a number": (broken_coco(5), "annotation 0: 'segmentation' must be a list"),
    "runs of another size": (
        broken_coco({"size": [4, 4], "counts": [16]}),
        "annotation 0: its mask is 4x4 and its image 64x48",
    ),
    "runs too short": (
        broken_coco({"size": [HEIGHT, WIDTH], "counts": [0, 9]}),
        r"broken pair",
    ),
    "runs below zero": (
        broken_coco({"size": [HEIGHT, WIDTH], "counts": [-5, HEIGHT * WIDTH + 5]}),
        "broken pair",
    ),
    "compressed runs damaged": (
        broken_coco({"size": [HEIGHT, WIDTH], "counts": "PPP"}),
        "annotation 0: its compressed run lengths end within a number",
    ),
    "huge mask": (
        broken_coco({"size": [10**9, 10**9], "counts": "0"}),
        "annotation 0: claims 1000000000x1000000000 pixels",
    ),
    "huge image": (
        lambda: write("an/c.json", coco_content([flat(CAR)], size=(10**9, 10**9))),
        "image 0: claims 1000000000x1000000000 pixels",
    ),
    "another size": (
        lambda: write("an/c.json", coco_content([flat(CAR)], size=(480, 640))),
        "broken pair",
    ),
    "unknown category": (
        lambda: write("an/c.json", coco_content([], {
            "id": 4, "image_id": 7, "category_id": 1, "segmentation": [flat(CAR)]})),
        "annotation 4: has the category 1, which is not listed",
    ),
    "lacking key": (
        lambda: write("an/c.json", coco_content([], {"id": 4})),
        "annotation 4: lacks 'image_id'",
    ),
    "a LabelMe shape without a label": (
        lambda: write("an/c.json", labelme_content({"points": CAR})),
        "an/c.json, shape 1: lacks 'label'",
    ),
    "YOLO without names": (
        lambda: (yolo_labels(), Path("an/data.yaml").unlink()),
        "neither data.yaml with `names:` nor classes.txt",
    ),
    "YOLO class too large": (
        lambda: (yolo_labels(), write("an/data.yaml", "names: [car]")),
        "p0.txt, line 2: has the class 1, and .*data.yaml names 1",
    ),
    "two formats": (lambda: (labelme(), cvat()), "has annotations of several formats"),
    "no format": (lambda: write("an/c.json", {"a": 1}), "an/c.json: is of no annotation format"),
    "nobody's images": (
        lambda: write("an/c.json", labelme_content({"label": "a", "points": CAR}, path="q.jpg")),
        "annotates no image of im: it names q.jpg",
    ),
    "Label Studio's short form": (
        lambda: write("an/c.json", [{"image": "a.jpg", "annotation_id": 1}]),
        "is Label Studio's JSON-MIN; export it as JSON",
    ),
    "boxes alone": (
        lambda: write("an/p.xml", "<annotation><filename>p0.jpg</filename><object><name>a</name>"
                      "<bndbox/></object></annotation>"),
        "an: holds no outline of any annotated image .1 x box without polygon, as Pascal VOC.",
    ),
    "a name that commands the terminal": (
        lambda: write("an/c.json", labelme_content(path="\x1b[31m.jpg")),
        r"an/c.json, the picture: the file's name '\\x1b.31m.jpg' has control characters",
    ),
    "a class without a name": (
        lambda: write("an/c.json", labelme_content({"label": "\x07", "points": CAR})),
        r"shape 1: a class has the name '\\x07'; give it one of visible characters",
    ),
    "half a pixel": (
        lambda: write("an/c.json", coco_content([flat(CAR)], size=(48.5, 64))),
        "image 0: claims 64x48.5 pixels .width x height.; correct its size",
    ),
    "counts that are none": (
        broken_coco({"size": [HEIGHT, WIDTH], "counts": 5}),
        "annotation 0: its 'counts' are neither numbers nor text",
    ),
    "YOLO's odd numbers": (
        lambda: (yolo_labels(), write("an/labels/p0.txt", "0 .1 .1 .2 .2 .3")),
        "p0.txt, line 1: has an odd number of coordinates",
    ),
    "YOLO's names with a gap": (
        lambda: (yolo_labels(), write("an/data.yaml", "names: {0: car, 2: tree}")),
        "data.yaml: names no class 1; number them from 0",
    ),
    "metadata without a class": (
        lambda: write("an/metadata.jsonl", json.dumps(
            {"file_name": "p0.jpg", "objects": [{"segmentation": [flat(CAR)]}]})),
        "row 1, object 1: has no class; expected a column",
    ),
    "a brush that is not bytes": (
        lambda: (label_studio(), write("an/export.json", Path("an/export.json").read_text()
                                       .replace('"rle": [', '"rle": [256, '))),
        "its brush code is not bytes",
    ),
    "no classes": (
        lambda: write("an/c.json", labelme_content()),
        "name 0 classes; a label holds from 1 to 255",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
def test_bad_files_have_one_message(home: Path, what: str) -> None:
    make, message = BROKEN[what]
    make()
    with pytest.raises(DataError, match=message) as error:
        run("an")
    assert "\n" not in str(error.value)
    assert not Path("config").exists()


JUNK = [None, 5, -1, "x", "", [], {}, [1], [[1, 2]], 1e308, 10**30, float("nan"), True, "\ud800"]


def places(value: object, path: tuple = ()) -> list[tuple]:
    """The keys that lead to everything inside a JSON value."""
    inside = value.items() if isinstance(value, dict) else ()
    inside = enumerate(value[:6]) if isinstance(value, list) else inside
    return [path, *(place for key, item in inside for place in places(item, (*path, key)))]


@pytest.mark.parametrize("how", [how for how in FORMATS if how not in ("CVAT masks", "YOLO")])
def test_no_damage_leads_to_a_traceback(home: Path, how: str) -> None:
    """One value of a file is another, or a few characters are."""
    labels = FORMATS[how][0]()
    rng = random.Random(how)
    files = [p for p in home.rglob("*") if p.suffix in (".json", ".xml", ".jsonl")]
    for _ in range(12):
        path = rng.choice(files)
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            damaged = json.loads(text)
            *before, last = rng.choice(places(damaged)[1:])
            holder = damaged
            for key in before:
                holder = holder[key]
            holder[last] = rng.choice(JUNK)
            write(path, damaged)
        else:
            start = rng.randrange(len(text))
            junk = rng.choice(["", "<", ">", '"', "-", "1e999", "9" * 30, "nan", "\0"])
            write(path, text[:start] + junk + text[start + rng.randrange(5) :])
        with contextlib.suppress(DataError):
            run(labels)
        write(path, text)


def test_what_cannot_be_drawn_is_named_with_its_picture(home: Path) -> None:
    write("an/c.json", coco_content({"size": [HEIGHT, WIDTH], "counts": [0, 9]}))
    with pytest.raises(
        DataError, match="im/p0.jpg: annotation 0 of an/c.json: its run lengths add up to 9"
    ):
        run("an")


def test_files_are_not_read_where_they_are_absurdly_large(home: Path) -> None:
    write("an/c.json", "{")
    os.truncate("an/c.json", 2**31 + 1)  # takes no room on the disk
    with pytest.raises(DataError, match="has 2147483649 bytes, more than"):
        read_labels(Path("an"), Path("im"), [])


def test_a_polygon_that_crosses_too_much_is_refused() -> None:
    zigzag = np.stack([np.arange(60_000) % 7, np.arange(60_000) % 2 * 40_000.0], 1)
    with pytest.raises(ValueError, match="its outline crosses more rows"):
        fill(zigzag, Canvas(30_000, 10))


def test_a_missing_package_is_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "defusedxml", None)
    with pytest.raises(DataError, match="pip install defusedxml"):
        run(cvat())
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for read in (parquet_rows, lambda path: next(rows_of(path))):
        with pytest.raises(DataError, match="x.parquet: reading parquet needs pyarrow"):
            read(Path("x.parquet"))


def test_pictures_inside_metadata_and_too_many_shapes_are_refused(home: Path) -> None:
    packed_pictures("x", 1)
    with pytest.raises(DataError, match=r"holds its pictures itself \(column image\)"):
        parquet_rows(Path("hub/data/x.parquet"))
    with pytest.raises(DataError, match="an.xml: has 1000000000 shapes on one picture"):
        check_count(10**9, Path("an.xml"))
    bits = f"{8:032b}{7:05b}{2:04b}{7:04b}{11:04b}{15:04b}" + "111" + "1" * 16 + "0" * 24
    code = np.frombuffer(int(bits, 2).to_bytes(len(bits) // 8), np.uint8)
    with pytest.raises(ValueError, match="holds more values than it says"):
        brush_values(code, 8)


@pytest.mark.parametrize("how", ["COCO", "LabelMe", "YOLO"])
def test_options_of_masks_are_refused(home: Path, how: str) -> None:
    with pytest.raises(DataError, match="--values does not fit"):
        run(FORMATS[how][0](), "--values", "0=a")


def blobs(seed: int) -> np.ndarray:
    """(H, W) mask of three classes with holes, pixels that touch at corners, and specks."""
    rng = np.random.default_rng(seed)
    noise = cv2.GaussianBlur(rng.random((48, 70)).astype(np.float32), (0, 0), 1 + seed)
    return np.digitize(noise, np.quantile(noise, [0.4, 0.7])).astype(np.uint8)


@pytest.mark.parametrize("background", [True, False], ids=["background", "none"])
@pytest.mark.parametrize("how", ["coco", "labelme", "cvat", "yolo"])
def test_predictions_come_back(home: Path, how: str, background: bool) -> None:
    masks = {f"p{seed}": blobs(seed) for seed in (1, 3)}
    first = "background" if background else "zebra"
    classes, colors = [first, "a & <b>", "Straße"], [(0, 0, 0), (200, 0, 0), (0, 9, 200)]
    file = AnnotationFile(how, Path("out"), classes, colors, min_area=1)
    for name, mask in masks.items():
        image = Path(f"photos/{name}.png")
        image.parent.mkdir(exist_ok=True)
        Image.fromarray(mask).save(image)
        file.add(name, image, mask)
    words = [] if background else ["--background", "ignore"]
    assert file.summary().endswith(" ".join([str(file.close()), *words, "..."]))
    found = run(str(file.close()), *words, images="photos")
    assert names() == classes
    if how in ("coco", "cvat"):
        shown = build_classes(load_config("config/mine/mine_spnet18.yaml")).colors
        assert np.array_equal(shown, colors)
    for name, mask in masks.items():
        assert np.array_equal(found[name], mask)
    assert file.specks == 0


def test_specks_are_left_out_and_counted() -> None:
    mask = np.zeros((9, 9), np.uint8)
    mask[0, 0] = mask[4, 4] = 1
    mask[6:, 6:] = 2
    parts, specks = parts_of(mask, [0], 3)
    assert ([part.label for part in parts], specks) == ([2], 2)
    assert len(parts[0].outline) <= 8


def test_predict_writes_outlines(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Besides the pictures; a network's place is taken by one that knows the answer."""
    known = SimpleNamespace(names=["background", "car", "tree"], colors=np.zeros((3, 3), np.uint8))
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    known.engine = lambda **_: None
    known.predict_with = lambda *_: Prediction(known, None, image, truth(hole=True))
    monkeypatch.setattr(predict, "load", lambda *_, **__: known)
    words = ["best.pth", "im", "--output", "out", "--format", "labelme"]
    predict.main(words)
    content = json.loads(Path("out/sub/p1.json").read_text())
    assert content["imagePath"] == "../../im/sub/p1.jpg"
    assert (content["imageHeight"], content["imageWidth"]) == (HEIGHT, WIDTH)
    assert Path("out/sub/p1_gray.png").is_file()
    assert np.array_equal(run("out")["p1"], truth(hole=True))
    with pytest.raises(ConfigError, match="--min-area 0: expected at least 1"):
        predict.main([*words, "--min-area", "0"])
