#!/usr/bin/env bash
# Instructions of one alloc/free pair, counted by callgrind: the difference between two counts of
# pairs, so that start and end of the program cancel out.
#
#   benches/instructions.sh [--check MOST]
#
# With --check it fails where a pair takes more than MOST instructions.
set -euo pipefail
cd "$(dirname "$0")/.."

most=
if [[ ${1:-} == --check ]]; then
    most=${2:?--check takes a number}
elif [[ $# -gt 0 ]]; then
    echo "usage: $0 [--check MOST]" >&2
    exit 2
fi
if ! command -v valgrind >/dev/null; then
    echo "instructions.sh needs valgrind (Debian and Ubuntu: apt-get install valgrind)" >&2
    exit 3
fi

cargo build --release --quiet --example box_pair
program=${CARGO_TARGET_DIR:-target}/release/examples/box_pair
out=$(mktemp)
trap 'rm -f "$out"' EXIT

count() { # size rounds
    valgrind --tool=callgrind --callgrind-out-file=/dev/null "$program" "$1" "$2" >"$out" 2>&1 || {
        cat "$out" >&2
        return 1
    }
    sed -n 's/.*Collected : *\([0-9]*\).*/\1/p' "$out"
}

few=10000 many=110000 status=0
for size in 32 4000 20000; do
    less=$(count "$size" "$few")
    more=$(count "$size" "$many")
    pair=$(awk -v a="$less" -v b="$more" -v n=$((many - few)) 'BEGIN { printf "%.2f", (b - a) / n }')
    echo "$size bytes: $pair instructions a pair"
    if [[ -n $most ]] && awk -v p="$pair" -v m="$most" 'BEGIN { exit !(p > m) }'; then
        echo "$size bytes: more than $most" >&2
        status=1
    fi
done
exit $status
