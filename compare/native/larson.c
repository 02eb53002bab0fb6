/* Larson's server (Larson and Krishnan, 1998): each thread replaces random blocks of its own array; after
 * some rounds it starts a successor, hands the array over, and ends. Blocks are so freed by other
 * threads than those that allocated them.
 */
#include <semaphore.h>

#include "suite.h"

enum { BLOCKS = 1000, LEAST = 10, MOST = 500, LIVES = 40 };

typedef struct {
    void *blocks[BLOCKS];
    uint64_t random, left, sum;
    int lives;
    sem_t done;
} server;

static void *live(void *argument) {
    server *s = argument;
    uint64_t rounds = s->left / (uint64_t)s->lives;
    for (uint64_t i = 0; i < rounds; i++) {
        void **place = &s->blocks[suite_below(&s->random, BLOCKS)];
        s->sum += suite_release(*place);
        *place = suite_block(LEAST + suite_below(&s->random, MOST - LEAST));
    }
    s->left -= rounds;
    if (--s->lives > 0) {
        pthread_t next;
        if (pthread_create(&next, NULL, live, s) != 0) exit(5);
        pthread_detach(next);
    } else {
        sem_post(&s->done);
    }
    return NULL;
}

static uint64_t total, sums[64];

static void *serve(void *argument) {
    int which = (int)(long)argument;
    server *s = suite_checked(malloc(sizeof *s));
    s->random = suite_seed((uint64_t)which);
    s->left = suite_share(total, which), s->sum = 0, s->lives = LIVES;
    for (int i = 0; i < BLOCKS; i++) s->blocks[i] = suite_block(LEAST + suite_below(&s->random, MOST - LEAST));
    sem_init(&s->done, 0, 0);
    live(s);
    sem_wait(&s->done);
    for (int i = 0; i < BLOCKS; i++) s->sum += suite_release(s->blocks[i]);
    sums[which] = s->sum;
    free(s);
    return NULL;
}

int main(int count, char **words) {
    suite_begin(count, words);
    total = suite_scaled(2e7);
    suite_parallel(serve);
    uint64_t checksum = 0;
    for (int i = 0; i < 64; i++) checksum += sums[i];
    return suite_end(total, checksum);
}
