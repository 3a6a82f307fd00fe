"""What ``-localckpt_view :FILE:json`` writes about the timesteps of a run."""

import json
import logging
import os
from pathlib import Path

import firedrake as fd
import numpy as np
import pytest
from burgers import bare_tape, record_on_disk, sweep
from checkpoint_schedules import MultistageCheckpointSchedule, SingleDiskStorageSchedule
from firedrake import dx, sin
from firedrake.adjoint import Control, ReducedFunctional, get_working_tape, stop_annotating
from mpi4py import MPI
from petsc4py import PETSc
from pyadjoint.tape import TimeStep

from localckpt.adjoint import enable_disk_checkpointing, patches
from localckpt.adjoint.checkpoints import EnsembleCheckpoint, saved_function
from localckpt.functions import component_dats, local_array

WORLD = MPI.COMM_WORLD
OPTIONS = PETSc.Options("localckpt_")
STEPS = 6

RUN = """
sys.path.insert(0, sys.argv[1])
from burgers import record_on_disk, sweep
from firedrake.adjoint import continue_annotation
continue_annotation()
sweep(record_on_disk(checkpoint_dir=sys.argv[2]), 1.0)
os.chdir("/")
"""


@pytest.fixture
def path(shared_tmp, detached):
    """The file that rank 0 writes when a tape goes."""
    patches.install()
    OPTIONS["view"] = f":{shared_tmp}/run.json:json"
    yield shared_tmp / "run.json"
    OPTIONS.delValue("view")


def end(tape):
    """What happens to a tape's checkpoints at exit."""
    tape._package_data["firedrake"]._finalizer()


def written(path):
    """What is in the file, on every rank."""
    return json.loads(WORLD.bcast(path.read_text() if WORLD.rank == 0 else None))


def record(schedule, directory, in_step=lambda step: None):
    """u and v become others in every timestep; the coefficient stays. The functional depends on u alone."""
    enable_disk_checkpointing(checkpoint_dir=str(directory))
    tape = get_working_tape()
    tape.enable_checkpointing(schedule)
    V = fd.FunctionSpace(fd.UnitSquareMesh(4, 4), "CG", 2)
    x, y = fd.SpatialCoordinate(V.mesh())
    with stop_annotating():
        coefficient, control = fd.Function(V).interpolate(1 + x), fd.Function(V).interpolate(1 + y)
        v = fd.Function(V).interpolate(3 + x)
    u, new, test = fd.Function(V), fd.Function(V), fd.TestFunction(V)
    u.assign(control)
    solver = fd.LinearVariationalSolver(
        fd.LinearVariationalProblem(fd.TrialFunction(V) * test * dx, coefficient * (u + 0.1 * sin(u)) * test * dx, new),
        solver_parameters={"ksp_type": "preonly", "pc_type": "jacobi"},
    )
    J = 0.0
    for step in tape.timestepper(iter(range(STEPS))):
        in_step(step)
        solver.solve()
        u.assign(new)
        v.assign(0.5 * v + u)
        J += fd.assemble(u * u * dx)
    return ReducedFunctional(J, Control(control)), nbytes(u)


def nbytes(function):
    return sum(local_array(dat).nbytes for dat in component_dats(function))


def evaluate(functional, scale):
    with stop_annotating():
        control = functional.controls[0].control.copy(deepcopy=True)
        control.dat.data_wo[...] *= scale
        functional(control)
        functional.derivative()


@pytest.mark.parallel([1, 2])
def test_adjoint_data_is_what_the_store_writes_in_a_timestep(path, shared_tmp):
    with bare_tape() as tape:
        counts = []

        def note(step):
            counts.append(tape._package_data["firedrake"].local_summary.written)

        functional, _ = record(SingleDiskStorageSchedule(), shared_tmp, note)
        functional.derivative()
        note(STEPS)
        end(tape)
    found = written(path)
    after_the_first_timestep, at_the_end = WORLD.bcast((counts[1], counts[-1]))
    assert (found["ranks_per_node"], found["timesteps"]) == (WORLD.size, STEPS)
    assert found["adjoint"]["stored"] * (STEPS - 1) == (at_the_end - after_the_first_timestep) * WORLD.size
    assert found["adjoint"]["restored"] > found["adjoint"]["stored"] >= found["restart"]["stored"] > 0
    assert all(found[name] > 0 for name in ("forward", "reverse", "saving", "restoring"))


def test_bytes_are_those_of_the_functions_that_a_timestep_changes(path, shared_tmp):
    with bare_tape() as tape:
        functional, one = record(SingleDiskStorageSchedule(), shared_tmp)
        functional.derivative()
        end(tape)
    found = written(path)
    assert found["restart"]["stored"] == 2 * one  # u and v
    assert found["adjoint"]["stored"] == 2 * one
    assert found["adjoint"]["restored"] >= 3 * one  # the coefficient, too


@pytest.mark.parametrize("scale", [1.0, 1.01], ids=["the same control", "another control"])
def test_later_evaluations_change_no_bytes(scale, path, shared_tmp):
    with bare_tape() as tape:
        functional, one = record(SingleDiskStorageSchedule(), shared_tmp)
        functional.derivative()
        for _ in range(2):
            evaluate(functional, scale)
        end(tape)
    found = written(path)
    assert found["restart"]["stored"] == found["adjoint"]["stored"] == 2 * one
    assert found["timesteps"] == STEPS and found["forward"] > 0 and found["reverse"] > 0


def test_a_schedule_that_stores_restart_data_measures_nothing_else(path, shared_tmp):
    with bare_tape() as tape:
        functional, one = record(MultistageCheckpointSchedule(STEPS, 0, 3), shared_tmp)
        functional.derivative()
        end(tape)
    found = written(path)
    assert found["restart"]["stored"] == 2 * one
    assert [found[name] for name in ("timesteps", "forward", "reverse", "saving")] == [None] * 4
    assert found["adjoint"] == {"stored": None, "restored": None}


def test_without_a_gradient_seconds_are_unknown(path, shared_tmp):
    with bare_tape() as tape:
        functional, _ = record(SingleDiskStorageSchedule(), shared_tmp)
        end(tape)
    assert written(path)["forward"] is None


def test_a_tape_that_saves_nothing_leaves_an_earlier_file(path, shared_tmp):
    path.write_text("earlier")
    with bare_tape() as tape:
        enable_disk_checkpointing(checkpoint_dir=str(shared_tmp))
        end(tape)
    assert path.read_text() == "earlier"


def test_the_gradient_is_the_same(path, shared_tmp):
    with bare_tape() as tape:
        recorded = sweep(record_on_disk(checkpoint_dir=str(shared_tmp)), 1.3)
        assert tape._package_data["firedrake"].recorder is not None
    OPTIONS.delValue("view")
    with bare_tape() as tape:
        assert np.array_equal(recorded, sweep(record_on_disk(checkpoint_dir=str(shared_tmp)), 1.3))
        assert tape._package_data["firedrake"].recorder is None


def test_a_file_that_cannot_be_written_is_a_warning(path, shared_tmp, caplog):
    path.mkdir()
    with bare_tape() as tape:
        functional, _ = record(SingleDiskStorageSchedule(), shared_tmp)
        with caplog.at_level(logging.WARNING, logger="localckpt"):
            end(tape)
    assert f"-localckpt_view cannot write {path}: " in caplog.text and os.listdir(shared_tmp).count("run.json") == 1


def test_nothing_in_pyadjoint_is_replaced_without_the_option(detached, tmp_path):
    patches.install()
    before = TimeStep.checkpoint, TimeStep.restore_from_checkpoint
    enable_disk_checkpointing(checkpoint_dir=str(tmp_path))
    assert (TimeStep.checkpoint, TimeStep.restore_from_checkpoint) == before


def test_meshes_and_ensemble_functions_on_disk_count(tmp_path):
    with bare_tape() as tape:
        enable_disk_checkpointing(checkpoint_dir=str(tmp_path))
        checkpointer = tape._package_data["firedrake"]
        mesh = fd.UnitSquareMesh(2, 2)
        in_memory = checkpointer.save_mesh(mesh)
        checkpointer.continue_checkpointing()
        on_disk = checkpointer.save_mesh(mesh)
        checkpointer.pause_checkpointing()
        saved = checkpointer.save(mesh.coordinates)
        assert saved_function(in_memory) is None and saved_function(3.0) is None
        assert saved_function(on_disk).stored == saved.stored
        assert saved_function(EnsembleCheckpoint(saved, fd.EnsembleFunction, None)) is saved


def test_rank_0_writes_the_file_when_the_run_ends(run_script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PETSC_OPTIONS", "-localckpt_view :run.json:json")
    done = run_script(RUN, Path(__file__).parent, tmp_path, ranks=2)
    assert done.returncode == 0 and done.stdout == "", done.stderr
    found = json.loads((tmp_path / "run.json").read_text())
    assert found["ranks_per_node"] == 2 and found["forward"] > 0
    assert sorted(os.listdir(tmp_path)) == ["run.json", "script.py"]
