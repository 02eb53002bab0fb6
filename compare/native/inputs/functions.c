/* Some hundred functions, made by the preprocessor, for the C compiler to chew. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#define ONE(name, n) \
    static int name(int a, const char *s) { \
        int r = a * (n) + (int)strlen(s); \
        for (int i = 0; i < a; i++) { \
            switch (i % 5) { \
            case 0: r += i * ((n) + 1); break; \
            case 1: r ^= s[i % 4]; break; \
            case 2: r -= (int)sqrt((double)i); break; \
            default: r <<= 1; \
            } \
            if (r > i * (n)) r /= 3; \
        } \
        return r; \
    }
#define FEW(name, n) \
    ONE(name##a, n + 1) ONE(name##b, n + 2) ONE(name##c, n + 3) ONE(name##d, n + 4) ONE(name##e, n + 5) \
    int name(int a, const char *s) { \
        return name##a(a, s) + name##b(a, s) * name##c(a, s) - name##d(a, s) / (name##e(a, s) | 1); \
    }
#define MORE(name, n) FEW(name##0, n) FEW(name##1, n * 3) FEW(name##2, n * 5) FEW(name##3, n * 7) FEW(name##4, n * 11)
MORE(f, 1)
MORE(g, 2)
MORE(h, 3)
MORE(k, 4)
MORE(l, 5)
