// Puts what the node says into the page. Every text goes in as text, never as markup.

import { UNKNOWN, bytes, clock, count, counted, duration, milliseconds, perSecond } from "./status-words.js";

const byId = (id) => document.getElementById(id);

/** Sets a text only when it is another one, so that selections and screen readers are left in peace. */
export function say(target, text) {
  if (target.textContent !== text) target.textContent = text;
}

function sayAll(texts) {
  for (const [id, text] of Object.entries(texts)) say(byId(id), text);
}

const exactly = (value) => (Number.isFinite(value) ? value.toLocaleString("en") : "");

/** The header, the tiles and the footer. */
export function showFigures(status) {
  const { rates, append, commit, wal } = status;
  sayAll({
    version: `version ${status.version}`,
    up: `up ${duration((Date.parse(status.now) - Date.parse(status.started)) / 1000)}`,
    "points-rate": count(rates.points_per_s),
    "requests-rate": perSecond(count(rates.requests_per_s)),
    "bytes-rate": perSecond(bytes(rates.bytes_per_s)),
    accepted: count(wal.points_accepted),
    p99: milliseconds(append.p99_ms),
    p50: milliseconds(append.p50_ms),
    "commits-rate": perSecond(count(commit.per_s)),
    entries: count(commit.entries_per_commit),
    oldest: wal.oldest_waiting_s === null ? "none" : duration(wal.oldest_waiting_s),
    segments: count(wal.segments),
    "disk-free": bytes(wal.disk_free_bytes),
    "disk-min": bytes(wal.disk_free_bytes_min),
    "disk-full-in": wal.disk_full_in_s === null ? "not filling" : duration(wal.disk_full_in_s),
    "last-seq": exactly(wal.last_seq) || UNKNOWN,
    damaged: wal.damaged_files ? count(wal.damaged_files) : "none",
    "data-dir": `Data in ${status.data_dir}`,
    "wal-id": `WAL ${status.wal_id}`,
  });
  byId("accepted").title = exactly(wal.points_accepted);
  byId("damaged").classList.toggle("alarm", wal.damaged_files > 0);
  byId("disk-free").classList.toggle("alarm", wal.disk_free_bytes < wal.disk_free_bytes_min * 1.5);
  showFill(wal);
}

/** How full the WAL is: bytes, share, bar, and when it will be full. */
function showFill(wal) {
  const percent = wal.bytes_max > 0 ? Math.min(100, (wal.bytes / wal.bytes_max) * 100) : 0;
  const share = percent > 0 && percent < 1 ? "<1" : String(Math.floor(percent));
  const full = wal.full_in_s === 0 ? "full" : duration(wal.full_in_s);
  sayAll({
    "wal-bytes": bytes(wal.bytes),
    "wal-max": `of ${bytes(wal.bytes_max)}, ${share}\u202f%`,
    "full-in": wal.full_in_s === null ? "not growing" : full,
  });
  const bar = byId("wal-bar");
  bar.setAttribute("aria-valuenow", percent.toFixed(1));
  bar.setAttribute("aria-valuetext", `${bytes(wal.bytes)} of ${bytes(wal.bytes_max)}`);
  bar.dataset.level = percent >= 90 ? "bad" : percent >= 60 ? "attention" : "good";
  bar.firstElementChild.style.width = `${percent}%`;
}

/** Makes the children of `list` as many as the items are, and has `fill` bring each up to date in its place. */
function inPlace(list, items, templateId, fill) {
  const template = byId(templateId);
  while (list.children.length < items.length) list.append(template.content.cloneNode(true));
  while (list.children.length > items.length) list.lastElementChild.remove();
  items.forEach((item, index) => fill(list.children[index], item));
}

const part = (element, name) => element.querySelector(`[data-is="${name}"]`);

function fillParts(element, texts) {
  for (const [name, text] of Object.entries(texts)) say(part(element, name), text);
}

/** A card for each sink. */
export function showSinks(status) {
  byId("no-sinks").hidden = status.sinks.length > 0;
  inPlace(byId("sinks"), status.sinks, "sink-card", (card, sink) => {
    fillSink(card, sink, status.account[sink.name], status.now);
  });
}

function fillSink(card, sink, account, now) {
  card.dataset.level = sink.level;
  fillParts(card, {
    name: sink.name,
    state: sink.state,
    since: `since ${clock(sink.since, now)}${sink.meaning ? ` – ${sink.meaning}` : ""}`,
    waiting: counted(sink.waiting_points, "point"),
    lag: duration(sink.lag_s),
    rate: perSecond(count(sink.confirmed_per_s)),
    eta: caughtUp(sink),
    confirmed: count(sink.confirmed_points),
    parked: count(sink.dead_letters),
    skipped: count(sink.given_up_points),
    account: accountText(account),
    writes: `${count(sink.retried_writes)} · ${count(sink.in_flight)}`,
    lost: count(sink.unaccounted_points),
    "error-at": sink.last_error ? `Last error, ${clock(sink.last_error_at, now, { seconds: true })}:` : "",
    error: sink.last_error || "",
  });
  part(card, "waiting").title = exactly(sink.waiting_points);
  part(card, "confirmed").title = exactly(sink.confirmed_points);
  part(card, "parked").classList.toggle("warned", sink.dead_letters > 0);
  part(card, "skipped").classList.toggle("warned", sink.given_up_points > 0);
  part(card, "optional").hidden = sink.required;
  part(card, "lost-row").hidden = !sink.unaccounted_points;
  part(card, "error-row").hidden = !sink.last_error;
}

/** The sum in exact figures, as the node counts it. */
function accountText({ accepted, delivered, waiting, parked, given_up: givenUp, unaccounted }) {
  const parts = { delivered, waiting, parked, "given up": givenUp };
  if (unaccounted) parts.unaccounted = unaccounted;
  const sum = Object.entries(parts).map(([name, value]) => `${exactly(value)} ${name}`).join(" + ");
  return `${exactly(accepted)} accepted = ${sum}`;
}

function caughtUp(sink) {
  if (sink.waiting_points === 0) return "nothing waits";
  if (sink.catch_up_s !== null && sink.catch_up_s < 1) return "keeps up";
  if (sink.catch_up_s !== null) return `in ${duration(sink.catch_up_s)}`;
  return sink.level === "good" ? "falls behind" : "not now";
}

/** Implausible times, dead letters by reason, and the last events: errors, and what operators did. */
export function showLists({ dead_letters: dead, events, now, odd_times: odd }) {
  byId("odd-section").hidden = odd.length === 0;
  inPlace(byId("odd"), odd, "list-item", (item, { points, source, says }) => fillParts(item, {
    what: counted(points, "point"),
    who: source,
    when: "",
    text: says,
  }));
  byId("no-dead").hidden = dead.length > 0;
  inPlace(byId("dead"), dead, "list-item", (item, letter) => fillParts(item, {
    what: counted(letter.points, "point"),
    who: letter.sink,
    when: `last ${clock(letter.last_at, now, { seconds: true })}`,
    text: letter.reason,
  }));
  byId("no-events").hidden = events.length > 0;
  inPlace(byId("events"), events, "list-item", (item, event) => fillParts(item, {
    what: clock(event.at, now, { seconds: true }),
    who: event.source,
    when: "",
    text: event.message,
  }));
}

const ICON_COLOURS = { good: "2e9e5b", attention: "d98e04", bad: "d6322d", none: "888888" };

/** The sentence at the top, the tab's title and icon; the state is spoken only when `key` is another one. */
export function showVerdict({ level, sentence, remedies, key }, wasKey) {
  byId("banner").dataset.level = level;
  say(byId("verdict"), sentence);
  inPlace(byId("advice"), remedies, "advice-item", fillParts);
  const icon = `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 8 8"><circle cx="4" cy="4" r="4" fill="#${
    ICON_COLOURS[level]}"/></svg>`;
  const href = `data:image/svg+xml,${encodeURIComponent(icon)}`;
  if (byId("icon").href !== href) byId("icon").href = href;
  const title = `${{ good: "OK", attention: "Look", bad: "ACT", none: "?" }[level]} · wal-ingest ${location.host}`;
  if (document.title !== title) document.title = title;
  if (key !== wasKey) say(byId("said"), sentence);
}

/** What never changes while the page is open. */
export function showPlace() {
  const zone = Intl.DateTimeFormat().resolvedOptions().timeZone;
  sayAll({ host: location.host, zone: zone ? ` (${zone})` : "" });
}
