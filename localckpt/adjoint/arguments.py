"""Checks the arguments of :func:`localckpt.adjoint.enable_disk_checkpointing`, on each rank and between ranks.

Job scripts and PETSC_OPTIONS may differ from node to node. What must be the same on several ranks is compared on
`comm` before anything is done on a `checkpoint_comm`, on which some ranks might wait for others that do not come.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from mpi4py import MPI
from petsc4py import PETSc
from xxhash import xxh3_64_intdigest

from localckpt._collective import raise_everywhere
from localckpt.storage.directories import Tier, choose_tiers, is_writeable
from localckpt.storage.engines import EngineName, requested_engine
from localckpt.storage.nodes import check_ranks, ranks_in

__all__ = ["Arguments", "Precision", "check_on_all_ranks", "require_comm"]

Precision = Literal["single"]


@dataclass(frozen=True)
class Comparable:
    """What the ranks compare of their arguments, in values that can be sent.

    Attributes
    ----------
    cleanup : bool
    group : tuple of int
        Of the ranks that share a file: the first one, how many there are, and a hash of all.
    precision : str or None
    engine, directories, limits : str
        As the user gave them. Ranks that have a file of their own may differ in these.
    """

    cleanup: bool
    precision: Precision | None
    group: tuple[int, int, int]
    engine: str = ""
    directories: str = ""
    limits: str = ""


@dataclass(frozen=True)
class Arguments:
    """The arguments on one rank, with the PETSc options in place of those that were not given.

    Attributes
    ----------
    comm, checkpoint_comm : mpi4py.MPI.Intracomm
    cleanup : bool
    mesh_parent : str
        The directory in which ``checkpointable_mesh`` makes its own.
    tiers : list of localckpt.storage.directories.Tier
        The directories for checkpoints, with what a whole node may use in each.
    engine, precision : str or None
    view : str or None
        What rank 0 of `comm` does at exit: nothing, print its summary (``""``), or write what timesteps took to this
        file.
    """

    comm: MPI.Intracomm
    checkpoint_comm: MPI.Intracomm
    cleanup: bool
    mesh_parent: str
    tiers: list[Tier]
    engine: EngineName | None
    view: str | None
    precision: Precision | None

    @classmethod
    def checked(
        cls,
        comm: MPI.Intracomm,
        dirname: Any,
        cleanup: Any,
        checkpoint_comm: Any,
        checkpoint_dir: Any,
        engine: Any,
        precision: Any,
    ) -> "Arguments":
        """The arguments that the user passed, if each of them makes sense. Not collective.

        Raises
        ------
        TypeError, ValueError, OSError
            The message names the argument or option.
        """
        file_per_rank = checkpoint_comm is None
        if file_per_rank:
            checkpoint_comm = MPI.COMM_SELF
        require_comm("checkpoint_comm", checkpoint_comm)
        check_ranks(checkpoint_comm, comm, "comm")
        try:
            mesh_parent = os.path.abspath(os.path.expandvars(os.fsdecode(dirname or os.getcwd())))
        except TypeError:
            raise TypeError(f"dirname is the path of a directory, not {dirname!r}") from None
        if checkpoint_dir not in (None, ""):
            tiers = choose_tiers(checkpoint_dir, 1, "checkpoint_dir")
        else:  # with a checkpoint_comm, dirname is for checkpointable_mesh only, as in Firedrake
            tiers = choose_tiers((file_per_rank and dirname) or None, 1, "dirname")
        view = requested_view()
        if comm.rank == 0 and view and not is_writeable(os.path.dirname(view)):
            raise OSError(f"-localckpt_view cannot write {view}: name a file in a writeable directory")
        return cls(
            comm,
            checkpoint_comm,
            bool(cleanup),
            mesh_parent,
            tiers,
            requested_engine(engine),
            view,
            requested_precision(precision),
        )

    def comparable(self) -> Comparable:
        """What the ranks compare. Not collective."""
        if self.checkpoint_comm.size == 1:
            return Comparable(self.cleanup, self.precision, (self.comm.rank, 1, 0))
        ranks = ranks_in(self.comm, self.checkpoint_comm)
        return Comparable(
            self.cleanup,
            self.precision,
            (ranks[0], len(ranks), xxh3_64_intdigest(np.array(ranks).tobytes())),
            self.engine or "by default",
            ", ".join(tier.source for tier in self.tiers),
            ", ".join(f"{tier.limit:g}" for tier in self.tiers),
        )


def requested_precision(precision: Any = None) -> Precision | None:
    """`precision`, by default the value of the PETSc option ``-localckpt_precision``, or None. Not collective.

    Raises
    ------
    ValueError
        If it is not "single".
    """
    requested = precision or PETSc.Options("localckpt_").getString("precision", "") or None
    match requested:
        case None | "single":
            return requested
    raise ValueError(f"{'precision' if precision else '-localckpt_precision'} is 'single', not {requested!r}")


def requested_view() -> str | None:
    """What the PETSc option ``-localckpt_view`` asks for: the `view` of :class:`Arguments`. Not collective.

    Raises
    ------
    ValueError
        If it is neither a Boolean nor ``:FILE:json``.
    """
    word = PETSc.Options("localckpt_").getString("view", "false")
    path, _, kind = word[1:].rpartition(":")
    if word.startswith(":") and path and kind == "json":
        return os.path.abspath(os.path.expandvars(path))
    try:
        return "" if PETSc.Options("localckpt_").getBool("view", False) else None
    except PETSc.Error:
        raise ValueError(f"-localckpt_view is empty, a Boolean or :FILE:json, not {word!r}") from None


def require_comm(name: str, comm: Any) -> None:
    """Raise TypeError unless `comm` is an intracommunicator. Not collective."""
    if not isinstance(comm, MPI.Intracomm) or comm == MPI.COMM_NULL:
        found = "COMM_NULL" if isinstance(comm, MPI.Comm) and comm == MPI.COMM_NULL else repr(comm)
        raise TypeError(f"{name} is an mpi4py.MPI.Intracomm, not {found}")


def check_on_all_ranks(comm: MPI.Intracomm, arguments: Arguments | None, error: Exception | None = None) -> None:
    """Raise on all ranks if the arguments are wrong on one, or differ where they must not. Collective on `comm`.

    Parameters
    ----------
    comm : mpi4py.MPI.Intracomm
    arguments : Arguments or None
        None if the tape has a checkpointer already, or if there is an `error`.
    error : Exception, optional
        What is wrong with the arguments on this rank.

    Raises
    ------
    TypeError, ValueError, OSError
        The same on every rank.
    """
    mine = None
    try:
        mine = arguments and arguments.comparable()
    except Exception as exc:
        error = exc
    raise_everywhere(comm, error)
    gathered = comm.allgather(mine)
    require_equal(
        "the working tape", ["has one already" if one is None else "has no checkpointer yet" for one in gathered]
    )
    everyone = [one for one in gathered if one is not None]  # now it is all or none
    if not everyone:
        return
    require_equal("cleanup", [one.cleanup for one in everyone])
    # Even where each rank has a file of its own: the values in a halo are to be those of their owner.
    require_equal("precision (or -localckpt_precision)", [one.precision or "by default" for one in everyone])
    groups: dict[tuple[int, int, int], list[int]] = {}
    for rank, one in enumerate(everyone):
        groups.setdefault(one.group, []).append(rank)
    # Each rank of a checkpoint_comm must have passed it, or the others wait for that rank.
    if any(len(ranks) != size for (_, size, _), ranks in groups.items()):
        require_equal("checkpoint_comm", [f"of size {one.group[1]}" for one in everyone])
        require_equal(
            "checkpoint_comm",
            [
                f"of size {size} from rank {first} on (hash of its ranks: {digest:x})"
                for first, size, digest in (one.group for one in everyone)
            ],
        )
    for (_, size, _), ranks in groups.items():
        if size > 1:
            members = [everyone[rank] for rank in ranks]
            of = " of one checkpoint_comm"
            require_equal("engine (or -localckpt_engine)", [one.engine for one in members], ranks, of)
            require_equal("the directory for checkpoints", [one.directories for one in members], ranks, of)
            require_equal("-localckpt_dir_limit", [one.limits for one in members], ranks, of)


def require_equal(name: str, values: Sequence[object], ranks: Iterable[int] | None = None, of: str = "") -> None:
    """Raise ValueError if these ranks do not all have the same value. Not collective.

    Parameters
    ----------
    name : str
        What it is a value of.
    values : sequence
    ranks : iterable of int, optional
        The rank that each value is from, by default all ranks in order.
    of : str, optional
        Which ranks these are, for the message.
    """
    ranks_with: dict[object, list[str]] = {}
    for rank, value in zip(range(len(values)) if ranks is None else ranks, values):
        ranks_with.setdefault(value, []).append(str(rank))
    if len(ranks_with) > 1:
        found = [
            f"{value} on rank{'s' * (len(holders) > 1)} {join_first(holders, ', ')}"
            for value, holders in ranks_with.items()
        ]
        raise ValueError(f"{name} is not the same on all ranks{of}: {join_first(found, '; ')}")


def join_first(words: Sequence[str], separator: str) -> str:
    """The first eight of these, and how many more there are."""
    return separator.join(words[:8]) + (f" and {len(words) - 8} more" if len(words) > 8 else "")
