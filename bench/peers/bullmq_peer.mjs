// Raw BullMQ jobs: `work` is one worker process with concurrency 5, `drive` starts workloads and sees them end.
//
// A job adds what comes next from within itself, a stage of several with one `addBulk`; jobs that join count themselves
// in Redis, and the last one goes on. An end is seen in BullMQ's own terms: its count of completed jobs, and for a single
// execution the event of its last job. That a job ran once is read from what BullMQ keeps of it: one start, no stall.

import { writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";

const { BENCH_HOME, BENCH_READY, BENCH_REDIS } = process.env;
const require = createRequire(`${BENCH_HOME}/`);
const { Queue, QueueEvents, Worker } = require("bullmq");
const { Redis } = require("ioredis");

const QUEUE = "bench";
const CONCURRENCY = 5;
const LOOK_MS = 5; // between two looks at the count of completed jobs
const SETTLE_MS = 5000; // what was added by a job may end before it

const connection = { path: BENCH_REDIS, maxRetriesPerRequest: null };
const queue = new Queue(QUEUE, { connection });
const redis = new Redis(connection);
await queue.waitUntilReady();

const idOf = (run, stage, number) => `${run}-${stage}-${number}`;

async function addStage(runs, stages, stage) {
  const jobs = runs.flatMap((run) =>
    Array.from({ length: stages[stage] }, (_, number) => ({
      name: "node",
      data: { run, stages, stage },
      opts: { jobId: idOf(run, stage, number) },
    })),
  );
  if (jobs.length === 1) await queue.add(jobs[0].name, jobs[0].data, jobs[0].opts);
  else await queue.addBulk(jobs);
}

async function work() {
  const node = async ({ data: { run, stages, stage } }) => {
    if (stage + 1 === stages.length) return;
    if (stages[stage] > 1 && (await redis.incr(`bench:${run}:${stage}`)) < stages[stage]) return;
    await addStage([run], stages, stage + 1);
  };
  const worker = new Worker(QUEUE, node, { connection, concurrency: CONCURRENCY });
  worker.on("error", console.error);
  worker.on("failed", (_, error) => console.error(error));
  await worker.waitUntilReady();
  writeFileSync(`${BENCH_READY}/${process.pid}`, "");
}

async function drive() {
  let begun = 0;
  let expected = 0; // jobs since the workers started
  console.log(JSON.stringify({}));
  for await (const line of createInterface({ input: process.stdin })) {
    const { name, stages, executions, one_by_one, idle_seconds } = JSON.parse(line);
    begun += 1;
    const runs = Array.from({ length: executions }, (_, number) => `${name}-${begun}-${number}`);
    expected += executions * stages.reduce((sum, width) => sum + width);
    const seconds = one_by_one ? await timeEach(runs, stages, idle_seconds) : [await timeAll(runs, stages, expected)];
    console.log(JSON.stringify({ seconds, wrong: await wrong(runs, stages, expected) }));
  }
  process.exit();
}

async function timeAll(runs, stages, expected) {
  const started = performance.now();
  await addStage(runs, stages, 0);
  while ((await queue.getCompletedCount()) < expected) await sleep(LOOK_MS);
  return (performance.now() - started) / 1000;
}

async function timeEach(runs, stages, idleSeconds) {
  const events = new QueueEvents(QUEUE, { connection });
  await events.waitUntilReady();
  const waiting = new Map();
  events.on("completed", ({ jobId }) => waiting.get(jobId)?.());
  const seconds = [];
  for (const run of runs) {
    await sleep(idleSeconds * 1000);
    const started = performance.now();
    const ended = new Promise((resolve) => waiting.set(idOf(run, stages.length - 1, 0), resolve));
    await addStage([run], stages, 0);
    await ended;
    seconds.push((performance.now() - started) / 1000);
  }
  await events.close();
  return seconds;
}

async function wrong(runs, stages, expected) {
  const deadline = performance.now() + SETTLE_MS;
  while ((await queue.getCompletedCount()) < expected && performance.now() < deadline) await sleep(LOOK_MS);
  const counts = await queue.getJobCounts();
  const { completed, ...others } = counts;
  if (completed !== expected || Object.values(others).some((count) => count > 0)) {
    return `of ${expected} jobs so far: ${JSON.stringify(counts)}`;
  }
  const pipeline = redis.pipeline();
  for (const run of runs) {
    stages.forEach((width, stage) => {
      for (let number = 0; number < width; number += 1) {
        pipeline.hmget(queue.toKey(idOf(run, stage, number)), "finishedOn", "ats", "stc");
      }
    });
  }
  const found = (await pipeline.exec()).map(([, fields]) => fields);
  const odd = found.filter(([finished, starts, stalls]) => !finished || starts !== "1" || stalls);
  return odd.length ? `${odd.length} jobs did not run once: ${JSON.stringify(odd[0])}` : "";
}

await { work, drive }[process.argv[2]]();
