"""Shapes as pixels here and in the formats' libraries: `python -m tests.compare_rasterizers`.

Libraries that are not installed are left out: pycocotools (COCO; Datumaro and CVAT draw by it),
rasterio (GDAL's rule), labelme, cityscapesscripts, supervision (YOLO), opencv (Supervisely).
Compared are 60 shapes on 512 x 1024 pixels: convex ones and stars, some folded over, some beyond
the border, some with a hole, some of a pixel or less; the label of all, drawn one over another; and
an ellipse of 912 x 480 pixels.
"""

import importlib
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace

import numpy as np

from stripseg.dataset.annotations.model import Canvas
from stripseg.dataset.annotations.rasterize import fill

HEIGHT, WIDTH = 512, 1024
LARGE = 64  # pixels: smallest radius of a large shape
Ring = np.ndarray  # (N, 2) x, y
Draw = Callable[[Ring], np.ndarray]  # -> (H, W) bool
TURN = np.linspace(0, 2 * np.pi, 720, endpoint=False)
ELLIPSE = np.stack([WIDTH / 2 + 456 * np.cos(TURN), HEIGHT / 2 + 240 * np.sin(TURN)], 1)


def main() -> None:
    """Print a line for each library that is there."""
    shapes = [(radius, rings) for radius, rings in fixtures(60, seed=0)]
    ours = [inside(here, rings) for _, rings in shapes]
    print(
        f"{'library':18}{'large shapes: IoU':>20}{'smallest':>10}{'label: IoU':>12}"
        f"{'farthest':>10}{'only here':>11}{'only there':>11}{'ellipse: IoU':>14}"
    )
    for name, draw in libraries():
        theirs = [inside(draw, rings) for _, rings in shapes]
        large = [
            intersection_over_union(a, b)
            for a, b, (radius, _) in zip(ours, theirs, shapes, strict=True)
            if radius >= LARGE and (a | b).any()
        ]
        far = max(farthest(a ^ b, r) for a, b, (_, r) in zip(ours, theirs, shapes, strict=True))
        here_only = sum(int((a & ~b).sum()) for a, b in zip(ours, theirs, strict=True))
        there_only = sum(int((b & ~a).sum()) for a, b in zip(ours, theirs, strict=True))
        both = label_of(ours), label_of(theirs)
        round_one = intersection_over_union(here(ELLIPSE), draw(ELLIPSE))
        print(
            f"{name:18}{np.mean(large):20.5f}{min(large):10.5f}{label_agreement(*both):12.5f}"
            f"{far:10.2f}{here_only:11}{there_only:11}{round_one:14.5f}"
        )


def fixtures(count: int, seed: int) -> Iterator[tuple[float, Sequence[Ring]]]:
    """(radius, outline and perhaps a hole) of shapes of 0.5 to 300 pixels."""
    rng = np.random.default_rng(seed)
    for index in range(count):
        radius = float(0.5 * 600 ** rng.random())
        corners = int(rng.integers(3, 40))
        angles = rng.random(corners) * 2 * np.pi
        if index % 5:
            angles.sort()  # the others fold over
        reach = radius * (1 if index % 2 else rng.uniform(0.3, 1, corners))
        center = rng.uniform((-50, -50), (WIDTH + 50, HEIGHT + 50))
        ring = np.stack([np.cos(angles), np.sin(angles)], 1)
        outline = center + ring * np.reshape(reach, (-1, 1))
        yield radius, [outline, center + (outline - center) * 0.4] if index % 3 == 0 else [outline]


def inside(draw: Draw, rings: Sequence[Ring]) -> np.ndarray:
    """The pixels of an outline without those of its hole."""
    mask = draw(rings[0])
    for hole in rings[1:]:
        mask &= ~draw(hole)
    return mask


def here(ring: Ring) -> np.ndarray:
    patch = fill(ring, Canvas(HEIGHT, WIDTH))
    mask = np.zeros((HEIGHT, WIDTH), bool)
    height, width = patch.inside.shape
    mask[patch.top : patch.top + height, patch.left : patch.left + width] = patch.inside
    return mask


def libraries() -> Iterator[tuple[str, Draw]]:
    """(name, how it draws) of those that are installed."""
    for name, make in (
        ("pycocotools", of_pycocotools),
        ("rasterio", of_rasterio),
        ("labelme", of_labelme),
        ("cityscapesscripts", of_cityscapes),
        ("supervision", of_supervision),
        ("opencv", of_opencv),
    ):
        try:
            yield name, make()
        except ImportError as error:
            print(f"{name:18}is not installed ({error})")


def of_pycocotools() -> Draw:
    mask = importlib.import_module("pycocotools.mask")

    def draw(ring: Ring) -> np.ndarray:
        return mask.decode(mask.frPyObjects([ring.ravel().tolist()], HEIGHT, WIDTH))[..., 0] > 0

    return draw


def of_rasterio() -> Draw:
    features = importlib.import_module("rasterio.features")

    def draw(ring: Ring) -> np.ndarray:
        shape = {"type": "Polygon", "coordinates": [[*ring.tolist(), ring[0].tolist()]]}
        return features.rasterize([shape], out_shape=(HEIGHT, WIDTH), dtype="uint8") > 0

    return draw


def of_labelme() -> Draw:
    shape = importlib.import_module("labelme.utils.shape")
    return lambda ring: shape.shape_to_mask((HEIGHT, WIDTH), ring.tolist(), "polygon")


def of_cityscapes() -> Draw:
    module = importlib.import_module("cityscapesscripts.preparation.json2labelImg")

    def draw(ring: Ring) -> np.ndarray:
        thing = SimpleNamespace(label="car", polygon=list(map(tuple, ring)), deleted=0)
        picture = SimpleNamespace(imgWidth=WIDTH, imgHeight=HEIGHT, objects=[thing])
        return np.array(module.createLabelImage(picture, "ids")) == module.name2label["car"].id

    return draw


def of_supervision() -> Draw:
    supervision = importlib.import_module("supervision")
    return lambda ring: supervision.polygon_to_mask(ring, (WIDTH, HEIGHT)) > 0


def of_opencv() -> Draw:
    cv2 = importlib.import_module("cv2")

    def draw(ring: Ring) -> np.ndarray:
        mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        cv2.fillPoly(mask, [np.round(ring).astype(np.int32)], 1)
        return mask > 0

    return draw


def intersection_over_union(first: np.ndarray, second: np.ndarray) -> float:
    return float((first & second).sum() / (first | second).sum())


def label_of(masks: Sequence[np.ndarray]) -> np.ndarray:
    """(H, W): ten classes in turn, later shapes in front."""
    label = np.zeros((HEIGHT, WIDTH), np.uint8)
    for index, mask in enumerate(masks):
        label[mask] = 1 + index % 10
    return label


def label_agreement(first: np.ndarray, second: np.ndarray) -> float:
    """The mean IoU over the classes."""
    values = np.union1d(first, second)
    return float(np.mean([intersection_over_union(first == v, second == v) for v in values]))


def farthest(differing: np.ndarray, rings: Sequence[Ring]) -> float:
    """Pixels from the outlines to the farthest of the centres that differ."""
    rows, columns = np.nonzero(differing)
    if not len(rows):
        return 0.0
    centers = np.stack([columns, rows], 1) + 0.5
    nearest = np.full(len(centers), np.inf)
    for ring in rings:
        for start, end in zip(ring, np.roll(ring, -1, axis=0), strict=True):
            step = end - start
            along = np.clip((centers - start) @ step / max(step @ step, 1e-12), 0, 1)
            distance = np.linalg.norm(centers - start - along[:, None] * step, axis=1)
            nearest = np.minimum(nearest, distance)
    return float(nearest.max())


if __name__ == "__main__":
    main()
