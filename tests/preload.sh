#!/usr/bin/env bash
# Runs ordinary programs on libhshm.so, unmodified, and checks what they print. Programs that are not
# installed are skipped, by name. Ends with a line "N passed, N failed, N skipped".
#
#   tests/preload.sh [backend]      backend: private (default) or memfd
set -uo pipefail
cd "$(dirname "$0")/.."

target=${CARGO_TARGET_DIR:-$PWD/target}
cargo build --quiet --release --features c-api || exit 1
library=$target/release/libhshm.so
export HSHM_BACKEND=${1:-private}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
passed=0 failed=0 skipped=0

# preloaded NAME EXPECTED COMMAND...: the command's last line of output has to match.
preloaded() {
    local name=$1 expected=$2 output status
    shift 2
    if ! command -v "$1" >/dev/null; then
        echo "skipped $name"
        skipped=$((skipped + 1))
        return
    fi
    output=$(LD_PRELOAD=$library timeout 600 "$@" 2>&1)
    status=$?
    if [[ $status == 0 && $(tail -n 1 <<<"$output") == $expected ]]; then
        echo "ok      $name"
        passed=$((passed + 1))
    else
        echo "FAILED  $name (status $status)"
        tail -n 5 <<<"$output"
        failed=$((failed + 1))
    fi
}

# What the library needs is loaded into every process: only the C library may be.
if command -v readelf >/dev/null && [[ -e $(cc -print-file-name=libgcc_eh.a 2>/dev/null) ]]; then
    if others=$(readelf -d "$library" | grep NEEDED | grep -v -e 'libc\.so' -e 'ld-linux'); then
        echo "FAILED  the library needs $others"
        failed=$((failed + 1))
    else
        echo "ok      nothing but the C library is needed"
        passed=$((passed + 1))
    fi
fi

cat >"$work/family.c" <<'C'
#define _GNU_SOURCE
#include <errno.h>
#include <malloc.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(c) do { if (!(c)) { printf("line %d: %s\n", __LINE__, #c); return 1; } } while (0)

int main(void) {
    for (size_t size = 0; size < 70000; size = size * 9 / 8 + 1) {
        char *p = malloc(size);
        CHECK(p && malloc_usable_size(p) >= size);
        CHECK((uintptr_t)p % (size > 8 ? 16 : 8) == 0);
        memset(p, 0x5A, malloc_usable_size(p));
        p = realloc(p, size * 3 + 1);
        CHECK(p);
        for (size_t i = 0; i < size; i++) CHECK(p[i] == 0x5A);
        free(p);
        char *z = calloc(size + 1, 3);
        CHECK(z);
        for (size_t i = 0; i < 3 * (size + 1); i++) CHECK(z[i] == 0);
        memset(z, 1, 3 * (size + 1));
        free(z);
    }
    for (size_t align = 8; align <= 8u << 20; align *= 2) {
        void *p = NULL;
        CHECK(posix_memalign(&p, align, 100) == 0 && (uintptr_t)p % align == 0);
        free(p);
        p = aligned_alloc(align, align);
        CHECK(p && (uintptr_t)p % align == 0);
        p = realloc(p, 10);
        CHECK(p);
        free(p);
        CHECK((p = memalign(align, 1)) && (uintptr_t)p % align == 0);
        free(p);
    }
    void *untouched = (void *)1;
    errno = 0;
    CHECK(posix_memalign(&untouched, 3, 8) == EINVAL && untouched == (void *)1 && errno == 0);
    CHECK(posix_memalign(&untouched, 16, SIZE_MAX / 2) == ENOMEM);
    volatile size_t huge = SIZE_MAX;
    errno = 0;
    CHECK(malloc(huge) == NULL && errno == ENOMEM);
    errno = 0;
    CHECK(calloc(huge / 2, 3) == NULL && errno == ENOMEM);
    char *kept = malloc(100);
    strcpy(kept, "kept");
    CHECK(realloc(kept, huge - 8) == NULL && strcmp(kept, "kept") == 0);
    CHECK(reallocarray(kept, huge / 2, 4) == NULL && strcmp(kept, "kept") == 0);
    errno = 7;
    free(kept);
    free(NULL);
    void *page = valloc(1), *pages = pvalloc(4097);
    CHECK(errno == 7);
    CHECK((uintptr_t)page % 4096 == 0 && (uintptr_t)pages % 4096 == 0);
    CHECK(malloc_usable_size(pages) >= 8192);
    free(page);
    free(pages);
    char *grown = NULL;
    for (size_t size = 1; size < 100u << 20; size *= 2) {
        CHECK((grown = realloc(grown, size)));
        grown[size - 1] = (char)size;
    }
    free(grown);
    CHECK(malloc_trim(0) == 1);
    CHECK(mallinfo2().uordblks < 64u << 20);
    puts("family works");
    return 0;
}
C
cat >"$work/objects.cc" <<'C'
#include <cstdint>
#include <cstdio>
#include <map>
#include <memory>
#include <new>
#include <string>
#include <thread>
#include <vector>

struct alignas(256) Wide { char bytes[300]; };

int main() {
    std::vector<std::thread> threads;
    std::vector<std::map<int, std::string>> maps(8);
    for (int t = 0; t < 8; t++)
        threads.emplace_back([&, t] {
            for (int i = 0; i < 20000; i++) maps[t][i] = std::string(i % 200, 'a' + t);
        });
    for (auto &thread : threads) thread.join();
    for (int i = 0; i < 1000; i++) {
        auto wide = std::make_unique<Wide[]>(3);
        if (reinterpret_cast<std::uintptr_t>(wide.get()) % 256) return 1;
    }
    volatile std::size_t huge = PTRDIFF_MAX;
    char *volatile none = new (std::nothrow) char[huge];
    if (none) return 2;
    try {
        char *volatile block = new char[huge];
        return block ? 3 : 4;
    } catch (const std::bad_alloc &) {
        std::puts("objects work");
    }
}
C
# Locked, the heap's addresses are not filled: that would be 64 GiB. The first time nothing was allocated yet.
cat >"$work/locks.c" <<'C'
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

int main(int count, char **words) {
    (void)words;
    for (int round = 0; round < 2; round++) {
        if (mlockall((count > 1 ? 0 : MCL_CURRENT) | MCL_FUTURE)) {
            puts("memory stays");
            return 0;
        }
        char *block = malloc(1 << 20), line[256];
        memset(block, round + 1, 1 << 20);
        FILE *status = fopen("/proc/self/status", "r");
        long resident = 1 << 30;
        while (status && fgets(line, sizeof line, status)) sscanf(line, "VmRSS: %ld", &resident);
        if (status) fclose(status);
        if (resident > 1 << 18) return printf("%ld KiB\n", resident), 1;
        free(block);
    }
    puts("memory stays");
}
C
if command -v gcc >/dev/null; then
    preloaded "gcc compiles C" "*" gcc -O2 "$work/family.c" -o "$work/family"
    preloaded "the malloc family" "family works" "$work/family"
    gcc -O1 "$work/locks.c" -o "$work/locks"
    preloaded "mlockall" "memory stays" "$work/locks"
    preloaded "mlockall of what comes" "memory stays" "$work/locks" future
fi
if command -v g++ >/dev/null; then
    preloaded "g++ compiles C++" "*" g++ -O1 -pthread "$work/objects.cc" -o "$work/objects"
    preloaded "new and delete" "objects work" "$work/objects"
fi
preloaded "bash" "3628800" bash -c 'f() { if (($1 < 2)); then echo 1; else echo $(($1 * $(f $(($1 - 1))))); fi; }; f 10'
preloaded "sort" "200000" bash -c 'seq 200000 | sort -R | sort -n | tail -n 1'
preloaded "python3, threads" "*49995000, 49995000, 49995000, 49995000*" python3 -c '
from concurrent.futures import ThreadPoolExecutor as Pool
print(list(Pool(4).map(lambda n: sum(int(str(i)) for i in range(n)), [10000] * 4)))'
preloaded "python3, forked workers" "*49995000, 49995000, 49995000, 49995000*" python3 -c '
import multiprocessing
def work(n): return sum(int(str(i)) for i in range(n))
with multiprocessing.get_context("fork").Pool(4) as pool: print(pool.map(work, [10000] * 4))'
preloaded "git" "*" git log --oneline -20
preloaded "sqlite3" "100000|5000050000" sqlite3 :memory: '
create table t(a integer primary key, b text);
with recursive n(x) as (select 1 union all select x + 1 from n where x < 100000) insert into t select x, hex(x) from n;
create index i on t(b); select count(*), sum(a) from t;'
preloaded "node" "500000500000" node -e '
let sum = 0; for (const o of Array.from({length: 1e6}, (_, i) => ({value: i + 1}))) sum += o.value; console.log(sum)'
preloaded "perl" "100000" perl -e 'my %h; $h{$_} = "x" x ($_ % 50) for 1..100000; print scalar(keys %h), "\n"'
preloaded "z3" "sat" z3 -in <<<'(declare-const a Int)(declare-const b Int)(assert (and (> (* a b) 100) (< (+ a b) 30)))(check-sat)'
preloaded "ghostscript" "5050" gs -q -dNODISPLAY -dBATCH -c '0 1 1 100 { add } for = quit'
preloaded "cargo" "*" cargo metadata --format-version 1 --offline --no-deps

# Two programs with one heap: what the one allocated the other reads and frees.
cat >"$work/pair.c" <<'C'
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct node { struct node *next; size_t size; unsigned char data[]; };

static struct node *make(size_t count) {
    struct node *head = NULL;
    for (size_t i = 0; i < count; i++) {
        size_t size = i % 500 == 0 ? 300000 : i * 7 % 3000;
        struct node *node = malloc(sizeof *node + size);
        if (!node) abort();
        node->next = head;
        node->size = size;
        memset(node->data, (int)size, size);
        head = node;
    }
    return head;
}

static size_t release(struct node *node) {
    size_t count = 0;
    while (node) {
        struct node *next = node->next;
        for (size_t i = 0; i < node->size; i++)
            if (node->data[i] != (unsigned char)node->size) abort();
        if (count % 3 == 0) node = realloc(node, sizeof *node + 2 * node->size);
        free(node);
        node = next;
        count++;
    }
    return count;
}

int main(int argc, char **argv) {
    if (argc == 1) {
        printf("%p\n", (void *)make(3000));
        fflush(stdout);
        if (getchar() == EOF) return 1;
        printf("%zu\n", release(make(5000)));
    } else {
        void *address;
        if (sscanf(argv[1], "%p", &address) != 1) return 1;
        printf("%zu %zu\n", release(address), release(make(5000)));
    }
    return 0;
}
C
if command -v gcc >/dev/null && gcc -O1 -o "$work/pair" "$work/pair.c"; then
    region=hshm-preload-$$
    export HSHM_REGION=$region
    mkfifo "$work/go"
    LD_PRELOAD=$library "$work/pair" <"$work/go" >"$work/said" &
    maker=$!
    exec 9>"$work/go"
    for _ in $(seq 1000); do [[ -s $work/said ]] && break || sleep 0.1; done
    preloaded "a program that frees what another allocated" "3000 5000" "$work/pair" "$(head -n 1 "$work/said")"
    preloaded "python3, threads, in the same heap" "*49995000, 49995000, 49995000, 49995000*" python3 -c '
from concurrent.futures import ThreadPoolExecutor as Pool
print(list(Pool(4).map(lambda n: sum(int(str(i)) for i in range(n)), [10000] * 4)))'
    preloaded "a program that forks and executes, in the same heap" "joined" python3 -c '
import subprocess
print(subprocess.run(["echo", "joined"], capture_output=True, text=True, start_new_session=True).stdout.strip())'
    echo go >&9
    exec 9>&-
    if wait $maker && [[ $(tail -n 1 "$work/said") == 5000 && ! -e /dev/shm/$region ]]; then
        echo "ok      the program whose blocks another freed"
        passed=$((passed + 1))
    else
        echo "FAILED  the program whose blocks another freed: $(tail -n 1 "$work/said")"
        failed=$((failed + 1))
        rm -f "/dev/shm/$region"
    fi
    unset HSHM_REGION
else
    echo "skipped two programs with one heap"
    skipped=$((skipped + 1))
fi

if command -v redis-server >/dev/null && command -v redis-benchmark >/dev/null; then
    socket=$work/redis.sock
    LD_PRELOAD=$library redis-server --port 0 --unixsocket "$socket" --dir "$work" --save '' >"$work/redis.log" 2>&1 &
    for _ in $(seq 1000); do redis-cli -s "$socket" ping >/dev/null 2>&1 && break || sleep 0.1; done
    redis-benchmark -s "$socket" -q -n 50000 -r 20000 -t set,get,lpush,sadd,hset >/dev/null 2>&1
    before=$(redis-cli -s "$socket" dbsize)
    redis-cli -s "$socket" bgsave >/dev/null
    redis-benchmark -s "$socket" -q -n 20000 -r 20000 -t set >/dev/null 2>&1
    for _ in $(seq 1000); do
        [[ $(redis-cli -s "$socket" info persistence) == *rdb_bgsave_in_progress:0* ]] && break || sleep 0.1
    done
    saved=$(redis-cli -s "$socket" info persistence | tr -d '\r' | sed -n 's/^rdb_last_bgsave_status://p')
    redis-cli -s "$socket" shutdown nosave >/dev/null 2>&1
    wait
    if [[ $saved == ok && $before -gt 10000 && -s $work/dump.rdb ]]; then
        echo "ok      redis under redis-benchmark, with BGSAVE"
        passed=$((passed + 1))
    else
        echo "FAILED  redis: status '$saved', $before keys"
        tail -n 5 "$work/redis.log"
        failed=$((failed + 1))
    fi
else
    echo "skipped redis"
    skipped=$((skipped + 1))
fi

echo "$passed passed, $failed failed, $skipped skipped"
[[ $failed == 0 ]]
