"""The example in plain PETSc, run as its users run it."""

from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "petsc_heat.py"


@pytest.mark.parametrize("ranks", [0, 2], ids=["alone", "2 ranks"])
def test_every_schedule_gives_the_gradient(ranks, run_script):
    ran = run_script(
        f"""import runpy
sys.argv = [{str(EXAMPLE)!r}, "--cells", "16", "--steps", "40"]
runpy.run_path(sys.argv[0], run_name="__main__")
assert "firedrake" not in sys.modules
""",
        ranks=ranks,
    )
    assert ran.returncode == 0, ran.stderr
    _, *table, taylor = ran.stdout.splitlines()
    rows = {name: (values, int(steps), float(written)) for name, *values, steps, written, _ in map(str.split, table)}
    assert list(rows) == ["SingleMemoryStorageSchedule", "SingleDiskStorageSchedule", "Revolve", "HRevolve"]
    assert len({tuple(values) for values, _, _ in rows.values()}) == 1  # to six digits
    assert [steps > 40 for _, steps, _ in rows.values()] == [False, False, True, True]
    assert [written > 0 for _, _, written in rows.values()] == [False, True, False, True]
    assert float(taylor.split()[-1]) > 1.9
