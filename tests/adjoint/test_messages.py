"""Who talks to whom: checkpoints reach no rank beyond the checkpoint_comm."""

import pathlib
import subprocess

import pytest

SCRIPT = """
import ctypes
import firedrake as fd
from firedrake.adjoint import get_working_tape
from pyop2 import op2
from localckpt.adjoint import enable_disk_checkpointing
from localckpt.adjoint.saving import current_checkpointer

counter = ctypes.CDLL(os.environ["LD_PRELOAD"])
counter.count_get.restype = ctypes.c_long
counter.count_last.restype = ctypes.c_char_p


class counting:
    '''Calls in this block on communicators of more ranks than `limit`.'''
    def __init__(self, limit=1):
        self.limit = limit

    def __enter__(self):
        self.before = counter.count_get()
        counter.count_start(self.limit)
        return self

    def __exit__(self, *exc):
        counter.count_stop()
        self.calls = counter.count_get() - self.before
        self.last = counter.count_last().decode()


mesh = fd.UnitSquareMesh(8, 8)
V = fd.FunctionSpace(mesh, "CG", 1)
spaces = {
    "CG1": V,
    "mixed with Real": fd.FunctionSpace(mesh, "CG", 2) * fd.FunctionSpace(mesh, "R", 0),
    "vector": fd.VectorFunctionSpace(mesh, "CG", 1),
    "dual": V.dual(),
}


def halo(function):
    return {dat.halo_valid for dat in function.dat if isinstance(dat, op2.Dat)}


def filled(V, number, stale):
    '''A Function like no other, as after a local write or as after an exchange.'''
    f = fd.Function(V)
    for dat in f.dat:
        rank = comm.rank if isinstance(dat, op2.Dat) else 0  # all have the same Real
        dat.data_wo[...] = np.random.default_rng([number, rank]).standard_normal(dat.data_ro.shape)
        if not stale:
            dat.data_ro_with_halos
    assert halo(f) == {not stale}
    return f


def save_and_restore(limit):
    '''20 saves and 20 restores of each kind: what made such calls, how many and the last one.'''
    checkpointer = current_checkpointer()
    found = {}
    for name, V in spaces.items():
        for stale in (True, False):
            functions = [filled(V, number, stale) for number in range(20)]
            with counting(limit) as saving:
                saved = [checkpointer.save(f) for f in functions]
            with counting(limit) as loading:
                restored = [s.load() for s in saved]
            for f, g in zip(functions, restored):
                assert all((d.data_ro == e.data_ro).all() for d, e in zip(f.dat, g.dat))
                assert halo(f) == halo(g)
            for what, block in ("save", saving), ("restore", loading):
                if block.calls:
                    found[name, stale, what] = block.calls, block.last
    return found

"""

# Functions whose halos have to be exchanged and a shared file reach other ranks.
SHIM_WORKS = """
f = filled(V, 0, True)
with counting() as exchange:
    f.dat.data_ro_with_halos
f = filled(spaces["mixed with Real"], 0, True)
own = sys.argv[1] + f"/{comm.rank}.h5"
with fd.checkpointing.TemporaryFunctionCheckpointFile(MPI.COMM_SELF, own, "w") as file:
    with counting() as theirs:
        file.save_function(f, "f", 0)
with counting(2) as beyond:
    VecFile(comm, sys.argv[1] + "/all.h5", "w").close()
assert exchange.calls > 0 and theirs.calls > 0 and beyond.calls > 0
"""


@pytest.fixture
def run_counted(tmp_path, run_script):
    """run_counted(code, *args): run `code` after SCRIPT on 3 ranks whose MPI calls are counted."""
    source, library = pathlib.Path(__file__).with_name("count_messages.c"), tmp_path / "count_messages.so"
    subprocess.run(["mpicc", "-shared", "-fPIC", "-Wall", "-Werror", "-o", library, source], check=True)

    def run(code, *args):
        before = ["mpiexec", "-n", "3", "env", f"LD_PRELOAD={library}"]
        result = run_script(SCRIPT + code, *args, before=before, seconds=90)
        assert result.returncode == 0, result.stderr

    return run


def test_file_per_rank_makes_no_message(run_counted, tmp_path):
    run_counted(
        SHIM_WORKS
        + """
enable_disk_checkpointing(checkpoint_dir=sys.argv[1])
found = save_and_restore(1)
assert not found, found
""",
        tmp_path,
    )


def test_file_of_two_ranks_reaches_no_third(run_counted, tmp_path):
    run_counted(
        """
pair = comm.Split(comm.rank // 2)
for engine in ("direct", "viewer"):
    get_working_tape()._package_data.clear()
    enable_disk_checkpointing(checkpoint_comm=pair, checkpoint_dir=sys.argv[1], engine=engine)
    found = save_and_restore(2)
    assert not found, (engine, found)
""",
        tmp_path,
    )
