/* Counts the MPI calls of a process that reach other ranks, by MPI's profiling interface. */

#include <mpi.h>
#include <stddef.h>

enum { MOST = 64 };

static int counting = 0, limit = 1;
static long calls = 0, by_size[MOST + 1];
static const char *last = "";

/* From now on count the calls on communicators of more ranks than this. */
void count_start(int largest)
{
    limit = largest;
    counting = 1;
}

void count_stop(void)
{
    counting = 0;
}

long count_get(void)
{
    return calls;
}

/* Those on communicators of this many ranks, up to 64. */
long count_of(int size)
{
    return by_size[size];
}

/* The name of the last call that was counted. */
const char *count_last(void)
{
    return last;
}

static void add(const char *name, int size)
{
    calls++;
    by_size[size < MOST ? size : MOST]++;
    last = name;
}

static void note(MPI_Comm comm, const char *name)
{
    int size = 0;
    if (counting && comm != MPI_COMM_NULL && PMPI_Comm_size(comm, &size) == MPI_SUCCESS && size > limit)
        add(name, size);
}

static void note_file(MPI_File file, const char *name)
{
    MPI_Group group;
    int size = 0;
    if (counting && PMPI_File_get_group(file, &group) == MPI_SUCCESS) {
        PMPI_Group_size(group, &size);
        PMPI_Group_free(&group);
        if (size > limit)
            add(name, size);
    }
}

#define COUNT(name, params, ...) \
    int MPI_##name params { note(comm, #name); return PMPI_##name(__VA_ARGS__); }

/* Parameters: a buffer to send, one to receive, and the same with sizes that differ from rank to rank */
#define OUT const void *a, int n, MPI_Datatype t
#define IN void *b, int m, MPI_Datatype u
#define OUTV const void *a, const int n[], const int i[], MPI_Datatype t
#define INV void *b, const int m[], const int j[], MPI_Datatype u
#define COMM MPI_Comm comm
#define REQUEST MPI_Request *request
#define BOTH const void *a, void *b, int n, MPI_Datatype t, MPI_Op op

COUNT(Barrier, (COMM), comm)
COUNT(Ibarrier, (COMM, REQUEST), comm, request)
COUNT(Bcast, (IN, int root, COMM), b, m, u, root, comm)
COUNT(Ibcast, (IN, int root, COMM, REQUEST), b, m, u, root, comm, request)
COUNT(Reduce, (BOTH, int root, COMM), a, b, n, t, op, root, comm)
COUNT(Allreduce, (BOTH, COMM), a, b, n, t, op, comm)
COUNT(Iallreduce, (BOTH, COMM, REQUEST), a, b, n, t, op, comm, request)
COUNT(Scan, (BOTH, COMM), a, b, n, t, op, comm)
COUNT(Exscan, (BOTH, COMM), a, b, n, t, op, comm)
COUNT(Reduce_scatter_block, (BOTH, COMM), a, b, n, t, op, comm)
COUNT(Reduce_scatter, (const void *a, void *b, const int n[], MPI_Datatype t, MPI_Op op, COMM), a, b, n, t, op, comm)
COUNT(Gather, (OUT, IN, int root, COMM), a, n, t, b, m, u, root, comm)
COUNT(Gatherv, (OUT, INV, int root, COMM), a, n, t, b, m, j, u, root, comm)
COUNT(Scatter, (OUT, IN, int root, COMM), a, n, t, b, m, u, root, comm)
COUNT(Scatterv, (OUTV, IN, int root, COMM), a, n, i, t, b, m, u, root, comm)
COUNT(Allgather, (OUT, IN, COMM), a, n, t, b, m, u, comm)
COUNT(Allgatherv, (OUT, INV, COMM), a, n, t, b, m, j, u, comm)
COUNT(Iallgather, (OUT, IN, COMM, REQUEST), a, n, t, b, m, u, comm, request)
COUNT(Alltoall, (OUT, IN, COMM), a, n, t, b, m, u, comm)
COUNT(Alltoallv, (OUTV, INV, COMM), a, n, i, t, b, m, j, u, comm)
COUNT(Neighbor_alltoallv, (OUTV, INV, COMM), a, n, i, t, b, m, j, u, comm)
COUNT(Ineighbor_alltoallv, (OUTV, INV, COMM, REQUEST), a, n, i, t, b, m, j, u, comm, request)

COUNT(Send, (OUT, int to, int tag, COMM), a, n, t, to, tag, comm)
COUNT(Ssend, (OUT, int to, int tag, COMM), a, n, t, to, tag, comm)
COUNT(Isend, (OUT, int to, int tag, COMM, REQUEST), a, n, t, to, tag, comm, request)
COUNT(Issend, (OUT, int to, int tag, COMM, REQUEST), a, n, t, to, tag, comm, request)
COUNT(Recv, (IN, int from, int tag, COMM, MPI_Status *s), b, m, u, from, tag, comm, s)
COUNT(Irecv, (IN, int from, int tag, COMM, REQUEST), b, m, u, from, tag, comm, request)
COUNT(Sendrecv, (OUT, int to, int tag, IN, int from, int back, COMM, MPI_Status *s),
      a, n, t, to, tag, b, m, u, from, back, comm, s)

/* Making a communicator is collective, too */
COUNT(Comm_dup, (COMM, MPI_Comm *out), comm, out)
COUNT(Comm_idup, (COMM, MPI_Comm *out, REQUEST), comm, out, request)
COUNT(Comm_split, (COMM, int color, int key, MPI_Comm *out), comm, color, key, out)
COUNT(Comm_split_type, (COMM, int kind, int key, MPI_Info info, MPI_Comm *out), comm, kind, key, info, out)
COUNT(Comm_create, (COMM, MPI_Group group, MPI_Comm *out), comm, group, out)
COUNT(Comm_create_group, (COMM, MPI_Group group, int tag, MPI_Comm *out), comm, group, tag, out)

/* So are what opens, closes, resizes and flushes a file, and its collective transfers; the others are not */
COUNT(File_open, (COMM, const char *path, int mode, MPI_Info info, MPI_File *out), comm, path, mode, info, out)

#define COUNT_FILE(name, params, ...) \
    int MPI_##name params { note_file(file, #name); return PMPI_##name(__VA_ARGS__); }
#define AT_ALL(BUFFER) (MPI_File file, MPI_Offset at, BUFFER *a, int n, MPI_Datatype t, MPI_Status *s)

COUNT_FILE(File_set_size, (MPI_File file, MPI_Offset size), file, size)
COUNT_FILE(File_preallocate, (MPI_File file, MPI_Offset size), file, size)
COUNT_FILE(File_sync, (MPI_File file), file)
COUNT_FILE(File_set_view, (MPI_File file, MPI_Offset at, MPI_Datatype t, MPI_Datatype u, const char *rep, MPI_Info info),
           file, at, t, u, rep, info)
COUNT_FILE(File_read_at_all, AT_ALL(void), file, at, a, n, t, s)
COUNT_FILE(File_write_at_all, AT_ALL(const void), file, at, a, n, t, s)

int MPI_File_close(MPI_File *file)
{
    note_file(*file, "File_close");
    return PMPI_File_close(file);
}

/* Persistent requests, in which PETSc exchanges halos, do not say what communicator they are on:
   all count, as of size 0. */
int MPI_Start(MPI_Request *request)
{
    if (counting)
        add("Start", 0);
    return PMPI_Start(request);
}

int MPI_Startall(int n, MPI_Request requests[])
{
    if (counting && n > 0)
        add("Startall", 0);
    return PMPI_Startall(n, requests);
}
