/* The TSTrajectory type "localckpt" for programs without Python, which load this library with -dll_append.
   It starts Python when the type is first asked for, and the module localckpt.trajectory registers the type anew. */
#include <petscts.h>

static PetscErrorCode create(TSTrajectory tj, TS ts)
{
  void *(*import)(const char *)                   = NULL;
  PetscErrorCode (*registered)(TSTrajectory, TS) = NULL;

  PetscFunctionBegin;
  PetscCall(TSTrajectorySetKeepFiles(tj, PETSC_TRUE)); /* no directory is removed, whatever fails here */
  PetscCall(PetscPythonInitialize(NULL, NULL));
  PetscCall(PetscDLLibrarySym(PETSC_COMM_SELF, &PetscDLLibrariesLoaded, NULL, "PyImport_ImportModule", (void **)&import));
  if (!import || !import("localckpt.trajectory")) {
    PetscCall(PetscPythonPrintError());
    SETERRQ(PETSC_COMM_SELF, PETSC_ERR_LIB, "The Python that -python names cannot import localckpt.trajectory");
  }
  PetscCall(PetscFunctionListFind(TSTrajectoryList, "localckpt", &registered));
  PetscCheck(registered && registered != create, PETSC_COMM_SELF, PETSC_ERR_ORDER, "Python has outlived PETSc");
  PetscCall(registered(tj, ts));
  PetscFunctionReturn(0);
}

PETSC_EXTERN PetscErrorCode PetscDLLibraryRegister_localckpt(void)
{
  PetscFunctionBegin;
  PetscCall(TSTrajectoryRegister("localckpt", create));
  PetscFunctionReturn(0);
}
