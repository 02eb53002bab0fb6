# Variables and arrays, then processes.
s=0
for i in {1..3000}; do
    a[i % 100]="x$i${a[(i + 7) % 100]:0:20}"
    s=$((s + ${#a[i % 100]}))
    v=${a[i % 50]//x/yy}
done
for i in {1..40}; do
    t=$(echo "$i" | cat)
    s=$((s + t))
done
echo $s ${#v}
