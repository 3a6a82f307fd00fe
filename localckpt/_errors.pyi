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

class MissingFileError(StorageError, FileNotFoundError): ...  # type: ignore[misc]
class ExistingFileError(StorageError, FileExistsError): ...  # type: ignore[misc]
class FileAccessError(StorageError, PermissionError): ...  # type: ignore[misc]
class NotHDF5Error(StorageError, OSError): ...  # type: ignore[misc]
class MissingDatasetError(StorageError, KeyError): ...
class LayoutError(StorageError, ValueError): ...
class ClosedFileError(StorageError, ValueError): ...
class TransferError(StorageError, OSError): ...  # type: ignore[misc]
class ChecksumError(TransferError): ...  # type: ignore[misc]
class LostCheckpointError(StorageError, OSError): ...  # type: ignore[misc]
