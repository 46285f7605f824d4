// One protected launch: its exchange with the broker, its chain of events, the heads that the operator signed.

import { base64url, canonical, digest, domainHash, parse, same, sha256, text, utf8, without } from "./bytes.js";
import { listed, readToken, signedBy } from "./keys.js";

/** @typedef {import("./bytes.js").Json} Json */
/** @typedef {import("./keys.js").Key} Key */
/** @typedef {Map<string, string>} Faults codes of records/chain.py, each with words */

/**
 * The key that signed the launch's evidence, null where the broker refused it. Throws where it does not hold.
 * @param {Key[]} keys @param {Json} exchange @param {number} serial of the plan
 * @param {[string, string, number]} where run, leg and launch
 */
export const checkExchange = async (keys, exchange, serial, where) => {
  const kid = JSON.parse(text(base64url(exchange.challenge.split(".")[0]))).kid;
  const broker = listed(keys, kid, "broker", serial);
  const challenge = await readToken(exchange.challenge, broker.raw, "gh-challenge+jwt");
  const ear = await readToken(exchange.ear, broker.raw, "gh-ear+jwt");
  if ([challenge.run, challenge.leg, challenge.launch].join() !== where.join()) throw new Error("of another launch");
  if (ear["ear.glasshouse.evidence-sha256"] !== (await digest(utf8(exchange.evidence)))) {
    throw new Error("the broker's result is about other evidence");
  }
  if (ear.eat_nonce !== challenge.nonce) throw new Error("another nonce");
  // What was refused may be anything, signed by nobody: that the broker refused it is all there is to check.
  if (exchange.grant === null) return null;
  const claims = await readToken(exchange.evidence, (_, own) => base64url(own.event_key), "gh-evidence+jwt");
  if (claims.eat_nonce !== challenge.nonce) throw new Error("another nonce");
  // The broker signs whose evidence answers a challenge. Recorded ones of before it did hold no `cnf`.
  if ("cnf" in challenge) {
    const own = await sha256(utf8(canonical({ crv: "Ed25519", kty: "OKP", x: claims.event_key })));
    const jkt = btoa(String.fromCharCode(...own)).replaceAll("+", "-").replaceAll("/", "_").replace("=", "");
    if (canonical(challenge.cnf) !== canonical({ jkt })) {
      throw new Error("the evidence is by another key than the one that asked");
    }
  }
  const grant = await readToken(exchange.grant, broker.raw, "gh-grant+jwt");
  const [run, leg, launch] = where;
  const transcript = [broker.keyid, run, leg, String(launch), exchange.challenge, exchange.launchToken,
                      exchange.evidence, exchange.ear];
  const info = await domainHash("glasshouse/grant/v1", transcript.map(utf8));
  if (!same(info, base64url(grant.info))) throw new Error("the grant is bound to another exchange");
  return base64url(claims.event_key);
};

/** @type {Record<string, string>} */
const LETTERS = { released: "r", unsealed: "u", "trainer-hardened": "h", progress: "p", "checkpoint-sealed": "c",
                  watched: "w", trained: "t", "sealed-outputs": "o", "execs-counted": "x", zeroized: "z", failed: "f" };

/** @param {Uint8Array} bytes @returns {string[]} */
export const linesOf = (bytes) => {
  const string = text(bytes);
  if (string && !string.endsWith("\n")) throw new Error("the last line is not ended");
  return string.split("\n").slice(0, -1);
};

/** @param {Faults} faults @param {unknown} holds @param {string} code @param {string} words */
const note = (faults, holds, code, words) => {
  if (!holds && !faults.has(code)) faults.set(code, words);
  return holds;
};

/** @param {Uint8Array} bytes @param {Uint8Array<ArrayBuffer>} eventKey @param {string} grant @param {boolean} complete */
export const checkEvents = async (bytes, eventKey, grant, complete) => {
  /** @type {Json[]} */ const events = [];
  /** @type {string[]} */ const hashes = [];
  /** @type {Faults} */ const faults = new Map();
  let previous = await digest(utf8(grant));
  let clock = 0;
  for (const [number, line] of linesOf(bytes).entries()) {
    const event = parse(line, `event ${number}`);
    const message = await domainHash("glasshouse/event/v1", [utf8(canonical(without(event, "sig")))]);
    const signed = await signedBy(eventKey, base64url(event.sig), message);
    // What follows hangs on a line that nobody signed.
    if (!note(faults, signed, "event-invalid", `the signature of event ${number} does not verify`)) break;
    note(faults, event.seq === number, "event-sequence", `event ${number} says it is event ${event.seq}`);
    note(faults, event.prev === previous, "event-link",
      number ? `event ${number} does not link to the one before` : "the chain does not begin at the grant");
    note(faults, event.tMs >= clock, "event-time", `the clock runs backwards at event ${number}`);
    [previous, clock] = [await digest(utf8(line)), event.tMs];
    events.push(event);
    hashes.push(previous);
  }
  const order = events.map((event) => LETTERS[event.type] ?? "?").join("");
  // The orders of records/chain.py.
  const whole = /^ruh+[pcw]*tp*ox?z$/.test(order);
  const stopped = /^r(u(h+([pcw]*(tp*o?)?)?x?)?)?$/.test(order);
  const words = !order ? "there are no events"
    : stopped ? `the events stop at ${events.at(-1).type}` : "the events are out of order";
  note(faults, order, "events-missing", words);
  const failed = !order || /^r(u(h+([pcw]*(tp*o?)?)?x?)?)?f$/.test(order);
  note(faults, whole || (!complete && failed), "event-order", words);
  return { events, hashes, faults };
};

/**
 * @param {Uint8Array | undefined} bytes @param {string[]} hashes of the events @param {Key} operator
 * @param {[string, string, number]} where
 */
export const checkHeads = async (bytes, hashes, operator, where) => {
  /** @type {Faults} */ const faults = new Map();
  let last = -1;
  let time = 0;
  const lines = bytes ? linesOf(bytes) : [];
  for (const [number, line] of lines.entries()) {
    const head = parse(line, `head ${number}`);
    const message = await domainHash("glasshouse/head/v1", [utf8(canonical(without(head, "sig")))]);
    const signed = await signedBy(operator.raw, base64url(head.sig), message);
    note(faults, signed, "head-signature", `the operator's signature of head ${number} does not verify`);
    const here = [head.run, head.leg, head.launch].join() === where.join();
    note(faults, here, "head-other-leg", `head ${number} is of another leg`);
    note(faults, head.time >= time, "head-time", `the clock runs backwards at head ${number}`);
    const fits = head.seq >= last && hashes[head.seq] === head.head;
    note(faults, fits, "head-mismatch", `head ${number} does not fit the chain`);
    [last, time] = [head.seq, head.time];
  }
  const ended = !hashes.length || last === hashes.length - 1;
  note(faults, ended, "heads-incomplete", "the last event is not countersigned");
  return { count: lines.length, faults };
};

// Whether the record is excluded for this fault of this launch. Of many findings it spells out the first few.
/** @param {Json} record @param {string} launch @param {string} fault */
const admits = (record, launch, fault) => {
  const rule = "event-chain-broken";
  if (!record.exclusion?.codes.includes(rule)) return false;
  /** @type {string[]} */
  const found = record.checks.find((/** @type {Json} */ check) => check.code === rule).detail.split("; ");
  const own = found.find((item) => item.startsWith(`${launch}: `));
  if (!own) return / and \d+ more$/.test(` ${found.at(-1)}`);
  return own.slice(launch.length + 2).split(", ").includes(fault);
};

/**
 * What the faults of a launch come to: "", or words where the record tells of every one; else it throws.
 * @param {Json} record @param {string} launch @param {Faults} faults
 */
export const judged = (record, launch, faults) => {
  const untold = [...faults].filter(([code]) => !admits(record, launch, code)).map(([, words]) => words);
  const unsaid = record.exclusion ? ", and the record does not say so" : "";
  if (untold.length) throw new Error(`${[...new Set(untold)].join("; ")}${unsaid}`);
  if (!faults.size) return "";
  return `${[...new Set(faults.values())].join("; ")}, as the record says: the row is excluded`;
};
