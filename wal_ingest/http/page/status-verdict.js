// How it is, in one sentence, and what to do about it. Pure: status in, words out.

import { clock, counted, duration } from "./status-words.js";

export const LEVELS = ["ok", "warn", "bad"];

const LAG_S_WORTH_SAYING = 60;
const FULL_S_WORTH_SAYING = 3600;
const FULL_S_BAD = 900;

// What each state of a sink means: how bad it is, how it is said, and what an operator does.
// A state that is not here (a newer server's) is shown by its own name.
const STATES = {
  idle: { level: "ok" },
  delivering: { level: "ok" },
  retrying: {
    level: "warn",
    says: "is away since",
    means: "unavailable, tried again without end",
    advice: ({ name }) => ({ says: `Look after ${name}; delivery goes on by itself when it is back.` }),
  },
  holding: {
    level: "bad",
    says: "refuses us since",
    means: "misconfigured, an operator must act",
    advice: ({ name }) => ({ says: "See what is wrong with its settings:", run: `wal-ingest sink check ${name}` }),
  },
  failed: {
    level: "bad",
    says: "gave up at",
    means: "gave up, its points stay undelivered",
    advice: ({ name }) => ({ says: `Mend what ${name} complains of, then restart the node.` }),
  },
  paused: {
    level: "warn",
    says: "is paused since",
    means: "by an operator",
    advice: ({ name }) => ({ says: "To go on:", run: `wal-ingest sink resume ${name}` }),
  },
};

/** Level and meaning of a sink's state. */
export function stateOf(sink) {
  return STATES[sink.state] || { level: "warn", says: `is ${sink.state} since`, means: "" };
}

const worst = (levels) => LEVELS[Math.max(0, ...levels.map((level) => LEVELS.indexOf(level)))];

/**
 * `level` (ok, warn, bad), the `sentence`, the `advice` (a list of { says, run }, the latter a command or
 * nothing), and a `key` that changes when the state does but not with every figure.
 */
export function verdict(status) {
  const findings = [...refusing(status), ...sinksInTrouble(status), ...filling(status), ...broken(status)];
  const goingWell = findings.some((finding) => finding.sink) ? [] : [delivery(status)];
  const clauses = [...findings.filter((finding) => !finding.head).map((finding) => finding.says), ...goingWell];
  const head = findings.find((finding) => finding.head);
  const sentence = [head ? head.says : "Taking points", ...clauses].join("; ") + calm(status, findings);
  return {
    level: worst(findings.map((finding) => finding.level)),
    sentence,
    advice: findings.map((finding) => finding.advice).filter(Boolean),
    key: findings.map((finding) => finding.key).join("|"),
  };
}

function refusing(status) {
  if (status.ready) return [];
  const reasons = (status.reasons || []).join("; ") || "it does not say why";
  return [{
    head: true,
    level: "bad",
    says: `NOT taking points: ${reasons}`,
    advice: { says: "Senders are told to come back later. What was accepted is kept, and delivered." },
    key: `refusing ${reasons}`,
  }];
}

function sinksInTrouble(status) {
  return status.sinks.flatMap((sink) => {
    const { level, says, advice } = stateOf(sink);
    if (level === "ok") return lagging(sink);
    const clause = `${sink.name} ${says} ${clock(sink.since, status.now)}`;
    return [{
      sink: true,
      level,
      says: clause + waiting(sink.waiting_points),
      advice: advice && advice(sink),
      key: `${sink.name} ${sink.state}`,
    }];
  });
}

const waiting = (points) => (points > 0 ? `, ${counted(points, "point")} wait${points === 1 ? "s" : ""}` : "");

function lagging(sink) {
  if (!(sink.lag_s > LAG_S_WORTH_SAYING)) return [];
  const caughtUp = sink.catch_up_s === null ? "and falls further" : `caught up in ${duration(sink.catch_up_s)}`;
  return [{
    sink: true,
    level: sink.catch_up_s === null ? "warn" : "ok",
    says: `${sink.name} is ${duration(sink.lag_s)} behind, ${caughtUp}`,
    key: `${sink.name} lags`,
  }];
}

// The WAL's own limit or the disk's, whichever comes first.
function filling(status) {
  const left = status.wal.full_in_s;
  if (!status.ready || !Number.isFinite(left) || left > FULL_S_WORTH_SAYING) return [];
  return [{
    level: left < FULL_S_BAD ? "bad" : "warn",
    says: `space runs out in ${duration(left)}`,
    key: "filling",
  }];
}

function broken(status) {
  const found = [];
  if (status.wal.damaged_files > 0) {
    found.push({
      level: "bad",
      says: `${counted(status.wal.damaged_files, "damaged file")} set aside`,
      advice: { says: "See what was in them:", run: "wal-ingest wal verify" },
      key: "damaged",
    });
  }
  for (const sink of status.sinks.filter((one) => one.unaccounted_points)) {
    found.push({
      level: "bad",
      says: `${counted(sink.unaccounted_points, "point")} of ${sink.name} unaccounted for`,
      advice: { says: "That is a bug: please report it." },
      key: `${sink.name} unaccounted`,
    });
  }
  return found;
}

/** What is said of delivery when no sink is in trouble. */
function delivery(status) {
  if (status.sinks.length === 0) return "no sink is configured";
  return status.sinks.some((sink) => sink.waiting_points > 0) ? "delivery keeps up" : "everything delivered";
}

/** The words that let one go back to sleep; only when they are true. */
function calm(status, findings) {
  const lost = (sink) => sink.skipped_points || sink.expired_points || sink.unaccounted_points;
  const nothingLost = !status.wal.damaged_files && !status.sinks.some(lost);
  if (!nothingLost || !findings.some((finding) => finding.sink || finding.head)) return "";
  return findings.length > 1 ? "; nothing is lost" : ", nothing is lost";
}
