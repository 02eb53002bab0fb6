/* Arrays and strings that grow by realloc side by side, by halves or by a constant, as buffers of parsers
 * and editors do; now and then one is cut to size and kept. */
#include "suite.h"

enum { SIDE = 16, KEPT = 256 };

static uint64_t total, sums[64];

static void *work(void *argument) {
    int which = (int)(long)argument;
    uint64_t random = suite_seed((uint64_t)which), todo = suite_share(total, which);
    unsigned char *growing[SIDE] = {0}, *kept[KEPT] = {0};
    size_t length[SIDE] = {0};
    for (uint64_t i = 0; i < todo; i++) {
        size_t s = suite_below(&random, SIDE), more = s % 2 ? length[s] + length[s] / 2 + 16 : length[s] + 256;
        growing[s] = suite_checked(realloc(growing[s], more));
        memset(growing[s] + length[s], (int)s + 1, more - length[s]);
        if (length[s] && growing[s][length[s] - 1] != s + 1) exit(6);
        length[s] = more;
        if (more > (s % 2 ? 1u << 20 : 20000u)) {
            size_t cut = 16 + suite_below(&random, 2000);
            unsigned char **place = &kept[suite_below(&random, KEPT)];
            if (*place) sums[which] += **place, free(*place);
            *place = suite_checked(realloc(growing[s], cut));
            growing[s] = NULL, length[s] = 0;
        }
    }
    for (int i = 0; i < SIDE; i++) free(growing[i]);
    for (int i = 0; i < KEPT; i++) free(kept[i]);
    return NULL;
}

int main(int count, char **words) {
    suite_begin(count, words);
    total = suite_scaled(6e4);
    suite_parallel(work);
    uint64_t checksum = 0;
    for (int i = 0; i < 64; i++) checksum += sums[i];
    return suite_end(total, checksum);
}
