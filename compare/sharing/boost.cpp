// The loads of several processes over Boost.Interprocess's managed_shared_memory: what mod.rs,
// exchange.rs and life.rs do, number for number.
//
// Its default segment manager is used (red-black tree best fit under a mutex in the segment), and
// blocks go from process to process as handles, since each maps the segment where it likes.

#include <atomic>
#include <boost/interprocess/managed_shared_memory.hpp>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <memory>
#include <sched.h>
#include <stdexcept>
#include <string>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <vector>

namespace ipc = boost::interprocess;
using Segment = ipc::managed_shared_memory;
using Handle = Segment::handle_t;

static const size_t MIB = 1 << 20;
// In the word that carries a block's size.
static const uint64_t MARKED = uint64_t(1) << 63;
static const size_t MOST = 64, RING = 256, LIVE = 64, BLOCK = 4096;

static uint64_t now() {
    timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return uint64_t(time.tv_sec) * 1000000000 + time.tv_nsec;
}

static uint64_t mix(uint64_t x) {
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
    x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
    return x ^ (x >> 31);
}

struct Random {
    uint64_t state;
    explicit Random(uint64_t stream) : state(mix((stream + 1) * 0xd1342543de82ef95)) {}
    uint64_t next() { return mix(state += 0x9e3779b97f4a7c15); }
    uint64_t below(uint64_t end) { return ((next() >> 32) * end) >> 32; }
};

enum Sizes { SMALL, WIDE };

static size_t draw(Sizes sizes, Random &random) {
    if (sizes == SMALL) return size_t(256) << random.below(5);
    size_t low = size_t(8) << random.below(16);
    return low + random.below(low);
}

struct alignas(64) Line {
    std::atomic<uint64_t> value;
};

struct Ring {
    Line pushed, popped;
    std::atomic<uint64_t> places[RING][2];

    bool push(uint64_t block, uint64_t size) {
        uint64_t at = pushed.value.load(std::memory_order_relaxed);
        if (at - popped.value.load(std::memory_order_acquire) == RING) return false;
        places[at % RING][0].store(block, std::memory_order_relaxed);
        places[at % RING][1].store(size, std::memory_order_relaxed);
        pushed.value.store(at + 1, std::memory_order_release);
        return true;
    }
    bool pop(uint64_t &block, uint64_t &size) {
        uint64_t at = popped.value.load(std::memory_order_relaxed);
        if (at == pushed.value.load(std::memory_order_acquire)) return false;
        block = places[at % RING][0].load(std::memory_order_relaxed);
        size = places[at % RING][1].load(std::memory_order_relaxed);
        popped.value.store(at + 1, std::memory_order_release);
        return true;
    }
};

struct Result {
    Line began, ended, checksum, fine;
};

struct Outcome {
    uint64_t operations, checksum;
    double seconds;
};

static int fork_to(const std::function<void()> &work) {
    int pid = fork();
    if (pid < 0) throw std::runtime_error("fork");
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        work();
        _exit(0);
    }
    return pid;
}

struct Control {
    Line ready;
    std::atomic<uint64_t> words[8];
    Result results[MOST];
    Ring rings[MOST];

    static Control *make() {
        void *place = mmap(nullptr, sizeof(Control), PROT_READ | PROT_WRITE,
                           MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        if (place == MAP_FAILED) throw std::runtime_error("no memory");
        return static_cast<Control *>(place);
    }
    void meet(size_t count) {
        ready.value++;
        while (ready.value < count) sched_yield();
    }
    uint64_t wait(size_t word, uint64_t value) {
        for (;;) {
            uint64_t seen = words[word].load(std::memory_order_acquire);
            if (seen >= value) return seen;
            sched_yield();
        }
    }
    void begin(size_t number) { results[number].began.value = now(); }
    void end(size_t number) { results[number].ended.value = now(); }

    Outcome run(size_t count, uint64_t operations, const std::function<uint64_t(size_t)> &work) {
        std::vector<int> pids;
        for (size_t number = 0; number < count; number++) {
            pids.push_back(fork_to([&] {
                try {
                    uint64_t sum = work(number);
                    if (results[number].ended.value == 0) end(number);
                    results[number].checksum.value = sum;
                    results[number].fine.value = 1;
                } catch (const std::exception &error) {
                    fprintf(stderr, "process %zu: %s\n", number, error.what());
                }
            }));
        }
        for (int pid : pids) waitpid(pid, nullptr, 0);
        Outcome outcome = {operations, 0, 0};
        uint64_t began = ~uint64_t(0), ended = 0;
        for (size_t number = 0; number < count; number++) {
            if (results[number].fine.value != 1) throw std::runtime_error("a process failed");
            began = std::min(began, results[number].began.value.load());
            ended = std::max(ended, results[number].ended.value.load());
            outcome.checksum += results[number].checksum.value;
        }
        outcome.seconds = double(ended - began) / 1e9;
        return outcome;
    }
};

// A segment with a name that goes with this object, in the process that made it.
struct Place {
    std::string name;
    int owner;
    explicit Place(size_t bytes) : name("hshm-compare-" + std::to_string(getpid())), owner(getpid()) {
        ipc::shared_memory_object::remove(name.c_str());
        Segment(ipc::create_only, name.c_str(), bytes);
    }
    ~Place() {
        if (getpid() == owner) ipc::shared_memory_object::remove(name.c_str());
    }
};

struct Heap {
    Segment segment;
    explicit Heap(const Place &place) : segment(ipc::open_only, place.name.c_str()) {}
    // Null where there is no memory.
    uint64_t allocate(size_t size) {
        void *block = segment.allocate(size, std::nothrow);
        return block ? uint64_t(segment.get_handle_from_address(block)) : ~uint64_t(0);
    }
    uint64_t get(size_t size) {
        uint64_t block = allocate(size);
        if (block == ~uint64_t(0)) throw std::runtime_error("no memory");
        return block;
    }
    void free(uint64_t block) { segment.deallocate(at(block)); }
    char *at(uint64_t block) {
        return static_cast<char *>(segment.get_address_from_handle(Handle(block)));
    }
    void mark(uint64_t block, size_t size, uint64_t value) {
        memcpy(at(block), &value, 8);
        if (size >= 16) memcpy(at(block) + size - 8, &value, 8);
    }
    uint64_t read_back(uint64_t block, size_t size) {
        uint64_t first, last;
        memcpy(&first, at(block), 8);
        memcpy(&last, at(block) + (size < 16 ? 0 : size - 8), 8);
        if (first != last) throw std::runtime_error("a block was changed");
        return first;
    }
    uint64_t next(uint64_t block) {
        uint64_t found;
        memcpy(&found, at(block) + 8, 8);
        return found;
    }
};

struct Params {
    size_t processes = 2;
    double scale = 1;
    uint64_t share(uint64_t at_scale_one) const {
        return std::max<uint64_t>(uint64_t(at_scale_one * scale) / processes, 1);
    }
};

static const size_t HEAP = 512 * MIB;

static uint64_t operations(const Params &params) {
    return params.share(2000000);
}

static Outcome own(const Params &params, Sizes sizes) {
    uint64_t count = operations(params);
    Control *control = Control::make();
    Place place(HEAP);
    return control->run(params.processes, count * params.processes, [&](size_t number) {
        Heap heap(place);
        Random random(number);
        std::pair<uint64_t, size_t> live[LIVE] = {};
        uint64_t sum = 0;
        control->meet(params.processes);
        control->begin(number);
        for (uint64_t operation = 0; operation < count; operation++) {
            auto &slot = live[random.below(LIVE)];
            if (slot.second != 0) {
                sum += heap.read_back(slot.first, slot.second);
                heap.free(slot.first);
            }
            slot.second = draw(sizes, random);
            slot.first = heap.get(slot.second);
            heap.mark(slot.first, slot.second, operation);
        }
        for (auto &slot : live) {
            if (slot.second == 0) continue;
            sum += heap.read_back(slot.first, slot.second);
            heap.free(slot.first);
        }
        return sum;
    });
}

static Outcome others(const Params &params, Sizes sizes) {
    uint64_t count = operations(params);
    Control *control = Control::make();
    Place place(HEAP);
    return control->run(params.processes, count * params.processes, [&](size_t number) {
        Heap heap(place);
        Random random(number);
        Ring &inbox = control->rings[number];
        Ring &outbox = control->rings[(number + 1) % params.processes];
        uint64_t sum = 0, taken = 0;
        auto take = [&] {
            uint64_t block, size;
            if (!inbox.pop(block, size)) return false;
            if (size & MARKED) sum += heap.read_back(block, size & ~MARKED);
            heap.free(block);
            taken++;
            return true;
        };
        control->meet(params.processes);
        control->begin(number);
        for (uint64_t operation = 0; operation < count; operation++) {
            size_t size = draw(sizes, random);
            uint64_t block = heap.get(size);
            uint64_t marked = operation % 16 == 0 ? MARKED : 0;
            if (marked) heap.mark(block, size, operation);
            while (!outbox.push(block, size | marked))
                if (!take()) sched_yield();
            take();
        }
        while (taken < count)
            if (!take()) sched_yield();
        return sum;
    });
}

static Outcome give(const Params &params, bool taking) {
    size_t bytes = std::min(std::max(size_t(double(1024 * MIB) * params.scale), MIB), 1024 * MIB);
    Control *control = Control::make();
    Place place(bytes + bytes / 4 + 64 * MIB);
    return control->run(2, bytes / BLOCK, [&](size_t number) -> uint64_t {
        Heap heap(place);
        control->meet(2);
        const uint64_t none = ~uint64_t(0);
        if (number == 0) {
            uint64_t head = none;
            for (size_t block_number = 0; block_number < bytes / BLOCK; block_number++) {
                uint64_t block = heap.get(BLOCK);
                heap.mark(block, BLOCK, block_number);
                memcpy(heap.at(block) + 8, &head, 8);
                head = block;
            }
            if (!taking) {
                control->begin(0);
                control->begin(1);
            }
            // A block belongs to the segment, whoever allocated it: nothing is to be done for each.
            control->words[0] = head;
            control->wait(1, 1);
            return 0;
        }
        uint64_t head = control->wait(0, 1), sum = 0;
        heap.read_back(head, BLOCK);
        for (size_t which = 0; which < 2; which++) taking ? control->begin(which) : control->end(which);
        for (uint64_t block = head; block != none;) {
            sum += heap.read_back(block, BLOCK);
            uint64_t next = heap.next(block);
            heap.free(block);
            block = next;
        }
        if (taking) {
            control->end(0);
            control->end(1);
        }
        control->words[1] = 1;
        return sum;
    });
}

static Outcome attach(const Params &params) {
    uint64_t count = std::max<uint64_t>(uint64_t(200 * params.scale), 3);
    Control *control = Control::make();
    Place place(size_t(10) << 30);
    return control->run(2, count, [&](size_t number) -> uint64_t {
        if (number == 0) {
            Heap heap(place);
            for (int block = 0; block < 140; block++) heap.get(64 * MIB);
            control->words[0] = 1;
            control->wait(1, 1);
            return 0;
        }
        control->wait(0, 1);
        control->begin(0);
        control->begin(1);
        for (uint64_t turn = 0; turn < count; turn++) Heap heap(place);
        control->end(0);
        control->end(1);
        control->words[1] = 1;
        return 0;
    });
}

// What a process had that died is lost with Boost, and so is the segment if the process had its lock. What
// a program can do is what is timed: begin anew with another segment, and copy what it had into it
// (32 MiB here).
static Outcome recover(const Params &params) {
    uint64_t count = std::max<uint64_t>(uint64_t(8 * params.scale), 1);
    const size_t bytes_of_heap = 256 * MIB, part = 512 << 10;
    Outcome outcome = {count, 0, 0};
    for (uint64_t round = 0; round < count; round++) {
        Control *control = Control::make();
        auto place = std::make_unique<Place>(bytes_of_heap);
        auto survivor = std::make_unique<Heap>(*place);
        std::vector<uint64_t> own;
        for (size_t bytes = 0; bytes < 32 * MIB; bytes += part) {
            own.push_back(survivor->get(part));
            memset(survivor->at(own.back()), 1, part);
        }
        int victim = fork_to([&] {
            Heap heap(*place);
            Random random(round);
            std::vector<uint64_t> held;
            for (size_t bytes = 0; bytes < 128 * MIB;) {
                size_t size = draw(WIDE, random);
                uint64_t block = heap.allocate(size);
                if (block == ~uint64_t(0)) break;
                heap.mark(block, size, round);
                held.push_back(block);
                bytes += size;
            }
            control->words[0] = 1;
            for (;;) {
                size_t slot = random.below(held.size());
                heap.free(held[slot]);
                held[slot] = heap.allocate(draw(WIDE, random));
                if (held[slot] == ~uint64_t(0)) {
                    held[slot] = held.back();
                    held.pop_back();
                }
            }
        });
        control->wait(0, 1);
        usleep(5000 + 1000 * round);
        kill(victim, SIGKILL);
        waitpid(victim, nullptr, 0);
        uint64_t start = now();
        ipc::shared_memory_object::remove(place->name.c_str());
        auto fresh = std::make_unique<Place>(bytes_of_heap);
        auto heir = std::make_unique<Heap>(*fresh);
        size_t bytes = 0;
        for (uint64_t block : own) {
            memcpy(heir->at(heir->get(part)), survivor->at(block), part);
            bytes += part;
        }
        for (; bytes < 224 * MIB; bytes += part) heir->get(part);
        outcome.seconds += double(now() - start) / 1e9;
        survivor.reset();
        place.reset();
    }
    return outcome;
}

struct Load {
    const char *name, *about;
    std::function<Outcome(const Params &)> run;
};

int main(int argc, char **argv) {
    const std::vector<Load> loads = {
        {"own-small", "", [](const Params &p) { return own(p, SMALL); }},
        {"own-wide", "", [](const Params &p) { return own(p, WIDE); }},
        {"others-small", "", [](const Params &p) { return others(p, SMALL); }},
        {"others-wide", "", [](const Params &p) { return others(p, WIDE); }},
        {"give-1g", "", [](const Params &p) { return give(p, false); }},
        {"take-1g", "", [](const Params &p) { return give(p, true); }},
        {"attach-10g", "", attach},
        {"recover", "", recover},
    };
    std::string name = argc > 1 ? argv[1] : "";
    if (name == "--list") {
        for (auto &load : loads) printf("%s\tsharing\t0\t1\t%s\n", load.name, load.about);
        return 0;
    }
    Params params;
    for (int index = 2; index < argc; index++) {
        std::string argument = argv[index], key = argument.substr(0, argument.find('='));
        double value = atof(argument.c_str() + key.size() + 1);
        if (key == "threads") params.processes = size_t(value);
        if (key == "scale") params.scale = value;
    }
    if (params.processes < 1 || params.processes > MOST) {
        fprintf(stderr, "threads: 1 to %zu\n", MOST);
        return 1;
    }
    for (auto &load : loads) {
        if (name != load.name) continue;
        try {
            Outcome outcome = load.run(params);
            uint64_t peak = 0;
            std::ifstream status("/proc/self/status");
            for (std::string line; std::getline(status, line);)
                if (line.rfind("VmHWM:", 0) == 0) peak = strtoull(line.c_str() + 6, nullptr, 10);
            printf("operations=%llu checksum=%016llx seconds=%.9f peak_kib=%llu\n",
                   (unsigned long long)outcome.operations, (unsigned long long)outcome.checksum,
                   outcome.seconds, (unsigned long long)peak);
            return 0;
        } catch (const std::exception &error) {
            fprintf(stderr, "%s: %s\n", name.c_str(), error.what());
            return 1;
        }
    }
    fprintf(stderr, "%s: there is no such load\n", name.c_str());
    return 1;
}
