"""``localckpt doctor``: what is installed here, where checkpoints would go, and what would make a run fail."""

import argparse
import ctypes
import json
import os
import resource
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import import_module
from math import inf
from pathlib import Path
from typing import Any

import numpy as np

from localckpt.commands import versions
from localckpt.commands.units import positive
from localckpt.storage import run_directories


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "doctor",
        help="look for problems that would make a run fail, or slow it down",
        description="Print the installed versions, how ranks are grouped into nodes, the directories for checkpoints "
        "on each node, and resource limits, each with advice where something should change. Under mpiexec, all nodes "
        "are examined.",
        epilog="Exit status: 0, or 1 if a run would fail.",
    )
    parser.add_argument("--dir", nargs="+", metavar="DIR", default=[], help="further directories to examine")
    parser.add_argument("--resume", metavar="DIR", help="also measure a directory for 'run --resume', with all ranks")
    parser.add_argument(
        "--record",
        type=positive,
        default=10.0,
        metavar="MB",
        help="with --resume: that each rank records (default: 10)",
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    parser.set_defaults(main=main)


@dataclass(frozen=True)
class Finding:
    """Something that doctor reports.

    Attributes
    ----------
    subject : str
    message : str
        What was found.
    advice : str
        What to do about it; empty if nothing is wrong.
    fatal : bool
        Whether runs fail because of it.
    """

    subject: str
    message: str
    advice: str = ""
    fatal: bool = False


@dataclass(frozen=True)
class Component:
    """A package that localckpt runs on.

    Attributes
    ----------
    name : str
    module : str
        Imports only if the package works.
    describe : callable
        Its version and configuration, from that module.
    advice : str
        What to do if the import fails.
    """

    name: str
    module: str
    describe: Callable[[Any], str]
    advice: str


def describe_mpi4py(MPI: Any) -> str:
    return f"{versions.version('mpi4py')}, {MPI.Get_library_version().partition(',')[0].strip()}"


def describe_petsc(PETSc: Any) -> str:
    return (
        f"{'.'.join(map(str, PETSc.Sys.getVersion()))}, petsc4py {sys.modules['petsc4py'].__version__}, "
        f"scalars {np.dtype(PETSc.ScalarType)}, indices {np.dtype(PETSc.IntType)}"
    )


def describe_hdf5(vecfile: Any) -> str:
    library = ctypes.CDLL(vecfile.__file__)  # finds the symbols of the HDF5 that it is linked with
    major, minor, release = ctypes.c_uint(), ctypes.c_uint(), ctypes.c_uint()
    library.H5get_libversion(ctypes.byref(major), ctypes.byref(minor), ctypes.byref(release))
    parallel = "parallel" if hasattr(library, "H5Pset_fapl_mpio") else "not parallel"
    return f"{major.value}.{minor.value}.{release.value}, {parallel}"


def describe_firedrake(patches: Any) -> str:
    return f"{versions.version('firedrake')}, pyadjoint {versions.version('pyadjoint-ad')}"


COMPONENTS = (  # each needs those before it
    Component("mpi4py", "mpi4py.MPI", describe_mpi4py, "install mpi4py, compiled with the MPI of your jobs"),
    Component(
        "PETSc", "petsc4py.PETSc", describe_petsc, "install petsc4py for the PETSc that you use (PETSC_DIR, PETSC_ARCH)"
    ),
    Component(
        "HDF5", "localckpt._vecfile", describe_hdf5, "build localckpt for this PETSc: pip install --no-build-isolation"
    ),
    Component(
        "Firedrake",
        "localckpt.adjoint.patches",
        describe_firedrake,
        "install a Firedrake and a localckpt that fit this PETSc and each other",
    ),
)


@dataclass(frozen=True)
class Node:
    """What doctor reports of a node, on which so many ranks run."""

    name: str
    ranks: int
    findings: list[Finding]


def main(options: argparse.Namespace) -> int:
    """Print, on rank 0, what runs would find on the nodes of COMM_WORLD. Collective on COMM_WORLD."""
    findings = list(installed_versions())
    nodes, rank = [Node(os.uname().nodename, 1, findings)], 0
    if not any(finding.fatal and finding.subject != "Firedrake" for finding in findings):  # MPI and PETSc work
        from mpi4py import MPI

        world = MPI.COMM_WORLD
        shared = world.Split_type(MPI.COMM_TYPE_SHARED)
        rank, here = world.rank, None
        resumed = list(resume_directory(world, options.resume, options.record)) if options.resume else []
        if shared.rank == 0:
            findings += [*resource_limits(), *checkpoint_directories(options.dir, shared.size), *resumed]
            here = Node(MPI.Get_processor_name(), shared.size, findings)
        nodes = [node for node in world.allgather(here) if node]
    found_on: dict[Finding, list[str]] = {}
    for node in nodes:
        for finding in node.findings:
            found_on.setdefault(finding, []).append(node.name)
    if rank == 0 and options.json:
        print_json(nodes, found_on)
    elif rank == 0:
        print_text(nodes, found_on)
    return int(any(finding.fatal for finding in found_on))


def print_json(nodes: list[Node], found_on: dict[Finding, list[str]]) -> None:
    report = {
        "nodes": [{"name": node.name, "ranks": node.ranks} for node in nodes],
        "findings": [asdict(finding) | {"nodes": names} for finding, names in found_on.items()],
    }
    print(json.dumps(report, indent=4))


def print_text(nodes: list[Node], found_on: dict[Finding, list[str]]) -> None:
    print("nodes (ranks): " + ", ".join(f"{node.name} ({node.ranks})" for node in nodes))
    width = max(len(finding.subject) for finding in found_on) + 2
    for finding, names in found_on.items():
        mark = "FAILS" if finding.fatal else "note" if finding.advice else ""
        where = f" (on {', '.join(names)})" if len(names) < len(nodes) else ""
        print(f"{mark:7}{finding.subject:{width}}{finding.message}{where}")
        if finding.advice:
            print(f"{'':{width + 7}}-> {finding.advice}")


def installed_versions() -> Iterator[Finding]:
    """Collective on COMM_WORLD, because importing Firedrake is."""
    version, directory = versions.version("localckpt"), os.path.dirname(os.path.dirname(__file__))
    yield Finding("localckpt", f"{version}, {directory}, Python {sys.version.split()[0]}")
    for component in COMPONENTS:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Firedrake warns that PETSc is initialised already
                yield Finding(component.name, component.describe(import_module(component.module)))
        except Exception as exc:  # an import may raise anything
            if getattr(exc, "name", None) == "firedrake":
                yield Finding(
                    component.name,
                    "not installed",
                    "disk checkpoints of the tape need it; VecFile and Store work without it",
                )
            else:
                message = f"{type(exc).__name__}: {' '.join(str(exc).split())}"
                yield Finding(component.name, message, component.advice, fatal=True)
        else:
            if component.name == "Firedrake":
                yield from version_advice()


def version_advice() -> Iterator[Finding]:
    """What is known of the versions that are installed here, Firedrake among them."""
    installed = versions.installed()
    if installed not in versions.TRIED:
        yield Finding(
            "versions",
            f"localckpt was never tried with {installed}",
            "compare the first gradient with one of checkpoints in memory; "
            f"tried: {'; '.join(map(str, versions.TRIED))}",
        )
    for fault in versions.known_faults():
        found = versions.version(fault.package)
        yield Finding(f"{fault.package} {found}", f"{fault.summary} ({fault.issues})", fault.advice)


def memory_limits(root: str | os.PathLike[str] = "/") -> Iterator[tuple[int, int]]:
    """Limit and use, in bytes, of each memory cgroup, v1 or v2, that this process is in."""
    for line in Path(root, "proc/self/cgroup").read_text().splitlines():
        number, controllers, group = line.split(":", 2)
        if number == "0":  # cgroup v2
            mount, names = "sys/fs/cgroup", ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            mount, names = "sys/fs/cgroup/memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        path = Path(group.lstrip("/"))
        # The limits of its parents hold, too; a container sees only the outermost of them.
        for directory in (path, *path.parents):
            try:
                limit, used = (int(Path(root, mount, directory, name).read_text()) for name in names)
            except (OSError, ValueError):  # no such file; "max"
                continue
            if limit < 1 << 60:
                yield limit, used


def resource_limits() -> Iterator[Finding]:
    """Limits of the system and the scheduler on this node that a run may reach."""
    from localckpt.storage.directories import JOB_LIMITS

    for name, enough, message, advice in (
        ("RLIMIT_NOFILE", 256, "open files; each rank keeps several open in each directory", "ulimit -n 4096"),
        (
            "RLIMIT_FSIZE",
            inf,
            "bytes in a file; a larger one continues in the next directory, or the run fails",
            "ulimit -f unlimited",
        ),
        ("RLIMIT_AS", inf, "bytes of address space; restored checkpoints are mapped into it", "ulimit -v unlimited"),
        ("RLIMIT_DATA", inf, "bytes of data; restored checkpoints are mapped and count", "ulimit -d unlimited"),
    ):
        limit = resource.getrlimit(getattr(resource, name))[0]
        if limit != resource.RLIM_INFINITY and limit < enough:
            yield Finding(name, f"{limit} {message}", advice)
    for limit, used in sorted(memory_limits())[:1]:
        yield Finding(
            "memory",
            f"limit {limit / 1e9:.3g} GB, {used / 1e9:.3g} GB used; the page cache of checkpoint files counts",
            "store checkpoints on a disk: when memory is short, the system writes their page cache back and frees it, "
            "at the speed of the disk. It cannot free files in a memory filesystem such as /dev/shm",
        )
    for name in filter(os.environ.get, JOB_LIMITS):
        yield Finding(
            name,
            f"{os.environ[name]}; the scheduler ends a job that writes more",
            "set -localckpt_dir_limit to less, in bytes for each node",
        )


def checkpoint_directories(named: list[str], ranks: int) -> Iterator[Finding]:
    """The directories that checkpoints go to on this node, and others that they could go to. Not collective."""
    from localckpt.storage.directories import Directory, choose_tiers, named_directories

    chosen, usable = [], set()
    try:
        chosen = [tier.path for tier in choose_tiers(None, ranks)]
    except ValueError as exc:
        yield Finding("-localckpt_dir_limit", str(exc), "correct the option", fatal=True)
    wanted = [*chosen, *filter(None, named_directories()), *named]
    for path in dict.fromkeys([*wanted, *run_directories.default_parents()]):
        try:
            run_directories.remove(run_directories.make(path))
            directory = Directory.at(path)
        except OSError as exc:
            yield Finding(path, f"cannot be written to: {exc.strerror}", "create it, or name another directory")
            continue
        usable.add(path)
        use = advice = ""
        if path in chosen:
            use = "checkpoints go here; "
            if directory.in_ram:
                advice = "in memory, which counts towards the memory limit of the job: name a directory on a disk"
            elif directory.on_network:
                advice = "on the network: name a directory on a disk of the node"
        yield Finding(
            path,
            f"{use}{directory.filesystem}, {directory.free / 1e9:.3g} GB free, "
            f"{directory.free / 1e9 / ranks:.3g} GB for each rank",
            advice,
        )
    if chosen and usable.isdisjoint(chosen):
        yield Finding("checkpoints", "no directory can be written to", "name one with -localckpt_dir", fatal=True)


def resume_directory(comm: Any, path: str, megabytes: float) -> Iterator[Finding]:
    """How long records of ``run --resume`` take in a directory: in one of its own there. Collective on `comm`."""
    from localckpt._collective import raise_everywhere
    from localckpt.storage.journal import Journal

    inside, error, arrays = None, None, []
    try:
        arrays.append(np.ones(int(megabytes * 125_000)))  # of eight bytes
        if comm.rank == 0:
            inside = tempfile.mkdtemp(prefix="localckpt_doctor_", dir=path)
    except (OSError, MemoryError) as exc:
        error = exc
    seconds = []
    try:
        raise_everywhere(comm, error)
        inside = comm.bcast(inside)
        journal = Journal(inside, comm)
        for entry in ([], [], [], [], [], arrays, arrays):
            begin = time.perf_counter()
            journal.append({"kind": "trial"}, entry)
            seconds.append(time.perf_counter() - begin)
        journal.close()
    except (OSError, MemoryError) as exc:
        reason = " ".join(str(exc).split())
        advice = "name another directory" if isinstance(exc, OSError) else "name fewer MB with --record"
        yield Finding(path, f"cannot be used for --resume: {reason}", advice, fatal=True)
    else:
        line, record = float(np.median(seconds[:5])), min(seconds[5:])
        total = megabytes * comm.size
        yield Finding(
            path,
            f"for --resume: {1e3 * line:.3g} ms for a value, {record:.3g} s for {total:.6g} MB of {comm.size} ranks "
            f"({total / record:.3g} MB/s)",
        )
    finally:
        if comm.rank == 0 and inside is not None:
            shutil.rmtree(inside, ignore_errors=True)
