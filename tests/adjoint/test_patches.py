"""Attaching to Firedrake can be undone and repeated, and says where it no longer fits."""

import warnings

import firedrake as fd
import pytest
from firedrake.adjoint_utils import checkpointing as firedrakes
from firedrake.adjoint_utils.ensemble_function import EnsembleFunctionMixin
from firedrake.adjoint_utils.mesh import MeshGeometryMixin
from mpi4py import MPI

from localckpt.adjoint import DiskCheckpointer, LocalCheckpoint, enable_disk_checkpointing, patches

OWNERS = (
    firedrakes,
    firedrakes.CheckpointFunction,
    firedrakes.DiskCheckpointer,
    MeshGeometryMixin,
    EnsembleFunctionMixin,
)


@pytest.fixture
def original(detached):
    return attributes()


def attributes():
    """Every attribute of what the seam may touch, by identity."""
    return [{name: id(value) for name, value in vars(owner).items()} for owner in OWNERS]


@pytest.mark.parametrize("everywhere", [False, True])
def test_uninstall_puts_back_the_very_objects(original, everywhere):
    patches.install(DiskCheckpointer, LocalCheckpoint, everywhere)
    patches.uninstall()
    assert attributes() == original


def test_uninstall_twice_changes_nothing_more(original):
    patches.uninstall()
    assert attributes() == original


def test_install_twice_is_undone_by_one_uninstall(original):
    patches.install(DiskCheckpointer, LocalCheckpoint)
    patches.install(DiskCheckpointer, LocalCheckpoint, everywhere=True)
    patches.uninstall()
    assert attributes() == original


def test_install_attaches(original):
    patches.install(DiskCheckpointer, LocalCheckpoint)
    assert attributes() != original


@pytest.mark.filterwarnings("error")
def test_installed_everywhere_firedrakes_enable_makes_ours(detached, shared_tmp, tape):
    patches.install(DiskCheckpointer, LocalCheckpoint, everywhere=True)
    firedrakes.enable_disk_checkpointing(checkpoint_dir=str(shared_tmp))
    assert type(tape._package_data["firedrake"]) is DiskCheckpointer


def firedrakes_own(folder):
    """Enable Firedrake's own disk checkpointing on the working tape."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that it is not localckpt's
        firedrakes.enable_disk_checkpointing(checkpoint_comm=MPI.COMM_SELF, checkpoint_dir=str(folder))


def kind_and_value(f):
    """The type of a checkpoint of f and the largest value that it gives back."""
    checkpoint = firedrakes.CheckpointFunction(f)
    return type(checkpoint), checkpoint.restore().dat.data_ro.max()


@pytest.fixture
def seven():
    return fd.Function(fd.FunctionSpace(fd.UnitSquareMesh(2, 2), "CG", 1)).assign(7.0)


def test_firedrakes_checkpoints_are_its_own_without_a_checkpointer_of_ours(detached, shared_tmp, seven):
    patches.install(DiskCheckpointer, LocalCheckpoint)
    firedrakes_own(shared_tmp)
    assert kind_and_value(seven) == (firedrakes.CheckpointFunction, 7)


def test_checkpoints_are_ours_with_our_checkpointer(detached, shared_tmp, seven):
    patches.install(DiskCheckpointer, LocalCheckpoint)
    enable_disk_checkpointing(checkpoint_dir=str(shared_tmp))
    assert kind_and_value(seven) == (LocalCheckpoint, 7)


def test_firedrakes_checkpoints_work_after_uninstall(detached, shared_tmp, seven):
    firedrakes_own(shared_tmp)
    assert kind_and_value(seven) == (firedrakes.CheckpointFunction, 7)


@pytest.mark.parametrize("name", ["CheckpointFunction", "DiskCheckpointer", "current_checkpoint_file"])
def test_a_name_that_is_gone_is_named(detached, name, monkeypatch):
    monkeypatch.delattr(firedrakes, name)
    with pytest.raises(ImportError, match=rf"Firedrake \S+ has no \S+\.{name}, where localckpt attaches"):
        patches.install(DiskCheckpointer, LocalCheckpoint)


@pytest.mark.parametrize("owner", [MeshGeometryMixin, EnsembleFunctionMixin, firedrakes.DiskCheckpointer])
def test_a_method_that_is_gone_is_named(detached, owner, monkeypatch):
    name = "pause_checkpointing" if owner is firedrakes.DiskCheckpointer else "_ad_create_checkpoint"
    monkeypatch.delattr(owner, name)
    with pytest.raises(ImportError, match=rf"has no {owner.__module__}\.{owner.__name__}\.{name}, where localckpt"):
        patches.install(DiskCheckpointer, LocalCheckpoint)


def test_nothing_is_attached_where_a_name_is_gone(original, monkeypatch):
    with monkeypatch.context() as patch:
        patch.delattr(firedrakes, "current_checkpoint_file")
        with pytest.raises(ImportError):
            patches.install(DiskCheckpointer, LocalCheckpoint)
    assert attributes() == original


def test_importing_localckpt_names_what_is_gone(run_script):
    done = run_script(
        """
from firedrake.adjoint_utils import checkpointing
del checkpointing.CheckpointFunction
import localckpt.adjoint
""",
        seconds=120,
    )
    assert "ImportError: Firedrake" in done.stderr
