"""More than 2 GiB in one array, which Linux does not move in one call. For `make soak`: takes gigabytes."""

import numpy as np
import pytest
from mpi4py import MPI

from localckpt.storage.store import Store

SIZE = 2**28 + 513


@pytest.mark.parametrize("engine", ["direct", "viewer"])
@pytest.mark.parametrize("mapped", [True, False])
def test_more_than_two_gigabytes_come_back(tmp_path, engine, mapped):
    store = Store(MPI.COMM_SELF, str(tmp_path / "large.h5"), engine=engine)
    array = np.arange(SIZE, dtype=float)
    stored = store.put("large", array)
    array[:] = -1
    back = store.get(stored, (SIZE,), array.dtype) if mapped else store.get(stored, out=array)
    assert back[0] == 0 and back[-1] == SIZE - 1
    assert all((back[i : i + 2**22] == np.arange(i, min(i + 2**22, SIZE))).all() for i in range(0, SIZE, 2**22))
