// The public row, field by field, as it follows from the signed record, the plan and the legs (from_bundle.py).

import { canonical } from "./bytes.js";
import { blockLogs, slotName } from "./figures.js";
import { general, significant } from "./format.js";

/** @typedef {import("./bytes.js").Json} Json */
/** @typedef {import("./figures.js").Results} Results */
/**
 * @typedef {object} Evidence what a row is made of, signed and checked before
 * @property {Json} plan
 * @property {Json} record
 * @property {Json | null} allocation
 * @property {Json | null} release
 * @property {Json} outcome
 * @property {Results} results
 * @property {number} lifecycles protected launches
 * @property {boolean} released whether the payload was released to one of them
 * @property {{planSha256: string, bundleSha256: string, signer: string}} anchor
 */

const PUBLISHED = ["warmup_sec", "discard_sec", "blocks", "burn_in_slots", "margin_pct", "delay_pct", "head_interval_sec"];
const OVERHEAD = ["ciLowPct", "ciHighPct", "n", "method", "verdict", "marginPct", "mde80Pct", "orderEffectPct",
                  "orderEffectLowPct", "orderEffectHighPct", "randomizationP", "droppedBlocks"];
const ALIKE = ["warmup_sec", "discard_sec", "blocks", "burn_in_slots", "margin_pct", "threads"];
const OF_OTHERS = ["no-control", "control-failed", "registered-late"];
const CURVE_POINTS = 60;

/** @param {string} text @param {number} limit */
const clip = (text, limit) => {
  const chars = Array.from(text);
  return chars.length <= limit ? text : `${chars.slice(0, limit - 1).join("")}\u2026`;
};

/** `sealOutputsSec` becomes `seal-outputs`. @param {string} name */
const step = (name) => name.replace(/Sec$/, "").replace(/[A-Z]/g, (char) => `-${char.toLowerCase()}`);

/** @param {Json} values @param {(name: string) => string} rename */
const renamed = (values, rename) =>
  Object.fromEntries(Object.entries(values).map(([name, value]) => [rename(name), value]));

/** Seconds that run before a slot is measured. @param {Json} spec */
const leadSec = (spec) => {
  if (workload(spec) === "project") return 0;
  if (spec.order !== "abba") return spec.measure.warmup_sec;
  if (spec.duration === null) return spec.measure.discard_sec;
  return Math.min(spec.measure.discard_sec, spec.duration / (2 * spec.measure.blocks));
};

/** @param {Json} spec @returns {string} */
const workload = (spec) => (spec.model.kind === "withheld" ? spec.model.workload : spec.model.kind);
/** @param {Json} spec @returns {string} */
const modelName = (spec) => (spec.model.kind === "withheld" ? `private-${spec.model.workload}` : spec.model.name);
/** @param {Json} spec @returns {number | null} */
const threads = (spec) => (spec.provider.kind === "local" ? spec.provider.threads ?? null : null);

/** Optimizer steps that an arm is to make. @param {Json} spec @returns {number | null} */
const totalSteps = (spec) => {
  const { kind, batches_per_epoch: batches, batch, examples } = spec.model;
  const rows = kind === "mlp" ? batches * batch : kind === "lora" ? examples : null;
  return !spec.epochs || rows === null ? spec.steps : Math.floor((spec.epochs * rows) / batch);
};

/** What of a run is published as salted digests, by name (records/withheld.py). @param {Json} spec @param {Json} info */
const withheld = (spec, info) => {
  const hidden = (/** @type {Json} */ value) => typeof value === "string" && /^withheld:[0-9a-f]{64}$/.test(value);
  const { kind, entry, data, params } = spec.model;
  const custom = kind === "custom";
  return [
    ...(custom && entry.startsWith("withheld-") ? ["model.entry"] : []),
    ...(custom && data.some(hidden) ? ["model.data"] : []),
    ...(custom && Object.values(params).some(hidden) ? ["model.params"] : []),
    ...(Object.keys(info ?? {}).some((name) => name.startsWith("withheld-")) ? ["unitInfo"] : []),
  ];
};

/**
 * The command that repeats the run; `named` are the model's own settings, which later versions name too.
 * @param {Json} spec @param {string[]} named words `model.FIELD=VALUE` that stand in the command
 */
const command = (spec, named) => {
  const words = ["python -m glasshouse", `provider=${spec.provider.kind}`];
  if (threads(spec) !== null) words.push(`provider.threads=${threads(spec)}`);
  if (spec.provider.kind === "ssh") words.push("provider.host=HOST", "provider.user=USER", "provider.key=KEY");
  words.push(`gpu=${spec.gpu.name}`, `model=${spec.model.kind === "withheld" ? "MODEL" : spec.model.name}`, ...named);
  words.push(`policy=${spec.policy.name}`);
  if (spec.continues) words.push(`from=${spec.continues.runs.at(-1)}@${spec.continues.number}`);
  words.push(`order=${spec.order}`);
  words.push(`duration=${spec.duration === null ? "null" : general(spec.duration)}`);
  if (spec.steps !== null) words.push(`steps=${spec.steps}`);
  if (spec.epochs) words.push(`epochs=${spec.epochs}`);
  words.push(`control=${spec.control}`, `payload=${spec.payload}`, `seed=${spec.seed}`, `repeat=${spec.repeat}`);
  return words.join(" ");
};

// In the order in which a config lists them, each with what holds where a plan of an older version has none.
/** @type {Record<string, any>} */
const MEASURE = { warmup_sec: null, discard_sec: null, blocks: null, burn_in_slots: 1, margin_pct: null, delay_pct: 3,
                  duration_tolerance_pct: null, head_interval_sec: null, leg_deadline_factor: 3,
                  leg_deadline_extra_sec: 180, step_ceiling_sec: 1 };

/** How it was timed. @param {Json} spec @returns {Record<string, number>} */
const measure = (spec) => ({ ...MEASURE, ...spec.measure });

/** @param {Json} spec @param {unknown} told @param {Json} info what a workload says of its unit, in the record */
const commandFits = (spec, told, info) => {
  if (withheld(spec, info).length) return plain(told) === null;
  if (typeof told !== "string") return false;
  const named = [...told.matchAll(/ (model\.(\w+)=(\S+))/g)];
  const true_ = named.every(([, , name, value]) =>
    String(typeof spec.model[name] === "number" ? general(spec.model[name]) : spec.model[name]) === value ||
    String(spec.model[name]) === value);
  const measured = Object.entries(measure(spec)).map(([name, value]) => ` measure.${name}=${general(value)}`).join("");
  return true_ && told === command(spec, named.map(([, word]) => word)) + measured;
};

/** @param {Json} values of one arm in the record @param {string | null} unit @param {boolean} lora @param {string} arm */
const armFields = (values, unit, lora, arm) => {
  const rate = values?.perSec || null;
  return {
    [`${arm}EpochsPerSec`]: unit === "epochs" ? rate : null,
    [`${arm}StepsPerSec`]: unit === "steps" ? rate : null,
    [`${arm}UnitsPerSec`]: unit !== "epochs" && unit !== "steps" ? rate : null,
    [`${arm}Epochs`]: unit === "epochs" ? values?.units ?? null : null,
    [`${arm}Steps`]: values?.steps ?? null,
    [`${arm}ElapsedSec`]: values?.elapsedSec || null,
    [`${arm}SetupSec`]: values?.setupSec ?? null,
    [`${arm}FinalLoss`]: values?.finalLoss ?? null,
    [`${arm}OutputSha256`]: lora ? null : values?.outputSha256 ?? null,
    [`${arm}AdapterSha256`]: lora ? values?.outputSha256 ?? null : null,
  };
};

/** @param {[number, number][]} points */
const curve = (points) => {
  const count = points.length;
  if (count > CURVE_POINTS) {
    points = Array.from({ length: CURVE_POINTS }, (_, i) => {
      const at = (i * (count - 1)) / (CURVE_POINTS - 1);
      const low = Math.floor(at);
      return points[at - low === 0.5 ? low + (low % 2) : Math.round(at)];
    });
  }
  return points.map(([x, y]) => [significant(x), significant(y)]);
};

/** @param {Evidence} evidence */
const curves = ({ plan, results }) => {
  const found = ["protected", "raw"].flatMap((arm) => {
    const slot = plan.schedule.find((/** @type {Json} */ item) => item.arm === arm && !item.burn_in && results.get(item.index));
    if (!slot) return [];
    const result = results.get(slot.index);
    const losses = result.lossCurve.filter((/** @type {Json} */ point) => point[1] !== null);
    return [[arm, { loss: curve(losses), throughput: curve(result.throughputCurve) }]];
  });
  return found.length ? Object.fromEntries(found) : null;
};

/** What a job went on from, and the steps of all its runs. @param {Evidence} evidence */
const chain = ({ plan, record, results }) => {
  const before = plan.spec.continues;
  if (!before || !record.figures.chain) return null;
  const made = plan.schedule.filter((/** @type {Json} */ slot) => slot.arm === "protected" && !slot.burn_in)
    .reduce((/** @type {number} */ all, /** @type {Json} */ slot) => all + (results.get(slot.index)?.steps ?? 0), 0);
  const { runs, leg, launch, number, sha256, witnessed } = before;
  const steps = typeof before.steps === "number" ? Math.min(before.steps + made, Number.MAX_SAFE_INTEGER) : null;
  return { runs, leg, launch, number, sha256, steps, witnessed };
};

/**
 * What every field must be that follows from the evidence alone.
 * @param {Evidence} evidence
 * @returns {Record<string, Json>}
 */
export const expectedFields = (evidence) => {
  const { plan, record, allocation, release, outcome } = evidence;
  const { spec } = plan;
  const { figures } = record;
  const verified = record.status === "verified";
  const unit = figures.unit || (workload(spec) === "mlp" ? "epochs" : "steps");
  const simulated = outcome.simulated === true || allocation?.tier === "simulated";
  const holds = (/** @type {string} */ code) =>
    record.checks.every((/** @type {Json} */ check) => check.code !== code || check.ok);
  const overhead = verified ? figures.overheadPct : null;
  const resources = Object.fromEntries(["protected", "raw"].filter((arm) => figures.resources?.[arm]).map((arm) => {
    const values = figures.resources[arm];
    return [arm, { cpuShare: values.cpuShare, cpuSec: values.cpuSec, wallSec: renamed(values.wallSec, step) }];
  }));
  /** @type {Record<string, Json>} */
  const settings = Object.fromEntries(Object.entries(measure(spec)).filter(([name]) => PUBLISHED.includes(name)));
  if (threads(spec) !== null) settings.threads = threads(spec);
  const { evidenceUnit, lora } = { evidenceUnit: figures.unit, lora: workload(spec) === "lora" };
  const count = (/** @type {string} */ name) =>
    Number.isInteger(figures.unitInfo?.[name]) ? figures.unitInfo[name] : null;
  return {
    schemaVersion: 1,
    id: record.id,
    run: plan.run,
    date: `${plan.run.slice(0, 4)}-${plan.run.slice(4, 6)}-${plan.run.slice(6, 8)}`,
    status: record.status,
    evidenceTier: simulated ? "simulated" : "signed",
    provider: spec.provider.kind,
    providerTier: allocation?.tier ?? null,
    providerInstanceId: allocation?.instanceId ?? null,
    gpu: spec.gpu.name,
    gpuModel: allocation?.gpuModel ?? null,
    model: spec.model.kind === "lora" ? spec.model.model_id : modelName(spec),
    unit,
    order: spec.order,
    control: spec.control,
    controlOutcome: figures.control?.outcome ?? null,
    durationSec: spec.duration,
    warmupSec: leadSec(spec),
    targetSteps: totalSteps(spec),
    steps: null,
    settings,
    overheadPct: overhead,
    fixedCostSec: figures.fixedCostSec ? renamed(figures.fixedCostSec, (name) => name.replace(/Sec$/, "")) : null,
    resources: Object.keys(resources).length ? resources : null,
    costUsd: figures.costUsd ?? null,
    cleanup: release ? { proof: release.proof, active: release.active } : null,
    attestation: !evidence.lifecycles ? "not-reached" : !evidence.released ? "refused"
      : holds("attestation-not-verified") ? "verified" : "not-verified",
    runtimeState: !evidence.released ? "not-released" : holds("runtime-not-zeroized") ? "zeroized" : "not-zeroized",
    sameAllocation: figures.launches ? holds("same-machine-not-proven") : null,
    exclusion: verified ? null : {
      codes: [...new Set(record.exclusion.codes)], observed: clip(record.exclusion.observed, 4000),
    },
    evidence: simulated ? null : evidence.anchor,
    withheld: withheld(spec, figures.unitInfo),
    chain: chain(evidence),
    curves: curves(evidence),
    protectedTrainElapsedSec: null,
    rawTrainElapsedSec: null,
    reported: null,
    ...armFields(figures.protected, evidenceUnit, lora, "protected"),
    ...armFields(figures.raw, evidenceUnit, lora, "raw"),
    trainableParams: count("trainableParams"),
    totalParams: count("totalParams"),
  };
};

/** Absent, null and empty lists are one. @param {Json} value */
const plain = (value) => (value === undefined || (Array.isArray(value) && !value.length) ? null : value);

/** Names of what differs, down to the innermost. @param {Json} told @param {Json} wanted @param {string} name @returns {string[]} */
const differ = (told, wanted, name) => {
  if (canonical(plain(told)) === canonical(plain(wanted))) return [];
  const objects = [told, wanted].every((value) => value && typeof value === "object" && !Array.isArray(value));
  if (!objects) return [`${name}: the artifact says ${short(told)}, the evidence ${short(wanted)}`];
  const names = [...new Set([...Object.keys(told), ...Object.keys(wanted)])].sort();
  return names.flatMap((key) => differ(told[key], wanted[key], `${name}.${key}`));
};

/** @param {Json} value */
const short = (value) => clip(JSON.stringify(plain(value)), 80);

/** @param {Json} told @param {Evidence} evidence @returns {string[]} */
const overheadFaults = (told, { plan, record, results }) => {
  const figures = record.figures.overhead;
  const wanted = record.status === "verified" && record.figures.overheadPct !== null && figures
    ? Object.fromEntries(OVERHEAD.map((name) => [name, figures[name] ?? null])) : null;
  if (!wanted || !told) return differ(told, wanted, "overhead");
  const { blockPct, ...rest } = told;
  const faults = differ(rest, wanted, "overhead");
  // Rounded to four digits where it is published; log and exp differ in the last of sixteen between machines.
  const blocks = blockLogs(plan, record, results).map((log) => 100 * (1 - Math.exp(log)));
  const fits = (blockPct ?? []).length === blocks.length &&
    blocks.every((value, at) => Math.abs(value - blockPct[at]) <= 0.5e-4 + 1e-9);
  return fits ? faults : [...faults, "overhead.blockPct: the artifact lists other blocks than the legs give"];
};

/** @param {Json} told @param {Json} record @param {Json} spec @returns {string[]} */
const checkFaults = (told, record, spec) => {
  const open = !Object.keys(spec.gpu.provider_names ?? {}).length && spec.gpu.name !== "cpu";
  const wanted = record.checks.map((/** @type {Json} */ { code, ok, detail }) => {
    if (ok && code === "gpu-not-as-asked" && open) {
      return { code, ok, detail: "no GPU was asked for: nothing to check", vacuous: true };
    }
    const vacuous = ok && detail.endsWith(": nothing to check");
    return { code, ok, detail: clip(detail, 2000), ...(vacuous ? { vacuous } : {}) };
  });
  // A record leaves out the sentence of a rule that held: that is the method's text, and not looked at here.
  const shown = (Array.isArray(told) ? told : []).map((check, at) =>
    (wanted[at]?.ok && wanted[at].detail === "" ? { ...check, detail: "" } : check));
  return canonical(shown) === canonical(wanted) ? [] : ["checks: the artifact lists others than the record"];
};

/** What a control and the rows that rely on it have in common. @param {Json} row */
const kindOf = (row) => canonical([
  ...["provider", "providerTier", "gpu", "gpuModel", "model", "order", "durationSec", "targetSteps"].map((name) => row[name] ?? null),
  ...ALIKE.map((name) => row.settings?.[name] ?? null),
]);

/**
 * @param {Json} artifact @param {Json} record @param {Json[]} neighbours rows beside it, as the logs have them
 * @param {boolean} isLate
 */
const caveatFaults = (artifact, record, neighbours, isLate) => {
  const of = record.caveats.filter((/** @type {string} */ code) => code !== "registered-late");
  /** @type {string[]} */ let own = isLate ? [...of, "registered-late"] : of;
  /** @type {string[]} */ let controls = [];
  if (artifact.evidenceTier === "signed" && artifact.control === "none" && artifact.overheadPct !== null) {
    const beside = neighbours.filter((other) => other.evidenceTier === "signed" && other.control !== "none" &&
      other.status === "verified" && other.retracted === null && kindOf(other) === kindOf(artifact));
    const passed = new Set(beside.filter((other) =>
      other.controlOutcome === "passed" && !other.caveats.includes("registered-late")).map((other) => other.control));
    const failed = beside.some((other) => other.controlOutcome === "failed");
    controls = beside.map((other) => other.id).sort();
    own = own.filter((code) => code !== "no-control" && code !== "control-failed");
    if (failed) own.push("control-failed");
    if (failed || !(passed.has("aa") && passed.has("delay"))) own.push("no-control");
  }
  const faults = differ(artifact.controls, controls, "controls");
  // Their order is the method's.
  const told = Array.isArray(artifact.caveats) ? artifact.caveats : [];
  if (canonical([...told].sort()) !== canonical([...own].sort())) faults.push(...differ(told, own, "caveats"));
  else if (canonical(told.filter((/** @type {string} */ code) => !OF_OTHERS.includes(code))) !== canonical(own.filter((code) => !OF_OTHERS.includes(code)))) {
    faults.push("caveats: the artifact lists them in another order");
  }
  return faults;
};

/**
 * Every field of the artifact that is not what the evidence and the logs give, in words.
 * @param {Json} artifact @param {Evidence} evidence
 * @param {{retracted: Json, supersededBy: Json}} since @param {Json[]} neighbours @param {boolean} isLate
 */
export const differences = (artifact, evidence, since, neighbours, isLate) => {
  const { plan, record } = evidence;
  /** @type {Record<string, Json>} */ const wanted = { ...expectedFields(evidence), ...since };
  const own = ["overhead", "checks", "caveats", "controls", "command"];
  const unknown = Object.keys(artifact).filter((name) => !(name in wanted) && !own.includes(name));
  return [
    ...unknown.map((name) => `${name}: no row has such a field`),
    ...Object.keys(wanted).flatMap((name) => differ(artifact[name], wanted[name], name)),
    ...overheadFaults(artifact.overhead, evidence),
    ...checkFaults(artifact.checks, record, plan.spec),
    ...caveatFaults(artifact, record, neighbours, isLate),
    ...(commandFits(plan.spec, artifact.command, record.figures.unitInfo) ? [] : ["command: it does not repeat the plan"]),
  ];
};

/** How many fields that is. @param {Json} artifact */
export const fieldCount = (artifact) => Object.keys(artifact).length;

/**
 * What of the record's totals does not follow from the legs.
 * @param {Evidence} evidence @param {(a: number | null | undefined, b: number | null | undefined) => boolean} near
 */
export const armFaults = ({ plan, record, results }, near) => ["protected", "raw"].flatMap((arm) => {
  const found = plan.schedule.filter((/** @type {Json} */ slot) => slot.arm === arm && !slot.burn_in)
    .map((/** @type {Json} */ slot) => results.get(slot.index)).filter(Boolean);
  const told = record.figures[arm];
  if (!found.length || !told) return found.length || told ? [`${arm}: the record has other legs than the bundle`] : [];
  const sum = (/** @type {string} */ name) => found.reduce((/** @type {number} */ all, /** @type {Json} */ result) => all + result[name], 0);
  const last = found.at(-1);
  /** @type {[string, Json, Json][]} */
  const pairs = [["units", told.units, sum("units")], ["steps", told.steps, sum("steps")],
                 ["elapsedSec", told.elapsedSec, sum("elapsedSec")],
                 ["perSec", told.perSec, sum("units") / sum("elapsedSec")],
                 ["finalLoss", told.finalLoss, last.finalLoss]];
  const faults = pairs.filter(([, a, b]) => !near(a, b)).map(([name, a, b]) => `${arm}.${name}: recorded ${a}, recomputed ${b}`);
  if ((told.outputSha256 ?? null) !== (last.outputSha256 ?? null)) faults.push(`${arm}.outputSha256: another than the last leg's`);
  return faults;
});

/** What of the record's slots does not follow from the legs. @param {Evidence} evidence @param {(a: number | null | undefined, b: number | null | undefined) => boolean} near */
export const slotFaults = ({ plan, record, results }, near) => record.figures.slots.flatMap((/** @type {Json} */ told) => {
  const slot = plan.schedule.find((/** @type {Json} */ item) => slotName(item) === told.leg);
  const result = slot ? results.get(slot.index) ?? null : null;
  if (!slot || (result === null) !== (told.units === null)) return [`${told.leg}: the record has another leg than the bundle`];
  if (!result) return [];
  return near(told.units, result.units) && near(told.elapsedSec, result.elapsedSec) ? [] : [`${told.leg}: recorded otherwise than it says itself`];
});
