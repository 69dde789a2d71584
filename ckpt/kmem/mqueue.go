package kmem

import (
	"fmt"
	"os"
)

// Message is one of a POSIX message queue.
type Message struct {
	Prio uint32
	Data []byte
}

// messageBytes bounds what is read of one queue: it may change meanwhile.
const messageBytes = 1 << 30

// Messages are those that wait in the POSIX message queue behind a descriptor of ours, in the order in
// which they would be received (ipc/mqueue.c, ipc/msgutil.c). Nothing is taken out.
func (m *Memory) Messages(fd int) ([]Message, error) {
	file, err := m.File(fd)
	if err != nil {
		return nil, err
	}
	w := walk{m: m}
	info := w.get(file, "file.f_inode") - w.off("mqueue_inode_info.vfs_inode")
	q := queueWalk{walk: w, left: messageBytes}
	q.tree(q.get(info, "mqueue_inode_info.msg_tree.rb_node"), 0)
	return q.all, q.err
}

// queueWalk collects messages.
type queueWalk struct {
	walk
	all  []Message
	left int64
}

// tree collects a subtree, the highest priority first.
func (q *queueWalk) tree(node uint64, depth int) {
	if node == 0 || q.err != nil {
		return
	}
	if depth > 64 {
		q.err = fmt.Errorf("a tree in the kernel has no end")
		return
	}
	q.tree(q.get(node, "rb_node.rb_right"), depth+1)
	leaf := node - q.off("posix_msg_tree_node.rb_node")
	for _, msg := range q.list(leaf+q.off("posix_msg_tree_node.msg_list"), q.off("msg_msg.m_list"), listLimit) {
		q.message(msg)
	}
	q.tree(q.get(node, "rb_node.rb_left"), depth+1)
}

// message collects a message, which lies in pages of its own: each has a head and then bytes.
func (q *queueWalk) message(at uint64) {
	n, prio, next := q.get(at, "msg_msg.m_ts"), q.get(at, "msg_msg.m_type"), q.get(at, "msg_msg.next")
	head, err := q.m.types.bytes("msg_msg")
	if err == nil && q.left < int64(n) {
		err = fmt.Errorf("a message queue of the kernel holds more than %d bytes", messageBytes)
	}
	if err != nil && q.err == nil {
		q.err = err
	}
	if q.err != nil {
		return
	}
	q.left -= int64(n)
	page := uint64(os.Getpagesize())
	data := make([]byte, n)
	for rest := data; ; {
		k := min(uint64(len(rest)), page-head)
		if q.err = q.m.Read(at+head, rest[:k]); q.err != nil {
			return
		}
		if rest = rest[k:]; len(rest) == 0 {
			break
		}
		if at = next; at == 0 {
			q.err = fmt.Errorf("a message in the kernel ends %d bytes early", len(rest))
			return
		}
		if head, q.err = q.m.types.bytes("msg_msgseg"); q.err != nil {
			return
		}
		next = q.word(at)
	}
	q.all = append(q.all, Message{uint32(prio), data})
}

// Notification is the struct sigevent of who has registered with the POSIX message queue behind a
// descriptor of ours (mq_notify(3)): sigev_value, and sigev_signo and sigev_notify. It means nothing if
// nobody has.
func (m *Memory) Notification(fd int) (value uint64, signal, how int32, err error) {
	file, err := m.File(fd)
	if err != nil {
		return 0, 0, 0, err
	}
	w := walk{m: m}
	info := w.get(file, "file.f_inode") - w.off("mqueue_inode_info.vfs_inode")
	at := info + w.off("mqueue_inode_info.notify")
	value = w.word(at)
	both := w.word(at + 8)
	return value, int32(uint32(both)), int32(uint32(both >> 32)), w.err
}
