"""Counting, dictionaries and lists through JSON, sorting, a tree of objects, a regular expression."""
import collections
import json
import re


def words(n):
    x = 1
    for _ in range(n):
        x = (x * 1103515245 + 12345) & 0x7FFFFFFF
        yield "w%x" % ((x >> 8) % 5000)


class Node:
    def __init__(self, key):
        self.key, self.left, self.right = key, None, None


counts = collections.Counter(words(100000))
table = {k: {"n": v, "list": list(range(v % 20)), "text": k * 3} for k, v in counts.items()}
for _ in range(3):
    table = json.loads(json.dumps(table))
order = sorted((v["n"], k) for k, v in table.items())
root = Node("w")
for key in words(20000):
    node = root
    while key != node.key:
        side = "left" if key < node.key else "right"
        if getattr(node, side) is None:
            setattr(node, side, Node(key))
        node = getattr(node, side)
print(len(order), order[-1], len(re.findall(r"w[0-9]+a", json.dumps(table))))
