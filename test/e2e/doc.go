// Package e2e tests the built ckptfs binary on running programs and through a real mount. It
// needs root. The programs are in ../progs, each with its own assertions; see ../harness for
// how they are run and compared from outside.
//
// CKPTFS_SOAK=N multiplies the work of the tests that count: kills of a checkpoint at random
// moments, restores of damaged images; whatever N is, redis has 1 GiB. CKPTFS_KEEP=1 keeps the folders of failed tests until the run ends.
package e2e
