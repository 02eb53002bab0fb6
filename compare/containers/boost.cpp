// The loads of containers in shared memory over Boost.Interprocess: what loads.rs does, number for
// number.
//
// vector and basic_string are its own; unordered_map is Boost's, with its allocator, as its
// documentation shows. The segment is a managed_shared_memory as it comes. Words are looked up without
// making a string for it, by the map's find for compatible keys.

#include <algorithm>
#include <boost/functional/hash.hpp>
#include <boost/interprocess/allocators/allocator.hpp>
#include <boost/interprocess/containers/string.hpp>
#include <boost/interprocess/containers/vector.hpp>
#include <boost/interprocess/managed_shared_memory.hpp>
#include <boost/unordered_map.hpp>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <string>
#include <string_view>
#include <time.h>
#include <unistd.h>
#include <vector>

namespace ipc = boost::interprocess;
using Segment = ipc::managed_shared_memory;
using Manager = Segment::segment_manager;
template <class T> using Alloc = ipc::allocator<T, Manager>;
template <class T> using Vec = ipc::vector<T, Alloc<T>>;
using Text = ipc::basic_string<char, std::char_traits<char>, Alloc<char>>;

struct TextHash {
    template <class S> size_t operator()(const S &text) const {
        return boost::hash_range(text.data(), text.data() + text.size());
    }
};
struct TextEqual {
    template <class A, class B> bool operator()(const A &a, const B &b) const {
        return std::string_view(a.data(), a.size()) == std::string_view(b.data(), b.size());
    }
};
template <class K, class V, class H = boost::hash<K>, class E = std::equal_to<K>>
using Map = boost::unordered_map<K, V, H, E, Alloc<std::pair<const K, V>>>;
template <class V> using TextMap = Map<Text, V, TextHash, TextEqual>;

static const size_t HEAP = size_t(1) << 30;
static const uint64_t VOCABULARY = 20000;

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

static std::vector<std::string> vocabulary() {
    std::vector<std::string> words;
    for (uint64_t number = 0; number < VOCABULARY; number++) {
        Random random(number);
        uint64_t letters = 3 + random.below(18);
        std::string word;
        for (uint64_t n = 0; n < letters; n++) word += char('a' + random.below(26));
        words.push_back(word);
    }
    return words;
}

static std::vector<uint32_t> text(uint64_t length) {
    Random random(99);
    std::vector<uint32_t> text;
    for (uint64_t n = 0; n < length; n++) {
        uint64_t first = random.below(VOCABULARY);
        text.push_back(uint32_t(first * random.below(VOCABULARY) / VOCABULARY));
    }
    return text;
}

struct Outcome {
    uint64_t operations, checksum;
    double seconds;
};

struct Run {
    Manager *heap;
    double scale;
    uint64_t scaled(uint64_t count) const {
        uint64_t scaled = uint64_t(double(count) * scale);
        return scaled ? scaled : 1;
    }
    template <class T> Alloc<T> alloc() const { return Alloc<T>(heap); }
    template <class T> Vec<T> vec() const { return Vec<T>(alloc<T>()); }
    template <class M> M map() const {
        return M(0, typename M::hasher(), typename M::key_equal(), typename M::allocator_type(heap));
    }
};

static double now() {
    timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return double(time.tv_sec) + double(time.tv_nsec) * 1e-9;
}

static Outcome timed(uint64_t operations, const std::function<uint64_t()> &work) {
    double start = now();
    uint64_t sum = work();
    return {operations, sum, now() - start};
}

static Outcome vec_push(const Run &run) {
    uint64_t rounds = run.scaled(400);
    return timed(rounds * 200000, [&] {
        uint64_t sum = 0;
        for (uint64_t round = 0; round < rounds; round++) {
            auto vec = run.vec<uint64_t>();
            for (uint64_t n = 0; n < 200000; n++) vec.push_back(n ^ round);
            for (uint64_t value : vec) sum += value;
        }
        return sum;
    });
}

static Outcome vec_index(const Run &run) {
    uint64_t count = run.scaled(60000000);
    auto vec = run.vec<uint64_t>();
    for (uint64_t n = 0; n < 100000; n++) vec.push_back(n);
    return timed(count, [&] {
        Random random(1);
        for (uint64_t n = 0; n < count; n++) {
            vec[random.below(100000)] += n;
        }
        uint64_t sum = 0;
        for (uint64_t value : vec) sum = mix(sum ^ value);
        return sum;
    });
}

static Outcome vec_sort(const Run &run) {
    uint64_t rounds = run.scaled(20);
    return timed(rounds * 200000, [&] {
        uint64_t sum = 0;
        for (uint64_t round = 0; round < rounds; round++) {
            Random random(round);
            auto vec = run.vec<uint64_t>();
            for (uint64_t n = 0; n < 200000; n++) vec.push_back(random.next());
            std::sort(vec.begin(), vec.end());
            sum = mix(sum ^ vec[1000] ^ vec[150000]);
        }
        return sum;
    });
}

static Outcome vec_nested(const Run &run) {
    uint64_t rounds = run.scaled(60);
    return timed(rounds * 20000, [&] {
        uint64_t sum = 0;
        for (uint64_t round = 0; round < rounds; round++) {
            Random random(round);
            auto outer = run.vec<Vec<uint32_t>>();
            for (uint32_t n = 0; n < 20000; n++) {
                auto inner = run.vec<uint32_t>();
                uint32_t length = uint32_t(random.below(20));
                for (uint32_t m = 0; m < length; m++) inner.push_back(n ^ m);
                outer.push_back(boost::move(inner));
            }
            for (auto &inner : outer)
                for (uint32_t value : inner) sum += value;
        }
        return sum;
    });
}

static Outcome string_append(const Run &run) {
    auto words = vocabulary();
    auto all = text(run.scaled(20000000));
    return timed(all.size(), [&] {
        uint64_t sum = 0;
        Text line(run.alloc<char>());
        for (size_t at = 0; at < all.size(); at++) {
            const std::string &word = words[all[at]];
            line.append(word.data(), word.size());
            line.append(" ", 1);
            if (at % 200 == 199) {
                sum = mix(sum ^ line.size() ^ uint8_t(line[at % 400]));
                line = Text(run.alloc<char>());
            }
        }
        return mix(sum ^ line.size());
    });
}

static Outcome string_sort(const Run &run) {
    auto words = vocabulary();
    auto all = text(100000);
    uint64_t rounds = run.scaled(10);
    return timed(rounds * all.size(), [&] {
        uint64_t sum = 0;
        for (uint64_t round = 0; round < rounds; round++) {
            auto strings = run.vec<Text>();
            for (uint32_t number : all) {
                const std::string &word = words[number];
                strings.emplace_back(word.data(), word.size(), run.alloc<char>());
            }
            std::sort(strings.begin(), strings.end());
            uint64_t at = 0;
            for (auto &string : strings) sum += uint8_t(string[0]) * (at++ ^ round);
        }
        return sum;
    });
}

static uint64_t pair(uint64_t key, uint64_t value) { return mix(key ^ mix(value)); }

static Outcome map_insert(const Run &run) {
    uint64_t rounds = run.scaled(10);
    return timed(rounds * 500000, [&] {
        uint64_t sum = 0;
        for (uint64_t round = 0; round < rounds; round++) {
            Random random(round);
            auto map = run.map<Map<uint64_t, uint64_t>>();
            for (uint64_t n = 0; n < 500000; n++) map.emplace(random.next(), n);
            for (auto &entry : map) sum += pair(entry.first, entry.second);
        }
        return sum;
    });
}

static Outcome map_find(const Run &run) {
    uint64_t count = run.scaled(20000000);
    auto map = run.map<Map<uint64_t, uint64_t>>();
    for (uint64_t n = 0; n < 500000; n++) map.emplace(mix(n), n);
    return timed(count, [&] {
        Random random(3);
        uint64_t sum = 0;
        for (uint64_t n = 0; n < count; n++) {
            auto found = map.find(mix(random.below(1000000)));
            if (found != map.end()) sum += found->second;
        }
        return sum;
    });
}

static Outcome map_churn(const Run &run) {
    uint64_t count = run.scaled(15000000);
    return timed(count, [&] {
        Random random(4);
        auto map = run.map<Map<uint64_t, uint64_t>>();
        for (uint64_t n = 0; n < count; n++) {
            uint64_t key = mix(random.below(100000));
            if (map.erase(key) == 0) map.emplace(key, n);
        }
        uint64_t sum = 0;
        for (auto &entry : map) sum += pair(entry.first, entry.second);
        return sum;
    });
}

static Outcome map_words(const Run &run) {
    auto words = vocabulary();
    auto all = text(run.scaled(8000000));
    return timed(all.size(), [&] {
        auto counts = run.map<TextMap<uint64_t>>();
        for (uint32_t number : all) {
            const std::string &word = words[number];
            auto found = counts.find(word, TextHash(), TextEqual());
            if (found == counts.end())
                found = counts.emplace(Text(word.data(), word.size(), run.alloc<char>()), 0).first;
            found->second++;
        }
        uint64_t sum = 0;
        for (auto &entry : counts)
            sum += pair(uint64_t(uint8_t(entry.first[0])) << 32 | entry.first.size(), entry.second);
        return sum;
    });
}

static Outcome map_index(const Run &run) {
    auto words = vocabulary();
    auto all = text(500000);
    uint64_t rounds = run.scaled(8);
    return timed(rounds * all.size(), [&] {
        uint64_t sum = 0;
        for (uint64_t round = 0; round < rounds; round++) {
            auto index = run.map<TextMap<Vec<uint32_t>>>();
            for (size_t at = 0; at < all.size(); at++) {
                const std::string &word = words[all[at]];
                auto found = index.find(word, TextHash(), TextEqual());
                if (found == index.end())
                    found = index
                                .emplace(Text(word.data(), word.size(), run.alloc<char>()),
                                         run.vec<uint32_t>())
                                .first;
                found->second.push_back(uint32_t(at));
            }
            for (auto &entry : index)
                sum += pair(entry.first.size(), entry.second.back());
        }
        return sum;
    });
}

struct Load {
    const char *name;
    Outcome (*run)(const Run &);
};

int main(int argc, char **argv) {
    const Load loads[] = {
        {"vec-push", vec_push},       {"vec-index", vec_index},
        {"vec-sort", vec_sort},       {"vec-nested", vec_nested},
        {"string-append", string_append}, {"string-sort", string_sort},
        {"map-insert", map_insert},   {"map-find", map_find},
        {"map-churn", map_churn},     {"map-words", map_words},
        {"map-index", map_index},
    };
    std::string name = argc > 1 ? argv[1] : "";
    if (name == "--list") {
        for (auto &load : loads) printf("%s\tcontainers\t0\t1\t\n", load.name);
        return 0;
    }
    double scale = 1;
    for (int index = 2; index < argc; index++) {
        std::string argument = argv[index];
        if (argument.rfind("scale=", 0) == 0) scale = atof(argument.c_str() + 6);
    }
    for (auto &load : loads) {
        if (name != load.name) continue;
        std::string segment = "hshm-compare-containers-" + std::to_string(getpid());
        struct Remove {
            std::string &name;
            ~Remove() { ipc::shared_memory_object::remove(name.c_str()); }
        } remove{segment};
        try {
            Segment heap(ipc::create_only, segment.c_str(), HEAP);
            Outcome outcome = load.run(Run{heap.get_segment_manager(), scale});
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
