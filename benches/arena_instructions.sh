#!/usr/bin/env bash
# Instructions and conditional branches of one arena operation, counted by callgrind inside the
# operation's own function, without the loop around it.
#
#   benches/arena_instructions.sh [--check]
#
# With --check it fails where one takes more than it may.
set -euo pipefail
cd "$(dirname "$0")/.."

check=
case "${1:-}" in
--check) check=1 ;;
'') ;;
*)
    echo "usage: $0 [--check]" >&2
    exit 2
    ;;
esac
if ! command -v valgrind >/dev/null; then
    echo "arena_instructions.sh needs valgrind (Debian and Ubuntu: apt-get install valgrind)" >&2
    exit 3
fi

cargo build --release --quiet --example arena_ops
program=${CARGO_TARGET_DIR:-target}/release/examples/arena_ops
profile=$(mktemp)
trap 'rm -f "$profile"' EXIT

rounds=100000 status=0
# operation function most-instructions most-branches
while read -r operation function instructions branches; do
    valgrind --tool=callgrind --branch-sim=yes --callgrind-out-file="$profile" \
        "$program" "$operation" $rounds >/dev/null 2>&1
    # The totals of the function: columns Ir and Bc.
    read -r ir bc < <(callgrind_annotate --threshold=100 --show=Ir,Bc --inclusive=yes "$profile" |
        awk -v f="arena_ops::$function" 'index($0, f) && !found {
            gsub(/,/, ""); gsub(/\([^)]*\)/, ""); print $1, $2; found = 1 }')
    awk -v o="$operation" -v i="$ir" -v b="$bc" -v n=$rounds -v mi="$instructions" \
        -v mb="$branches" -v check="$check" 'BEGIN {
        printf "%-11s %6.2f instructions (at most %d), %5.2f branches (at most %d)\n",
            o, i / n, mi, b / n, mb
        # Growth of the arena, once in a while, is in there.
        if (check && (i / n > mi + 0.5 || b / n > mb + 0.05)) exit 1 }' || status=1
done <<'OPERATIONS'
u32 push_u32 10 1
layout push_layout 15 1
try_layout try_push_layout 15 1
grow grow 25 2
OPERATIONS
exit $status
