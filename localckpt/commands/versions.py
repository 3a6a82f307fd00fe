"""The versions that localckpt was tried with, and known faults of others."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import distributions

import numpy as np


@dataclass(frozen=True)
class Combination:
    """Versions that are installed together.

    Attributes
    ----------
    firedrake, petsc, pyadjoint : str
    scalars : str
        ``real`` or ``complex``.
    python : str
        Without the patch level.
    """

    firedrake: str
    petsc: str
    pyadjoint: str
    scalars: str
    python: str

    def __str__(self) -> str:
        return (
            f"Firedrake {self.firedrake}, PETSc {self.petsc} with {self.scalars} scalars, "
            f"pyadjoint {self.pyadjoint}, Python {self.python}"
        )


TRIED = (  # docs/reference/versions.md says what passed, and when
    Combination("2026.10.0", "3.26.0", "2026.10.0", "real", "3.11"),
    Combination("2026.10.0", "3.26.0", "2026.10.0", "real", "3.13"),
    Combination("2026.10.0", "3.26.0", "2026.10.0", "complex", "3.11"),
    Combination("2026.4.3", "3.25.5", "2026.9.0", "real", "3.11"),
)


@dataclass(frozen=True)
class Fault:
    """A fault of a package that makes gradients wrong.

    Attributes
    ----------
    package : str
        The name of its distribution.
    versions : str
        Those that have the fault, as a version specifier.
    summary, advice : str
    issues : str
        Where it was reported or corrected.
    """

    package: str
    versions: str
    summary: str
    advice: str
    issues: str


FAULTS = (
    Fault(
        "pyadjoint-ad",
        "<2026.9",
        "with a schedule, the gradient at another control than the recorded one is wrong",
        "install pyadjoint-ad 2026.9 or later, or record the tape again for each control",
        "pyadjoint#257, firedrake#5082",
    ),
    Fault(
        "pyadjoint-ad",
        "<2026.10",
        "with SingleMemoryStorageSchedule, the gradient at another control than the recorded one can be wrong",
        "install pyadjoint-ad 2026.10 or later, or use another schedule, such as SingleDiskStorageSchedule",
        "pyadjoint#211, pyadjoint#260, pyadjoint#248",
    ),
)


def version(package: str) -> str:
    """That of an installed distribution."""
    return next((found.version for found in distributions(name=package)), "unknown version")


def installed() -> Combination:
    """What is installed here. Initialises PETSc."""
    from petsc4py import PETSc

    return Combination(
        version("firedrake"),
        ".".join(map(str, PETSc.Sys.getVersion())),
        version("pyadjoint-ad"),
        "complex" if np.issubdtype(PETSc.ScalarType, np.complexfloating) else "real",
        f"{sys.version_info.major}.{sys.version_info.minor}",
    )


def known_faults() -> Iterator[Fault]:
    """Those of the packages that are installed here, Firedrake among them."""
    from packaging.specifiers import SpecifierSet  # comes with Firedrake

    for fault in FAULTS:
        found = next((found.version for found in distributions(name=fault.package)), None)
        if found is not None and SpecifierSet(fault.versions, prereleases=True).contains(found):
            yield fault
