/* Lets system calls of a process fail, to be preloaded.

   FAULT is "CALL ERRNO SKIP COUNT PART": of the calls on files whose path contains PART, after
   the first SKIP ones, COUNT fail with ERRNO.  ERRNO 0 moves half of the bytes instead. FAULT_RANK
   confines it to one rank of mpiexec, FAULT_LEAST to moves of so many bytes. With FAULT_WAITS nothing
   fails until FAULT_NOW is set. A FAULT that the process changes counts anew. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static int fails(const char *call, int fd, size_t size)
{
    static char name[32], part[256], now[512];
    static int error, skip, count;
    const char *fault = getenv("FAULT");
    char link[64], path[4096];
    const char *only = getenv("FAULT_RANK"), *rank = getenv("OMPI_COMM_WORLD_RANK"), *least = getenv("FAULT_LEAST");
    ssize_t length;

    if (!fault || (getenv("FAULT_WAITS") && !getenv("FAULT_NOW"))) return -1;
    if (strcmp(fault, now)) {
        snprintf(now, sizeof now, "%s", fault);
        count = 0;
        if (!only || !rank || !strcmp(only, rank))
            sscanf(fault, "%31s %d %d %d %255s", name, &error, &skip, &count, part);
    }
    if (!count || strcmp(call, name) || (least && size < strtoul(least, NULL, 10))) return -1;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    length = readlink(link, path, sizeof path - 1);
    path[length > 0 ? length : 0] = 0;
    if (!strstr(path, part) || skip-- > 0) return -1;
    count--;
    return error;
}

#define MOVE(name, buffer)                                                \
    ssize_t name(int fd, buffer data, size_t n, off_t offset)             \
    {                                                                     \
        static ssize_t (*real)(int, buffer, size_t, off_t);               \
        int error = fails(strncmp(#name, "pwrite", 6) ? "pread" : "pwrite", fd, n); \
        if (!real) *(void **)&real = dlsym(RTLD_NEXT, #name);             \
        if (error > 0) return errno = error, -1;                          \
        return real(fd, data, error ? n : (n + 1) / 2, offset);           \
    }

MOVE(pwrite, const void *)
MOVE(pwrite64, const void *)
MOVE(pread, void *)
MOVE(pread64, void *)

#define RESERVE(name)                                           \
    int name(int fd, int mode, off_t offset, off_t length)      \
    {                                                           \
        static int (*real)(int, int, off_t, off_t);             \
        int error = fails("fallocate", fd, length);                     \
        if (!real) *(void **)&real = dlsym(RTLD_NEXT, #name);   \
        if (error > 0) return errno = error, -1;                \
        return real(fd, mode, offset, length);                  \
    }

RESERVE(fallocate)
RESERVE(fallocate64)

#define MAP(name)                                                                               \
    void *name(void *start, size_t length, int access, int flags, int fd, off_t offset)         \
    {                                                                                           \
        static void *(*real)(void *, size_t, int, int, int, off_t);                             \
        int error = fd < 0 ? -1 : fails("mmap", fd, length);                                    \
        if (!real) *(void **)&real = dlsym(RTLD_NEXT, #name);                                   \
        if (error > 0) return errno = error, MAP_FAILED;                                        \
        return real(start, length, access, flags, fd, offset);                                  \
    }

MAP(mmap)
MAP(mmap64)

int fsync(int fd)
{
    static int (*real)(int);
    int error = fails("fsync", fd, 0);
    if (!real) *(void **)&real = dlsym(RTLD_NEXT, "fsync");
    if (error > 0) return errno = error, -1;
    return real(fd);
}

int sync_file_range(int fd, off_t offset, off_t length, unsigned flags)
{
    static int (*real)(int, off_t, off_t, unsigned);
    int error = fails("sync_file_range", fd, 0);
    if (!real) *(void **)&real = dlsym(RTLD_NEXT, "sync_file_range");
    if (error > 0) return errno = error, -1;
    return real(fd, offset, length, flags);
}

#define LOOK(name, kind)                                       \
    int name(int fd, struct kind *about)                       \
    {                                                          \
        static int (*real)(int, struct kind *);                \
        int error = fails("fstat", fd, 0);                     \
        if (!real) *(void **)&real = dlsym(RTLD_NEXT, #name);  \
        if (error > 0) return errno = error, -1;               \
        return real(fd, about);                                \
    }

LOOK(fstat, stat)
LOOK(fstat64, stat64)

int unlink(const char *path)
{
    static int (*real)(const char *);
    int fd = open(path, O_PATH), error = fails("unlink", fd, 0);
    if (fd >= 0) close(fd);
    if (!real) *(void **)&real = dlsym(RTLD_NEXT, "unlink");
    if (error > 0) return errno = error, -1;
    return real(path);
}

#define REMOVE(name, parameters, fd_of, arguments)             \
    int name parameters                                        \
    {                                                          \
        static int (*real) parameters;                         \
        int fd = fd_of, error = fails("rmdir", fd, 0);         \
        if (fd >= 0) close(fd);                                \
        if (!real) *(void **)&real = dlsym(RTLD_NEXT, #name);  \
        if (error > 0) return errno = error, -1;               \
        return real arguments;                                 \
    }

REMOVE(rmdir, (const char *path), open(path, O_PATH), (path))
REMOVE(unlinkat, (int folder, const char *path, int flags), openat(folder, path, O_PATH), (folder, path, flags))

int utimensat(int folder, const char *path, const struct timespec times[2], int flags)
{
    static int (*real)(int, const char *, const struct timespec *, int);
    int fd = openat(folder, path, O_PATH), error = fails("utimensat", fd, 0);
    if (fd >= 0) close(fd);
    if (!real) *(void **)&real = dlsym(RTLD_NEXT, "utimensat");
    if (error > 0) return errno = error, -1;
    return real(folder, path, times, flags);
}
