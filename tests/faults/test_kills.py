"""A run that resumes and is killed ends as one that was not interrupted. ``make kill`` does more of this."""

import kill_runs


def test_run_on_two_ranks_that_is_killed_twice_ends_as_an_uninterrupted_one(tmp_path):
    line = kill_runs.run(("burgers", "hand", "disk", "sweeps", 2), seed=1, where=tmp_path, kills=2)
    assert line["right"], line
