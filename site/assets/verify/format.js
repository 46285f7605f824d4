// How figures are written on pages: as publishing/labels.py writes them.

/** @typedef {import("./bytes.js").Json} Json */

const MINUS = "\u2212";
const NBSP = "\u00a0";
export const DASH = "\u2013";

/** @type {Record<string, string>} */
const GPUS = { h100: "H100", h200: "H200", pro6000: "RTX PRO 6000", a4000: "RTX A4000", rtx4090: "RTX 4090",
               rtx3090: "RTX 3090", cpu: "CPU" };
/** @type {Record<string, string>} */
const PROVIDERS = { runpod: "RunPod", vastai: "Vast.ai", local: "the publisher's machine", ssh: "SSH host" };
/** @type {Record<string, string>} */
const ORDERS = { "raw-first": "raw first", "protected-first": "protected first", abba: "ABBA blocks",
                 "protected-only": "protected only" };
/** @type {Record<string, string>} */
const CONTROLS = { aa: "A/A control", delay: "delay control" };
/** @type {Record<string, string>} */
const MODELS = { mlp: "MLP", "Qwen/Qwen2.5-0.5B-Instruct": "Qwen2.5 0.5B", "Qwen/Qwen2.5-7B-Instruct": "Qwen2.5 7B" };

// Where a number lies in the middle between two, Python takes the even one and ECMAScript the larger.
/** @param {string} digits behind those that are kept @param {string} last of those that are kept */
const tie = (digits, last) => /^50*$/.test(digits) && "02468".includes(last);

/** `value` with so many decimals. @param {number} value @param {number} decimals */
export const fixed = (value, decimals) => {
  const exact = Math.abs(value).toFixed(100);
  const cut = exact.indexOf(".") + 1 + decimals;
  const kept = exact.slice(0, cut);
  const text = tie(exact.slice(cut), kept.replace(/\.$/, "").at(-1) ?? "")
    ? kept.replace(/\.$/, "") : Math.abs(value).toFixed(decimals);
  return (value < 0 ? "-" : "") + text;
};

/** As Python's `%g`: so many significant digits. @param {number} value @param {number} [digits] */
export const general = (value, digits = 6) => {
  if (value === 0) return "0";
  const exact = Math.abs(value).toExponential(99);
  const [mantissa, power] = exact.split("e");
  const figures = mantissa.replace(".", "");
  const rounded = tie(figures.slice(digits), figures[digits - 1])
    ? Number(`${figures[0]}.${figures.slice(1, digits)}e${power}`)
    : Number(Math.abs(value).toPrecision(digits));
  const at = Number(rounded.toExponential().split("e")[1]);
  const sign = value < 0 ? "-" : "";
  if (at >= -4 && at < digits) return sign + String(Number(rounded.toFixed(Math.max(0, digits - 1 - at))));
  const [front] = rounded.toExponential().split("e");
  return `${sign}${front}e${at < 0 ? "-" : "+"}${String(Math.abs(at)).padStart(2, "0")}`;
};

/** Six significant digits, as a curve's points are published. @param {number} value */
export const significant = (value) => Number(general(value));

/** @param {string} text digits with or without decimals */
const grouped = (text) => text.replace(/^\d+/, (whole) => whole.replace(/\B(?=(\d{3})+$)/g, ","));

/** @param {number | null | undefined} value */
export const percent = (value) => {
  if (value === null || value === undefined) return DASH;
  const text = `${fixed(Math.abs(value), 2)}%`;
  return Number(fixed(value, 2)) === 0 ? text : (value < 0 ? MINUS : "+") + text;
};

/** @param {number | null | undefined} low @param {number | null | undefined} high */
export const interval = (low, high) =>
  low === null || low === undefined || high === null || high === undefined ? DASH : `${percent(low)} to ${percent(high)}`;

/** @param {number | null | undefined} value */
export const seconds = (value) => {
  if (value === null || value === undefined) return DASH;
  if (value >= 60 && value % 60 === 0) return `${general(value / 60)}${NBSP}min`;
  return value < 1000 ? `${general(value, 3)}${NBSP}s` : `${grouped(fixed(value, 0))}${NBSP}s`;
};

/** A time in seconds, or in hours from one on. @param {number} value */
export const duration = (value) => (value < 3600 ? seconds(value) : `${general(value / 3600)}${NBSP}h`);

/** @param {number | null | undefined} value */
export const number = (value) => {
  if (value === null || value === undefined) return DASH;
  if (value && Math.abs(value) < 1e-3) return general(value, 4).replaceAll("-", MINUS);
  const text = fixed(value, 3).replace(/\.?0+$/, "");
  return text.startsWith("-") ? `-${grouped(text.slice(1))}` : grouped(text);
};

/** A time of the ledger: UTC, to the second. @param {number} value Unix seconds */
export const moment = (value) => new Date(Math.floor(value) * 1000).toISOString().slice(0, 19).replace("T", " ");

/** @param {Json} a */
export const noGpu = (a) => a.evidenceTier === "signed" && ["auto", "cpu"].includes(a.gpu) && a.gpuModel === null;

/** @param {Json} a */
export const gpu = (a) => {
  if (a.gpu === null) return a.gpuModel || "not stated";
  if (noGpu(a)) return "CPU";
  if (a.gpu === "auto") return a.gpuModel || "not stated";
  return GPUS[a.gpu] ?? a.gpu;
};

/** @param {Json} a */
export const model = (a) => MODELS[a.model] ?? a.model;
/** @param {Json} a */
export const provider = (a) => (a.provider === null ? "not stated" : PROVIDERS[a.provider] ?? a.provider);
/** @param {Json} a */
export const order = (a) => (a.order === null ? "unclear" : ORDERS[a.order]);

/** @param {Json} a */
export const length = (a) => {
  if (a.durationSec !== null) return seconds(a.durationSec);
  const steps = a.targetSteps ?? a.steps ?? null;
  return steps === null ? DASH : `${grouped(String(steps))}${NBSP}step${steps === 1 ? "" : "s"}`;
};

/** The heading of a row's page, before what tells it from others of the same words. @param {Json} a */
export const title = (a) => {
  const name = a.control === "none" ? model(a) : `${model(a)}, ${CONTROLS[a.control]}`;
  return `${name} on ${gpu(a)}, ${length(a)}, ${order(a)}`;
};

/** What may follow in a heading, to tell two rows apart. @param {Json} a */
export const facets = (a) => {
  const { blocks, threads } = a.settings ?? {};
  return ["excluded", ...(blocks ? [`${blocks} blocks`] : []),
          threads ? `${threads} thread${threads === 1 ? "" : "s"}` : "all threads", a.date, a.id]
    .filter((facet) => facet !== "excluded" || a.exclusion);
};

/** Work units per second of one arm. @param {Json} a @param {"protected" | "raw"} arm @returns {number | null} */
export const rate = (a, arm) => {
  for (const name of ["EpochsPerSec", "StepsPerSec", "UnitsPerSec"]) {
    if ((a[arm + name] ?? null) !== null) return a[arm + name];
  }
  const elapsed = a[`${arm}ElapsedSec`];
  const count = a[`${arm}Steps`] || a[`${arm}Epochs`];
  return count && elapsed ? count / elapsed : null;
};

/** Python's round: a half goes to the even one. @param {number} value */
export const rounded = (value) => {
  const low = Math.floor(value);
  if (value - low === 0.5) return low % 2 ? low + 1 : low;
  return Math.round(value);
};
