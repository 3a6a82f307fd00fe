"""Each patch of Firedrake can be installed, taken back and installed again; a place that is gone is named."""

import warnings
from pkgutil import resolve_name

import firedrake as fd
import pytest
from burgers import kind
from firedrake.adjoint_utils import checkpointing as firedrakes
from firedrake.adjoint_utils.mesh import MeshGeometryMixin
from mpi4py import MPI

import localckpt.adjoint
from localckpt.adjoint import DiskCheckpointer, LocalCheckpoint, enable_disk_checkpointing, patches

TABLE = [patch for group in patches.PATCHES.values() for patch in group]
OWNERS = {patch.owner: resolve_name(patch.owner) for patch in TABLE}


@pytest.fixture
def original(detached):
    return attributes()


def attributes():
    """Every attribute of all owners in the table, by identity."""
    return {owner: {name: id(value) for name, value in vars(found).items()} for owner, found in OWNERS.items()}


@pytest.mark.parametrize("groups", [["checkpoints"], ["run"], ["checkpoints", "run"]], ids=" ".join)
def test_uninstall_puts_back_the_very_objects(original, groups):
    for group in groups:
        patches.install(group)
    assert attributes() != original
    patches.uninstall()
    assert attributes() == original


def test_uninstall_twice_changes_nothing_more(original):
    patches.uninstall()
    assert attributes() == original


def test_install_twice_is_install_once(original):
    patches.install()
    once = attributes()
    patches.install()
    assert attributes() == once
    patches.uninstall()
    assert attributes() == original


@pytest.mark.parametrize("group", patches.PATCHES)
def test_install_replaces_what_its_group_names_and_nothing_else(original, group):
    patches.install(group)
    changed = {
        (owner, name)
        for owner, values in attributes().items()
        for name, value in values.items()
        if original[owner].get(name) != value
    }
    assert changed == {(patch.owner, patch.name) for patch in patches.PATCHES[group]}


def test_every_patch_says_why():
    assert all(patch.why for patch in TABLE)


@pytest.mark.filterwarnings("error")
def test_for_run_firedrakes_enable_makes_ours(shared_tmp, tape, detached):
    patches.install()
    patches.install("run")
    firedrakes.enable_disk_checkpointing(checkpoint_dir=str(shared_tmp))
    assert type(tape._package_data["firedrake"]) is DiskCheckpointer
    assert firedrakes.checkpointable_mesh is localckpt.adjoint.checkpointable_mesh


def firedrakes_own(directory):
    """Enable Firedrake's own disk checkpointing on the working tape."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that it is not localckpt's
        firedrakes.enable_disk_checkpointing(checkpoint_comm=MPI.COMM_SELF, checkpoint_dir=str(directory))


def kind_and_value(checkpoint):
    """The kind of a checkpoint and the largest value that it gives back."""
    assert isinstance(checkpoint, firedrakes.CheckpointFunction)
    return kind(checkpoint), checkpoint.restore().dat.data_ro.max()


@pytest.fixture
def seven():
    return fd.Function(fd.FunctionSpace(fd.UnitSquareMesh(2, 2), "CG", 1)).assign(7.0)


def test_firedrakes_checkpoints_are_its_own_without_a_checkpointer_of_ours(shared_tmp, seven):
    firedrakes_own(shared_tmp)
    assert kind_and_value(firedrakes.CheckpointFunction(seven)) == (firedrakes.CheckpointFunction, 7)


def test_checkpoints_are_ours_with_our_checkpointer(shared_tmp, seven):
    enable_disk_checkpointing(checkpoint_dir=str(shared_tmp))
    assert kind_and_value(firedrakes.CheckpointFunction(seven)) == (LocalCheckpoint, 7)


def test_a_subclass_of_firedrakes_checkpoint_is_saved_as_firedrake_does(shared_tmp, seven):
    class Sevenfold(firedrakes.CheckpointFunction):
        def restore(self):
            return 7 * super().restore().dat.data_ro.max()

    enable_disk_checkpointing(checkpoint_dir=str(shared_tmp))
    checkpoint = Sevenfold(seven)
    assert (kind(checkpoint), checkpoint.restore()) == (Sevenfold, 49)


def test_firedrakes_checkpoints_work_after_uninstall(detached, shared_tmp, seven):
    firedrakes_own(shared_tmp)
    assert kind_and_value(firedrakes.CheckpointFunction(seven)) == (firedrakes.CheckpointFunction, 7)


@pytest.mark.parametrize("patch", TABLE, ids=lambda patch: f"{patch.owner} {patch.name}")
def test_an_attribute_that_is_gone_is_named(patch, detached, monkeypatch):
    (group,) = (group for group, members in patches.PATCHES.items() if patch in members)
    monkeypatch.delattr(OWNERS[patch.owner], patch.name)
    place = f"{patch.owner.replace(':', '.')}.{patch.name}"
    with pytest.raises(ImportError, match=rf"^Firedrake \S+ has no {place}, which localckpt replaces"):
        patches.install(group)


def test_a_class_that_is_gone_is_named_once(detached, monkeypatch):
    monkeypatch.delattr(firedrakes, "DiskCheckpointer")  # which has three patches
    with pytest.raises(ImportError, match=r"has no firedrake\.adjoint_utils\.checkpointing\.DiskCheckpointer, which"):
        patches.install()


def test_all_that_is_gone_is_named_together(detached, monkeypatch):
    monkeypatch.delattr(firedrakes, "current_checkpoint_file")
    monkeypatch.delattr(MeshGeometryMixin, "_ad_create_checkpoint")
    with pytest.raises(ImportError, match=r"current_checkpoint_file or \S+MeshGeometryMixin\._ad_create_checkpoint,"):
        patches.install()


def test_nothing_is_replaced_where_a_place_is_gone(original, monkeypatch):
    with monkeypatch.context() as patch:
        patch.delattr(firedrakes, "current_checkpoint_file")
        with pytest.raises(ImportError):
            patches.install()
    assert attributes() == original


def test_a_place_that_a_feature_needs_is_missed_only_with_the_feature(detached, monkeypatch):
    monkeypatch.delattr("firedrake.adjoint_utils.checkpointable_mesh")
    patches.install()
    with pytest.raises(ImportError, match=r"has no firedrake\.adjoint_utils\.checkpointable_mesh,"):
        patches.install("run")


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
    assert "has no firedrake.adjoint_utils.checkpointing.CheckpointFunction, which" in done.stderr
