from types import TracebackType

from mpi4py.MPI import Comm

class interrupts_held:
    def __enter__(self) -> None: ...
    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

def raise_everywhere(comm: Comm, error: BaseException | None) -> None: ...
