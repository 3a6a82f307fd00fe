"""Names and signatures are Firedrake's; what is deprecated or doubtful there warns here, too."""

import inspect
import os
import warnings

import firedrake.checkpointing
import pytest
from burgers import assert_same, disk_checkpoints, kind, record, reference, replay
from checkpoint_schedules import SingleDiskStorageSchedule
from firedrake.adjoint import set_working_tape
from firedrake.adjoint_utils import checkpointing as firedrakes
from mpi4py import MPI

import localckpt.adjoint
from localckpt import TemporaryFunctionCheckpointFile
from localckpt.adjoint import DiskCheckpointer, enable_disk_checkpointing, patches

COMMON = [
    name
    for name in dir(firedrakes.DiskCheckpointer)
    if callable(getattr(firedrakes.DiskCheckpointer, name)) and not name.startswith("_")
]


@pytest.fixture
def nothing_warned(monkeypatch):
    """As if localckpt.adjoint had just been imported."""
    monkeypatch.setattr(patches, "_warned", False)


def test_star_import_gives_firedrakes_names():
    assert sorted(localckpt.adjoint.__all__) == sorted(firedrakes.__all__)


@pytest.mark.parametrize("name", sorted(set(firedrakes.__all__) - {"enable_disk_checkpointing", "checkpointable_mesh"}))
def test_other_names_are_firedrakes_own(name):
    assert getattr(localckpt.adjoint, name) is getattr(firedrakes, name)


def test_checkpointable_mesh_has_firedrakes_signature():
    assert inspect.signature(localckpt.adjoint.checkpointable_mesh) == inspect.signature(firedrakes.checkpointable_mesh)


def signature(function):
    """Names, kinds and default values of the parameters. Firedrake's have no annotations."""
    return [
        (parameter.name, parameter.kind, parameter.default)
        for parameter in inspect.signature(function).parameters.values()
    ]


def without_additions(function):
    """The signature less what is keyword-only, as all that localckpt adds is."""
    return [parameter for parameter in signature(function) if parameter[1] != inspect.Parameter.KEYWORD_ONLY]


def test_signature_of_enable_is_firedrakes():
    assert without_additions(enable_disk_checkpointing) == signature(firedrakes.enable_disk_checkpointing)


@pytest.mark.parametrize("name", ["__init__", *COMMON])
def test_signature_of_checkpointer_method_is_firedrakes(name, detached):
    ours, theirs = (without_additions(getattr(cls, name)) for cls in (DiskCheckpointer, firedrakes.DiskCheckpointer))
    assert ours == theirs


@pytest.mark.parametrize("name", ["__init__", "__enter__", "__exit__", "save_function", "load_function", "close"])
def test_signature_of_file_method_is_firedrakes(name):
    ours, theirs = (
        signature(getattr(cls, name))
        for cls in (TemporaryFunctionCheckpointFile, firedrake.checkpointing.TemporaryFunctionCheckpointFile)
    )
    assert ours == theirs


@pytest.mark.parallel([1, 2])
def test_checkpoint_comm_without_a_directory_warns(shared_tmp, monkeypatch):
    monkeypatch.chdir(shared_tmp)
    with pytest.warns(UserWarning, match="checkpoint_dir"):
        enable_disk_checkpointing(checkpoint_comm=MPI.COMM_SELF)


def test_checkpoint_comm_without_a_directory_uses_the_current_one(shared_tmp, monkeypatch, tape):
    monkeypatch.chdir(shared_tmp)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        enable_disk_checkpointing(checkpoint_comm=MPI.COMM_SELF)
    name = tape._package_data["firedrake"].current_checkpoint_file.name
    assert os.path.realpath(name).startswith(os.path.realpath(shared_tmp))


@pytest.mark.parametrize("arguments", [{}, {"checkpoint_dir": "."}, {"dirname": "."}], ids=str)
def test_enable_does_not_warn_otherwise(arguments, shared_tmp, monkeypatch):
    monkeypatch.chdir(shared_tmp)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        enable_disk_checkpointing(**arguments)


def test_new_checkpoint_file_warns_that_it_will_go(shared_tmp, tape):
    enable_disk_checkpointing(checkpoint_dir=str(shared_tmp))
    with pytest.warns(FutureWarning, match="reset"):
        tape._package_data["firedrake"].new_checkpoint_file()


@pytest.mark.parallel([1, 2])
@pytest.mark.filterwarnings("ignore:'new_checkpoint_file':FutureWarning")
def test_new_checkpoint_file_is_an_existing_one(shared_tmp, tape):
    enable_disk_checkpointing(checkpoint_dir=str(shared_tmp))
    files = [tape._package_data["firedrake"].new_checkpoint_file() for _ in range(2)]
    assert [os.path.exists(file.name) for file in files] == [True, True]
    assert files[0].name != files[1].name


def test_firedrakes_enable_warns_once(nothing_warned, shared_tmp):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            with set_working_tape():
                firedrakes.enable_disk_checkpointing(dirname=str(shared_tmp))
    assert [w.category for w in caught if "not localckpt's" in str(w.message)] == [UserWarning]


def test_firedrakes_enable_warns_about_the_line_that_called_it(nothing_warned, shared_tmp):
    with pytest.warns(UserWarning, match="not localckpt's") as caught:
        firedrakes.enable_disk_checkpointing(dirname=str(shared_tmp))
    assert {w.filename for w in caught if "not localckpt's" in str(w.message)} == {__file__}


@pytest.mark.filterwarnings("ignore:this is Firedrake's:UserWarning")
def test_firedrakes_enable_still_works(shared_tmp, tape):
    firedrakes.enable_disk_checkpointing(checkpoint_comm=MPI.COMM_SELF, checkpoint_dir=str(shared_tmp))
    functional = record(SingleDiskStorageSchedule())
    assert_same(replay(functional), reference())
    assert {kind(checkpoint) for checkpoint in disk_checkpoints(tape)} == {firedrakes.CheckpointFunction}
