/* Random sizes of 16 B to 16 KiB, small ones likelier; at any time a thread frees what it has, and every
 * few rounds it hands its blocks to the next thread, which frees them. After rpmalloc's benchmark, by
 * its description.
 */
#include <stdatomic.h>

#include "suite.h"

enum { SLOTS = 4000, SHELF = 256 };

typedef struct shelf {
    struct shelf *next;
    int length;
    void *blocks[SHELF];
} shelf;

static shelf *_Atomic inbox[64];
static uint64_t total, sums[64];
static pthread_barrier_t together;

static size_t size(uint64_t *random) {
    uint64_t a = suite_below(random, 1 << 14), b = suite_below(random, 1 << 14);
    return 16 + (a * b >> 14) * (b >> 4) / 1024;
}
static void take_in(int which) {
    shelf *s = atomic_exchange(&inbox[which], NULL);
    while (s) {
        shelf *next = s->next;
        for (int i = 0; i < s->length; i++) sums[which] += suite_release(s->blocks[i]);
        free(s);
        s = next;
    }
}
static void *work(void *argument) {
    int which = (int)(long)argument, neighbour = (which + 1) % suite.threads;
    uint64_t random = suite_seed((uint64_t)which), todo = suite_share(total, which), i = 0;
    void **slots = suite_checked(calloc(SLOTS, sizeof *slots));
    shelf *s = NULL;
    while (i < todo) {
        for (int burst = 0; burst < 200 && i < todo; burst++, i++) {
            void **place = &slots[suite_below(&random, SLOTS)];
            if (*place && suite_below(&random, 4) == 0) {
                if (!s) s = suite_checked(calloc(1, sizeof *s));
                s->blocks[s->length++] = *place;
                if (s->length == SHELF) {
                    s->next = atomic_load(&inbox[neighbour]);
                    while (!atomic_compare_exchange_weak(&inbox[neighbour], &s->next, s)) {}
                    s = NULL;
                }
            } else if (*place) {
                sums[which] += suite_release(*place);
            }
            *place = suite_block(size(&random));
        }
        take_in(which);
    }
    pthread_barrier_wait(&together);
    take_in(which);
    for (int slot = 0; slot < SLOTS; slot++)
        if (slots[slot]) sums[which] += suite_release(slots[slot]);
    for (int left = 0; s && left < s->length; left++) sums[which] += suite_release(s->blocks[left]);
    free(s), free(slots);
    return NULL;
}

int main(int count, char **words) {
    suite_begin(count, words);
    total = suite_scaled(5e6);
    pthread_barrier_init(&together, NULL, (unsigned)suite.threads);
    suite_parallel(work);
    uint64_t checksum = 0;
    for (int i = 0; i < 64; i++) checksum += sums[i];
    return suite_end(total, checksum);
}
