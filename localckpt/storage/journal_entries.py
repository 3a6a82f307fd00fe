"""The text of a journal: a line of JSON for each entry, with a checksum.

Nothing here needs MPI or PETSc: ``localckpt status`` has to work without them.
"""

import json
import os
from typing import Any

from xxhash import xxh3_64_hexdigest

__all__ = ["DAMAGED", "NAME", "SWEEP", "VERSION", "as_line", "parse", "read_entries"]

NAME = "journal"
SWEEP = "sweep"  # the directory beside it in which the evaluation in progress is recorded
VERSION = 1  # of the format
DAMAGED: dict[str, Any] = {"kind": "damaged"}  # in place of an entry that cannot be read

Entry = dict[str, Any]


def as_line(entry: Entry) -> bytes:
    """An entry as a line of a journal. Floats come back exactly; NaN and infinity as well, as Python writes them."""
    text = json.dumps(entry, separators=(",", ":")).encode()
    return text + b"\t" + xxh3_64_hexdigest(text).encode() + b"\n"


def parse(content: bytes) -> tuple[list[Entry], int]:
    """The entries of a journal.

    Returns
    -------
    entries : list of dict
        :data:`DAMAGED` for each line that is not what was written.
    nbytes : int
        Up to the end of the last line that has one. What comes after it was being written when its job was killed.
    """
    nbytes = content.rfind(b"\n") + 1
    return [_entry(line) for line in content[:nbytes].split(b"\n")[:-1]], nbytes


def _entry(line: bytes) -> Entry:
    text, _, digest = line.rpartition(b"\t")
    if xxh3_64_hexdigest(text).encode() != digest:
        return DAMAGED
    entry: Entry = json.loads(text)
    return entry


def read_entries(directory: str | os.PathLike[str]) -> list[Entry]:
    """The entries of the journal in a directory; none if there is no journal.

    Raises
    ------
    OSError
        If it cannot be read.
    """
    try:
        with open(os.path.join(directory, NAME), "rb") as file:
            return parse(file.read())[0]
    except FileNotFoundError:
        return []
