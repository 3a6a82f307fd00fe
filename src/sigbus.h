/* Mapped rows, and the signal that comes where the disk does not deliver one: SIGBUS.

   A fault inside a range that is registered here ends the job with one sentence; any other
   fault goes to the handler that was there before. */

#include <mpi.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

struct mapped_range {
    const char *start;
    size_t length;
    const char *description; /* "dataset ... of file ..." */
    struct mapped_range *previous, *next;
};

static struct mapped_range *volatile first_mapped = NULL;
static struct sigaction sigbus_before;

static void sigbus_say(const char *words)
{
    if (write(STDERR_FILENO, words, strlen(words)) < 0) return; /* nothing can be done about it here */
}

static void sigbus(int number, siginfo_t *info, void *context)
{
    const char *address = (const char *)info->si_addr;
    char host[256] = "";
    int initialized = 0, finalized = 0;

    for (struct mapped_range *m = first_mapped; m && info->si_code > 0; m = m->next)
        if (address >= m->start && address < m->start + m->length) {
            gethostname(host, sizeof host - 1);
            sigbus_say("localckpt: the disk does not deliver a checkpoint that was stored, on ");
            sigbus_say(host);
            sigbus_say(": ");
            sigbus_say(m->description);
            sigbus_say(" (SIGBUS: truncated, or an input/output error). The job ends here.\n");
            signal(SIGALRM, SIG_DFL); /* where MPI cannot abort from here, this ends the process */
            alarm(5);
            MPI_Initialized(&initialized);
            MPI_Finalized(&finalized);
            if (initialized && !finalized) MPI_Abort(MPI_COMM_WORLD, 1);
            _exit(1);
        }
    if (sigbus_before.sa_flags & SA_SIGINFO)
        sigbus_before.sa_sigaction(number, info, context);
    else if (sigbus_before.sa_handler == SIG_DFL || (sigbus_before.sa_handler == SIG_IGN && info->si_code > 0)) {
        signal(number, SIG_DFL); /* as the system does where a fault is ignored, which would come again for ever */
        raise(number);           /* comes as soon as this handler is done */
    } else if (sigbus_before.sa_handler != SIG_IGN)
        sigbus_before.sa_handler(number);
}

/* Have `sigbus` called. Once only: a handler that replaced it since may call it in its turn. */
static void watch_sigbus(void)
{
    static int watching = 0;
    struct sigaction ours = {0};

    if (watching++) return;
    ours.sa_sigaction = sigbus;
    ours.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigaction(SIGBUS, &ours, &sigbus_before);
}

static void register_mapped(struct mapped_range *m)
{
    watch_sigbus();
    m->previous = NULL;
    m->next = first_mapped;
    if (m->next) m->next->previous = m;
    first_mapped = m;
}

static void unregister_mapped(struct mapped_range *m)
{
    if (m->next) m->next->previous = m->previous;
    if (m->previous) m->previous->next = m->next;
    else first_mapped = m->next;
}
