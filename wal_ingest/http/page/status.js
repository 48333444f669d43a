// The status page: asks the node how it is, every two seconds, and shows it.
//
// Nothing is asked while the tab is hidden. When the node does not answer, the page says since when, keeps
// the last figures in grey, and goes on asking.

import { createPlot } from "./status-plot.js";
import { say, showFigures, showLists, showPlace, showSinks, showVerdict } from "./status-view.js";
import { bytes, clock, count, duration, milliseconds, perSecond } from "./status-words.js";

const STATUS_EVERY_MS = 2000;
const HISTORY_EVERY_MS = 10000;
const ANSWER_MS_MAX = 8000;

/** A GET of JSON. Throws an Error that says in words why there is none. */
async function ask(path) {
  const patience = new AbortController();
  const timer = setTimeout(() => patience.abort(), ANSWER_MS_MAX);
  try {
    const answer = await fetch(path, { cache: "no-store", signal: patience.signal });
    if (!answer.ok) throw new Error(`it answers ${path} with ${answer.status}`);
    return await answer.json();
  } catch (error) {
    if (error.name === "AbortError") throw new Error(`no answer within ${duration(ANSWER_MS_MAX / 1000)}`);
    if (error instanceof TypeError) throw new Error("it cannot be reached");
    throw error;
  } finally {
    clearTimeout(timer);
  }
}

/**
 * Does `work` now and then every so many milliseconds, counted from the end of the last time, as long as the
 * tab can be seen; at once when it is seen again.
 */
function keepAsking(work, everyMs) {
  let timer = null;
  let working = false;
  const turn = async () => {
    if (working || document.hidden) return;
    working = true;
    clearTimeout(timer);
    await work();
    working = false;
    timer = setTimeout(turn, everyMs);
  };
  document.addEventListener("visibilitychange", turn);
  turn();
}

/** Shows the status, or that there is none. */
function statusWork() {
  let heard = null; // when the node last answered, on this browser's clock
  let silentSince = null;
  let key = null;

  const present = (told) => {
    showVerdict(told, key);
    key = told.key;
  };
  const answered = (status) => {
    present(status.verdict);
    showFigures(status);
    showSinks(status);
    showLists(status);
    heard = Date.now();
    silentSince = null;
    document.body.className = "";
  };
  const silent = (error) => {
    silentSince = silentSince || heard || Date.now();
    document.body.className = heard ? "stale" : "waiting";
    present(silence(error, silentSince, heard));
  };
  return async () => {
    try {
      answered(await ask("status.json"));
    } catch (error) {
      silent(error);
    }
  };
}

/** What is said when the node does not answer. */
function silence(error, since, heard) {
  const now = Date.now();
  const ago = duration(Math.round((now - since) / 1000));
  return {
    level: "bad",
    sentence: `No status from this node since ${clock(since, now, { seconds: true })}, for ${ago}: ${error.message}`,
    remedies: [{
      says: heard
        ? "The figures below are from then. This page asks again every 2 s and goes on by itself."
        : "This page asks again every 2 s. Does the node run, and is this its address?",
      run: "",
    }],
    key: "silent",
  };
}

/** Shows the history in the four plots. Silence is not spoken of here: the banner does that. */
function historyWork() {
  const byId = (id) => document.getElementById(id);
  const plots = {
    rate: createPlot(byId("plot-rate"), { words: (value) => perSecond(count(value)) }),
    waiting: createPlot(byId("plot-waiting"), { words: count }),
    wal: createPlot(byId("plot-wal"), { words: bytes, binary: true, least: 1024 }),
    append: createPlot(byId("plot-append"), { words: milliseconds }),
  };
  return async () => {
    try {
      showHistory(plots, await ask("history.json"));
    } catch {
      // Kept as it is.
    }
  };
}

function showHistory(plots, history) {
  const sinks = Object.entries(history.sinks);
  const over = ((history.points_per_s.length || 1) - 1) * history.step_s;
  say(document.getElementById("plots-name"), over > 0 && over < 3590 ? `The last ${duration(over)}` : "The last hour");
  const draw = (plot, series) => plot.show({ end: history.end, step_s: history.step_s, series });
  draw(plots.rate, [
    { name: "accepted", colour: 0, filled: true, values: history.points_per_s },
    ...sinks.map(([name, { confirmed_per_s: values }], index) => ({ name: `to ${name}`, colour: index + 1, values })),
  ]);
  draw(plots.waiting, sinks.map(([name, { waiting_points: values }], index) => ({ name, colour: index + 1, values })));
  draw(plots.wal, [{ name: "WAL", colour: 0, filled: true, values: history.wal_bytes }]);
  draw(plots.append, [{ name: "p99", colour: 0, filled: true, values: history.append_p99_ms }]);
}

showPlace();
keepAsking(statusWork(), STATUS_EVERY_MS);
keepAsking(historyWork(), HISTORY_EVERY_MS);
