/* Phases of threads that allocate trees of sizes with a few large among them, free some, keep some, and
 * exchange blocks with each other through shared places; survivors outlive the phase. After mstress of
 * mimalloc, by its description.
 */
#include <stdatomic.h>

#include "suite.h"

enum { PHASES = 25, PLACES = 1000 };

static void *_Atomic places[PLACES];
static uint64_t each, phase, sums[64];

static void *block(uint64_t *random) {
    uint64_t r = suite_random(random);
    size_t size = 8 + (r & 0x7f);
    if ((r >> 8) % 100 == 0) size *= 100;
    else if ((r >> 8) % 10 == 0) size *= 10;
    return suite_block(size);
}

static void *work(void *argument) {
    int which = (int)(long)argument;
    uint64_t random = suite_seed(phase * 64 + (uint64_t)which), length = 0, room = 64, kept = 0;
    uint64_t todo = suite_share(each, which);
    void **own = suite_checked(malloc(room * sizeof *own));
    void **keep = suite_checked(calloc(todo / 2 + 1, sizeof *keep));
    for (uint64_t i = 0; i < todo; i++) {
        if (length == room) own = suite_checked(realloc(own, (room *= 2) * sizeof *own));
        own[length++] = block(&random);
        if (suite_below(&random, 100) < 50 && kept <= todo / 2) keep[kept++] = block(&random);
        if (suite_below(&random, 100) < 70) {
            uint64_t victim = suite_below(&random, length);
            suite_release(own[victim]);
            own[victim] = own[--length];
        }
        if (length > 0 && suite_below(&random, 100) < 25) {
            uint64_t mine = suite_below(&random, length);
            void *other = atomic_exchange(&places[suite_below(&random, PLACES)], own[mine]);
            if (other) own[mine] = other;
            else own[mine] = own[--length];
        }
    }
    sums[which] += todo;
    while (length > 0) suite_release(own[--length]);
    while (kept > 0) suite_release(keep[--kept]);
    free(own), free(keep);
    return NULL;
}

int main(int count, char **words) {
    suite_begin(count, words);
    each = suite_scaled(60000);
    for (phase = 0; phase < PHASES; phase++) {
        suite_parallel(work);
        if (phase % 5 == 4)
            for (int i = 0; i < PLACES; i++) {
                void *left = atomic_exchange(&places[i], NULL);
                if (left) suite_release(left);
            }
    }
    for (int i = 0; i < PLACES; i++) {
        void *left = atomic_exchange(&places[i], NULL);
        if (left) suite_release(left);
    }
    return suite_end(each * PHASES, sums[0] > 0);
}
