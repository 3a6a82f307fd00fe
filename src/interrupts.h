/* Ctrl-C (SIGINT) that waits while code runs which it must not interrupt. */

#include <signal.h>

static volatile sig_atomic_t interrupted = 0;
static int holding = 0;
static struct sigaction action_before;

static void note_interrupt(int number)
{
    (void)number;
    interrupted = 1;
}

static void hold_interrupts_here(void)
{
    struct sigaction noting = {0};

    if (holding++) return;
    interrupted = 0;
    noting.sa_handler = note_interrupt;
    noting.sa_flags = SA_RESTART;
    sigaction(SIGINT, &noting, &action_before);
}

static void release_interrupts_here(void)
{
    struct sigaction now;

    if (holding == 0 || --holding) return; /* 0: see below */
    sigaction(SIGINT, NULL, &now);
    if (now.sa_handler == note_interrupt) sigaction(SIGINT, &action_before, NULL); /* else another one was set meanwhile */
    if (interrupted) raise(SIGINT); /* for the handler that is installed now */
}

/* A forked child is in no such section, whatever its parent's threads were in. */
static void forget_interrupts_here(void)
{
    if (holding) {
        holding = 0;
        sigaction(SIGINT, &action_before, NULL);
    }
}
