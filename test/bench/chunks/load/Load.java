import java.io.File;
import java.util.HashMap;
import java.util.Map;
import java.util.Random;

/** A map of sessions, replaced and read at a steady rate. Its argument is a file to make when the map is full. */
class Load {
    static final String[] WORDS = ("time person year way day thing man world life hand part child eye woman place work week "
        + "case point government company number group problem fact order invoice shipped pending customer region").split(" ");
    static final int SESSIONS = 200_000;

    record Session(long id, String user, byte[] token, double score, String text, long[] seen) {}

    static Session session(Random rng, long id) {
        StringBuilder text = new StringBuilder();
        for (int i = 0; i < 24; i++) {
            text.append(WORDS[rng.nextInt(WORDS.length)]).append(' ');
        }
        byte[] token = new byte[32];
        rng.nextBytes(token);
        long[] seen = new long[8];
        for (int i = 0; i < seen.length; i++) {
            seen[i] = 1_700_000_000_000L + rng.nextInt(1 << 30);
        }
        return new Session(id, "user" + rng.nextInt(1_000_000), token, rng.nextDouble(), text.toString(), seen);
    }

    public static void main(String[] args) throws Exception {
        Random rng = new Random(1); // every instance starts with the same map
        Map<Long, Session> map = new HashMap<>();
        for (long i = 0; i < SESSIONS; i++) {
            map.put(i, session(rng, i));
        }
        rng = new Random();
        new File(args[0]).createNewFile(); // java.nio would open a pair of sockets
        for (long length = 0;;) {
            for (int i = 0; i < 40; i++) {
                long id = rng.nextInt(SESSIONS);
                map.put(id, session(rng, id));
                length += map.get((long) rng.nextInt(SESSIONS)).toString().length();
            }
            Thread.sleep(20);
        }
    }
}
