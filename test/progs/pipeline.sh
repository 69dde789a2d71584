#!/bin/bash
# A pipeline of children and a background job. The contract is that of prog.h: READY RESULT GO.
ready=$1 result=$2 go=$3

put() {
	echo "$2" >"$1.tmp"
	mv "$1.tmp" "$1"
}

fail() {
	put "$result" "fail: $*"
	exit 1
}

# The background job counts until it is told to stop and leaves with a status of its own.
{
	n=0
	trap 'exit 9' TERM
	while :; do
		n=$((n + 1))
		echo "$n" >count.tmp
		mv count.tmp count
		sleep 0.02
	done
} &
job=$!

# The pipeline: numbers come slowly, are doubled and summed.
{
	for i in 1 2 3 4 5; do echo "$i"; done
	while [ ! -e "$go" ]; do sleep 0.02; done
	for i in 6 7 8 9 10; do echo "$i"; done
} | while read -r x; do echo $((2 * x)); done | {
	sum=0
	while read -r x; do sum=$((sum + x)); done
	echo "$sum" >sum
	exit 4
} &
pipe=$!

me=$$ word="a word" list=(1 "2 3" 4)
while [ ! -s count ]; do sleep 0.02; done
put "$ready" ready
while [ ! -e "$go" ]; do sleep 0.02; done

wait "$pipe"
status=$?
[ "$status" = 4 ] || fail "the pipeline ended with $status"
[ "$(cat sum)" = 110 ] || fail "the pipeline summed to $(cat sum)"
[ "$me" = "$$" ] || fail "pid $$ was $me"
[ "$word" = "a word" ] && [ "${list[1]}" = "2 3" ] || fail "variables"
from=$(cat count)
while [ "$(cat count)" -le "$from" ]; do sleep 0.02; done
kill "$job" || fail "the background job is gone"
wait "$job"
status=$?
[ "$status" = 9 ] || fail "the background job ended with $status"
put "$result" ok
