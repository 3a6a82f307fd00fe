"""``localckpt plan`` counts what a schedule does as the tape does it."""

from collections import Counter

import firedrake as fd
import pytest
from burgers import bare_tape
from checkpoint_schedules import MultistageCheckpointSchedule
from firedrake.adjoint import Control, ReducedFunctional, stop_annotating
from firedrake.adjoint_utils.blocks import FunctionAssignBlock
from petsc4py import PETSc
from pyadjoint.tape import TimeStep

from localckpt.adjoint import disk_checkpointing, enable_disk_checkpointing
from localckpt.commands.schedules import Moved, Room, candidates

ROOM = Room(disk=4, memory=2, disk_adjoint=4, memory_adjoint=2)
SIZES = 3, 4, 7, 12, 25


def every_candidate():
    """By name: of each size, all that plan tries, but one distribution only of Multistage's checkpoints."""
    for steps in SIZES:
        for one in candidates(steps, ROOM, 0.1, 0.1):
            if one.kind is not MultistageCheckpointSchedule or one.arguments[1:] == (2, min(4, steps - 3)):
                yield f"{steps} steps, {one}", (steps, one)


CANDIDATES = dict(every_candidate())


class Observed:
    """What the tape does from now on."""

    def __init__(self, monkeypatch):
        self.forward, self.disk_writes, self.disk_reads, self.memory_writes = 0, Counter(), Counter(), Counter()
        self.on_disk, self.disk_peak = {}, 0
        save, restore, delete = TimeStep.checkpoint, TimeStep.restore_from_checkpoint, TimeStep.delete_checkpoint
        recompute = FunctionAssignBlock.recompute

        def saving(step, restart, adjoint, *args):
            for kind in ["restart"] * restart + ["adjoint"] * adjoint:
                self.on_disk.pop(id(step), None)  # a timestep holds one checkpoint only
                (self.disk_writes if disk_checkpointing() else self.memory_writes)[kind] += 1
                if disk_checkpointing():
                    self.on_disk[id(step)] = kind
            self.disk_peak = max(self.disk_peak, len(self.on_disk))
            save(step, restart, adjoint, *args)

        def restoring(step, storage):
            if id(step) in self.on_disk:
                self.disk_reads[self.on_disk[id(step)]] += 1
            restore(step, storage)

        def deleting(step):
            self.on_disk.pop(id(step), None)
            delete(step)

        def recomputing(block, *args, **kwargs):
            self.forward += 1
            recompute(block, *args, **kwargs)

        monkeypatch.setattr(TimeStep, "checkpoint", saving)
        monkeypatch.setattr(TimeStep, "restore_from_checkpoint", restoring)
        monkeypatch.setattr(TimeStep, "delete_checkpoint", deleting)
        monkeypatch.setattr(FunctionAssignBlock, "recompute", recomputing)

    def reset(self):
        self.forward, self.disk_peak = 0, 0
        for counter in self.disk_writes, self.disk_reads, self.memory_writes:
            counter.clear()


@pytest.fixture(scope="module")
def space():
    """A small one, without the garbage collections for which these tapes are too small."""
    PETSc.Options("localckpt_")["collect"] = False
    yield fd.FunctionSpace(fd.UnitIntervalMesh(1), "R", 0)
    PETSc.Options("localckpt_").delValue("collect")


@pytest.mark.parametrize("name", CANDIDATES)
def test_the_counts_are_those_of_a_tape(name, space, monkeypatch, tmp_path):
    steps, candidate = CANDIDATES[name]
    observed = Observed(monkeypatch)
    with bare_tape() as tape:
        enable_disk_checkpointing(checkpoint_dir=tmp_path)
        tape.enable_checkpointing(candidate.kind(*candidate.arguments, **candidate.keywords))
        with stop_annotating():
            u = control = fd.Function(space).assign(1.0)
        for _ in tape.timestepper(iter(range(steps))):
            u = fd.Function(space).assign(1.1 * u)
        functional = ReducedFunctional(fd.assemble(u * u * fd.dx), Control(control))
        with stop_annotating():
            functional.derivative()
            observed.reset()
            functional(fd.Function(space).assign(1.3))
            functional.derivative()
    counts = candidate.count(steps)
    assert observed.forward == counts.forward
    assert Moved(**observed.disk_writes) == counts.disk_writes
    assert Moved(**observed.disk_reads) == counts.disk_reads
    assert Moved(**observed.memory_writes) == counts.memory_writes
    assert observed.disk_peak == counts.disk_peak
