"""A python program of several processes that share semaphores, memory and a queue through
multiprocessing: files that are deleted and live on in mappings.

The contract is that of prog.h: READY RESULT GO.
"""
import ctypes
import multiprocessing
import os
import sys
import time

ready, result, go = sys.argv[1:4]
ctx = multiprocessing.get_context("fork")


def put(path, text):
    with open(path + ".tmp", "w") as f:
        f.write(text)
    os.rename(path + ".tmp", path)


def check(cond, why):
    if not cond:
        put(result, "fail: %s\n" % why)
        os._exit(1)


lock = ctx.Lock()
sem = ctx.Semaphore(0)
count = ctx.Value(ctypes.c_longlong, 0)
array = ctx.Array("d", range(50000))
queue = ctx.Queue()


def work(n):
    while not os.path.exists(go):
        with lock:
            count.value += 1
        time.sleep(0.001)
    sem.acquire()  # the parent lets each of them go
    queue.put((n, os.getpid(), sum(array)))


children = [ctx.Process(target=work, args=(n,)) for n in range(3)]
for c in children:
    c.start()
pids = [c.pid for c in children]
while count.value < 10:
    time.sleep(0.01)
deleted = [l for l in open("/proc/self/maps") if "/dev/shm/" in l or "pym-" in l]
check(any(l.rstrip().endswith("(deleted)") for l in deleted), "this python maps no deleted file: %r" % deleted)

put(ready, "ready\n")
while not os.path.exists(go):
    time.sleep(0.01)

with lock:
    array[0] = 1000000.0
    before = count.value
check(before >= 10, "the counter is %d" % before)
for c in children:
    sem.release()
got = sorted(queue.get(timeout=60) for c in children)
want = sum(range(50000)) + 1000000.0
check(got == [(n, pids[n], want) for n in range(3)], "the children say %r" % got)
for c in children:
    c.join()
    check(c.exitcode == 0, "exit code %r" % c.exitcode)
put(result, "ok\n")
