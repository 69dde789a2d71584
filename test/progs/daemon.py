"""A python program with an open file, a pipe, a thread, an interval timer and a subprocess.

The contract is that of prog.h: READY RESULT GO.
"""
import os
import signal
import subprocess
import sys
import threading
import time

ready, result, go = sys.argv[1:4]


def put(path, text):
    with open(path + ".tmp", "w") as f:
        f.write(text)
    os.rename(path + ".tmp", path)


def check(cond, why):
    if not cond:
        put(result, "fail: %s\n" % why)
        os._exit(1)


ticks = 0


def on_alarm(signum, frame):
    global ticks
    ticks += 1


signal.signal(signal.SIGALRM, on_alarm)
signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)

out = open("out.txt", "w+")
for i in range(100):
    out.write("line %d\n" % i)
out.flush()
out.seek(0)
for i in range(10):
    out.readline()

pr, pw = os.pipe()
os.write(pw, b"in the pipe")

laps = 0
stop = threading.Event()


def work():
    global laps
    while not stop.is_set():
        check(sum(range(1000)) == 499500, "sum")
        laps += 1
        time.sleep(0.001)


thread = threading.Thread(target=work)
thread.start()

child = subprocess.Popen(
    [sys.executable, "-c", "import sys\nfor l in sys.stdin: print(l.strip()[::-1], flush=True)"],
    stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
child.stdin.write("before\n")
child.stdin.flush()
check(child.stdout.readline() == "erofeb\n", "the child before")

pid = os.getpid()
put(ready, "ready\n")
while not os.path.exists(go):
    time.sleep(0.01)

check(os.getpid() == pid, "pid")
t, l = ticks, laps
while ticks < t + 3 or laps < l + 3:
    time.sleep(0.01)
check(out.readline() == "line 10\n", "position in the open file")
check(os.read(pr, 100) == b"in the pipe", "content of the pipe")
child.stdin.write("after\n")
child.stdin.flush()
check(child.stdout.readline() == "retfa\n", "the child after")
child.stdin.close()
check(child.wait() == 0, "exit status of the child")
stop.set()
thread.join()
signal.setitimer(signal.ITIMER_REAL, 0)
put(result, "ok\n")
