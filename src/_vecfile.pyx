# cython: language_level=3, embedsignature=True
"""HDF5 files of PETSc Vecs on any communicator."""

import sys
import warnings
from types import SimpleNamespace

import numpy as np
from petsc4py import PETSc

cimport cython
from cpython.bytearray cimport PyByteArray_AS_STRING
from mpi4py cimport libmpi as mpi
from petsc4py.PETSc cimport Vec

from hdf5 cimport H5F_SCOPE_GLOBAL, H5Fflush
from petsc cimport (PetscInt, PetscScalar, PetscVec, VecGetArrayRead, VecGetArrayWrite, VecGetBlockSize,
                    VecGetLocalSize, VecRestoreArrayRead, VecRestoreArrayWrite)
from localckpt._dataset cimport Dataset, dataset_names, find, hdf5_type, layout_sizes
from localckpt._errors cimport CHKERR, CHKH5, CHKMPI, begin_section_unless_interrupted, end_section
from localckpt._errors import ClosedFileError, LayoutError, MissingDatasetError, StorageError
from localckpt._handle cimport Handle, open_handle
from localckpt._transfer cimport create_rows, read_entries, write_entries

__all__ = ["VecFile"]

SCALAR = np.dtype(PETSc.ScalarType)


cdef PetscVec petsc_vec(object vec) except NULL:
    if not isinstance(vec, Vec) or (<Vec> vec).vec == NULL:
        raise TypeError("a Vec that was not created, or is destroyed" if isinstance(vec, Vec) else
                        f"not a petsc4py Vec but a {type(vec).__name__}")
    return <PetscVec> (<Vec> vec).vec


cdef Handle begin_section_on(VecFile file):
    """Begin a section, until :c:func:`end_section`, and return the file's handle."""
    begin_section_unless_interrupted()
    if file.closed:
        end_section()
        raise ClosedFileError(file._handle.closed_reason if file._handle is not None else "the file is closed",
                              file=file.path)
    return file._handle


cdef class VecFile:
    """VecFile(comm, path, mode="r", *, collective=None)

    An HDF5 file of PETSc Vecs on any communicator.

    Each rank of `comm` stores the part of a Vec or array that it owns; a dataset has the
    parts of all ranks in rank order.  The Vec itself may live on any communicator: on
    ``COMM_SELF`` each rank has a file of its own.  The file is an ordinary PETSc HDF5
    file: ``VecLoad``, h5py and h5dump read it, and VecFile reads files that ``VecView``
    wrote.  Opening is collective on `comm`.

    Each dataset carries a checksum of its numbers. Reading verifies it, unless the numbers
    are converted (to float64 from float32, say); a program that changes them in place has
    to delete the attribute ``localckpt_checksum``.  Threads wait for each other; on
    several ranks they have to come in the same order.  A forked child cannot use the files
    of its parent, and ends without finalizing PETSc and MPI (with exit status 0, or 1 after
    an exception).  It may open files on ``COMM_SELF``, but can take messages that its parent
    gets meanwhile: on several ranks, communicate again when the children are over.

    Parameters
    ----------
    comm : mpi4py.MPI.Intracomm or petsc4py.PETSc.Comm
        The file's communicator.
    path : str or os.PathLike
        The file, the same on every rank of `comm`.
    mode : {"r", "w", "x", "a"}
        "r": read. "w": create or truncate. "x": create; nothing may exist at the path, not
        even a link. "a": read and write, and create the file if it is missing.
    collective : bool, optional
        Use collective MPI-IO transfers (``PetscViewerHDF5SetCollective``): worth it for
        many ranks on a parallel filesystem.  By default the PETSc option
        ``-localckpt_collective`` decides, or else False.

    Raises
    ------
    MissingFileError, ExistingFileError, FileAccessError, NotHDF5Error, ClosedFileError, TransferError
        On every rank of `comm`.

    See Also
    --------
    petsc.PetscViewerHDF5Open
    """

    cdef readonly object comm
    cdef readonly str path
    cdef readonly str mode
    cdef Handle _handle

    @cython.embedsignature(False)  # Cython's own has the star in the wrong place
    def __init__(self, comm, path, mode="r", *, collective=None):
        if isinstance(comm, PETSc.Comm):
            comm = comm.tompi4py()
        self._handle = open_handle(comm, path, mode, collective)
        self.comm = comm
        self.path = self._handle.path
        self.mode = mode

    # ------------------------------------------------------------------ writing

    def write(self, name, vec):
        """Store a Vec under `name`, replacing one of the same name and sizes.

        Collective on the file's communicator.  `vec` may live on any communicator;
        its data is not copied.

        Parameters
        ----------
        name : str
            Any non-empty string; a '/' in it does not make a group.
        vec : petsc4py.PETSc.Vec

        Raises
        ------
        FileAccessError, LayoutError, ClosedFileError, TransferError
            On every rank of the file's communicator.

        See Also
        --------
        petsc.VecView, petsc.VecCreateMPIWithArray
        """
        cdef PetscVec v = NULL
        cdef PetscInt n = 0, block_size = 1
        cdef const PetscScalar* data = NULL
        cdef bint has_array = False  # a NULL array, of no entries, has to be given back, too
        cdef Handle handle = begin_section_on(self)
        error = None
        try:
            try:
                v = petsc_vec(vec)
                CHKERR(VecGetLocalSize(v, &n))
                CHKERR(VecGetBlockSize(v, &block_size))
                CHKERR(VecGetArrayRead(v, &data))
                has_array = True
            except Exception as exc:
                error = exc
            try:
                row_shape = () if block_size == 1 else (block_size,)
                write_entries(handle, name, data, n, block_size, row_shape, SCALAR, error)
            finally:
                if has_array:
                    VecRestoreArrayRead(v, &data)
        finally:
            end_section()

    def write_array(self, name, array):
        """Store each rank's `array` under `name`, concatenated along the first axis.

        Collective on the file's communicator.  Entries of PETSc's scalar type are
        written as a Vec whose block size is the number of entries in a row, other
        numbers as a plain dataset.  Only an array that is not C-contiguous is copied.

        Parameters
        ----------
        name : str
        array : numpy.ndarray
            Of float, complex or integer numbers. Its rows have the same shape on all ranks.

        Raises
        ------
        FileAccessError, LayoutError, ClosedFileError, TransferError
            On every rank of the file's communicator.
        """
        cdef long long row_size = 1
        cdef long long data = 0
        cdef Handle handle = begin_section_on(self)
        error = None
        n, row_shape, dtype = 0, (), SCALAR
        try:
            try:
                array = np.ascontiguousarray(array)
                row_size = max(1, int(np.prod(array.shape[1:], dtype=np.int64)))
                hdf5_type(array.dtype)
                n, row_shape, dtype, data = array.size, array.shape[1:], array.dtype, array.ctypes.data
                if dtype == SCALAR:  # a Vec has one block size
                    row_shape = () if row_size == 1 else (row_size,)
            except Exception as exc:
                error = exc
            write_entries(handle, name, <const void*> data, n, row_size, row_shape, dtype, error)
        finally:
            end_section()

    # ------------------------------------------------------------------ reading

    def read(self, name, vec, *, timestep=None):
        """Fill `vec` with the Vec stored under `name`.

        Collective on the file's communicator.  The bytes are read directly into the Vec's
        memory (``VecLoad`` would allocate another array and replace the Vec's).

        Parameters
        ----------
        name : str
        vec : petsc4py.PETSc.Vec
            Partitioned like the Vec that was written.
        timestep : int, optional
            The row to read from a dataset with the attribute ``timestepping``.

        Raises
        ------
        MissingDatasetError, LayoutError, ChecksumError, ClosedFileError, TransferError
            On every rank of the file's communicator.

        See Also
        --------
        petsc.VecLoad, petsc.PetscViewerHDF5SetTimestep
        """
        cdef PetscVec v = NULL
        cdef PetscInt n = 0
        cdef PetscScalar* data = NULL
        cdef bint has_array = False  # see write()
        cdef Handle handle = begin_section_on(self)
        error = None
        try:
            try:
                v = petsc_vec(vec)
                CHKERR(VecGetLocalSize(v, &n))
                CHKERR(VecGetArrayWrite(v, &data))
                has_array = True
            except Exception as exc:
                error = exc
            try:
                read_entries(handle, name, data, n, SCALAR, error, timestep)
            finally:
                if has_array:
                    VecRestoreArrayWrite(v, &data)
        finally:
            end_section()

    def read_array(self, name, array, *, timestep=None):
        """Fill `array` with this rank's part of the array stored under `name`.

        Collective on the file's communicator.

        Parameters
        ----------
        name : str
        array : numpy.ndarray
            C-contiguous and writeable, of as many entries as this rank has written.
        timestep : int, optional
            As for :meth:`read`.

        Raises
        ------
        MissingDatasetError, LayoutError, ChecksumError, ClosedFileError, TransferError
            On every rank of the file's communicator.
        """
        cdef long long data = 0
        cdef Handle handle = begin_section_on(self)
        error = None
        n, dtype = 0, SCALAR
        try:
            try:
                if not (array.flags.c_contiguous and array.flags.writeable):
                    raise LayoutError("the array to fill is not C-contiguous and writeable")
                hdf5_type(array.dtype)
                n, dtype, data = array.size, array.dtype, array.ctypes.data
            except Exception as exc:
                error = exc
            read_entries(handle, name, <void*> data, n, dtype, error, timestep)
        finally:
            end_section()

    def create_rows(self, name, rows, array, *, limit=2**28, room=float("inf"), checksums=False):
        """Create a dataset for arrays like `array`, one in each row, at its final place in the file.

        Collective on the file's communicator.  Nothing is written: each rank writes and reads its
        own part of a row by itself (:class:`localckpt._rows.Pool`).  For PETSc row k is timestep k
        of a Vec (``PetscViewerHDF5PushTimestepping``).

        Parameters
        ----------
        name : str
        rows : int
        array : numpy.ndarray
            As large as this rank's part of a row. Only its size and dtype matter.
        limit : int, optional
            Create fewer rows, but at least one, if all would take more bytes than this.
        room : float, optional
            The bytes that all rows of all ranks may take, the same on every rank.
        checksums : bool, optional
            Create a table for checksums of the rows, too. Reading a row verifies it, unless HDF5 converts its numbers.

        Returns
        -------
        first : int
            Offset in the file of this rank's part of row 0.
        stride : int
            Bytes from one row to the next.
        rows : int
            How many rows were created.
        checksums : int or None
            Offset in the file of the checksum of this rank's part of row 0.

        Raises
        ------
        FileAccessError, ClosedFileError, TransferError
            On every rank of the file's communicator.
        """
        cdef Handle handle = begin_section_on(self)
        try:
            return create_rows(handle, name, rows, limit, room, array, checksums)
        finally:
            end_section()

    # ------------------------------------------------------------------ contents

    def names(self):
        """Return the names of all datasets, sorted. Not collective.

        Returns
        -------
        list of str
        """
        cdef Handle handle = begin_section_on(self)
        try:
            return dataset_names(handle)
        except StorageError as exc:
            raise handle.located(exc)
        finally:
            end_section()

    def __contains__(self, name):
        cdef Handle handle = begin_section_on(self)
        try:
            find(handle, name)
            return True
        except MissingDatasetError:
            return False
        except StorageError as exc:
            raise handle.located(exc, name)
        finally:
            end_section()

    def sizes(self, name):
        """Return the local and the global number of entries stored under `name`. Not collective.

        Returns
        -------
        local : int or None
            As many as this rank has written; None if PETSc itself wrote the file, or another
            number of ranks.
        global : int

        Raises
        ------
        MissingDatasetError, ChecksumError, ClosedFileError, TransferError
        """
        cdef Dataset dataset
        cdef Handle handle = begin_section_on(self)
        try:
            dataset = Dataset()
            dataset.open(handle, find(handle, name))
            written = layout_sizes(handle, dataset.layout) if dataset.layout >= 0 else ()
            return (written[handle.rank] if len(written) == handle.size else None), dataset.entries()
        except StorageError as exc:
            raise handle.located(exc, name)
        finally:
            end_section()

    # ------------------------------------------------------------------ flushing and closing

    def flush(self):
        """Hand everything that was written to the operating system. Collective on the file's communicator.

        Raises
        ------
        ClosedFileError, TransferError
            On every rank of the file's communicator.
        """
        cdef Handle handle = begin_section_on(self)
        error = None
        try:
            try:
                with nogil:
                    CHKH5(H5Fflush(handle.id, H5F_SCOPE_GLOBAL))
            except StorageError as exc:
                error = handle.located(exc)
            handle.raise_everywhere(error)
        finally:
            end_section()

    def agree(self, bytearray flags not None):
        """Clear those of `flags` that are not set on every rank. Collective on the file's communicator.

        Parameters
        ----------
        flags : bytearray
            Each is 0 or 1. Changed in place; of the same length on every rank.
        """
        cdef char* bits = PyByteArray_AS_STRING(flags)
        cdef int n = <int> len(flags)
        cdef Handle handle = begin_section_on(self)
        try:
            if handle.size > 1 and n:
                with nogil:
                    CHKMPI(mpi.MPI_Allreduce(mpi.MPI_IN_PLACE, bits, n, mpi.MPI_UNSIGNED_CHAR,
                                             mpi.MPI_MIN, handle.comm))
        finally:
            end_section()

    def close(self):
        """Close the file, unless it is closed. Collective on the file's communicator.

        Raises
        ------
        TransferError
            On every rank of the file's communicator.
        """
        if self._handle is not None:
            self._handle.close()

    def drop(self):
        """Give up the file without waiting for other ranks. Not collective.

        A file of one rank is closed at once. A file of several ranks is closed when all of
        them have dropped it: the next time that a file is opened on its communicator, or at exit.
        """
        cdef Handle handle = self._handle
        self._handle = None
        if handle is not None and handle.viewer != NULL:
            handle.dropped = True
            if handle.size == 1:
                handle.close()

    @property
    def descriptor(self):
        """localckpt._descriptor.Descriptor: a plain descriptor of the file, which may outlive this object."""
        cdef Handle handle = begin_section_on(self)
        end_section()
        return handle.descriptor

    @property
    def closed(self):
        """bool: whether this object can no longer be used."""
        return self._handle is None or self._handle.viewer == NULL

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    def __del__(self):
        if not self.closed:
            try:
                try:
                    warnings.warn(f"{self!r} was not closed", ResourceWarning, source=self)
                finally:
                    self.drop()
            except Exception as exc:
                # Cython would print it through sys.excepthook, in which PyOP2 aborts the job.
                sys.unraisablehook(SimpleNamespace(exc_type=type(exc), exc_value=exc, object=self,
                                                   exc_traceback=exc.__traceback__, err_msg=None))

    def __repr__(self):
        return f"<{'closed ' if self.closed else ''}VecFile {self.path!r}, mode {self.mode!r}>"
