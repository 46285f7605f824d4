// Figures, recomputed from the legs' own counts and seconds.

import { text } from "./bytes.js";
import { linesOf } from "./launches.js";

/** @typedef {import("./bytes.js").Json} Json */
/** @typedef {Map<string, Uint8Array>} Files of a bundle, by name */
/** @typedef {{folder: string, launch: Json, granted: boolean, judged: boolean}} Launch */
/** @typedef {Map<number, Json | null>} Results by slot index; null where a slot has none */

/** @param {number[]} values */
export const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

/** @param {number[]} values */
export const median = (values) => {
  const sorted = [...values].sort((a, b) => a - b);
  const half = sorted.length >> 1;
  return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
};

/** Overhead in percent of a log rate ratio. @param {number} log */
const percent = (log) => -100 * Math.expm1(log);

/**
 * Student's t from the density of its angle: with x = sqrt(df) tan a, the density is cos(a)^(df-1).
 * @param {number} probability @param {number} df
 */
const tQuantile = (probability, df) => {
  const steps = 20000;
  const width = Math.PI / 2 / steps;
  const simpson = (/** @type {number} */ i) => {
    const at = (/** @type {number} */ angle) => Math.cos(angle) ** (df - 1);
    return (width / 6) * (at(i * width) + 4 * at((i + 0.5) * width) + at((i + 1) * width));
  };
  let total = 0;
  for (let i = 0; i < steps; i++) total += simpson(i);
  const wanted = (probability - 0.5) * 2 * total;
  let sum = 0;
  for (let i = 0; i < steps; i++) {
    const part = simpson(i);
    if (sum + part >= wanted) return Math.sqrt(df) * Math.tan((i + (wanted - sum) / part) * width);
    sum += part;
  }
  return Infinity;
};

/** What a slot's complete launch counted, and its timings; null where none did. @param {Files} files @param {Launch[]} folders */
export const resultOf = (files, folders) => {
  const complete = folders.filter(({ launch }) => launch.status === "complete").at(-1);
  if (!complete) return null;
  const raw = files.get(`${complete.folder}result.json`);
  if (raw) return { ...JSON.parse(text(raw)), timings: complete.launch.timings };
  // Events that begin at no grant are nobody's.
  const events = complete.granted && files.get(`${complete.folder}events.jsonl`);
  if (!events) return null;
  const trained = linesOf(events).map((line) => JSON.parse(line)).find((event) => event.type === "trained");
  return trained ? { ...trained.body.result, timings: complete.launch.timings } : null;
};

/** A slot as a record names it. @param {Json} slot */
export const slotName = (slot) => `s${String(slot.index).padStart(3, "0")}-${slot.arm}`;

/**
 * Log rate ratio of each whole, undisturbed block, in order. Which were disturbed is taken from the record.
 * @param {Json} plan @param {Json} record @param {Results} results
 */
export const blockLogs = (plan, record, results) => {
  const troubled = new Set(record.figures.slots
    .filter((/** @type {Json} */ slot) => slot.disturbed.length)
    .map((/** @type {Json} */ slot) => slot.leg));
  /** @type {Map<number, Json[]>} */ const blocks = new Map();
  for (const slot of plan.schedule) {
    if (!slot.burn_in && slot.block !== null) blocks.set(slot.block, [...(blocks.get(slot.block) ?? []), slot]);
  }
  const found = [];
  for (const [, slots] of [...blocks].sort(([a], [b]) => a - b)) {
    const whole = slots.every((slot) => results.get(slot.index)?.units > 0);
    if (!whole || slots.some((slot) => troubled.has(slotName(slot)))) continue;
    const logs = (/** @type {string} */ arm) => slots.filter((slot) => slot.arm === arm).map((slot) => {
      const result = results.get(slot.index);
      return Math.log(result.units / result.elapsedSec);
    });
    if (logs("protected").length && logs("raw").length) found.push(mean(logs("protected")) - mean(logs("raw")));
  }
  return found;
};

/**
 * @param {Json} plan @param {Json} record @param {Results} results
 * @returns {{overhead: number | null, how: string, interval?: [number, number]}}
 */
export const recompute = (plan, record, results) => {
  if (plan.spec.order === "protected-only") return { overhead: null, how: "no raw leg" };
  if (plan.spec.order !== "abba") {
    /** @type {Json[]} */ const counted = plan.schedule.filter((/** @type {Json} */ slot) => !slot.burn_in);
    const arms = ["protected", "raw"].map((arm) =>
      counted.filter((slot) => slot.arm === arm && results.get(slot.index)).map((slot) => results.get(slot.index)));
    if (arms.some((found) => found.length !== 1)) return { overhead: null, how: "an arm has no result" };
    const [guarded, raw] = arms.map(([result]) => result.units / result.elapsedSec);
    const how = `(${raw.toFixed(3)} - ${guarded.toFixed(3)}) / ${raw.toFixed(3)}`;
    return { overhead: (100 * (raw - guarded)) / raw, how };
  }
  const d = blockLogs(plan, record, results);
  if (!d.length) return { overhead: null, how: "no whole block" };
  const found = { overhead: percent(mean(d)), how: `${d.length} blocks` };
  if (d.length < 2) return found;
  const spread = Math.sqrt(d.reduce((sum, value) => sum + (value - mean(d)) ** 2, 0) / (d.length - 1));
  const half = (tQuantile(0.975, d.length - 1) * spread) / Math.sqrt(d.length);
  return { ...found, interval: [percent(mean(d) + half), percent(mean(d) - half)] };
};

export const STEPS = ["sealSec", "uploadSec", "startSec", "attestSec", "releaseSec", "unsealSec", "zeroizeSec", "fetchSec"];

/**
 * Median seconds of each step over the protected launches, and their sum; null where there are none.
 * @param {Json[]} launches timings of each
 * @returns {Record<string, number> | null}
 */
export const fixedCost = (launches) => {
  const found = Object.fromEntries(STEPS.filter((step) => launches.some((timings) => step in timings)).map((step) =>
    [step, median(launches.filter((timings) => step in timings).map((timings) => timings[step]))]));
  const values = Object.values(found);
  return values.length ? { ...found, totalSec: values.reduce((sum, value) => sum + value, 0) } : null;
};

/** @param {number | null | undefined} a @param {number | null | undefined} b */
export const near = (a, b) => (a === null || b === null || a === undefined || b === undefined
  ? (a ?? null) === (b ?? null) : Math.abs(a - b) <= 2e-6 * Math.max(1, Math.abs(b)));
