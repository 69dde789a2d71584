# awk over a large file: it sums a column, waits in the middle and goes on. The contract is
# that of prog.h, as variables: -v ready= -v result= -v go= -v lines=
function put(path, text) {
	print text > (path ".tmp")
	close(path ".tmp")
	system("mv '" path ".tmp' '" path "'")
}

{
	sum += $2
	words[$1 % 1000]++
}

NR == int(lines / 2) {
	put(ready, "ready")
	while ((getline line < go) < 0)
		spins++
	close(go)
}

END {
	for (k in words)
		n += words[k]
	want = lines * (lines - 1) / 2 * 3
	if (NR != lines || sum != want || n != lines) {
		put(result, "fail: " NR " lines, sum " sum ", not " want ", words " n)
		exit 1
	}
	put(result, "ok")
}
