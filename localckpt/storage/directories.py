"""Which directory checkpoints go to, and how much room there is."""

import logging
import os
import re
import shutil
import weakref
from dataclasses import dataclass, field, replace
from math import inf

import psutil
from mpi4py import MPI
from petsc4py import PETSc

from localckpt._collective import interrupts_held, raise_everywhere
from localckpt.storage import run_directories
from localckpt.storage.nodes import node_comm

__all__ = [
    "Directory",
    "Tier",
    "RoomMonitor",
    "announce",
    "choose_engine",
    "choose_directory",
    "choose_tiers",
    "make_shared_directory",
    "make_next_directory",
    "raise_everywhere",
    "wanted_engine",
]

log = logging.getLogger("localckpt")

# What a scheduler lets a job write there before it kills it, and where it says so.
JOB_LIMITS = ("PBS_NCI_JOBFS",)
IN_RAM = {"tmpfs", "ramfs", "devtmpfs"}
NETWORK = {
    "nfs",
    "nfs4",
    "lustre",
    "gpfs",
    "beegfs",
    "cifs",
    "smb3",
    "ceph",
    "fuse.ceph",
    "fuse.glusterfs",
    "orangefs",
    "pvfs2",
    "panfs",
    "wekafs",
    "afs",
    "9p",
    "fuse.sshfs",
    "fuse.juicefs",
}


@dataclass(frozen=True)
class Tier:
    """A directory, and the bytes that each rank may use there."""

    path: str
    limit: float = inf
    given: str = field(default="the default directory", compare=False)  # how the user has named it


@dataclass(frozen=True)
class Directory:
    """A directory on this node, the type of its filesystem, and its free bytes."""

    path: str
    filesystem: str
    free: int

    @classmethod
    def at(cls, path):
        real = os.path.realpath(path)
        mounts = [
            m
            for m in psutil.disk_partitions(all=True)
            if real == m.mountpoint or real.startswith(m.mountpoint.rstrip("/") + "/")
        ]
        # Of several mounts on one point the last one is seen.
        mount = max(reversed(mounts), key=lambda m: len(m.mountpoint), default=None)
        return cls(os.fspath(path), mount.fstype if mount else "unknown", shutil.disk_usage(path).free)

    @property
    def in_ram(self):
        return self.filesystem in IN_RAM

    @property
    def on_network(self):
        return self.filesystem in NETWORK


def usable(path):
    return bool(path) and os.path.isdir(path) and os.access(path, os.W_OK | os.X_OK)


def named_directories():
    """Those in the PETSc option ``-localckpt_dir``, with its variables replaced; empty ones count."""
    return [os.path.expandvars(name) for name in PETSc.Options("localckpt_").getString("dir", "").split(",")]


def unset_variables(path):
    """The names of variables that ``os.path.expandvars`` has left in a path, as an addition to a message."""
    names = [name.strip("{}") for name in re.findall(r"\$(\w+|{\w+})", path)]
    return "".join(f"; the variable {name} is not set" for name in names)


def choose_directory():
    """The node-local directory to use where the user named none. Not collective.

    The first usable of the PETSc option ``-localckpt_dir``, the batch system's
    job-local scratch and the system's temporary directory. A directory in memory is passed
    over unless it is ``-localckpt_dir``; if nothing is left, the current one.

    Returns
    -------
    Directory
    """
    named = next(filter(None, named_directories()), "")
    if usable(named):
        return Directory.at(named)
    if named:
        log.warning(
            "-localckpt_dir %s is not a directory to write to on %s%s",
            named,
            MPI.Get_processor_name(),
            unset_variables(named),
        )
    for directory in filter(usable, run_directories.default_parents()):
        place = Directory.at(directory)
        if not place.in_ram:
            if place.on_network:
                log.warning(
                    "checkpoints go to %s, on the network filesystem %s: name a node-local directory "
                    "with checkpoint_dir= or -localckpt_dir",
                    place.path,
                    place.filesystem,
                )
            return place
    log.warning(
        "no node-local directory for checkpoints found; they go to the current one: name another "
        "with checkpoint_dir= or -localckpt_dir"
    )
    return Directory.at(os.getcwd())


def choose_tiers(directories, ranks, argument="directories"):
    """The directories to use, one after another as each is full. Not collective.

    Parameters
    ----------
    directories : str or os.PathLike or sequence of these or None
        None: those in the PETSc option ``-localckpt_dir``, separated by commas, or the one that
        :func:`choose_directory` finds.
    ranks : int
        How many share what ``-localckpt_dir_limit`` gives each node.
    argument : str, optional
        What messages call `directories`.

    Returns
    -------
    list of Tier
        With absolute paths.

    Raises
    ------
    TypeError
        If `directories` is nothing of the above.
    ValueError
        If it names no directory, or the option is not one number, or one for each directory.
    """
    if directories is None:
        named = named_directories()
        directories = [name for name in named if name]
        if len(directories) < len(named) > 1:
            log.warning("-localckpt_dir has empty names, which are left out: %s", ",".join(named))
        tiers = (
            [Tier(os.path.abspath(name), given=f"-localckpt_dir {name}") for name in directories]
            if len(directories) > 1
            else [Tier(os.path.abspath(choose_directory().path))]
        )
    else:
        single = isinstance(directories, (str, bytes, os.PathLike))
        try:
            names = [os.fsdecode(directory) for directory in ([directories] if single else directories)]
        except TypeError:
            raise TypeError(
                f"{argument} is the path of a directory or a sequence of paths, not {directories!r}"
            ) from None
        if not names or not all(map(os.path.expandvars, names)):
            raise ValueError(f"{argument}={directories!r} names no directory")
        tiers = [Tier(os.path.abspath(os.path.expandvars(name)), given=f"{argument}={name!r}") for name in names]
    given = PETSc.Options("localckpt_").getString("dir_limit", "")
    try:
        limits = [float(limit) for limit in given.split(",")] if given else [inf]
    except ValueError:
        limits = []
    if len(limits) == 1:
        limits *= len(tiers)
    if len(limits) != len(tiers) or not all(limit > 0 for limit in limits):
        raise ValueError(
            f"-localckpt_dir_limit is one number of bytes, or one for each of {len(tiers)} directories, not {given!r}"
        )
    return [replace(tier, limit=limit / ranks) for tier, limit in zip(tiers, limits)]


class RoomMonitor:
    """Says what a timestep takes and when room gets short. Not collective.

    Parameters
    ----------
    store : localckpt.storage.store.Store
    ranks : int
        How many share the disk.
    rank : int
        Rank 0 says what the first timestep took.
    """

    def __init__(self, store, ranks, rank):
        self.store = store
        self.ranks = ranks
        self.rank = rank
        self.written = 0
        self.first = weakref.WeakKeyDictionary({store: self.room(store)})  # what each tier had at first

    def room(self, store):
        """Bytes for this rank, if the others on the node take as many."""
        return min(store.free / self.ranks, store.left)

    def step(self):
        """A timestep has been saved."""
        store = self.store
        if store.summary.written == self.written:
            return  # nothing new on any disk
        tier = store.last
        room = self.room(tier)
        if self.written == 0 and self.rank == 0:
            log.info(
                "the first timestep takes %.3g MB on this rank; there is room for at least %d more like it",
                store.summary.written / 1e6,
                room // store.summary.written,
            )
        self.written = store.summary.written
        if room < 0.1 * self.first.setdefault(tier, room):
            self.first[tier] = 0  # said once
            log.warning(
                "%s: %.3g MB for each rank are left in %s",
                MPI.Get_processor_name(),
                room / 1e6,
                os.path.dirname(tier.path),
            )


def wanted_engine(engine=None):
    """That one, or what the PETSc option ``-localckpt_engine`` says, or None. Not collective.

    Raises
    ------
    ValueError
        If it is neither "direct" nor "viewer".
    """
    wanted = engine or PETSc.Options("localckpt_").getString("engine", "") or None
    if wanted not in (None, "direct", "viewer"):
        raise ValueError(f"{'engine' if engine else '-localckpt_engine'} is 'direct' or 'viewer', not {wanted!r}")
    return wanted


def choose_engine(comm):
    """The engine for files of `comm`. Collective on `comm`.

    Returns
    -------
    {"direct", "viewer"}
        That of :func:`wanted_engine`; else "viewer" where `comm` spans nodes, whatever the
        filesystem: nodes that see different caches of one file must not write to it without MPI-IO.
    """
    trusted = comm.allreduce(node_comm(comm).size == comm.size, MPI.LAND)
    return wanted_engine() or ("direct" if trusted else "viewer")


def announce(place, first, comm, node):
    """Say where checkpoints go and how much room there is. Not collective.

    Rank 0, whose place is `first`, says it at level INFO; another node at level DEBUG, unless its place differs.
    Where nobody has configured logging it goes to stderr. One rank of each `node` then
    removes what dead runs have left there.
    """
    if not log.hasHandlers():
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)
    level = (
        logging.INFO
        if comm.rank == 0 or (place.path, place.filesystem) != (first.path, first.filesystem)
        else logging.DEBUG
    )
    limits = "".join(
        f"; the scheduler's limit is {name}={os.environ[name]}" for name in JOB_LIMITS if name in os.environ
    )
    if node.rank == 0:
        message = (
            f"{MPI.Get_processor_name()}: checkpoints go to {place.path} ({place.filesystem}), "
            f"{place.free / 1e9:.1f} GB free, {place.free / node.size / 1e9:.1f} GB for each of "
            f"{node.size} ranks{limits}"
        )
        if place.path not in announced:
            announced.add(place.path)
            log.log(level, message)
        # Not into what others have: on a shared filesystem every node would look into all ranks' directories.
        dead = run_directories.remove_dead(run_directories.find(place.path, run_directories.host_prefix()))
        if dead:
            log.info(
                "%s: %d directories of runs that are dead removed from %s, %.3g MB",
                MPI.Get_processor_name(),
                len(dead),
                place.path,
                sum(directory.nbytes for directory in dead) / 1e6,
            )


announced: set[str] = set()  # once is enough for a script that makes tape after tape


def make_shared_directory(comm, parent, files=(), keep=False, given=None):
    """Have rank 0 make a run's directory that all ranks see. Collective on `comm`.

    Parameters
    ----------
    comm : mpi4py.MPI.Intracomm
    parent : str
    files, keep
        See :func:`localckpt.storage.run_directories.make`.
    given : str, optional
        How the user has named `parent`.

    Raises
    ------
    OSError
        On every rank: rank 0's, or one that says which ranks do not see the directory.
    """
    made = error = None
    with interrupts_held():
        if comm.rank == 0:
            try:
                made = _make_given(parent, files, keep, given)
            except Exception as exc:
                error = exc
        raise_everywhere(comm, error)
        made = comm.bcast(made)
        if comm.size > 1:
            host = MPI.Get_processor_name()
            blind = [words for words in comm.allgather("" if sees(made) else f"rank {comm.rank} ({host})") if words]
            if blind:
                if comm.rank == 0:
                    run_directories.remove(made)
                    more = f" and {len(blind) - 8} more" if len(blind) > 8 else ""
                    error = OSError(
                        f"{parent} of rank 0 ({host}) is not the one of {', '.join(blind[:8])}{more}: give "
                        "the ranks of a file a directory that they share, or let only ranks of one node "
                        "share files, with checkpoint_comm=localckpt.node_comm(comm)"
                    )
                raise_everywhere(comm, error)
    return made


def _make_given(parent, files, keep, given):
    """Rank 0's part of :func:`make_shared_directory`, with an error that the user can do something about."""
    try:
        return run_directories.make(parent, files, keep)
    except OSError as exc:
        raise OSError(
            exc.errno,
            f"{given or parent} on {MPI.Get_processor_name()} cannot be used ({exc.strerror}"
            f"{unset_variables(parent)}): name a directory that is there, and can be written to, on "
            "every node",
            exc.filename,
        ) from None


def sees(directory):
    """Whether this rank can open that directory, whose name nobody else's has. Not collective."""
    try:
        os.close(os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    except Exception:
        return False
    return True


def make_next_directory(comm, tiers, files=(), keep=False):
    """A new directory in the first tier that takes one. Collective on `comm`.

    Parameters
    ----------
    comm : mpi4py.MPI.Intracomm
    tiers : list of Tier
        Loses those that were tried.
    files, keep
        See :func:`localckpt.storage.run_directories.make`.

    Returns
    -------
    str, Tier

    Raises
    ------
    OSError
        The last tier's reason, on every rank.
    """
    while True:
        tier = tiers.pop(0)
        try:
            return make_shared_directory(comm, tier.path, files, keep, tier.given), tier
        except OSError as exc:
            if not tiers:
                raise
            if comm.rank == 0:
                log.warning("%s: no checkpoints to %s: %s", MPI.Get_processor_name(), tier.path, exc)
