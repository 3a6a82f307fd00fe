# cython: language_level=3
"""PETSc's TSTrajectory type "localckpt": its callbacks, which hand the Vecs of each step to Python.

PETSc's manual page of ``TSTrajectoryRegister`` and its own type ``basic`` (src/ts/trajectory/impls/basic/trajbasic.c)
say what is stored: the solution and, after the first step, the stages and the time of the step before; with
``TSForwardSetUp`` also the sensitivities, which are dense Mats.
"""

from petsc4py import PETSc

from cpython.ref cimport Py_DECREF, Py_INCREF
from mpi4py.libmpi cimport MPI_Comm
from mpi4py.MPI cimport Intracomm

import localckpt._petsc  # no-cython-lint  (first: reports a PETSc other than the one of the build)

from petsc cimport (PETSC_VERSION_MAJOR, PETSC_VERSION_MINOR, PETSC_VERSION_SUBMINOR, PetscBool, PetscErrorCode,
                    PetscErrorType, PetscInt, PetscObject, PetscReal, PetscVec, PetscViewer)

from localckpt._errors import StorageError

__all__ = ["register"]

cdef extern from "petsc/private/tsimpl.h" nogil:
    MPI_Comm PETSC_COMM_SELF
    PetscErrorCode PETSC_ERR_LIB
    PetscErrorType PETSC_ERROR_INITIAL
    PetscErrorCode PetscError(MPI_Comm, int, const char*, const char*, PetscErrorCode, PetscErrorType, const char*, ...)
    PetscErrorCode PetscFree(void*)
    PetscErrorCode PetscObjectGetComm(PetscObject, MPI_Comm*)
    PetscErrorCode PetscViewerASCIIPrintf(PetscViewer, const char*, ...)

    ctypedef struct _p_Mat
    ctypedef _p_Mat* PetscMat "Mat"
    struct _p_TS:
        PetscBool forward_solve
        PetscBool adjointsetupcalled
        PetscVec* vecs_sensi
    ctypedef _p_TS* PetscTS "TS"
    PetscErrorCode TSGetSolution(PetscTS, PetscVec*)
    PetscErrorCode TSGetStages(PetscTS, PetscInt*, PetscVec**)
    PetscErrorCode TSGetPrevTime(PetscTS, PetscReal*)
    PetscErrorCode TSSetTimeStep(PetscTS, PetscReal)
    PetscErrorCode TSForwardGetSensitivities(PetscTS, PetscInt*, PetscMat*)
    PetscErrorCode TSForwardGetStages(PetscTS, PetscInt*, PetscMat**)

    struct _p_TSTrajectory
    ctypedef _p_TSTrajectory* PetscTSTrajectory "TSTrajectory"
    struct _TSTrajectoryOps:
        PetscErrorCode (*setup)(PetscTSTrajectory, PetscTS) noexcept
        PetscErrorCode (*set)(PetscTSTrajectory, PetscTS, PetscInt, PetscReal, PetscVec) noexcept
        PetscErrorCode (*get)(PetscTSTrajectory, PetscTS, PetscInt, PetscReal*) noexcept
        PetscErrorCode (*view)(PetscTSTrajectory, PetscViewer) noexcept
        PetscErrorCode (*reset)(PetscTSTrajectory) noexcept
        PetscErrorCode (*destroy)(PetscTSTrajectory) noexcept
    struct _p_TSTrajectory:
        _TSTrajectoryOps ops[1]
        PetscBool solution_only
        PetscBool adjoint_solve_mode
        PetscInt diskreads
        PetscInt diskwrites
        char* dirname
        void* data
    PetscErrorCode TSTrajectoryRegister(const char*, PetscErrorCode (*)(PetscTSTrajectory, PetscTS) noexcept)

cdef extern from "petsc4py/petsc4py.h":
    bint Py_IsInitialized() nogil
    int import_petsc4py() except -1
    object PyPetscVec_New(PetscVec)
    object PyPetscMat_New(PetscMat)

# PETSc's private structures may change from one patch release to the next.
compiled, used = (PETSC_VERSION_MAJOR, PETSC_VERSION_MINOR, PETSC_VERSION_SUBMINOR), PETSc.Sys.getVersion()
if used != compiled:
    raise ImportError("localckpt.trajectory was compiled for PETSc {}.{}.{}, but petsc4py uses {}.{}.{}: compile "
                      "localckpt again, with 'pip install --no-build-isolation'".format(*compiled, *used))

import_petsc4py()
cdef object make_trajectory = None


def register(make):
    """Make the type "localckpt" known to PETSc. Not collective.

    Parameters
    ----------
    make : callable
        Called without arguments for each TSTrajectory of the type. Returns an object with the methods
        ``set_up(comm, error)``, ``save(step, times, state)``, ``load(step, state)``, which returns these times,
        ``summary()``, whose text is viewed, and ``reset()``. A state is a list of petsc4py Vecs and dense Mats.
    """
    global make_trajectory
    make_trajectory = make
    call(TSTrajectoryRegister(b"localckpt", create))


cdef int call(PetscErrorCode code) except -1:
    if code:
        raise PETSc.Error(code)
    return 0


cdef PetscErrorCode report(object exc, const char* function) noexcept:
    """Have PETSc print, or petsc4py raise, the exception in words; on this rank, whichever it is."""
    words = str(exc) if isinstance(exc, StorageError) else f"{type(exc).__name__}: {exc}"
    cdef bytes text = words.encode(errors="backslashreplace")
    return PetscError(PETSC_COMM_SELF, 0, function, b"localckpt", PETSC_ERR_LIB, PETSC_ERROR_INITIAL, b"%s",
                      <const char*> text)


cdef int check(PetscTSTrajectory tj, PetscTS ts) except -1:
    """Refuse what would give wrong numbers or remove files of others."""
    if tj.dirname != NULL:
        name = (<bytes> tj.dirname).decode(errors="replace")
        PetscFree(tj.dirname)
        raise ValueError(f"-ts_trajectory_dirname {name} is not for the trajectory type localckpt: name a directory "
                         "with -localckpt_dir")
    if tj.solution_only and ts != NULL and (ts.adjointsetupcalled or ts.vecs_sensi != NULL):
        raise ValueError("-ts_trajectory_solution_only leaves out the stages, which TSAdjoint needs")
    return 0


cdef list state_of(PetscTSTrajectory tj, PetscTS ts, PetscInt step, PetscVec solution):
    """What makes up a step, each Vec and Mat once: some methods have the solution among their stages."""
    cdef PetscInt i, n = 0
    cdef PetscVec* stages = NULL
    cdef PetscMat sensitivities = NULL
    cdef PetscMat* stage_sensitivities = NULL
    cdef list state = [PyPetscVec_New(solution)]
    if step and not tj.solution_only:
        call(TSGetStages(ts, &n, &stages))
        for i in range(n):
            if stages[i] != solution:
                state.append(PyPetscVec_New(stages[i]))
    if ts != NULL and ts.forward_solve:
        call(TSForwardGetSensitivities(ts, NULL, &sensitivities))
        state.append(PyPetscMat_New(sensitivities))
        if step:
            call(TSForwardGetStages(ts, &n, &stage_sensitivities))
            for i in range(n):
                if stage_sensitivities[i] != sensitivities:
                    state.append(PyPetscMat_New(stage_sensitivities[i]))
    return state


# The callbacks, which report their exceptions.
cdef PetscErrorCode create(PetscTSTrajectory tj, PetscTS ts) noexcept with gil:
    try:
        trajectory = make_trajectory()
        Py_INCREF(trajectory)
        tj.data = <void*> trajectory
        tj.ops[0].setup = set_up
        tj.ops[0].set = set_step
        tj.ops[0].get = get_step
        tj.ops[0].view = view
        tj.ops[0].reset = reset
        tj.ops[0].destroy = destroy
    except BaseException as exc:
        return report(exc, b"TSTrajectoryCreate_localckpt")
    return <PetscErrorCode> 0


cdef PetscErrorCode set_up(PetscTSTrajectory tj, PetscTS ts) noexcept with gil:
    cdef Intracomm comm = Intracomm()
    try:
        PetscObjectGetComm(<PetscObject> tj, &comm.ob_mpi)
        error = None
        try:
            check(tj, ts)
        except Exception as exc:  # options may differ from rank to rank
            error = exc
        (<object> tj.data).set_up(comm, error)
    except BaseException as exc:
        return report(exc, b"TSTrajectorySetUp")
    return <PetscErrorCode> 0


cdef PetscErrorCode set_step(PetscTSTrajectory tj, PetscTS ts, PetscInt step, PetscReal time,
                             PetscVec solution) noexcept with gil:
    cdef PetscReal previous = time
    try:
        check(tj, ts)
        if step:
            call(TSGetPrevTime(ts, &previous))
        (<object> tj.data).save(step, (time, previous), state_of(tj, ts, step, solution))
        tj.diskwrites += 1
    except BaseException as exc:
        return report(exc, b"TSTrajectorySet")
    return <PetscErrorCode> 0


cdef PetscErrorCode get_step(PetscTSTrajectory tj, PetscTS ts, PetscInt step, PetscReal* time) noexcept with gil:
    cdef PetscVec solution = NULL
    cdef PetscReal previous
    try:
        check(tj, ts)
        call(TSGetSolution(ts, &solution))
        time[0], previous = (<object> tj.data).load(step, state_of(tj, ts, step, solution))
        tj.diskreads += 1
        if step and tj.adjoint_solve_mode and not tj.solution_only:
            call(TSSetTimeStep(ts, previous - time[0]))
    except BaseException as exc:
        return report(exc, b"TSTrajectoryGet")
    return <PetscErrorCode> 0


cdef PetscErrorCode view(PetscTSTrajectory tj, PetscViewer viewer) noexcept with gil:
    cdef bytes line
    try:
        for line in str((<object> tj.data).summary()).encode(errors="backslashreplace").splitlines():
            call(PetscViewerASCIIPrintf(viewer, b"%s\n", <const char*> line))
    except BaseException as exc:
        return report(exc, b"TSTrajectoryView")
    return <PetscErrorCode> 0


# PetscFinalize destroys what petsc4py has left over on several ranks when Python has ended.
cdef PetscErrorCode reset(PetscTSTrajectory tj) noexcept nogil:
    if Py_IsInitialized():
        with gil:
            (<object> tj.data).reset()
    return <PetscErrorCode> 0


cdef PetscErrorCode destroy(PetscTSTrajectory tj) noexcept nogil:
    if Py_IsInitialized():
        with gil:
            Py_DECREF(<object> tj.data)
    tj.data = NULL
    PetscFree(tj.dirname)  # PETSc would remove the directory, with all that is in it
    return <PetscErrorCode> 0
