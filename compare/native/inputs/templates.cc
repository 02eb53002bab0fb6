// The standard library's headers and some instances of its templates, for the C++ compiler to chew.
#include <algorithm>
#include <iostream>
#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <unordered_map>
#include <vector>

template <int N> struct Key {
    int a;
    std::string s;
    bool operator<(const Key &o) const { return std::tie(a, s) < std::tie(o.a, o.s); }
};
template <int N> int use(std::map<Key<N>, std::vector<std::string>> &m) {
    std::vector<Key<N>> v;
    for (auto &[key, list] : m) {
        v.push_back(key);
        std::sort(list.begin(), list.end());
    }
    std::sort(v.begin(), v.end());
    std::unordered_map<std::string, std::shared_ptr<Key<N>>> u;
    for (auto &key : v) u[key.s] = std::make_shared<Key<N>>(key);
    if constexpr (N > 0) {
        std::map<Key<N - 1>, std::vector<std::string>> less;
        return static_cast<int>(u.size()) + use<N - 1>(less);
    }
    return static_cast<int>(u.size());
}
int run(std::map<Key<3>, std::vector<std::string>> &m) { return use<3>(m); }
