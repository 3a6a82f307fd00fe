# The part of PETSc's C API that localckpt uses, each name with the header it is from.
# PetscInt and PetscScalar are whatever size and kind PETSc was configured with.

from hdf5 cimport hid_t
from mpi4py.libmpi cimport MPI_Comm

cdef extern from "petscsys.h" nogil:
    ctypedef int PetscErrorCode
    ctypedef int PetscErrorType
    ctypedef long long PetscInt
    ctypedef int PetscMPIInt
    ctypedef double PetscReal
    ctypedef struct PetscScalar:
        pass
    ctypedef enum PetscBool:
        PETSC_FALSE
        PETSC_TRUE
    ctypedef int PetscClassId
    ctypedef int PetscFileMode
    ctypedef void* PetscObject
    ctypedef struct _p_PetscViewer
    ctypedef _p_PetscViewer* PetscViewer
    enum:
        PETSC_DECIDE
    PetscFileMode FILE_MODE_READ
    PetscFileMode FILE_MODE_APPEND
    int PETSC_VERSION_MAJOR, PETSC_VERSION_MINOR, PETSC_VERSION_SUBMINOR
    PetscErrorCode PetscFinalized(PetscBool*)
    PetscErrorCode PetscCommDuplicate(MPI_Comm, MPI_Comm*, PetscMPIInt*)
    PetscErrorCode PetscCommDestroy(MPI_Comm*)
    PetscErrorCode PetscObjectSetName(PetscObject, const char*)

cdef extern from "petscerror.h" nogil:
    ctypedef PetscErrorCode (*PetscErrorHandler)(
        MPI_Comm, int, const char*, const char*, PetscErrorCode, PetscErrorType,
        const char*, void*)
    PetscErrorCode PetscPushErrorHandler(PetscErrorHandler, void*)
    PetscErrorCode PetscPopErrorHandler()

cdef extern from "petsclog.h" nogil:
    ctypedef int PetscLogEvent
    PetscErrorCode PetscClassIdRegister(const char*, PetscClassId*)
    PetscErrorCode PetscLogEventRegister(const char*, PetscClassId, PetscLogEvent*)
    PetscErrorCode PetscLogEventBegin(PetscLogEvent, PetscObject, PetscObject, PetscObject, PetscObject)
    PetscErrorCode PetscLogEventEnd(PetscLogEvent, PetscObject, PetscObject, PetscObject, PetscObject)

cdef extern from *:
    """
    #include <petsclog.h>
    #if !defined(PETSC_USE_LOG)  /* the counters exist only in a PETSc with logging */
      #define count_message(nbytes) ((void)(nbytes))
    #elif PETSC_VERSION_GE(3, 20, 0)
      #define count_message(nbytes) ((void)PetscAddLogDouble(&petsc_send_ct, &petsc_send_ct_th, 1), \\
                                     (void)PetscAddLogDouble(&petsc_send_len, &petsc_send_len_th, (nbytes)))
    #else
      #define count_message(nbytes) (petsc_send_ct += 1, petsc_send_len += (nbytes))
    #endif
    """
    void count_message(long long nbytes) noexcept nogil  # as of a message that is sent

cdef extern from "petscvec.h" nogil:
    ctypedef struct _p_Vec
    ctypedef _p_Vec* PetscVec "Vec"
    PetscErrorCode VecCreateMPIWithArray(MPI_Comm, PetscInt, PetscInt, PetscInt, const PetscScalar*, PetscVec*)
    PetscErrorCode VecDestroy(PetscVec*)
    PetscErrorCode VecView(PetscVec, PetscViewer)
    PetscErrorCode VecGetLocalSize(PetscVec, PetscInt*)
    PetscErrorCode VecGetBlockSize(PetscVec, PetscInt*)
    PetscErrorCode VecGetArrayRead(PetscVec, const PetscScalar**)
    PetscErrorCode VecRestoreArrayRead(PetscVec, const PetscScalar**)
    PetscErrorCode VecGetArrayWrite(PetscVec, PetscScalar**)
    PetscErrorCode VecRestoreArrayWrite(PetscVec, PetscScalar**)

cdef extern from "petscviewerhdf5.h" nogil:
    PetscErrorCode PetscViewerDestroy(PetscViewer*)
    PetscErrorCode PetscViewerHDF5Open(MPI_Comm, const char*, PetscFileMode, PetscViewer*)
    PetscErrorCode PetscViewerHDF5SetCollective(PetscViewer, PetscBool)
    PetscErrorCode PetscViewerHDF5SetBaseDimension2(PetscViewer, PetscBool)
    PetscErrorCode PetscViewerHDF5SetDefaultTimestepping(PetscViewer, PetscBool)
    PetscErrorCode PetscViewerHDF5SetSPOutput(PetscViewer, PetscBool)
    PetscErrorCode PetscViewerHDF5GetFileId(PetscViewer, hid_t*)
