"""Which folder is chosen, what is said of it, and what is made in it."""

import logging
import os
import shutil
import stat
import tempfile

import pytest
from mpi4py import MPI
from petsc4py import PETSc

from localckpt._collective import raise_everywhere
from localckpt.storage import directories
from localckpt.storage.directories import (
    Directory,
    Tier,
    choose_directory,
    choose_tiers,
)
from localckpt.storage.nodes import node_comm
from localckpt.storage.room import announce
from localckpt.storage.run_directories import JOB_DIRECTORIES
from localckpt.storage.shared_directories import make_shared_directory

WORLD = MPI.COMM_WORLD


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """One folder for each variable that may name one; none of them is set yet."""
    for name in JOB_DIRECTORIES:
        monkeypatch.delenv(name, raising=False)
        (tmp_path / name).mkdir()
    (tmp_path / "system").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "system"))
    return tmp_path


@pytest.fixture
def option():
    """option(folder): as if -localckpt_dir were on the command line."""
    options = PETSc.Options()

    def give(folder):
        options["localckpt_dir"] = str(folder)

    yield give
    options.delValue("localckpt_dir")


@pytest.fixture
def limit():
    """limit(bytes): as if -localckpt_dir_limit were on the command line."""
    options = PETSc.Options()

    def give(nbytes):
        options["localckpt_dir_limit"] = nbytes

    yield give
    options.delValue("localckpt_dir_limit")


@pytest.fixture
def in_ram():
    """A folder in memory."""
    folder = tempfile.mkdtemp(dir="/dev/shm")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def said(caplog):
    """said(): the messages so far, with their levels."""
    caplog.set_level(logging.DEBUG, logger="localckpt")
    return lambda: [(record.levelname, record.getMessage()) for record in caplog.records]


@pytest.mark.parametrize("first", range(len(JOB_DIRECTORIES)))
def test_the_first_variable_that_is_set_counts(first, folders, monkeypatch):
    for name in JOB_DIRECTORIES[first:]:
        monkeypatch.setenv(name, str(folders / name))
    assert choose_directory().path == str(folders / JOB_DIRECTORIES[first])


def test_without_variables_it_is_the_systems_temporary_folder(folders):
    assert choose_directory().path == str(folders / "system")


def test_the_option_comes_before_every_variable(folders, monkeypatch, option):
    monkeypatch.setenv(JOB_DIRECTORIES[0], str(folders / JOB_DIRECTORIES[0]))
    option(folders)
    assert choose_directory().path == str(folders)


def test_variables_in_the_option_are_expanded_on_each_node(folders, monkeypatch, option):
    monkeypatch.setenv("MINE", str(folders))
    option("$MINE/system")
    assert choose_tiers(None, 1) == [Tier(str(folders / "system"))]


@pytest.mark.parametrize("missing", ["", "$UNSET_HERE"])
def test_empty_names_in_the_option_are_left_out_with_a_warning(missing, folders, monkeypatch, option, said):
    monkeypatch.setenv("UNSET_HERE", "")
    option(f"{missing},{folders / 'system'}")
    assert choose_tiers(None, 1) == [Tier(str(folders / "system"))]
    assert [level for level, message in said() if "empty names" in message] == ["WARNING"]


@pytest.mark.parametrize("value", ["", "missing", "file"])
def test_a_variable_that_names_no_folder_is_passed_over(value, folders, monkeypatch):
    (folders / "file").touch()
    monkeypatch.setenv(JOB_DIRECTORIES[0], value and str(folders / value))
    monkeypatch.setenv(JOB_DIRECTORIES[1], str(folders / JOB_DIRECTORIES[1]))
    assert choose_directory().path == str(folders / JOB_DIRECTORIES[1])


def test_a_folder_in_memory_is_passed_over(folders, monkeypatch, in_ram):
    monkeypatch.setenv(JOB_DIRECTORIES[0], in_ram)
    assert choose_directory().path == str(folders / "system")


def test_a_folder_in_memory_is_used_where_the_option_names_it(folders, option, in_ram):
    option(in_ram)
    assert choose_directory() == Directory(in_ram, "tmpfs", choose_directory().free)


@pytest.fixture
def all_in_ram(folders, monkeypatch):
    """A node all of whose temporary folders are in memory."""
    kinds = {Directory.at(folder).filesystem for folder in (folders, "/var/tmp")}
    monkeypatch.setattr(directories, "IN_RAM", directories.IN_RAM | kinds)
    monkeypatch.chdir(folders)


def test_with_nothing_left_it_is_the_current_folder(all_in_ram, folders):
    assert os.path.samefile(choose_directory().path, folders)


def test_with_nothing_left_there_is_a_warning_that_says_what_to_do(all_in_ram, said):
    choose_directory()
    ((level, message),) = said()
    assert level == "WARNING" and "checkpoint_dir=" in message and "-localckpt_dir" in message


def test_a_network_filesystem_is_warned_of(folders, monkeypatch, said):
    kind = Directory.at(folders).filesystem
    monkeypatch.setattr(directories, "NETWORK", directories.NETWORK | {kind})
    choose_directory()
    ((level, message),) = said()
    assert level == "WARNING" and kind in message and str(folders / "system") in message


def test_a_local_filesystem_is_not_warned_of(folders, said):
    choose_directory()
    assert said() == []


def test_a_place_has_the_free_bytes_of_its_filesystem(tmp_path):
    assert Directory.at(tmp_path).free == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.1)


def test_a_link_is_on_the_filesystem_that_it_leads_to(tmp_path, in_ram):
    (tmp_path / "link").symlink_to(in_ram)
    assert Directory.at(tmp_path / "link").filesystem == "tmpfs"


def test_the_option_may_name_several_folders(option):
    option("/first,/second")
    assert choose_tiers(None, 1) == [Tier("/first"), Tier("/second")]


def test_ranks_of_a_node_share_the_limit(limit):
    limit("8e9,2e9")
    assert choose_tiers(["/first", "/second"], 4) == [Tier("/first", 2e9), Tier("/second", 5e8)]


@pytest.mark.parametrize("given", ["1e9,1e9,1e9", "0", "-1,1", "much"])
def test_a_limit_that_makes_no_sense_is_an_error(limit, given):
    limit(given)
    with pytest.raises(ValueError):
        choose_tiers(["/first", "/second"], 4)


@pytest.mark.parallel([1, 2, 3])
def test_announcement_tells_the_room_of_each_rank(shared_tmp, said):
    announce(here := Directory(str(shared_tmp), "ext4", 12_000_000_000), WORLD.bcast(here), WORLD, WORLD)
    sentence = (
        f"{MPI.Get_processor_name()}: checkpoints go to {shared_tmp} (ext4), 12.0 GB free, "
        f"{12 / WORLD.size:.1f} GB for each of {WORLD.size} ranks"
    )
    assert said() == ([("INFO", sentence)] if WORLD.rank == 0 else [])


def test_announcement_tells_the_schedulers_limit(shared_tmp, said, monkeypatch):
    monkeypatch.setenv("PBS_NCI_JOBFS", "100MB")
    announce(here := Directory.at(shared_tmp), WORLD.bcast(here), WORLD, WORLD)
    assert said()[0][1].endswith("; the scheduler's limit is PBS_NCI_JOBFS=100MB")


def test_announcement_is_made_once(shared_tmp, said):
    for free in (3_000_000_000, 2_000_000_000):
        announce(here := Directory(str(shared_tmp), "ext4", free), WORLD.bcast(here), WORLD, WORLD)
    assert len(said()) == 1


def test_another_folder_is_announced_too(shared_tmp, said):
    announce(here := Directory.at(shared_tmp), WORLD.bcast(here), WORLD, WORLD)
    (shared_tmp / "below").mkdir()
    announce(here := Directory.at(shared_tmp / "below"), WORLD.bcast(here), WORLD, WORLD)
    assert len(said()) == 2


@pytest.mark.parallel([1, 2])
def test_a_made_folder_is_one_for_all(shared_tmp):
    made = make_shared_directory(WORLD, str(shared_tmp))
    assert WORLD.allgather(made) == [made] * WORLD.size and os.path.dirname(made) == str(shared_tmp)


def test_a_made_folder_is_for_nobody_else(tmp_path):
    assert stat.S_IMODE(os.stat(make_shared_directory(WORLD, str(tmp_path))).st_mode) == 0o700


def test_a_made_folder_has_the_files_asked_for(tmp_path):
    made = make_shared_directory(WORLD, str(tmp_path), ["a.h5", "b.h5"])
    assert {file.name: file.stat().st_size for file in os.scandir(made)} == {"a.h5": 0, "b.h5": 0}


def test_made_folders_are_different(tmp_path):
    assert make_shared_directory(WORLD, str(tmp_path)) != make_shared_directory(WORLD, str(tmp_path))


@pytest.mark.parallel([1, 2, 3])
def test_a_folder_that_cannot_be_made_is_one_error_on_every_rank(shared_tmp, raises_everywhere):
    with raises_everywhere(FileNotFoundError, match="missing"):
        make_shared_directory(WORLD, str(shared_tmp / "missing"))


@pytest.mark.parallel([1, 2, 3])
def test_ranks_raise_the_error_of_the_lowest_that_has_one(raises_everywhere):
    lowest = WORLD.size // 2
    error = OSError(28, f"of rank {WORLD.rank}") if WORLD.rank >= lowest else None
    with raises_everywhere(OSError, match=f"of rank {lowest}"):
        raise_everywhere(WORLD, error)


@pytest.mark.parallel([1, 2])
def test_ranks_without_an_error_raise_none(shared_tmp):
    assert raise_everywhere(WORLD, None) is None


@pytest.fixture
def comm():
    """A communicator of all ranks that a test may free."""
    comm = WORLD.Dup()
    yield comm
    if comm:
        comm.Free()


@pytest.mark.parallel([1, 2, 3])
def test_node_comm_has_all_ranks_of_a_node_in_their_order(comm):
    assert node_comm(comm).rank == WORLD.rank and node_comm(comm).size == WORLD.size


@pytest.mark.parallel([1, 2, 3])
@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_node_comm_of_some_ranks_has_neighbours_in_it(comm, ranks):
    first = WORLD.rank // ranks * ranks
    group = node_comm(comm, ranks_per_file=ranks)
    assert group.allgather(WORLD.rank) == list(range(first, min(first + ranks, WORLD.size)))


@pytest.mark.parallel([1, 3])
@pytest.mark.parametrize("ranks", [None, 2])
def test_node_comm_asked_for_twice_is_the_same(comm, ranks):
    assert node_comm(comm, ranks) is node_comm(comm, ranks)


@pytest.mark.parallel([1, 3])
def test_node_comm_of_a_duplicate_is_another(comm):
    group = node_comm(comm)
    duplicate = comm.Dup()
    assert node_comm(duplicate) != group
    duplicate.Free()
    group.barrier()


@pytest.mark.parallel([1, 3])
def test_node_comms_are_freed_with_their_communicator(comm):
    groups = [node_comm(comm, ranks) for ranks in (None, 1, 2)]
    comm.Free()
    assert groups == [MPI.COMM_NULL] * 3


@pytest.mark.parallel([1, 3])
def test_node_comm_that_its_user_has_freed_is_made_again(comm):
    node_comm(comm, 2).Free()
    node_comm(comm, 2).barrier()


@pytest.mark.parallel([1, 2])
def test_node_comm_of_no_ranks_is_an_error(raises_everywhere):
    with raises_everywhere(ValueError, match="ranks_per_file"):
        node_comm(WORLD, 0)


@pytest.mark.parametrize("end", ["", "PETSc._finalize(); MPI.Finalize()"])
def test_node_comms_of_the_world_do_no_harm_at_its_end(run_script, end):
    done = run_script("for of in comm, MPI.COMM_SELF: localckpt.node_comm(of, 2)\n" + end, ranks=2)
    assert (done.returncode, done.stderr) == (0, "")


def test_folders_that_are_no_paths_are_an_error_that_names_the_argument():
    for wrong in 3, [3], 0.5:
        with pytest.raises(TypeError, match="checkpoint_dir is the path of a directory or a sequence of paths, not"):
            choose_tiers(wrong, 1, "checkpoint_dir")


@pytest.mark.parametrize("folders", [[], "", [""], "$EMPTY_HERE"])
def test_folders_without_a_name_are_an_error(folders, monkeypatch):
    monkeypatch.setenv("EMPTY_HERE", "")
    with pytest.raises(ValueError, match="checkpoint_dir=.* names no directory"):
        choose_tiers(folders, 1, "checkpoint_dir")


@pytest.mark.parametrize("given", ["abc", "1e9,x", "1e9,", "nan"])
def test_a_limit_that_is_no_number_is_an_error_that_names_the_option(limit, given):
    limit(given)
    with pytest.raises(ValueError, match="-localckpt_dir_limit is one number of bytes, .* not"):
        choose_tiers(["/first", "/second"], 1)


def test_an_option_with_a_variable_that_is_not_set_names_it_in_the_warning(folders, option, said):
    option("$NOT_SET_HERE/x")
    choose_directory()
    assert "the variable NOT_SET_HERE is not set" in said()[0][1]
