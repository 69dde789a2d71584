"""Python multiprocessing: a manager, a pool, queues and pipes. Contract: READY RESULT GO of prog.h."""
import multiprocessing
import os
import sys
import time


def put(path, text):
    with open(path + ".tmp", "w") as f:
        f.write(text)
    os.rename(path + ".tmp", path)


def square(x):
    return x * x


def main():
    ready, result, go = sys.argv[1:4]
    manager = multiprocessing.Manager()
    shared, queue = manager.dict(), manager.Queue()
    pool = multiprocessing.Pool(3)
    own = multiprocessing.Queue()
    a, b = multiprocessing.Pipe()
    n = 0
    while not os.path.exists(go):
        shared[n] = n
        for q in (queue, own):
            q.put(n)
            assert q.get() == n
        a.send(n)
        assert b.recv() == n
        assert pool.map(square, range(20)) == [i * i for i in range(20)]
        n += 1
        if n == 10:
            put(ready, "ready\n")
        time.sleep(0.005)
    assert len(shared) == n
    other = manager.list([1, 2, 3])  # a new connection to the manager
    assert list(other) == [1, 2, 3]
    pool.close()
    pool.join()
    manager.shutdown()
    put(result, "ok\n")


if __name__ == "__main__":
    try:
        main()
    except BaseException as e:
        put(sys.argv[2], "fail: %r\n" % e)
        raise
