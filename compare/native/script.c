/* A small interpreter as scripting languages have it: counted references, boxed numbers, strings that are
 * made anew at every step, tables that double, and an environment for every call. One thread.
 */
#include <stddef.h>

#include "suite.h"

typedef struct object object;
typedef struct {
    object *key, *value;
} entry;
struct object {
    uint32_t references;
    enum { NUMBER, STRING, TABLE, PAIR } kind;
    union {
        double number;
        struct {
            uint32_t length;
            char text[];
        } string;
        struct {
            uint32_t used, room;
            entry *entries;
        } table;
        struct {
            object *first, *rest;
        } pair;
    };
};

static uint64_t made;

__attribute__((noinline)) static object *make(int kind, size_t extra) {
    object *o = suite_checked(malloc(kind == STRING ? offsetof(object, string.text) + extra : sizeof *o));
    o->references = 1;
    o->kind = kind;
    made++;
    return o;
}
static object *share(object *o) {
    if (o) o->references++;
    return o;
}
static void drop(object *o) {
    while (o && --o->references == 0) {
        object *next = NULL;
        if (o->kind == TABLE) {
            for (uint32_t i = 0; i < o->table.room; i++) drop(o->table.entries[i].key), drop(o->table.entries[i].value);
            free(o->table.entries);
        } else if (o->kind == PAIR) {
            drop(o->pair.first);
            next = o->pair.rest;
        }
        free(o);
        o = next;
    }
}
static object *number(double value) {
    object *o = make(NUMBER, 0);
    o->number = value;
    return o;
}
static object *string(const char *text, size_t length) {
    object *o = make(STRING, length + 1);
    o->string.length = (uint32_t)length;
    memcpy(o->string.text, text, length);
    o->string.text[length] = 0;
    return o;
}
static object *joined(object *a, object *b) {
    object *o = make(STRING, a->string.length + b->string.length + 1);
    o->string.length = a->string.length + b->string.length;
    memcpy(o->string.text, a->string.text, a->string.length);
    memcpy(o->string.text + a->string.length, b->string.text, b->string.length + 1);
    return o;
}
static object *pair(object *first, object *rest) {
    object *o = make(PAIR, 0);
    o->pair.first = first, o->pair.rest = rest;
    return o;
}
static object *table(void) {
    object *o = make(TABLE, 0);
    o->table.used = 0, o->table.room = 4;
    o->table.entries = suite_checked(calloc(4, sizeof(entry)));
    return o;
}
static uint64_t hash(const object *key) {
    uint64_t h = 14695981039346656037u;
    for (uint32_t i = 0; i < key->string.length; i++) h = (h ^ (unsigned char)key->string.text[i]) * 1099511628211u;
    return h;
}
static entry *place(entry *entries, uint32_t room, const object *key) {
    uint64_t at = hash(key);
    for (;; at++) {
        entry *e = &entries[at & (room - 1)];
        if (!e->key || (e->key->string.length == key->string.length &&
                        memcmp(e->key->string.text, key->string.text, key->string.length) == 0))
            return e;
    }
}
/* Takes both. */
static void set(object *t, object *key, object *value) {
    if (4 * t->table.used >= 3 * t->table.room) {
        uint32_t room = 2 * t->table.room;
        entry *entries = suite_checked(calloc(room, sizeof(entry)));
        for (uint32_t i = 0; i < t->table.room; i++)
            if (t->table.entries[i].key) *place(entries, room, t->table.entries[i].key) = t->table.entries[i];
        free(t->table.entries);
        t->table.entries = entries, t->table.room = room;
    }
    entry *e = place(t->table.entries, t->table.room, key);
    if (e->key) {
        drop(key), drop(e->value);
    } else {
        e->key = key;
        t->table.used++;
    }
    e->value = value;
}
static object *get(object *t, const object *key) { return share(place(t->table.entries, t->table.room, key)->value); }

/* fib(n), with a table for each call's variables. */
static object *fibonacci(object *n) {
    if (n->number < 2) return share(n);
    object *locals = table(), *name = string("n", 1), *sum = number(0);
    set(locals, share(name), share(n));
    for (int back = 1; back <= 2; back++) {
        object *variable = get(locals, name), *less = number(variable->number - back), *result = fibonacci(less);
        object *more = number(sum->number + result->number);
        drop(variable), drop(less), drop(result), drop(sum);
        sum = more;
    }
    drop(locals), drop(name);
    return sum;
}

int main(int count, char **words) {
    suite_begin(count, words);
    uint64_t checksum = 0, rounds = suite_scaled(100), random = suite_seed(4);
    for (uint64_t round = 0; round < rounds; round++) {
        object *n = number(18), *f = fibonacci(n);
        checksum += (uint64_t)f->number;
        drop(n), drop(f);
        /* Words counted in a table, then a sorted list of them, then one long string. */
        object *counts = table(), *list = NULL, *text = string("", 0);
        for (int i = 0; i < 20000; i++) {
            char name[24];
            uint64_t r = suite_below(&random, 3000);
            object *key = string(name, (size_t)snprintf(name, sizeof name, "name-%lu", (unsigned long)(r * r / 3000)));
            object *before = get(counts, key);
            set(counts, key, number(before ? before->number + 1 : 1));
            drop(before);
        }
        for (uint32_t i = 0; i < counts->table.room; i++) {
            entry *e = &counts->table.entries[i];
            if (e->key) list = pair(share(e->key), list);
        }
        for (object *item = list; item; item = item->pair.rest) {
            object *longer = joined(text, item->pair.first);
            drop(text);
            text = longer;
            if (text->string.length > 3000) {
                checksum += hash(text);
                drop(text);
                text = string("", 0);
            }
        }
        drop(counts), drop(list), drop(text);
    }
    return suite_end(made, checksum);
}
