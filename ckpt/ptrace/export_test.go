package ptrace

// SetStep makes f run before each ptrace request and each write to a target.
func (t *Tracer) SetStep(f func()) { t.step = f }
