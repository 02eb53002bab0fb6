// Random replacement in a large array of pointers, with sizes of a Pareto distribution; every block is
// written when it is made and read when it goes. After alloc-test (Ignatchenko), by its description.
#include <cmath>

#include "suite.h"

static uint64_t total, sums[64];

struct Slot {
    unsigned char *block;
    uint32_t size;
};

static size_t size(uint64_t *random) {
    double u = static_cast<double>((suite_random(random) >> 11) + 1) * 0x1p-53;
    double s = 12.0 * std::pow(u, -1.0 / 1.2);
    return s > 1024 ? 1024 : static_cast<size_t>(s);
}
static void *work(void *argument) {
    int which = static_cast<int>(reinterpret_cast<long>(argument));
    uint64_t random = suite_seed(static_cast<uint64_t>(which)), todo = suite_share(total, which);
    const size_t slots = (1 << 17) / static_cast<size_t>(suite.threads);
    Slot *all = new Slot[slots]();
    for (uint64_t i = 0; i < todo; i++) {
        // The square makes some slots short-lived and others long-lived.
        uint64_t a = suite_below(&random, slots), b = suite_below(&random, slots);
        Slot *slot = &all[a * b / slots];
        if (slot->block) {
            for (uint32_t at = 0; at < slot->size; at += 64) sums[which] += slot->block[at];
            delete[] slot->block;
            slot->block = nullptr;
        } else {
            slot->size = static_cast<uint32_t>(size(&random));
            slot->block = new unsigned char[slot->size];
            memset(slot->block, static_cast<int>(slot->size & 0x7f), slot->size);
        }
    }
    for (size_t i = 0; i < slots; i++) delete[] all[i].block;
    delete[] all;
    return nullptr;
}

int main(int count, char **words) {
    suite_begin(count, words);
    total = suite_scaled(6e6);
    suite_parallel(work);
    uint64_t checksum = 0;
    for (uint64_t sum : sums) checksum += sum;
    return suite_end(total, checksum);
}
