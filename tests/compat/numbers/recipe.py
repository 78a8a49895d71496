"""Deterministic weights, inputs and targets for the parity fixtures.

Everything is a pure function of names and shapes: one PCG64 stream per name,
seeded with crc32 of the name. Only numpy is needed. Draws are float64 and cast
to float32 at the end.
"""

import hashlib
import zlib

import numpy as np

CONV_GAIN = 0.95  # global; weights of ndim >= 2 have std CONV_GAIN / sqrt(fan_in)


def stream(name):
    return np.random.Generator(np.random.PCG64(zlib.crc32(name.encode("utf-8"))))


def tensor_from_name(key, shape):
    shape = tuple(int(s) for s in shape)
    leaf = key.rsplit(".", 1)[-1]
    rng = stream(key)
    if leaf == "num_batches_tracked":
        return np.zeros(shape, dtype=np.int64)
    if leaf == "running_var":
        value = 0.5 + rng.random(shape)
    elif leaf == "weight" and len(shape) >= 2:
        fan_in = int(np.prod(shape[1:]))
        value = rng.standard_normal(shape) * (CONV_GAIN * np.sqrt(1.0 / fan_in))
    elif leaf == "weight":
        value = 1.0 + 0.1 * rng.standard_normal(shape)
    else:  # bias, running_mean, alpha/beta/gamma, anything else
        value = 0.1 * rng.standard_normal(shape)
    return np.asarray(value, dtype=np.float64).astype(np.float32)


def weights_from_names(names_and_shapes):
    """[(key, shape), ...] -> {key: array}. Order does not matter."""
    if isinstance(names_and_shapes, dict):
        names_and_shapes = list(names_and_shapes.items())
    return {item[0]: tensor_from_name(item[0], item[1]) for item in names_and_shapes}


def weights_digest(weights):
    """sha256 over (key, shape, bytes) in sorted key order: equal digests mean equal weights."""
    h = hashlib.sha256()
    for key in sorted(weights):
        arr = np.ascontiguousarray(weights[key])
        h.update(key.encode("utf-8") + b"\0" + repr(tuple(arr.shape)).encode() + b"\0")
        h.update(arr.astype("<i8" if arr.dtype.kind == "i" else "<f4").tobytes())
    return h.hexdigest()


def make_input(shape, name="input"):
    return stream(name).standard_normal(tuple(shape)).astype(np.float32)


def make_target(shape, nclass, ignore=255, frac=0.05, name="target"):
    rng = stream(name)
    target = rng.integers(0, nclass, size=tuple(shape))
    target[rng.random(tuple(shape)) < frac] = ignore
    return target.astype(np.int64)


def make_image(h, w, name="image"):
    return stream(name).integers(0, 256, size=(h, w, 3)).astype(np.uint8)


def array_digest(arr):
    return hashlib.sha256(np.ascontiguousarray(arr).tobytes()).hexdigest()
