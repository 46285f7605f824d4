// Bytes, hashes and the one form in which JSON is hashed (RFC 8785).

/** @typedef {any} Json a parsed JSON value, of which nothing is known before it is looked at */

/** @param {Uint8Array} bytes @returns {string} */
export const text = (bytes) => new TextDecoder("utf-8", { fatal: true }).decode(bytes);
/** @param {string} string @returns {Uint8Array<ArrayBuffer>} */
export const utf8 = (string) => Uint8Array.from(new TextEncoder().encode(string));
/** @param {Uint8Array} bytes @returns {string} */
export const hex = (bytes) => Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
/** @param {string} string @returns {Uint8Array<ArrayBuffer>} */
export const unhex = (string) => Uint8Array.from(string.match(/../g) ?? [], (pair) => parseInt(pair, 16));
/** @param {Uint8Array} a @param {Uint8Array} b */
export const same = (a, b) => hex(a) === hex(b);
/** @param {Uint8Array} bytes */
export const sha256 = async (bytes) => new Uint8Array(await crypto.subtle.digest("SHA-256", Uint8Array.from(bytes)));
/** @param {Uint8Array} bytes */
export const digest = async (bytes) => hex(await sha256(bytes));
/** @param {string} string @returns {Uint8Array<ArrayBuffer>} */
export const base64 = (string) => Uint8Array.from(atob(string), (char) => char.charCodeAt(0));
/** @param {string} string */
export const base64url = (string) => base64(string.replaceAll("-", "+").replaceAll("_", "/"));

/** @param {...Uint8Array} parts @returns {Uint8Array<ArrayBuffer>} */
export const joined = (...parts) => {
  const all = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
};

/** @param {Uint8Array} bytes */
const length = (bytes) => {
  const prefix = new Uint8Array(8);
  new DataView(prefix.buffer).setBigUint64(0, BigInt(bytes.length));
  return prefix;
};

/**
 * A label and its parts, each behind its length, so that no two lists give the same bytes.
 * @param {string} label @param {Uint8Array[]} parts
 */
export const domainHash = (label, parts) =>
  sha256(joined(...[utf8(label), ...parts].flatMap((part) => [length(part), part])));

/**
 * RFC 8785: keys by UTF-16 code units, numbers and strings as ECMAScript writes them.
 * @param {Json} value @returns {string}
 */
export const canonical = (value) => {
  if (Array.isArray(value)) return `[${value.map(canonical).join(",")}]`;
  if (value === null || typeof value !== "object") return JSON.stringify(value);
  const keys = Object.keys(value).sort();
  return `{${keys.map((key) => `${JSON.stringify(key)}:${canonical(value[key])}`).join(",")}}`;
};

/**
 * Read what must be in canonical form. Throws where it is not.
 * @param {Uint8Array | string} bytes @param {string} name @returns {Json}
 */
export const parse = (bytes, name) => {
  const string = typeof bytes === "string" ? bytes : text(bytes);
  const value = JSON.parse(string);
  if (canonical(value) !== string) throw new Error(`${name} is not in canonical form`);
  return value;
};

/** @param {Json} object @param {string} name @returns {Json} */
export const without = (object, name) => Object.fromEntries(Object.entries(object).filter(([key]) => key !== name));
