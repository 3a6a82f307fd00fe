"""Ctrl-C waits until a collective section is over, and leaves a store whole."""

SECTION = """
import signal, threading, time
from localckpt._collective import interrupts_held

"""


def test_an_interrupted_save_leaves_a_store_whole(run_script, tmp_path):
    done = run_script(
        """
import resource, signal
from localckpt import _descriptor
from localckpt.storage.store import Store
store, calls, at = Store(MPI.COMM_SELF, sys.argv[1]), [], 0


class Interrupting:
    # What rows are reserved with, the n-th look at which meets Ctrl-C.
    def __getattr__(self, name):
        calls.append(name)
        if len(calls) == at:
            os.kill(os.getpid(), signal.SIGINT)
        return getattr(resource, name)


_descriptor.resource = Interrupting()
stored, interrupted = [], 0
for key in range(30):
    at = key % 3
    calls.clear()
    try:
        store.put(f"key {key}", np.full(10, float(key)))
    except KeyboardInterrupt:
        interrupted += 1
    stored.append(store.put(f"key {key}", np.full(10, key + 0.5)))
for key, one in enumerate(stored):
    assert (store.get(one, (10,), np.dtype(float)) == key + 0.5).all()
assert interrupted > 0
""",
        tmp_path / "own.h5",
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_handler_that_is_set_meanwhile_stays(run_script):
    done = run_script(
        SECTION
        + """
got = []
with interrupts_held():
    signal.signal(signal.SIGINT, lambda *args: got.append(1))
os.kill(os.getpid(), signal.SIGINT)
time.sleep(0.1)
assert got == [1], got
"""
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_child_that_was_forked_in_a_section_of_another_thread_can_be_interrupted(run_script):
    done = run_script(
        SECTION
        + """
entered, leave = threading.Event(), threading.Event()


def section():
    with interrupts_held():
        entered.set()
        leave.wait()


thread = threading.Thread(target=section)
thread.start()
entered.wait()
ready, tell = os.pipe()
child = os.fork()
if child == 0:
    try:
        os.write(tell, b"!")
        time.sleep(10)
    except KeyboardInterrupt:
        os._exit(5)
    os._exit(6)
os.read(ready, 1)
os.kill(child, signal.SIGINT)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 5
leave.set()
thread.join()
"""
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_child_that_was_forked_during_a_save_of_another_thread_can_let_go_of_the_store(run_script, tmp_path):
    done = run_script(
        """
import threading
from localckpt.storage.store import Store
store = Store(MPI.COMM_SELF, sys.argv[1])
stored = store.put("a", np.ones(10))
entered, leave = threading.Event(), threading.Event()


def hold():
    with store._lock:
        entered.set()
        leave.wait()


thread = threading.Thread(target=hold)
thread.start()
entered.wait()
child = os.fork()
if child == 0:
    store.retire()
    os._exit(5)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 5
leave.set()
thread.join()
""",
        tmp_path / "own.h5",
    )
    assert (done.returncode, done.stderr) == (0, "")
