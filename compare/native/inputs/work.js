// Strings that grow in a map, through JSON.
const m = new Map();
let x = 1;
for (let i = 0; i < 300000; i++) {
    x = (x * 1103515245 + 12345) & 0x7fffffff;
    const k = "k" + ((x >> 8) % 20000);
    m.set(k, (m.get(k) || "") + i);
}
console.log(JSON.parse(JSON.stringify([...m])).length);
