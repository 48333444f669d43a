// Plots of the last hour, as SVG: lines with gaps where nothing is known, axes in units, and a readout.
//
// A plot is drawn in the pixels that it has, so that its text is as big as the page's. It is redrawn when it
// gets new data or another width. Pointer, finger or arrow keys move the readout; else it shows the latest.

import { clock, duration } from "./status-words.js";

const SVG = "http://www.w3.org/2000/svg";
const HEIGHT = 190;
const EDGE = { top: 10, right: 10, bottom: 24, left: 64 };
const SPAN_S_MIN = 300;
const COLOURS = 6;

/** An SVG element with attributes. Numbers are rounded to a tenth of a pixel. */
function shape(name, attributes, text = "") {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) {
    made.setAttribute(key, typeof value === "number" ? String(tenth(value)) : value);
  }
  made.textContent = text;
  return made;
}

/** An HTML element with a class and a text. */
function element(name, className, text = "") {
  const made = document.createElement(name);
  made.className = className;
  made.textContent = text;
  return made;
}

/** A round step of at least `rough`: 1, 2 or 5 times a power of ten; for bytes, of two within each unit. */
export function niceStep(rough, binary) {
  if (binary) return 2 ** Math.ceil(Math.log2(rough));
  const power = 10 ** Math.floor(Math.log10(rough));
  return [1, 2, 5, 10].find((factor) => factor * power >= rough * 0.999) * power;
}

/** The ticks of an axis that begins at 0 and reaches over `highest`, in about four steps. */
export function valueTicks(highest, { binary = false, least = 1 } = {}) {
  const step = niceStep(Math.max(highest, least) / 4, binary);
  const steps = Math.max(1, Math.ceil(Math.max(highest, least) / step - 0.001));
  return Array.from({ length: steps + 1 }, (_, index) => index * step);
}

/** Round moments (milliseconds) between two, no closer than `pixels / 70` of them. */
export function timeTicks(start, end, pixels) {
  const roughly = (end - start) / Math.max(2, pixels / 70);
  const step = [1, 2, 5, 10, 15, 20, 30, 60].map((minutes) => minutes * 60000).find((one) => one >= roughly);
  const ticks = [];
  for (let at = Math.ceil(start / step) * step; at <= end; at += step) ticks.push(at);
  return ticks;
}

const tenth = (number) => Math.round(number * 10) / 10;

/** The stretches of known values, each as a list of [x, y] in pixels; what is not known parts them. */
function stretches(values, x, y) {
  const found = [[]];
  values.forEach((value, index) => {
    if (value === null) found.push([]);
    else found[found.length - 1].push([tenth(x(index)), tenth(y(value))]);
  });
  return found.filter((stretch) => stretch.length > 0);
}

const through = (stretch) => `M${stretch.map(([x, y]) => `${x} ${y}`).join("L")}`;

/** A path through the values that are known; one that stands alone becomes a dot (by its round cap). */
export function linePath(values, x, y) {
  return stretches(values, x, y).map((one) => through(one) + (one.length === 1 ? "h0" : "")).join("");
}

/** The same, closed down to `base`. */
export function areaPath(values, x, y, base) {
  return stretches(values, x, y).map((one) => `${through(one)}V${base}H${one[0][0]}Z`).join("");
}

/**
 * A plot within a figure. `words` writes a value with its unit; `binary` makes ticks of powers of two; `least`
 * is the lowest end of the axis. Gives `show(data)`, data being { end, step_s,
 * series: [{ name, colour, filled, values }] }.
 */
export function createPlot(figure, { words, binary = false, least = 1 }) {
  const title = figure.querySelector("figcaption").textContent;
  const svg = shape("svg", { role: "img", tabindex: "0", height: HEIGHT, width: "100%" });
  const legend = element("ul", "legend");
  figure.append(legend, svg);
  const plot = { title, svg, legend, words, binary, least, data: null, at: null, frame: null };
  new ResizeObserver(() => draw(plot)).observe(figure);
  listen(plot);
  return {
    show(data) {
      plot.data = data;
      draw(plot);
    },
  };
}

/** Where everything goes: the time range, the ticks, and the two functions from data to pixels. */
function layout(plot) {
  const { data, svg } = plot;
  const width = Math.max(200, svg.getBoundingClientRect().width);
  const length = Math.max(0, ...data.series.map((one) => one.values.length));
  const end = Date.parse(data.end);
  const span = Math.max(SPAN_S_MIN, Math.max(0, length - 1) * data.step_s) * 1000;
  const highest = Math.max(0, ...data.series.flatMap((one) => one.values.map((value) => value ?? 0)));
  const ticks = valueTicks(highest, plot);
  const right = width - EDGE.right;
  const bottom = HEIGHT - EDGE.bottom;
  const x = (moment) => right - ((end - moment) / span) * (right - EDGE.left);
  return {
    width, right, bottom, length, end, span, ticks,
    timeOf: (index) => end - (length - 1 - index) * data.step_s * 1000,
    x,
    xOf: (index) => x(end - (length - 1 - index) * data.step_s * 1000),
    y: (value) => bottom - (value / ticks[ticks.length - 1]) * (bottom - EDGE.top),
  };
}

function draw(plot) {
  if (!plot.data) return;
  const frame = layout(plot);
  plot.frame = frame;
  const parts = [...axes(plot, frame), ...plot.data.series.flatMap((one) => line(one, frame))];
  if (frame.length === 0) parts.push(nothingYet(frame));
  const cursor = shape("g", { class: "cursor" });
  plot.svg.setAttribute("viewBox", `0 0 ${frame.width} ${HEIGHT}`);
  plot.svg.replaceChildren(...parts, cursor);
  read(plot);
}

function axes(plot, { width, right, bottom, end, span, ticks, x, y }) {
  const parts = [];
  for (const tick of ticks) {
    parts.push(shape("line", { class: "grid", x1: EDGE.left, x2: right, y1: y(tick), y2: y(tick) }));
    parts.push(shape("text", { class: "tick", x: EDGE.left - 8, y: y(tick) + 4, "text-anchor": "end" }, plot.words(tick)));
  }
  for (const moment of timeTicks(end - span, end, width - EDGE.left)) {
    parts.push(shape("line", { class: "grid", x1: x(moment), x2: x(moment), y1: bottom, y2: bottom + 4 }));
    if (x(moment) > right - 14) continue;
    const label = clock(moment, moment);
    parts.push(shape("text", { class: "tick", x: x(moment), y: HEIGHT - 6, "text-anchor": "middle" }, label));
  }
  return parts;
}

const colourOf = ({ colour }) => `c${colour % COLOURS}`;

function line(one, { xOf, y, bottom }) {
  const area = { class: `area ${colourOf(one)}`, d: areaPath(one.values, xOf, y, bottom) };
  const drawn = { class: `line ${colourOf(one)}`, d: linePath(one.values, xOf, y) };
  return [...(one.filled ? [shape("path", area)] : []), shape("path", drawn)];
}

function nothingYet({ right, bottom }) {
  const middle = { x: (EDGE.left + right) / 2, y: bottom / 2, "text-anchor": "middle" };
  return shape("text", { class: "tick", ...middle }, "nothing yet");
}

/** Puts the readout (time and values) where the cursor is, or at the latest values. */
function read(plot) {
  const { data, frame, at } = plot;
  const index = at === null ? frame.length - 1 : Math.min(at, frame.length - 1);
  const when = at === null ? "latest" : clock(frame.timeOf(index), frame.end, { seconds: true });
  const rows = data.series.map((one) => {
    const row = element("li", colourOf(one));
    row.append(element("span", "name", one.name), " ", element("b", "", plot.words(one.values[index])));
    return row;
  });
  plot.legend.replaceChildren(...(frame.length ? [element("li", "when", when)] : []), ...rows);
  plot.svg.setAttribute("aria-label", summary(plot, index, when));
  mark(plot, index);
}

/** The plot in words, for those who cannot see it. */
function summary({ title, data, frame, words }, index, when) {
  const said = data.series.map(({ name, values }) => `${name} ${words(values[index])}`);
  const over = duration(Math.max(0, frame.length - 1) * data.step_s);
  return frame.length ? `${title}, over ${over}. ${when}: ${said.join(", ")}` : `${title}: nothing yet`;
}

function mark({ svg, data, frame, at }, index) {
  const cursor = svg.querySelector(".cursor");
  if (at === null || !frame.length) {
    cursor.replaceChildren();
    return;
  }
  const x = frame.xOf(index);
  const dots = data.series
    .filter(({ values }) => (values[index] ?? null) !== null)
    .map((one) => shape("circle", { class: `dot ${colourOf(one)}`, cx: x, cy: frame.y(one.values[index]), r: 3.5 }));
  cursor.replaceChildren(shape("line", { class: "hair", x1: x, x2: x, y1: EDGE.top, y2: frame.bottom }), ...dots);
}

function listen(plot) {
  const { svg } = plot;
  const move = (index) => {
    if (!plot.frame || !plot.frame.length) return;
    plot.at = index === null ? null : Math.max(0, Math.min(plot.frame.length - 1, index));
    read(plot);
  };
  const follow = (event) => {
    if (!plot.frame) return;
    const pixel = event.clientX - svg.getBoundingClientRect().left;
    const back = ((plot.frame.right - pixel) / (plot.frame.right - EDGE.left)) * plot.frame.span;
    move(plot.frame.length - 1 - Math.round(back / (plot.data.step_s * 1000)));
  };
  svg.addEventListener("pointermove", follow);
  svg.addEventListener("pointerdown", follow);
  // A finger's readout stays when the finger is lifted; a mouse's goes with the mouse.
  svg.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && move(null));
  svg.addEventListener("blur", () => move(null));
  svg.addEventListener("keydown", (event) => {
    const from = plot.at ?? (plot.frame ? plot.frame.length - 1 : 0);
    const to = { ArrowLeft: from - 1, ArrowRight: from + 1, Home: 0, End: Infinity, Escape: null }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    move(to);
  });
}
