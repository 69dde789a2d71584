#!/usr/bin/perl
# Perl with a hash, a closure, an open file in the middle of reading and a pipe to a child.
# The contract is that of prog.h: READY RESULT GO.
use strict;
use warnings;

my ($ready, $result, $go) = @ARGV;

sub put {
	my ($path, $text) = @_;
	open(my $f, '>', "$path.tmp") or exit 3;
	print $f $text;
	close($f);
	rename("$path.tmp", $path) or exit 3;
}

sub check {
	my ($cond, $why) = @_;
	return if $cond;
	put($result, "fail: $why\n");
	exit 1;
}

open(my $w, '>', 'lines') or die;
print $w "line $_\n" for 0 .. 9999;
close($w);
open(my $in, '<', 'lines') or die;
my $line;
$line = <$in> for 0 .. 99;

my $pid = open(my $child, '-|');
die unless defined $pid;
if ($pid == 0) {
	$| = 1;
	for (my $i = 0;; $i++) {
		print "$i\n" or last;
		select(undef, undef, undef, 0.002);
	}
	exit 0;
}
$SIG{PIPE} = 'DEFAULT';
my %seen;
my $count = 0;
my $next = sub {
	my $n = <$child>;
	check(defined $n && $n == $count, "the child says " . ($n // 'nothing') . " for $count");
	$seen{$count} = $count * 3;
	$count++;
};
$next->() for 1 .. 10;
my $me = $$;
put($ready, "ready\n");
$next->() until -e $go;

$next->() for 1 .. 10;
check($$ == $me, "pid $$ was $me");
check(keys(%seen) == $count, "the hash has " . keys(%seen) . " of $count");
check($seen{$_} == 3 * $_, "value of $_") for keys %seen;
for my $i (100 .. 9999) {
	$line = <$in>;
	check($line eq "line $i\n", "line $i is $line");
}
check(!defined(<$in>), "the file does not end");
kill 'TERM', $pid;
waitpid($pid, 0);
check(($? & 127) == 15, "the child ended with $?");
put($result, "ok\n");
