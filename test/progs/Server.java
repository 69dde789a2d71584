// A java server and client on a unix socket, with a selector. Contract: READY RESULT GO of prog.h.
import java.net.StandardProtocolFamily;
import java.net.UnixDomainSocketAddress;
import java.nio.ByteBuffer;
import java.nio.channels.*;
import java.nio.file.*;

public class Server {
	static void put(String path, String text) throws Exception {
		Path tmp = Path.of(path + ".tmp");
		Files.writeString(tmp, text);
		Files.move(tmp, Path.of(path), StandardCopyOption.ATOMIC_MOVE);
	}

	static void serve(ServerSocketChannel server) {
		try (Selector selector = Selector.open()) {
			server.configureBlocking(false);
			server.register(selector, SelectionKey.OP_ACCEPT);
			ByteBuffer b = ByteBuffer.allocate(64);
			while (true) {
				selector.select();
				for (SelectionKey key : selector.selectedKeys()) {
					if (key.isAcceptable()) {
						SocketChannel c = server.accept();
						c.configureBlocking(false);
						c.register(selector, SelectionKey.OP_READ);
					} else if (((SocketChannel) key.channel()).read(b.clear()) > 0)
						((SocketChannel) key.channel()).write(b.flip());
				}
				selector.selectedKeys().clear();
			}
		} catch (Exception e) {
			e.printStackTrace();
		}
	}

	static void ask(SocketChannel c, int n) throws Exception {
		c.write(ByteBuffer.allocate(4).putInt(n).flip());
		ByteBuffer b = ByteBuffer.allocate(4);
		while (b.hasRemaining() && c.read(b) >= 0) {
		}
		if (b.flip().remaining() != 4 || b.getInt() != n)
			throw new Exception("no answer to " + n);
	}

	public static void main(String[] args) throws Exception {
		UnixDomainSocketAddress name = UnixDomainSocketAddress.of("server.sock");
		ServerSocketChannel server = ServerSocketChannel.open(StandardProtocolFamily.UNIX).bind(name);
		Thread t = new Thread(() -> serve(server));
		t.setDaemon(true);
		t.start();
		try {
			SocketChannel c = SocketChannel.open(name);
			for (int n = 0; !Files.exists(Path.of(args[2])); n++) {
				ask(c, n);
				if (n == 20)
					put(args[0], "ready\n");
				Thread.sleep(5);
			}
			ask(SocketChannel.open(name), 7);
			put(args[1], "ok\n");
		} catch (Exception e) {
			put(args[1], "fail: " + e + "\n");
			System.exit(1);
		}
	}
}
