// Numbers and times in words: pure functions, every one of which takes null for "not known".

export const UNKNOWN = "–";

// A space that neither breaks nor is wide, between a number and its unit.
const GAP = "\u202f";

const known = (value) => typeof value === "number" && Number.isFinite(value);

/** Three significant digits, without zeros at the end: 1.23, 12.3, 123. */
function digits(value) {
  if (value === 0) return "0";
  const places = Math.max(0, Math.min(2, 2 - Math.floor(Math.log10(Math.abs(value)))));
  return String(Number(value.toFixed(places)));
}

/** The value divided down by `base` until it is below it, and how often that took. */
function scaled(value, base, steps) {
  let step = 0;
  // 999.6 would be written 1000: it belongs to the next unit.
  while (Math.abs(value) >= base - 0.5 && step < steps) {
    value /= base;
    step += 1;
  }
  return [value, step];
}

/** 1234567 → "1.23 M" */
export function count(value) {
  if (!known(value)) return UNKNOWN;
  const [number, step] = scaled(value, 1000, 4);
  return digits(number) + ["", "k", "M", "G", "T"][step].replace(/^(?=.)/, GAP);
}

/** 1536 → "1.5 KiB" */
export function bytes(value) {
  if (!known(value)) return UNKNOWN;
  const [number, step] = scaled(value, 1024, 5);
  return digits(number) + GAP + ["B", "KiB", "MiB", "GiB", "TiB", "PiB"][step];
}

/** With "/s" behind it, unless it is not known. */
export function perSecond(text) {
  return text === UNKNOWN ? text : `${text}/s`;
}

/** Milliseconds: "0.42 ms", "153 ms", "2.5 s" */
export function milliseconds(value) {
  if (!known(value)) return UNKNOWN;
  return value < 999.5 ? digits(value) + GAP + "ms" : duration(value / 1000);
}

/** Seconds, in the two largest units that matter: "0.4 s", "42 s", "4 min 10 s", "3 h 12 min", "2 d 4 h" */
export function duration(seconds) {
  if (!known(seconds)) return UNKNOWN;
  if (seconds < 9.95) return `${Number(Math.max(0, seconds).toFixed(1))}${GAP}s`;
  const whole = Math.round(seconds);
  const units = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];
  const first = units.findIndex(([, size]) => whole >= size);
  const [name, size] = units[first];
  const parts = [`${Math.floor(whole / size)}${GAP}${name}`];
  const [below, belowSize] = units[first + 1] || ["", 1];
  const rest = Math.floor((whole % size) / belowSize);
  // "40 min 10 s" is more than one wants to know.
  if (below && rest > 0 && !(name === "min" && whole >= 600)) parts.push(`${rest}${GAP}${below}`);
  return parts.join(" ");
}

const two = (number) => String(number).padStart(2, "0");
const MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/** A moment on this browser's clock: "02:13", with seconds if asked for, with the day if it is not today's. */
export function clock(moment, now, { seconds = false } = {}) {
  const at = new Date(moment);
  const today = new Date(now);
  if (Number.isNaN(at.getTime())) return UNKNOWN;
  const time = `${two(at.getHours())}:${two(at.getMinutes())}${seconds ? `:${two(at.getSeconds())}` : ""}`;
  return at.toDateString() === today.toDateString() ? time : `${at.getDate()} ${MONTHS[at.getMonth()]} ${time}`;
}

/** "1 point", "2 points" */
export function counted(value, noun) {
  return `${count(value)} ${noun}${value === 1 ? "" : "s"}`;
}
