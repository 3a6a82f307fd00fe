/* A reaction and diffusion equation on a line and the gradient of |u(T)|^2/2 with respect to u(0), printed to 16 digits.

   u_t = (u_{i-1} - 2 u_i + u_{i+1}) - u_i^3,  with u = 0 beyond the ends.

     -n N        unknowns on each rank             [20]
     -solves N   forward solves and adjoints       [1]
     -halfway    go back half the steps first, and then the others
     -tangents N also compute the sensitivities to so many initial directions, and print their norm before and after
                 the adjoint                                         [0]
     -no_solve   only make and destroy the TS                        */
#include <petscdmda.h>
#include <petscts.h>

static PetscErrorCode rhs(TS ts, PetscReal t, Vec U, Vec F, void *ctx)
{
  DM                 grid;
  Vec                local;
  const PetscScalar *u;
  PetscScalar       *f;
  PetscInt           first, n, i;

  PetscFunctionBeginUser;
  PetscCall(TSGetDM(ts, &grid));
  PetscCall(DMGetLocalVector(grid, &local));
  PetscCall(VecZeroEntries(local));
  PetscCall(DMGlobalToLocalBegin(grid, U, INSERT_VALUES, local));
  PetscCall(DMGlobalToLocalEnd(grid, U, INSERT_VALUES, local));
  PetscCall(DMDAVecGetArrayRead(grid, local, &u));
  PetscCall(DMDAVecGetArray(grid, F, &f));
  PetscCall(DMDAGetCorners(grid, &first, NULL, NULL, &n, NULL, NULL));
  for (i = first; i < first + n; i++) f[i] = u[i - 1] - 2.0 * u[i] + u[i + 1] - u[i] * u[i] * u[i];
  PetscCall(DMDAVecRestoreArray(grid, F, &f));
  PetscCall(DMDAVecRestoreArrayRead(grid, local, &u));
  PetscCall(DMRestoreLocalVector(grid, &local));
  PetscFunctionReturn(0);
}

static PetscErrorCode jacobian(TS ts, PetscReal t, Vec U, Mat J, Mat P, void *ctx)
{
  DM                 grid;
  const PetscScalar *u;
  PetscInt           first, n, i, size, column;

  PetscFunctionBeginUser;
  PetscCall(TSGetDM(ts, &grid));
  PetscCall(DMDAGetInfo(grid, NULL, &size, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL));
  PetscCall(DMDAGetCorners(grid, &first, NULL, NULL, &n, NULL, NULL));
  PetscCall(DMDAVecGetArrayRead(grid, U, &u));
  for (i = first; i < first + n; i++) {
    for (column = PetscMax(i - 1, 0); column <= PetscMin(i + 1, size - 1); column++) {
      PetscScalar value = column == i ? -2.0 - 3.0 * u[i] * u[i] : 1.0;
      PetscCall(MatSetValues(P, 1, &i, 1, &column, &value, INSERT_VALUES));
    }
  }
  PetscCall(DMDAVecRestoreArrayRead(grid, U, &u));
  PetscCall(MatAssemblyBegin(P, MAT_FINAL_ASSEMBLY));
  PetscCall(MatAssemblyEnd(P, MAT_FINAL_ASSEMBLY));
  PetscFunctionReturn(0);
}

static PetscErrorCode directions(Mat S)
{
  PetscInt first, last, row, column, columns;

  PetscFunctionBeginUser;
  PetscCall(MatGetOwnershipRange(S, &first, &last));
  PetscCall(MatGetSize(S, NULL, &columns));
  for (row = first; row < last; row++) {
    for (column = 0; column < columns; column++) PetscCall(MatSetValue(S, row, column, 1.0 / (1 + row + column), INSERT_VALUES));
  }
  PetscCall(MatAssemblyBegin(S, MAT_FINAL_ASSEMBLY));
  PetscCall(MatAssemblyEnd(S, MAT_FINAL_ASSEMBLY));
  PetscFunctionReturn(0);
}

int main(int argc, char **argv)
{
  PetscInt    n = 20, solves = 1, tangents = 0, solve, steps, size;
  PetscBool   halfway = PETSC_FALSE, no_solve = PETSC_FALSE;
  PetscMPIInt ranks;
  PetscReal   norm, sum;
  DM          grid;
  Vec         u, gradient;
  Mat         J, S = NULL;
  TS          ts;

  PetscCall(PetscInitialize(&argc, &argv, NULL, NULL));
  PetscCallMPI(MPI_Comm_size(PETSC_COMM_WORLD, &ranks));
  PetscCall(PetscOptionsGetInt(NULL, NULL, "-n", &n, NULL));
  PetscCall(PetscOptionsGetInt(NULL, NULL, "-solves", &solves, NULL));
  PetscCall(PetscOptionsGetInt(NULL, NULL, "-tangents", &tangents, NULL));
  PetscCall(PetscOptionsGetBool(NULL, NULL, "-halfway", &halfway, NULL));
  PetscCall(PetscOptionsGetBool(NULL, NULL, "-no_solve", &no_solve, NULL));
  size = n * ranks;
  PetscCall(DMDACreate1d(PETSC_COMM_WORLD, DM_BOUNDARY_GHOSTED, size, 1, 1, NULL, &grid));
  PetscCall(DMSetUp(grid));
  PetscCall(DMCreateMatrix(grid, &J));
  PetscCall(DMCreateGlobalVector(grid, &u));
  PetscCall(VecDuplicate(u, &gradient));

  PetscCall(TSCreate(PETSC_COMM_WORLD, &ts));
  PetscCall(TSSetDM(ts, grid));
  PetscCall(TSSetType(ts, TSRK));
  PetscCall(TSSetRHSFunction(ts, NULL, rhs, NULL));
  PetscCall(TSSetRHSJacobian(ts, J, J, jacobian, NULL));
  PetscCall(TSSetExactFinalTime(ts, TS_EXACTFINALTIME_MATCHSTEP));
  PetscCall(TSSetSaveTrajectory(ts));
  PetscCall(TSSetCostGradients(ts, 1, &gradient, NULL));
  if (tangents) {
    PetscCall(MatCreateDense(PETSC_COMM_WORLD, n, PETSC_DECIDE, size, tangents, NULL, &S));
    PetscCall(MatSetUp(S));
    PetscCall(TSForwardSetSensitivities(ts, tangents, S));
  }
  PetscCall(TSSetFromOptions(ts));
  for (solve = 0; solve < solves && !no_solve; solve++) {
    PetscCall(VecSet(u, 1.0 + 0.25 * solve));
    PetscCall(TSSetTime(ts, 0.0));
    PetscCall(TSSetStepNumber(ts, 0));
    PetscCall(TSSetTimeStep(ts, 0.05));
    PetscCall(TSSetMaxTime(ts, 1.0));
    if (S) PetscCall(directions(S));
    PetscCall(TSSolve(ts, u));
    PetscCall(TSGetStepNumber(ts, &steps));
    PetscCall(VecNorm(u, NORM_2, &norm));
    PetscCall(VecCopy(u, gradient));
    if (S) {
      PetscCall(MatNorm(S, NORM_FROBENIUS, &sum));
      PetscCall(PetscPrintf(PETSC_COMM_WORLD, "sensitivities %.16g\n", (double)sum));
    }
    if (halfway) {
      PetscCall(TSAdjointSetSteps(ts, steps / 2));
      PetscCall(TSAdjointSolve(ts));
      PetscCall(TSAdjointSetSteps(ts, steps - steps / 2));
    }
    PetscCall(TSAdjointSolve(ts));
    if (S) {
      PetscCall(MatNorm(S, NORM_FROBENIUS, &sum));
      PetscCall(PetscPrintf(PETSC_COMM_WORLD, "at the beginning %.16g\n", (double)sum));
    }
    PetscCall(VecNorm(gradient, NORM_1, &sum));
    PetscCall(PetscPrintf(PETSC_COMM_WORLD, "%d steps: |u| = %.16g, gradient %.16g\n", (int)steps, (double)norm, (double)sum));
  }
  PetscCall(TSDestroy(&ts));
  PetscCall(VecDestroy(&gradient));
  PetscCall(VecDestroy(&u));
  PetscCall(MatDestroy(&J));
  PetscCall(MatDestroy(&S));
  PetscCall(DMDestroy(&grid));
  PetscCall(PetscFinalize());
  return 0;
}
