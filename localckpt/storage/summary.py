"""How much a store has saved and restored."""

from dataclasses import dataclass, field, replace

from mpi4py import MPI

__all__ = ["Summary"]


@dataclass(slots=True)
class Summary:
    """How much was saved and restored in all tiers, on one rank or (:meth:`over`) on all."""

    saves: int = 0  #: number of arrays saved, one for each component of a Function
    repeats: int = 0  #: saves of bytes that were on disk already
    restores: int = 0  #: number of arrays restored
    saved: int = 0  #: bytes of all saves, as they are on disk
    written: int = 0  #: bytes written to disk
    rounded: int = 0  #: those of them that are numbers rounded to single precision
    read: int = 0  #: bytes read back from disk
    live: int = 0  #: bytes that the files in use take on disk, with the space reserved for more arrays
    peak: int = 0  #: the maximum of `live`; over several ranks, the sum of each rank's maximum
    saving: float = 0.0  #: seconds in :meth:`Store.put`, on the slowest rank
    restoring: float = 0.0  #: seconds in :meth:`Store.get`, on the same rank
    tiers: list[str] = field(default_factory=list)  #: directories that were used
    ranks: int = 1
    slowest_rank: int = 0
    slowest_host: str = field(default_factory=MPI.Get_processor_name)

    def over(self, comm: MPI.Intracomm) -> "Summary":
        """Return the summary of all ranks of a communicator. Collective on `comm`."""
        everyone = comm.allgather(self)
        slowest = max(everyone, key=lambda one: one.saving + one.restoring)
        total = replace(
            slowest,
            tiers=[*dict.fromkeys(tier for one in everyone for tier in one.tiers)],
            ranks=comm.size,
            slowest_rank=everyone.index(slowest),
        )
        for name in ("saves", "repeats", "restores", "saved", "written", "rounded", "read", "live", "peak"):
            setattr(total, name, sum(getattr(one, name) for one in everyone))
        return total

    def __str__(self) -> str:
        whose = f"all {self.ranks} ranks, the slowest:" if self.ranks > 1 else "one rank:"
        rounded = ""
        if self.rounded:
            exact = self.written - self.rounded
            rounded = f"    rounded  {'':12} {self.rounded / 1e6:12.3f} MB written, {exact / 1e6:.3f} MB exact\n"
        return (
            f"checkpoints of {whose} rank {self.slowest_rank} on {self.slowest_host}\n"
            f"    saves    {self.saves:12} {self.saved / 1e6:12.3f} MB {self.saving:10.3f} s\n"
            f"    repeats  {self.repeats:12} {(self.saved - self.written) / 1e6:12.3f} MB not written\n"
            f"{rounded}"
            f"    restores {self.restores:12} {self.read / 1e6:12.3f} MB {self.restoring:10.3f} s\n"
            f"    on disk  {'':12} {self.live / 1e6:12.3f} MB, at most {self.peak / 1e6:.3f} MB\n"
            f"    in       {', '.join(self.tiers) or 'no directory'}"
        )
