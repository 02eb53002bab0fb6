// What C++ programs do all day: maps of strings, vectors of vectors, a document tree parsed, changed and
// printed, shared pointers, a regular expression now and then. In every thread.
#include <list>
#include <map>
#include <memory>
#include <regex>
#include <sstream>
#include <string>
#include <unordered_map>
#include <vector>

#include "suite.h"

namespace {

struct Value {
    enum { Text, List, Table } kind = Text;
    std::string text;
    std::vector<std::unique_ptr<Value>> list;
    std::map<std::string, std::unique_ptr<Value>> table;
};

std::string word(uint64_t *random) {
    static const char letters[] = "etaoinshrdlucmfwypvbgkjqxz";
    std::string w;
    for (uint64_t n = 3 + suite_below(random, 12) + suite_below(random, 8); n > 0; n--) {
        uint64_t a = suite_below(random, 26);
        w += letters[a * a / 26];
    }
    return w;
}

std::unique_ptr<Value> grow(uint64_t *random, int depth) {
    auto value = std::make_unique<Value>();
    uint64_t kind = depth == 0 ? 0 : suite_below(random, 3);
    if (kind == 0) {
        value->text = word(random);
    } else if (kind == 1) {
        value->kind = Value::List;
        for (uint64_t n = suite_below(random, 8); n > 0; n--) value->list.push_back(grow(random, depth - 1));
    } else {
        value->kind = Value::Table;
        for (uint64_t n = 2 + suite_below(random, 8); n > 0; n--) value->table[word(random)] = grow(random, depth - 1);
    }
    return value;
}

void print(const Value &value, std::string &out) {
    if (value.kind == Value::Text) {
        out += '"' + value.text + '"';
    } else if (value.kind == Value::List) {
        out += '[';
        for (auto &item : value.list) print(*item, out), out += ',';
        out += ']';
    } else {
        out += '{';
        for (auto &[key, item] : value.table) out += '"' + key + "\":", print(*item, out), out += ',';
        out += '}';
    }
}

std::unique_ptr<Value> parse(const std::string &text, size_t &at) {
    auto value = std::make_unique<Value>();
    auto quoted = [&] {
        size_t end = text.find('"', at + 1);
        std::string s = text.substr(at + 1, end - at - 1);
        at = end + 1;
        return s;
    };
    if (text[at] == '"') {
        value->text = quoted();
    } else if (text[at] == '[') {
        value->kind = Value::List;
        for (at++; text[at] != ']'; at++) value->list.push_back(parse(text, at));
        at++;
    } else {
        value->kind = Value::Table;
        for (at++; text[at] != '}'; at++) {
            std::string key = quoted();
            at++;
            value->table[key] = parse(text, at);
        }
        at++;
    }
    return value;
}

uint64_t total, sums[64], made[64];

void *work(void *argument) {
    auto which = reinterpret_cast<long>(argument);
    uint64_t random = suite_seed(static_cast<uint64_t>(which)), sum = 0;
    uint64_t rounds = suite_share(total, static_cast<int>(which));
    std::map<std::string, std::list<std::string>> index;
    std::unordered_map<std::string, std::shared_ptr<std::vector<uint64_t>>> counts;
    for (uint64_t round = 0; round < rounds; round++) {
        auto document = grow(&random, 7);
        std::string text, again;
        print(*document, text);
        size_t at = 0;
        print(*parse(text, at), again);
        if (text != again) exit(6);
        sum += text.size();
        std::istringstream stream(text);
        for (std::string part; std::getline(stream, part, ',');) {
            index[part.substr(0, 6)].push_back(part);
            auto &count = counts[part];
            if (!count) count = std::make_shared<std::vector<uint64_t>>();
            count->push_back(round);
        }
        if (round % 16 == 15) {
            const std::regex pattern("[\\[{]*\"(" + word(&random).substr(0, 2) + "[a-z]*)\".*|.*(th|he|in)$");
            std::smatch found;
            for (auto &[key, list] : index) {
                if (std::regex_match(key, found, pattern)) sum += static_cast<uint64_t>(found.length());
                sum += list.size();
            }
            index.clear();
        }
        if (counts.size() > 20000) counts.clear();
        made[which]++;
    }
    sums[which] = sum;
    return nullptr;
}

}  // namespace

int main(int count, char **words) {
    suite_begin(count, words);
    total = suite_scaled(64);
    suite_parallel(work);
    uint64_t checksum = 0, operations = 0;
    for (int i = 0; i < 64; i++) checksum += sums[i], operations += made[i];
    return suite_end(operations, checksum);
}
