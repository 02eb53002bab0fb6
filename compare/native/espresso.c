/* Makes sums of products smaller (Brayton and others, 1984: expand, irredundant), with covers as
 * arrays of bit vectors on the heap that are copied, cut and dropped at every step of the recursion.
 * Sizes are mixed, lives nested. After espresso of Zorn's suite, by its description. One thread.
 */
#include "suite.h"

/* A cube has two bits a variable: may be 0, may be 1. */
typedef struct {
    int words;
    uint64_t bits[];
} cube;

typedef struct {
    int count, room;
    cube **cubes;
} cover;

static int variables, words;
static uint64_t made;

static cube *cube_new(void) {
    cube *c = suite_checked(malloc(sizeof(cube) + 8 * (size_t)words));
    c->words = words;
    made++;
    return c;
}
static cube *cube_copy(const cube *a) {
    cube *c = cube_new();
    memcpy(c->bits, a->bits, 8 * (size_t)words);
    return c;
}
static int literal(const cube *c, int v) { return (int)(c->bits[v / 32] >> (2 * (v % 32)) & 3); }
static void set_literal(cube *c, int v, uint64_t value) {
    c->bits[v / 32] = (c->bits[v / 32] & ~(3ull << (2 * (v % 32)))) | value << (2 * (v % 32));
}
static cover *cover_new(int room) {
    cover *f = suite_checked(malloc(sizeof *f));
    f->count = 0, f->room = room;
    f->cubes = suite_checked(malloc(sizeof(cube *) * (size_t)(room ? room : 1)));
    made += 2;
    return f;
}
static void push(cover *f, cube *c) {
    if (f->count == f->room) {
        f->room = f->room * 2 + 4;
        f->cubes = suite_checked(realloc(f->cubes, sizeof(cube *) * (size_t)f->room));
        made++;
    }
    f->cubes[f->count++] = c;
}
static void drop(cover *f) {
    for (int i = 0; i < f->count; i++) free(f->cubes[i]);
    free(f->cubes);
    free(f);
}
static int meets(const cube *a, const cube *b) {
    const uint64_t low = 0x5555555555555555;
    for (int w = 0; w < words; w++) {
        uint64_t both = a->bits[w] & b->bits[w];
        if (((both | both >> 1) & low) != low) return 0;
    }
    return 1;
}
static int contains(const cube *a, const cube *b) {
    for (int w = 0; w < words; w++)
        if (b->bits[w] & ~a->bits[w]) return 0;
    return 1;
}
/* What is left of `f` inside `c`. */
static cover *cofactor(const cover *f, const cube *c, int without) {
    cover *g = cover_new(f->count / 2 + 1);
    for (int i = 0; i < f->count; i++) {
        if (i == without || !meets(f->cubes[i], c)) continue;
        cube *d = cube_new();
        for (int w = 0; w < words; w++) d->bits[w] = f->cubes[i]->bits[w] | ~c->bits[w];
        push(g, d);
    }
    return g;
}
static cube *everything(void) {
    cube *c = cube_new();
    memset(c->bits, 0xff, 8 * (size_t)words);
    return c;
}
/* Whether the cover is always true. Consumes it. */
static int tautology(cover *f) {
    int best = -1, most = 0, answer = -1;
    for (int i = 0; i < f->count && answer < 0; i++) {
        int full = 1;
        for (int w = 0; w < words; w++) full &= f->cubes[i]->bits[w] == ~0ull;
        if (full) answer = 1;
    }
    if (answer < 0) {
        for (int v = 0; v < variables; v++) {
            int zeros = 0, ones = 0;
            for (int i = 0; i < f->count; i++) {
                int l = literal(f->cubes[i], v);
                zeros += l == 1, ones += l == 2;
            }
            if (zeros && ones && zeros + ones > most) most = zeros + ones, best = v;
        }
        if (best < 0) answer = 0; /* unate, and no cube is everything */
    }
    if (answer < 0) {
        answer = 1;
        for (uint64_t value = 1; value <= 2 && answer; value++) {
            cube *side = everything();
            set_literal(side, best, value);
            answer = tautology(cofactor(f, side, -1));
            free(side);
        }
    }
    drop(f);
    return answer;
}
static int covers(const cover *f, const cube *c, int without) { return tautology(cofactor(f, c, without)); }

/* Makes cubes as large as the function allows. */
static void expand(cover *f, const cover *original) {
    for (int i = 0; i < f->count; i++)
        for (int v = 0; v < variables; v++) {
            int l = literal(f->cubes[i], v);
            if (l == 3) continue;
            cube *larger = cube_copy(f->cubes[i]);
            set_literal(larger, v, 3);
            if (covers(original, larger, -1)) {
                free(f->cubes[i]);
                f->cubes[i] = larger;
            } else {
                free(larger);
            }
        }
    for (int i = 0; i < f->count; i++)
        for (int j = 0; j < f->count; j++)
            if (i != j && contains(f->cubes[i], f->cubes[j])) {
                free(f->cubes[j]);
                f->cubes[j] = f->cubes[--f->count];
                if (i == f->count) i = j;
                j--;
            }
}
static void irredundant(cover *f) {
    for (int i = 0; i < f->count;)
        if (covers(f, f->cubes[i], i)) {
            free(f->cubes[i]);
            f->cubes[i] = f->cubes[--f->count];
        } else {
            i++;
        }
}

int main(int count, char **options) {
    suite_begin(count, options);
    uint64_t checksum = 0, functions = suite_scaled(80), state = suite_seed(1);
    for (uint64_t which = 0; which < functions; which++) {
        variables = 12 + (int)(which % 4) * 14;
        words = (2 * variables + 63) / 64;
        cover *f = cover_new(8);
        for (int i = 0; i < 56; i++) {
            cube *c = everything();
            /* Few variables matter to any one cube, so that cubes overlap. */
            for (int l = 0; l < 5; l++)
                set_literal(c, (int)suite_below(&state, 12), 1 + suite_below(&state, 2));
            push(f, c);
        }
        cover *original = cover_new(f->count);
        for (int i = 0; i < f->count; i++) push(original, cube_copy(f->cubes[i]));
        expand(f, original);
        irredundant(f);
        for (int i = 0; i < f->count; i++)
            for (int v = 0; v < variables; v++) checksum = checksum * 5 + (uint64_t)literal(f->cubes[i], v);
        drop(f), drop(original);
    }
    return suite_end(made, checksum);
}
