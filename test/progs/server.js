// A node server and client on a unix socket, with a child process. Contract: READY RESULT GO of prog.h.
'use strict';
const fs = require('fs'), net = require('net'), {spawn} = require('child_process');
const [ready, result, go] = process.argv.slice(2);

function put(path, text) {
	fs.writeFileSync(path + '.tmp', text);
	fs.renameSync(path + '.tmp', path);
}

function end(text) {
	put(result, text);
	process.exit(text === 'ok\n' ? 0 : 1);
}

process.on('uncaughtException', e => end('fail: ' + e + '\n'));

const server = net.createServer(c => c.on('data', d => c.write('echo ' + d)));
server.listen('server.sock', () => {
	const cat = spawn('cat', {stdio: ['pipe', 'pipe', 'inherit']});
	const client = net.connect('server.sock');
	let n = 0;
	const next = () => client.write(String(++n));
	client.on('data', d => {
		if (String(d) !== 'echo ' + n)
			end('fail: the server said ' + d + ' to ' + n + '\n');
		cat.stdin.write(String(d));
	});
	cat.stdout.on('data', d => {
		if (String(d) !== 'echo ' + n)
			end('fail: cat said ' + d + ' to ' + n + '\n');
		if (n === 20)
			put(ready, 'ready\n');
		if (!fs.existsSync(go))
			return setTimeout(next, 5);
		const again = net.connect('server.sock', () => again.write('new'));
		again.on('data', d => end(String(d) === 'echo new' ? 'ok\n' : 'fail: a new connection got ' + d + '\n'));
	});
	next();
});
