// The published logs: checkpoints, proofs, and what they say of a row since it was entered.

import { base64, canonical, joined, parse, same, sha256, unhex, utf8 } from "./bytes.js";
import { signedBy, validAt } from "./keys.js";
import { linesOf } from "./launches.js";

/** @typedef {import("./bytes.js").Json} Json */
/** @typedef {import("./keys.js").Key} Key */
/** @typedef {{origin: string, size: number, head: Uint8Array, signer: Key, witnesses: string[]}} Checkpoint */
/** @typedef {Checkpoint & {key: string, entries: Json[]}} Log one log, whole; key: what its folder is named after */

/**
 * @param {string} note @param {Key[]} keys
 * @returns {Promise<Checkpoint>}
 */
export const openCheckpoint = async (note, keys) => {
  const cut = note.lastIndexOf("\n\n");
  const body = note.slice(0, cut + 1);
  const [origin, size, head] = body.split("\n");
  const signers = [];
  const witnesses = [];
  for (const line of note.slice(cut + 2).split("\n").filter(Boolean)) {
    const [, name, blob] = line.split(" ");
    const bytes = base64(blob);
    for (const key of keys) {
      const kind = key.role === "publisher" ? 1 : key.role === "witness" ? 4 : 0;
      const id = (await sha256(joined(utf8(`${name}\n`), Uint8Array.of(kind), key.raw))).slice(0, 4);
      if (!kind || !same(id, bytes.slice(0, 4))) continue;
      let [signature, message] = [bytes.slice(4), body];
      if (kind === 4) {
        const stamp = new DataView(bytes.buffer).getBigUint64(4);
        [signature, message] = [bytes.slice(12), `cosignature/v1\ntime ${stamp}\n${body}`];
      } else if (name !== origin) continue;
      if (!(await signedBy(key.raw, signature, utf8(message)))) {
        throw new Error("the checkpoint's signature does not verify");
      }
      if (kind === 1) signers.push(key);
      else witnesses.push(key.label);
    }
  }
  if (!signers.length) throw new Error("no publisher of the keyring signed the checkpoint");
  // A log is named after its key, and a retired key's log goes no further than the keyring says.
  const signer = signers.find((key) => validAt(key, Math.max(Number(size) - 1, 0)));
  if (!signer) throw new Error("the log goes on past its key's retirement");
  if (origin !== `glasshouse/ledger/${signer.keyid.slice(0, 16)}`) {
    throw new Error(`${origin} is not the log of its signer`);
  }
  return { origin, size: Number(size), head: base64(head), signer, witnesses: [...new Set(witnesses)].sort() };
};

/** @param {string} line */
const leafHash = (line) => sha256(joined(Uint8Array.of(0), utf8(line)));

/** RFC 9162, section 2.1.3.2. @param {Json} leaf @param {number} index @param {number} size @param {string[]} proof @param {Uint8Array} head */
export const included = async (leaf, index, size, proof, head) => {
  let [node, last, hash] = [index, size - 1, await leafHash(canonical(leaf))];
  if (index >= size) return false;
  for (const item of proof.map(unhex)) {
    if (last === 0) return false;
    if (node % 2 || node === last) {
      hash = await sha256(joined(Uint8Array.of(1), item, hash));
      while (node % 2 === 0 && node) [node, last] = [Math.floor(node / 2), Math.floor(last / 2)];
    } else {
      hash = await sha256(joined(Uint8Array.of(1), hash, item));
    }
    [node, last] = [Math.floor(node / 2), Math.floor(last / 2)];
  }
  return last === 0 && same(hash, head);
};

/** RFC 9162, section 2.1.1. @param {Uint8Array[]} hashes @returns {Promise<Uint8Array>} */
const rootOf = async (hashes) => {
  if (!hashes.length) return sha256(new Uint8Array());
  // Of a tree that is not full, the odd one out rises as it is: the same root as by halves of powers of two.
  while (hashes.length > 1) {
    const next = [];
    for (let at = 0; at < hashes.length; at += 2) {
      next.push(at + 1 < hashes.length
        ? await sha256(joined(Uint8Array.of(1), hashes[at], hashes[at + 1])) : hashes[at]);
    }
    hashes = next;
  }
  return hashes[0];
};

/**
 * A log that is what its checkpoint signs. Throws where it is not.
 * @param {string} key @param {Uint8Array} leaves @param {string} note @param {Key[]} keys
 * @returns {Promise<Log>}
 */
export const readLog = async (key, leaves, note, keys) => {
  const checkpoint = await openCheckpoint(note, keys);
  const lines = linesOf(leaves);
  const entries = lines.map((line, number) => parse(line, `entry ${number}`));
  if (entries.some((entry, number) => entry.serial !== number)) throw new Error(`log ${key} has a gap`);
  if (lines.length !== checkpoint.size) throw new Error(`the checkpoint of log ${key} does not cover every entry`);
  const hashes = [];
  for (const line of lines) hashes.push(await leafHash(line));
  if (!same(await rootOf(hashes), checkpoint.head)) throw new Error(`the entries of log ${key} do not give the signed root`);
  if (checkpoint.signer.keyid.slice(0, 16) !== key) throw new Error(`log ${key} is signed by another key`);
  return { ...checkpoint, key, entries };
};

/** The entry of a row, and the log that holds it. @param {Log[]} logs @param {string} row */
export const placeOf = (logs, row) => {
  const found = logs.flatMap((log) => log.entries
    .filter((entry) => entry.kind === "row" && entry.row === row).map((entry) => ({ log, entry })));
  if (found.length > 1) throw new Error("two entries name the row");
  return found[0] ?? null;
};

/**
 * The newest statement of a kind about a row: of each log's last the newest by time.
 * @param {Log[]} logs @param {"retract" | "supersede"} kind @param {string} row
 * @returns {{log: Log, entry: Json} | null}
 */
export const stated = (logs, kind, row) => {
  /** @type {{log: Log, entry: Json} | null} */ let newest = null;
  for (const log of [...logs].sort((a, b) => (a.key < b.key ? -1 : 1))) {
    const entry = log.entries.findLast((item) => item.kind === kind && item.row === row);
    if (entry && (!newest || entry.time > newest.entry.time)) newest = { log, entry };
  }
  return newest;
};

/** A row's fields `retracted` and `supersededBy` as the logs have them. @param {Log[]} logs @param {string} row */
export const saidSince = (logs, row) => {
  const [gone, after] = [stated(logs, "retract", row), stated(logs, "supersede", row)];
  return {
    retracted: gone ? { date: gone.entry.date, reason: gone.entry.reason } : null,
    supersededBy: after ? after.entry.by : null,
  };
};

const GETTING_THERE_SEC = 600;

/**
 * Whether the logs say that a row's journey was not announced, or its plan does not belong to what was: the
 * caveat registered-late. Throws where the log that must have announced it is not among them.
 * @param {Log[]} logs @param {string} row
 */
export const late = (logs, row) => {
  const place = placeOf(logs, row);
  const said = place?.log.entries[0];
  if (!place || said?.kind !== "journey-log") return false;
  const home = logs.find((log) => log.key === said.openedIn);
  if (!home) throw new Error(`log ${said.openedIn} must have announced the row's journey, and is not here`);
  const opening = home.entries[said.openSerial];
  const plans = place.log.entries.filter((entry) => entry.kind === "plan");
  const fits = opening?.kind === "journey" && home.entries[0].kind !== "journey-log" &&
    opening.commitment === place.log.signer.keyid &&
    ["journey", "seed", "budgetSec"].every((name) => opening[name] === said[name]) &&
    plans.every((plan) => plan.time > opening.time);
  if (!fits) return true;
  const ended = home.entries.find((entry) => entry.kind === "journey-end" && entry.openSerial === opening.serial);
  const plan = place.log.entries[place.entry.planSerial];
  return plan.time > opening.time + opening.budgetSec + GETTING_THERE_SEC || (ended && plan.serial >= ended.size);
};
