# Strings that grow in a hash, sorted by length, joined and split.
my (%h, $x);
$x = 1;
for my $i (1 .. 300000) {
    $x = ($x * 1103515245 + 12345) & 0x7fffffff;
    $h{"k" . (($x >> 8) % 20000)} .= chr(97 + ($x >> 4) % 26);
}
my @k = sort { length $h{$b} <=> length $h{$a} || $a cmp $b } keys %h;
my $s = join(",", map { "$_=$h{$_}" } @k[0 .. 4999]);
my @p = split /,/, $s;
print scalar(@p), " ", length($s), "\n";
