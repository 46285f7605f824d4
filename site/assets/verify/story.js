// One row, checked step by step; every step says what it found. Runs in a page, and under Node for the tests.

import { digest, parse, text } from "./bytes.js";
import { armFaults, differences, fieldCount, slotFaults } from "./artifact.js";
import { fixedCost, near, recompute, resultOf, slotName } from "./figures.js";
import { listed, openEnvelope, readKeys } from "./keys.js";
import { checkEvents, checkExchange, checkHeads, judged } from "./launches.js";
import { included, late, openCheckpoint, placeOf, readLog, saidSince, stated } from "./ledger.js";
import { pageFaults, UNSEEN } from "./shown.js";

/** @typedef {import("./bytes.js").Json} Json */
/** @typedef {import("./keys.js").Key} Key */
/** @typedef {import("./ledger.js").Log} Log */
/** @typedef {"ok" | "failed" | "skipped"} State */
/**
 * @typedef {object} Page what the row's page says of itself; shown is null where there is no page to look at
 * @property {string} row
 * @property {string} keys path of the keyring
 * @property {string} inclusion path of the inclusion file, "" where there is none
 * @property {string} log origin of the log that the page names, "" where it names none
 * @property {string} sha256 of the artifact from which the page was made, "" where it names none
 * @property {boolean} local
 * @property {import("./shown.js").Shown | null} shown
 */
/**
 * @typedef {object} Site
 * @property {(path: string) => Promise<Uint8Array>} get a file of the site; throws where there is none
 * @property {(state: State, code: string, detail: string) => void} say
 */

const NAMES = /^((plan\.dsse|allocation|release|outcome|inclusion|record)\.json|legs\/s\d{3}-(raw|protected)(-l[1-9]\d{0,2})?\/((exchange|reference|launch|result)\.json|(events|heads)\.jsonl))$/;
const REQUIRED = ["plan.dsse.json", "record.json", "outcome.json"];
const LOG_FOLDERS = ["ledger", "local-ledger"];

/**
 * Check one row. Throws where it cannot go on; every other fault is said.
 * @param {Site} site @param {Page} page
 */
export const verifyRow = async ({ get, say }, page) => {
  const { row } = page;
  /**
   * One check: its line says what was found, or what was thrown. What it gives without words is summed up later.
   * @template T
   * @param {string} code @param {string} about @param {() => Promise<{words?: string, found: T}>} body
   * @returns {Promise<T | null>}
   */
  const check = async (code, about, body) => {
    try {
      const { words, found } = await body();
      if (words) say("ok", code, `${about}${words}`);
      return found;
    } catch (error) {
      say("failed", code, `${about}${/** @type {Error} */ (error).message}`);
      return null;
    }
  };

  // 1. Keys, from this site: the weakest link, and said so. Then the logs, which may have retired one.
  const ring = await readKeys(await get(page.keys));
  if (!ring.length) throw new Error("this site publishes no keys");
  const logs = await readLogs({ get, say }, ring);
  const keys = narrowed(ring, logs, row);
  const bundle = `research/bundles/${row}/`;
  const envelopeBytes = await get(`${bundle}bundle.dsse.json`);

  // 2. The signature over the list of files.
  const opened = await check("bundle-signature", "", async () => {
    const found = await openEnvelope(envelopeBytes, keys, "tag:glasshouse,2026:bundle/v1");
    return { found, words: `bundle.dsse.json is signed by ${found.signer.label}` };
  });
  if (!opened) return say("skipped", "everything else", "without that signature nothing below means anything");
  const { predicate, subject } = opened.statement;

  // 3. Every file against the list.
  const files = await readFiles({ get, say }, bundle, subject);

  // 4. Row, plan and record belong together.
  const artifactBytes = await get(`research/artifacts/${row}.json`);
  const artifact = parse(artifactBytes, "the artifact");
  const sha256 = await digest(artifactBytes);
  const bundleSha256 = await digest(envelopeBytes);
  await check("artifact", "", async () => {
    if (page.sha256 && sha256 !== page.sha256) throw new Error("the artifact is not the one this page was made from");
    if (artifact.evidence && artifact.evidence.bundleSha256 !== bundleSha256) throw new Error("the artifact names another bundle");
    if (artifact.run !== predicate.run || artifact.id !== row) throw new Error("the artifact names another run");
    return { found: true, words: `${page.sha256 ? "it has the hash on this page, and names" : "it names"} this run and this bundle` };
  });
  const plan = await check("plan-signature", "", async () => {
    const file = needed(files, "plan.dsse.json");
    const found = await openEnvelope(file, keys, "tag:glasshouse,2026:plan/v1");
    const told = found.statement.predicate;
    if (told.run !== predicate.run || predicate.planSha256 !== (await digest(file))) throw new Error("it is another run's plan");
    listed(keys, found.signer.keyid, "operator", told.serial);
    if (found.signer.keyid !== opened.signer.keyid) throw new Error("plan and bundle have two signers");
    return { found: told, words: `signed by ${found.signer.label}, says it is entry ${told.serial} of the ledger` };
  });
  const record = await check("record", "", async () => {
    const file = needed(files, "record.json");
    if (predicate.recordSha256 !== (await digest(file))) throw new Error("record.json is not the one that was signed");
    return { found: JSON.parse(text(file)), words: "record.json is the one that was signed" };
  });
  if (!plan || !record) return say("skipped", "everything else", "there is no sound plan or record to compare with");

  // 5. Each launch: exchange, event chain, countersigned heads.
  const launches = await checkLaunches({ say, check, keys, files, plan, record, operator: opened.signer });

  // 6. The arithmetic.
  /** @type {import("./figures.js").Results} */
  const results = new Map([...launches].map(([index, folders]) => [index, resultOf(files, folders)]));
  const read = (/** @type {string} */ name) => (files.has(name) ? JSON.parse(text(needed(files, name))) : null);
  const every = [...launches.values()].flat();
  /** @type {import("./artifact.js").Evidence} */
  const evidence = {
    plan, record, results, allocation: read("allocation.json"), release: read("release.json"),
    outcome: read("outcome.json") ?? {},
    lifecycles: every.filter(({ folder }) => folder.includes("-protected") && isLifecycle(plan, folder)).length,
    released: every.some(({ granted }) => granted),
    anchor: { planSha256: predicate.planSha256, bundleSha256, signer: opened.signer.keyid },
  };
  await checkFigures(check, evidence, artifact);

  // 7. The ledger: where the row stands, and what was said of it since.
  const place = await checkPlace({ get, say, check, keys: ring, logs, page, predicate, plan, bundleSha256 });

  // 8. The artifact field by field, then the page.
  const held = await check("artifact-fields", "", async () => {
    const neighbours = await beside(get, logs, artifact);
    const faults = differences(artifact, evidence, saidSince(logs, row), neighbours, late(logs, row));
    faults.forEach((fault) => say("failed", "artifact-fields", fault));
    const count = fieldCount(artifact);
    return { found: !faults.length, words: faults.length ? "" : `its ${count} fields are those that record, plan, legs and logs give` };
  });
  if (page.shown) {
    const successor = stated(logs, "supersede", row)?.entry ?? null;
    const context = { sha256, local: page.local, place, successor };
    await check("page", "", async () => {
      const faults = pageFaults(page.shown ?? {}, artifact, context);
      faults.forEach((fault) => say("failed", "page", fault));
      const count = Object.values(page.shown ?? {}).flat().length;
      const said = held ? "the artifact that was checked" : "the artifact, which does not hold";
      return { found: true, words: faults.length ? "" : `the ${count} figures and facts on this page are those of ${said}` };
    });
  }

  // 9. What a page cannot do, and what of the row it did not compare.
  say("skipped", "appraisal", "the evidence against the policy, claim by claim: the command above does it");
  say("skipped", "judgement", "the rules behind status, checks and caveats, which blocks were disturbed, the margins, powers and order effects: the command above applies them again");
  say("skipped", "controls", "the evidence of the controls that caveats hang on: their rows' own pages check it");
  say("skipped", "sentences", "the sentence of each check that holds: it is the method's, not the record's");
  if (page.shown) UNSEEN.forEach((what) => say("skipped", "page", what));
  say("skipped", "publisher", "this script and the keys come from the site that they judge; they cannot vouch against it");
};

/** @param {import("./figures.js").Files} files @param {string} name */
const needed = (files, name) => {
  const found = files.get(name);
  if (!found) throw new Error(`${name} is missing`);
  return found;
};

/** @param {Json} plan @param {string} folder */
const isLifecycle = (plan, folder) => plan.schedule[Number(folder.slice(6, 9))]?.lifecycle;

/**
 * Every log of a publisher that the keyring lists. One that does not hold is said, and asked nothing.
 * @param {Site} site @param {Key[]} ring
 */
const readLogs = async ({ get, say }, ring) => {
  /** @type {Map<string, Log>} */ const logs = new Map();
  for (const key of new Set(ring.filter(({ role }) => role === "publisher").map(({ keyid }) => keyid.slice(0, 16)))) {
    for (const folder of LOG_FOLDERS) {
      const base = `research/${folder}/${key}/`;
      const note = await get(`${base}checkpoint.txt`).catch(() => null);
      const leaves = note && (await get(`${base}leaves.jsonl`).catch(() => null));
      if (!note || !leaves) continue;
      try {
        const log = await readLog(key, leaves, text(note), ring);
        const known = logs.get(key);
        const [one, other] = [known, log].sort((a, b) => (a?.size ?? 0) - (b?.size ?? 0));
        if (one && other && JSON.stringify(one.entries) !== JSON.stringify(other.entries.slice(0, one.size))) {
          throw new Error(`two copies of log ${key} differ`);
        }
        if (!known || log.size > known.size) logs.set(key, log);
      } catch (error) {
        say("failed", "retraction-not-checked", `log ${key} cannot be asked: ${/** @type {Error} */ (error).message}`);
      }
    }
  }
  return [...logs.values()];
};

/** A key that the row's log retired signs nothing from there on. @param {Key[]} ring @param {Log[]} logs @param {string} row */
const narrowed = (ring, logs, row) => {
  const log = logs.find(({ entries }) => entries.some((entry) => entry.kind === "row" && entry.row === row));
  return ring.map((key) => {
    const gone = log?.entries.find((entry) =>
      entry.kind === "key" && entry.state === "retired" && entry.keyid === key.keyid && entry.role === key.role);
    return gone ? { ...key, validUntil: Math.min(key.validUntil ?? Infinity, gone.serial - 1) } : key;
  });
};

/**
 * The files that were signed, each with the hash that was signed.
 * @param {Site} site @param {string} bundle @param {Json[]} subject
 */
const readFiles = async ({ get, say }, bundle, subject) => {
  /** @type {import("./figures.js").Files} */ const files = new Map();
  let altered = 0;
  const named = subject.filter(({ name }) => NAMES.test(name));
  for (let at = 0; at < named.length; at += 8) {
    await Promise.all(named.slice(at, at + 8).map(async ({ name, digest: told }) => {
      const bytes = await get(bundle + name).catch(() => null);
      if (bytes) files.set(name, bytes);
      if (bytes && (await digest(bytes)) === told.sha256) return;
      altered += 1;
      say("failed", "file-digest", bytes ? `${name} is not the file that was signed` : `${name} is missing`);
    }));
  }
  for (const name of REQUIRED.filter((item) => !named.some((file) => file.name === item))) {
    say("failed", "file-digest", `${name} was not signed`);
  }
  if (named.length !== subject.length) say("failed", "file-digest", "files were signed that belong to no bundle");
  else if (!altered) say("ok", "file-digests", `${files.size} files have the hashes that were signed`);
  return files;
};

/**
 * @param {{say: Site["say"], check: (code: string, about: string, body: () => Promise<{words?: string, found: Json}>) => Promise<Json>,
 *          keys: Key[], files: import("./figures.js").Files, plan: Json, record: Json, operator: Key}} given
 * @returns {Promise<Map<number, import("./figures.js").Launch[]>>} by slot
 */
const checkLaunches = async ({ say, check, keys, files, plan, record, operator }) => {
  const sound = { exchange: 0, chains: 0, events: 0, headed: 0, heads: 0 };
  /** @type {Map<number, import("./figures.js").Launch[]>} */
  const launches = new Map(plan.schedule.map((/** @type {Json} */ slot) => [slot.index, []]));
  const folders = [...files.keys()].map((name) => /^legs\/[^/]+\//.exec(name)?.[0] ?? "");
  for (const folder of [...new Set(folders)].filter(Boolean).sort()) {
    const [, slot, arm, again] = /** @type {string[]} */ (/^legs\/s(\d{3})-(raw|protected)(?:-l(\d+))?/.exec(folder));
    const place = `${folder.slice(5, -1)}: `;
    const launch = await check("launch", place, async () => {
      const found = parse(needed(files, `${folder}launch.json`), "launch.json");
      const planned = plan.schedule[Number(slot)];
      if (planned?.arm !== arm || found.slot !== planned.index || found.arm !== arm) throw new Error("it is no slot of the plan");
      if (again && again !== String(found.launch)) throw new Error(`it holds launch ${found.launch}`);
      const own = planned.lifecycle ? /^(launch|exchange|reference)\.json$|\.jsonl$/ : /^(launch|result)\.json$/;
      const stray = [...files.keys()].find((name) => name.startsWith(folder) && !own.test(name.slice(folder.length)));
      if (stray) throw new Error(`${stray} does not belong to this kind of leg`);
      return { found };
    });
    if (!launch) continue;
    const found = { folder, launch, granted: false, judged: false };
    launches.get(Number(slot))?.push(found);
    const exchangeBytes = files.get(`${folder}exchange.json`);
    const events = files.get(`${folder}events.jsonl`);
    const name = `s${slot}-${arm} launch ${launch.launch}`;
    const exchange = exchangeBytes && parse(exchangeBytes, "exchange.json");
    if (!exchange?.grant && events?.length) {
      const faults = new Map([["events-without-grant", "there are events, and no grant"]]);
      await check("event-chain", place, async () => ({ found: true, words: judged(record, name, faults) }));
    }
    if (!exchange) continue;
    /** @type {[string, string, number]} */ const where = [plan.run, `s${slot}`, launch.launch];
    const asked = await check("exchange", place, async () => {
      needed(files, `${folder}reference.json`);
      const key = await checkExchange(keys, exchange, plan.serial, where);
      return { found: { key }, words: key ? "" : "refused by the broker: no key was released" };
    });
    found.granted = exchange.grant !== null && files.has(`${folder}reference.json`);
    found.judged = !asked || found.granted;
    if (!asked?.key) continue;
    sound.exchange += 1;
    const chain = await check("event-chain", place, async () => {
      const read = await checkEvents(events ?? new Uint8Array(), asked.key, exchange.grant, launch.status === "complete");
      const words = judged(record, name, read.faults);
      return { found: { ...read, words }, words };
    });
    if (!chain) continue;
    if (!chain.words) [sound.chains, sound.events] = [sound.chains + 1, sound.events + chain.events.length];
    const heads = await check("heads", place, async () => {
      const read = await checkHeads(files.get(`${folder}heads.jsonl`), chain.hashes, operator, where);
      const words = judged(record, name, read.faults);
      return { found: { ...read, words }, words };
    });
    if (!heads || heads.words) continue;
    sound.headed += 1;
    sound.heads += heads.count;
  }
  for (const [index, found] of launches) {
    found.sort((a, b) => a.launch.launch - b.launch.launch);
    const slot = plan.schedule[index];
    const told = record.exclusion?.codes.includes("attestation-not-verified");
    if (slot.lifecycle && !told && !found.at(-1)?.judged) {
      say("failed", "exchange", `${slotName(slot)}: nothing shows that the payload was released to it, and the record does not say so`);
    }
    const complete = found.filter(({ launch }) => launch.status === "complete").length;
    if (found.some(({ launch }, at) => launch.launch !== at + 1) || complete > 1) {
      say("failed", "launches", `slot ${index} does not list each of its launches once`);
    }
  }
  const of = (/** @type {number} */ count) => `${count} protected launch${count === 1 ? "" : "es"}: `;
  if (sound.exchange) say("ok", "exchange", `${of(sound.exchange)}evidence, result and grant are signed and bound to each other`);
  if (sound.chains) say("ok", "event-chain", `${of(sound.chains)}${sound.events} events, each signed by the attested key and linked from the grant on`);
  if (sound.headed) say("ok", "heads", `${of(sound.headed)}${sound.heads} heads countersigned by the operator, each last event among them`);
  return launches;
};

/**
 * @param {(code: string, about: string, body: () => Promise<{words?: string, found: Json}>) => Promise<Json>} check
 * @param {import("./artifact.js").Evidence} evidence @param {Json} artifact
 */
const checkFigures = async (check, evidence, artifact) => {
  const { plan, record, results } = evidence;
  await check("figures", "", async () => {
    const found = recompute(plan, record, results);
    if (!near(found.overhead, record.figures.overheadPct)) throw new Error(`overhead recomputed ${found.overhead}%, recorded ${record.figures.overheadPct}%`);
    const faults = [...armFaults(evidence, near), ...slotFaults(evidence, near)];
    if (faults.length) throw new Error(faults.slice(0, 5).join("; "));
    const shown = record.status === "verified" ? record.figures.overheadPct : null;
    if (!near(shown, artifact.overheadPct)) throw new Error(`the artifact says ${artifact.overheadPct}%, the record ${shown}%`);
    const words = found.overhead === null ? `no overhead, rightly: ${found.how}`
      : `overhead ${found.overhead.toFixed(4)}% from the legs' own counts and seconds (${found.how}), as recorded${artifact.exclusion ? "; the row is excluded and shows none" : ""}`;
    return { found: true, words };
  });
  const told = record.figures.overhead;
  if (told && told.ciLowPct !== null) {
    await check("interval", "", async () => {
      const [low, high] = recompute(plan, record, results).interval ?? [NaN, NaN];
      // The t quantile is integrated here by another method than the record's; it agrees to six digits.
      const close = (/** @type {number} */ a, /** @type {number} */ b) => Math.abs(a - b) <= 1e-4 * Math.max(1, Math.abs(b));
      if (!close(low, told.ciLowPct) || !close(high, told.ciHighPct)) throw new Error(`recomputed ${low} to ${high}, recorded ${told.ciLowPct} to ${told.ciHighPct}`);
      return { found: true, words: `95% from ${low.toFixed(4)}% to ${high.toFixed(4)}%, Student's t over the blocks; which blocks were disturbed is taken from the record` };
    });
  }
  if (record.figures.fixedCostSec) {
    await check("fixed-cost", "", async () => {
      const timed = plan.schedule.filter((/** @type {Json} */ slot) => slot.lifecycle && results.get(slot.index))
        .map((/** @type {Json} */ slot) => results.get(slot.index).timings);
      const total = fixedCost(timed) ?? {};
      for (const name of new Set([...Object.keys(total), ...Object.keys(record.figures.fixedCostSec)])) {
        if (!near(total[name], record.figures.fixedCostSec[name])) throw new Error(`${name} recomputed ${total[name]} s, recorded ${record.figures.fixedCostSec[name]} s`);
      }
      return { found: true, words: `${total.totalSec.toFixed(3)} s a protected launch, the medians of its steps` };
    });
  }
};

/**
 * @param {{get: Site["get"], say: Site["say"], check: (code: string, about: string, body: () => Promise<{words?: string, found: Json}>) => Promise<Json>,
 *          keys: Key[], logs: Log[], page: Page, predicate: Json, plan: Json, bundleSha256: string}} given
 * @returns {Promise<{log: Log, plan: Json, row: Json} | null>}
 */
const checkPlace = async ({ get, say, check, keys, logs, page, predicate, plan, bundleSha256 }) => {
  const { row } = page;
  const wanted = [row, predicate.run, plan.serial, bundleSha256, predicate.recordSha256].join();
  const fits = (/** @type {Json} */ planned, /** @type {Json} */ entered) => {
    if (planned.planSha256 !== predicate.planSha256 || planned.serial !== plan.serial) throw new Error("the log holds another plan");
    const facts = [entered.row, entered.run, entered.planSerial, entered.bundleSha256, entered.recordSha256];
    if (facts.join() !== wanted) throw new Error("the log holds another row");
  };
  /** @type {{log: Log, plan: Json, row: Json} | null} */ let place = null;
  await check("ledger-inclusion", "", async () => {
    const at = placeOf(logs, row);
    if (!at) throw new Error("the row is in no log that this site publishes");
    const { log, entry } = at;
    const planned = log.entries[entry.planSerial] ?? {};
    fits(planned, entry);
    place = { log, plan: planned, row: entry };
    if (page.log && log.origin !== page.log) throw new Error(`it is in ${log.origin}, this page names ${page.log}`);
    if (page.inclusion) {
      const found = JSON.parse(text(await get(page.inclusion)));
      const { origin, size, head } = await openCheckpoint(found.checkpoint, keys);
      if (page.log && origin !== page.log) throw new Error(`it is about ${origin}, this page names ${page.log}`);
      for (const name of ["plan", "row"]) {
        const { leaf, proof } = found[name];
        if (!(await included(leaf, leaf.serial, size, proof, head))) throw new Error(`the ${name} is not under the signed root`);
      }
      fits(found.plan.leaf, found.row.leaf);
    }
    const seen = log.witnesses.length ? `co-signed by ${log.witnesses.join(", ")}` : "unwitnessed";
    return {
      found: true,
      words: `plan is entry ${planned.serial} and row entry ${entry.serial} of ${log.size} in ${log.origin}, under a root signed by ${log.signer.label}; ${seen}`,
    };
  });
  if (!logs.length) say("failed", "retraction-not-checked", "no log of a publisher of the keyring is here: whether the row was withdrawn cannot be told");
  else {
    const [gone, after] = [stated(logs, "retract", row), stated(logs, "supersede", row)];
    const said = gone ? `retracted on ${gone.entry.date}: ${gone.entry.reason}` : "not retracted";
    say("ok", "retraction", `${said}${after ? `; superseded by ${after.entry.by}` : ""}, by ${logs.length} log${logs.length === 1 ? "" : "s"} of this site`);
  }
  return place;
};

/**
 * The rows that may be controls of this one, as the logs have them: the site's own list, and those it names.
 * @param {Site["get"]} get @param {Log[]} logs @param {Json} artifact
 * @returns {Promise<Json[]>}
 */
const beside = async (get, logs, artifact) => {
  /** @type {Map<string, Json>} */ const rows = new Map();
  const all = await get("downloads/rows.json").catch(() => null);
  for (const other of all ? JSON.parse(text(all)) : []) rows.set(other.id, other);
  for (const id of artifact.controls ?? []) {
    if (!/^[a-z0-9][a-z0-9.-]{0,150}$/.test(id)) throw new Error("a control has no id of a row");
    rows.set(id, JSON.parse(text(await get(`research/artifacts/${id}.json`))));
  }
  for (const other of rows.values()) {
    if (!(artifact.controls ?? []).includes(other.id)) continue;
    const since = saidSince(logs, other.id);
    if (JSON.stringify(other.retracted) !== JSON.stringify(since.retracted)) throw new Error(`control ${other.id}: the logs say otherwise of its withdrawal`);
  }
  return [...rows.values()].map((other) => ({ ...other, ...saidSince(logs, other.id) }));
};
