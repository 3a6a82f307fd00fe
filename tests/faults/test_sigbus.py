"""A mapped checkpoint that the disk does not deliver, tried by truncating the file underneath."""

import signal

import pytest

STORE = """
import time
from localckpt.storage.store import Store
store = Store(MPI.COMM_SELF, sys.argv[1] + f"/{comm.rank}.h5", cleanup=False)
stored = store.put("state", np.ones(10**6))
array = store.get(stored, (10**6,), np.dtype(float))


def truncate():
    with open(store.path, "r+b") as file:
        file.truncate(4096)

"""


@pytest.mark.parametrize("ranks", [0, 2])
def test_one_message_and_the_end(tmp_path, run_script, ranks):
    done = run_script(
        STORE
        + """
if comm.rank == comm.size - 1:
    truncate()
    array.sum()
comm.barrier()
""",
        tmp_path,
        ranks=ranks,
    )
    assert done.returncode not in (0, 110, -signal.SIGBUS), done.stderr
    (message,) = [line for line in done.stderr.splitlines() if "SIGBUS" in line]
    assert "dataset 'state'" in message and f"{max(ranks - 1, 0)}.h5" in message


def test_other_mappings_are_none_of_our_business(tmp_path, run_script):
    done = run_script(
        """
import ctypes, mmap
ctypes.CDLL(None).signal(7, ctypes.c_void_p(0))  # not PETSc's handler, but the system's
"""
        + STORE
        + """
with open(sys.argv[1] + "/other", "w+b") as file:
    file.truncate(8192)
    other = mmap.mmap(file.fileno(), 8192)
    file.truncate(0)
print("still here", flush=True)
other[5000]
""",
        tmp_path,
    )
    assert (done.returncode, done.stdout) == (-signal.SIGBUS, "still here\n")
    assert "localckpt" not in done.stderr


def test_a_handler_that_was_there_is_called_for_other_faults(tmp_path, run_script):
    done = run_script(
        "import faulthandler; faulthandler.enable()\n"
        + STORE
        + """
os.kill(os.getpid(), 7)
""",
        tmp_path,
    )
    assert "Fatal Python error: Bus error" in done.stderr and "localckpt:" not in done.stderr


def test_a_fault_that_was_to_be_ignored_ends_the_process(tmp_path, run_script):
    # As it does without localckpt: ignored, the same instruction would fault for ever.
    done = run_script(
        "import ctypes, mmap\nctypes.CDLL(None).signal(7, ctypes.c_void_p(1))\n"
        + STORE
        + """
os.kill(os.getpid(), 7)  # this one can be ignored
with open(sys.argv[1] + "/other", "w+b") as file:
    file.truncate(8192)
    other = mmap.mmap(file.fileno(), 8192)
    file.truncate(0)
print("still here", flush=True)
other[5000]
""",
        tmp_path,
    )
    assert (done.returncode, done.stdout) == (-signal.SIGBUS, "still here\n")
    assert "localckpt" not in done.stderr


def test_a_handler_that_came_later_is_not_called_for_ever(tmp_path, run_script):
    done = run_script(
        STORE
        + """
import faulthandler
faulthandler.enable()
array = store.get(stored, (10**6,), np.dtype(float))
os.kill(os.getpid(), 7)
""",
        tmp_path,
    )
    assert done.returncode not in (0, 110) and done.stderr.count("Fatal Python error: Bus error") == 1


def test_a_mapping_that_is_gone_is_forgotten(tmp_path, run_script):
    done = run_script(
        STORE
        + """
arrays = [store.get(stored, (10**6,), np.dtype(float)) for i in range(50)]
del arrays[10:40], array
truncate()
arrays[5].sum()
""",
        tmp_path,
    )
    assert done.returncode not in (0, 110) and "dataset 'state'" in done.stderr
