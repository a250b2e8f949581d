/* A preloaded library: it sets the clock of a process and its children CLOCK_OFFSET_S seconds ahead. Waiting takes
   its normal time. (Under libfaketime 0.9.10, Python's time.sleep fails, or waits for a lock do not end.) */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define OFFSET "CLOCK_OFFSET_S"
#define PRELOAD "LD_PRELOAD"

static long offset_s;
static char offset[64], preload[4096];

__attribute__((constructor)) static void begin(void) {
    const char *seconds = getenv(OFFSET), *library = getenv(PRELOAD);
    offset_s = seconds ? atol(seconds) : 0;
    snprintf(offset, sizeof offset, OFFSET "=%ld", offset_s);
    snprintf(preload, sizeof preload, PRELOAD "=%s", library ? library : "");
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int status = syscall(SYS_clock_gettime, clock, now);
    if (status == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += offset_s;
    return status;
}

int gettimeofday(struct timeval *now, void *zone) {
    struct timespec precise;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &precise);
    now->tv_sec = precise.tv_sec;
    now->tv_usec = precise.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *place) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (place) *place = now.tv_sec;
    return now.tv_sec;
}

/* The engine starts its servers with a small environment of their own. */
int execve(const char *path, char *const arguments[], char *const given[]) {
    int (*next)(const char *, char *const[], char *const[]) = dlsym(RTLD_NEXT, "execve");
    int count = 0, kept = 0;
    while (given[count]) count++;
    char *environment[count + 3];
    for (int i = 0; i < count; i++)
        if (strncmp(given[i], OFFSET "=", sizeof OFFSET) && strncmp(given[i], PRELOAD "=", sizeof PRELOAD))
            environment[kept++] = given[i];
    environment[kept++] = offset;
    environment[kept++] = preload;
    environment[kept] = NULL;
    return next(path, arguments, environment);
}
