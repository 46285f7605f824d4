// Keys, the envelopes and tokens that they sign.

import { base64, base64url, digest, hex, joined, parse, text, utf8 } from "./bytes.js";

/** @typedef {import("./bytes.js").Json} Json */
/**
 * @typedef {object} Key one entry of the keyring; raw: its public key
 * @property {string} keyid
 * @property {string} role
 * @property {string} label
 * @property {boolean} [local]
 * @property {number} [validFrom]
 * @property {number} [validUntil]
 * @property {Uint8Array<ArrayBuffer>} raw
 */

// Under a key of small order, or written in a second way, signatures verify that nobody made: as tokens.py.
const PRIME = 2n ** 255n - 19n;
const ORDER_8 = 0x05fc536d880238b13933c6d305acdfd5f098eff289f4c345b027b2c28f95e826n;
const SMALL = [0n, 1n, PRIME - 1n, ORDER_8, PRIME - ORDER_8];

/** @param {Uint8Array<ArrayBuffer>} raw @param {Uint8Array<ArrayBuffer>} signature @param {Uint8Array<ArrayBuffer>} message */
export const signedBy = async (raw, signature, message) => {
  const y = BigInt(`0x${hex(raw.slice().reverse())}`) % 2n ** 255n;
  if (y >= PRIME || SMALL.includes(y)) return false;
  const key = await crypto.subtle.importKey("raw", raw, { name: "Ed25519" }, false, ["verify"]);
  return crypto.subtle.verify({ name: "Ed25519" }, key, signature, message);
};

/** @param {Uint8Array} bytes of keyring.json @returns {Promise<Key[]>} */
export const readKeys = async (bytes) => {
  const entries = [];
  for (const entry of parse(bytes, "the keyring").keys) {
    const raw = base64url(entry.publicKey);
    if ((await digest(raw)) === entry.keyid) entries.push({ ...entry, raw });
  }
  return entries;
};

/** How a signer is shown. @param {Key} key */
export const nameOf = (key) => `${key.local ? "local: " : ""}${key.label} (${key.keyid.slice(0, 16)})`;

/** Whether a key signs at an index of its ledger. @param {Key} key @param {number} index */
export const validAt = (key, index) => (key.validFrom ?? 0) <= index && index <= (key.validUntil ?? Infinity);

/** @param {Key[]} keys @param {string} keyid @param {string} role @param {number} [index] */
export const listed = (keys, keyid, role, index) => {
  const entry = keys.find(
    (key) => key.keyid === keyid && key.role === role && (index === undefined || validAt(key, index)));
  if (!entry) throw new Error(`the keyring lists no ${role} key ${String(keyid).slice(0, 16)} for this`);
  return entry;
};

/**
 * DSSE: the signature is over the type and the payload, each behind its length.
 * @param {Uint8Array} bytes @param {Key[]} keys @param {string} type
 */
export const openEnvelope = async (bytes, keys, type) => {
  const envelope = parse(bytes, "the envelope");
  if (envelope.signatures.length !== 1) throw new Error("the envelope has not exactly one signature");
  const payload = base64(envelope.payload);
  const kind = utf8(envelope.payloadType);
  const pae = joined(utf8(`DSSEv1 ${kind.length} `), kind, utf8(` ${payload.length} `), payload);
  const signer = listed(keys, envelope.signatures[0].keyid, "operator");
  if (!(await signedBy(signer.raw, base64(envelope.signatures[0].sig), pae))) {
    throw new Error("the signature does not verify");
  }
  const statement = parse(payload, "the statement");
  if (statement.predicateType !== type) throw new Error("the statement is of another type");
  return { statement, signer };
};

/**
 * @param {string} token
 * @param {Uint8Array<ArrayBuffer> | ((header: Json, claims: Json) => Uint8Array<ArrayBuffer>)} raw
 * @param {string} type
 * @returns {Promise<Json>} its claims
 */
export const readToken = async (token, raw, type) => {
  const [head, body, signature] = token.split(".");
  const header = JSON.parse(text(base64url(head)));
  if (header.alg !== "EdDSA" || header.typ !== type) throw new Error(`a token is no ${type}`);
  const claims = JSON.parse(text(base64url(body)));
  const key = typeof raw === "function" ? raw(header, claims) : raw;
  if (header.kid !== (await digest(key))) throw new Error(`a ${type} names another key`);
  if (!(await signedBy(key, base64url(signature), utf8(`${head}.${body}`)))) {
    throw new Error(`the signature of a ${type} does not verify`);
  }
  return claims;
};
