/* Half of the threads only allocate, the other half only frees; batches of blocks pass through a queue
 * of bounded length. After xmalloc-test (Lever and Boreham, 2000), by its description.
 */
#include "suite.h"

enum { BATCH = 100, QUEUE = 128 };

typedef struct batch {
    struct batch *next;
    void *blocks[BATCH];
} batch;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t filled = PTHREAD_COND_INITIALIZER, emptied = PTHREAD_COND_INITIALIZER;
static batch *queue;
static int waiting, makers_left;
static uint64_t total, sums[64];

static void *make(void *argument) {
    static const uint16_t sizes[] = {8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048};
    int which = (int)(long)argument;
    uint64_t random = suite_seed((uint64_t)which), batches = suite_share(total, which) / BATCH;
    for (uint64_t i = 0; i < batches; i++) {
        batch *b = suite_checked(malloc(sizeof *b));
        for (int j = 0; j < BATCH; j++) b->blocks[j] = suite_block(sizes[suite_below(&random, 16)]);
        pthread_mutex_lock(&lock);
        while (waiting == QUEUE) pthread_cond_wait(&emptied, &lock);
        b->next = queue, queue = b, waiting++;
        pthread_cond_signal(&filled);
        pthread_mutex_unlock(&lock);
    }
    pthread_mutex_lock(&lock);
    makers_left--;
    pthread_cond_broadcast(&filled);
    pthread_mutex_unlock(&lock);
    return NULL;
}
static void *use(void *argument) {
    int which = (int)(long)argument;
    for (;;) {
        pthread_mutex_lock(&lock);
        while (!queue && makers_left > 0) pthread_cond_wait(&filled, &lock);
        batch *b = queue;
        if (b) queue = b->next, waiting--;
        pthread_cond_signal(&emptied);
        pthread_mutex_unlock(&lock);
        if (!b) return NULL;
        for (int j = 0; j < BATCH; j++) sums[which] += suite_release(b->blocks[j]);
        free(b);
    }
}
static void *work(void *argument) {
    /* Two threads for each that was asked for, half of them at work on either side. */
    pthread_t user;
    if (pthread_create(&user, NULL, use, argument) != 0) exit(5);
    make(argument);
    pthread_join(user, NULL);
    return NULL;
}

int main(int count, char **words) {
    suite_begin(count, words);
    total = suite_scaled(6e6);
    suite.threads = (suite.threads + 1) / 2;
    makers_left = suite.threads;
    suite_parallel(work);
    uint64_t checksum = 0;
    for (int i = 0; i < 64; i++) checksum += sums[i];
    return suite_end(total, checksum);
}
