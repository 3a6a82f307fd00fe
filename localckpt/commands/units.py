"""Numbers on the command line: what argparse calls for an argument. A ValueError is its "invalid … value"."""

import re

PREFIXES = {"": 1, **{prefix: 1000 ** (power + 1) for power, prefix in enumerate("KMGT")}}
BINARY = {f"{prefix}I": 1024 ** (power + 1) for power, prefix in enumerate("KMGT")}
UNITS = {"ms": 1e-3, "": 1.0, "s": 1.0, "min": 60.0, "h": 3600.0}


def positive(word: str) -> float:
    """A number, more than 0."""
    if not float(word) > 0:
        raise ValueError
    return float(word)


def size(word: str) -> float:
    """Bytes: ``180M``, ``1.5TiB``, ``4e9``."""
    found = re.fullmatch(r"([\d.]+(?:e\d+)?)\s*([KMGT]?I?)B?", word.upper().replace("E", "e"))
    if found is None:
        raise ValueError
    return float(found[1]) * (PREFIXES | BINARY)[found[2]]


def duration(word: str) -> float:
    """Seconds, more than 0: ``12s``, ``200ms``, ``1.5h``."""
    found = re.fullmatch(r"([\d.]+(?:e-?\d+)?)\s*([a-z]*)", word)
    if found is None or found[2] not in UNITS:
        raise ValueError
    return positive(found[1]) * UNITS[found[2]]


def interval(word: str) -> float:
    """Seconds: ``0``, or as :func:`duration`."""
    return 0.0 if word == "0" else duration(word)


def walltime(word: str) -> float:
    """Seconds: ``24:00``, ``1-12:30:00``, or as :func:`duration`."""
    found = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d\d)(?::(\d\d))?", word)
    if found is None:
        return duration(word)
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def whole(word: str) -> int:
    """A whole number, 1 or more."""
    if int(word) < 1:
        raise ValueError
    return int(word)
