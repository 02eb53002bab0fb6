/* Batches of small blocks that overlap. sh6: uniform sizes of 1 to 1000 B, blocks that live for one or two
 * batches, freed in order or in reverse. sh8: every thread as well, with sizes that fall off, and
 * half of a batch goes to whichever thread comes next. After MicroQuill's sh6bench and sh8bench, by their
 * descriptions. The name of the program says which.
 */
#include <stdatomic.h>

#include "suite.h"

enum { BATCH = 2000 };

typedef struct batch {
    void *blocks[BATCH];
} batch;

static uint64_t total, sums[64];
static int eight;
static batch *_Atomic passed[64];

static void drop(batch *b, int reverse, uint64_t *sum) {
    if (!b) return;
    for (int i = 0; i < BATCH; i++) {
        void *block = b->blocks[reverse ? BATCH - 1 - i : i];
        if (block) *sum += suite_release(block);
    }
    free(b);
}
static void *work(void *argument) {
    int which = (int)(long)argument;
    uint64_t random = suite_seed((uint64_t)which), batches = suite_share(total, which) / BATCH, sum = 0;
    batch *before = NULL;
    for (uint64_t n = 0; n < batches; n++) {
        batch *b = suite_checked(malloc(sizeof *b)), *given = NULL;
        if (eight) given = suite_checked(calloc(1, sizeof *given));
        for (int i = 0; i < BATCH; i++) {
            uint64_t limit = eight ? 16ull << suite_below(&random, 7) : 1000;
            b->blocks[i] = suite_block(8 + suite_below(&random, limit));
            if (given && i % 2) given->blocks[i] = b->blocks[i], b->blocks[i] = NULL;
            /* A third does not live to the end of its batch. */
            if (i > 10 && i % 3 == 0 && b->blocks[i - 10]) {
                sum += suite_release(b->blocks[i - 10]);
                b->blocks[i - 10] = NULL;
            }
        }
        drop(before, (int)(n & 1), &sum);
        before = b;
        if (given) drop(atomic_exchange(&passed[(which + 1) % suite.threads], given), (int)(n >> 1 & 1), &sum);
    }
    drop(before, 0, &sum);
    sums[which] = sum;
    return NULL;
}

int main(int count, char **words) {
    suite_begin(count, words);
    eight = strstr(words[0], "sh8") != NULL;
    total = suite_scaled(1e7);
    suite_parallel(work);
    uint64_t checksum = 0;
    for (int i = 0; i < 64; i++) {
        drop(atomic_load(&passed[i]), 0, &sums[i]);
        checksum += sums[i];
    }
    return suite_end(total, checksum);
}
