/* Factors a number by continued fractions (Morrison and Brillhart, 1975), with numbers of any length
 * on the heap: every operation makes a new number and frees what it came from. Nearly all blocks are
 * 16 to 48 bytes and live for a few operations. After cfrac of Zorn's suite, by its description.
 * One thread.
 */
#include "suite.h"

typedef struct {
    int length; /* in limbs, without leading zeros */
    uint32_t limbs[];
} number;

static uint64_t made;

static number *make(int length) {
    made++;
    number *n = suite_checked(malloc(sizeof(number) + 4 * (size_t)(length > 0 ? length : 1)));
    n->length = length;
    return n;
}
static number *trim(number *n) {
    while (n->length > 0 && n->limbs[n->length - 1] == 0) n->length--;
    return n;
}
static number *from(uint64_t value) {
    number *n = make(2);
    n->limbs[0] = (uint32_t)value;
    n->limbs[1] = (uint32_t)(value >> 32);
    return trim(n);
}
static number *copy(const number *a) {
    number *n = make(a->length);
    memcpy(n->limbs, a->limbs, 4 * (size_t)a->length);
    return n;
}
static int compare(const number *a, const number *b) {
    if (a->length != b->length) return a->length < b->length ? -1 : 1;
    for (int i = a->length; i-- > 0;)
        if (a->limbs[i] != b->limbs[i]) return a->limbs[i] < b->limbs[i] ? -1 : 1;
    return 0;
}
static number *add(const number *a, const number *b) {
    if (a->length < b->length) return add(b, a);
    number *n = make(a->length + 1);
    uint64_t carry = 0;
    for (int i = 0; i < a->length; i++) {
        carry += (uint64_t)a->limbs[i] + (i < b->length ? b->limbs[i] : 0);
        n->limbs[i] = (uint32_t)carry;
        carry >>= 32;
    }
    n->limbs[a->length] = (uint32_t)carry;
    return trim(n);
}
/* a >= b */
static number *subtract(const number *a, const number *b) {
    number *n = make(a->length);
    int64_t borrow = 0;
    for (int i = 0; i < a->length; i++) {
        borrow += (int64_t)a->limbs[i] - (i < b->length ? b->limbs[i] : 0);
        n->limbs[i] = (uint32_t)borrow;
        borrow >>= 32;
    }
    return trim(n);
}
static number *multiply(const number *a, const number *b) {
    number *n = make(a->length + b->length);
    memset(n->limbs, 0, 4 * (size_t)n->length);
    for (int i = 0; i < a->length; i++) {
        uint64_t carry = 0;
        for (int j = 0; j < b->length; j++) {
            carry += (uint64_t)a->limbs[i] * b->limbs[j] + n->limbs[i + j];
            n->limbs[i + j] = (uint32_t)carry;
            carry >>= 32;
        }
        n->limbs[i + b->length] = (uint32_t)carry;
    }
    return trim(n);
}
static uint32_t modulo_small(const number *a, uint32_t divisor) {
    uint64_t rest = 0;
    for (int i = a->length; i-- > 0;) rest = ((rest << 32) | a->limbs[i]) % divisor;
    return (uint32_t)rest;
}
static number *divide_small(const number *a, uint32_t divisor) {
    number *n = make(a->length);
    uint64_t rest = 0;
    for (int i = a->length; i-- > 0;) {
        rest = (rest << 32) | a->limbs[i];
        n->limbs[i] = (uint32_t)(rest / divisor);
        rest %= divisor;
    }
    return trim(n);
}
static number *half(const number *a) {
    number *n = make(a->length);
    for (int i = 0; i < a->length; i++)
        n->limbs[i] = a->limbs[i] >> 1 | (i + 1 < a->length ? a->limbs[i + 1] << 31 : 0);
    return trim(n);
}
static int bits(const number *a) {
    return a->length ? 32 * a->length - __builtin_clz(a->limbs[a->length - 1]) : 0;
}
static number *shifted(const number *a, int by) {
    number *n = make(a->length + by / 32 + 1);
    memset(n->limbs, 0, 4 * (size_t)n->length);
    for (int i = 0; i < a->length; i++) {
        uint64_t wide = (uint64_t)a->limbs[i] << (by % 32);
        n->limbs[i + by / 32] |= (uint32_t)wide;
        n->limbs[i + by / 32 + 1] |= (uint32_t)(wide >> 32);
    }
    return trim(n);
}
/* The quotient; the rest goes to *rest. Bit by bit, in the manner of a program that was not tuned. */
static number *divide(const number *a, const number *b, number **rest) {
    number *left = copy(a), *quotient = from(0);
    int steps = bits(a) - bits(b);
    number *divisor = steps > 0 ? shifted(b, steps) : copy(b);
    for (; steps >= 0; steps--) {
        number *doubled = add(quotient, quotient);
        free(quotient);
        quotient = doubled;
        if (compare(left, divisor) >= 0) {
            number *less = subtract(left, divisor), *one = from(1), *more = add(quotient, one);
            free(left), free(one), free(quotient);
            left = less, quotient = more;
        }
        number *halved = half(divisor);
        free(divisor);
        divisor = halved;
    }
    free(divisor);
    *rest = left;
    return quotient;
}
static number *modulo(number *a, const number *b) {
    number *rest;
    free(divide(a, b, &rest));
    free(a);
    return rest;
}
static number *root(const number *a) {
    number *guess = shifted(a, 0), *one = from(1);
    free(guess);
    guess = shifted(one, bits(a) / 2 + 1);
    for (;;) {
        number *rest, *other = divide(a, guess, &rest), *sum = add(guess, other), *next = half(sum);
        free(rest), free(other), free(sum);
        if (compare(next, guess) >= 0) {
            free(next), free(one);
            return guess;
        }
        free(guess);
        guess = next;
    }
}
static number *divisor_of(const number *a, const number *b) {
    number *x = copy(a), *y = copy(b);
    while (y->length > 0) {
        number *rest = modulo(x, y);
        x = y, y = rest;
    }
    free(y);
    return x;
}

enum { PRIMES = 120, WORDS = 2, RELATIONS = 160 };

typedef struct {
    number *left;               /* A, with A^2 = (-1)^n Q modulo N */
    unsigned char powers[PRIMES + 1]; /* [0]: the sign */
    uint64_t odd[WORDS];
    uint64_t uses[RELATIONS / 64 + 1];
} relation;

static uint32_t base[PRIMES + 1];
static int base_length;

static uint32_t power(uint64_t a, uint32_t e, uint32_t p) {
    uint64_t r = 1;
    for (a %= p; e; e >>= 1, a = a * a % p)
        if (e & 1) r = r * a % p;
    return (uint32_t)r;
}

/* Takes the powers of the factor base out of `value`; whether nothing else is left. */
static int is_smooth(const number *value, relation *r) {
    number *left = copy(value);
    for (int i = 1; i <= base_length && left->length > 0; i++)
        while (modulo_small(left, base[i]) == 0) {
            number *less = divide_small(left, base[i]);
            free(left);
            left = less;
            if (++r->powers[i] == 250) break;
        }
    int smooth = left->length == 1 && left->limbs[0] == 1;
    free(left);
    return smooth;
}

/* A factor from relations whose product is a square. */
static number *try(relation *all, const relation *sum, const number *n) {
    number *x = from(1), *y = from(1);
    unsigned total[PRIMES + 1] = {0};
    for (int i = 0; i < RELATIONS; i++) {
        if (!(sum->uses[i / 64] >> (i % 64) & 1)) continue;
        number *product = multiply(x, all[i].left);
        free(x);
        x = modulo(product, n);
        for (int p = 1; p <= base_length; p++) total[p] += all[i].powers[p];
    }
    for (int p = 1; p <= base_length; p++)
        for (unsigned i = 0; i < total[p] / 2; i++) {
            number *factor = from(base[p]), *product = multiply(y, factor);
            free(factor), free(y);
            y = modulo(product, n);
        }
    number *difference = compare(x, y) >= 0 ? subtract(x, y) : subtract(y, x);
    number *found = divisor_of(n, difference);
    free(x), free(y), free(difference);
    return found;
}

static number *factor(const number *n) {
    base_length = 0;
    for (uint32_t p = 2; base_length < PRIMES; p++) {
        int prime = 1;
        for (uint32_t d = 2; d * d <= p && prime; d++) prime = p % d != 0;
        if (prime && (p == 2 || power(modulo_small(n, p), (p - 1) / 2, p) <= 1)) base[++base_length] = p;
    }
    relation *all = suite_checked(calloc(RELATIONS, sizeof *all));
    number *start = root(n), *m = copy(start), *previous = from(1), *result = NULL;
    number *square = multiply(start, start), *q = subtract(n, square), *q_before = from(1);
    number *left = copy(start);
    free(square);
    int found = 0, sign = 1;
    while (found < RELATIONS && q->length > 0) {
        relation *r = &all[found];
        memset(r, 0, sizeof *r);
        r->powers[0] = (unsigned char)sign;
        if (is_smooth(q, r)) {
            r->left = copy(left);
            for (int i = 0; i <= base_length; i++)
                if (r->powers[i] & 1) r->odd[i / 64] |= 1ull << (i % 64);
            r->uses[found / 64] |= 1ull << (found % 64);
            found++;
        }
        /* One step of the expansion of the root of n. */
        number *rest, *sum = add(start, m), *digit = divide(sum, q, &rest);
        number *product = multiply(digit, q), *m_next = subtract(product, m);
        free(sum), free(rest), free(product);
        number *step, *q_next;
        if (compare(m, m_next) >= 0) {
            number *less = subtract(m, m_next);
            step = multiply(digit, less), q_next = add(q_before, step);
            free(less);
        } else {
            number *more = subtract(m_next, m);
            step = multiply(digit, more), q_next = subtract(q_before, step);
            free(more);
        }
        free(step), free(q_before), free(m);
        q_before = q, q = q_next, m = m_next;
        number *scaled = multiply(digit, left), *next = add(scaled, previous);
        free(scaled), free(digit), free(previous);
        previous = left, left = modulo(next, n);
        sign = !sign;
    }
    /* Gauss: sums of relations with even powers only. */
    relation *rows = suite_checked(malloc(RELATIONS * sizeof *rows));
    memcpy(rows, all, RELATIONS * sizeof *rows);
    int used[RELATIONS] = {0};
    for (int column = 0; column <= base_length; column++) {
        int pivot = 0;
        while (pivot < found && (used[pivot] || !(rows[pivot].odd[column / 64] >> (column % 64) & 1))) pivot++;
        if (pivot == found) continue;
        used[pivot] = 1;
        for (int i = 0; i < found; i++)
            if (i != pivot && rows[i].odd[column / 64] >> (column % 64) & 1) {
                for (int w = 0; w < WORDS; w++) rows[i].odd[w] ^= rows[pivot].odd[w];
                for (int w = 0; w <= RELATIONS / 64; w++) rows[i].uses[w] ^= rows[pivot].uses[w];
            }
    }
    for (int i = 0; i < found && !result; i++) {
        if (rows[i].odd[0] | rows[i].odd[1]) continue;
        number *candidate = try(all, &rows[i], n);
        int trivial = compare(candidate, n) == 0 || (candidate->length == 1 && candidate->limbs[0] == 1);
        if (trivial) free(candidate);
        else result = candidate;
    }
    for (int i = 0; i < found; i++) free(all[i].left);
    free(all), free(rows), free(start), free(m), free(previous), free(q), free(q_before), free(left);
    return result;
}

int main(int count, char **words) {
    suite_begin(count, words);
        static const uint32_t primes[] = {1000000007, 1000000009, 998244353, 1000000021, 1000000033, 999999937, 1000000087, 1000000093};
    uint64_t checksum = 0, numbers = suite_scaled(40);
    for (uint64_t i = 0; i < numbers; i++) {
        /* The other factor need not be a prime: any factor will do. */
        number *p = from(primes[i % 8]), *q = from((primes[(i + 3) % 8] * 2051ull + 2 * i) | 1);
        number *n = multiply(p, q);
        number *found = factor(n);
        if (found) {
            for (int l = 0; l < found->length; l++) checksum = checksum * 31 + found->limbs[l];
            number *rest;
            free(divide(n, found, &rest));
            if (rest->length > 0) return 6;
            free(rest), free(found);
        }
        free(p), free(q), free(n);
    }
    return suite_end(made, checksum);
}
