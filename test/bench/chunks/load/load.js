// A table of parsed JSON documents, replaced and written out at a steady rate.
// Usage: load.js READY, a file that is made when the table is full.
'use strict';
const fs = require('fs');

const words = ('time person year way day thing man world life hand part child eye woman place work week case point ' +
  'government company number group problem fact order invoice shipped pending customer region north south').split(' ');
const records = 160000;

// A generator of pseudo-random numbers (mulberry32).
function generator(seed) {
  return () => {
    seed = (seed + 0x6D2B79F5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return (t ^ (t >>> 14)) >>> 0;
  };
}

function record(next, i) {
  const text = [];
  for (let w = 0; w < 24; w++) text.push(words[next() % words.length]);
  return JSON.stringify({
    id: i, user: 'user' + next() % 1000000, token: next().toString(16) + next().toString(16),
    score: next() / 7, tags: text.slice(0, 4), items: [{ sku: next() % 10000, n: next() % 10 }], text: text.join(' '),
  });
}

let next = generator(1); // every instance starts with the same table
const table = new Map();
for (let i = 0; i < records; i++) table.set(i, JSON.parse(record(next, i)));
next = generator(process.pid ^ Date.now());
let written = 0;
fs.writeFileSync(process.argv[2], '');
setInterval(() => {
  for (let n = 0; n < 20; n++) {
    const i = next() % records;
    table.set(i, JSON.parse(record(next, i)));
    written += JSON.stringify(table.get(next() % records)).length;
  }
}, 20);
