package kind

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// Reading and writing what a deleted file holds: data, holes and attributes.

// aside opens the deleted file of f for reading, as a description of our own, so that
// seeking in it moves nobody's offset. It leaves the access time alone where that is allowed.
func aside(f *Found) (int, error) {
	fd, err := reopen(f.FD, unix.O_RDONLY|unix.O_NOATIME|unix.O_NONBLOCK)
	if err != nil {
		fd, err = reopen(f.FD, unix.O_RDONLY|unix.O_NONBLOCK)
	}
	return fd, err
}

// dataRuns lists what of a deleted file is not a hole, and how many bytes that is.
func dataRuns(f *Found) (runs []dataRun, total int64, err error) {
	fd, err := aside(f)
	if err != nil {
		return nil, 0, err
	}
	defer unix.Close(fd) // only read from
	for end := int64(0); end < f.Stat.Size; {
		start, err := unix.Seek(fd, end, unix.SEEK_DATA)
		if err == unix.ENXIO {
			break // only a hole is left
		}
		if err != nil {
			return nil, 0, fmt.Errorf("SEEK_DATA: %w", err)
		}
		if end, err = unix.Seek(fd, start, unix.SEEK_HOLE); err != nil {
			return nil, 0, fmt.Errorf("SEEK_HOLE: %w", err)
		}
		end = min(end, f.Stat.Size)
		if end <= start {
			break // cut by someone outside the tree meanwhile
		}
		runs = append(runs, dataRun{Off: start, Len: end - start})
		total += end - start
	}
	return runs, total, nil
}

// readRuns reads the runs of a deleted file back to back.
func readRuns(f *Found, runs []dataRun, total int64) ([]byte, error) {
	fd, err := aside(f)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd) // only read from
	data := make([]byte, 0, total)
	for _, r := range runs {
		part := data[len(data) : int64(len(data))+r.Len]
		if err := preadFull(fd, part, r.Off); err != nil {
			return nil, err
		}
		data = data[:len(data)+len(part)]
	}
	return data, nil
}

// preadFull reads all of p at off.
func preadFull(fd int, p []byte, off int64) error {
	for len(p) > 0 {
		n, err := unix.Pread(fd, p, off)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return fmt.Errorf("reading at %d: %w", off, err)
		case n == 0:
			return fmt.Errorf("reading at %d: the file was cut meanwhile", off)
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// pwriteFull writes all of p at off.
func pwriteFull(fd int, p []byte, off int64) error {
	for len(p) > 0 {
		n, err := unix.Pwrite(fd, p, off)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("writing at %d: %w", off, err)
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// userXAttrs reads the extended attributes that a restore can set again, and fails if
// there are others that matter.
func userXAttrs(fd int) (map[string][]byte, error) {
	names, err := getAll(func(p []byte) (int, error) { return unix.Flistxattr(fd, p) })
	if err == unix.ENOTSUP {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("its extended attributes cannot be listed: %w", err)
	}
	var all map[string][]byte
	for name := range strings.SplitSeq(strings.TrimSuffix(string(names), "\x00"), "\x00") {
		switch {
		case name == "" || name == "security.selinux": // a label that the new file gets by itself
			continue
		case !strings.HasPrefix(name, "user."):
			return nil, fmt.Errorf("its extended attribute %s cannot be carried", name)
		}
		value, err := getAll(func(p []byte) (int, error) { return unix.Fgetxattr(fd, name, p) })
		if err != nil {
			return nil, fmt.Errorf("its extended attribute %s cannot be read: %w", name, err)
		}
		if all == nil {
			all = map[string][]byte{}
		}
		all[name] = value
	}
	return all, nil
}

// getAll calls get with a buffer that is long enough: 64 KiB is the kernel's limit.
func getAll(get func([]byte) (int, error)) ([]byte, error) {
	buf := make([]byte, 64<<10)
	n, err := get(buf)
	if err != nil {
		return nil, err
	}
	return buf[:n:n], nil
}
