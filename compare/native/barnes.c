/* Gravity among bodies with an octree (Barnes and Hut, 1986): the tree is built from the heap and
 * freed at every step; in between it is walked, so what counts is where the nodes lie. After barnes of
 * SPLASH, by its description. One thread.
 */
#include <math.h>

#include "suite.h"

typedef struct node {
    double mass, at[3], middle[3], size;
    struct node *child[8];
    struct body *body;
} node;
typedef struct body {
    double mass, at[3], speed[3], pull[3];
} body;

static uint64_t made;

static node *make(const double *middle, double size) {
    node *n = suite_checked(calloc(1, sizeof *n));
    memcpy(n->middle, middle, sizeof n->middle);
    n->size = size;
    made++;
    return n;
}
static int side(const node *n, const double *at) {
    return (at[0] > n->middle[0]) | (at[1] > n->middle[1]) << 1 | (at[2] > n->middle[2]) << 2;
}
static void insert(node *n, body *b, int depth) {
    if (!n->body && n->mass == 0) {
        n->body = b;
        n->mass = b->mass;
        return;
    }
    body *old = n->body;
    n->body = NULL;
    n->mass += b->mass;
    body *both[2] = {old, b};
    for (int i = 0; i < 2; i++) {
        if (!both[i] || depth > 60) continue;
        int s = side(n, both[i]->at);
        if (!n->child[s]) {
            double middle[3];
            for (int d = 0; d < 3; d++) middle[d] = n->middle[d] + (s >> d & 1 ? 0.25 : -0.25) * n->size;
            n->child[s] = make(middle, n->size / 2);
        }
        insert(n->child[s], both[i], depth + 1);
    }
}
static void weigh(node *n) {
    if (n->body) {
        memcpy(n->at, n->body->at, sizeof n->at);
        return;
    }
    for (int i = 0; i < 8; i++) {
        if (!n->child[i]) continue;
        weigh(n->child[i]);
        for (int d = 0; d < 3; d++) n->at[d] += n->child[i]->at[d] * n->child[i]->mass / n->mass;
    }
}
static void attract(const node *n, body *b) {
    double way[3], square = 1e-4;
    for (int d = 0; d < 3; d++) way[d] = n->at[d] - b->at[d], square += way[d] * way[d];
    if (n->body || n->size * n->size < 0.6 * square) {
        double pull = n->mass / (square * sqrt(square));
        for (int d = 0; d < 3; d++) b->pull[d] += pull * way[d];
        return;
    }
    for (int i = 0; i < 8; i++)
        if (n->child[i]) attract(n->child[i], b);
}
static void drop(node *n) {
    for (int i = 0; i < 8; i++)
        if (n->child[i]) drop(n->child[i]);
    free(n);
}

int main(int count, char **words) {
    suite_begin(count, words);
    size_t bodies = suite_scaled(16000);
    body **all = suite_checked(malloc(bodies * sizeof *all));
    uint64_t state = suite_seed(2);
    for (size_t i = 0; i < bodies; i++) {
        all[i] = suite_checked(calloc(1, sizeof(body)));
        all[i]->mass = 1.0 / (double)bodies;
        for (int d = 0; d < 3; d++) all[i]->at[d] = (double)(suite_random(&state) >> 11) * 0x1p-53;
    }
    uint64_t checksum = 0;
    for (int step = 0; step < 8; step++) {
        double middle[3] = {0.5, 0.5, 0.5};
        node *root = make(middle, 4.0);
        for (size_t i = 0; i < bodies; i++) insert(root, all[i], 0);
        weigh(root);
        for (size_t i = 0; i < bodies; i++) {
            memset(all[i]->pull, 0, sizeof all[i]->pull);
            attract(root, all[i]);
        }
        for (size_t i = 0; i < bodies; i++)
            for (int d = 0; d < 3; d++) {
                all[i]->speed[d] += 1e-3 * all[i]->pull[d];
                all[i]->at[d] += 1e-3 * all[i]->speed[d];
                checksum += (uint64_t)(int64_t)(all[i]->at[d] * 1e9);
            }
        drop(root);
    }
    for (size_t i = 0; i < bodies; i++) free(all[i]);
    free(all);
    return suite_end(made, checksum);
}
