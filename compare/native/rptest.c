/* Random sizes of 16 B to 16 KiB, small ones likelier; at any time a thread frees what it has, and every
 * few rounds it hands its blocks to the next thread, which frees them. Eight batches may wait for a
 * thread, and what finds as many is freed where it is: without that bound a thread that the system holds
 * up comes back to hundreds of megabytes, which say nothing about allocators. After rpmalloc's
 * benchmark, by its description.
 */
#include <stdatomic.h>

#include "suite.h"

enum { SLOTS = 4000, SHELF = 256, WAITING = 8 };

typedef struct shelf {
    struct shelf *next;
    int length;
    void *blocks[SHELF];
} shelf;

static shelf *_Atomic inbox[64];
static atomic_int waiting[64];
static uint64_t total, sums[64];
static pthread_barrier_t together;

static size_t size(uint64_t *random) {
    uint64_t a = suite_below(random, 1 << 14), b = suite_below(random, 1 << 14);
    return 16 + (a * b >> 14) * (b >> 4) / 1024;
}
static void release(shelf *s, int which) {
    for (int i = 0; i < s->length; i++) sums[which] += suite_release(s->blocks[i]);
    free(s);
}
static void take_in(int which) {
    shelf *s = atomic_exchange(&inbox[which], NULL);
    while (s) {
        shelf *next = s->next;
        atomic_fetch_sub(&waiting[which], 1);
        release(s, which);
        s = next;
    }
}
static void hand_over(shelf *s, int which, int to) {
    if (atomic_fetch_add(&waiting[to], 1) >= WAITING) {
        atomic_fetch_sub(&waiting[to], 1);
        release(s, which);
        return;
    }
    s->next = atomic_load(&inbox[to]);
    while (!atomic_compare_exchange_weak(&inbox[to], &s->next, s)) {}
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
                    hand_over(s, which, neighbour);
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
    if (s) release(s, which);
    free(slots);
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
