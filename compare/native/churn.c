/* Threads by the hundred, each short: it allocates a little of everything, frees most, and leaves some
 * to the main thread. */
#include "suite.h"

enum { LEFT = 16, BLOCKS = 200 };

typedef struct {
    uint64_t random, sum;
    void *left[LEFT];
} visit;

static void *work(void *argument) {
    visit *v = argument;
    void *blocks[BLOCKS];
    for (int i = 0; i < BLOCKS; i++) blocks[i] = suite_block(16 + suite_below(&v->random, 16u << suite_below(&v->random, 8)));
    for (int i = 0; i < BLOCKS; i++)
        if (i < LEFT) v->left[i] = blocks[i];
        else v->sum += suite_release(blocks[i]);
    return NULL;
}

int main(int count, char **words) {
    suite_begin(count, words);
    uint64_t checksum = 0, total = suite_scaled(8000);
    visit *visits[64] = {0};
    pthread_t threads[64];
    for (uint64_t i = 0; i < total + (uint64_t)suite.threads; i++) {
        int place = (int)(i % (uint64_t)suite.threads);
        if (visits[place]) {
            pthread_join(threads[place], NULL);
            for (int l = 0; l < LEFT; l++) checksum += suite_release(visits[place]->left[l]);
            checksum += visits[place]->sum;
            free(visits[place]);
            visits[place] = NULL;
        }
        if (i >= total) continue;
        visits[place] = suite_checked(calloc(1, sizeof(visit)));
        visits[place]->random = suite_seed(i);
        if (pthread_create(&threads[place], NULL, work, visits[place]) != 0) exit(5);
    }
    return suite_end(total, checksum);
}
