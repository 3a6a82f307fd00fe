"""Which directories are chosen, with which limits and messages."""

import logging
import os
import shutil
import tempfile

import pytest
from petsc4py import PETSc

from localckpt.storage import directories
from localckpt.storage.directories import (
    Directory,
    Tier,
    choose_directory,
    choose_tiers,
)
from localckpt.storage.run_directories import JOB_DIRECTORIES


@pytest.fixture
def job_directories(tmp_path, monkeypatch):
    """One directory for each variable that may name one; none of them is set yet."""
    for name in JOB_DIRECTORIES:
        monkeypatch.delenv(name, raising=False)
        (tmp_path / name).mkdir()
    (tmp_path / "system").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "system"))
    return tmp_path


@pytest.fixture
def option():
    """option(directory): as if -localckpt_dir were on the command line."""
    options = PETSc.Options()

    def give(directory):
        options["localckpt_dir"] = str(directory)

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
    """A directory in memory."""
    directory = tempfile.mkdtemp(dir="/dev/shm")
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def said(caplog):
    """said(): the messages so far, with their levels."""
    caplog.set_level(logging.DEBUG, logger="localckpt")
    return lambda: [(record.levelname, record.getMessage()) for record in caplog.records]


@pytest.mark.parametrize("first", range(len(JOB_DIRECTORIES)))
def test_the_first_variable_that_is_set_counts(first, job_directories, monkeypatch):
    for name in JOB_DIRECTORIES[first:]:
        monkeypatch.setenv(name, str(job_directories / name))
    assert choose_directory().path == str(job_directories / JOB_DIRECTORIES[first])


def test_without_variables_it_is_the_systems_temporary_directory(job_directories):
    assert choose_directory().path == str(job_directories / "system")


def test_the_option_comes_before_every_variable(job_directories, monkeypatch, option):
    monkeypatch.setenv(JOB_DIRECTORIES[0], str(job_directories / JOB_DIRECTORIES[0]))
    option(job_directories)
    assert choose_directory().path == str(job_directories)


def test_variables_in_the_option_are_expanded_on_each_node(job_directories, monkeypatch, option):
    monkeypatch.setenv("MINE", str(job_directories))
    option("$MINE/system")
    assert choose_tiers(None, 1) == [Tier(str(job_directories / "system"))]


@pytest.mark.parametrize("missing", ["", "$UNSET_HERE"])
def test_empty_names_in_the_option_are_left_out_with_a_warning(missing, job_directories, monkeypatch, option, said):
    monkeypatch.setenv("UNSET_HERE", "")
    option(f"{missing},{job_directories / 'system'}")
    assert choose_tiers(None, 1) == [Tier(str(job_directories / "system"))]
    assert [level for level, message in said() if "empty names" in message] == ["WARNING"]


@pytest.mark.parametrize("value", ["", "missing", "file"])
def test_a_variable_that_names_no_directory_is_passed_over(value, job_directories, monkeypatch):
    (job_directories / "file").touch()
    monkeypatch.setenv(JOB_DIRECTORIES[0], value and str(job_directories / value))
    monkeypatch.setenv(JOB_DIRECTORIES[1], str(job_directories / JOB_DIRECTORIES[1]))
    assert choose_directory().path == str(job_directories / JOB_DIRECTORIES[1])


def test_a_directory_in_memory_is_passed_over(job_directories, monkeypatch, in_ram):
    monkeypatch.setenv(JOB_DIRECTORIES[0], in_ram)
    assert choose_directory().path == str(job_directories / "system")


def test_a_directory_in_memory_is_used_where_the_option_names_it(job_directories, option, in_ram):
    option(in_ram)
    assert choose_directory() == Directory(in_ram, "tmpfs", choose_directory().free)


@pytest.fixture
def all_in_ram(job_directories, monkeypatch):
    """A node all of whose temporary directories are in memory."""
    kinds = {Directory.at(directory).filesystem for directory in (job_directories, "/var/tmp")}
    monkeypatch.setattr(directories, "IN_RAM", directories.IN_RAM | kinds)
    monkeypatch.chdir(job_directories)


def test_with_nothing_left_it_is_the_current_directory(all_in_ram, job_directories):
    assert os.path.samefile(choose_directory().path, job_directories)


def test_with_nothing_left_there_is_a_warning_that_says_what_to_do(all_in_ram, said):
    choose_directory()
    ((level, message),) = said()
    assert level == "WARNING" and "checkpoint_dir=" in message and "-localckpt_dir" in message


def test_a_network_filesystem_is_warned_of(job_directories, monkeypatch, said):
    kind = Directory.at(job_directories).filesystem
    monkeypatch.setattr(directories, "NETWORK", directories.NETWORK | {kind})
    choose_directory()
    ((level, message),) = said()
    assert level == "WARNING" and kind in message and str(job_directories / "system") in message


def test_a_local_filesystem_is_not_warned_of(job_directories, said):
    choose_directory()
    assert said() == []


def test_a_place_has_the_free_bytes_of_its_filesystem(tmp_path):
    assert Directory.at(tmp_path).free == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.1)


def test_a_link_is_on_the_filesystem_that_it_leads_to(tmp_path, in_ram):
    (tmp_path / "link").symlink_to(in_ram)
    assert Directory.at(tmp_path / "link").filesystem == "tmpfs"


def test_the_option_may_name_several_directories(option):
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


def test_directories_that_are_no_paths_are_an_error_that_names_the_argument():
    for wrong in 3, [3], 0.5:
        with pytest.raises(TypeError, match="checkpoint_dir is the path of a directory or a sequence of paths, not"):
            choose_tiers(wrong, 1, "checkpoint_dir")


@pytest.mark.parametrize("given", [[], "", [""], "$EMPTY_HERE"])
def test_directories_without_a_name_are_an_error(given, monkeypatch):
    monkeypatch.setenv("EMPTY_HERE", "")
    with pytest.raises(ValueError, match="checkpoint_dir=.* names no directory"):
        choose_tiers(given, 1, "checkpoint_dir")


@pytest.mark.parametrize("given", ["abc", "1e9,x", "1e9,", "nan"])
def test_a_limit_that_is_no_number_is_an_error_that_names_the_option(limit, given):
    limit(given)
    with pytest.raises(ValueError, match="-localckpt_dir_limit is one number of bytes, .* not"):
        choose_tiers(["/first", "/second"], 1)


def test_an_option_with_a_variable_that_is_not_set_names_it_in_the_warning(job_directories, option, said):
    option("$NOT_SET_HERE/x")
    choose_directory()
    assert "the variable NOT_SET_HERE is not set" in said()[0][1]
