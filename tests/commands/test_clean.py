"""``python -m localckpt clean``; what it removes, and what it must leave alone, is in tests/faults."""


def test_a_file_is_refused(run, tmp_path):
    (tmp_path / "file").touch()
    done = run("clean", tmp_path / "file")
    assert done.returncode == 2 and done.stderr.endswith(f"argument directory: {tmp_path}/file is not a directory\n")


def test_an_empty_directory_has_nothing_to_clean(run, tmp_path):
    done = run("clean", tmp_path)
    assert (done.returncode, done.stdout) == (0, f"nothing in {tmp_path}\n")
