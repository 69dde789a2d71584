# A table of records in memory, read and changed at a steady rate.
# Usage: load.py READY, a file that is made when the table is full.
import os, random, sys, time

WORDS = """time person year way day thing man world life hand part child eye woman place work week case point
government company number group problem fact order invoice shipped pending customer region north south""".split()
RECORDS = 150_000


def record(rng, i):
    return {
        "id": i,
        "user": "user%d" % rng.randrange(10**6),
        "token": "%032x" % rng.getrandbits(128),
        "score": rng.random(),
        "tags": [rng.choice(WORDS) for _ in range(4)],
        "text": " ".join(rng.choice(WORDS) for _ in range(24)),
    }


rng = random.Random(1)  # every instance starts with the same table
table = {i: record(rng, i) for i in range(RECORDS)}
rng = random.Random(os.urandom(8))
open(sys.argv[1], "w").close()
while True:
    for _ in range(10):
        i = rng.randrange(RECORDS)
        table[i] = record(rng, i)
    for _ in range(40):
        r = table[rng.randrange(RECORDS)]
        r["score"] += 1.0
        r["tags"] = sorted(r["tags"])
    time.sleep(0.02)
