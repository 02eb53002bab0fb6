/* The simplest loops. simple: of each size from 8 B to 4 KiB, hundreds are allocated and then freed in
 * order. thread: every thread replaces random blocks of a list of 1024, most of them small. After
 * glibc's bench-malloc-simple and bench-malloc-thread, by their descriptions. The name of the program
 * says which.
 */
#include "suite.h"

enum { LIVE = 1024, STEPS = 1600 };

static uint64_t total, sums[64];

static void *replace(void *argument) {
    int which = (int)(long)argument;
    uint64_t random = suite_seed((uint64_t)which), todo = suite_share(total, which);
    void **list = suite_checked(calloc(LIVE, sizeof *list));
    /* Sizes of 8 B to 32 KiB; the chance falls with the size. */
    for (uint64_t i = 0; i < todo; i++) {
        uint64_t r = suite_random(&random);
        void **place = &list[r % LIVE];
        if (*place) sums[which] += suite_release(*place);
        int octave = __builtin_ctzll((r >> 32) | 1 << 12);
        *place = suite_block((8ull << octave) + ((r >> 16) & ((8ull << octave) - 1)));
    }
    for (int i = 0; i < LIVE; i++)
        if (list[i]) sums[which] += suite_release(list[i]);
    free(list);
    return NULL;
}

int main(int count, char **words) {
    suite_begin(count, words);
    if (strstr(words[0], "thread")) {
        total = suite_scaled(1.5e7);
        suite_parallel(replace);
    } else {
        static const size_t sizes[] = {8, 16, 24, 32, 48, 64, 128, 256, 512, 1024, 2048, 4096};
        void *blocks[STEPS];
        uint64_t rounds = suite_scaled(1500);
        for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
            for (uint64_t round = 0; round < rounds; round++) {
                int live = round % 4 == 0 ? STEPS : 25 << (round % 4);
                for (int i = 0; i < live; i++) blocks[i] = suite_block(sizes[s]);
                for (int i = 0; i < live; i++) sums[0] += suite_release(blocks[i]);
                total += (uint64_t)live;
            }
    }
    uint64_t checksum = 0;
    for (int i = 0; i < 64; i++) checksum += sums[i];
    return suite_end(total, checksum);
}
