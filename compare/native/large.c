/* Large buffers of 5 to 25 MiB, twenty alive at a time, each zeroed when it is made, every other one by
 * calloc. After malloc-large of mimalloc's suite, by its description. One thread.
 */
#include "suite.h"

enum { LIVE = 20 };

int main(int count, char **words) {
    suite_begin(count, words);
    unsigned char *buffers[LIVE] = {0};
    size_t sizes[LIVE];
    uint64_t random = suite_seed(9), checksum = 0, rounds = suite_scaled(150);
    for (uint64_t i = 0; i < rounds; i++) {
        size_t which = suite_below(&random, LIVE);
        if (buffers[which]) {
            for (size_t at = 0; at < sizes[which]; at += sizes[which] / 16) checksum += buffers[which][at];
            free(buffers[which]);
        }
        size_t size = (5u << 20) + suite_below(&random, 20 << 20);
        sizes[which] = size;
        buffers[which] = suite_checked(i % 2 ? calloc(1, size) : malloc(size));
        if (i % 2 == 0) memset(buffers[which], 0, size);
        for (size_t at = 0; at < size; at += 4096) {
            if (buffers[which][at] != 0) return 6;
            buffers[which][at] = (unsigned char)(i + at);
        }
    }
    for (int i = 0; i < LIVE; i++) free(buffers[i]);
    return suite_end(rounds, checksum);
}
