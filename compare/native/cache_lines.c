/* False sharing (Berger and others, 2000). cache-thrash: every thread makes small blocks, writes them
 * many times, frees them. cache-scratch: the first thread makes the first block of each, so an allocator
 * that gives a freed block to whoever frees it spreads cache lines over threads. The name of the
 * program says which.
 */
#include "suite.h"

enum { WRITES = 1000 };

static uint64_t total;
static int scratch;
static void *first[64];

static void *work(void *argument) {
    int which = (int)(long)argument;
    uint64_t rounds = suite_share(total, which);
    if (scratch) free(first[which]);
    for (uint64_t i = 0; i < rounds; i++) {
        volatile unsigned char *block = suite_checked(malloc(8));
        for (int j = 0; j < WRITES; j++) block[j % 8] = (unsigned char)(block[j % 8] + j);
        free((void *)block);
    }
    return NULL;
}

int main(int count, char **words) {
    suite_begin(count, words);
    scratch = strstr(words[0], "scratch") != NULL;
    total = suite_scaled(3e5);
    for (int i = 0; scratch && i < suite.threads; i++) first[i] = suite_checked(malloc(8));
    suite_parallel(work);
    return suite_end(total * WRITES, total);
}
