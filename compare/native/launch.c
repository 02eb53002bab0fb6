/* Runs a command and says what it cost.
 *
 *     launch LIBRARY COMMAND [ARGUMENT...]       LIBRARY: what to preload; - for nothing
 *
 * Small and linked statically: Linux starts a process's ru_maxrss at the size of the process that
 * it was forked from, which is this one. What the command writes to its standard output goes into
 * the checksum. Memory is that of the largest process among the command's.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int fail(const char *what) {
    perror(what);
    return 120;
}

int main(int count, char **words) {
    if (count < 3) {
        fprintf(stderr, "launch LIBRARY COMMAND [ARGUMENT...]\n");
        return 120;
    }
    int ends[2];
    if (pipe(ends) != 0) return fail("pipe");
    struct timespec start, end;
    clock_gettime(CLOCK_MONOTONIC, &start);
    pid_t child = fork();
    if (child < 0) return fail("fork");
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (strcmp(words[1], "-") == 0)
            unsetenv("LD_PRELOAD");
        else
            setenv("LD_PRELOAD", words[1], 1);
        dup2(ends[1], 1);
        close(ends[0]);
        close(ends[1]);
        execvp(words[2], words + 2);
        return fail(words[2]);
    }
    close(ends[1]);
    uint64_t checksum = 0xcbf29ce484222325;
    char bytes[4096];
    ssize_t got;
    while ((got = read(ends[0], bytes, sizeof bytes)) > 0)
        for (ssize_t i = 0; i < got; i++) checksum = (checksum ^ (unsigned char)bytes[i]) * 0x100000001b3;
    int status = 0;
    struct rusage usage;
    if (wait4(child, &status, 0, &usage) != child) return fail("wait4");
    clock_gettime(CLOCK_MONOTONIC, &end);
    if (WIFSIGNALED(status)) {
        fprintf(stderr, "%s: signal %d\n", words[2], WTERMSIG(status));
        return 121;
    }
    if (WEXITSTATUS(status) != 0) {
        fprintf(stderr, "%s: exit code %d\n", words[2], WEXITSTATUS(status));
        return 122;
    }
    double seconds = (double)(end.tv_sec - start.tv_sec) + (double)(end.tv_nsec - start.tv_nsec) * 1e-9;
    printf("operations=1 checksum=%016lx seconds=%.6f peak_kib=%ld\n", (unsigned long)checksum, seconds,
           usage.ru_maxrss);
    return 0;
}
