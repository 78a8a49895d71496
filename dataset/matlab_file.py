"""How much a .mat file holds, found out before a reader asks for the memory."""

import struct
import zlib
from pathlib import Path

from ..config.limits import MATLAB_BYTES

HEADER = 128  # bytes; its last two tell the byte order
COMPRESSED = 15  # miCOMPRESSED, the only kind of element that is larger inside than outside
STEP = 2**20


def refuse_bomb(path: Path) -> None:
    """Inflate every compressed element of a file of version 5 to 7.2, without keeping it.

    Raises:
        ValueError: together they hold more than `MATLAB_BYTES`.
        zlib.error: one is damaged.
    """
    total = 0
    with open(path, "rb") as file:
        order = ">" if file.read(HEADER)[-2:] == b"MI" else "<"
        while len(tag := file.read(8)) == 8:
            kind, size = struct.unpack(f"{order}II", tag)
            if kind != COMPRESSED:
                file.seek(size, 1)
                continue
            inflate, data = zlib.decompressobj(), file.read(size)
            while data and not inflate.eof:
                total += len(inflate.decompress(data, STEP))
                data = inflate.unconsumed_tail
                if total > MATLAB_BYTES:
                    raise ValueError(f"holds more than {MATLAB_BYTES} bytes")
