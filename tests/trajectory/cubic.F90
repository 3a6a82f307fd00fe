! u' = -u^3 for each entry and the gradient of |u(T)|^2/2 with respect to u(0), printed to 16 digits.
#include <petsc/finclude/petscts.h>
module cubic
  use petscts
  use iso_c_binding
  implicit none

  interface  ! PETSc's own takes no null pointer for the gradients with respect to parameters before 3.23
    integer(c_int) function set_cost_gradients(ts, n, gradients, none) bind(c, name='TSSetCostGradients')
      import
      PetscFortranAddr, value :: ts
      PetscInt, value :: n
      PetscFortranAddr gradients(*)
      type(c_ptr), value :: none
    end function
  end interface
contains
  subroutine rhs(ts, t, u, f, context, ierr)
    TS ts
    PetscReal t
    Vec u, f
    integer context
    PetscErrorCode ierr
    PetscScalar, parameter :: minus = -1.0
    call VecPointwiseMult(f, u, u, ierr)
    call VecPointwiseMult(f, f, u, ierr)
    call VecScale(f, minus, ierr)
  end subroutine

  subroutine jacobian(ts, t, u, j, p, context, ierr)
    TS ts
    PetscReal t
    Vec u, diagonal
    Mat j, p
    integer context
    PetscErrorCode ierr
    PetscScalar, parameter :: minus_three = -3.0
    call VecDuplicate(u, diagonal, ierr)
    call VecPointwiseMult(diagonal, u, u, ierr)
    call VecScale(diagonal, minus_three, ierr)
    call MatDiagonalSet(p, diagonal, INSERT_VALUES, ierr)
    call VecDestroy(diagonal, ierr)
  end subroutine
end module

program main
  use petscts
  use cubic
  implicit none
  TS ts
  Vec u, gradient
  Mat j
  PetscErrorCode ierr
  PetscInt, parameter :: n = 10, one = 1
  PetscInt steps
  PetscMPIInt rank
  PetscReal norm, gradient_norm
  PetscReal, parameter :: dt = 0.05, end = 1.0
  PetscScalar, parameter :: start = 1.25

  call PetscInitialize(ierr)
  call VecCreateMPI(PETSC_COMM_WORLD, n, PETSC_DETERMINE, u, ierr)
  call VecDuplicate(u, gradient, ierr)
  call MatCreateAIJ(PETSC_COMM_WORLD, n, n, PETSC_DETERMINE, PETSC_DETERMINE, one, PETSC_NULL_INTEGER, 0*one, &
       PETSC_NULL_INTEGER, j, ierr)
  call TSCreate(PETSC_COMM_WORLD, ts, ierr)
  call TSSetType(ts, TSRK, ierr)
  call TSSetRHSFunction(ts, PETSC_NULL_VEC, rhs, 0, ierr)
  call TSSetRHSJacobian(ts, j, j, jacobian, 0, ierr)
  call TSSetTimeStep(ts, dt, ierr)
  call TSSetMaxTime(ts, end, ierr)
  call TSSetExactFinalTime(ts, TS_EXACTFINALTIME_MATCHSTEP, ierr)
  call TSSetSaveTrajectory(ts, ierr)
  ierr = set_cost_gradients(ts%v, one, [gradient%v], c_null_ptr)
  call TSSetFromOptions(ts, ierr)
  call VecSet(u, start, ierr)
  call TSSolve(ts, u, ierr)
  if (ierr == 0) then
    call VecCopy(u, gradient, ierr)
    call TSAdjointSolve(ts, ierr)
  end if
  if (ierr /= 0) call MPI_Abort(MPI_COMM_WORLD, 1, ierr)
  call TSGetStepNumber(ts, steps, ierr)
  call VecNorm(u, NORM_2, norm, ierr)
  call VecNorm(gradient, NORM_1, gradient_norm, ierr)
  call MPI_Comm_rank(PETSC_COMM_WORLD, rank, ierr)
  if (rank == 0) print '(a, es23.16, a, es23.16)', '|u| = ', norm, ', gradient ', gradient_norm
  call TSDestroy(ts, ierr)
  call MatDestroy(j, ierr)
  call VecDestroy(u, ierr)
  call VecDestroy(gradient, ierr)
  call PetscFinalize(ierr)
end program
