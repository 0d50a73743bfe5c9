// What an application in Node.js does, with node-postgres: run by 020_node.pl.
//
// Arguments: the directory of the sockets, the user, the ports of the server and of a transaction pooler in front of it.
// Prints a line for each check, "ok - name" or "not ok - name", and fails where something unforeseen happens.
'use strict';

const { randomUUID } = require('crypto');
const { isDeepStrictEqual } = require('util');
const { Client } = require('pg');

const [host, user, ...ports] = process.argv.slice(2);
const DIRECT = Number(ports[0]);
const POOLED = Number(ports[1]);
const PATIENCE = 60_000; // ms
const clients = [];

function check(good, name) {
	console.log((good ? '' : 'not ') + 'ok - ' + name);
}

// Compares, and says what came instead.
function checkIs(got, wanted, name) {
	const good = isDeepStrictEqual(got, wanted);
	check(good, name);
	if (!good) console.error(name + ':', got, 'instead of', wanted);
}

async function connect(port) {
	const client = new Client({ host, port, user, database: 'postgres' });
	await client.connect();
	clients.push(client);
	return client;
}

// Runs a statement and returns its rows.
async function call(client, sql, ...values) {
	return (await client.query(sql, values)).rows;
}

// Runs a statement of one row and one column, and returns that.
async function value(client, sql, ...values) {
	return Object.values((await call(client, sql, ...values))[0])[0];
}

// The code of the error that a statement ends with.
async function errorOf(client, sql, ...values) {
	try {
		await client.query(sql, values);
	} catch (error) {
		return error.code;
	}
	return null;
}

function inTime(promise, what) {
	let timer;
	const late = new Promise((_, reject) => {
		timer = setTimeout(() => reject(new Error(what)), PATIENCE);
	});
	return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

// Listens on a channel; the function that is returned waits for the next payload.
async function listen(channel) {
	const client = await connect(DIRECT);
	const heard = [];
	let wake = () => {};

	client.on('notification', (note) => {
		heard.push([note.channel, JSON.parse(note.payload)]);
		wake();
	});
	await client.query('LISTEN ' + client.escapeIdentifier(channel));
	return async () => {
		if (heard.length === 0) {
			await inTime(new Promise((resolve) => { wake = resolve; }), 'no notification came on ' + channel);
		}
		return heard.shift();
	};
}

// Until a poll waits in the server.
async function waitForWaiter(client) {
	const until = Date.now() + PATIENCE;
	while ((await call(client, `SELECT FROM pg_stat_activity WHERE state = 'active' AND wait_event = 'Extension'
			AND query LIKE '%poll(%' AND pid <> pg_backend_pid()`)).length === 0) {
		if (Date.now() > until) throw new Error('no poll waits');
	}
}

// Writing, reading, listening.
async function events(writer) {
	const next = { order: await listen('event_store.order'), all: await listen('event_store') };
	const awkward = { text: 'quote \' backslash \\ ü 𝄞', list: [1, null, { a: 1.5 }], empty: {}, nothing: null };
	const eventId = randomUUID();
	const occurredAt = new Date('2024-02-29T23:59:59.123Z');
	const [done] = await call(writer, `SELECT * FROM event_store.append($1, $2, $3, event_id => $4, expected_version => $5,
		occurred_at => $6, metadata => $7, causation_id => $8)`,
	'order-1', 'placed', awkward, eventId, 0n, occurredAt, { by: 'node' }, null);
	checkIs([done.first_version, done.last_version, typeof done.last_position, done.duplicate],
		[1, 1, 'string', false], 'an append says what it did, positions are strings');

	const [read] = await call(writer, 'SELECT * FROM event_store.read_stream($1)', 'order-1');
	checkIs([read.data, read.metadata, read.event_id, read.occurred_at, read.causation_id, read.version, read.position],
		[awkward, { by: 'node' }, eventId, occurredAt, null, 1, done.last_position],
		'what was written comes back as it was');
	check(read.recorded_at instanceof Date && Math.abs(Date.now() - read.recorded_at) < PATIENCE,
		'recorded_at is the time of the append');

	const message = { last_position: Number(done.last_position), category: 'order', count: 1 };
	checkIs(await next.order(), ['event_store.order', message], 'a listener on the category hears of it');
	const [channel, payload] = await next.all();
	checkIs([channel, payload.last_position], ['event_store', Number(done.last_position)], 'so does one on the store');

	// arrays and strings are not what node-postgres takes for JSON
	const [several] = await call(writer, 'SELECT * FROM event_store.append_events($1, $2, expected_version => $3)',
		'order-1', JSON.stringify([{ type: 'packed', data: [1, 2] }, { type: 'sent', data: 'by mail' }]), '1');
	checkIs([several.first_version, several.last_version], [2, 3], 'a batch is appended, a bigint may be a string');
	checkIs((await call(writer, 'SELECT data FROM event_store.read_stream($1, from_version => $2)', 'order-1', 2))
		.map((row) => row.data), [[1, 2], 'by mail'], 'any JSON value comes back');
	await next.order();

	checkIs(await errorOf(writer, 'SELECT event_store.append($1, $2, $3, expected_version => $4)', 'order-1', 'placed', {}, 0),
		'VE001', 'a lost race is an error with its own code');
	checkIs(await errorOf(writer, 'SELECT event_store.append($1, $2, $3)', 'order-1', 'placed', null),
		'VE002', 'so is an invalid argument');
	checkIs((await call(writer, 'SELECT * FROM event_store.append($1, $2, $3, event_id => $4)',
		'order-1', 'placed', awkward, eventId)).map((row) => [row.duplicate, row.last_position]),
	[[true, done.last_position]], 'what is sent again is there already');
	checkIs((await call(writer, 'SELECT type FROM event_store.read_category($1, 0, NULL, types => $2)',
		'order', ['placed', 'sent'])).map((row) => row.type), ['placed', 'sent'], 'a category is read, an array is one');
}

// A consumer whose effect is in the database.
async function transactional(writer) {
	await call(writer, 'SELECT event_store.create_subscription($1, categories => $2)', 'node', ['order']);
	await call(writer,
		"SELECT count(event_store.append('order-' || i % 7, 'more', to_jsonb(i))) FROM generate_series(1, 500) i");
	await call(writer, 'CREATE TABLE effect (n bigserial, position bigint)');
	const consumer = await connect(POOLED);
	const poll = "SELECT position FROM event_store.poll('node', 50)";
	let failed = false;
	let batches = 0;

	for (;;) {
		await consumer.query('BEGIN');
		const positions = (await call(consumer, poll)).map((event) => event.position);
		if (positions.length === 0) {
			await consumer.query('ROLLBACK');
			break;
		}
		await call(consumer, 'INSERT INTO effect (position) SELECT unnest($1::bigint[])', positions);
		if (++batches === 3 && !failed) { // something goes wrong once
			failed = true;
			await consumer.query('ROLLBACK');
			continue;
		}
		const acked = await value(consumer, "SELECT event_store.ack('node', $1)", positions);
		await consumer.query('COMMIT');
		if (acked !== String(positions.length)) check(false, 'all of a batch were open');
	}
	const effect = (await call(writer, 'SELECT position FROM effect ORDER BY n')).map((row) => row.position);
	const wanted = (await call(writer, "SELECT position FROM event_store.read_category('order', 0, NULL)"))
		.map((row) => row.position);
	check(failed && wanted.length === 503, 'there was something to do');
	checkIs(effect, wanted, 'through a pooler a consumer gets each event once, in order');
}

// A poll that waits.
async function waiting(writer, client, how) {
	const answer = call(client, "SELECT position, type FROM event_store.poll('node', 10, wait => '1 hour')");
	await waitForWaiter(writer);
	const position = await value(writer, "SELECT last_position FROM event_store.append('order-1', 'awaited', '{}')");
	checkIs(await inTime(answer, 'the poll did not return'), [{ position, type: 'awaited' }],
		'a poll that waits returns, ' + how);
	checkIs(await value(writer, "SELECT event_store.ack_up_to('node', $1)", position), '1', 'and is acknowledged, ' + how);
}

// Events under a lease: no transaction is open while they are handled.
async function leased(writer, client, how) {
	const name = 'leased ' + how;
	const poll = (consumer, wait = null) => inTime(
		call(client, "SELECT position, data, attempt FROM event_store.poll($1, 10, consumer => $2, wait => $3, lease => '1 hour')",
			name, consumer, wait), 'the poll did not return');
	const ack = (consumer, ...positions) => value(client, 'SELECT event_store.ack($1, $2, consumer => $3)', name, positions, consumer);
	const nack = (position, error, consumer) => value(client,
		'SELECT event_store.nack($1, $2, $3, consumer => $4)', name, position, error, consumer);
	const state = async () => {
		const [row] = await call(writer,
			`SELECT leased, retries, waiting, dead_letters, open_events FROM event_store.subscriptions WHERE name = $1`, name);
		return Object.values(row).map(Number);
	};

	await call(client, `SELECT event_store.create_subscription($1, stream_pattern => $2, start_after => NULL,
		max_attempts => 2, first_delay => '10 ms', jitter => 0)`, name, 'job %');
	const positions = [];
	for (const n of [1, 2, 3, 4, 5, 6]) { // 1 3 5 and 2 4 6
		positions.push(await value(writer, 'SELECT last_position FROM event_store.append($1, $2, $3)',
			`job ${how}-${n % 2}`, 'done', n));
	}

	checkIs(await poll('one'), positions.map((position, i) => ({ position, data: i + 1, attempt: 1 })),
		'a named consumer gets events under a lease, ' + how);
	checkIs([await poll('two'), await ack('two', ...positions), await nack(positions[0], 'not mine', 'two')], [[], '0', null],
		'another one can neither get nor decide them, ' + how);
	checkIs(await nack(positions[0], 'node: bad weather', 'one'), 'retry', 'a failure is tried again, ' + how);
	checkIs(await ack('one', ...positions.slice(1)), '3', 'what follows in its stream waits, the others are done, ' + how);
	checkIs(await state(), [0, 1, 2, 0, 3], 'and the view says so, ' + how);

	checkIs(await poll('one', '1 hour'), [{ position: positions[0], data: 1, attempt: 2 }],
		'it comes again, alone, after its delay, ' + how);
	checkIs(await nack(positions[0], 'node: worse', 'one'), 'dead', 'the second failure is the last, ' + how);
	checkIs((await call(client, 'SELECT * FROM event_store.dead_letters($1)', name)).map((letter) =>
		[letter.position, letter.stream, letter.data, letter.attempts, letter.error, letter.consumer, letter.parked,
			letter.first_failed_at instanceof Date && letter.first_failed_at < letter.failed_at]),
	[[positions[0], `job ${how}-1`, 1, 2, 'node: worse', 'one', '2', true]], 'it is a dead letter, with all there is to know, ' + how);
	checkIs([await poll('one'), await state()], [[], [0, 0, 2, 1, 3]], 'which parks its stream, ' + how);

	checkIs(await value(client, 'SELECT event_store.replay_dead_letters($1, at_position => $2)', name, positions[0]), '1',
		'it is replayed, ' + how);
	const again = await poll('one');
	checkIs(again.map((event) => [event.data, event.attempt]), [[1, 1], [3, 1], [5, 1]], 'and followed by what was behind it, ' + how);
	checkIs([await value(client, 'SELECT event_store.heartbeat($1, $2)', name, 'one'),
		await ack('one', ...again.map((event) => event.position)), await state()], [true, '3', [0, 0, 0, 0, 0]],
	'in the end all is done, ' + how);
	checkIs([await value(client, 'SELECT event_store.leave($1, $2)', name, 'one'),
		await errorOf(client, "SELECT * FROM event_store.poll('none', consumer => 'one', lease => '1 s')")], [true, 'VE008'],
	'it leaves, ' + how);
}

// Makes the pooler open a second connection to the server, so that this client's statements don't all go to one.
async function spread(pooled) {
	const other = await connect(POOLED);
	const backend = 'SELECT pg_backend_pid()';

	await other.query('BEGIN');
	await call(other, backend);
	await call(pooled, backend);
	await other.query('COMMIT');
	check(await value(pooled, backend) !== await value(pooled, backend), 'the pooler changes the connection under a client');
}

async function main() {
	const [writer, direct, pooled] = [await connect(DIRECT), await connect(DIRECT), await connect(POOLED)];

	await spread(pooled);
	await events(writer);
	await transactional(writer);
	for (const [how, client] of [['directly', direct], ['through a pooler', pooled]]) {
		await waiting(writer, client, how);
		await leased(writer, client, how);
	}
	await Promise.all(clients.map((client) => client.end()));
}

main().catch((error) => {
	console.error(error);
	process.exit(1);
});
