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

    What is stored under a name is the part of a Vec or array that each rank of `comm`
    owns, in rank order, whatever communicator the Vec itself lives on: on
    ``COMM_SELF`` each rank has a file of its own.  The file is an ordinary PETSc HDF5
    file: ``VecLoad``, h5py and h5dump read it, and files that ``VecView`` wrote are
    read here.  Opening is collective on `comm`.

    Each dataset carries a checksum of its numbers, which reading verifies (not where it
    converts them, to float64 from float32, say); a program that changes them in place has
    to delete the attribute ``localckpt_checksum``.  Threads wait for each other; on
    several ranks they have to come in the same order.  A forked child cannot use the files
    of its parent, and ends without finalizing PETSc and MPI (with exit status 0, or 1 after
    an exception).

    Parameters
    ----------
    comm : mpi4py.MPI.Intracomm or petsc4py.PETSc.Comm
        The file's communicator.
    path : str or os.PathLike
        The file, the same on every rank of `comm`.
    mode : {"r", "w", "x", "a"}
        Read; create or truncate; create what must not exist, a link included; read and
        write, creating the file if it is missing.
    collective : bool, optional
        Use collective MPI-IO transfers (``PetscViewerHDF5SetCollective``): worth it for
        many ranks on a parallel filesystem.  Default: the PETSc option
        ``-localckpt_collective``, else False.

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
        """Store a Vec under `name`, replacing what has the same name and sizes.

        Collective on the file's communicator.  `vec` may live on any communicator;
        its data is not copied.

        Parameters
        ----------
        name : str
            Any non-empty string; '/' makes no group.
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
        cdef PetscInt n = 0, bs = 1
        cdef const PetscScalar* data = NULL
        cdef bint has_array = False  # a NULL array, of no entries, has to be given back, too
        cdef Handle handle = begin_section_on(self)
        error = None
        try:
            try:
                v = petsc_vec(vec)
                CHKERR(VecGetLocalSize(v, &n))
                CHKERR(VecGetBlockSize(v, &bs))
                CHKERR(VecGetArrayRead(v, &data))
                has_array = True
            except Exception as exc:
                error = exc
            try:
                write_entries(handle, name, data, n, bs, () if bs == 1 else (bs,), SCALAR, error)
            finally:
                if has_array:
                    VecRestoreArrayRead(v, &data)
        finally:
            end_section()

    def write_array(self, name, array):
        """Store each rank's `array` under `name`, concatenated along the first axis.

        Collective on the file's communicator.  Entries of PETSc's scalar type are
        written as a Vec whose block size is the number of entries in a row; other
        numbers as a plain dataset.  Copies only an array that is not C-contiguous.

        Parameters
        ----------
        name : str
        array : numpy.ndarray
            Float, complex or integer; the rows are of one shape on all ranks.

        Raises
        ------
        FileAccessError, LayoutError, ClosedFileError, TransferError
            On every rank of the file's communicator.
        """
        cdef long long row = 1
        cdef long long data = 0
        cdef Handle handle = begin_section_on(self)
        error = None
        n, rows, dtype = 0, (), SCALAR
        try:
            try:
                array = np.ascontiguousarray(array)
                row = max(1, int(np.prod(array.shape[1:], dtype=np.int64)))
                hdf5_type(array.dtype)
                n, rows, dtype, data = array.size, array.shape[1:], array.dtype, array.ctypes.data
                if dtype == SCALAR:  # a Vec has one block size
                    rows = () if row == 1 else (row,)
            except Exception as exc:
                error = exc
            write_entries(handle, name, <const void*> data, n, row, rows, dtype, error)
        finally:
            end_section()

    # ------------------------------------------------------------------ reading

    def read(self, name, vec, *, timestep=None):
        """Fill `vec` with what is stored under `name`.

        Collective on the file's communicator.  The bytes land once, in the Vec's own
        memory (``VecLoad`` would allocate an array and replace the Vec's).

        Parameters
        ----------
        name : str
        vec : petsc4py.PETSc.Vec
            Partitioned like the one that was written.
        timestep : int, optional
            Which row to read of a dataset with the attribute ``timestepping``.

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
        """Fill `array` with this rank's part of what is stored under `name`.

        Collective on the file's communicator.

        Parameters
        ----------
        name : str
        array : numpy.ndarray
            C-contiguous and writeable, of as many entries as were written here.
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
        """Make a dataset for arrays like `array`, one in each row, at its final place in the file.

        Collective on the file's communicator.  Nothing is written: each rank moves its own
        part of a row by itself (:class:`localckpt._rows.Pool`).  To PETSc row k is timestep k
        (``PetscViewerHDF5PushTimestepping``) of a Vec.

        Parameters
        ----------
        name : str
        rows : int
        array : numpy.ndarray
            As large as this rank's part of a row.
        limit : int, optional
            Make fewer rows, but at least one, where they would take more bytes than this.
        room : float, optional
            Bytes that all rows of all ranks may take at most, the same on every rank.
        checksums : bool, optional
            Make a place for checksums of the rows, too, which reading a row verifies.

        Returns
        -------
        first : int
            Where in the file this rank's part of row 0 is.
        stride : int
            Bytes from one row to the next.
        rows : int
        checksums : int or None
            Where the checksum of this rank's part of row 0 is.

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

    # ------------------------------------------------------------------ looking

    def names(self):
        """Names of all datasets, sorted. Not collective.

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
        """Local and global number of entries stored under `name`. Not collective.

        Returns
        -------
        local : int or None
            What this rank wrote; None for a file that PETSc itself wrote, or that
            another number of ranks wrote.
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

    # ------------------------------------------------------------------ the end

    def flush(self):
        """Bring all that was written to the system. Collective on the file's communicator.

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
        """Keep those of `flags` that every rank has set. Collective on the file's communicator.

        Parameters
        ----------
        flags : bytearray
            0 or 1 each, changed in place; as many on every rank.
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
        """Close the file; again is no error. Collective on the file's communicator.

        Raises
        ------
        TransferError
            On every rank of the file's communicator.
        """
        if self._handle is not None:
            self._handle.close()

    def drop(self):
        """Do without this file from now on. Not collective.

        A file of one rank is closed at once; one of several when all of them have
        dropped it: the next time that a file is opened on its communicator, or at exit.
        """
        cdef Handle handle = self._handle
        self._handle = None
        if handle is not None and handle.viewer != NULL:
            handle.dropped = True
            if handle.size == 1:
                handle.close()

    @property
    def descriptor(self):
        """localckpt._rows.Descriptor: a plain one of the file; it may outlive this object."""
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
