// What a row's page shows: the text of every element with `data-shown`, held against the checked artifact.

import { canonical } from "./bytes.js";
import * as f from "./format.js";
import { STEPS } from "./figures.js";
import { nameOf } from "./keys.js";

/** @typedef {import("./bytes.js").Json} Json */
/** @typedef {Record<string, string[]>} Shown texts by name, in the order of the page */
/**
 * @typedef {object} Context what is shown besides the artifact's own fields
 * @property {string} sha256 of the artifact's bytes
 * @property {boolean} local
 * @property {{log: import("./ledger.js").Log, plan: Json, row: Json} | null} place
 * @property {Json | null} successor the entry that says by what it was superseded
 */

export const UNSEEN = [
  "the drawings of the charts and their captions",
  "the explanations of codes, caveats and claims",
  "what is said of other rows: controls, rows that this one supersedes",
];

/** White space as a reader sees it. @param {string} text */
export const plainText = (text) => text.replace(/[ \t\n\r\f]+/g, " ").trim();

/** @param {Json} a */
const badge = (a, /** @type {boolean} */ local) => {
  if (a.retracted) return "retracted";
  if (local) return `local, ${a.status}`;
  return a.evidenceTier === "simulated" ? "simulated" : a.status;
};

/** @param {Json} a @param {Json | null} said */
const superseded = (a, said) =>
  (said ? `Superseded on ${said.date} by ${a.supersededBy}. ${said.reason}` : `Superseded by ${a.supersededBy}.`);

/** @param {Json} a */
const result = (a) => {
  const overhead = a.overhead ?? {};
  const whole = (overhead.ciLowPct ?? null) !== null;
  const open = a.overheadPct !== null && !(whole && overhead.verdict !== "inconclusive");
  const big = !open ? f.percent(a.overheadPct) : whole ? "Inconclusive" : "One pair, no interval";
  const control = a.control === "aa"
    ? `a control: raw against raw through the same code, where nothing is to be found: ${a.controlOutcome}`
    : `a control: raw against raw with a known delay, which is to be found again: ${a.controlOutcome}`;
  const label = a.overheadPct === null
    ? `no overhead: ${a.exclusion ? "the row is excluded" : "there is no raw leg to compare with"}`
    : a.control === "none" ? "overhead on throughput, protected against raw" : control;
  /** @type {string[]} */ const lines = [];
  if (whole) {
    let line = `95% interval ${f.interval(overhead.ciLowPct, overhead.ciHighPct)}, n = ${overhead.n} (${overhead.method}).`;
    if (overhead.verdict) line += ` Against a margin of ${f.number(overhead.marginPct)}%: ${overhead.verdict}.`;
    if (overhead.mde80Pct !== null) line += ` An effect of ${f.number(overhead.mde80Pct)}% would have been found with 80% probability.`;
    lines.push(line);
    if (overhead.orderEffectPct !== null) {
      const low = overhead.orderEffectLowPct ?? null;
      let second = `Order effect: ${f.percent(overhead.orderEffectPct)}`;
      if (low !== null) second += ` (${f.interval(low, overhead.orderEffectHighPct)})`;
      second += ".";
      if ((overhead.randomizationP ?? null) !== null) second += ` Exact randomisation p = ${f.number(overhead.randomizationP)}.`;
      lines.push(second);
    }
  } else {
    lines.push(`No interval. ${why(a)}`);
  }
  return { result: [big, `${open ? `${f.percent(a.overheadPct)}: ` : ""}${label}`, ...lines] };
};

/** @param {Json} a */
const why = (a) => {
  if (a.overheadPct === null) return "There is no overhead here, so there is no interval.";
  if (a.overhead?.method === "single-pair") {
    return "One pair of legs is one difference. It has no spread of its own, so no interval can be given: " +
      "anything that changed between the two legs, their order included, is in the figure.";
  }
  return "The method of this row gives no interval.";
};

/** @param {Json} a */
const facts = (a) => [
  f.noGpu(a) ? "none, CPU only" : a.gpuModel || "not stated",
  f.provider(a) + (a.providerTier ? `, ${a.providerTier}` : ""),
  a.providerInstanceId || "not published",
  a.model,
  f.order(a),
  f.length(a) + (a.warmupSec === null ? "" : `, warm-up ${f.seconds(a.warmupSec)}`),
  a.sameAllocation ? "yes" : a.sameAllocation === false ? "no" : "not stated",
  a.attestation || "not stated",
  a.runtimeState || "not stated",
  a.cleanup ? a.cleanup.proof + (a.cleanup.active === null ? "" : `, ${a.cleanup.active} left`) : "not stated",
  a.date,
];

/** @param {Json} a */
const legs = (a) => {
  /** @type {[string, number | null, number | null][]} */
  const rows = [
    [`Rate, ${a.unit} per second`, f.rate(a, "protected"), f.rate(a, "raw")],
    ["Epochs", a.protectedEpochs, a.rawEpochs],
    ["Steps", a.protectedSteps || null, a.rawSteps || null],
    ["Measured, s", a.protectedElapsedSec, a.rawElapsedSec],
    ["Set-up, s", a.protectedSetupSec, a.rawSetupSec],
    [`Final loss${a.order === "abba" ? ", last slot" : ""}`, a.protectedFinalLoss, a.rawFinalLoss],
  ];
  const found = rows.filter(([, p, r]) => (p ?? null) !== null || (r ?? null) !== null)
    .map(([label, p, r]) => `${label} ${f.number(p)} ${f.number(r)}`);
  const [p, r] = [a.protectedAdapterSha256, a.rawAdapterSha256];
  return p || r ? [...found, `Adapter SHA-256 ${p || f.DASH} ${r || f.DASH}`] : found;
};

/** @param {Json} value a setting, as Python writes it */
const setting = (value) => (value === true ? "True" : value === false ? "False" : String(value));

/** @param {Json} a @returns {Shown} */
const resources = (a) => {
  if (!a.resources) return {};
  const { protected: p, raw: r } = a.resources;
  const names = [...new Set([...Object.keys(p?.wallSec ?? {}), ...Object.keys(r?.wallSec ?? {})])];
  const lines = names.map((name) =>
    `${name.replaceAll("-", " ")} ${f.number(p?.wallSec[name])} ${f.number(r?.wallSec[name])}`);
  return { resources: [...lines, `processor seconds per measured second ${f.number(p?.cpuShare)} ${f.number(r?.cpuShare)}`] };
};

/** @param {[number, number][]} points */
const thinned = (points) => (points.length <= 12 ? points
  : Array.from({ length: 12 }, (_, at) => points[f.rounded((at * (points.length - 1)) / 11)]));

/** @param {[number, number][]} points */
const throughput = (points) => points.slice(1)
  .map((end, at) => /** @type {[number, number]} */ ([end[0], (end[1] - points[at][1]) / (end[0] - points[at][0])]))
  .filter((_, at) => points[at + 1][0] > points[at][0]);

/** The numbers under the charts of a row. @param {Json} a @returns {Shown} */
const tables = (a) => {
  /** @type {Shown} */ const found = {};
  const guarded = a.curves?.protected;
  if (guarded) {
    for (const [name, of] of /** @type {const} */ ([["loss", (/** @type {Json} */ c) => c?.loss ?? []],
                                                  ["throughput", (/** @type {Json} */ c) => throughput(c?.throughput ?? [])]])) {
      if (of(guarded).length < 2) continue;
      found[`figure-${name}`] = [["protected", of(guarded)], ["raw", of(a.curves.raw)]].flatMap(([arm, points]) =>
        thinned(points).map(([x, y]) => `${arm} ${f.number(x)} ${f.number(y)}`));
    }
  }
  if (!a.fixedCostSec) return found;
  const parts = STEPS.map((step) => a.fixedCostSec[step.replace(/Sec$/, "")] ?? 0);
  const total = parts.reduce((sum, part) => sum + part, 0);
  found["figure-fixed-cost"] = [[f.title(a), ...parts.map(f.number), f.number(total)].join(" ")];
  const [low, high] = [a.overhead?.ciLowPct ?? null, a.overhead?.ciHighPct ?? null];
  if (a.overheadPct === null || low === null || high === null || Math.max(low, high) >= 100) return found;
  const at = (/** @type {number} */ run, /** @type {number} */ pct) => 100 * (1 - run / (total + run / (1 - pct / 100)));
  found["figure-cost-by-length"] = [60, 600, 3600, 21600, 86400].map((run) => [
    f.duration(run),
    a.overhead.verdict === "inconclusive" ? f.DASH : f.percent(at(run, a.overheadPct)),
    f.interval(at(run, low), at(run, high)),
  ].join(" "));
  return found;
};

/** @param {Context} context @returns {Shown} */
const ledger = ({ place }) => {
  if (!place) return {};
  const { log, plan, row } = place;
  return {
    ledger: [
      log.origin,
      `entry ${plan.serial}, ${f.moment(plan.time)} UTC`,
      `entry ${row.serial}, ${f.moment(row.time)} UTC`,
      `a root over ${log.size} entries, signed by ${nameOf(log.signer)}`,
      log.witnesses.length ? log.witnesses.join(", ") : "none: unwitnessed",
    ],
  };
};

/** What a job went on from. @param {Json} c @param {boolean} counts whether its steps are a project's own count */
const chain = (c, counts) => {
  const before = `The job went on from ${c.number === null ? "the outputs" : `checkpoint ${c.number}`} of run ${c.runs.at(-1)}, SHA-256 of its ciphertext ${c.sha256}, as that run’s leg signed it. `;
  const all = c.runs.length > 1
    ? `It is run ${c.runs.length + 1} of a chain: ${c.runs.map((/** @type {string} */ run) => `${run}, `).join("")}this one. ` : "";
  return before + all + (typeof c.steps === "number" ? `Optimizer steps of all of them together: ${counts ? "at most " : ""}${f.number(c.steps)}.`
    : "How many optimizer steps they made together is not known.");
};

/** Why no command repeats a run. @param {string[]} names */
const withheld = (names) =>
  `No command repeats it: ${names.join(", ")} ${names.length === 1 ? "is" : "are"} withheld. What was trained stands here as salted digests; its owner holds the salt and can show what they stand for.`;

/**
 * Every text that a page of this row must show, by name. The heading and the artifact itself are looked at apart.
 * @param {Json} a the artifact, checked @param {Context} context
 * @returns {Shown}
 */
export const expectedTexts = (a, context) => {
  const cut = (/** @type {number} */ n) => `${n} caveat${n === 1 ? "" : "s"}`;
  const evidence = a.evidence ? [a.evidence.planSha256, a.evidence.bundleSha256, a.evidence.signer] : [];
  return {
    id: [a.id],
    status: [badge(a, context.local)],
    ...(a.status === "verified" && a.caveats.length ? { count: [cut(a.caveats.length)] } : {}),
    ...(a.retracted ? { retracted: [`Retracted on ${a.retracted.date}. ${a.retracted.reason}`] } : {}),
    ...(a.supersededBy ? { superseded: [superseded(a, context.successor)] } : {}),
    ...(a.exclusion ? { exclusion: [a.exclusion.observed, ...a.exclusion.codes] } : {}),
    ...result(a),
    facts: facts(a),
    legs: legs(a),
    ...(a.trainableParams ? { params: [
      `Trainable parameters: ${f.number(a.trainableParams)}${a.totalParams ? ` of ${f.number(a.totalParams)}` : ""}.`] } : {}),
    ...(a.settings && Object.keys(a.settings).length ? {
      settings: Object.keys(a.settings).sort().map((name) => `${name}=${setting(a.settings[name])}`) } : {}),
    ...(a.overhead?.blockPct?.length ? { blocks: [a.overhead.blockPct.map(f.percent).join(", ")] } : {}),
    ...resources(a),
    ...tables(a),
    ...(a.checks?.length ? { checks: a.checks.map((/** @type {Json} */ check) =>
      `${check.vacuous ? "not applicable" : check.ok ? "holds" : "does not hold"} ${check.code} ${plainText(check.detail)}`.trim()) } : {}),
    ...(a.caveats.length ? { caveats: a.caveats } : {}),
    ...ledger(context),
    ...(a.chain ? { chain: [chain(a.chain, a.unit === "job")] } : {}),
    ...(a.command ? { command: [a.command] } : a.withheld?.length ? { withheld: [withheld(a.withheld)] } : {}),
    hashes: [context.sha256, ...evidence],
  };
};

/**
 * What a page shows otherwise than the artifact has it, in words.
 * @param {Shown} shown @param {Json} a @param {Context} context
 */
export const pageFaults = (shown, a, context) => {
  const { title = [], json = [], ...rest } = shown;
  // Where no log holds the row, which is said, nothing is known of its entries.
  if (!context.place) delete rest.ledger;
  const wanted = expectedTexts(a, context);
  const faults = [];
  // Where two rows read alike, what tells them apart follows; which others there are is not looked at.
  const ends = new Set(f.facets(a));
  const [head = ""] = title;
  const own = f.title(a);
  const tail = head === own ? [] : head.slice(own.length).split(/, /).slice(1);
  if (title.length !== 1 || !head.startsWith(own) || own + tail.map((end) => `, ${end}`).join("") !== head ||
      tail.some((end) => !ends.has(end))) faults.push(`title: shown "${head}", it is "${own}"`);
  let same = false;
  try {
    same = json.length === 1 && canonical(JSON.parse(json[0])) === canonical(a);
  } catch { /* it is no JSON */ }
  if (!same) faults.push("json: the artifact on the page is another one");
  for (const name of new Set([...Object.keys(wanted), ...Object.keys(rest)])) {
    const [texts, must] = [(rest[name] ?? []).map(plainText), (wanted[name] ?? []).map(plainText)];
    if (texts.length !== must.length) faults.push(`${name}: ${texts.length} shown, there are ${must.length}`);
    else texts.forEach((text, at) => { if (text !== must[at]) faults.push(`${name}: shown "${text}", it is "${must[at]}"`); });
  }
  return faults;
};
