/* What all programs here share: options, a random generator, marks in blocks, the line at the end.
 *
 *     program [threads=N] [scale=X]
 *
 * The line says `operations=N checksum=HEX seconds=S peak_kib=N`, like that of the Rust workloads.
 * For C and C++.
 */
#ifndef SUITE_H
#define SUITE_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

struct suite {
    int threads;
    double scale;
    struct timespec start;
};

static struct suite suite = {1, 1.0, {0, 0}};

/* Reads the options and starts the clock. */
static void suite_begin(int count, char **words) {
    for (int i = 1; i < count; i++) {
        if (strncmp(words[i], "threads=", 8) == 0) suite.threads = atoi(words[i] + 8);
        else if (strncmp(words[i], "scale=", 6) == 0) suite.scale = atof(words[i] + 6);
        else suite.threads = 0;
        if (suite.threads < 1 || suite.threads > 64 || !(suite.scale > 0)) {
            fprintf(stderr, "%s [threads=1..64] [scale=X]\n", words[0]);
            exit(2);
        }
    }
    clock_gettime(CLOCK_MONOTONIC, &suite.start);
}

/* `usual` times the scale, at least 1. */
static inline uint64_t suite_scaled(double usual) {
    double scaled = usual * suite.scale;
    return scaled < 1 ? 1 : (uint64_t)scaled;
}

/* Thread `which` of all does this much of `total`. */
static inline uint64_t suite_share(uint64_t total, int which) {
    uint64_t threads = (uint64_t)suite.threads;
    return total / threads + ((uint64_t)which < total % threads);
}

/* Stops the clock and prints the line. */
static int suite_end(uint64_t operations, uint64_t checksum) {
    struct timespec end;
    clock_gettime(CLOCK_MONOTONIC, &end);
    double seconds = (double)(end.tv_sec - suite.start.tv_sec) + (double)(end.tv_nsec - suite.start.tv_nsec) * 1e-9;
    long peak = 0;
    char line[256];
    FILE *status = fopen("/proc/self/status", "r");
    while (status && fgets(line, sizeof line, status))
        if (sscanf(line, "VmHWM: %ld", &peak) == 1) break;
    if (status) fclose(status);
    printf("operations=%lu checksum=%016lx seconds=%.6f peak_kib=%ld\n", (unsigned long)operations,
           (unsigned long)checksum, seconds, peak);
    return 0;
}

/* xorshift64*, by Vigna. */
static inline uint64_t suite_random(uint64_t *state) {
    uint64_t x = *state;
    x ^= x >> 12;
    x ^= x << 25;
    x ^= x >> 27;
    *state = x;
    return x * 0x2545f4914f6cdd1d;
}

static inline uint64_t suite_seed(uint64_t which) { return 0x9e3779b97f4a7c15 * (which + 1); }

/* Below `limit`, which is not 0. */
static inline uint64_t suite_below(uint64_t *state, uint64_t limit) {
    return (uint64_t)(((unsigned __int128)suite_random(state) * limit) >> 64);
}

static inline void *suite_checked(void *block) {
    if (!block) {
        fprintf(stderr, "out of memory\n");
        exit(3);
    }
    return block;
}

/* A block of at least 8 bytes with its size in front and a mark in its last byte. */
static inline void *suite_block(size_t size) {
    unsigned char *block = (unsigned char *)suite_checked(malloc(size));
    uint32_t length = (uint32_t)size;
    memcpy(block, &length, 4);
    block[size - 1] = (unsigned char)(size * 7 + 1);
    return block;
}

/* Frees such a block; returns what it held, for the checksum. */
static inline uint64_t suite_release(void *memory) {
    unsigned char *block = (unsigned char *)memory;
    uint32_t length;
    memcpy(&length, block, 4);
    if (block[length - 1] != (unsigned char)(length * 7 + 1)) {
        fprintf(stderr, "a block of %u bytes was overwritten\n", length);
        exit(4);
    }
    free(block);
    return length;
}

/* Runs `work` in every thread and waits. */
static inline void suite_parallel(void *(*work)(void *)) {
    pthread_t threads[64];
    for (long i = 0; i < suite.threads; i++)
        if (pthread_create(&threads[i], NULL, work, (void *)i) != 0) exit(5);
    for (int i = 0; i < suite.threads; i++) pthread_join(threads[i], NULL);
}

#endif
