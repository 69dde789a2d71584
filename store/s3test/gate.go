package s3test

import (
	"net"
	"sync"
)

// gate is a listener that can be shut: while it is, every connection is reset.
type gate struct {
	net.Listener
	mu   sync.Mutex
	down bool
	open map[net.Conn]bool
}

// Accept returns the next connection that may live.
func (g *gate) Accept() (net.Conn, error) {
	for {
		c, err := g.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if g.admit(c) {
			return &gated{Conn: c, gate: g}, nil
		}
		reset(c)
	}
}

// admit notes a connection down unless the gate is shut.
func (g *gate) admit(c net.Conn) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.down {
		return false
	}
	g.open[c] = true
	return true
}

// shut resets all connections and those to come, or lets them come again.
func (g *gate) shut(down bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.down = down
	if !down {
		return
	}
	for c := range g.open {
		reset(c)
	}
	clear(g.open)
}

// reset closes a connection with RST, so that the other side sees an error, not an end.
func reset(c net.Conn) {
	if t, ok := c.(*net.TCPConn); ok {
		_ = t.SetLinger(0) // a dead connection is closed all the same
	}
	c.Close()
}

// gated is a connection that the gate knows.
type gated struct {
	net.Conn
	gate *gate
}

// Close closes the connection and strikes it off.
func (c *gated) Close() error {
	c.gate.mu.Lock()
	delete(c.gate.open, c.Conn)
	c.gate.mu.Unlock()
	return c.Conn.Close()
}
