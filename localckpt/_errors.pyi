class StorageError(Exception):
    cause: str
    file: str | None
    dataset: str | None
    rank: int | None
    errno: int | None
    def __init__(
        self,
        cause: str,
        file: str | None = None,
        dataset: str | None = None,
        rank: int | None = None,
        errno: int | None = None,
    ) -> None: ...

class FileNotFound(StorageError, FileNotFoundError): ...  # type: ignore[misc]
class FileExists(StorageError, FileExistsError): ...  # type: ignore[misc]
class NoAccess(StorageError, PermissionError): ...  # type: ignore[misc]
class NotHDF5(StorageError, OSError): ...  # type: ignore[misc]
class UnknownDataset(StorageError, KeyError): ...
class LayoutMismatch(StorageError, ValueError): ...
class ClosedFile(StorageError, ValueError): ...
class TransferError(StorageError, OSError): ...  # type: ignore[misc]
class ChecksumMismatch(TransferError): ...  # type: ignore[misc]
class CheckpointError(StorageError, OSError): ...  # type: ignore[misc]
