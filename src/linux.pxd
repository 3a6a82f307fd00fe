# The part of Linux's C API that localckpt uses and Cython's own libc and posix do not declare.

from posix.types cimport off_t

cdef extern from *:
    """
    #include <fcntl.h>
    #include <sys/uio.h>
    #ifdef RWF_NOWAIT
      static inline ssize_t pread_cached(int fd, void *data, size_t n, off_t offset) {
          struct iovec part = {data, n};
          return preadv2(fd, &part, 1, offset, RWF_NOWAIT);
      }
    #else  /* a system that cannot tell */
      #define pread_cached(fd, data, n, offset) ((ssize_t)0)
    #endif
    #ifdef SYNC_FILE_RANGE_WAIT_BEFORE
      /* Linux reports an earlier error of the whole file, whatever range one waits for. */
      #define wait_for_written(fd) sync_file_range(fd, 0, 1, SYNC_FILE_RANGE_WAIT_BEFORE)
    #else
      #define wait_for_written(fd) 0
    #endif
    """
    int FALLOC_FL_KEEP_SIZE
    int POSIX_FADV_WILLNEED
    int fallocate(int fd, int mode, off_t offset, off_t length) nogil
    int posix_fadvise(int fd, off_t offset, off_t length, int advice) nogil
    ssize_t pread_cached(int fd, void* data, size_t n, off_t offset) nogil  # fails where that needs the disk
    int wait_for_written(int fd) nogil  # fails if the disk could not take what was written
