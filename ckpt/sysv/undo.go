package sysv

import "encoding/binary"

// The kernel shows nobody which adjustments (SEM_UNDO of semop(2)) it will make when a process ends. But it refuses an
// operation that would bring one out of its range, with ERANGE, before it finds out that a later operation
// of the same call would have to wait, with EAGAIN. Operations of one call are made all or none, under one lock. So calls
// that can never succeed tell where an adjustment is, and nobody sees anything of them: not the values, nor who used the
// semaphores last and when.
//
// That only such a call was made leaves a list of the process for the set, of zeros. When the process ends, sem_otime
// is set, if it had none.

// SemUndo is the flag of semop(2).
const SemUndo = 0o10000

// Range of values and adjustments (SEMVMX, SEMAEM).
const (
	maxValue = 32767
	// LowestAdj and HighestAdj bound an adjustment.
	LowestAdj  = -32768
	HighestAdj = 32767
)

// SemOp is struct sembuf, without IPC_NOWAIT, which Encode adds.
type SemOp struct {
	Num   uint16
	Op    int16
	Flags int16
}

// Encode puts operations one behind the other as semop(2) takes them.
func Encode(ops []SemOp) []byte {
	var b []byte
	for _, o := range ops {
		b = binary.NativeEndian.AppendUint16(b, o.Num)
		b = binary.NativeEndian.AppendUint16(b, uint16(o.Op))
		b = binary.NativeEndian.AppendUint16(b, uint16(o.Flags|IPCNoWait))
	}
	return b
}

// Probe returns operations on a semaphore of that value that fail with ERANGE if the adjustment is at least k, or for
// a k below 0 at most k, and with EAGAIN if not.
func Probe(num uint16, value uint16, k int) []SemOp {
	var ops []SemOp
	op := func(by int, flags int16) {
		if by != 0 {
			ops = append(ops, SemOp{num, int16(by), flags})
		}
	}
	if k > 0 {
		by := maxValue + 1 - k // adj + by > 32767 is out of range
		op(maxValue-int(value), 0)
		op(-by, SemUndo)
		op(-(maxValue - by + 1), 0)
		return ops
	}
	op(-int(value), 0)
	by := 32769 + k    // adj - by < -32768 is out of range
	if by > maxValue { // two steps: a value cannot be so high
		op(maxValue, SemUndo)
		op(-maxValue, 0)
		by -= maxValue
	}
	op(by, SemUndo)
	op(-(by + 1), 0)
	return ops
}

// Search finds an adjustment, by asking whether it is at least (below 0: at most) k.
func Search(reaches func(k int) (bool, error)) (int, error) {
	sign, most := 1, HighestAdj
	yes, err := reaches(1)
	if err == nil && !yes {
		sign, most = -1, -LowestAdj
		yes, err = reaches(-1)
	}
	if err != nil || !yes {
		return 0, err
	}
	low := 1
	for high := most; low < high; {
		mid := (low + high + 1) / 2
		yes, err := reaches(sign * mid)
		switch {
		case err != nil:
			return 0, err
		case yes:
			low = mid
		default:
			high = mid - 1
		}
	}
	return sign * low, nil
}

// Adjust returns calls that leave the value of a semaphore as it is, and an adjustment of adj behind.
func Adjust(num uint16, value uint16, adj int) [][]SemOp {
	v := int(value)
	var calls [][]SemOp
	for adj != 0 {
		k := min(max(adj, -adj), max(v, maxValue-v))
		there, back := SemOp{num, int16(k), 0}, SemOp{num, int16(-k), SemUndo}
		if adj < 0 {
			there.Flags, back.Flags = SemUndo, 0
		}
		if k > maxValue-v { // there is no room above
			there, back = back, there
		}
		calls = append(calls, []SemOp{there, back})
		if adj > 0 {
			adj -= k
		} else {
			adj += k
		}
	}
	return calls
}

// Touch returns a call that changes nothing but who used a semaphore last.
func Touch(num uint16, value uint16) []SemOp {
	if value == maxValue {
		return []SemOp{{num, -1, 0}, {num, 1, 0}}
	}
	return []SemOp{{num, 1, 0}, {num, -1, 0}}
}
