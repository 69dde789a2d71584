"""A python asyncio server and client on a unix socket, with a subprocess. Contract: READY RESULT GO of prog.h."""
import asyncio
import os
import sys

ready, result, go = sys.argv[1:4]


def put(path, text):
    with open(path + ".tmp", "w") as f:
        f.write(text)
    os.rename(path + ".tmp", path)


async def handle(reader, writer):
    while line := await reader.readline():
        writer.write(b"echo " + line)
        await writer.drain()
    writer.close()


async def main():
    server = await asyncio.start_unix_server(handle, "server.sock")
    clients = [await asyncio.open_unix_connection("server.sock") for _ in range(5)]
    cat = await asyncio.create_subprocess_exec("cat", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE)
    n = 0
    while not os.path.exists(go):
        for reader, writer in clients:
            n += 1
            writer.write(b"%d\n" % n)
            line = await reader.readline()
            assert line == b"echo %d\n" % n, line
            cat.stdin.write(line)
            assert await cat.stdout.readline() == line
        if n == 50:
            put(ready, "ready\n")
        await asyncio.sleep(0.005)
    reader, writer = await asyncio.open_unix_connection("server.sock")
    writer.write(b"new\n")
    assert await reader.readline() == b"echo new\n"
    cat.stdin.close()
    assert await cat.wait() == 0
    server.close()


try:
    asyncio.run(main())
    put(result, "ok\n")
except BaseException as e:
    put(result, "fail: %r\n" % e)
    raise
