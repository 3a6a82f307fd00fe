"""Files, metadata operations and messages of each way of checkpointing: counted here, and as formulas.

    python benchmarks/counts.py                # 1, 2, 4 and 8 ranks: counts beside the formulas
    python benchmarks/counts.py --predict      # the formulas, for 100 to 100,000 ranks

Counting needs strace, mpicc and mpiexec: system calls on everything below the checkpoints' folder are traced,
MPI calls are counted by tests/adjoint/count_messages.c. Exit status: 1 where counts and formulas differ by more
than 5 percent.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections import Counter
from math import log2
from pathlib import Path

HERE = Path(__file__).resolve().parent
SAVES = 60  # after the first one
PHASES = ("once", "saves", "restores")

# System calls, by what a filesystem's metadata service sees of them.
CALLS = {
    "openat": "names",
    "open": "names",
    "creat": "names",
    "mkdir": "names",
    "mkdirat": "names",
    "unlink": "names",
    "unlinkat": "names",
    "rmdir": "names",
    "rename": "names",
    "stat": "names",
    "lstat": "names",
    "fstat": "names",
    "newfstatat": "names",
    "statx": "names",
    "access": "names",
    "faccessat": "names",
    "faccessat2": "names",
    "readlink": "names",
    "readlinkat": "names",
    "statfs": "names",
    "fstatfs": "names",
    "utimensat": "names",
    "flock": "locks",
    "fsync": "syncs",
    "fdatasync": "syncs",
    "ftruncate": "sizes",
    "fallocate": "sizes",
}


def growths(saves):
    """How often the direct engine adds rows to a file, for so many saves of new arrays of one space."""
    rows = n = 0
    while rows < saves:
        rows += min(max(4, rows // 4), 250)  # localckpt.storage.engines.rows_to_add
        n += 1
    return n


def formulas(kind, R, F, S):
    """What R ranks with F files do for one save, S more saves of new arrays and as many restores, and the end.

    Of all ranks together: names (create, open, stat, mkdir, unlink), sizes (ftruncate, fallocate), syncs (fsync),
    locks (flock), and names of the files that Open MPI makes to test locks, whenever MPI-IO opens a file. Of
    each rank: MPI calls on communicators of all ranks ("world") and of a file of several ranks ("file").
    """
    G = growths(S + 1) - 1
    L = log2(R)
    many = R > 1  # otherwise there is nobody to talk to
    shared = R > F  # a file has several ranks
    if kind == "shared file":
        return {
            "once": {"names": 39 * R + 5, "syncs": 86 * R, "lock tests": 10 * R, "world": many * (1655 + 225 * L)},
            "saves": {"names": 9 * R * S, "syncs": 3 * R * S, "lock tests": 2 * R * S, "world": many * 37.8 * S},
            "restores": {"names": 7 * R * S, "lock tests": 2 * R * S, "world": many * (30 + 15 * L) * S},
        }
    if kind == "checkpoint_comm":
        return {
            "once": {"names": 23 * R, "syncs": 3 * R, "lock tests": 4 * R, "world": many * 18},
            "saves": {"names": 8 * R * S, "syncs": 2 * R * S, "lock tests": 2 * R * S},
            "restores": {"names": 6 * R * S, "lock tests": 2 * R * S, "world": many * S},
        }
    if kind.startswith("direct"):
        return {
            "once": {
                "names": 29 * F + 20 * R + 6,
                "sizes": 2 * F + R,
                "locks": 3 * F,
                "lock tests": 2 * R,
                "world": many * (10 + 2 * L),
                "file": shared * 28,
            },
            "saves": {"sizes": G * F, "file": shared * 6 * G},
            "restores": {},
        }
    # HDF5 flushes each save only where nobody could fail to come to the flush.
    return {
        "once": {
            "names": 29 * F + 23 * R + 6,
            "sizes": 2 * F + R,
            "locks": 3 * F,
            "lock tests": 2 * R,
            "syncs": (not shared) * R,
            "world": many * (10 + 2 * L),
            "file": shared * 40,
        },
        "saves": {
            "names": (not shared) * F * S,
            "sizes": F * S,
            "syncs": (not shared) * R * S,
            "file": shared * (5 * S + 2 * G),
        },
        "restores": {"file": shared * 4 * S},
    }


KINDS = (
    "shared file",
    "checkpoint_comm",
    "direct, file per rank",
    "direct, file per node",
    "viewer, file per rank",
    "viewer, file per node",
)


def ranks_of_file(kind, ranks):
    """How many share a file: half of all stand for a node's."""
    return 1 if kind.endswith(("rank", "comm")) else ranks if kind == "shared file" else min(ranks, max(2, ranks // 2))


def measure(folder):
    """Save and restore in every way, under strace; print what each rank called MPI for, by communicator size."""
    import ctypes
    import gc

    import firedrake.adjoint as adjoint
    from firedrake import Function, FunctionSpace
    from firedrake.adjoint_utils import checkpointing as fd
    from mpi4py import MPI
    from problems import new_tape, square

    from localckpt import node_comm
    from localckpt.adjoint import enable_disk_checkpointing

    shim = ctypes.CDLL(os.environ["LD_PRELOAD"])
    shim.count_of.restype = ctypes.c_long
    world = MPI.COMM_WORLD
    messages = {kind: {phase: Counter() for phase in PHASES} for kind in KINDS}

    def phase(kind, name, call, *args):
        world.barrier()
        before = [shim.count_of(size) for size in range(65)]
        os.access(f"{folder}/@{kind}@{name}", os.F_OK)  # for the trace
        shim.count_start(1)
        result = call(*args)
        shim.count_stop()
        os.access(f"{folder}/@{kind}@", os.F_OK)
        most = map(max, *world.allgather([shim.count_of(size) - n for size, n in enumerate(before)]), [0] * 65)
        messages[kind][name].update({size: n for size, n in enumerate(most) if n})
        return result

    def begin(kind, mesh):
        if kind in ("shared file", "checkpoint_comm"):
            new_tape(kind.partition(" ")[0], folder)
            return adjoint.checkpointable_mesh(mesh) if kind == "shared file" else mesh
        adjoint.set_working_tape(adjoint.Tape())
        comm = MPI.COMM_SELF if kind.endswith("rank") else node_comm(world, ranks_of_file(kind, world.size))
        enable_disk_checkpointing(checkpoint_comm=comm, checkpoint_dir=folder, engine=kind.partition(",")[0])
        return mesh

    def save(functions):
        return [fd.CheckpointFunction(f) for f in functions]

    def restore(saved):
        return [checkpoint.restore() for checkpoint in saved]

    def end(saved):
        adjoint.get_working_tape()._package_data.clear()
        saved.clear()
        gc.collect()

    node_comm(world)
    for kind in KINDS:
        mesh = phase(kind, "once", begin, kind, square(8))
        V = FunctionSpace(mesh, "DG", 1)
        functions = [Function(V) for _ in range(SAVES + 1)]
        for number, f in enumerate(functions):
            f.dat.data_wo[:] = number + 1 / 3
        adjoint.continue_disk_checkpointing()
        saved = phase(kind, "once", save, functions[:1]) + phase(kind, "saves", save, functions[1:])
        restored = phase(kind, "restores", restore, saved[1:])
        assert all((f.dat.data_ro == g.dat.data_ro).all() for f, g in zip(functions[1:], restored))
        adjoint.pause_disk_checkpointing()
        phase(kind, "once", end, saved)
    if world.rank == 0:
        print(json.dumps(messages))


def count(ranks):
    """What :func:`formulas` has, counted: {kind: {phase: {what: n}}}."""
    with tempfile.TemporaryDirectory(prefix="counts-") as scratch:
        folder, shim = Path(scratch, "checkpoints"), Path(scratch, "shim.so")
        folder.mkdir()
        subprocess.run(
            ["mpicc", "-shared", "-fPIC", "-o", shim, HERE.parent / "tests/adjoint/count_messages.c"], check=True
        )
        trace = "%file,fstat,fstatfs,flock,fsync,fdatasync,ftruncate,fallocate"
        strace = (
            f"exec strace -f -y -s 4096 --seccomp-bpf -e trace={trace} -E LD_PRELOAD={shim} "
            f'-o {scratch}/trace.${{OMPI_COMM_WORLD_RANK:-$PMI_RANK}} "$@"'
        )
        run = subprocess.run(
            ["mpiexec", "-n", str(ranks), "bash", "-c", strace, "-", sys.executable, __file__, "--measure", folder],
            stdout=subprocess.PIPE,
            text=True,
            timeout=1800,
            check=True,
        )
        counts = {kind: {phase: Counter() for phase in PHASES} for kind in KINDS}
        for path in Path(scratch).glob("trace.*"):
            now = None
            for line in path.read_text(errors="replace").splitlines():
                mark = re.search(f'"{folder}/@(.*)@(.*)"', line)
                call = re.match(r"\d+ +(\w+)\(", line)
                if mark:
                    now = counts[mark[1]][mark[2]] if mark[2] else None
                elif now is not None and call and call[1] in CALLS and str(folder) in line:
                    now["lock tests" if ".locktest." in line else CALLS[call[1]]] += 1
        for kind, phases in json.loads(run.stdout.strip().splitlines()[-1]).items():
            for phase, calls in phases.items():
                for size, n in calls.items():  # 0: persistent requests, which do not say where they belong
                    counts[kind][phase][{"0": "requests", str(ranks): "world"}.get(size, "file")] += n
    return counts


def compare(ranks, counts):
    """Print counts beside formulas; how many differ by more than 5 percent."""
    wrong = 0
    for kind, phases in counts.items():
        expected = formulas(kind, ranks, ranks // ranks_of_file(kind, ranks), SAVES)
        for phase, found in phases.items():
            want = Counter(expected[phase])
            if ranks == ranks_of_file(kind, ranks):  # one communicator is both
                want["world"] += want.pop("file", 0)
            words = []
            for what in sorted(set(found) | {what for what, n in want.items() if n}):
                off = what != "requests" and abs(found[what] - want[what]) > max(0.05 * want[what], 1)
                wrong += off
                words.append(
                    f"{what} {found[what]} "
                    + (f"({want[what]:.0f}{', WRONG' if off else ''})" if what != "requests" else "")
                )
            print(f"{ranks} {kind:22} {phase:9} {'; '.join(words)}", flush=True)
    return wrong


def predict(saves=1000, on_node=100):
    """The formulas as a table."""
    print("| ranks | | files | names, all ranks | names, busiest disk | MPI calls of a rank, on all | on its file's |")
    print("|---|---|---|---|---|---|---|")
    for R in (100, 1000, 10_000, 100_000):
        for kind in KINDS:
            F = {"shared file": 1}.get(kind, R if kind.endswith(("rank", "comm")) else R // on_node)
            total = Counter()
            for phase in formulas(kind, R, F, saves).values():
                total.update(phase)
            service = total["names"] if kind == "shared file" else total["names"] * on_node / R
            numbers = [F, total["names"], service, total["world"], total["file"]]
            print(f"| {R:,} | {kind} | " + " | ".join(f"{float(f'{n:.2g}'):,.0f}" for n in numbers) + " |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--predict", action="store_true", help="only print what the formulas say of many ranks")
    parser.add_argument("--json", type=Path, help="write the counts to this file")
    parser.add_argument("--measure", metavar="FOLDER", help=argparse.SUPPRESS)
    options, sys.argv[1:] = parser.parse_known_args()
    if options.measure:
        return measure(options.measure)
    if options.predict:
        return predict()
    counts, wrong = {}, 0
    for ranks in options.ranks:
        counts[ranks] = count(ranks)
        wrong += compare(ranks, counts[ranks])
    if options.json:
        from importlib.metadata import version

        import h5py
        from mpi4py import MPI

        about = {
            "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
            "python": platform.python_version(),
            "hdf5": h5py.version.hdf5_version,
            "mpi": MPI.Get_library_version().split(",")[0],
            "firedrake": version("firedrake"),
            "saves": SAVES,
            "restores": SAVES,
        }
        options.json.write_text(json.dumps({"about": about, "counts": counts}, indent=1) + "\n")
    return wrong > 0


if __name__ == "__main__":
    sys.exit(main())
